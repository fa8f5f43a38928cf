//! The engine's private directory: the configuration in force, the next one, sockets, log and process id.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use keel_render::{Engine, Gap, Lack, Options, Rendered, render};
use keel_route::snapshot::{Certificate, Lacking, Snapshot};
use rcgen::{CertificateParams, KeyPair};
use rustix::process::{Resource, Rlimit, geteuid, getrlimit, setrlimit};

use crate::limits::{MAX_CONNECTIONS, MAX_PLACES, SPARE_DESCRIPTORS};
use crate::process::Files;
use crate::program::{self, Error};
use crate::{check, files};

/// HAProxy's admin socket, in the directory.
pub const ADMIN_SOCKET: &str = "admin.sock";

/// A directory of an engine, and what is known of the machine.
#[derive(Clone, Debug)]
pub struct Place {
    pub engine: Engine,
    pub program: PathBuf,
    pub files: Files,
    directory: PathBuf,
    options: Options,
    /// Who may read what the engine's workers need.
    group: Option<u32>,
    /// What the log has already about what the engine can't do.
    told: Vec<Gap>,
}

impl Place {
    /// Makes the directory and finds out what there is to know.
    ///
    /// # Errors
    /// When the engine is not installed or the directory can't be made.
    pub fn new(engine: Engine, directory: &Path, workers: Option<usize>) -> Result<Self, Error> {
        let program = program::program(engine)?;
        let failed = |source| Error::Directory { path: directory.to_owned(), source };
        files::make(directory).map_err(failed)?;
        let account = account(engine);
        let mut options = program::options(engine, directory);
        options.user = account.as_ref().map(|account| account.names.clone());
        options.workers = workers;
        options.fallback = self_signed();
        options.max_connections = Some(max_connections());
        options.socket_per_thread = program::has_shards(engine, &program);
        options.admin_socket = Some(directory.join(ADMIN_SOCKET).to_string_lossy().into_owned());
        Ok(Self {
            engine,
            program,
            files: Files::new(directory),
            directory: directory.to_owned(),
            options,
            group: account.map(|account| account.group),
            told: Vec::new(),
        })
    }

    /// Where a file of the engine lies.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// The configuration in force.
    fn current(&self) -> PathBuf {
        self.path("conf")
    }

    /// The arguments that make the engine read the configuration in force.
    pub fn arguments(&self) -> Vec<std::ffi::OsString> {
        program::arguments(self.engine, &self.current())
    }

    /// Writes `snapshot` as a configuration, lets the engine check it, and puts it in the place of the one in force. If
    /// the engine does not accept it, that one stays.
    ///
    /// # Errors
    /// When it can't be written, or is not accepted.
    pub async fn prepare(
        &self,
        snapshot: &Snapshot,
        slots: Option<fn(usize) -> usize>,
    ) -> Result<Rendered, Error> {
        let (place, snapshot) = (self.clone(), snapshot.clone());
        let done = tokio::task::spawn_blocking(move || place.prepare_now(&snapshot, slots)).await;
        done.unwrap_or_else(|error| Err(self.failed(io::Error::other(error))))
    }

    fn prepare_now(
        &self,
        snapshot: &Snapshot,
        slots: Option<fn(usize) -> usize>,
    ) -> Result<Rendered, Error> {
        let options = Options { slots, ..self.options.clone() };
        let rendered = render(self.engine, snapshot, &options);
        let next = self.path("next");
        let failed = |error| self.failed(error);
        remove(&next).map_err(failed)?;
        files::write(&rendered, &next, self.group).map_err(failed)?;
        check(self.engine, &next)?;
        // The engine reads the directory when it is told to, which is not now.
        let before = self.path("before");
        remove(&before).map_err(failed)?;
        match fs::rename(self.current(), &before) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => fs::rename(&next, self.current()).map_err(failed)?,
        }
        Ok(rendered)
    }

    /// Logs what the engine can't do of what is wanted: with each change of that, and not with each of endpoints.
    pub fn tell_gaps(&mut self, gaps: &[Gap]) {
        let engine = self.engine.command();
        for gap in gaps.iter().filter(|gap| !self.told.contains(gap)) {
            let what = gap.what.what();
            tracing::warn!(place = gap.place, why = gap.why, "{engine} lacks: {what}");
        }
        gaps.clone_into(&mut self.told);
    }

    /// What the engine can't do of what is wanted, by kind.
    pub fn lacks(&self) -> Vec<Lacking> {
        let engine = self.engine;
        let lacking = |what: Lack, places| {
            let why = what.why(engine)?.to_owned();
            let what = what.what().to_owned();
            Some(Lacking { engine: engine.command().to_owned(), what, why, places })
        };
        let always = Lack::ALWAYS.iter().map(|lack| (*lack, vec!["all traffic".to_owned()]));
        let mut kinds: BTreeMap<Lack, Vec<String>> = always.collect();
        for gap in &self.told {
            let places = kinds.entry(gap.what).or_default();
            if places.len() < MAX_PLACES {
                places.push(gap.place.clone());
            }
        }
        kinds.into_iter().filter_map(|(what, places)| lacking(what, places)).collect()
    }

    /// Notes the addresses on which the engine listens, for a driver that takes over.
    pub fn note_open(&self, open: &BTreeSet<SocketAddr>) {
        let lines: String = open.iter().map(|bind| format!("{bind}\n")).collect();
        let path = self.path("engine.open");
        if let Err(error) = files::put(&path, lines.as_bytes(), files::PLAIN) {
            tracing::warn!(path = %path.display(), %error, "cannot note the open addresses");
        }
    }

    /// The addresses that an earlier driver noted.
    pub fn noted_open(&self) -> BTreeSet<SocketAddr> {
        let text = fs::read_to_string(self.path("engine.open")).unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).collect()
    }

    fn failed(&self, source: io::Error) -> Error {
        Error::Directory { path: self.directory.clone(), source }
    }
}

