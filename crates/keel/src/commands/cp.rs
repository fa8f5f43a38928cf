//! `keel cp`: copies files between an instance and here.
//!
//! Where things come is decided as `docker cp` does it: into a directory that is there, otherwise under the new name.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use keel_container::archive::Owner;
use keel_container::copy::Found;
use keel_runtime::ExecSpec;

use crate::cli::FileArgs;
use crate::context::Context;
use crate::copy::{Side, standard_input};
use crate::failure::Failure;
use crate::{instances, project};

/// Options of `keel cp`.
#[derive(clap::Args, Clone, Debug)]
pub struct CpArgs {
    /// SERVICE:PATH, a path here, or `-`: a tar archive from standard input
    #[arg(value_name = "SRC", allow_hyphen_values = true)]
    pub source: String,
    /// A path here, `-` (a tar archive to standard output), or SERVICE:PATH
    #[arg(value_name = "DEST", allow_hyphen_values = true)]
    pub target: String,
    /// Number of the instance within its service, from 1 (default: from the first; into all)
    #[arg(long, value_name = "N")]
    pub index: Option<usize>,
    /// Keep users and groups, by their numbers
    #[arg(short, long)]
    pub archive: bool,
    /// Follow a link at SRC
    #[arg(short = 'L', long)]
    pub follow_link: bool,
    /// Compose files
    #[command(flatten)]
    pub files: FileArgs,
}

/// One end of a copy.
#[derive(Clone, Debug, PartialEq, Eq)]
enum End {
    Stream,
    Here(PathBuf),
    Inside(String, PathBuf),
}

impl End {
    /// As `docker cp` reads it: what begins with `/` or `.` is a path here, even if there is a colon in it.
    fn parse(text: &str) -> Self {
        if text == "-" {
            return Self::Stream;
        }
        match text.split_once(':') {
            Some((service, path)) if !service.is_empty() && !text.starts_with(['/', '.']) => {
                Self::Inside(service.to_owned(), path.into())
            }
            _ => Self::Here(text.into()),
        }
    }
}

/// Runs the command.
///
/// # Errors
/// When something is not there or can't be copied.
pub async fn run(ctx: &Context, args: CpArgs) -> Result<(), Failure> {
    let (source, target) = (End::parse(&args.source), End::parse(&args.target));
    match (&source, &target) {
        (End::Inside(..), End::Inside(..)) => Err(Failure::usage("both are in instances")
            .hint("copy to a file here first, or pipe: keel cp A:/x - | keel cp - B:/")),
        (End::Inside(service, path), target) => {
            let specs = specs(ctx, service, Some(args.index.unwrap_or(1))).await?;
            let side = side(&specs[0])?;
            match target {
                End::Stream => to_stdout(&side, path, &args).await,
                End::Here(to) => copy((&side, path), (&Side::Here, to), &args).await,
                End::Inside(..) => Ok(()),
            }
        }
        (source, End::Inside(service, to)) => {
            let specs = specs(ctx, service, args.index).await?;
            if *source == End::Stream && specs.len() > 1 {
                let message = format!("service {service} has {} running instances", specs.len());
                return Err(Failure::usage(message).hint("name one of them with --index"));
            }
            for spec in &specs {
                let side = side(spec)?;
                match source {
                    End::Here(path) => copy((&Side::Here, path), (&side, to), &args).await?,
                    _ => from_stdin(&side, to, &args).await?,
                }
            }
            Ok(())
        }
        _ => Err(Failure::usage("neither is in an instance").hint("write SERVICE:PATH for one")),
    }
}

/// How to get at the instances of a service: one, or all.
async fn specs(
    ctx: &Context,
    service: &str,
    index: Option<usize>,
) -> Result<Vec<ExecSpec>, Failure> {
    let stack = project::stack_name(ctx)?;
    let client = ctx.client();
    let view = client.stack(stack.as_str()).await?;
    let instances = match index {
        Some(index) => vec![instances::choose(&view, service, index)?],
        None => instances::running(&view, service)?,
    };
    let mut specs = Vec::new();
    for instance in instances {
        specs.push(client.exec_spec(instance.id.as_str()).await?);
    }
    Ok(specs)
}

fn failed(error: &io::Error) -> Failure {
    let failure = Failure::failed("copy", error.to_string());
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            failure.hint("run keel as the user of the files, or as root")
        }
        _ => failure,
    }
}

fn absent(path: &Path) -> Failure {
    Failure::failed("copy", format!("there is no {}", path.display()))
}

fn side(spec: &ExecSpec) -> Result<Side, Failure> {
    Side::of(spec).map_err(|error| failed(&error))
}

fn owner(args: &CpArgs) -> Owner {
    if args.archive { Owner::Same } else { Owner::Root }
}

/// Whether only what is in a directory is meant.
fn is_content(path: &Path) -> bool {
    let text = path.as_os_str().as_encoded_bytes();
    text == b"." || text.ends_with(b"/.")
}

fn ends_with_slash(path: &Path) -> bool {
    path.as_os_str().as_encoded_bytes().ends_with(b"/")
}

