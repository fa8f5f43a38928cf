//! Containers that `docker compose` has started, as the engine knows them.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use bollard::models::{ContainerInspectResponse, PortBinding, PortMap};
use bollard::query_parameters::ListContainersOptionsBuilder;
use keel_model::{HeldPort, MountSource, Spec, Timestamp};

use crate::answer::understood;
use crate::{Engine, Error};

/// Which project.
const PROJECT: &str = "com.docker.compose.project";
/// Which of its services.
const SERVICE: &str = "com.docker.compose.service";
/// Which of the containers of that.
const NUMBER: &str = "com.docker.compose.container-number";
/// `True` for what `docker compose run` has made.
const ONE_OFF: &str = "com.docker.compose.oneoff";

/// What a container does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// It runs.
    Running,
    /// It stands still.
    Paused,
    /// It has ended, and the engine is about to start it again.
    Restarting,
    /// It has ended with this code.
    Exited(i64),
    /// It was never started.
    Created,
    /// It is on its way out, or broken.
    Other(String),
}

/// A file system that is mounted in a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundMount {
    /// The name of a volume, or the path of the host that is bound.
    pub source: String,
    /// Where.
    pub target: PathBuf,
}

/// A container of a project.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The engine's id.
    pub id: String,
    /// The name that people know.
    pub name: String,
    /// The service that it was started for.
    pub service: String,
    /// Which of its containers it is.
    pub number: u64,
    /// It was made by `docker compose run`.
    pub one_off: bool,
    /// What it does.
    pub state: State,
    /// Its main process, while it runs.
    pub pid: Option<u32>,
    /// The content of its image (`sha256:…`).
    pub image: String,
    /// When it was made, as the engine writes it.
    pub created: String,
    /// When it was started last.
    pub started: Option<Timestamp>,
    /// Its environment, with that of its image.
    pub environment: BTreeMap<String, String>,
    /// Its entrypoint.
    pub entrypoint: Vec<String>,
    /// Its command.
    pub command: Vec<String>,
    /// Volumes and binds.
    pub mounts: Vec<FoundMount>,
    /// Ports of the host that the engine holds for it.
    pub holds: Vec<HeldPort>,
    /// It has the network stack of the host.
    pub host_network: bool,
}

