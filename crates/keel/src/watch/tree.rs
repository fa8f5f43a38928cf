//! What there is below the watched paths, and what has changed since the last look.
//!
//! Notices only say where to look; what has changed is told by comparing. So a notice that comes twice, late, or from
//! something that was undone meanwhile does no harm, and one that was lost is made up for by looking at everything.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::filter::Filter;

/// A file that was changed so shortly before it was looked at may be changed again without looking different: clocks of
/// file systems go in steps.
const STEP: Duration = Duration::from_millis(100);

/// Who is told which directories notices are wanted of.
pub trait Directories {
    /// Notices of what is right in this directory are wanted.
    ///
    /// # Errors
    /// When they can't be had.
    fn enter(&mut self, directory: &Path) -> io::Result<()>;

    /// They are no longer.
    fn leave(&mut self, directory: &Path);
}

/// Where to look.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dirty {
    /// Something happened to these.
    pub paths: BTreeSet<PathBuf>,
    /// Notices were lost.
    pub all: bool,
}

/// What is watched.
#[derive(Clone, Debug)]
pub struct Root {
    /// A file or directory.
    pub path: PathBuf,
    /// What counts, for any of those who watch it.
    pub filters: Vec<Filter>,
}

impl Root {
    fn counts(&self, path: &Path) -> bool {
        self.filters.iter().any(|filter| filter.counts(path))
    }

    fn enters(&self, directory: &Path) -> bool {
        directory.starts_with(&self.path)
            && !self.filters.iter().all(|filter| filter.skips(directory))
    }
}

/// By which a change is seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    kind: fs::FileType,
    mode: u32,
    inode: (u64, u64),
    /// Of a directory, which has news of its own for what is in it, nothing of this counts.
    content: Option<(u64, i64, i64, i64, i64)>,
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        let content = (
            metadata.len(),
            metadata.mtime(),
            metadata.mtime_nsec(),
            metadata.ctime(),
            metadata.ctime_nsec(),
        );
        Self {
            kind: metadata.file_type(),
            mode: metadata.mode(),
            inode: (metadata.dev(), metadata.ino()),
            content: (!metadata.is_dir()).then_some(content),
        }
    }

    /// Whether it may be changed again without another stamp.
    fn is_young(&self, now: SystemTime) -> bool {
        let Some((.., seconds, nanos)) = self.content else { return false };
        let changed = UNIX_EPOCH
            + Duration::new(u64::try_from(seconds).unwrap_or(0), u32::try_from(nanos).unwrap_or(0));
        now.duration_since(changed).map_or(true, |age| age < STEP)
    }
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    stamp: Stamp,
    young: bool,
}

/// What there is.
#[derive(Debug, Default)]
pub struct Tree {
    roots: Vec<Root>,
    entries: BTreeMap<PathBuf, Entry>,
    /// Directories that could not be read, and were told of.
    unreadable: BTreeSet<PathBuf>,
}

/// What a look has found.
#[derive(Debug, Default)]
pub struct Found {
    /// Files, links and directories that are new, different, or gone.
    pub changed: BTreeSet<PathBuf>,
    /// Directories that can't be read, and why; each is told of once.
    pub unreadable: Vec<(PathBuf, io::Error)>,
}

impl Tree {
    /// Watches these, which are there. Nothing of what is there now has changed.
    ///
    /// # Errors
    /// When notices can't be had.
    pub fn new(roots: Vec<Root>, directories: &mut dyn Directories) -> io::Result<(Self, Found)> {
        let mut tree = Self { roots, ..Self::default() };
        let mut found = Found::default();
        for at in 0..tree.roots.len() {
            // A root may be moved away and come back, as editors do with files and version control with directories.
            if let Some(parent) = tree.roots[at].path.parent() {
                directories.enter(parent)?;
            }
            let path = tree.roots[at].path.clone();
            tree.look(&path, Depth::All, directories, &mut found)?;
        }
        found.changed.clear();
        Ok((tree, found))
    }

