//! What this platform does with every key: the one table behind warnings, refusals and `docs/compose-support.md`.
//!
//! Each key of the schema has a row that says what it means for a host process. A key that has no effect says why, so
//! that nothing is ignored in silence. Keys of containers will get a column of their own when an engine is driven;
//! until then a service that needs one is refused as a whole.

/// What happens to a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Support {
    /// It does what the specification says.
    Honoured,
    /// It does what the specification says, with this difference.
    Partly(&'static str),
    /// It is accepted, has no effect, and a warning says why.
    Warn(&'static str),
    /// It is refused; the text says what to write instead.
    Refused(&'static str),
}

impl Support {
    /// For a table: what happens, and why or how.
    pub(crate) fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::Honoured => ("honoured", ""),
            Self::Partly(note) => ("honoured in part", note),
            Self::Warn(note) => ("warning", note),
            Self::Refused(note) => ("refused", note),
        }
    }
}

/// A key and what happens to it. Nested keys are written with dots, items of lists with `[]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyRow {
    /// The key.
    pub key: &'static str,
    /// What happens to it in a service that runs as a host process, or at the top level.
    pub process: Support,
}

use Support::{Honoured, Partly, Refused, Warn};

const fn row(key: &'static str, process: Support) -> KeyRow {
    KeyRow { key, process }
}

const NOT_BUILT: Support = Warn("nothing is built or pulled for a host process");
const HOST_RESOLVER: Support = Warn("a host process uses the resolver of the host");
const HOST_DEVICES: Support = Warn("a host process sees the devices of the host");
const HOST_NAMESPACES: Support = Warn("a host process shares the namespaces of the host");
const OWN_RIGHTS: Support = Warn("a host process has the rights of the user that it runs as");
const WINDOWS: Support = Warn("it concerns Windows containers only");
const NO_RESERVATION: Support = Warn("only limits are enforced; nothing is reserved");
const NO_REAL_TIME: Support = Warn("real-time scheduling is not set up");
const ONE_MACHINE: Support = Warn("there is one machine, and every instance runs on it");
const NO_SEPARATION: Support = Partly(
    "aliases work; networks do not separate host processes, every service of the stack reaches every other",
);

/// Top-level keys.
pub const TOP_KEYS: [KeyRow; 9] = [
    row("version", Warn("it is obsolete")),
    row("name", Honoured),
    row("include", Partly("local files; remote ones are refused")),
    row("services", Honoured),
    row("models", Refused("run the model as a service and give its address in `environment`")),
    row("networks", NO_SEPARATION),
    row("volumes", Partly("directories of this host; other drivers have no effect")),
    row("secrets", Partly("from `file` and `environment`; external ones are refused")),
    row("configs", Partly("from `file`, `content` and `environment`; external ones are refused")),
];

