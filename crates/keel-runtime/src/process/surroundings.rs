//! Decides the mounts and files of an instance and makes what they need on the host: volumes, mount points,
//! generated files.
//!
//! A mount point that does not exist is made as an empty directory (or file) on the host, and stays: taking it away
//! would take the mount from other instances that have it in mount namespaces of their own. The alternatives (an
//! overlay or tmpfs over its parent) would hide from the host what the program writes beside the mount.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, chown};
use std::path::{Component, Path, PathBuf};

use keel_model::{FileMount, Mount, MountSource};

use super::volumes;
use crate::shim::plan::{FileStep, MountStep};
use crate::types::{Identity, Launch};

/// Where secrets are by default.
pub(super) const SECRETS: &str = "/run/secrets";
/// Name servers that the system resolver takes notice of.
const MAX_NAMESERVERS: usize = 3;

/// What was decided.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub mounts: Vec<MountStep>,
    pub files: Vec<FileStep>,
    pub not_enforced: Vec<String>,
    pub secrets_dir: PathBuf,
}

/// Where things are.
pub(super) struct Places<'a> {
    /// The instance's directory.
    pub dir: &'a Path,
    /// Named volumes.
    pub volumes: &'a Path,
    /// Whether the instance has a mount namespace of its own; why not.
    pub mounts: Result<(), &'a str>,
}

impl Plan {
    /// Decides for `launch`; the error is for people.
    pub(super) fn make(
        launch: &Launch,
        user: &Identity,
        places: &Places<'_>,
    ) -> Result<Self, String> {
        let mut secrets_dir = PathBuf::from(SECRETS);
        let mut no_secrets = places.mounts.map_err(str::to_owned);
        let wanted = launch.spec.files.iter().any(|file| file.target.starts_with(SECRETS));
        if no_secrets.is_ok() && wanted {
            no_secrets = Self::default().mount_point(Path::new(SECRETS), true);
        }
        if no_secrets.is_err() {
            secrets_dir = places.dir.join("secrets");
        }
        let mut plan = Self { secrets_dir, ..Self::default() };
        let mut mounts: Vec<&Mount> = launch.spec.mounts.iter().collect();
        mounts.sort_by_key(|mount| mount.target.components().count());
        for (number, mount) in mounts.into_iter().enumerate() {
            plan.mount(number, mount, user, launch, places)?;
        }
        plan.names(launch, places)?;
        for file in &launch.spec.files {
            plan.file(file, user, places, &no_secrets)?;
        }
        Ok(plan)
    }

    fn mount(
        &mut self,
        number: usize,
        mount: &Mount,
        user: &Identity,
        launch: &Launch,
        places: &Places<'_>,
    ) -> Result<(), String> {
        let target = absolute(&mount.target)?;
        let source = match &mount.source {
            MountSource::Tmpfs { size, mode } => {
                if let Err(why) = places.mounts {
                    self.not_enforced.push(format!("no tmpfs at {}: {why}", target.display()));
                    return Ok(());
                }
                self.mount_point(&target, true)?;
                self.mounts.push(MountStep::Tmpfs {
                    target,
                    size: *size,
                    mode: mode.unwrap_or(0o1777),
                    read_only: mount.read_only,
                });
                return Ok(());
            }
            MountSource::Image { name, .. } => {
                let target = target.display();
                let why = "a host process can't have the files of an image";
                self.not_enforced.push(format!("no files of image {name} at {target}: {why}"));
                return Ok(());
            }
            MountSource::Volume { name, subpath } => {
                let volume = volumes::dir_of(places.volumes, name)?;
                make_owned(&volume, user).map_err(|e| format!("volume {name}: {e}"))?;
                // On a full disk what has its volume runs all the same; the next start notes it.
                if let Err(error) = volumes::note_stack(places.volumes, name, &launch.stack) {
                    tracing::warn!(volume = name, %error, "whose it is could not be noted");
                }
                match subpath {
                    Some(sub) => {
                        let inner = volume.join(relative(sub)?);
                        make_owned(&inner, user).map_err(|e| format!("volume {name}: {e}"))?;
                        inner
                    }
                    None => volume,
                }
            }
            MountSource::Anonymous => {
                let dir = places.dir.join("anonymous").join(number.to_string());
                make_owned(&dir, user).map_err(|e| format!("{}: {e}", dir.display()))?;
                dir
            }
            MountSource::Bind { path, create } => {
                if !path.exists() {
                    if !create {
                        return Err(format!(
                            "bind mount source {} does not exist; create it",
                            path.display()
                        ));
                    }
                    fs::create_dir_all(path)
                        .map_err(|e| format!("can't create {}: {e}", path.display()))?;
                }
                path.clone()
            }
        };
        self.place(source, target, mount.read_only, places)
    }

