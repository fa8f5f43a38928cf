//! Certificates in files, read again when they change.
//!
//! Tools replace the two files one after the other. So a pair is used only when both fit together; until then, and whenever
//! something is wrong with them, the last good pair is shown.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use keel_acme::examine;
use keel_route::snapshot::Certificate;

/// Largest file, in bytes.
const MAX_FILE: u64 = 1 << 20;

/// What tells that a file was changed: device, inode, size, and when its content and its place were last changed.
type Stamp = (u64, u64, u64, (i64, i64), (i64, i64));

#[derive(Default)]
struct Known {
    stamps: Option<(Stamp, Stamp)>,
    good: Option<Certificate>,
    problem: Option<String>,
}

/// The files that are in use, with what was in them.
#[derive(Default)]
pub struct Files(BTreeMap<(PathBuf, PathBuf), Known>);

impl Files {
    /// The certificates in these pairs of chain and key, and what is wrong with some.
    pub fn read(
        &mut self,
        pairs: &BTreeSet<(PathBuf, PathBuf)>,
    ) -> (Vec<Certificate>, Vec<String>) {
        self.0.retain(|pair, _| pairs.contains(pair));
        for pair in pairs {
            let known = self.0.entry(pair.clone()).or_default();
            let stamps = stamp(&pair.0).and_then(|chain| Ok((chain, stamp(&pair.1)?)));
            // Looked at before they are read: a change in between shows at the next look.
            if stamps.is_ok() && stamps.as_ref().ok() == known.stamps.as_ref() {
                continue;
            }
            known.stamps = stamps.ok();
            match load(&pair.0, &pair.1) {
                Ok(certificate) => (known.good, known.problem) = (Some(certificate), None),
                Err(reason) => known.problem = Some(told(&pair.0, &reason, known.good.is_some())),
            }
        }
        let certificates = self.0.values().filter_map(|known| known.good.clone());
        let problems = self.0.values().filter_map(|known| known.problem.clone());
        (certificates.collect(), problems.collect())
    }
}

fn told(chain: &Path, reason: &str, has_good: bool) -> String {
    let rest = if has_good { "; the one before it stays in use" } else { "" };
    format!("can't use the certificate {}: {reason}{rest}", chain.display())
}

fn stamp(path: &Path) -> io::Result<Stamp> {
    let file: Metadata = fs::metadata(path)?;
    let times = ((file.mtime(), file.mtime_nsec()), (file.ctime(), file.ctime_nsec()));
    Ok((file.dev(), file.ino(), file.size(), times.0, times.1))
}

fn load(chain: &Path, key: &Path) -> Result<Certificate, String> {
    let (chain, key) = (text(chain)?, text(key)?);
    examine(&chain, &key)?;
    Ok(Certificate { names: Vec::new(), chain, key })
}

fn text(path: &Path) -> Result<String, String> {
    let failed = |reason: String| format!("can't read {}: {reason}", path.display());
    let file = fs::metadata(path).map_err(|error| failed(error.to_string()))?;
    if file.len() > MAX_FILE {
        return Err(failed(format!("it is larger than {MAX_FILE} bytes")));
    }
    fs::read_to_string(path).map_err(|error| failed(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (String, String) {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(["a.test".to_owned()]).unwrap();
        (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
    }

    #[test]
    fn changes_are_seen_and_half_of_one_is_not_used() {
        let directory = tempfile::tempdir().unwrap();
        let (chain, key) = (directory.path().join("a.pem"), directory.path().join("a.key"));
        let pairs = BTreeSet::from([(chain.clone(), key.clone())]);
        let mut files = Files::default();
        let (certificates, problems) = files.read(&pairs);
        assert!(certificates.is_empty());
        assert!(problems[0].contains("a.pem: can't read"), "{problems:?}");

        let (first, second) = (pair(), pair());
        fs::write(&chain, &first.0).unwrap();
        fs::write(&key, &first.1).unwrap();
        let (certificates, problems) = files.read(&pairs);
        assert_eq!((certificates[0].chain.clone(), problems.len()), (first.0.clone(), 0));

        fs::write(&chain, &second.0).unwrap();
        let (certificates, problems) = files.read(&pairs);
        assert_eq!(certificates[0].chain, first.0);
        assert!(problems[0].ends_with("another certificate; the one before it stays in use"));
        assert_eq!(files.read(&pairs).1, problems, "still told while it lasts");

        fs::write(&key, &second.1).unwrap();
        let (certificates, problems) = files.read(&pairs);
        assert_eq!((certificates[0].chain.clone(), problems.len()), (second.0, 0));

        fs::remove_file(&key).unwrap();
        assert_eq!(files.read(&pairs).0, certificates);
        assert_eq!(files.read(&BTreeSet::new()), (Vec::new(), Vec::new()));
    }
}