/// Keys of a service.
pub const SERVICE_KEYS: [KeyRow; 93] = [
    row("annotations", Warn("annotations are read by container engines only")),
    row("attach", Warn("the output of every service is shown; choose with `keel logs SERVICE`")),
    row("blkio_config", Warn("block I/O is not limited for host processes")),
    row("build", NOT_BUILT),
    row("cap_add", OWN_RIGHTS),
    row("cap_drop", OWN_RIGHTS),
    row("cgroup", HOST_NAMESPACES),
    row("cgroup_parent", Warn("every instance has a control group below the platform's own")),
    row("command", Honoured),
    row("configs", Honoured),
    row("container_name", Partly("it becomes a further DNS name, also with several replicas")),
    row("cpu_count", WINDOWS),
    row("cpu_percent", WINDOWS),
    row("cpu_period", Honoured),
    row("cpu_quota", Honoured),
    row("cpu_rt_period", NO_REAL_TIME),
    row("cpu_rt_runtime", NO_REAL_TIME),
    row("cpu_shares", Honoured),
    row("cpus", Honoured),
    row("cpuset", Honoured),
    row("credential_spec", WINDOWS),
    row("depends_on", Honoured),
    row("deploy", Honoured),
    row("develop", Warn("source files are not watched; run `keel up` again after a change")),
    row("device_cgroup_rules", HOST_DEVICES),
    row("devices", HOST_DEVICES),
    row("dns", HOST_RESOLVER),
    row("dns_opt", HOST_RESOLVER),
    row("dns_search", HOST_RESOLVER),
    row("domainname", Warn("a host process has the host's name")),
    row("entrypoint", Honoured),
    row("env_file", Honoured),
    row("environment", Honoured),
    row("expose", Honoured),
    row("extends", Honoured),
    row("external_links", Warn("there are no containers outside the stack to link")),
    row("extra_hosts", Honoured),
    row("gpus", HOST_DEVICES),
    row("group_add", Honoured),
    row("healthcheck", Honoured),
    row("hostname", Warn("a host process has the host's name; services are found by their own")),
    row("image", NOT_BUILT),
    row("init", Honoured),
    row("ipc", HOST_NAMESPACES),
    row("isolation", WINDOWS),
    row("label_file", Honoured),
    row(
        "labels",
        Partly("those that begin with `traefik.` or `keel.` are read as routes; see routes.md"),
    ),
    row("links", Partly("the alias becomes a DNS name for the whole stack")),
    row(
        "logging",
        Partly(
            "output is kept in rotated files; `max-size`, `max-file` and the driver `none` count",
        ),
    ),
    row("mac_address", Warn("a host process has no network interface of its own")),
    row("mem_limit", Honoured),
    row("mem_reservation", NO_RESERVATION),
    row("mem_swappiness", Warn("swappiness belongs to the host")),
    row("memswap_limit", Honoured),
    row("models", Refused("run the model as a service and give its address in `environment`")),
    row("network_mode", Partly("`host` is what a host process has; other modes have no effect")),
    row("networks", NO_SEPARATION),
    row(
        "oom_kill_disable",
        Warn("the kernel always may end a process that exceeds its memory limit"),
    ),
    row("oom_score_adj", Honoured),
    row("pid", HOST_NAMESPACES),
    row("pids_limit", Honoured),
    row("platform", NOT_BUILT),
    row(
        "ports",
        Partly(
            "TCP, published by the load balancer; a range of published ports takes its first; UDP has no effect",
        ),
    ),
    row("post_start", Honoured),
    row("pre_start", Honoured),
    row("pre_stop", Honoured),
    row("privileged", OWN_RIGHTS),
    row("profiles", Honoured),
    row("provider", Refused("run what the provider provides as a service with a `command`")),
    row("pull_policy", NOT_BUILT),
    row("pull_refresh_after", NOT_BUILT),
    row("read_only", Warn("the file system of the host stays as it is")),
    row("restart", Honoured),
    row(
        "runtime",
        Warn("container runtimes do not concern a host process; `x-keel.runtime` chooses"),
    ),
    row("scale", Honoured),
    row("secrets", Honoured),
    row("security_opt", OWN_RIGHTS),
    row("shm_size", Warn("a host process shares /dev/shm with the host")),
    row("stdin_open", Honoured),
    row("stop_grace_period", Honoured),
    row("stop_signal", Honoured),
    row("storage_opt", Warn("a host process has no file system layer of its own")),
    row("sysctls", Warn("kernel parameters belong to the host")),
    row("tmpfs", Honoured),
    row("tty", Honoured),
    row("ulimits", Honoured),
    row("use_api_socket", Warn("there is no container engine's socket to share")),
    row("user", Honoured),
    row("userns_mode", HOST_NAMESPACES),
    row("uts", HOST_NAMESPACES),
    row("volumes", Honoured),
    row("volumes_from", Partly("services of the same stack; `container:` has no effect")),
    row("working_dir", Partly("the directory of the Compose file when absent")),
];

/// Nested keys of a service whose fate differs from that of the key above them.
pub const NESTED_KEYS: [KeyRow; 20] = [
    row(
        "deploy.endpoint_mode",
        Partly("`vip`; `dnsrr` has no effect, a service always has an address"),
    ),
    row("deploy.placement", ONE_MACHINE),
    row("deploy.resources.reservations", NO_RESERVATION),
    row("networks.*.driver_opts", Warn("there is no network driver")),
    row("networks.*.gw_priority", Warn("there is no gateway to choose")),
    row("networks.*.interface_name", Warn("a host process has no network interface of its own")),
    row("networks.*.ipv4_address", Warn("addresses of services are given by the platform")),
    row("networks.*.ipv6_address", Warn("addresses of services are given by the platform")),
    row("networks.*.link_local_ips", Warn("addresses of services are given by the platform")),
    row("networks.*.mac_address", Warn("a host process has no network interface of its own")),
    row("networks.*.priority", Warn("there is one network")),
    row("volumes[].bind.propagation", Warn("mounts of a host process are its own")),
    row("volumes[].bind.recursive", Warn("submounts are always included")),
    row("volumes[].bind.selinux", Warn("files are not relabelled")),
    row("volumes[].consistency", Warn("it concerns Docker Desktop only")),
    row("volumes[].volume.labels", Warn("labels of volumes are read from the top-level `volumes`")),
    row("volumes[].volume.nocopy", Warn("there is no image to copy from")),
    row("pre_start[].image", Refused("leave it out: the step runs on the host")),
    row("post_start[].privileged", OWN_RIGHTS),
    row("pre_stop[].privileged", OWN_RIGHTS),
];

