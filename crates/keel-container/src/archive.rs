//! Files of this machine as a tar archive that is read while it is sent, and back.
//!
//! What comes out of an archive stays below the directory that it is put into, whatever the archive says: links in it are
//! made, and never followed.

use std::fs::{self, File, Metadata, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Component, Path, PathBuf};

use bytes::{Bytes, BytesMut};
use tokio::sync::mpsc;
use walkdir::WalkDir;

/// Size of the pieces that are sent, in bytes.
pub(crate) const PIECE: usize = 64 << 10;
/// Pieces that wait to be sent.
const QUEUE: usize = 8;

/// Pieces of an archive; the last may say why there are no more.
pub type Pieces = mpsc::Receiver<io::Result<Bytes>>;

/// Whose the files are on the other side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// Root's in an archive, and of whoever unpacks it.
    Root,
    /// Of the same user and group, by number.
    Same,
}

/// What `work` writes, while it is taken, on a thread for blocking work. It ends when nobody takes it any more.
pub(crate) fn stream(work: impl FnOnce(Pipe) -> io::Result<()> + Send + 'static) -> Pieces {
    let (sender, pieces) = mpsc::channel(QUEUE);
    tokio::task::spawn_blocking(move || {
        let pipe = Pipe { sender: sender.clone(), buffer: BytesMut::with_capacity(PIECE) };
        if let Err(error) = work(pipe) {
            // Whoever went away needs no reason.
            let _ = sender.blocking_send(Err(error));
        }
    });
    pieces
}

/// The file or directory `source`, under the name `name` in the archive; without a name, what is in the directory.
#[must_use]
pub fn pack(source: PathBuf, name: PathBuf, owner: Owner) -> Pieces {
    stream(move |pipe| {
        let mut archive = tar::Builder::new(pipe);
        for entry in WalkDir::new(&source).follow_root_links(false).sort_by_file_name() {
            let entry = entry.map_err(io::Error::from)?;
            let below = entry.path().strip_prefix(&source).unwrap_or(Path::new(""));
            let whole = name.join(below);
            let inside = if below.as_os_str().is_empty() { &name } else { &whole };
            if !inside.as_os_str().is_empty() {
                append(&mut archive, entry.path(), inside, owner)?;
            }
        }
        archive.into_inner()?.finish()
    })
}

/// Files, links and directories, each under its name in the archive and without what is in it. One that is not there any
/// more is left out.
#[must_use]
pub fn pack_each(each: Vec<(PathBuf, PathBuf)>, owner: Owner) -> Pieces {
    stream(move |pipe| {
        let mut archive = tar::Builder::new(pipe);
        for (source, name) in each {
            match append(&mut archive, &source, &name, owner) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                done => done?,
            }
        }
        archive.into_inner()?.finish()
    })
}

fn at(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

/// Adds one file, link or directory, without what is in it.
pub(crate) fn append(
    archive: &mut tar::Builder<Pipe>,
    source: &Path,
    name: &Path,
    owner: Owner,
) -> io::Result<()> {
    append_one(archive, source, name, owner).map_err(|error| at(source, &error))
}

fn header_of(metadata: &Metadata, owner: Owner) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_metadata(metadata);
    if owner == Owner::Root {
        header.set_uid(0);
        header.set_gid(0);
    }
    header
}

fn append_one(
    archive: &mut tar::Builder<Pipe>,
    source: &Path,
    name: &Path,
    owner: Owner,
) -> io::Result<()> {
    let metadata = fs::symlink_metadata(source)?;
    let kind = metadata.file_type();
    let mut header = header_of(&metadata, owner);
    if kind.is_dir() {
        header.set_size(0);
        archive.append_data(&mut header, name, io::empty())
    } else if kind.is_symlink() {
        header.set_size(0);
        archive.append_link(&mut header, name, fs::read_link(source)?)
    } else if kind.is_file() {
        let file = File::open(source)?;
        let metadata = file.metadata()?;
        let exact = Exact { file, left: metadata.len() };
        archive.append_data(&mut header_of(&metadata, owner), name, exact)
    } else {
        // Sockets, pipes and devices are nothing that could be copied.
        Ok(())
    }
}

