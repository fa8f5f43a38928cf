//! From the command line to a loaded project: which files, which name, and what is wrong with them.
//!
//! This is the only place that knows how the loader is called.

use std::cell::OnceCell;
use std::collections::btree_map::Entry;
use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use keel_compose::{
    CertificateUse, Code, Diagnostic, FileSource, LoadOptions, Lowered, PathKind, Project,
    ReadError, Severity,
};
use keel_model::{Stack, StackName};

use crate::context::Context;
use crate::failure::{Failure, INPUT};
use crate::names;
use crate::ui::diagnostic::{self, Lines};

/// Largest input file in bytes.
const MAX_FILE: u64 = 32 << 20;

/// The files of this machine.
pub struct Disk {
    directory: PathBuf,
    stdin: OnceCell<Vec<u8>>,
}

impl Disk {
    fn new() -> Result<Self, Failure> {
        let directory = std::env::current_dir()
            .map_err(|error| Failure::input(format!("there is no current directory: {error}")))?;
        Ok(Self { directory, stdin: OnceCell::new() })
    }
}

impl FileSource for Disk {
    fn read(&self, path: &Path) -> Result<Vec<u8>, ReadError> {
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::NotFound => ReadError::NotFound,
            io::ErrorKind::IsADirectory => ReadError::Directory,
            _ => ReadError::Other(error.to_string()),
        };
        read_bounded(fs::File::open(path).map_err(failed)?).map_err(failed)
    }

    fn kind(&self, path: &Path) -> PathKind {
        match fs::metadata(path) {
            Ok(metadata) if metadata.is_dir() => PathKind::Directory,
            Ok(_) => PathKind::File,
            Err(_) => PathKind::Missing,
        }
    }

    fn canonical(&self, path: &Path) -> PathBuf {
        fs::canonicalize(path).unwrap_or_else(|_| path.to_owned())
    }

    fn stdin(&self) -> Result<Vec<u8>, ReadError> {
        if let Some(bytes) = self.stdin.get() {
            return Ok(bytes.clone());
        }
        let bytes = read_bounded(io::stdin().lock())
            .map_err(|error| ReadError::Other(error.to_string()))?;
        Ok(self.stdin.get_or_init(|| bytes).clone())
    }
}

fn read_bounded(reader: impl io::Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    reader.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(io::Error::other(format!("larger than {} MiB", MAX_FILE >> 20)));
    }
    Ok(bytes)
}

impl Lines for Disk {
    fn name<'a>(&self, file: &'a str) -> &'a str {
        if file == "-" {
            return "<stdin>";
        }
        Path::new(file)
            .strip_prefix(&self.directory)
            .ok()
            .and_then(Path::to_str)
            .filter(|name| !name.is_empty())
            .unwrap_or(file)
    }

    fn line(&self, file: &str, number: u32) -> Option<String> {
        let bytes =
            if file == "-" { self.stdin().ok()? } else { self.read(Path::new(file)).ok()? };
        let text = String::from_utf8_lossy(&bytes);
        text.lines().nth(number.checked_sub(1)? as usize).map(str::to_owned)
    }
}

/// Which phases of loading are wanted; all, unless `keel config` leaves some out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Phases {
    /// Replace variables.
    pub interpolate: bool,
    /// Add defaults.
    pub normalize: bool,
    /// Make paths absolute.
    pub resolve_paths: bool,
    /// Check references.
    pub consistency: bool,
    /// Read the env files of services.
    pub resolve_environment: bool,
}

/// All phases.
pub const ALL: Phases = Phases {
    interpolate: true,
    normalize: true,
    resolve_paths: true,
    consistency: true,
    resolve_environment: true,
};

/// Loads the project that the command line means; warnings are told on the way.
///
/// # Errors
/// When the files are wrong: everything that is, has been told then.
pub fn load_with(ctx: &Context, services: &[String], phases: Phases) -> Result<Project, Failure> {
    let disk = Disk::new()?;
    let project = read(ctx, &disk, services, phases)?;
    tell(ctx, project.warnings(), &disk);
    Ok(project)
}

/// Makes sure that `up` would take the files; everything that is wrong with them is told.
///
/// # Errors
/// As [`load_with`].
pub fn check(ctx: &Context, services: &[String]) -> Result<(), Failure> {
    let disk = Disk::new()?;
    let project = read(ctx, &disk, services, ALL)?;
    convert(ctx, &disk, &project).map(drop)
}

/// The stack that the command line means, with all of its active services, even if only some are named: what is not
/// in it counts as removed from the file. Naming a service activates its profiles.
///
/// # Errors
/// As [`load_with`].
pub fn stack(ctx: &Context, services: &[String]) -> Result<Stack, Failure> {
    Ok(lowered(ctx, services)?.stack)
}

/// The same, with where the images of its services come from.
///
/// # Errors
/// As [`load_with`].
pub fn lowered(ctx: &Context, services: &[String]) -> Result<Lowered, Failure> {
    let disk = Disk::new()?;
    let project = read(ctx, &disk, services, ALL)?;
    check_profiles(ctx, &project)?;
    let mut lowered = convert(ctx, &disk, &project)?;
    if !services.is_empty() {
        join(&mut lowered.stack, quietly(ctx, &disk)?);
    }
    Ok(lowered)
}

