//! Certificates in files of users: read, checked, and read again when they change.
//!
//! A file that can't be used is told once, whichever server finds it so, and the last good certificate stays in use, also
//! when the server is started anew. Whoever renews a certificate writes two files one after the other; a pair that does not
//! match is therefore told when that lasts.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use keel_model::{EventKind, RouteTls, Rule, ServiceName, StackName};
use keel_route::rule_text::rule_hosts;
use keel_route::snapshot::Certificate;
use keel_store::Store;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

use super::Credentials;
use super::kept::{Kept, Pair};
use crate::Error;
use crate::events::EventLog;
use crate::world::{World, WorldReader};

/// Time between two looks at the files.
const POLL: Duration = Duration::from_secs(2);
/// Largest file of a certificate or key, in bytes.
const MAX_FILE: u64 = 1 << 20;

/// How what is told of files begins that can't be used.
const TROUBLE: &str = "can't use a certificate: ";

/// Whose routes use a pair.
type Owner = (StackName, ServiceName);

/// Reads certificates from files.
pub struct CertificateFiles {
    /// Which files are wanted.
    pub worlds: Arc<WorldReader>,
    /// Where people are told.
    pub events: Arc<EventLog>,
    /// Where certificates are put.
    pub credentials: Arc<Credentials>,
    known: BTreeMap<Pair, Known>,
    kept: Kept,
}

/// What is known of one pair.
#[derive(Default)]
struct Known {
    stamps: Option<(Stamp, Stamp)>,
    /// For which hosts it was looked at.
    hosts: BTreeSet<String>,
    good: Option<Certificate>,
    trouble: Option<Trouble>,
    /// The trouble that an earlier server has told, until it is known how it stands now.
    told_before: Option<String>,
}

/// What is wrong with a pair.
struct Trouble {
    reason: String,
    since: Instant,
    was_told: bool,
}

/// Tells versions of a file apart without reading it.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

impl CertificateFiles {
    /// One that has not looked yet, but knows what an earlier server has read.
    ///
    /// # Errors
    /// When the store can't be read.
    pub async fn new(
        worlds: Arc<WorldReader>,
        events: Arc<EventLog>,
        credentials: Arc<Credentials>,
        store: Arc<dyn Store>,
    ) -> Result<Self, Error> {
        let kept = Kept::load(store).await?;
        let known = |certificate: &Certificate| Known {
            good: Some(certificate.clone()),
            ..Known::default()
        };
        let known = kept.known().iter().map(|(pair, good)| (pair.clone(), known(good))).collect();
        Ok(Self { worlds, events, credentials, known, kept })
    }

    /// Looks at all files now. Reads at most as many bytes as the files may have; blocks.
    pub fn look(&mut self) {
        self.look_at(Instant::now());
    }

    fn look_at(&mut self, now: Instant) {
        let wanted = wanted(&self.worlds.current());
        self.known.retain(|pair, _| wanted.contains_key(pair));
        for (pair, owner) in &wanted {
            let known = self.known.entry(pair.clone()).or_default();
            if known.is_new() {
                known.told_before = recall(&self.events, pair, &owner.owner);
            }
            let Wanted { owner, hosts } = owner;
            if let Some(message) = known.look(pair, hosts, now) {
                let (stack, service) = owner;
                tracing::warn!("{message}");
                let kind = EventKind::Platform;
                self.events.add(kind, Some(stack), Some(service), None, message);
            }
        }
        self.credentials.set_files(self.good().into_values().collect());
    }

    /// Keeps what is in use for the next server.
    pub async fn keep(&mut self) {
        let good = self.good();
        self.kept.keep(good).await;
    }

    fn good(&self) -> BTreeMap<Pair, Certificate> {
        let all = self.known.iter();
        all.filter_map(|(pair, known)| Some((pair.clone(), known.good.clone()?))).collect()
    }

