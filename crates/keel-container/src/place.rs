//! Where the engine is: as the tools that users know find it.
//!
//! In this order: `DOCKER_HOST`; the context that `DOCKER_CONTEXT` or the client's configuration names; the sockets
//! that Docker and Podman usually have, those of this user after those of the machine.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::Error;

/// Where an engine is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// `unix:///…` or `tcp://host:port`.
    pub url: String,
    /// What named it, for people: `DOCKER_HOST`, `the context "x"`, `the usual place`.
    pub named_by: String,
    /// Certificates for it.
    pub tls: Option<Tls>,
}

impl Place {
    /// What answers at `url` (`unix:///…` or `tcp://host:port`), without TLS.
    #[must_use]
    pub fn at(url: &str, named_by: &str) -> Self {
        Self { url: url.to_owned(), named_by: named_by.to_owned(), tls: None }
    }
}

/// Files for a connection with TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// Directory of `ca.pem`, `cert.pem` and `key.pem`.
    pub directory: PathBuf,
}

/// What is looked at to find an engine.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    variables: BTreeMap<&'static str, String>,
    is_root: bool,
}

/// Variables that are read.
const VARIABLES: [&str; 7] = [
    "DOCKER_HOST",
    "DOCKER_CONTEXT",
    "DOCKER_CONFIG",
    "DOCKER_TLS_VERIFY",
    "DOCKER_CERT_PATH",
    "XDG_RUNTIME_DIR",
    "HOME",
];

/// `config.json` of the client, as far as it matters here.
#[derive(Default, Deserialize)]
struct Configuration {
    #[serde(rename = "currentContext", default)]
    current_context: String,
}

/// `meta.json` of a context.
#[derive(Deserialize)]
struct Meta {
    #[serde(rename = "Endpoints", default)]
    endpoints: BTreeMap<String, MetaEndpoint>,
}

#[derive(Deserialize)]
struct MetaEndpoint {
    #[serde(rename = "Host", default)]
    host: String,
}

impl Surroundings {
    /// Those of this process.
    #[must_use]
    pub fn of_this_process() -> Self {
        let set = |name: &&'static str| {
            Some((*name, std::env::var(name).ok().filter(|text| !text.is_empty())?))
        };
        let is_root = rustix::process::geteuid().is_root();
        Self { variables: VARIABLES.iter().filter_map(set).collect(), is_root }
    }

    fn variable(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str)
    }

    /// The directory of the client's configuration.
    #[must_use]
    pub fn configuration_dir(&self) -> Option<PathBuf> {
        let own = self.variable("DOCKER_CONFIG").map(PathBuf::from);
        own.or_else(|| Some(Path::new(self.variable("HOME")?).join(".docker")))
    }

    /// Where the engine is, by what the user says, or by which of the usual sockets is there.
    ///
    /// # Errors
    /// When what the user says can't be understood, or nothing is there.
    pub fn find(&self) -> Result<Place, Error> {
        if let Some(url) = self.variable("DOCKER_HOST") {
            return checked(Place {
                url: url.to_owned(),
                named_by: "DOCKER_HOST".to_owned(),
                tls: self.variable_tls(),
            });
        }
        let configured = || {
            let file = self.configuration_dir()?.join("config.json");
            let text = fs::read_to_string(file).ok()?;
            Some(serde_json::from_str::<Configuration>(&text).ok()?.current_context)
        };
        let context = self.variable("DOCKER_CONTEXT").map(str::to_owned).or_else(configured);
        if let Some(name) = context.filter(|name| !name.is_empty() && name != "default") {
            return checked(self.context(&name)?);
        }
        let sockets = self.usual_sockets();
        let found = sockets.iter().find(|path| path.exists()).map(|path| Place {
            url: format!("unix://{}", path.display()),
            named_by: "the usual place".to_owned(),
            tls: None,
        });
        found.ok_or(Error::NoEngine { looked_at: sockets })
    }

    fn variable_tls(&self) -> Option<Tls> {
        self.variable("DOCKER_TLS_VERIFY")?;
        let directory = self.variable("DOCKER_CERT_PATH").map(PathBuf::from);
        Some(Tls { directory: directory.or_else(|| self.configuration_dir())? })
    }

    fn context(&self, name: &str) -> Result<Place, Error> {
        let unknown = |reason: String| Error::Context { name: name.to_owned(), reason };
        let dir = self
            .configuration_dir()
            .ok_or_else(|| unknown("neither DOCKER_CONFIG nor HOME is set".into()))?
            .join("contexts");
        // The client keeps each context below the SHA-256 of its name.
        let id: String = Sha256::digest(name).iter().map(|byte| format!("{byte:02x}")).collect();
        let file = dir.join("meta").join(&id).join("meta.json");
        let text = fs::read_to_string(&file)
            .map_err(|error| unknown(format!("{}: {error}", file.display())))?;
        let meta: Meta = serde_json::from_str(&text)
            .map_err(|error| unknown(format!("{}: {error}", file.display())))?;
        let endpoint = meta.endpoints.get("docker").filter(|endpoint| !endpoint.host.is_empty());
        let endpoint = endpoint.ok_or_else(|| unknown("it names no engine".into()))?;
        let directory = dir.join("tls").join(&id).join("docker");
        let tls = directory.join("ca.pem").exists().then_some(Tls { directory });
        let named_by = format!("the context {name:?}");
        Ok(Place { url: endpoint.host.clone(), named_by, tls })
    }

    fn usual_sockets(&self) -> Vec<PathBuf> {
        let mut all = vec![PathBuf::from("/var/run/docker.sock")];
        let own = self.variable("XDG_RUNTIME_DIR").map(Path::new).filter(|_| !self.is_root);
        all.extend(own.map(|dir| dir.join("docker.sock")));
        all.push(PathBuf::from("/run/podman/podman.sock"));
        all.extend(own.map(|dir| dir.join("podman/podman.sock")));
        all
    }
}