/// Puts an archive into the directory `into`. With `rename`, the root of the archive, which has the first name, gets the
/// second; with an empty second name what is in it comes right into the directory.
///
/// # Errors
/// When the archive breaks off, or a file can't be written.
pub async fn unpack(
    pieces: Pieces,
    into: PathBuf,
    rename: Option<(PathBuf, PathBuf)>,
    owner: Owner,
) -> io::Result<()> {
    let work = move || {
        let reader = PieceReader { pieces, left: Bytes::new() };
        unpack_from(reader, &into, rename.as_ref(), owner)
    };
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

fn unpack_from(
    reader: impl Read,
    into: &Path,
    rename: Option<&(PathBuf, PathBuf)>,
    owner: Owner,
) -> io::Result<()> {
    let mut archive = tar::Archive::new(reader);
    archive.set_preserve_permissions(true);
    archive.set_preserve_ownerships(owner == Owner::Same);
    // A directory that can't be written into becomes so when all is in it.
    let mut modes: Vec<(PathBuf, u32)> = Vec::new();
    for entry in archive.entries()? {
        let mut entry = entry?;
        let Some(name) = inside(&entry.path()?, rename) else { continue };
        let target = into.join(&name);
        not_through_links(into, &name)?;
        let result = match entry.header().entry_type() {
            tar::EntryType::Directory => {
                modes.push((target.clone(), entry.header().mode()?));
                make_directory(&target, entry.header(), owner)
            }
            tar::EntryType::Link => {
                let other = entry.link_name()?.and_then(|name| inside(&name, rename));
                let other = other.ok_or_else(|| io::Error::other("a link to nothing"))?;
                not_through_links(into, &other)?;
                remove_file(&target)?;
                fs::hard_link(into.join(other), &target)
            }
            tar::EntryType::Symlink => {
                let to = entry.link_name()?.map(std::borrow::Cow::into_owned).unwrap_or_default();
                remove_file(&target)?;
                symlink(to, &target)
            }
            _ => entry.unpack(&target).map(drop),
        };
        result.map_err(|error| at(&target, &error))?;
    }
    for (path, mode) in modes.into_iter().rev() {
        fs::set_permissions(&path, Permissions::from_mode(mode & 0o7777))
            .map_err(|error| at(&path, &error))?;
    }
    Ok(())
}

fn make_directory(target: &Path, header: &tar::Header, owner: Owner) -> io::Result<()> {
    match fs::symlink_metadata(target) {
        Ok(there) if there.is_dir() => {}
        Ok(_) => return Err(io::Error::other("it is there already, and no directory")),
        Err(_) => fs::create_dir_all(target)?,
    }
    if owner == Owner::Same {
        let id = |id: u64| u32::try_from(id).ok();
        std::os::unix::fs::lchown(target, id(header.uid()?), id(header.gid()?))?;
    }
    Ok(())
}

fn remove_file(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Where in the directory an entry comes; `None` for the root of an archive whose content is wanted.
fn inside(name: &Path, rename: Option<&(PathBuf, PathBuf)>) -> Option<PathBuf> {
    let plain = |path: &Path| -> PathBuf {
        path.components().filter(|part| matches!(part, Component::Normal(_))).collect()
    };
    let mut path = plain(name);
    if let Some((from, to)) = rename {
        let rest = path.strip_prefix(plain(from)).unwrap_or(&path);
        path = if rest.as_os_str().is_empty() { to.clone() } else { to.join(rest) };
    }
    (!path.as_os_str().is_empty()).then_some(path)
}

/// An archive may hold a link, and then something behind it.
fn not_through_links(into: &Path, name: &Path) -> io::Result<()> {
    let mut path = into.to_owned();
    for part in name.parent().into_iter().flat_map(Path::components) {
        path.push(part);
        if fs::symlink_metadata(&path).is_ok_and(|there| there.is_symlink()) {
            let reason = format!("{} is a link; nothing is written through it", path.display());
            return Err(io::Error::other(reason));
        }
    }
    Ok(())
}

/// Reads what is sent.
struct PieceReader {
    pieces: Pieces,
    left: Bytes,
}

impl Read for PieceReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.left.is_empty() {
            match self.pieces.blocking_recv() {
                None => return Ok(0),
                Some(piece) => self.left = piece?,
            }
        }
        let count = buffer.len().min(self.left.len());
        buffer[..count].copy_from_slice(&self.left.split_to(count));
        Ok(count)
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
pub(crate) struct Pipe {
    sender: mpsc::Sender<io::Result<Bytes>>,
    buffer: BytesMut,
}

impl Pipe {
    fn send(&mut self) -> io::Result<()> {
        let piece = std::mem::replace(&mut self.buffer, BytesMut::with_capacity(PIECE)).freeze();
        let gone = |_| io::Error::from(io::ErrorKind::BrokenPipe);
        self.sender.blocking_send(Ok(piece)).map_err(gone)
    }

    pub(crate) fn finish(mut self) -> io::Result<()> {
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
    use super::*;

    #[tokio::test]
    async fn what_is_packed_comes_out_again_under_another_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::create_dir_all(path("from/deep")).unwrap();
        fs::write(path("from/deep/large"), vec![7; 3 * PIECE + 5]).unwrap();
        fs::set_permissions(path("from/deep"), Permissions::from_mode(0o555)).unwrap();
        symlink("/no/such/place", path("from/link")).unwrap();
        let pieces = pack(path("from"), "root".into(), Owner::Root);
        let rename = ("root".into(), "to".into());
        unpack(pieces, dir.path().to_owned(), Some(rename), Owner::Root).await.unwrap();
        assert_eq!(fs::read(path("to/deep/large")).unwrap().len(), 3 * PIECE + 5);
        assert_eq!(fs::read_link(path("to/link")).unwrap(), Path::new("/no/such/place"));
        let mode = fs::metadata(path("to/deep")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o555);
        // Some of them, one of which has gone.
        let each = [("from/deep/large", "a/large"), ("from/none", "a/none"), ("from/link", "link")];
        let each = each.map(|(source, name)| (path(source), PathBuf::from(name)));
        fs::create_dir_all(path("some/a")).unwrap();
        unpack(pack_each(each.into(), Owner::Same), path("some"), None, Owner::Root).await.unwrap();
        assert!(path("some/a/large").exists() && !path("some/a/none").exists());
        assert!(fs::symlink_metadata(path("some/link")).unwrap().is_symlink());
        // Only what is in it, over what is there.
        let pieces = pack(path("from/link"), "x".into(), Owner::Root);
        unpack(pieces, path("to"), Some(("x".into(), "link".into())), Owner::Root).await.unwrap();
        let pieces = pack(path("from"), "root".into(), Owner::Root);
        fs::create_dir(path("flat")).unwrap();
        unpack(pieces, path("flat"), Some(("root".into(), PathBuf::new())), Owner::Root)
            .await
            .unwrap();
        assert!(path("flat/deep/large").exists());
    }

    #[test]
    fn nothing_comes_out_beside_the_directory() {
        let dir = tempfile::tempdir().unwrap();
        let (outside, into) = (dir.path().join("outside"), dir.path().join("into"));
        fs::create_dir(&outside).unwrap();
        fs::create_dir(&into).unwrap();
        let mut archive = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        archive.append_link(&mut header, "a", &outside).unwrap();
        let mut header = tar::Header::new_gnu();
        header.set_size(1);
        header.set_mode(0o644);
        archive.append_data(&mut header, "a/b", &b"x"[..]).unwrap();
        let bytes = archive.into_inner().unwrap();
        let error = unpack_from(bytes.as_slice(), &into, None, Owner::Root).unwrap_err();
        assert!(error.to_string().contains("is a link"), "{error}");
        assert!(!outside.join("b").exists());
        let up = inside(Path::new("../../etc/x"), None);
        assert_eq!(up.as_deref(), Some(Path::new("etc/x")));
    }
}