    /// Looks again with every change of a stack, and every few seconds, until dropped.
    pub async fn run(mut self) {
        let mut worlds = self.worlds.subscribe();
        loop {
            tokio::select! {
                changed = worlds.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(POLL) => {}
            }
            worlds.borrow_and_update();
            let looked = tokio::task::spawn_blocking(move || {
                self.look();
                self
            });
            match looked.await {
                Ok(again) => {
                    self = again;
                    self.keep().await;
                }
                Err(error) => {
                    tracing::error!(%error, "certificates are not read any more");
                    return;
                }
            }
        }
    }
}

/// What an earlier server has told last of these files, if it was trouble.
fn recall(events: &EventLog, (cert, key): &Pair, (stack, service): &Owner) -> Option<String> {
    let names = [cert, key].map(|path| path.display().to_string());
    let last = events.newest(|event| {
        (event.stack.as_ref(), event.service.as_ref()) == (Some(stack), Some(service))
            && names.iter().any(|name| event.message.contains(name))
    });
    last.map(|event| event.message).filter(|message| message.starts_with(TROUBLE))
}

/// What is wanted of a pair.
struct Wanted {
    /// One of those who name it.
    owner: Owner,
    /// The hosts of all their routes.
    hosts: BTreeSet<String>,
}

/// The files that routes name.
fn wanted(world: &World) -> BTreeMap<Pair, Wanted> {
    let mut pairs = BTreeMap::new();
    for (name, stack) in &world.stacks {
        let services = stack.record.iter().flat_map(|record| &record.value.stack.services);
        for (service, definition) in services {
            for route in &definition.routes {
                if let Some(RouteTls::Files { cert, key }) = &route.tls {
                    let owner = (name.clone(), service.clone());
                    let wanted = pairs
                        .entry((cert.clone(), key.clone()))
                        .or_insert_with(|| Wanted { owner, hosts: BTreeSet::new() });
                    let hosts = rule_hosts(&route.rule).into_iter().filter(|host| *host != "*");
                    wanted.hosts.extend(hosts.map(str::to_owned));
                }
            }
        }
    }
    pairs
}

impl Known {
    /// Was never looked at.
    fn is_new(&self) -> bool {
        self.stamps.is_none() && self.trouble.is_none()
    }

    /// Reads the files if they changed; what people should be told, if anything.
    fn look(
        &mut self,
        (cert, key): &Pair,
        hosts: &BTreeSet<String>,
        now: Instant,
    ) -> Option<String> {
        let stamps = Stamp::of(cert).zip(Stamp::of(key));
        let changed = stamps.is_none() || stamps != self.stamps || *hosts != self.hosts;
        if changed {
            self.stamps = stamps;
            self.hosts.clone_from(hosts);
            match self.load(cert, key) {
                Ok(certificate) => {
                    let renewed = self.good.as_ref().is_some_and(|old| *old != certificate);
                    let healed = self.trouble.take().is_some_and(|trouble| trouble.was_told)
                        | self.told_before.take().is_some();
                    let is_new = self.good.as_ref() != Some(&certificate);
                    let flaw = flaw(&certificate.chain, &self.hosts).filter(|_| is_new);
                    self.good = Some(certificate);
                    return flaw
                        .map(|flaw| {
                            let path = cert.display();
                            format!(
                                "the certificate {path} is used, but clients will refuse it: {flaw}"
                            )
                        })
                        .or_else(|| {
                            (renewed || healed).then(|| {
                                format!("the certificate {} was read again", cert.display())
                            })
                        });
                }
                Err(reason) => {
                    let known = self.trouble.as_ref().is_some_and(|old| old.reason == reason);
                    if !known {
                        self.trouble = Some(Trouble { reason, since: now, was_told: false });
                    }
                }
            }
        }
        // Looks come with every change of a stack, too. Without a certificate nothing is gained by waiting.
        let lasts = |trouble: &Trouble| self.good.is_none() || now >= trouble.since + POLL;
        let trouble =
            self.trouble.as_mut().filter(|trouble| !trouble.was_told && lasts(trouble))?;
        trouble.was_told = true;
        let reason = &trouble.reason;
        let meanwhile = match self.good {
            Some(_) => "the one before stays in use",
            None => "a self-signed one is shown instead",
        };
        let message = format!("{TROUBLE}{reason}; {meanwhile}");
        // Long messages of before are cut.
        let known = self.told_before.take().is_some_and(|before| message.starts_with(&before));
        (!known).then_some(message)
    }
}