/// Adds the services that were not named. What routes a service has depends on the labels of all, and which entrypoints
/// there are on the routes of all: these are those of the whole file.
fn join(stack: &mut Stack, whole: Stack) {
    for (name, service) in whole.services {
        match stack.services.entry(name) {
            Entry::Vacant(place) => {
                place.insert(service);
            }
            Entry::Occupied(mut known) => {
                known.get_mut().routes = service.routes;
                known.get_mut().traffic = service.traffic;
            }
        }
    }
    for (name, entrypoint) in whole.entrypoints {
        let known = stack.entrypoints.entry(name).or_insert_with(|| entrypoint.clone());
        known.redirect_to = known.redirect_to.take().or(entrypoint.redirect_to);
    }
    for (key, volume) in whole.volumes {
        stack.volumes.entry(key).or_insert(volume);
    }
    for (key, network) in whole.networks {
        stack.networks.entry(key).or_insert(network);
    }
    stack.acme = stack.acme.take().or(whole.acme);
}

/// A profile that no service has is a misspelled one. `docker compose` ignores it, and so does `keel config`.
fn check_profiles(ctx: &Context, project: &Project) -> Result<(), Failure> {
    let known = project.profiles();
    let unknown =
        ctx.global.profile.iter().find(|name| *name != "*" && !known.contains(&name.as_str()));
    let Some(name) = unknown else { return Ok(()) };
    let failure = Failure::input(format!("no service has the profile {name:?}"));
    Err(match names::nearest(name, &known) {
        Some(near) => failure.hint(format!("did you mean {near}?")),
        None if known.is_empty() => failure.hint("leave out --profile: no service has one"),
        None => failure.hint(format!("the profiles are {}", known.join(", "))),
    })
}

/// The stack that the command line means; nothing is told about it but errors.
fn quietly(ctx: &Context, disk: &Disk) -> Result<Stack, Failure> {
    read(ctx, disk, &[], ALL)?
        .to_stack(disk)
        .map(|lowered| lowered.stack)
        .map_err(|diagnostics| refuse(ctx, &diagnostics, disk))
}

/// The name of the stack that the command line means. With `--project-name` no file is needed.
///
/// # Errors
/// As [`load_with`].
pub fn stack_name(ctx: &Context) -> Result<StackName, Failure> {
    let given = ctx
        .global
        .project_name
        .clone()
        .or_else(|| std::env::var("COMPOSE_PROJECT_NAME").ok())
        .filter(|name| !name.is_empty());
    let name = match given {
        Some(name) => name,
        None => {
            let disk = Disk::new()?;
            read(ctx, &disk, &[], ALL)?.name().to_owned()
        }
    };
    StackName::new(name).map_err(|error| Failure::usage(error.to_string()))
}

fn read(
    ctx: &Context,
    disk: &Disk,
    services: &[String],
    phases: Phases,
) -> Result<Project, Failure> {
    let options = LoadOptions {
        files: ctx.files.clone(),
        project_directory: ctx.global.project_directory.clone(),
        project_name: ctx.global.project_name.clone(),
        profiles: ctx.global.profile.clone(),
        env_files: ctx.global.env_file.clone(),
        services: services.to_vec(),
        interpolate: phases.interpolate,
        normalize: phases.normalize,
        resolve_paths: phases.resolve_paths,
        consistency: phases.consistency,
        resolve_environment: phases.resolve_environment,
        ..LoadOptions::new(disk.directory.clone(), environment())
    };
    keel_compose::load(&options, disk).map_err(|diagnostics| refuse(ctx, &diagnostics, disk))
}

/// The caller's variables. Those that are not UTF-8 can't be named in a Compose file.
fn environment() -> std::collections::BTreeMap<String, String> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}

fn convert(ctx: &Context, disk: &Disk, project: &Project) -> Result<Lowered, Failure> {
    match project.to_stack(disk) {
        Ok(lowered) => {
            let mut all: Vec<Diagnostic> =
                project.warnings().iter().chain(&lowered.notes).cloned().collect();
            all.extend(lowered.certificates.iter().filter_map(flawed));
            tell(ctx, &all, disk);
            Ok(lowered)
        }
        Err(diagnostics) => Err(refuse(ctx, &diagnostics, disk)),
    }
}

/// What clients will have against a certificate. It is no mistake of the file, and may be mended while it is in use.
fn flawed(used: &CertificateUse) -> Option<Diagnostic> {
    let flaw = keel_server::certificate_flaw(&used.cert, &used.key, &used.rule)?;
    Some(Diagnostic::warning(Code::File, flaw).at(&used.span))
}

/// Tells what was found out about the files after they were loaded.
///
/// # Errors
/// When one of these is an error.
pub fn judge(ctx: &Context, diagnostics: &[Diagnostic]) -> Result<(), Failure> {
    tell(ctx, diagnostics, &Disk::new()?);
    let wrong = diagnostics.iter().any(|it| it.severity == Severity::Error);
    if wrong { Err(Failure::Quiet(INPUT)) } else { Ok(()) }
}

fn tell(ctx: &Context, diagnostics: &[Diagnostic], disk: &Disk) {
    if diagnostics.is_empty() {
        return;
    }
    crate::say(&if ctx.json() {
        diagnostic::render_json(diagnostics)
    } else {
        diagnostic::render(diagnostics, disk, ctx.talk)
    });
}

fn refuse(ctx: &Context, diagnostics: &[Diagnostic], disk: &Disk) -> Failure {
    tell(ctx, diagnostics, disk);
    Failure::Quiet(INPUT)
}
