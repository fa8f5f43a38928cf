//! The last known state in a file, so that a restarted proxy serves at once. A full disk costs the newest state after a
//! restart, nothing else.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use keel_route::snapshot::{MAX_FRAME, Snapshot};

/// Reads the state; `None` if there is none or it cannot be used, which is logged.
#[must_use]
pub fn load(path: &Path) -> Option<Snapshot> {
    let mut json = Vec::new();
    let most = MAX_FRAME as u64;
    let read = File::open(path).and_then(|file| file.take(most).read_to_end(&mut json));
    match read {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "cannot read the last state");
            return None;
        }
    }
    serde_json::from_slice(&json)
        .inspect_err(
            |error| tracing::warn!(path = %path.display(), %error, "the last state is damaged"),
        )
        .ok()
}

/// Replaces the file in one step. It holds private keys: nobody else may read it.
///
/// # Errors
/// When it can't be written; what was there stays.
pub fn save(path: &Path, json: &[u8]) -> io::Result<()> {
    let beside = path.with_extension("new");
    // One that was left over keeps the rights that it has.
    let _ = fs::remove_file(&beside);
    let created = File::options().write(true).create_new(true).mode(0o600).open(&beside);
    let written = created.and_then(|mut file| {
        file.write_all(json)?;
        file.sync_data()
    });
    written.and_then(|()| fs::rename(&beside, path)).inspect_err(|_| {
        // Half a file on a full disk is of no use to anybody.
        let _ = fs::remove_file(&beside);
    })
}

/// A state as it is kept.
#[must_use]
pub fn to_json(snapshot: &Snapshot) -> Vec<u8> {
    serde_json::to_vec(snapshot).expect("a snapshot has string keys only")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_saved_is_loaded_and_damage_is_survived() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("proxy.json");
        assert_eq!(load(&path), None);
        let snapshot = Snapshot { generation: keel_model::Generation(7), ..Snapshot::default() };
        save(&path, &to_json(&snapshot)).unwrap();
        assert_eq!(load(&path), Some(snapshot));
        let rights =
            std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&path).unwrap().permissions());
        assert_eq!(rights & 0o777, 0o600);
        fs::write(&path, "{").unwrap();
        assert_eq!(load(&path), None);
        assert!(save(&dir.path().join("no/such/dir"), b"x").is_err());
        let left: Vec<_> = fs::read_dir(dir.path()).unwrap().collect();
        assert_eq!(left.len(), 1);
    }
}
