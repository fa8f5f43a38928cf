//! The table: the keys of every structure, in the order in which Docker prints them.

use super::Kind::{
    Bytes, Command, Cpus, DeviceCount, Duration, EnvFile, Environment, FileMode, Flag, Float,
    HealthTest, Hosts, Int, Labels, List, MapOf, MultiOptions, Numbers, Options, Ssh, Struct, Text,
    TextMap, TextOrList, Texts, Uint, Ulimit,
};
use super::{Field, Kind, Omit};

/// Left out when zero.
const fn f(key: &'static str, kind: Kind) -> Field {
    Field { key, kind, omit: Omit::Zero, json: key }
}

/// Left out when absent.
const fn opt(key: &'static str, kind: Kind) -> Field {
    Field { key, kind, omit: Omit::Absent, json: key }
}

/// Never left out in JSON.
const fn in_json(key: &'static str, kind: Kind) -> Field {
    Field { key, kind, omit: Omit::NeverInJson, json: key }
}

/// Never left out.
const fn always(key: &'static str, kind: Kind) -> Field {
    Field { key, kind, omit: Omit::Never, json: key }
}

/// Never left out, and spelled differently in JSON.
const fn renamed(key: &'static str, kind: Kind, json: &'static str) -> Field {
    Field { key, kind, omit: Omit::Never, json }
}

/// The sections of a project; the first five appear in JSON.
pub(super) static SECTIONS: [(&str, &Kind); 6] = [
    ("services", &SERVICE),
    ("networks", &NETWORK),
    ("volumes", &VOLUME),
    ("secrets", &SECRET),
    ("configs", &CONFIG),
    ("models", &MODEL),
];

static FILE_MOUNT: Kind = Struct(&[
    f("source", Text),
    f("target", Text),
    f("uid", Text),
    f("gid", Text),
    opt("mode", FileMode),
]);

static BUILD: [Field; 25] = [
    f("context", Text),
    f("dockerfile", Text),
    f("dockerfile_inline", Text),
    f("entitlements", Texts),
    f("args", Environment),
    f("provenance", Text),
    f("sbom", Text),
    f("ssh", Ssh),
    f("labels", Labels),
    f("cache_from", TextOrList),
    f("cache_to", TextOrList),
    f("no_cache", Flag),
    f("no_cache_filter", TextOrList),
    f("additional_contexts", Options),
    f("pull", Flag),
    f("extra_hosts", Hosts),
    f("isolation", Text),
    f("network", Text),
    f("target", Text),
    f("secrets", List(&FILE_MOUNT)),
    f("shm_size", Bytes),
    f("tags", TextOrList),
    f("ulimits", MapOf(&Ulimit)),
    f("platforms", TextOrList),
    f("privileged", Flag),
];

static HOOK_FIELDS: [Field; 5] = [
    in_json("command", Command),
    f("user", Text),
    f("privileged", Flag),
    f("working_dir", Text),
    f("environment", Environment),
];
static HOOK: Kind = Struct(&HOOK_FIELDS);
static PRE_START: Kind = Struct(&[
    in_json("command", Command),
    f("image", Text),
    f("user", Text),
    f("privileged", Flag),
    f("working_dir", Text),
    f("environment", Environment),
    f("per_replica", Flag),
]);

static WATCH: Kind = Struct(&[
    always("path", Text),
    always("action", Text),
    f("target", Text),
    in_json("exec", Struct(&HOOK_FIELDS)),
    f("include", Texts),
    f("ignore", Texts),
    f("initial_sync", Flag),
]);

static WEIGHT: Kind = Struct(&[renamed("path", Text, "Path"), renamed("weight", Uint, "Weight")]);
static THROTTLE: Kind = Struct(&[renamed("path", Text, "Path"), renamed("rate", Bytes, "Rate")]);

static DEPENDENCY: Kind =
    Struct(&[f("condition", Text), f("restart", Flag), always("required", Flag)]);

static DEVICE_REQUEST: Kind = Struct(&[
    f("capabilities", Texts),
    f("driver", Text),
    f("count", DeviceCount),
    f("device_ids", Texts),
    f("options", Labels),
]);

static GENERIC_RESOURCE: Kind =
    Struct(&[opt("discrete_resource_spec", Struct(&[always("kind", Text), always("value", Int)]))]);

