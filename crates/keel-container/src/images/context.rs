//! The context of a build: the files of a directory as a tar archive, read while it is sent.
//!
//! As the engine's own client does it: owned by root, without what `.dockerignore` leaves out (that of the Dockerfile,
//! if it has one, before that of the directory), and always with the Dockerfile.

use std::fs::{self, File, Metadata};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use bytes::{Bytes, BytesMut};
use keel_model::Build;
use tokio::sync::mpsc;
use walkdir::{DirEntry, WalkDir};

use super::error::Error;
use super::ignored::Ignored;

/// Size of the pieces that are sent, in bytes.
const PIECE: usize = 64 << 10;
/// Pieces that wait to be sent.
const QUEUE: usize = 8;
/// Largest Dockerfile or `.dockerignore`, in bytes.
const MAX_TEXT: u64 = 4 << 20;
/// The name of a Dockerfile that is not in the context, in the archive.
const OWN_DOCKERFILE: &str = ".keel.dockerfile";

/// Pieces of the archive; the last may say why there are no more.
pub type Pieces = mpsc::Receiver<io::Result<Bytes>>;

/// The context of a build that has not been read yet.
#[derive(Debug)]
pub struct Context {
    root: PathBuf,
    ignored: Ignored,
    /// The Dockerfile, as the engine will find it in the archive.
    dockerfile: String,
    text: String,
    /// It is not a file of the context.
    own: bool,
}

impl Context {
    /// Looks at what is built: `None` where the engine fetches the context itself.
    ///
    /// # Errors
    /// When the directory or the Dockerfile is not there or can't be read. Blocks.
    pub fn open(build: &Build) -> Result<Option<Self>, Error> {
        if is_remote(&build.context) {
            return Ok(None);
        }
        let root = PathBuf::from(&build.context);
        let failed = |path: &Path, reason: String| Error::Context {
            message: format!("{}: {reason}", path.display()),
        };
        if !root.is_dir() {
            return Err(failed(&root, "there is no such directory".to_owned()));
        }
        let name = build.dockerfile.as_deref().unwrap_or("Dockerfile");
        let path = root.join(name);
        let (text, own) = match &build.dockerfile_inline {
            Some(text) => (text.clone(), true),
            None => {
                let text = read_text(&path).map_err(|error| failed(&path, error.to_string()))?;
                (text, !path.starts_with(&root) || name.split('/').any(|part| part == ".."))
            }
        };
        let beside = PathBuf::from(format!("{}.dockerignore", path.display()));
        let of_file = build.dockerfile_inline.is_none() && beside.is_file();
        let file = if of_file { beside } else { root.join(".dockerignore") };
        let ignored = match read_text(&file) {
            Ok(text) => Ignored::parse(&text).map_err(|reason| failed(&file, reason))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ignored::default(),
            Err(error) => return Err(failed(&file, error.to_string())),
        };
        let inside = path.strip_prefix(&root).unwrap_or(&path).display().to_string();
        let inside = inside.trim_start_matches("./").to_owned();
        let dockerfile = if own { OWN_DOCKERFILE.to_owned() } else { inside };
        Ok(Some(Self { root, ignored, dockerfile, text, own }))
    }

    /// The name of the Dockerfile in the archive.
    #[must_use]
    pub fn dockerfile(&self) -> &str {
        &self.dockerfile
    }

    /// The text of the Dockerfile.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Reads the files while they are taken, on a thread for blocking work. It ends when nobody takes them any more.
    #[must_use]
    pub fn pack(self) -> Pieces {
        let (sender, pieces) = mpsc::channel(QUEUE);
        tokio::task::spawn_blocking(move || {
            let pipe = Pipe { sender: sender.clone(), buffer: BytesMut::with_capacity(PIECE) };
            if let Err(error) = self.write(pipe) {
                // Whoever went away needs no reason.
                let _ = sender.blocking_send(Err(error));
            }
        });
        pieces
    }

