//! Named volumes of processes: a directory each, and beside them a note for which stack each was made.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use keel_model::StackName;

use crate::record;
use crate::types::VolumeInfo;

/// The directory of the notes; no volume is called so.
const NOTES: &str = ".stacks";

/// The directory of a named volume.
pub(super) fn dir_of(volumes: &Path, name: &str) -> Result<PathBuf, String> {
    let plain = !name.is_empty()
        && !name.starts_with('.')
        && name.len() <= 200
        && !name.contains(['/', '\0']);
    if plain {
        Ok(volumes.join(name))
    } else {
        Err(format!(
            "the volume name {name:?} can't be a directory; use letters, digits, '_', '.', '-'"
        ))
    }
}

/// Notes for which stack a volume is made; the first that needs it has it.
pub(super) fn note_stack(volumes: &Path, name: &str, stack: &StackName) -> io::Result<()> {
    if stack_of(volumes, name).is_some() {
        return Ok(());
    }
    let notes = volumes.join(NOTES);
    super::surroundings::private_dir(&notes)?;
    record::write(&notes, &note(name), stack)
}

fn stack_of(volumes: &Path, name: &str) -> Option<StackName> {
    record::read(&volumes.join(NOTES), &note(name))
}

fn note(name: &str) -> String {
    format!("{name}.json")
}

/// All that there are, by name.
pub(super) fn list(volumes: &Path) -> io::Result<Vec<VolumeInfo>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(volumes)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name != NOTES {
            let stack = stack_of(volumes, &name);
            all.push(VolumeInfo { name, path: entry.path(), stack });
        }
    }
    all.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(all)
}

/// Deletes one with its data; what is not there is no error.
pub(super) fn remove(volumes: &Path, name: &str) -> io::Result<()> {
    let there = |error: &io::Error| error.kind() != io::ErrorKind::NotFound;
    if let Some(error) = fs::remove_dir_all(volumes.join(name)).err().filter(there) {
        return Err(error);
    }
    // After the data: without its note nobody would know whose the rest is.
    match fs::remove_file(volumes.join(NOTES).join(note(name))) {
        Err(error) if there(&error) => Err(error),
        _ => Ok(()),
    }
}