static RESOURCE: [Field; 5] = [
    f("cpus", Cpus),
    f("memory", Bytes),
    f("pids", Int),
    f("devices", List(&DEVICE_REQUEST)),
    f("generic_resources", List(&GENERIC_RESOURCE)),
];

static UPDATE: [Field; 6] = [
    opt("parallelism", Uint),
    f("delay", Duration),
    f("failure_action", Text),
    f("monitor", Duration),
    f("max_failure_ratio", Float),
    f("order", Text),
];

static PREFERENCE: Kind = Struct(&[f("spread", Text)]);

static DEPLOY: [Field; 9] = [
    f("mode", Text),
    opt("replicas", Int),
    f("labels", Labels),
    opt("update_config", Struct(&UPDATE)),
    opt("rollback_config", Struct(&UPDATE)),
    in_json(
        "resources",
        Struct(&[opt("limits", Struct(&RESOURCE)), opt("reservations", Struct(&RESOURCE))]),
    ),
    opt(
        "restart_policy",
        Struct(&[
            f("condition", Text),
            opt("delay", Duration),
            opt("max_attempts", Uint),
            opt("window", Duration),
        ]),
    ),
    in_json(
        "placement",
        Struct(&[
            f("constraints", Texts),
            f("preferences", List(&PREFERENCE)),
            f("max_replicas_per_node", Uint),
        ]),
    ),
    f("endpoint_mode", Text),
];

static HEALTHCHECK: [Field; 7] = [
    f("test", HealthTest),
    opt("timeout", Duration),
    opt("interval", Duration),
    opt("retries", Uint),
    opt("start_period", Duration),
    opt("start_interval", Duration),
    f("disable", Flag),
];

static NETWORK_USE: Kind = Struct(&[
    f("aliases", Texts),
    f("driver_opts", Options),
    f("gw_priority", Int),
    f("interface_name", Text),
    f("ipv4_address", Text),
    f("ipv6_address", Text),
    f("link_local_ips", Texts),
    f("mac_address", Text),
    f("priority", Int),
]);

static PORT: Kind = Struct(&[
    f("name", Text),
    f("mode", Text),
    f("host_ip", Text),
    f("target", Uint),
    f("published", Text),
    f("protocol", Text),
    f("app_protocol", Text),
]);

static VOLUME_USE: Kind = Struct(&[
    f("type", Text),
    f("source", Text),
    f("target", Text),
    f("read_only", Flag),
    f("consistency", Text),
    opt(
        "bind",
        Struct(&[
            f("selinux", Text),
            f("propagation", Text),
            f("create_host_path", Flag),
            f("recursive", Text),
        ]),
    ),
    opt("volume", Struct(&[f("labels", Labels), f("nocopy", Flag), f("subpath", Text)])),
    opt("tmpfs", Struct(&[f("size", Bytes), f("mode", Uint)])),
    opt("image", Struct(&[f("subpath", Text)])),
]);

static DEVICE: Kind = Struct(&[f("source", Text), f("target", Text), f("permissions", Text)]);
static MODEL_USE: Kind = Struct(&[f("endpoint_var", Text), f("model_var", Text)]);

static BLKIO: [Field; 6] = [
    f("weight", Uint),
    f("weight_device", List(&WEIGHT)),
    f("device_read_bps", List(&THROTTLE)),
    f("device_read_iops", List(&THROTTLE)),
    f("device_write_bps", List(&THROTTLE)),
    f("device_write_iops", List(&THROTTLE)),
];

