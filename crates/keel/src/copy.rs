//! The sides of a copy: this machine, a container, a host process as it sees its files.

use std::cell::RefCell;
use std::fs;
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::{Component, Path, PathBuf};

use futures_util::StreamExt as _;
use keel_container::archive::{self, Owner, Pieces};
use keel_container::copy::{Files, Found};
use keel_runtime::{ExecSpec, ProcessExec};
use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use tokio::sync::mpsc;

/// Most links that are followed, as in the kernel.
const MAX_LINKS: usize = 40;
/// Pieces that wait to be written.
const QUEUE: usize = 8;
/// Size of pieces that are read from standard input, in bytes.
const PIECE: usize = 64 << 10;

/// One side.
pub enum Side {
    /// This machine, as this process sees it.
    Here,
    /// A container.
    Container(Files),
    /// A host process.
    Process(Root),
}

/// The files of a host process.
pub struct Root {
    root: OwnedFd,
    working_dir: PathBuf,
    /// Directories in use; their paths go through these.
    open: RefCell<Vec<OwnedFd>>,
}

impl Root {
    fn of(process: &ProcessExec) -> io::Result<Self> {
        let path = format!("/proc/{}/root", process.pid);
        let root = fs::File::open(&path)
            .map_err(|error| io::Error::new(error.kind(), format!("{path}: {error}")))?;
        let working_dir = process.working_dir.clone();
        Ok(Self { root: root.into(), working_dir, open: RefCell::default() })
    }

    /// A path of this process that leads to the directory. Links lead to where they lead for the other process.
    fn directory(&self, path: &Path) -> io::Result<PathBuf> {
        let whole = self.working_dir.join(path);
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened =
            openat2(self.root.as_fd(), &whole, flags, Mode::empty(), ResolveFlags::IN_ROOT)?;
        let own = PathBuf::from(format!("/proc/self/fd/{}", opened.as_raw_fd()));
        self.open.borrow_mut().push(opened);
        Ok(own)
    }

    /// The same for what is in a directory; a link is not followed.
    fn place(&self, path: &Path) -> io::Result<PathBuf> {
        match path.file_name() {
            Some(name) => {
                let parent = path.parent().unwrap_or(Path::new(""));
                let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
                Ok(self.directory(parent)?.join(name))
            }
            None => self.directory(path).map(|path| path.join(".")),
        }
    }
}

impl Side {
    /// The side of an instance.
    ///
    /// # Errors
    /// When its files can't be had with our rights.
    pub fn of(spec: &ExecSpec) -> io::Result<Self> {
        Ok(match spec {
            ExecSpec::Container(container) => Self::Container(Files::new(container)),
            ExecSpec::Process(process) => Self::Process(Root::of(process)?),
        })
    }

    /// What is at `path`; a link is not followed.
    async fn look_once(&self, path: &Path) -> io::Result<Option<Found>> {
        let place = match self {
            Self::Container(files) => return files.look(path).await.map_err(io::Error::other),
            Self::Here => Ok(path.to_owned()),
            Self::Process(root) => root.place(path),
        };
        let found = place.and_then(|place| {
            let metadata = fs::symlink_metadata(&place)?;
            let link = metadata.is_symlink().then(|| fs::read_link(&place)).transpose()?;
            Ok(Found { name: name_of(path), is_directory: metadata.is_dir(), link })
        });
        match found {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            found => found.map(Some),
        }
    }

    /// What is at `path`, and where that is once links are followed, if they are to be.
    ///
    /// # Errors
    /// When it can't be told.
    pub async fn look(&self, path: &Path, follow: bool) -> io::Result<(PathBuf, Option<Found>)> {
        let mut path = path.to_owned();
        for _ in 0..MAX_LINKS {
            let found = self.look_once(&path).await?;
            match found.as_ref().and_then(|found| found.link.as_ref()).filter(|_| follow) {
                Some(link) => path = path.parent().unwrap_or(Path::new("")).join(link),
                None => return Ok((path, found)),
            }
        }
        Err(io::Error::other(format!("{}: too many links", path.display())))
    }

    /// The file or directory at `path` as an archive. Its root has `name` there, or the name that is told.
    ///
    /// # Errors
    /// When it can't be read.
    pub async fn read(
        &self,
        path: &Path,
        name: &Path,
        owner: Owner,
    ) -> io::Result<(Pieces, PathBuf)> {
        let place = match self {
            Self::Container(files) => {
                let mut pieces = files.read(path).await.map_err(io::Error::other)?;
                let (sender, receiver) = mpsc::channel(QUEUE);
                tokio::spawn(async move {
                    while let Some(piece) = pieces.next().await {
                        if sender.send(piece).await.is_err() {
                            return;
                        }
                    }
                });
                return Ok((receiver, PathBuf::from(name_of(path))));
            }
            Self::Here => path.to_owned(),
            Self::Process(root) => root.place(path)?,
        };
        Ok((archive::pack(place, name.to_owned(), owner), name.to_owned()))
    }

    /// Unpacks an archive in a directory that is there, its root under another name if that is given.
    ///
    /// # Errors
    /// When it can't be written.
    pub async fn write(
        &self,
        directory: &Path,
        pieces: Pieces,
        rename: Option<(PathBuf, PathBuf)>,
        owner: Owner,
    ) -> io::Result<()> {
        let place = match self {
            Self::Container(files) => {
                let pieces = futures_util::stream::unfold(pieces, |mut pieces| async {
                    Some((pieces.recv().await?, pieces))
                });
                return files.write(directory, pieces).await.map_err(io::Error::other);
            }
            Self::Here => directory.to_owned(),
            Self::Process(root) => root.directory(directory)?,
        };
        archive::unpack(pieces, place, rename, owner).await
    }
}

/// The last part of a path; empty for a root.
fn name_of(path: &Path) -> String {
    let last = path.components().next_back();
    match last {
        Some(Component::Normal(name)) => name.to_string_lossy().into_owned(),
        _ => String::new(),
    }
}

/// Standard input, piece by piece.
pub fn standard_input() -> Pieces {
    let (sender, receiver) = mpsc::channel(QUEUE);
    std::thread::spawn(move || {
        let mut buffer = vec![0; PIECE];
        loop {
            let piece = match io::stdin().lock().read(&mut buffer) {
                Ok(0) => return,
                Ok(count) => Ok(buffer[..count].to_vec().into()),
                Err(error) => Err(error),
            };
            if sender.blocking_send(piece).is_err() {
                return;
            }
        }
    });
    receiver
}
