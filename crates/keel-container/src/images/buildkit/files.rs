//! The files of a build for BuildKit: it is told what there is, and asks for what it does not have yet (the protocol of
//! `tonistiigi/fsutil`).
//!
//! What `.dockerignore` leaves out is left out here, so that BuildKit never hears of it.

use std::collections::BTreeMap;
use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use bollard_buildkit_proto::fsutil::types::packet::PacketType;
use bollard_buildkit_proto::fsutil::types::{Packet, Stat};
use bollard_buildkit_proto::moby::filesync::packet::file_sync_server::FileSync;
use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream};
use tokio::sync::mpsc;
use tonic::{Request, Response, Status, Streaming};
use walkdir::WalkDir;

use crate::images::ignored::Ignored;

/// Packets that wait to be sent.
const QUEUE: usize = 64;
/// Size of the pieces of a file, in bytes.
const PIECE: usize = 32 << 10;
/// How a file is marked in the number that Go has for its kind and rights.
const DIRECTORY: u32 = 1 << 31;
const LINK: u32 = 1 << 27;
const SET_USER: u32 = 1 << 23;
const SET_GROUP: u32 = 1 << 22;
const STICKY: u32 = 1 << 20;

/// One tree of files that BuildKit may ask for.
#[derive(Debug)]
pub(super) enum Tree {
    /// A directory of this machine.
    Directory { root: PathBuf, ignored: Ignored },
    /// One file, by its name and what it holds.
    File { name: String, text: String },
}

/// What BuildKit may ask for, by the names that the frontend has for it.
#[derive(Debug)]
pub(super) struct Files {
    pub(super) trees: BTreeMap<String, Arc<Tree>>,
    /// Why a file could not be read: BuildKit only says that it did not come.
    pub(super) unread: Arc<Mutex<Option<String>>>,
}

#[tonic::async_trait]
impl FileSync for Files {
    type DiffCopyStream = BoxStream<'static, Result<Packet, Status>>;
    type TarStreamStream = BoxStream<'static, Result<Packet, Status>>;

    async fn diff_copy(
        &self,
        request: Request<Streaming<Packet>>,
    ) -> Result<Response<Self::DiffCopyStream>, Status> {
        let metadata = request.metadata();
        let name = metadata.get("dir-name").and_then(|name| name.to_str().ok());
        let name = name.unwrap_or_default().to_owned();
        let wanted = ["followpaths", "include-patterns"];
        let wanted: Vec<String> = wanted
            .iter()
            .flat_map(|key| metadata.get_all(*key))
            .filter_map(|value| value.to_str().ok())
            .map(str::to_owned)
            .collect();
        let tree = self.trees.get(&name).cloned();
        let tree = tree.ok_or_else(|| Status::not_found(format!("no directory {name:?}")))?;
        // It asks for what to leave out; that has been left out already.
        let nothing = !wanted.is_empty() && wanted.iter().all(|it| it.ends_with(".dockerignore"));
        let (out, packets) = mpsc::channel(QUEUE);
        let (asked, asks) = std::sync::mpsc::channel();
        let unread = self.unread.clone();
        let sending = out.clone();
        tokio::task::spawn_blocking(move || {
            let sent = if nothing { end_of_names(&sending) } else { send(&tree, &sending, &asks) };
            // Who does not listen any more has a reason of its own.
            if let Err(error) = sent
                && error.kind() != io::ErrorKind::BrokenPipe
            {
                let text = error.to_string();
                *unread.lock().unwrap_or_else(PoisonError::into_inner) = Some(text.clone());
                let _ = sending.blocking_send(Err(Status::internal(text)));
            }
        });
        tokio::spawn(listen(request.into_inner(), asked, out));
        let packets =
            stream::unfold(packets, |mut packets| async { Some((packets.recv().await?, packets)) });
        Ok(Response::new(packets.boxed()))
    }

    async fn tar_stream(
        &self,
        _: Request<Streaming<Packet>>,
    ) -> Result<Response<Self::TarStreamStream>, Status> {
        Err(Status::unimplemented("files are sent one by one"))
    }
}

type Out = mpsc::Sender<Result<Packet, Status>>;