    fn write(&self, pipe: Pipe) -> io::Result<()> {
        let mut archive = tar::Builder::new(pipe);
        archive.follow_symlinks(false);
        if self.own {
            let mut header = header(self.text.len() as u64, 0o644);
            archive.append_data(&mut header, &self.dockerfile, self.text.as_bytes())?;
        }
        let walk = WalkDir::new(&self.root).min_depth(1).sort_by_file_name().into_iter();
        for entry in walk.filter_entry(|entry| self.enters(entry)) {
            let entry = entry.map_err(io::Error::from)?;
            let path = self.inside(entry.path());
            if self.is_wanted(&path.to_string_lossy()) {
                append(&mut archive, &entry, path).map_err(|error| at(entry.path(), &error))?;
            }
        }
        archive.into_inner()?.finish()
    }

    fn inside<'a>(&self, path: &'a Path) -> &'a Path {
        path.strip_prefix(&self.root).unwrap_or(path)
    }

    /// Whether it may hold something that is wanted.
    fn enters(&self, entry: &DirEntry) -> bool {
        let path = self.inside(entry.path()).to_string_lossy();
        !entry.file_type().is_dir()
            || !self.ignored.leaves_out(&path)
            || !self.ignored.leaves_out_all_of(&path)
            || Path::new(&self.dockerfile).starts_with(&*path)
    }

    fn is_wanted(&self, path: &str) -> bool {
        // The engine needs these two, and leaves them out of the image itself where it has to.
        path == self.dockerfile || path == ".dockerignore" || !self.ignored.leaves_out(path)
    }
}

/// Whether the engine fetches the context: a URL, or what `git` reads.
#[must_use]
pub fn is_remote(context: &str) -> bool {
    ["http://", "https://", "git://", "ssh://", "git@", "github.com/"]
        .iter()
        .any(|prefix| context.starts_with(prefix))
}

fn read_text(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(MAX_TEXT + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_TEXT {
        return Err(io::Error::other(format!("larger than {} MiB", MAX_TEXT >> 20)));
    }
    Ok(text)
}

fn at(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

fn header(size: u64, mode: u32) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_size(size);
    header.set_mode(mode);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header
}

/// As it is, but root's.
fn header_of(metadata: &Metadata) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_metadata(metadata);
    header.set_uid(0);
    header.set_gid(0);
    header
}

fn append(archive: &mut tar::Builder<Pipe>, entry: &DirEntry, path: &Path) -> io::Result<()> {
    let kind = entry.file_type();
    if kind.is_dir() {
        let mut header = header_of(&fs::symlink_metadata(entry.path())?);
        header.set_size(0);
        archive.append_data(&mut header, path, io::empty())
    } else if kind.is_symlink() {
        let mut header = header_of(&fs::symlink_metadata(entry.path())?);
        header.set_size(0);
        archive.append_link(&mut header, path, fs::read_link(entry.path())?)
    } else if kind.is_file() {
        let file = File::open(entry.path())?;
        let metadata = file.metadata()?;
        let exact = Exact { file, left: metadata.len() };
        archive.append_data(&mut header_of(&metadata), path, exact)
    } else {
        // Sockets, pipes and devices are nothing that could be copied.
        Ok(())
    }
}

/// As many bytes as the archive was told: the file may grow or shrink under the hand.
struct Exact {
    file: File,
    left: u64,
}

impl Read for Exact {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        if most == 0 {
            return Ok(0);
        }
        let count = self.file.read(&mut buffer[..most])?;
        if count == 0 {
            return Err(io::Error::other("it became shorter while it was read; try again"));
        }
        self.left -= count as u64;
        Ok(count)
    }
}

/// Sends what is written, piece by piece.
struct Pipe {
    sender: mpsc::Sender<io::Result<Bytes>>,
    buffer: BytesMut,
}

impl Pipe {
    fn send(&mut self) -> io::Result<()> {
        let piece = std::mem::replace(&mut self.buffer, BytesMut::with_capacity(PIECE)).freeze();
        let gone = |_| io::Error::from(io::ErrorKind::BrokenPipe);
        self.sender.blocking_send(Ok(piece)).map_err(gone)
    }