/// What of a snapshot a configuration is made from, or what it lacks. What is not named here changes nothing in it.
pub fn rendered_part(snapshot: &Snapshot) -> Snapshot {
    let mut part = Snapshot {
        listeners: snapshot.listeners.clone(),
        clusters: snapshot.clusters.clone(),
        tables: snapshot.tables.clone(),
        certificates: snapshot.certificates.clone(),
        challenges: snapshot.challenges.clone(),
        access_log: snapshot.access_log.clone(),
        zone: snapshot.zone.clone(),
        ..Snapshot::default()
    };
    part.clusters.values_mut().for_each(|cluster| cluster.expected = false);
    part
}

fn remove(directory: &Path) -> io::Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Who the processes are that handle traffic.
#[derive(Clone, Debug)]
struct Account {
    names: (String, String),
    group: u32,
}

/// The account that Debian's package makes for the engine. Without root there is no choice.
fn account(engine: Engine) -> Option<Account> {
    let name = match engine {
        Engine::Haproxy => "haproxy",
        Engine::Nginx => "www-data",
    };
    if !geteuid().is_root() {
        return None;
    }
    let entry = |path: &str| -> Option<Vec<String>> {
        let text = fs::read_to_string(path).ok()?;
        let line = text.lines().find(|line| line.split(':').next() == Some(name))?;
        Some(line.split(':').map(str::to_owned).collect())
    };
    entry("/etc/passwd")?;
    let group = entry("/etc/group")?.get(2)?.parse().ok()?;
    Some(Account { names: (name.to_owned(), name.to_owned()), group })
}

/// Shown at TLS listeners while there is no other certificate.
fn self_signed() -> Option<Certificate> {
    let key = KeyPair::generate().ok()?;
    let signed =
        CertificateParams::new(vec!["keel.invalid".to_owned()]).ok()?.self_signed(&key).ok()?;
    Some(Certificate { names: Vec::new(), chain: signed.pem(), key: key.serialize_pem() })
}

/// Allows engines as many file descriptors as the system lets us, and says for how many connections that is enough.
fn max_connections() -> u32 {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let raised = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).is_ok();
    let descriptors = if raised { maximum } else { current }.unwrap_or(u64::MAX);
    // One for each side, and one for HAProxy's share of pipes.
    let connections = descriptors.saturating_sub(SPARE_DESCRIPTORS) / 3;
    u32::try_from(connections.clamp(64, MAX_CONNECTIONS)).unwrap_or(64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_configuration_that_is_not_accepted_leaves_the_one_in_force() {
        let directory = tempfile::tempdir().unwrap();
        let Ok(place) = Place::new(Engine::Haproxy, directory.path(), Some(1)) else {
            eprintln!("skipped: no haproxy");
            return;
        };
        place.prepare(&Snapshot::default(), None).await.unwrap();
        let main = place.current().join(Engine::Haproxy.main_file());
        let good = fs::read_to_string(&main).unwrap();
        // A key that does not belong to the certificate: only the engine can tell.
        let (mut one, two) = (self_signed().unwrap(), self_signed().unwrap());
        one.key = two.key;
        let listener = keel_route::snapshot::Listener {
            tls: Some(keel_route::snapshot::ListenerTls::default()),
            ..keel_route::snapshot::Listener::default()
        };
        let snapshot = Snapshot {
            listeners: vec![listener],
            certificates: vec![one].into(),
            ..Snapshot::default()
        };
        let error = place.prepare(&snapshot, None).await.unwrap_err();
        assert!(matches!(error, Error::Refused { .. }), "{error}");
        assert_eq!(fs::read_to_string(&main).unwrap(), good);
        place.prepare(&Snapshot::default(), None).await.unwrap();
    }
}