    /// Everything that counts for a root.
    pub fn below<'a>(&'a self, root: &'a Path) -> impl Iterator<Item = &'a Path> {
        self.entries
            .range(root.to_owned()..)
            .map(|(path, _)| &**path)
            .take_while(move |path| path.starts_with(root))
    }

    /// How many files, links and directories are known.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Looks where something happened.
    ///
    /// # Errors
    /// When notices can't be had of a new directory.
    pub fn refresh(
        &mut self,
        dirty: &Dirty,
        directories: &mut dyn Directories,
    ) -> io::Result<Found> {
        let mut found = Found::default();
        if dirty.all {
            let roots: Vec<PathBuf> = self.roots.iter().map(|root| root.path.clone()).collect();
            for root in roots {
                self.look(&root, Depth::All, directories, &mut found)?;
            }
            return Ok(found);
        }
        // A directory that was renamed has one place to leave and one to enter, and is left first.
        let (there, gone): (Vec<_>, Vec<_>) =
            dirty.paths.iter().partition(|path| fs::symlink_metadata(path).is_ok());
        for path in gone.into_iter().chain(there) {
            self.look(path, Depth::News, directories, &mut found)?;
        }
        Ok(found)
    }

    /// Looks at one path; into a directory that was known only if all is wanted.
    fn look(
        &mut self,
        path: &Path,
        depth: Depth,
        directories: &mut dyn Directories,
        found: &mut Found,
    ) -> io::Result<()> {
        let mut open = vec![path.to_owned()];
        while let Some(path) = open.pop() {
            if !self.is_watched(&path) {
                continue;
            }
            let metadata = match fs::symlink_metadata(&path) {
                Ok(metadata) => metadata,
                // Whatever the reason is, nobody could read it.
                Err(_) => {
                    self.forget(&path, directories, found);
                    continue;
                }
            };
            let known = self.entries.get(&path).copied();
            let is_new = self.note(&path, &metadata, directories, found);
            if !metadata.is_dir() || (!is_new && depth == Depth::News) {
                continue;
            }
            if !self.roots.iter().any(|root| root.enters(&path)) {
                continue;
            }
            // First the notices, then the look: what comes between the two is seen twice, and not missed.
            if is_new || known.is_none() {
                match directories.enter(&path) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                        self.cannot_read(path, error, found);
                        continue;
                    }
                    entered => entered?,
                }
            }
            self.list(path, directories, found, &mut open);
        }
        Ok(())
    }

    /// What is in a directory is looked at next; what is no longer there is forgotten.
    fn list(
        &mut self,
        directory: PathBuf,
        directories: &mut dyn Directories,
        found: &mut Found,
        open: &mut Vec<PathBuf>,
    ) {
        let children = fs::read_dir(&directory)
            .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect());
        let children: BTreeSet<PathBuf> = match children {
            Ok(children) => children,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return,
            Err(error) => return self.cannot_read(directory, error, found),
        };
        self.unreadable.remove(&directory);
        let gone = |path: &&Path| path.parent() == Some(&*directory) && !children.contains(*path);
        let gone: Vec<PathBuf> = self.below(&directory).filter(gone).map(Path::to_owned).collect();
        for path in gone {
            self.forget(&path, directories, found);
        }
        open.extend(children);
    }

    fn cannot_read(&mut self, directory: PathBuf, error: io::Error, found: &mut Found) {
        if self.unreadable.insert(directory.clone()) {
            found.unreadable.push((directory, error));
        }
    }

    /// Whether anything about the path may matter.
    fn is_watched(&self, path: &Path) -> bool {
        self.roots.iter().any(|root| {
            let inside = path.starts_with(&root.path);
            inside && (root.counts(path) || root.enters(path))
        })
    }

    /// Remembers what a path is. True if it is another thing than before.
    fn note(
        &mut self,
        path: &Path,
        metadata: &Metadata,
        directories: &mut dyn Directories,
        found: &mut Found,
    ) -> bool {
        let stamp = Stamp::of(metadata);
        let young = stamp.is_young(SystemTime::now());
        let before = self.entries.get(path).copied();
        let replaced = before.is_some_and(|before| {
            let other = before.stamp.inode != stamp.inode || before.stamp.kind != stamp.kind;
            other && before.stamp.kind.is_dir()
        });
        if replaced {
            self.forget(path, directories, found);
        }
        self.entries.insert(path.to_owned(), Entry { stamp, young });
        if before.is_none_or(|before| before.stamp != stamp || before.young) {
            found.changed.insert(path.to_owned());
        }
        before.is_none() || replaced || before.is_some_and(|it| it.stamp.kind != stamp.kind)
    }

    /// It is gone, with all that was in it.
    fn forget(&mut self, path: &Path, directories: &mut dyn Directories, found: &mut Found) {
        let gone: Vec<PathBuf> = self.below(path).map(Path::to_owned).collect();
        for path in gone {
            let entry = self.entries.remove(&path);
            if entry.is_some_and(|entry| entry.stamp.kind.is_dir()) {
                directories.leave(&path);
            }
            found.changed.insert(path);
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Depth {
    /// What is new.
    News,
    /// Everything.
    All,
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use keel_compose::{Span, WatchAction, WatchRule};

    use super::*;

    #[derive(Default)]
    struct Entered(BTreeSet<PathBuf>);

    impl Directories for Entered {
        fn enter(&mut self, directory: &Path) -> io::Result<()> {
            self.0.insert(directory.to_owned());
            Ok(())
        }

        fn leave(&mut self, directory: &Path) {
            self.0.remove(directory);
        }
    }

    struct Fixture {
        dir: tempfile::TempDir,
        tree: Tree,
        entered: Entered,
    }

    impl Fixture {
        /// With `src`, which has some files, and below it what `ignore` says is left out.
        fn new(ignore: &str) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let path = fs::canonicalize(dir.path()).unwrap().join("src");
            fs::create_dir_all(path.join("deep/er")).unwrap();
            fs::create_dir_all(path.join("node_modules/x")).unwrap();
            for name in ["a", "deep/b", "deep/er/c", "node_modules/x/y"] {
                fs::write(path.join(name), name).unwrap();
            }
            let rule = WatchRule {
                action: WatchAction::Restart,
                path: path.clone(),
                target: None,
                include: Vec::new(),
                ignore: ignore.lines().map(str::to_owned).collect(),
                initial_sync: false,
                exec: None,
                span: Span::start_of("compose.yaml"),
            };
            let filters = vec![Filter::of(&rule, None).unwrap()];
            let mut entered = Entered::default();
            // So that nothing looks as if it were still being written.
            std::thread::sleep(2 * STEP);
            let (tree, found) = Tree::new(vec![Root { path, filters }], &mut entered).unwrap();
            assert!(found.changed.is_empty());
            Self { dir, tree, entered }
        }

        fn path(&self, name: &str) -> PathBuf {
            let src = fs::canonicalize(self.dir.path()).unwrap().join("src");
            if name.is_empty() { src } else { src.join(name) }
        }

        /// What a look finds after these notices.
        fn look(&mut self, names: &[&str]) -> Vec<String> {
            let paths = names.iter().map(|name| self.path(name)).collect();
            self.refresh(&Dirty { paths, all: false })
        }

        fn refresh(&mut self, dirty: &Dirty) -> Vec<String> {
            let found = self.tree.refresh(dirty, &mut self.entered).unwrap();
            let src = self.path("");
            let name = |path: PathBuf| path.strip_prefix(&src).unwrap().display().to_string();
            found.changed.into_iter().map(name).collect()
        }

        fn entered(&self) -> Vec<String> {
            let src = self.path("");
            let below = self.entered.0.iter().filter_map(|path| path.strip_prefix(&src).ok());
            below.map(|path| path.display().to_string()).collect()
        }
    }

    #[test]
    fn what_is_left_out_is_not_entered() {
        let all = Fixture::new("");
        assert_eq!(all.entered(), ["", "deep", "deep/er", "node_modules", "node_modules/x"]);
        let mut some = Fixture::new("node_modules");
        assert_eq!(some.entered(), ["", "deep", "deep/er"]);
        fs::write(some.path("node_modules/x/y"), "other").unwrap();
        assert_eq!(some.look(&["node_modules/x/y", "node_modules"]), [] as [&str; 0]);
        assert_eq!(some.refresh(&Dirty { all: true, ..Dirty::default() }), [] as [&str; 0]);
    }

    #[test]
    fn a_notice_without_a_change_is_none() {
        let mut tree = Fixture::new("");
        assert_eq!(tree.look(&["a", "deep", "deep/b", "none"]), [] as [&str; 0]);
        fs::write(tree.path("a"), "other").unwrap();
        assert_eq!(tree.look(&["a"]), ["a"]);
        // It may have been written again within the same step of the clock.
        assert_eq!(tree.look(&["a"]), ["a"]);
        fs::set_permissions(tree.path("deep/b"), fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(tree.look(&["deep/b"]), ["deep/b"]);
    }

    #[test]
    fn a_rename_over_a_file_is_a_change_of_it() {
        let mut tree = Fixture::new("");
        fs::write(tree.path("a.new"), "a").unwrap();
        fs::rename(tree.path("a.new"), tree.path("a")).unwrap();
        assert_eq!(tree.look(&["a", "a.new"]), ["a"]);
    }

    #[test]
    fn a_new_directory_comes_with_all_that_is_in_it_and_goes_with_it() {
        let mut tree = Fixture::new("*.log");
        fs::create_dir_all(tree.path("new/deep")).unwrap();
        for name in ["new/x", "new/deep/y", "new/deep/z.log"] {
            fs::write(tree.path(name), name).unwrap();
        }
        symlink("../a", tree.path("new/link")).unwrap();
        let all = ["new", "new/deep", "new/deep/y", "new/deep/z.log", "new/link", "new/x"];
        assert_eq!(tree.look(&["new"]), all);
        assert!(tree.entered().contains(&"new/deep".to_owned()));
        fs::rename(tree.path("new"), tree.path("moved")).unwrap();
        let changed = tree.look(&["new", "moved"]);
        assert_eq!(changed.len(), 2 * all.len(), "{changed:?}");
        assert!(!tree.entered().contains(&"new/deep".to_owned()));
        assert!(tree.entered().contains(&"moved/deep".to_owned()));
        fs::remove_dir_all(tree.path("moved")).unwrap();
        assert_eq!(tree.look(&["moved"]).len(), all.len());
    }

    #[test]
    fn a_directory_in_the_place_of_another_is_looked_at_anew() {
        let mut tree = Fixture::new("");
        fs::rename(tree.path("deep"), tree.dir.path().join("old")).unwrap();
        fs::create_dir(tree.path("deep")).unwrap();
        fs::write(tree.path("deep/new"), "x").unwrap();
        let changed = tree.look(&["deep"]);
        assert_eq!(changed, ["deep", "deep/b", "deep/er", "deep/er/c", "deep/new"]);
        assert_eq!(tree.tree.below(&tree.path("deep")).count(), 2);
    }

    #[test]
    fn what_was_lost_is_found_by_looking_at_everything() {
        let mut tree = Fixture::new("");
        fs::write(tree.path("deep/er/c"), "longer").unwrap();
        fs::remove_file(tree.path("deep/b")).unwrap();
        fs::write(tree.path("node_modules/new"), "x").unwrap();
        let changed = tree.refresh(&Dirty { all: true, ..Dirty::default() });
        assert_eq!(changed, ["deep/b", "deep/er/c", "node_modules/new"]);
    }

    #[test]
    fn a_root_that_goes_and_comes_is_watched_again() {
        let mut tree = Fixture::new("");
        fs::rename(tree.path(""), tree.dir.path().join("aside")).unwrap();
        assert!(tree.look(&[""]).contains(&"deep/er/c".to_owned()));
        assert_eq!((tree.tree.len(), tree.entered()), (0, Vec::new()));
        fs::rename(tree.dir.path().join("aside"), tree.path("")).unwrap();
        assert!(tree.look(&[""]).contains(&"deep/er/c".to_owned()));
        assert!(tree.entered().contains(&"deep/er".to_owned()));
    }
}