    fn finish(mut self) -> io::Result<()> {
        if self.buffer.is_empty() { Ok(()) } else { self.send() }
    }
}

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = bytes.len().min(PIECE - self.buffer.len());
        self.buffer.extend_from_slice(&bytes[..count]);
        if self.buffer.len() == PIECE {
            self.send()?;
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::os::unix::fs::symlink;

    use super::*;

    fn directory() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::create_dir_all(path("src/deep")).unwrap();
        fs::create_dir_all(path("target")).unwrap();
        for (name, text) in [
            ("Dockerfile", "FROM scratch"),
            (".dockerignore", "target\n*.log\nDockerfile"),
            ("src/deep/main.rs", "fn main() {}"),
            ("target/out", "x"),
            ("a.log", "x"),
        ] {
            fs::write(path(name), text).unwrap();
        }
        fs::write(path("src/large"), vec![7; 3 * PIECE + 5]).unwrap();
        symlink("deep/main.rs", path("src/link")).unwrap();
        dir
    }

    fn build(dir: &tempfile::TempDir) -> Build {
        Build { context: dir.path().display().to_string(), ..Build::default() }
    }

    async fn packed(context: Context) -> io::Result<Vec<u8>> {
        let mut pieces = context.pack();
        let mut bytes = Vec::new();
        while let Some(piece) = pieces.recv().await {
            let piece = piece?;
            assert!(piece.len() <= PIECE);
            bytes.extend_from_slice(&piece);
        }
        Ok(bytes)
    }

    async fn names(context: Context) -> BTreeSet<String> {
        let bytes = packed(context).await.unwrap();
        let mut archive = tar::Archive::new(bytes.as_slice());
        let entries = archive.entries().unwrap().map(Result::unwrap);
        let check = |entry: tar::Entry<'_, &[u8]>| {
            assert_eq!(entry.header().uid().unwrap(), 0);
            entry.path().unwrap().display().to_string()
        };
        entries.map(check).collect()
    }

    #[tokio::test]
    async fn what_is_left_out_is_left_out() {
        let dir = directory();
        let context = Context::open(&build(&dir)).unwrap().unwrap();
        assert_eq!(context.dockerfile(), "Dockerfile");
        let expected = [
            ".dockerignore",
            "Dockerfile",
            "src",
            "src/deep",
            "src/deep/main.rs",
            "src/large",
            "src/link",
        ];
        assert_eq!(names(context).await, expected.map(str::to_owned).into());

        fs::write(dir.path().join("Dockerfile.dockerignore"), "src").unwrap();
        let context = Context::open(&build(&dir)).unwrap().unwrap();
        let names = names(context).await;
        assert!(names.contains("target/out") && !names.contains("src"), "{names:?}");
    }

    #[tokio::test]
    async fn a_dockerfile_from_elsewhere_comes_along() {
        let dir = directory();
        let inline = Build { dockerfile_inline: Some("FROM x".into()), ..build(&dir) };
        let context = Context::open(&inline).unwrap().unwrap();
        assert_eq!((context.dockerfile(), context.text()), (OWN_DOCKERFILE, "FROM x"));
        assert!(names(context).await.contains(OWN_DOCKERFILE));
        let above = Build {
            context: dir.path().join("src").display().to_string(),
            dockerfile: Some("../Dockerfile".into()),
            ..Build::default()
        };
        let context = Context::open(&above).unwrap().unwrap();
        assert_eq!((context.dockerfile(), context.text()), (OWN_DOCKERFILE, "FROM scratch"));
    }

    #[tokio::test]
    async fn what_is_missing_is_named() {
        let dir = directory();
        let none = Build { dockerfile: Some("None".into()), ..build(&dir) };
        let error = Context::open(&none).unwrap_err().to_string();
        assert!(error.contains("None"), "{error}");
        let none = Build { context: "/no/such/place".into(), ..Build::default() };
        assert!(Context::open(&none).unwrap_err().to_string().contains("/no/such/place"));
        fs::write(dir.path().join(".dockerignore"), "[").unwrap();
        assert!(Context::open(&build(&dir)).unwrap_err().to_string().contains(".dockerignore"));
        let remote = Build { context: "https://example.com/x.git#main".into(), ..Build::default() };
        assert!(Context::open(&remote).unwrap().is_none());
    }
}
