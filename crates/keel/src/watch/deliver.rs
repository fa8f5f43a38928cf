//! Brings what changed here into one container: first what is gone goes, then what is there comes, in one archive.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use keel_container::archive::{self, Owner};
use keel_container::copy::{Files, Removal};
use keel_runtime::ContainerExec;

use super::decide::Copy;
use crate::copy::Side;

/// What came into a container.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Delivered {
    /// Files, links and directories that are there now.
    pub copied: usize,
    /// Those that are no longer.
    pub removed: usize,
}

/// Makes these as they are here. To do it once more does no harm.
///
/// # Errors
/// When something could not be copied or taken away; it is not known then what was.
pub async fn deliver(
    into: &ContainerExec,
    copies: &BTreeMap<PathBuf, Copy>,
) -> io::Result<Delivered> {
    let here = |copy: &Copy| fs::symlink_metadata(&copy.source).is_ok();
    let (there, gone): (Vec<_>, Vec<_>) = copies.iter().partition(|(_, copy)| here(copy));
    let removed = gone.len();
    let gone = topmost(gone.into_iter().map(|(target, _)| target));
    if !gone.is_empty() {
        let removed = Files::new(into).remove(&gone, Removal::Direct).await;
        removed.map_err(io::Error::other)?;
    }
    let copied = there.len();
    let mut groups: BTreeMap<&Path, Vec<(&Path, &Path)>> = BTreeMap::new();
    for (target, copy) in there {
        groups.entry(&copy.below).or_default().push((&copy.source, target));
    }
    let side = Side::Container(Files::new(into));
    for (below, files) in groups {
        let (place, asked) = existing(&side, below).await?;
        let name = |target: &Path| target.strip_prefix(&asked).unwrap_or(target).to_owned();
        let each = files.into_iter().map(|(source, target)| (source.to_owned(), name(target)));
        // As it is with a directory that is mounted: the numbers of users and groups are the same on both sides.
        let pieces = archive::pack_each(each.collect(), Owner::Same);
        side.write(&place, pieces, None, Owner::Same).await?;
    }
    Ok(Delivered { copied, removed })
}

/// The nearest directory that is there: where it is once links are followed, and what it was called.
async fn existing(side: &Side, below: &Path) -> io::Result<(PathBuf, PathBuf)> {
    let mut asked = below;
    loop {
        let (place, found) = side.look(asked, true).await?;
        match (found, asked.parent()) {
            (Some(found), _) if found.is_directory => return Ok((place, asked.to_owned())),
            (Some(_), _) => {
                let message = format!("{} is no directory in the container", asked.display());
                return Err(io::Error::other(message));
            }
            (None, Some(parent)) => asked = parent,
            (None, None) => return Ok((PathBuf::from("/"), asked.to_owned())),
        }
    }
}

/// Without what is in others of them.
fn topmost<'a>(paths: impl Iterator<Item = &'a PathBuf>) -> Vec<PathBuf> {
    let mut kept: Vec<PathBuf> = Vec::new();
    for path in paths {
        if !kept.last().is_some_and(|last| path.starts_with(last)) {
            kept.push(path.clone());
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_directory_only_the_directory_is_taken_away() {
        let paths = ["/a", "/a/b", "/a/b/c", "/ab", "/c/d"].map(PathBuf::from);
        let kept: Vec<String> =
            topmost(paths.iter()).iter().map(|path| path.display().to_string()).collect();
        assert_eq!(kept, ["/a", "/ab", "/c/d"]);
    }
}