/// A service.
pub(super) static SERVICE: Kind = Struct(&[
    f("profiles", Texts),
    f("annotations", Labels),
    opt("attach", Flag),
    opt("build", Struct(&BUILD)),
    opt("develop", Struct(&[f("watch", List(&WATCH))])),
    opt("blkio_config", Struct(&BLKIO)),
    f("cap_add", Texts),
    f("cap_drop", Texts),
    f("cgroup_parent", Text),
    f("cgroup", Text),
    f("cpu_count", Int),
    f("cpu_percent", Float),
    f("cpu_period", Int),
    f("cpu_quota", Int),
    f("cpu_rt_period", Int),
    f("cpu_rt_runtime", Int),
    f("cpus", Float),
    f("cpuset", Text),
    f("cpu_shares", Int),
    in_json("command", Command),
    f("configs", List(&FILE_MOUNT)),
    f("container_name", Text),
    opt("credential_spec", Struct(&[f("config", Text), f("file", Text), f("registry", Text)])),
    f("depends_on", MapOf(&DEPENDENCY)),
    opt("deploy", Struct(&DEPLOY)),
    f("device_cgroup_rules", Texts),
    f("devices", List(&DEVICE)),
    f("dns", TextOrList),
    f("dns_opt", Texts),
    f("dns_search", TextOrList),
    f("domainname", Text),
    in_json("entrypoint", Command),
    opt("provider", Struct(&[f("type", Text), f("options", MultiOptions)])),
    f("environment", Environment),
    f("env_file", List(&EnvFile)),
    f("expose", Numbers),
    opt("extends", Struct(&[f("file", Text), f("service", Text)])),
    f("external_links", Texts),
    f("extra_hosts", Hosts),
    f("group_add", Texts),
    f("gpus", List(&DEVICE_REQUEST)),
    f("hostname", Text),
    opt("healthcheck", Struct(&HEALTHCHECK)),
    f("image", Text),
    opt("init", Flag),
    f("ipc", Text),
    f("isolation", Text),
    f("labels", Labels),
    f("label_file", Texts),
    f("links", Texts),
    opt("logging", Struct(&[f("driver", Text), f("options", Options)])),
    f("mem_limit", Bytes),
    f("mem_reservation", Bytes),
    f("memswap_limit", Bytes),
    f("mem_swappiness", Bytes),
    f("mac_address", Text),
    f("models", MapOf(&MODEL_USE)),
    f("network_mode", Text),
    f("networks", MapOf(&NETWORK_USE)),
    f("oom_kill_disable", Flag),
    f("oom_score_adj", Int),
    f("pid", Text),
    f("pids_limit", Int),
    f("platform", Text),
    f("ports", List(&PORT)),
    f("privileged", Flag),
    f("pull_policy", Text),
    f("read_only", Flag),
    f("restart", Text),
    f("runtime", Text),
    opt("scale", Int),
    f("secrets", List(&FILE_MOUNT)),
    f("security_opt", Texts),
    f("shm_size", Bytes),
    f("stdin_open", Flag),
    opt("stop_grace_period", Duration),
    f("stop_signal", Text),
    f("storage_opt", TextMap),
    f("sysctls", Labels),
    f("tmpfs", TextOrList),
    f("tty", Flag),
    f("ulimits", MapOf(&Ulimit)),
    f("use_api_socket", Flag),
    f("user", Text),
    f("userns_mode", Text),
    f("uts", Text),
    f("volumes", List(&VOLUME_USE)),
    f("volumes_from", Texts),
    f("working_dir", Text),
    f("pre_start", List(&PRE_START)),
    f("post_start", List(&HOOK)),
    f("pre_stop", List(&HOOK)),
]);

static POOL: Kind = Struct(&[
    f("subnet", Text),
    f("gateway", Text),
    f("ip_range", Text),
    f("aux_addresses", Labels),
]);

static NETWORK: Kind = Struct(&[
    f("name", Text),
    f("driver", Text),
    f("driver_opts", Options),
    in_json("ipam", Struct(&[f("driver", Text), f("config", List(&POOL))])),
    f("external", Flag),
    f("internal", Flag),
    f("attachable", Flag),
    f("labels", Labels),
    opt("enable_ipv4", Flag),
    opt("enable_ipv6", Flag),
]);

static VOLUME: Kind = Struct(&[
    f("name", Text),
    f("driver", Text),
    f("driver_opts", Options),
    f("external", Flag),
    f("labels", Labels),
]);

static SECRET: Kind = Struct(&[
    f("name", Text),
    f("file", Text),
    f("environment", Text),
    f("external", Flag),
    f("labels", Labels),
    f("driver", Text),
    f("driver_opts", TextMap),
    f("template_driver", Text),
]);

static CONFIG: Kind = Struct(&[
    f("name", Text),
    f("file", Text),
    f("environment", Text),
    f("content", Text),
    f("external", Flag),
    f("labels", Labels),
    f("driver", Text),
    f("driver_opts", TextMap),
    f("template_driver", Text),
]);

static MODEL: Kind =
    Struct(&[f("name", Text), f("model", Text), f("context_size", Int), f("runtime_flags", Texts)]);