/// What is copied, and where it is.
async fn source(side: &Side, path: &Path, args: &CpArgs) -> Result<(PathBuf, Found), Failure> {
    // Without a `.` at its end, which is only a sign.
    let plain: PathBuf = path.components().collect();
    let follow = args.follow_link || ends_with_slash(path) || is_content(path);
    let found = side.look(&plain, follow).await.map_err(|error| failed(&error))?;
    match found {
        // It keeps the name that it was called by, also where that is a link's.
        (place, Some(found)) => {
            let whole =
                || std::fs::canonicalize(&plain).ok().filter(|_| matches!(side, Side::Here));
            let name =
                plain.file_name().map(Into::into).or_else(|| Some(whole()?.file_name()?.into()));
            let name: Option<PathBuf> = name;
            let name = name.map_or(found.name, |name| name.to_string_lossy().into_owned());
            Ok((place, Found { name, ..found }))
        }
        (_, None) => Err(absent(path)),
    }
}

async fn copy(from: (&Side, &Path), to: (&Side, &Path), args: &CpArgs) -> Result<(), Failure> {
    let (place, found) = source(from.0, from.1, args).await?;
    let (target, there) = to.0.look(to.1, true).await.map_err(|error| failed(&error))?;
    let content = is_content(from.1);
    let there = there.map(|there| there.is_directory);
    let (directory, name) = destination(&found, content, &target, there)?;
    let copied = async {
        let (pieces, root) = from.0.read(&place, &name, owner(args)).await?;
        to.0.write(&directory, pieces, Some((root, name)), owner(args)).await
    };
    copied.await.map_err(|error| failed(&error))
}

/// The directory that it comes into, and its name there; none where its content comes right into it.
fn destination(
    found: &Found,
    content: bool,
    target: &Path,
    there: Option<bool>,
) -> Result<(PathBuf, PathBuf), Failure> {
    let shown = target.display();
    let name = match (there, found.is_directory) {
        (Some(true), true) if content => return Ok((target.to_owned(), PathBuf::new())),
        (Some(true), _) => return Ok((target.to_owned(), found.name.clone().into())),
        (Some(false), true) => {
            let message = format!("{shown} is a file; a directory can't be copied over it");
            return Err(Failure::failed("copy", message));
        }
        (None, false) if ends_with_slash(target) => {
            return Err(Failure::failed("copy", format!("there is no directory {shown}")));
        }
        (Some(false) | None, _) => target.file_name(),
    };
    let name = name.ok_or_else(|| absent(target))?;
    let parent = target.parent().unwrap_or(Path::new(""));
    let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    Ok((parent.to_owned(), name.into()))
}

async fn to_stdout(side: &Side, path: &Path, args: &CpArgs) -> Result<(), Failure> {
    let (place, found) = source(side, path, args).await?;
    let name = PathBuf::from(&found.name);
    let read = side.read(&place, &name, owner(args)).await;
    let (mut pieces, _) = read.map_err(|error| failed(&error))?;
    let mut out = io::stdout().lock();
    while let Some(piece) = pieces.recv().await {
        out.write_all(&piece.map_err(|error| failed(&error))?)?;
    }
    Ok(out.flush()?)
}

async fn from_stdin(side: &Side, to: &Path, args: &CpArgs) -> Result<(), Failure> {
    let (target, there) = side.look(to, true).await.map_err(|error| failed(&error))?;
    if !there.is_some_and(|there| there.is_directory) {
        let message = format!("{} is no directory", to.display());
        return Err(Failure::failed("copy", message).hint("an archive is unpacked in a directory"));
    }
    let written = side.write(&target, standard_input(), None, owner(args)).await;
    written.map_err(|error| failed(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_read_as_docker_reads_them() {
        let inside = |service: &str, path: &str| End::Inside(service.into(), path.into());
        assert_eq!(End::parse("web:/etc/x"), inside("web", "/etc/x"));
        assert_eq!(End::parse("web:x:y"), inside("web", "x:y"));
        assert_eq!(End::parse("-"), End::Stream);
        for here in ["/a:b", "./a:b", "../a", "a", ":a"] {
            assert_eq!(End::parse(here), End::Here(here.into()));
        }
    }

    #[test]
    fn things_come_where_docker_puts_them() {
        let found = |is_directory| Found { name: "src".into(), is_directory, link: None };
        let place = |is_directory, content, to: &str, there| {
            let place = destination(&found(is_directory), content, Path::new(to), there);
            place.ok().map(|(dir, name)| format!("{} {}", dir.display(), name.display()))
        };
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(place(false, false, "/to", None), some("/ to"));
        assert_eq!(place(false, false, "to", None), some(". to"));
        assert_eq!(place(false, false, "/to/", None), None);
        assert_eq!(place(false, false, "/to", Some(false)), some("/ to"));
        assert_eq!(place(false, false, "/to", Some(true)), some("/to src"));
        assert_eq!(place(true, false, "/to", None), some("/ to"));
        assert_eq!(place(true, false, "/to", Some(false)), None);
        assert_eq!(place(true, false, "/to", Some(true)), some("/to src"));
        assert_eq!(place(true, true, "/to", Some(true)), some("/to "));
        assert!(is_content(Path::new("/a/.")) && !is_content(Path::new("/a/..")));
    }
}