    fn place(
        &mut self,
        source: PathBuf,
        target: PathBuf,
        read_only: bool,
        places: &Places<'_>,
    ) -> Result<(), String> {
        if let Err(why) = places.mounts {
            if source == target {
                if read_only {
                    self.not_enforced.push(format!("{} is writable: {why}", target.display()));
                }
                return Ok(());
            }
            return Err(format!(
                "{} can't be mounted at {}: {why}; use the same path on both sides, or run `keel server` as root",
                source.display(),
                target.display()
            ));
        }
        self.mount_point(&target, source.is_dir())?;
        self.mounts.push(MountStep::Bind { source, target, read_only });
        Ok(())
    }

    /// Makes sure that there is something to mount upon. Beneath an earlier mount it is made inside that.
    fn mount_point(&mut self, target: &Path, directory: bool) -> Result<(), String> {
        let real = self.beneath(target).unwrap_or_else(|| Some(target.to_owned()));
        let Some(real) = real else {
            return Err(format!(
                "{} lies inside a tmpfs, where nothing can be mounted",
                target.display()
            ));
        };
        if real.exists() {
            return Ok(());
        }
        let failed = |path: &Path, error: io::Error| {
            format!("the mount point {} can't be made: {error}; create it", path.display())
        };
        let parent =
            if directory { real.as_path() } else { real.parent().unwrap_or(Path::new("/")) };
        // Several instances may do this at the same time.
        fs::create_dir_all(parent).map_err(|error| failed(parent, error))?;
        if !directory {
            let open = fs::File::options().create(true).append(true).open(&real);
            open.map_err(|error| failed(&real, error))?;
        }
        Ok(())
    }

    /// Where on the host a path inside the instance is, when a mount covers it; `Some(None)` when that is memory.
    fn beneath(&self, target: &Path) -> Option<Option<PathBuf>> {
        self.mounts.iter().rev().find_map(|step| match step {
            MountStep::Bind { source, target: at, .. } => {
                let rest = target.strip_prefix(at).ok()?;
                Some(Some(if rest.as_os_str().is_empty() {
                    source.clone()
                } else {
                    source.join(rest)
                }))
            }
            MountStep::Tmpfs { target: at, .. } => {
                let inside = target.starts_with(at) && target != at;
                inside.then_some(None)
            }
        })
    }