impl Known {
    /// Reads the pair; an error if it can't be used, or is worse than what is in use.
    fn load(&self, cert: &Path, key: &Path) -> Result<Certificate, String> {
        let certificate = load(cert, key)?;
        let better =
            |good: &Certificate| *good != certificate && flaw(&good.chain, &self.hosts).is_none();
        match flaw(&certificate.chain, &self.hosts) {
            Some(flaw) if self.good.as_ref().is_some_and(better) => {
                Err(format!("{}: {flaw}", cert.display()))
            }
            _ => Ok(certificate),
        }
    }
}

fn flaw(chain: &str, hosts: &BTreeSet<String>) -> Option<String> {
    let hosts: Vec<&str> = hosts.iter().map(String::as_str).collect();
    keel_acme::flaw(chain, &hosts, crate::clock::now())
}

/// What speaks against a certificate in files for a route with this rule: it can't be used, or clients will refuse it.
#[must_use]
pub fn certificate_flaw(cert: &Path, key: &Path, rule: &Rule) -> Option<String> {
    match load(cert, key) {
        Err(reason) => Some(reason),
        Ok(certificate) => {
            let hosts = rule_hosts(rule).into_iter().filter(|host| *host != "*");
            let flaw = flaw(&certificate.chain, &hosts.map(str::to_owned).collect())?;
            Some(format!("{}: {flaw}", cert.display()))
        }
    }
}

impl Stamp {
    fn of(path: &Path) -> Option<Self> {
        let file = fs::metadata(path).ok()?;
        Some(Self {
            device: file.dev(),
            inode: file.ino(),
            size: file.size(),
            modified: (file.mtime(), file.mtime_nsec()),
        })
    }
}

/// Reads a certificate with its key.
fn load(cert: &Path, key: &Path) -> Result<Certificate, String> {
    let (chain, secret) = (read(cert)?, read(key)?);
    check(&chain, &secret).map_err(|reason| match reason {
        Reason::Certificate(reason) => format!("{}: {reason}", cert.display()),
        Reason::Key(reason) => format!("{}: {reason}", key.display()),
        Reason::Pair => format!(
            "the key in {} does not belong to the certificate in {}",
            key.display(),
            cert.display()
        ),
    })?;
    Ok(Certificate { names: Vec::new(), chain, key: secret })
}

fn read(path: &Path) -> Result<String, String> {
    let failed = |reason: &dyn std::fmt::Display| format!("{}: {reason}", path.display());
    let size = fs::metadata(path).map_err(|e| failed(&e))?.len();
    if size > MAX_FILE {
        return Err(failed(&format!("it is larger than {} MiB", MAX_FILE >> 20)));
    }
    fs::read_to_string(path).map_err(|e| failed(&e))
}

enum Reason {
    Certificate(String),
    Key(String),
    Pair,
}