/// The containers of a project, by service and number.
///
/// # Errors
/// When the engine can't be asked.
pub async fn project(engine: &Engine, name: &str) -> Result<Vec<Found>, Error> {
    let client = engine.client().await?;
    let label = format!("{PROJECT}={name}");
    let filters = HashMap::from([("label", vec![label.as_str()])]);
    let options = ListContainersOptionsBuilder::default().all(true).filters(&filters).build();
    let listed = understood(client.list_containers(Some(options)).await);
    let mut all = Vec::new();
    for container in listed.map_err(|error| engine.failed(&error))? {
        let id = container.id.unwrap_or_default();
        let seen = understood(client.inspect_container(&id, None).await);
        match seen.map_err(|error| engine.failed(&error)) {
            Ok(seen) => all.push(found(&seen)),
            // It has just gone.
            Err(Error::NotFound { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    all.sort_by(|a, b| (&a.service, a.number, &a.name).cmp(&(&b.service, b.number, &b.name)));
    Ok(all)
}

fn found(seen: &ContainerInspectResponse) -> Found {
    let config = seen.config.clone().unwrap_or_default();
    let labels = config.labels.unwrap_or_default();
    let label = |key: &str| labels.get(key).map(String::as_str);
    let number = label(NUMBER).and_then(|text| text.parse().ok()).unwrap_or(1);
    let variables = config.env.unwrap_or_default();
    let variables = variables.iter().filter_map(|entry| entry.split_once('='));
    let mode = seen.host_config.as_ref().and_then(|host| host.network_mode.as_deref());
    let image = seen.image.clone().unwrap_or_default();
    Found {
        id: seen.id.clone().unwrap_or_default(),
        name: seen.name.as_deref().unwrap_or_default().trim_start_matches('/').to_owned(),
        service: label(SERVICE).unwrap_or_default().to_owned(),
        number,
        one_off: label(ONE_OFF).is_some_and(|text| text.eq_ignore_ascii_case("true")),
        state: state(seen),
        pid: seen.state.as_ref().and_then(|s| u32::try_from(s.pid?).ok()).filter(|pid| *pid > 0),
        image: crate::images::with_algorithm(&image),
        created: seen.created.as_ref().map(ToString::to_string).unwrap_or_default(),
        started: crate::runtime::begun(seen),
        environment: variables.map(|(key, value)| (key.to_owned(), value.to_owned())).collect(),
        entrypoint: config.entrypoint.unwrap_or_default(),
        command: config.cmd.unwrap_or_default(),
        mounts: mounts(seen),
        holds: held_ports(seen),
        host_network: mode == Some("host"),
    }
}

fn state(seen: &ContainerInspectResponse) -> State {
    let state = seen.state.clone().unwrap_or_default();
    let status = state.status.map(|status| status.to_string()).unwrap_or_default();
    match status.as_str() {
        _ if state.restarting == Some(true) => State::Restarting,
        _ if state.paused == Some(true) => State::Paused,
        // Podman says that it runs no more while it waits for its end.
        _ if state.running == Some(true) || status == "stopping" => State::Running,
        "exited" | "stopped" => State::Exited(state.exit_code.unwrap_or(0)),
        "created" | "configured" => State::Created,
        _ => State::Other(status),
    }
}

fn mounts(seen: &ContainerInspectResponse) -> Vec<FoundMount> {
    let mounts = seen.mounts.iter().flatten();
    let mounts = mounts.filter_map(|mount| {
        let name = mount.name.clone().filter(|name| !name.is_empty());
        let source = name.or_else(|| mount.source.clone())?;
        Some(FoundMount { source, target: mount.destination.clone()?.into() })
    });
    mounts.collect()
}

/// The TCP ports of the host that the engine holds for a container while it runs.
pub(crate) fn held_ports(seen: &ContainerInspectResponse) -> Vec<HeldPort> {
    let open = seen.network_settings.as_ref().and_then(|settings| settings.ports.as_ref());
    let asked = seen.host_config.as_ref().and_then(|host| host.port_bindings.as_ref());
    // One that has ended has none open, and gets those again that it names.
    let open = open.map(of_map).filter(|open| !open.is_empty());
    let mut all = open.or_else(|| asked.map(of_map)).unwrap_or_default();
    all.sort();
    all.dedup();
    all
}

fn of_map(map: &PortMap) -> Vec<HeldPort> {
    let held = |target: u16, at: &PortBinding| {
        let port = at.host_port.as_ref()?.parse().ok().filter(|port| *port > 0)?;
        let ip = at.host_ip.as_deref().unwrap_or_default();
        let ip = ip.parse().unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        Some(HeldPort { ip, port, target })
    };
    let tcp = map.iter().filter_map(|(key, at)| {
        let target: u16 = key.strip_suffix("/tcp")?.parse().ok()?;
        Some((target, at.as_ref()?))
    });
    tcp.flat_map(|(target, at)| at.iter().filter_map(move |at| held(target, at))).collect()
}

/// The volumes that a container has where its spec names none, by target.
pub(crate) fn volumes(spec: &Spec, seen: &ContainerInspectResponse) -> BTreeMap<PathBuf, String> {
    let is_anonymous = |target: &PathBuf| {
        let mut mounts = spec.mounts.iter();
        mounts.any(|mount| mount.target == *target && mount.source == MountSource::Anonymous)
    };
    let mounted = seen.mounts.iter().flatten().filter_map(|mount| {
        let name = mount.name.clone().filter(|name| !name.is_empty())?;
        Some((PathBuf::from(mount.destination.clone()?), name))
    });
    mounted.filter(|(target, _)| is_anonymous(target)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inspected(json: &str) -> ContainerInspectResponse {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn a_container_of_a_project_is_understood() {
        let seen = inspected(
            r#"{"Id": "ab", "Name": "/shop_web_2", "Image": "sha256:cd",
            "State": {"Status": "running", "Running": true, "Pid": 42},
            "Config": {"Env": ["A=b=c", "EMPTY="], "Cmd": ["serve"], "Labels": {
                "com.docker.compose.project": "shop", "com.docker.compose.service": "web",
                "com.docker.compose.container-number": "2", "com.docker.compose.oneoff": "False"}},
            "HostConfig": {"NetworkMode": "shop_default"},
            "Mounts": [{"Type": "volume", "Name": "shop_data", "Source": "/var/x", "Destination": "/data"},
                       {"Type": "bind", "Source": "/srv", "Destination": "/srv"}],
            "NetworkSettings": {"Ports": {"80/tcp": [{"HostIp": "0.0.0.0", "HostPort": "8080"},
                {"HostIp": "::", "HostPort": "8080"}], "81/tcp": null, "53/udp": [{"HostIp": "", "HostPort": "53"}]}}}"#,
        );
        let it = found(&seen);
        assert_eq!((it.name.as_str(), it.service.as_str(), it.number), ("shop_web_2", "web", 2));
        assert_eq!((it.state, it.pid, it.one_off), (State::Running, Some(42), false));
        assert_eq!((&*it.environment["A"], &*it.environment["EMPTY"]), ("b=c", ""));
        let sources: Vec<_> = it.mounts.iter().map(|mount| mount.source.as_str()).collect();
        assert_eq!(sources, ["shop_data", "/srv"]);
        let held: Vec<_> = it.holds.iter().map(|held| (held.port, held.target)).collect();
        assert_eq!(held, [(8080, 80), (8080, 80)]);
    }

    #[test]
    fn one_that_has_ended_would_hold_what_it_names() {
        let seen = inspected(
            r#"{"State": {"Status": "exited", "ExitCode": 3}, "NetworkSettings": {"Ports": {}},
            "HostConfig": {"PortBindings": {"80/tcp": [{"HostIp": "", "HostPort": "8080"}],
                "81/tcp": [{"HostIp": "", "HostPort": ""}]}}}"#,
        );
        let it = found(&seen);
        assert_eq!(it.state, State::Exited(3));
        let ip = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        assert_eq!(it.holds, [HeldPort { ip, port: 8080, target: 80 }]);
    }
}