/// Takes what BuildKit asks for, until it has all. What it asks for waits unbounded, because both sides would wait for
/// each other otherwise; it is no more than the names that it was told.
async fn listen(mut packets: Streaming<Packet>, asked: std::sync::mpsc::Sender<u32>, out: Out) {
    while let Ok(Some(packet)) = packets.message().await {
        match PacketType::try_from(packet.r#type) {
            Ok(PacketType::PacketReq) if asked.send(packet.id).is_ok() => {}
            Ok(PacketType::PacketReq | PacketType::PacketErr) => return,
            Ok(PacketType::PacketFin) => {
                let fin = Packet { r#type: PacketType::PacketFin.into(), ..Packet::default() };
                let _ = out.send(Ok(fin)).await;
                return;
            }
            _ => {}
        }
    }
}

fn gone() -> io::Error {
    io::ErrorKind::BrokenPipe.into()
}

fn put(out: &Out, packet: Packet) -> io::Result<()> {
    out.blocking_send(Ok(packet)).map_err(|_| gone())
}

fn name_of(stat: Option<Stat>) -> Packet {
    Packet { r#type: PacketType::PacketStat.into(), stat, ..Packet::default() }
}

fn end_of_names(out: &Out) -> io::Result<()> {
    put(out, name_of(None))
}

/// Tells all names, then sends what is asked for. Blocks.
fn send(tree: &Tree, out: &Out, asks: &std::sync::mpsc::Receiver<u32>) -> io::Result<()> {
    let mut paths: Vec<Option<PathBuf>> = Vec::new();
    match tree {
        Tree::File { name, text } => {
            // Another time than the last: a file of the same size and time would be taken for the same.
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            let stat = Stat {
                path: name.clone(),
                mode: 0o644,
                size: i64::try_from(text.len()).unwrap_or(i64::MAX),
                mod_time: i64::try_from(now.as_nanos()).unwrap_or(0),
                ..Stat::default()
            };
            put(out, name_of(Some(stat)))?;
            paths.push(None);
        }
        Tree::Directory { root, ignored } => tell(root, ignored, &mut |path, stat| {
            paths.push(Some(path));
            put(out, name_of(Some(stat)))
        })?,
    }
    end_of_names(out)?;
    while let Ok(id) = asks.recv() {
        let index = usize::try_from(id).unwrap_or(usize::MAX);
        let known = paths
            .get(index)
            .ok_or_else(|| io::Error::other("BuildKit asks for a file that there is not"))?;
        match (known, tree) {
            (Some(path), _) => {
                let file = File::open(path).map_err(|error| at(path, &error))?;
                pieces(id, file, out).map_err(|error| at(path, &error))?;
            }
            (None, Tree::File { text, .. }) => pieces(id, text.as_bytes(), out)?,
            (None, Tree::Directory { .. }) => {}
        }
    }
    Ok(())
}

fn at(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

/// What it holds, and an empty piece at the end.
fn pieces(id: u32, mut from: impl io::Read, out: &Out) -> io::Result<()> {
    let mut buffer = vec![0; PIECE];
    loop {
        let count = from.read(&mut buffer)?;
        let data = buffer[..count].to_vec();
        let r#type = PacketType::PacketData.into();
        put(out, Packet { r#type, id, data, ..Packet::default() })?;
        if count == 0 {
            return Ok(());
        }
    }
}

/// Names all files in the order that BuildKit checks: a directory before what is in it, which comes before its next
/// sibling. Directories that are left out are told when something in them is not.
fn tell(
    root: &Path,
    ignored: &Ignored,
    each: &mut dyn FnMut(PathBuf, Stat) -> io::Result<()>,
) -> io::Result<()> {
    let mut untold: Vec<(PathBuf, Stat)> = Vec::new();
    let inside =
        |path: &Path| path.strip_prefix(root).unwrap_or(path).to_string_lossy().into_owned();
    let walk = WalkDir::new(root).min_depth(1).sort_by_file_name().into_iter();
    let enters = |entry: &walkdir::DirEntry| {
        let path = inside(entry.path());
        !entry.file_type().is_dir()
            || !ignored.leaves_out(&path)
            || !ignored.leaves_out_all_of(&path)
    };
    for entry in walk.filter_entry(enters) {
        let entry = entry.map_err(io::Error::from)?;
        let path = inside(entry.path());
        let metadata =
            fs::symlink_metadata(entry.path()).map_err(|error| at(entry.path(), &error))?;
        let Some(stat) = stat(entry.path(), &path, &metadata)? else { continue };
        untold.retain(|(above, _)| entry.path().starts_with(above));
        if ignored.leaves_out(&path) {
            if metadata.is_dir() {
                untold.push((entry.path().to_owned(), stat));
            }
            continue;
        }
        for (above, stat) in untold.drain(..) {
            each(above, stat)?;
        }
        each(entry.path().to_owned(), stat)?;
    }
    Ok(())
}

/// As BuildKit has it; `None` for what can't be copied (sockets, pipes, devices). All is root's, as in an archive.
fn stat(file: &Path, path: &str, metadata: &Metadata) -> io::Result<Option<Stat>> {
    let kind = metadata.file_type();
    let rights = metadata.permissions().mode();
    let mut mode = rights & 0o777;
    for (bit, ours) in [(0o4000, SET_USER), (0o2000, SET_GROUP), (0o1000, STICKY)] {
        if rights & bit != 0 {
            mode |= ours;
        }
    }
    let mut linkname = String::new();
    if kind.is_dir() {
        mode |= DIRECTORY;
    } else if kind.is_symlink() {
        mode |= LINK;
        let to = fs::read_link(file).map_err(|error| at(file, &error))?;
        linkname = to.to_string_lossy().into_owned();
    } else if !kind.is_file() {
        return Ok(None);
    }
    Ok(Some(Stat {
        path: path.to_owned(),
        mode,
        size: if kind.is_file() { i64::try_from(metadata.len()).unwrap_or(i64::MAX) } else { 0 },
        mod_time: metadata.mtime().saturating_mul(1_000_000_000) + metadata.mtime_nsec(),
        linkname,
        ..Stat::default()
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_in_order_and_without_what_is_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        for path in ["a/x", "a.txt", "docs/README.md", "docs/deep/no", "target/out", "b"] {
            let file = root.join(path);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, "x").unwrap();
        }
        std::os::unix::fs::symlink("b", root.join("link")).unwrap();
        let ignored = Ignored::parse("target\ndocs\n!docs/README.md").unwrap();
        let mut told = Vec::new();
        tell(root, &ignored, &mut |_, stat| {
            told.push((stat.path, stat.mode & (DIRECTORY | LINK)));
            Ok(())
        })
        .unwrap();
        let names: Vec<&str> = told.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["a", "a/x", "a.txt", "b", "docs", "docs/README.md", "link"]);
        assert_eq!((told[0].1, told[1].1, told[6].1), (DIRECTORY, 0, LINK));
    }
}
