//! The context of a build: the files of a directory as a tar archive, read while it is sent.
//!
//! As the engine's own client does it: owned by root, without what `.dockerignore` leaves out (that of the Dockerfile,
//! if it has one, before that of the directory), and always with the Dockerfile.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use keel_model::Build;
use walkdir::{DirEntry, WalkDir};

use super::dockerfile::{self, Rewritten};
use super::error::Error;
use super::ignored::Ignored;
use crate::archive::{self, Owner, Pieces, Pipe};

/// Largest Dockerfile or `.dockerignore`, in bytes.
const MAX_TEXT: u64 = 4 << 20;
/// The name of a Dockerfile that is not in the context, in the archive.
const OWN_DOCKERFILE: &str = ".keel.dockerfile";
/// What is left out.
const IGNORED: &str = ".dockerignore";

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
        let ignored = ignored(build)?.unwrap_or_default();
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

    /// The same with these names in its Dockerfile standing for these images; and by how much that shifts the numbers of
    /// its stages.
    #[must_use]
    pub fn naming(self, images: &BTreeMap<String, String>) -> (Self, usize) {
        if images.is_empty() {
            return (self, 0);
        }
        let Rewritten { text, shift } = dockerfile::with_contexts(&self.text, images);
        (Self { text, own: true, dockerfile: OWN_DOCKERFILE.to_owned(), ..self }, shift)
    }

    /// The images that its Dockerfile begins stages with, as far as the text and these arguments say.
    #[must_use]
    pub fn begins_with(&self, arguments: &BTreeMap<String, String>) -> BTreeSet<String> {
        dockerfile::bases(&self.text, arguments)
    }

    /// The directory, what is left out of it, and the text of the Dockerfile.
    pub(super) fn into_parts(self) -> (PathBuf, Ignored, String) {
        (self.root, self.ignored, self.text)
    }

    /// Reads the files while they are taken, on a thread for blocking work. It ends when nobody takes them any more.
    #[must_use]
    pub fn pack(self) -> Pieces {
        archive::stream(move |pipe| self.write(pipe))
    }

    fn write(&self, pipe: Pipe) -> io::Result<()> {
        let mut out = tar::Builder::new(pipe);
        if self.own {
            out.append_data(&mut header(&self.text), &self.dockerfile, self.text.as_bytes())?;
            // The builder takes it away before a step could copy it.
            let text = self.ignoring_own();
            out.append_data(&mut header(&text), IGNORED, text.as_bytes())?;
        }
        let walk = WalkDir::new(&self.root).min_depth(1).sort_by_file_name().into_iter();
        for entry in walk.filter_entry(|entry| self.enters(entry)) {
            let entry = entry.map_err(io::Error::from)?;
            let path = self.inside(entry.path());
            let path_is_ours = self.own && path == Path::new(IGNORED);
            if !path_is_ours && self.is_wanted(&path.to_string_lossy()) {
                archive::append(&mut out, entry.path(), path, Owner::Root)?;
            }
        }
        out.into_inner()?.finish()
    }

    /// What is left out, and our own Dockerfile; the list too where there was none.
    fn ignoring_own(&self) -> String {
        let text = read_text(&self.root.join(IGNORED));
        let text = text.unwrap_or_else(|_| IGNORED.to_owned());
        format!("{text}\n{OWN_DOCKERFILE}\n")
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
        path == self.dockerfile || path == IGNORED || !self.ignored.leaves_out(path)
    }
}

fn failed(path: &Path, reason: String) -> Error {
    Error::Context { message: format!("{}: {reason}", path.display()) }
}

/// What the context of a build leaves out; `None` where the engine fetches the context itself.
///
/// # Errors
/// When the file that says so can't be read or understood. Blocks.
pub fn ignored(build: &Build) -> Result<Option<Ignored>, Error> {
    if is_remote(&build.context) {
        return Ok(None);
    }
    let root = Path::new(&build.context);
    let dockerfile = root.join(build.dockerfile.as_deref().unwrap_or("Dockerfile"));
    let beside = PathBuf::from(format!("{}.dockerignore", dockerfile.display()));
    let of_file = build.dockerfile_inline.is_none() && beside.is_file();
    let file = if of_file { beside } else { root.join(IGNORED) };
    match read_text(&file) {
        Ok(text) => Ignored::parse(&text).map(Some).map_err(|reason| failed(&file, reason)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Some(Ignored::default())),
        Err(error) => Err(failed(&file, error.to_string())),
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

fn header(text: &str) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_size(text.len() as u64);
    header.set_mode(0o644);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::archive::PIECE;

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