/// The remedy for a service that needs a container engine.
pub(crate) const NEEDS_ENGINE: &str =
    "run it as a host process: add `x-keel: {runtime: process}` and a `command`";

/// The table of all keys as a Markdown page, for `docs/compose-support.md`.
#[must_use]
pub fn support_table_markdown() -> String {
    let mut page = String::from(
        "# What is done with each Compose key\n\n\
         Generated from the key table of `keel-compose`; do not edit.\n\n\
         Every key of the current Compose Specification is honoured, or accepted with a warning that says why it\n\
         has no effect, or refused with its place and a remedy. An unknown key is an error that names its nearest\n\
         neighbour. The table is for services that run as host processes: those with a `command` and neither\n\
         `image` nor `build`, or with `x-keel: {runtime: process}`. A service that needs a container engine is\n\
         loaded and checked (`keel config` prints it as Docker Compose does), and refused by `keel up` in this\n\
         version.\n",
    );
    for (title, rows) in [
        ("Top level", &TOP_KEYS[..]),
        ("Service", &SERVICE_KEYS[..]),
        ("Nested keys that differ from the key above them", &NESTED_KEYS[..]),
    ] {
        page.push_str(&format!("\n## {title}\n\n| key | what is done | note |\n|---|---|---|\n"));
        for row in rows {
            let (what, note) = row.process.words();
            page.push_str(&format!("| `{}` | {what} | {note} |\n", row.key));
        }
    }
    page.push_str(DIFFERENCES);
    page
}

/// Where this platform differs from Docker Compose 2.40 on purpose.
const DIFFERENCES: &str = "
## Differences from Docker Compose 2.40

`keel config` prints the document that `docker compose config` prints, except:

- Services with a `command` and neither `image` nor `build` are accepted; they run as host processes. In their
  `command`, `entrypoint`, `environment`, `healthcheck.test` and hooks, `$PORT`, `${PORT_<target>}`,
  `${KEEL_ADDRESS}`, `${KEEL_INSTANCE}`, `${KEEL_SERVICE}`, `${KEEL_STACK}`, `${KEEL_REVISION}`, `${KEEL_ATTEMPT}`
  and `${KEEL_SECRETS_DIR}` are left for each instance to fill in.
- `container_name` together with several replicas is accepted; it becomes a DNS name.
- `pre_start` and `build.no_cache_filter`, which are newer, are accepted.
- Variables, labels and networks whose names begin with `x-` keep their names; Docker prints them as `#extensions`.
- SSH keys with a path are printed in JSON as `id=path`; Docker fails.
- Unknown keys of `include` are refused; Docker ignores them. Remote files (`oci://`, Git) are refused.
- `--no-env-resolution` is honoured; Docker resolves `env_file` nevertheless.
- `x-keel` is checked strictly.
";

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::schema::{SERVICE, Shape, TOP};

    fn schema_keys(shape: &'static Shape) -> BTreeSet<&'static str> {
        let Shape::Object(object) = shape else { panic!("a mapping") };
        object.fields.iter().map(|(key, _)| *key).collect()
    }

    fn table_keys(rows: &[KeyRow]) -> BTreeSet<&'static str> {
        rows.iter().map(|row| row.key).collect()
    }

    #[test]
    fn every_key_of_the_schema_has_a_row() {
        assert_eq!(table_keys(&SERVICE_KEYS), schema_keys(&SERVICE));
        assert_eq!(table_keys(&TOP_KEYS), schema_keys(&TOP));
    }

    /// Whether a dotted key exists in a shape.
    fn exists(shape: &'static Shape, path: &[&str]) -> bool {
        let Some((key, rest)) = path.split_first() else { return true };
        match shape {
            Shape::Object(object) => {
                let name = key.trim_end_matches("[]");
                object.fields.iter().any(|(field, shape)| {
                    *field == name && (rest.is_empty() || exists(shape, rest))
                })
            }
            Shape::MapOf(map) => *key == "*" && exists(map.value, rest),
            Shape::List(item, _) => exists(item, path),
            Shape::Either(shapes) => shapes.iter().any(|shape| exists(shape, path)),
            _ => false,
        }
    }

    #[test]
    fn every_nested_row_is_a_key_of_the_schema() {
        for row in NESTED_KEYS {
            let path: Vec<&str> = row.key.split('.').collect();
            assert!(exists(&SERVICE, &path), "{}", row.key);
        }
    }

    #[test]
    fn the_page_has_every_key() {
        let page = support_table_markdown();
        for row in TOP_KEYS.iter().chain(&SERVICE_KEYS).chain(&NESTED_KEYS) {
            assert!(page.contains(&format!("| `{}` |", row.key)), "{}", row.key);
        }
    }
}