/// Refuses what can't be spoken to.
fn checked(place: Place) -> Result<Place, Error> {
    let Place { url, named_by, .. } = &place;
    let refuse = |reason: &str| {
        let (url, named_by) = (url.clone(), named_by.clone());
        Err(Error::Place { url, named_by, reason: reason.to_owned() })
    };
    match url.split_once("://") {
        Some(("unix", path)) if path.starts_with('/') => Ok(place),
        Some(("tcp" | "http" | "https", host)) if !host.is_empty() => Ok(place),
        Some(("ssh", _)) => refuse(
            "instances are served by the load balancer of their own machine; run `keel server` on that machine",
        ),
        _ => refuse("write it as unix:///path/of/the/socket or tcp://host:port"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn surroundings(variables: &[(&'static str, &str)]) -> Surroundings {
        let variables = variables.iter().map(|(name, text)| (*name, (*text).to_owned())).collect();
        Surroundings { variables, is_root: false }
    }

    #[test]
    fn what_the_user_says_comes_first() {
        let found = surroundings(&[("DOCKER_HOST", "unix:///x/y.sock"), ("DOCKER_CONTEXT", "no")]);
        let place = found.find().unwrap();
        assert_eq!((place.url.as_str(), place.tls), ("unix:///x/y.sock", None));
        let found = surroundings(&[
            ("DOCKER_HOST", "tcp://10.0.0.1:2376"),
            ("DOCKER_TLS_VERIFY", "1"),
            ("DOCKER_CERT_PATH", "/certs"),
        ]);
        assert_eq!(found.find().unwrap().tls, Some(Tls { directory: "/certs".into() }));
    }

    #[test]
    fn a_context_is_read_as_the_client_keeps_it() {
        let home = tempfile::tempdir().unwrap();
        let docker = home.path().join(".docker");
        let name = "mine";
        let digest: String =
            Sha256::digest(name).iter().map(|byte| format!("{byte:02x}")).collect();
        let meta = docker.join("contexts/meta").join(&digest);
        fs::create_dir_all(&meta).unwrap();
        let text = r#"{"Name":"mine","Endpoints":{"docker":{"Host":"unix:///run/mine.sock"}}}"#;
        fs::write(meta.join("meta.json"), text).unwrap();
        let at_home = ("HOME", home.path().to_str().unwrap());
        let place = surroundings(&[at_home, ("DOCKER_CONTEXT", "mine")]).find().unwrap();
        assert_eq!(place.url, "unix:///run/mine.sock");
        fs::write(docker.join("config.json"), r#"{"currentContext":"mine"}"#).unwrap();
        assert_eq!(surroundings(&[at_home]).find().unwrap(), place);
        let error = surroundings(&[at_home, ("DOCKER_CONTEXT", "other")]).find().unwrap_err();
        assert!(error.to_string().contains("\"other\""), "{error}");
    }

    #[test]
    fn what_can_not_be_spoken_to_is_refused() {
        for (url, reason) in [
            ("ssh://me@there", "run `keel server` on that machine"),
            ("unix://relative", "unix:///path"),
            ("npipe:////./pipe/docker_engine", "unix:///path"),
            ("tcp://", "tcp://host:port"),
            ("what", "unix:///path"),
        ] {
            let error = surroundings(&[("DOCKER_HOST", url)]).find().unwrap_err().to_string();
            assert!(error.contains(reason) && error.contains("DOCKER_HOST"), "{error}");
        }
    }

    #[test]
    fn the_usual_places_depend_on_who_asks() {
        let own = surroundings(&[("XDG_RUNTIME_DIR", "/run/user/7")]);
        let sockets = own.usual_sockets();
        assert!(sockets.contains(&PathBuf::from("/run/user/7/podman/podman.sock")));
        let root = Surroundings { is_root: true, ..own };
        assert_eq!(root.usual_sockets().len(), 2);
    }
}
