//! The rows: what happens to each key, for host processes and for containers.

use super::KeyRow;
use super::Support::{self, AsAbove, Honoured, Partly, Refused, Warn};

const fn row(key: &'static str, process: Support, container: Support) -> KeyRow {
    KeyRow { key, process, container }
}

/// The same for both.
const fn both(key: &'static str, support: Support) -> KeyRow {
    row(key, support, support)
}

/// What containers have as the specification says.
const fn of_containers(key: &'static str, process: Support) -> KeyRow {
    row(key, process, Honoured)
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
const ONE_REPLICA: Support = Partly("one replica");
const NO_ATTESTATION: Support = Warn("nothing is attested");

/// Top-level keys.
pub const TOP_KEYS: [KeyRow; 9] = [
    both("version", Warn("it is obsolete")),
    both("name", Honoured),
    both("include", Partly("local files; remote ones are refused")),
    both("services", Honoured),
    both("models", Refused("run the model as a service and give its address in `environment`")),
    row(
        "networks",
        NO_SEPARATION,
        Partly("made by the engine; `internal` ones are without masquerading"),
    ),
    of_containers("volumes", Partly("directories of this host; other drivers have no effect")),
    both("secrets", Partly("from `file` and `environment`; external ones are refused")),
    both("configs", Partly("from `file`, `content` and `environment`; external ones are refused")),
];

/// Keys of a service.
pub const SERVICE_KEYS: [KeyRow; 93] = [
    of_containers("annotations", Warn("annotations are read by container engines only")),
    both("attach", Warn("the output of every service is shown; choose with `keel logs SERVICE`")),
    of_containers("blkio_config", Warn("block I/O is not limited for host processes")),
    of_containers("build", NOT_BUILT),
    of_containers("cap_add", OWN_RIGHTS),
    of_containers("cap_drop", OWN_RIGHTS),
    of_containers("cgroup", HOST_NAMESPACES),
    of_containers(
        "cgroup_parent",
        Warn("every instance has a control group below the platform's own"),
    ),
    both("command", Honoured),
    both("configs", Honoured),
    both("container_name", Partly("it becomes a further DNS name, also with several replicas")),
    both("cpu_count", WINDOWS),
    both("cpu_percent", WINDOWS),
    both("cpu_period", Honoured),
    both("cpu_quota", Honoured),
    of_containers("cpu_rt_period", NO_REAL_TIME),
    of_containers("cpu_rt_runtime", NO_REAL_TIME),
    both("cpu_shares", Honoured),
    both("cpus", Honoured),
    both("cpuset", Honoured),
    both("credential_spec", WINDOWS),
    both("depends_on", Honoured),
    both("deploy", Honoured),
    row(
        "develop",
        Partly("`keel watch`: it reads the files of the host, so that nothing is copied to it"),
        Honoured,
    ),
    of_containers("device_cgroup_rules", HOST_DEVICES),
    of_containers("devices", HOST_DEVICES),
    row(
        "dns",
        HOST_RESOLVER,
        Partly("in the place of the platform's name server: names of services are then not found"),
    ),
    of_containers("dns_opt", HOST_RESOLVER),
    of_containers("dns_search", HOST_RESOLVER),
    of_containers("domainname", Warn("a host process has the host's name")),
    both("entrypoint", Honoured),
    both("env_file", Honoured),
    both("environment", Honoured),
    row("expose", Honoured, Partly("TCP; the ports that the image exposes count too")),
    both("extends", Honoured),
    of_containers("external_links", Warn("there are no containers outside the stack to link")),
    both("extra_hosts", Honoured),
    of_containers("gpus", HOST_DEVICES),
    both("group_add", Honoured),
    both("healthcheck", Honoured),
    of_containers(
        "hostname",
        Warn("a host process has the host's name; services are found by their own"),
    ),
    of_containers("image", NOT_BUILT),
    both("init", Honoured),
    of_containers("ipc", HOST_NAMESPACES),
    both("isolation", WINDOWS),
    both("label_file", Honoured),
    both(
        "labels",
        Partly("those that begin with `traefik.` or `keel.` are read as routes; see routes.md"),
    ),
    both("links", Partly("the alias becomes a DNS name for the whole stack")),
    row(
        "logging",
        Partly(
            "output is kept in rotated files; `max-size`, `max-file` and the driver `none` count",
        ),
        Partly(
            "`max-size` and `max-file` count for the kept output too; what other drivers take, `keel logs` shows if the engine can read it",
        ),
    ),
    row(
        "mac_address",
        Warn("a host process has no network interface of its own"),
        Partly("one replica"),
    ),
    both("mem_limit", Honoured),
    of_containers("mem_reservation", NO_RESERVATION),
    of_containers("mem_swappiness", Warn("swappiness belongs to the host")),
    both("memswap_limit", Honoured),
    both("models", Refused("run the model as a service and give its address in `environment`")),
    row(
        "network_mode",
        Partly("`host` is what a host process has; other modes have no effect"),
        Partly("with `host` one replica if it has ports, and none is published"),
    ),
    row(
        "networks",
        NO_SEPARATION,
        Partly(
            "aliases lead to the load balancer; on external networks containers of others find the aliases",
        ),
    ),
    of_containers(
        "oom_kill_disable",
        Warn("the kernel always may end a process that exceeds its memory limit"),
    ),
    both("oom_score_adj", Honoured),
    of_containers("pid", HOST_NAMESPACES),
    both("pids_limit", Honoured),
    of_containers("platform", NOT_BUILT),
    row(
        "ports",
        Partly(
            "TCP, published by the load balancer; a range of published ports takes its first; UDP has no effect",
        ),
        Partly(
            "TCP is published by the load balancer, UDP by the engine for one replica; a range of published ports takes its first",
        ),
    ),
    both("post_start", Honoured),
    both("pre_start", Honoured),
    both("pre_stop", Honoured),
    of_containers("privileged", OWN_RIGHTS),
    both("profiles", Honoured),
    both("provider", Refused("run what the provider provides as a service with a `command`")),
    of_containers("pull_policy", NOT_BUILT),
    row("pull_refresh_after", NOT_BUILT, Partly("with `pull_policy: refresh`")),
    of_containers("read_only", Warn("the file system of the host stays as it is")),
    both("restart", Honoured),
    of_containers(
        "runtime",
        Warn("container runtimes do not concern a host process; `x-keel.runtime` chooses"),
    ),
    both("scale", Honoured),
    row(
        "secrets",
        Honoured,
        Partly("mode 0444 unless the file says otherwise, as Docker Compose has it"),
    ),
    of_containers("security_opt", OWN_RIGHTS),
    of_containers("shm_size", Warn("a host process shares /dev/shm with the host")),
    both("stdin_open", Honoured),
    both("stop_grace_period", Honoured),
    both("stop_signal", Honoured),
    of_containers("storage_opt", Warn("a host process has no file system layer of its own")),
    of_containers("sysctls", Warn("kernel parameters belong to the host")),
    both("tmpfs", Honoured),
    both("tty", Honoured),
    both("ulimits", Honoured),
    row(
        "use_api_socket",
        Warn("there is no container engine's socket to share"),
        Partly("/var/run/docker.sock of the host is mounted; credentials are not"),
    ),
    both("user", Honoured),
    of_containers("userns_mode", HOST_NAMESPACES),
    of_containers("uts", HOST_NAMESPACES),
    both("volumes", Honoured),
    row(
        "volumes_from",
        Partly("services of the same stack; `container:` has no effect"),
        Partly("of services: what they mount under a name"),
    ),
    of_containers("working_dir", Partly("the directory of the Compose file when absent")),
];

/// Nested keys of a service whose fate differs from that of the key above them.
pub const NESTED_KEYS: [KeyRow; 26] = [
    row("build.isolation", AsAbove, WINDOWS),
    row("build.provenance", AsAbove, NO_ATTESTATION),
    row("build.sbom", AsAbove, NO_ATTESTATION),
    row("deploy.resources.reservations", NO_RESERVATION, Partly("memory and devices; see below")),
    row("deploy.resources.reservations.cpus", AsAbove, NO_RESERVATION),
    row(
        "deploy.resources.reservations.generic_resources",
        AsAbove,
        Warn("the engine knows no such resources; name `devices`"),
    ),
    both(
        "deploy.endpoint_mode",
        Partly("`vip`; `dnsrr` has no effect, a service always has an address"),
    ),
    both("deploy.placement", ONE_MACHINE),
    of_containers("networks.*.driver_opts", Warn("there is no network driver")),
    of_containers("networks.*.gw_priority", Warn("there is no gateway to choose")),
    of_containers(
        "networks.*.interface_name",
        Warn("a host process has no network interface of its own"),
    ),
    row(
        "networks.*.ipv4_address",
        Warn("addresses of services are given by the platform"),
        ONE_REPLICA,
    ),
    row(
        "networks.*.ipv6_address",
        Warn("addresses of services are given by the platform"),
        ONE_REPLICA,
    ),
    of_containers(
        "networks.*.link_local_ips",
        Warn("addresses of services are given by the platform"),
    ),
    row(
        "networks.*.mac_address",
        Warn("a host process has no network interface of its own"),
        ONE_REPLICA,
    ),
    of_containers("networks.*.priority", Warn("there is one network")),
    of_containers("volumes[].bind.propagation", Warn("mounts of a host process are its own")),
    of_containers("volumes[].bind.recursive", Warn("submounts are always included")),
    of_containers("volumes[].bind.selinux", Warn("files are not relabelled")),
    both("volumes[].consistency", Warn("it concerns Docker Desktop only")),
    of_containers(
        "volumes[].volume.labels",
        Warn("labels of volumes are read from the top-level `volumes`"),
    ),
    of_containers("volumes[].volume.nocopy", Warn("there is no image to copy from")),
    of_containers("pre_start[].image", Refused("leave it out: the step runs on the host")),
    of_containers("pre_start[].privileged", OWN_RIGHTS),
    of_containers("post_start[].privileged", OWN_RIGHTS),
    of_containers("pre_stop[].privileged", OWN_RIGHTS),
];
