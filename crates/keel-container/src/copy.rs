//! Files in and out of a container, by the engine's archives.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::{Path, PathBuf};

use bollard::query_parameters::{
    ContainerArchiveInfoOptions, DownloadFromContainerOptions, InspectContainerOptions,
    UploadToContainerOptions,
};
use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use keel_runtime::ContainerExec;
use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};

use crate::answer::understood;
use crate::terminal::Command;
use crate::{Engine, Error, inside};

/// Go's bits for what a file is, which the engine tells.
const DIRECTORY: u32 = 1 << 31;
/// See [`DIRECTORY`].
const LINK: u32 = 1 << 27;
/// Paths that one `rm` is given: a command line has its limits.
const AT_ONCE: usize = 500;

/// What is at a path of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its name.
    pub name: String,
    /// It is a directory.
    pub is_directory: bool,
    /// It is a link, to here.
    pub link: Option<PathBuf>,
}

/// The files of a container.
#[derive(Debug)]
pub struct Files {
    engine: Engine,
    of: ContainerExec,
}

/// How files of a container are taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removal {
    /// From here where that can be done, otherwise by `rm`.
    Direct,
    /// By the image's own `rm`.
    Command,
}

impl Files {
    /// Those of the container that `of` describes. Asks nobody yet.
    #[must_use]
    pub fn new(of: &ContainerExec) -> Self {
        Self { engine: Engine::of(of), of: of.clone() }
    }

    /// What is at `path`, if anything is.
    ///
    /// # Errors
    /// When the engine can't say.
    pub async fn look(&self, path: &Path) -> Result<Option<Found>, Error> {
        let client = self.engine.client().await?;
        let options = ContainerArchiveInfoOptions { path: path.display().to_string() };
        let found = client.get_container_archive_info(&self.of.container, Some(options)).await;
        match found.map_err(|error| self.engine.failed(&error)) {
            Ok(found) => Ok(Some(Found {
                name: found.name,
                is_directory: found.file_mode & DIRECTORY != 0,
                link: (found.file_mode & LINK != 0).then(|| found.link_target.into()),
            })),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The file or directory at `path` as an archive whose root has its name.
    ///
    /// # Errors
    /// When the engine can't be asked; that it has no more is said in the stream.
    pub async fn read(
        &self,
        path: &Path,
    ) -> Result<impl Stream<Item = io::Result<Bytes>> + Send + Unpin + use<>, Error> {
        let client = self.engine.client().await?;
        let options = DownloadFromContainerOptions { path: path.display().to_string() };
        let engine = self.engine.clone();
        let pieces = client.download_from_container(&self.of.container, Some(options));
        let pieces = pieces.map(move |piece| {
            piece.map_err(|error| io::Error::other(engine.failed(&error).to_string()))
        });
        Ok(Box::pin(pieces))
    }

    /// Unpacks an archive in `directory`, which is there.
    ///
    /// # Errors
    /// When the archive can't be read or unpacked.
    pub async fn write(
        &self,
        directory: &Path,
        archive: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
    ) -> Result<(), Error> {
        let client = self.engine.client().await?;
        let options = UploadToContainerOptions {
            path: directory.display().to_string(),
            ..UploadToContainerOptions::default()
        };
        let body = bollard::body_try_stream(archive);
        let written = client.upload_to_container(&self.of.container, Some(options), body).await;
        written.map_err(|error| self.engine.failed(&error))
    }

    /// Takes files, links and whole directories of a container that runs away; what is not there is no error.
    ///
    /// # Errors
    /// When something is left of them.
    pub async fn remove(&self, paths: &[PathBuf], how: Removal) -> Result<(), Error> {
        let root = if how == Removal::Direct { self.root().await? } else { None };
        if let Some(root) = root {
            let paths = paths.to_vec();
            let removed = tokio::task::spawn_blocking(move || remove_below(&root, &paths)).await;
            return removed
                .map_err(io::Error::other)
                .flatten()
                .map_err(|error| self.refused(&error));
        }
        for some in paths.chunks(AT_ONCE) {
            let words = ["rm", "-rf", "--"].map(str::to_owned).into_iter();
            let command = words.chain(some.iter().map(|path| path.display().to_string()));
            // Whose files they are says nothing about who may take them away.
            let command = Command {
                command: command.collect(),
                environment: BTreeMap::new(),
                user: Some("0".to_owned()),
                ..Command::default()
            };
            let mut said = String::new();
            let code = inside::run(&self.of, command, |line| line.clone_into(&mut said)).await?;
            if code != 0 {
                let message = format!("`rm` ended with code {code}: {said}");
                return Err(Error::Refused { status: None, message });
            }
        }
        Ok(())
    }

    fn refused(&self, error: &io::Error) -> Error {
        let message = format!("{}: {error}", self.of.instance);
        Error::Refused { status: None, message }
    }

    /// The root of the container as its main process sees it, where that process is one of this machine and our rights
    /// reach into it. Images without a shell have no `rm`.
    async fn root(&self) -> Result<Option<File>, Error> {
        if !self.engine.info().await?.local {
            return Ok(None);
        }
        let client = self.engine.client().await?;
        let seen = client.inspect_container(&self.of.container, None::<InspectContainerOptions>);
        let seen = understood(seen.await).map_err(|error| self.engine.failed(&error))?;
        let pid = seen.state.and_then(|state| state.pid).filter(|pid| *pid > 0);
        let (Some(pid), Some(id)) = (pid, seen.id) else { return Ok(None) };
        let Ok(root) = File::open(format!("/proc/{pid}/root")) else { return Ok(None) };
        // The engine may be in a machine of its own behind its socket, where the same number is another process.
        let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        Ok(groups.contains(&id).then_some(root))
    }
}

/// Links on the way are followed as the container follows them.
fn remove_below(root: &File, paths: &[PathBuf]) -> io::Result<()> {
    for path in paths {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { continue };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let parent = if parent.as_os_str().is_empty() { Path::new("/") } else { parent };
        let opened = openat2(root.as_fd(), parent, flags, Mode::empty(), ResolveFlags::IN_ROOT);
        let removed = opened.map_err(io::Error::from).and_then(|directory| {
            let place =
                PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd())).join(name);
            if fs::symlink_metadata(&place)?.is_dir() {
                fs::remove_dir_all(&place)
            } else {
                fs::remove_file(&place)
            }
        });
        match removed {
            Err(error)
                if !matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) =>
            {
                return Err(io::Error::new(error.kind(), format!("{}: {error}", path.display())));
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn what_is_taken_away_is_below_the_root() {
        let dir = tempfile::tempdir().unwrap();
        let (root, outside) = (dir.path().join("root"), dir.path().join("outside"));
        fs::create_dir_all(root.join("srv/app/deep")).unwrap();
        fs::create_dir_all(outside.join("app")).unwrap();
        for file in ["srv/app/deep/a", "srv/app/b", "srv/app/c"] {
            fs::write(root.join(file), "x").unwrap();
        }
        // Seen from inside, these lead below the root.
        symlink("/srv", root.join("link")).unwrap();
        symlink(&outside, root.join("out")).unwrap();
        symlink("/srv/app/c", root.join("srv/app/to-c")).unwrap();
        let paths = [
            "/link/app/deep",
            "/srv/app/b",
            "/srv/app/to-c",
            "/none/x",
            "/srv/app/c/y",
            "/out/app",
        ];
        remove_below(&File::open(&root).unwrap(), &paths.map(PathBuf::from)).unwrap();
        let left = fs::read_dir(root.join("srv/app")).unwrap();
        let left: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["c"]);
        assert!(outside.join("app").exists());
    }
}
