//! A configuration on disk: only its owner reads keys and password hashes.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use keel_render::Rendered;
use rustix::fs::{Gid, chown};

/// Rights of a file that only its owner reads.
pub(crate) const SECRET: u32 = 0o600;
/// Rights of a file that one more group reads.
const SHARED: u32 = 0o640;
/// Rights of other files.
pub(crate) const PLAIN: u32 = 0o644;

/// Writes a configuration into `directory`, which is made if it is not there. Files that are there are replaced, others
/// are left alone. Members of `group` may read the secrets that the engine's workers need.
///
/// # Errors
/// The first failure to write, or to read a file that is to be part of another.
pub fn write(rendered: &Rendered, directory: &Path, group: Option<u32>) -> io::Result<()> {
    make(directory)?;
    for (path, content) in &rendered.files {
        let shared = rendered.read_by_workers.contains(path);
        let mode = match rendered.secret.contains(path) {
            true if shared && group.is_some() => SHARED,
            true => SECRET,
            false => PLAIN,
        };
        let path = directory.join(path);
        put(&path, content.as_bytes(), mode)?;
        if let (SHARED, Some(group)) = (mode, group) {
            chown(&path, None, Some(Gid::from_raw(group)))?;
        }
    }
    for (path, parts) in &rendered.joined {
        let mut whole = Vec::new();
        for part in parts {
            let named = |error: io::Error| {
                io::Error::new(error.kind(), format!("cannot read {}: {error}", part.display()))
            };
            whole.extend(fs::read(part).map_err(named)?);
            whole.push(b'\n');
        }
        put(&directory.join(path), &whole, SECRET)?;
    }
    Ok(())
}

/// Others may pass through, to what they may read, but not look around.
pub(crate) fn make(directory: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o711).create(directory)
}

/// Replaces a file in one step. The rights are there before the content is.
pub(crate) fn put(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        make(parent)?;
    }
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let beside = Path::new(&beside);
    let mut options = fs::OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(mode).open(beside)?;
    // One that was left there by an earlier try has the rights of then.
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    file.write_all(content)?;
    fs::rename(beside, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_for_their_owner() {
        let directory = tempfile::tempdir().unwrap();
        let part = directory.path().join("part");
        fs::write(&part, "a").unwrap();
        let mut rendered = Rendered::default();
        rendered.files.insert("main".to_owned(), "x".to_owned());
        rendered.files.insert("certs/0.key".to_owned(), "secret".to_owned());
        rendered.secret.insert("certs/0.key".to_owned());
        rendered.joined.insert("certs/to.pem".to_owned(), vec![part.clone(), part.clone()]);
        let to = directory.path().join("a/b");
        for _ in 0..2 {
            write(&rendered, &to, None).unwrap();
        }
        let mode = |path: &str| to.join(path).metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(
            (mode("main"), mode("certs/0.key"), mode("certs/to.pem")),
            (0o644, 0o600, 0o600)
        );
        assert_eq!(fs::read_to_string(to.join("certs/to.pem")).unwrap(), "a\na\n");
        assert_eq!(fs::read_dir(to.join("certs")).unwrap().count(), 2);
        fs::remove_file(&part).unwrap();
        let error = write(&rendered, &to, None).unwrap_err();
        assert!(error.to_string().contains("part"), "{error}");
    }
}