    /// Files through which the system resolver knows the names of services.
    fn names(&mut self, launch: &Launch, places: &Places<'_>) -> Result<(), String> {
        let wanted = !launch.hosts.is_empty()
            || !launch.spec.hosts.is_empty()
            || launch.nameserver.is_some();
        if !wanted {
            return Ok(());
        }
        if let Err(why) = places.mounts {
            self.not_enforced.push(format!(
                "names of services resolve only through variables such as CART_HOST: {why}"
            ));
            return Ok(());
        }
        let write = |name: &str, text: String| -> Result<PathBuf, String> {
            let path = places.dir.join(name);
            fs::write(&path, text)
                .and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(0o644)))
                .map_err(|e| format!("{}: {e}", path.display()))?;
            Ok(path)
        };
        if !launch.hosts.is_empty() || !launch.spec.hosts.is_empty() {
            let before = fs::read_to_string("/etc/hosts").unwrap_or_default();
            let source = write("hosts", hosts_file(&before, launch))?;
            self.place(source, PathBuf::from("/etc/hosts"), false, places)?;
        }
        if let Some((address, search)) = &launch.nameserver {
            let before = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
            let source = write("resolv.conf", resolv_file(&before, *address, search))?;
            let target = fs::canonicalize("/etc/resolv.conf");
            let target = target.unwrap_or_else(|_| PathBuf::from("/etc/resolv.conf"));
            self.place(source, target, false, places)?;
        }
        Ok(())
    }

    /// Puts a secret or config at its target; where that can't be, into a directory that `KEEL_SECRETS_DIR` names.
    fn file(
        &mut self,
        file: &FileMount,
        user: &Identity,
        places: &Places<'_>,
        no_secrets: &Result<(), String>,
    ) -> Result<(), String> {
        let target = absolute(&file.target)?;
        let mountable = if target.starts_with(SECRETS) {
            no_secrets.clone()
        } else {
            places.mounts.map_err(str::to_owned).and_then(|()| self.mount_point(&target, false))
        };
        let mut step = FileStep {
            target,
            direct: false,
            content: file.content.clone(),
            mode: file.mode & 0o7777,
            uid: file.uid.unwrap_or(user.uid),
            gid: file.gid.unwrap_or(user.gid),
        };
        if let Err(why) = mountable {
            let dir = places.dir.join("secrets");
            let place = dir.join(relative(Path::new(&file.name))?);
            own_dir(&dir, user).map_err(|e| format!("{}: {e}", dir.display()))?;
            self.not_enforced.push(format!(
                "{} is at {} (in KEEL_SECRETS_DIR) instead of {}: {why}",
                file.name,
                place.display(),
                step.target.display()
            ));
            (step.direct, step.target) = (true, place);
            if !user.switch {
                (step.uid, step.gid) = (user.uid, user.gid);
            }
        }
        self.files.push(step);
        Ok(())
    }
}

/// A directory whose content others can't list, but which they can pass through to what is theirs.
pub(super) fn passable_dir(path: &Path) -> io::Result<()> {
    private_dir(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o711))
}

/// A directory that only its owner enters.
pub(super) fn private_dir(path: &Path) -> io::Result<()> {
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

/// A directory that only the instance's user enters.
fn own_dir(path: &Path, user: &Identity) -> io::Result<()> {
    private_dir(path)?;
    if user.switch {
        chown(path, Some(user.uid), Some(user.gid))?;
    }
    Ok(())
}

/// A data directory of the instance's user; one that exists keeps its owner.
fn make_owned(path: &Path, user: &Identity) -> io::Result<()> {
    if path.exists() {
        return Ok(());
    }
    fs::create_dir_all(path)?;
    if user.switch {
        chown(path, Some(user.uid), Some(user.gid))?;
    }
    Ok(())
}

fn absolute(path: &Path) -> Result<PathBuf, String> {
    let plain = path.is_absolute() && !path.components().any(|c| c == Component::ParentDir);
    if plain && path != Path::new("/") {
        Ok(path.components().collect())
    } else {
        Err(format!("the mount target {} must be an absolute path without ..", path.display()))
    }
}

fn relative(path: &Path) -> Result<&Path, String> {
    if path.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir)) {
        Ok(path)
    } else {
        Err(format!("{} must be a relative path without ..", path.display()))
    }
}

fn hosts_file(before: &str, launch: &Launch) -> String {
    let mut text = before.trim_end().to_owned();
    text.push_str("\n\n# Names of services, from keel.\n");
    for (address, name) in &launch.hosts {
        text.push_str(&format!("{address}\t{name}\n"));
    }
    for (name, addresses) in &launch.spec.hosts {
        for address in addresses {
            let address = if address == "host-gateway" { "127.0.0.1" } else { address };
            text.push_str(&format!("{address}\t{name}\n"));
        }
    }
    text
}

fn resolv_file(before: &str, address: IpAddr, search: &[String]) -> String {
    let mut domains: Vec<&str> = search.iter().map(String::as_str).collect();
    let mut servers = vec![address.to_string()];
    let mut rest = String::new();
    for line in before.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => servers.extend(words.map(Into::into)),
            Some("search" | "domain") => domains.extend(words),
            Some("options") => rest.push_str(&format!("{line}\n")),
            _ => {}
        }
    }
    servers.truncate(MAX_NAMESERVERS);
    let mut text =
        String::from("# From keel; its own name server first, then those of the host.\n");
    for server in servers {
        text.push_str(&format!("nameserver {server}\n"));
    }
    if !domains.is_empty() {
        text.push_str(&format!("search {}\n", domains.join(" ")));
    }
    text + &rest
}