/// Whether a chain and a key in PEM form can be used together.
fn check(chain: &str, key: &str) -> Result<(), Reason> {
    let certificates: Result<Vec<_>, _> =
        CertificateDer::pem_slice_iter(chain.as_bytes()).collect();
    let certificates = certificates.map_err(|e| Reason::Certificate(e.to_string()))?;
    if certificates.is_empty() {
        return Err(Reason::Certificate("there is no certificate in it".to_owned()));
    }
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|e| match e {
        rustls::pki_types::pem::Error::NoItemsFound => {
            Reason::Key("there is no private key in it".to_owned())
        }
        other => Reason::Key(other.to_string()),
    })?;
    match CertifiedKey::from_der(certificates, key, &default_provider()) {
        Ok(_) => Ok(()),
        Err(rustls::Error::InconsistentKeys(_)) => Err(Reason::Pair),
        Err(rustls::Error::InvalidCertificate(error)) => {
            Err(Reason::Certificate(format!("it is not a certificate: {error:?}")))
        }
        Err(other) => Err(Reason::Key(other.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use keel_store::{RedbStore, Transaction};

    use super::*;
    use crate::tests::{blank_service, plain_record, plain_route, plain_stack};

    struct Files {
        directory: tempfile::TempDir,
    }

    impl Files {
        fn new() -> Self {
            Self { directory: tempfile::tempdir().unwrap() }
        }

        fn pair(&self) -> Pair {
            (self.directory.path().join("cert.pem"), self.directory.path().join("key.pem"))
        }

        /// Writes beside and renames, as tools do; every version has an inode of its own.
        fn write(&self, name: &str, text: &str) {
            let path = self.directory.path().join(name);
            let beside = path.with_extension("new");
            fs::write(&beside, text).unwrap();
            fs::rename(beside, path).unwrap();
        }
    }

    fn made() -> (String, String) {
        let made = rcgen::generate_simple_self_signed(["a.de".to_owned()]).unwrap();
        (made.cert.pem(), made.signing_key.serialize_pem())
    }

    #[test]
    fn a_pair_is_read_checked_and_read_again() {
        let files = Files::new();
        let ((cert, key), (other_cert, other_key)) = (made(), made());
        let mut known = Known::default();
        let mut now = Instant::now();
        let told = known.look(&files.pair(), &BTreeSet::new(), now).expect("nothing is there yet");
        assert!(told.contains("cert.pem") && told.contains("self-signed"), "{told}");
        assert_eq!(known.look(&files.pair(), &BTreeSet::new(), now), None, "told once");

        files.write("cert.pem", &cert);
        files.write("key.pem", &key);
        assert!(
            known.look(&files.pair(), &BTreeSet::new(), now).unwrap().contains("was read again")
        );
        assert_eq!(known.good.as_ref().unwrap().chain, cert);
        assert_eq!(known.look(&files.pair(), &BTreeSet::new(), now), None, "nothing changed");

        // Half of a renewal is no trouble unless it stays that way.
        files.write("cert.pem", &other_cert);
        assert_eq!(known.look(&files.pair(), &BTreeSet::new(), now), None);
        files.write("key.pem", &other_key);
        assert!(
            known.look(&files.pair(), &BTreeSet::new(), now).unwrap().contains("was read again")
        );
        assert_eq!(known.good.as_ref().unwrap().key, other_key);

        files.write("key.pem", &key);
        assert_eq!(known.look(&files.pair(), &BTreeSet::new(), now), None);
        now += POLL / 2;
        assert_eq!(known.look(&files.pair(), &BTreeSet::new(), now), None, "a change of a stack");
        now += POLL / 2;
        let told = known.look(&files.pair(), &BTreeSet::new(), now).unwrap();
        assert!(told.contains("does not belong") && told.contains("stays in use"), "{told}");
        assert_eq!(known.good.as_ref().unwrap().key, other_key, "the last good one");
        assert_eq!(known.look(&files.pair(), &BTreeSet::new(), now), None, "told once");
    }

    #[test]
    fn what_clients_would_refuse_takes_no_ones_place() {
        let files = Files::new();
        let made = |name: &str, year: i32| {
            let key = rcgen::KeyPair::generate().unwrap();
            let mut params = rcgen::CertificateParams::new([name.to_owned()]).unwrap();
            params.not_after = rcgen::date_time_ymd(year, 1, 1);
            files.write("key.pem", &key.serialize_pem());
            files.write("cert.pem", &params.self_signed(&key).unwrap().pem());
        };
        let hosts = BTreeSet::from(["a.de".to_owned()]);
        let (mut known, mut now) = (Known::default(), Instant::now());
        made("b.de", 4000);
        let told = known.look(&files.pair(), &hosts, now).expect("the first one is used");
        assert!(told.contains("is used, but clients will refuse it: it does not cover a.de"));
        assert!(known.good.is_some());
        made("a.de", 4000);
        assert!(known.look(&files.pair(), &hosts, now).unwrap().contains("was read again"));
        let good = known.good.clone();
        for (name, year, reason) in [
            ("a.de", 2001, "cert.pem: it expired on 2001-01-01; the one before stays in use"),
            ("b.de", 4000, "cert.pem: it does not cover a.de; the one before stays in use"),
        ] {
            made(name, year);
            assert_eq!(known.look(&files.pair(), &hosts, now), None);
            now += POLL;
            let told = known.look(&files.pair(), &hosts, now).unwrap();
            assert!(told.ends_with(reason), "{told}");
            assert_eq!(known.good, good);
        }
        let hosts = BTreeSet::from(["b.de".to_owned()]);
        assert!(known.look(&files.pair(), &hosts, now).unwrap().contains("was read again"));
        assert_ne!(known.good, good, "the route wants another host now");
    }

    #[tokio::test]
    async fn a_new_server_goes_on_with_what_was_good() {
        let files = Files::new();
        let (cert, key) = made();
        files.write("cert.pem", &cert);
        files.write("key.pem", &key);
        let (cert_path, key_path) = files.pair();
        let mut route = plain_route("r", keel_model::Rule::default(), "web");
        route.tls = Some(RouteTls::Files { cert: cert_path, key: key_path });
        let mut definition = blank_service();
        definition.routes.push(route);
        let services = BTreeMap::from([(ServiceName::new("a").unwrap(), definition)]);
        let record = plain_record(plain_stack("s", services, BTreeMap::new()));
        let store: Arc<dyn Store> = Arc::new(RedbStore::in_memory().unwrap());
        let put = Transaction::new()
            .put(crate::keys::record(&record.stack.name), serde_json::to_vec(&record).unwrap());
        let _ = store.commit(put).await.unwrap();
        let events = Arc::new(EventLog::load(&*store).await.unwrap());
        let start = || async {
            let worlds = Arc::new(WorldReader::new(store.clone()).await.unwrap());
            let events = events.clone();
            let credentials = Arc::new(Credentials::default());
            let read =
                CertificateFiles::new(worlds, events, credentials.clone(), store.clone()).await;
            let mut read = read.unwrap();
            let now = Instant::now();
            read.look_at(now);
            read.look_at(now + POLL);
            read.keep().await;
            credentials.certificates()
        };
        let told = || events.after(0).len();
        assert_eq!(start().await[0].chain, cert);
        assert_eq!(told(), 0);
        files.write("cert.pem", "broken");
        assert_eq!(start().await[0].chain, cert, "although the file is broken");
        assert_eq!(start().await[0].chain, cert);
        assert_eq!(told(), 1, "by the first of the two servers");
        let (other, other_key) = made();
        files.write("cert.pem", &other);
        files.write("key.pem", &other_key);
        assert_eq!(start().await[0].chain, other);
        assert_eq!(told(), 2, "and that it was read again");
        files.write("cert.pem", "broken");
        assert_eq!(start().await[0].chain, other);
        assert_eq!(told(), 3, "broken once more is news");
        files.write("cert.pem", &other);
        assert_eq!(start().await[0].chain, other);
        assert_eq!(told(), 4, "mended while no server looked");
    }

    #[test]
    fn what_is_wrong_is_said() {
        let (cert, key) = made();
        let reason = |cert: &str, key: &str| match check(cert, key) {
            Ok(()) => "good".to_owned(),
            Err(Reason::Certificate(reason)) => format!("certificate: {reason}"),
            Err(Reason::Key(reason)) => format!("key: {reason}"),
            Err(Reason::Pair) => "pair".to_owned(),
        };
        assert_eq!(reason(&cert, &key), "good");
        assert_eq!(reason("", &key), "certificate: there is no certificate in it");
        assert_eq!(reason(&cert, ""), "key: there is no private key in it");
        assert_eq!(reason(&cert, &made().1), "pair");
        let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        assert!(reason(broken, &key).starts_with("certificate: it is not a certificate"));
    }
}
