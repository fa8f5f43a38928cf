//! The table: every key of the Compose Specification and the shape of its value.
//!
//! It follows the current specification, which is ahead of Docker Compose 2.40 in a few keys (`pre_start`,
//! `no_cache_filter`).

use super::Shape::{Bounded, Either, List, MapOf, Object, Scalar, Text, Word};
use super::Type::{Bool, Integer, Null, Number, String};
use super::{MapOf as Map, Object as Keys, Shape, Unique};

type Fields = &'static [(&'static str, &'static Shape)];

const fn keys(fields: Fields) -> Shape {
    Object(Keys { fields, required: &[], extensible: true, open: false })
}

const fn closed(fields: Fields) -> Shape {
    Object(Keys { fields, required: &[], extensible: false, open: false })
}

const fn needs(required: &'static [&'static str], fields: Fields) -> Shape {
    Object(Keys { fields, required, extensible: true, open: false })
}

const fn named(value: &'static Shape) -> Shape {
    MapOf(Map { key: is_name, value, open: false })
}

const fn named_open(value: &'static Shape) -> Shape {
    MapOf(Map { key: is_name, value, open: true })
}

const fn free(value: &'static Shape) -> Shape {
    MapOf(Map { key: is_not_empty, value, open: false })
}

/// A name of a service, volume, network, …
fn is_name(key: &str) -> bool {
    !key.is_empty()
        && key.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

fn is_not_empty(key: &str) -> bool {
    !key.is_empty()
}

fn is_lower_word(key: &str) -> bool {
    !key.is_empty() && key.bytes().all(|b| b.is_ascii_lowercase())
}

/// Two characters of a container name somewhere in the text, as the specification's pattern wants.
fn is_container_name(text: &str) -> bool {
    text.as_bytes().windows(2).any(|pair| {
        pair[0].is_ascii_alphanumeric()
            && (pair[1].is_ascii_alphanumeric() || matches!(pair[1], b'.' | b'_' | b'-'))
    })
}

fn is_pull_policy(text: &str) -> bool {
    ["always", "never", "build", "if_not_present", "missing", "refresh", "daily", "weekly"]
        .iter()
        .any(|word| text.contains(word))
        || text.match_indices("every_").any(|(at, prefix)| {
            let rest = &text[at + prefix.len()..];
            let unit = rest.trim_start_matches(|c: char| c.is_ascii_digit());
            unit.len() < rest.len() && unit.starts_with(['w', 'd', 'h', 'm', 's'])
        })
}

static STRING: Shape = Scalar(&[String]);
static NULL: Shape = Scalar(&[Null]);
static BOOL: Shape = Scalar(&[Bool]);
static INTEGER: Shape = Scalar(&[Integer]);
static NUMBER: Shape = Scalar(&[Number]);
static FLAG: Shape = Scalar(&[Bool, String]);
static COUNT: Shape = Scalar(&[Integer, String]);
static AMOUNT: Shape = Scalar(&[Number, String]);
static VALUE: Shape = Scalar(&[String, Number, Bool, Null]);
static ORDER: Shape = Word(&["start-first", "stop-first"]);

static STRINGS: Shape = List(&STRING, Unique::No);
static UNIQUE_STRINGS: Shape = List(&STRING, Unique::Yes);
static NUMBERS_OR_STRINGS: Shape = List(&AMOUNT, Unique::Yes);
static STRING_OR_LIST: Shape = Either(&[&STRING, &UNIQUE_STRINGS]);
static DICT: Shape = free(&VALUE);
static LIST_OR_DICT: Shape = Either(&[&DICT, &UNIQUE_STRINGS]);
static OPTIONS: Shape = MapOf(Map { key: is_not_empty, value: &AMOUNT, open: true });
static STRING_DICT: Shape = free(&STRING);
static COMMAND: Shape = Either(&[&NULL, &STRING, &STRINGS]);
static OPEN: Shape = Object(Keys { fields: &[], required: &[], extensible: true, open: true });

static HOST_ADDRESSES: Shape = Either(&[&STRING, &STRINGS]);
static HOST_DICT: Shape = free(&HOST_ADDRESSES);
static EXTRA_HOSTS: Shape = Either(&[&HOST_DICT, &UNIQUE_STRINGS]);

static ULIMIT_PAIR: Shape = needs(&["soft", "hard"], &[("hard", &COUNT), ("soft", &COUNT)]);
static ULIMIT: Shape = Either(&[&COUNT, &ULIMIT_PAIR]);
static ULIMITS: Shape = MapOf(Map { key: is_lower_word, value: &ULIMIT, open: true });

static FILE_MOUNT_LONG: Shape = keys(&[
    ("source", &STRING),
    ("target", &STRING),
    ("uid", &STRING),
    ("gid", &STRING),
    ("mode", &AMOUNT),
]);
static FILE_MOUNT: Shape = Either(&[&STRING, &FILE_MOUNT_LONG]);
static FILE_MOUNTS: Shape = List(&FILE_MOUNT, Unique::No);

static BUILD_LONG: Shape = keys(&[
    ("context", &STRING),
    ("dockerfile", &STRING),
    ("dockerfile_inline", &STRING),
    ("entitlements", &STRINGS),
    ("args", &LIST_OR_DICT),
    ("ssh", &LIST_OR_DICT),
    ("labels", &LIST_OR_DICT),
    ("cache_from", &STRINGS),
    ("cache_to", &STRINGS),
    ("no_cache", &FLAG),
    ("no_cache_filter", &STRING_OR_LIST),
    ("additional_contexts", &LIST_OR_DICT),
    ("network", &STRING),
    ("provenance", &FLAG),
    ("sbom", &FLAG),
    ("pull", &FLAG),
    ("target", &STRING),
    ("shm_size", &COUNT),
    ("extra_hosts", &EXTRA_HOSTS),
    ("isolation", &STRING),
    ("privileged", &FLAG),
    ("secrets", &FILE_MOUNTS),
    ("tags", &STRINGS),
    ("ulimits", &ULIMITS),
    ("platforms", &STRINGS),
]);
static BUILD: Shape = Either(&[&STRING, &BUILD_LONG]);

static BLKIO_LIMIT: Shape = closed(&[("path", &STRING), ("rate", &COUNT)]);
static BLKIO_WEIGHT: Shape = closed(&[("path", &STRING), ("weight", &COUNT)]);
static BLKIO_LIMITS: Shape = List(&BLKIO_LIMIT, Unique::No);
static BLKIO_WEIGHTS: Shape = List(&BLKIO_WEIGHT, Unique::No);
static BLKIO: Shape = closed(&[
    ("device_read_bps", &BLKIO_LIMITS),
    ("device_read_iops", &BLKIO_LIMITS),
    ("device_write_bps", &BLKIO_LIMITS),
    ("device_write_iops", &BLKIO_LIMITS),
    ("weight", &COUNT),
    ("weight_device", &BLKIO_WEIGHTS),
]);

static CREDENTIAL_SPEC: Shape =
    keys(&[("config", &STRING), ("file", &STRING), ("registry", &STRING)]);

static CONDITION: Shape =
    Word(&["service_started", "service_healthy", "service_completed_successfully"]);
static DEPENDENCY: Shape =
    needs(&["condition"], &[("restart", &FLAG), ("required", &BOOL), ("condition", &CONDITION)]);
static DEPENDENCIES: Shape = named(&DEPENDENCY);
static DEPENDS_ON: Shape = Either(&[&UNIQUE_STRINGS, &DEPENDENCIES]);

static DEVICE_LONG: Shape =
    needs(&["source"], &[("source", &STRING), ("target", &STRING), ("permissions", &STRING)]);
static DEVICE: Shape = Either(&[&STRING, &DEVICE_LONG]);
static DEVICES: Shape = List(&DEVICE, Unique::No);

static ENV_FILE_LONG: Shape = Object(Keys {
    fields: &[("path", &STRING), ("format", &STRING), ("required", &FLAG)],
    required: &["path"],
    extensible: false,
    open: false,
});
static ENV_FILE_ITEM: Shape = Either(&[&STRING, &ENV_FILE_LONG]);
static ENV_FILES: Shape = List(&ENV_FILE_ITEM, Unique::No);
static ENV_FILE: Shape = Either(&[&STRING, &ENV_FILES]);
static LABEL_FILE: Shape = Either(&[&STRING, &STRINGS]);

static EXTENDS_LONG: Shape = Object(Keys {
    fields: &[("service", &STRING), ("file", &STRING)],
    required: &["service"],
    extensible: false,
    open: false,
});
static EXTENDS: Shape = Either(&[&STRING, &EXTENDS_LONG]);

static PROVIDER_SCALAR: Shape = Scalar(&[String, Number, Bool]);
static PROVIDER_LIST: Shape = List(&PROVIDER_SCALAR, Unique::No);
static PROVIDER_VALUE: Shape = Either(&[&PROVIDER_SCALAR, &PROVIDER_LIST]);
static PROVIDER_OPTIONS: Shape =
    MapOf(Map { key: is_not_empty, value: &PROVIDER_VALUE, open: true });
static PROVIDER: Shape = needs(&["type"], &[("type", &STRING), ("options", &PROVIDER_OPTIONS)]);

static GPU_DEVICE: Shape = Object(Keys {
    fields: &[
        ("capabilities", &UNIQUE_STRINGS),
        ("count", &COUNT),
        ("device_ids", &UNIQUE_STRINGS),
        ("driver", &STRING),
        ("options", &LIST_OR_DICT),
    ],
    required: &[],
    extensible: true,
    open: true,
});
static GPU_DEVICES: Shape = List(&GPU_DEVICE, Unique::No);
static GPU_ALL: Shape = Word(&["all"]);
static GPUS: Shape = Either(&[&GPU_ALL, &GPU_DEVICES]);

static HEALTH_TEST: Shape = Either(&[&STRING, &STRINGS]);
static HEALTHCHECK: Shape = keys(&[
    ("disable", &FLAG),
    ("interval", &STRING),
    ("retries", &AMOUNT),
    ("test", &HEALTH_TEST),
    ("timeout", &STRING),
    ("start_period", &STRING),
    ("start_interval", &STRING),
]);

static LOG_VALUE: Shape = Scalar(&[String, Number, Null]);
static LOG_OPTIONS: Shape = MapOf(Map { key: is_not_empty, value: &LOG_VALUE, open: true });
static LOGGING: Shape = keys(&[("driver", &STRING), ("options", &LOG_OPTIONS)]);

static MODEL_USE_LONG: Shape = keys(&[("endpoint_var", &STRING), ("model_var", &STRING)]);
static MODEL_USE: Shape = Either(&[&NULL, &MODEL_USE_LONG]);
static MODEL_USES: Shape = named_open(&MODEL_USE);
static SERVICE_MODELS: Shape = Either(&[&UNIQUE_STRINGS, &MODEL_USES]);

static NETWORK_USE_LONG: Shape = keys(&[
    ("aliases", &UNIQUE_STRINGS),
    ("interface_name", &STRING),
    ("ipv4_address", &STRING),
    ("ipv6_address", &STRING),
    ("link_local_ips", &UNIQUE_STRINGS),
    ("mac_address", &STRING),
    ("driver_opts", &OPTIONS),
    ("priority", &NUMBER),
    ("gw_priority", &NUMBER),
]);
static NETWORK_USE: Shape = Either(&[&NULL, &NETWORK_USE_LONG]);
static NETWORK_USES: Shape = named(&NETWORK_USE);
static SERVICE_NETWORKS: Shape = Either(&[&UNIQUE_STRINGS, &NETWORK_USES]);

static PORT_LONG: Shape = keys(&[
    ("name", &STRING),
    ("mode", &STRING),
    ("host_ip", &STRING),
    ("target", &COUNT),
    ("published", &COUNT),
    ("protocol", &STRING),
    ("app_protocol", &STRING),
]);
static PORT: Shape = Either(&[&AMOUNT, &PORT_LONG]);
static PORTS: Shape = List(&PORT, Unique::Yes);

static VOLUME_BIND: Shape = keys(&[
    ("propagation", &STRING),
    ("create_host_path", &FLAG),
    ("recursive", &Word(&["enabled", "disabled", "writable", "readonly"])),
    ("selinux", &Word(&["z", "Z"])),
]);
static VOLUME_OPTIONS: Shape =
    keys(&[("labels", &LIST_OR_DICT), ("nocopy", &FLAG), ("subpath", &STRING)]);
static VOLUME_TMPFS: Shape = keys(&[("size", &Bounded(0, i64::MAX)), ("mode", &AMOUNT)]);
static VOLUME_IMAGE: Shape = keys(&[("subpath", &STRING)]);
static VOLUME_LONG: Shape = needs(
    &["type"],
    &[
        ("type", &Word(&["bind", "volume", "tmpfs", "cluster", "npipe", "image"])),
        ("source", &STRING),
        ("target", &STRING),
        ("read_only", &FLAG),
        ("consistency", &STRING),
        ("bind", &VOLUME_BIND),
        ("volume", &VOLUME_OPTIONS),
        ("tmpfs", &VOLUME_TMPFS),
        ("image", &VOLUME_IMAGE),
    ],
);
static VOLUME_USE: Shape = Either(&[&STRING, &VOLUME_LONG]);
static VOLUME_USES: Shape = List(&VOLUME_USE, Unique::Yes);

static HOOK: Shape = needs(
    &["command"],
    &[
        ("command", &COMMAND),
        ("user", &STRING),
        ("privileged", &FLAG),
        ("working_dir", &STRING),
        ("environment", &LIST_OR_DICT),
    ],
);
static HOOKS: Shape = List(&HOOK, Unique::No);
static PRE_START_HOOK: Shape = keys(&[
    ("command", &COMMAND),
    ("image", &STRING),
    ("user", &STRING),
    ("privileged", &FLAG),
    ("working_dir", &STRING),
    ("environment", &LIST_OR_DICT),
    ("per_replica", &FLAG),
]);
static PRE_START: Shape = List(&PRE_START_HOOK, Unique::No);

static WATCH: Shape = needs(
    &["path", "action"],
    &[
        ("ignore", &STRING_OR_LIST),
        ("include", &STRING_OR_LIST),
        ("path", &STRING),
        ("action", &Word(&["rebuild", "sync", "restart", "sync+restart", "sync+exec"])),
        ("target", &STRING),
        ("exec", &HOOK),
        ("initial_sync", &BOOL),
    ],
);
static WATCHES: Shape = List(&WATCH, Unique::No);
static DEVELOP_LONG: Shape = keys(&[("watch", &WATCHES)]);
static DEVELOP: Shape = Either(&[&NULL, &DEVELOP_LONG]);

static UPDATE_CONFIG: Shape = keys(&[
    ("parallelism", &COUNT),
    ("delay", &STRING),
    ("failure_action", &STRING),
    ("monitor", &STRING),
    ("max_failure_ratio", &AMOUNT),
    ("order", &ORDER),
]);
static RESTART_POLICY: Shape = keys(&[
    ("condition", &STRING),
    ("delay", &STRING),
    ("max_attempts", &COUNT),
    ("window", &STRING),
]);
static PREFERENCE: Shape = keys(&[("spread", &STRING)]);
static PREFERENCES: Shape = List(&PREFERENCE, Unique::No);
static PLACEMENT: Shape = keys(&[
    ("constraints", &STRINGS),
    ("preferences", &PREFERENCES),
    ("max_replicas_per_node", &COUNT),
]);
static DISCRETE: Shape = keys(&[("kind", &STRING), ("value", &AMOUNT)]);
static GENERIC_RESOURCE: Shape = keys(&[("discrete_resource_spec", &DISCRETE)]);
static GENERIC_RESOURCES: Shape = List(&GENERIC_RESOURCE, Unique::No);
static DEVICE_REQUEST: Shape = needs(
    &["capabilities"],
    &[
        ("capabilities", &UNIQUE_STRINGS),
        ("count", &COUNT),
        ("device_ids", &UNIQUE_STRINGS),
        ("driver", &STRING),
        ("options", &LIST_OR_DICT),
    ],
);
static DEVICE_REQUESTS: Shape = List(&DEVICE_REQUEST, Unique::No);
static RESOURCE_LIMITS: Shape = keys(&[("cpus", &AMOUNT), ("memory", &STRING), ("pids", &COUNT)]);
static RESERVATIONS: Shape = keys(&[
    ("cpus", &AMOUNT),
    ("memory", &STRING),
    ("generic_resources", &GENERIC_RESOURCES),
    ("devices", &DEVICE_REQUESTS),
]);
static RESOURCES: Shape = keys(&[("limits", &RESOURCE_LIMITS), ("reservations", &RESERVATIONS)]);
static DEPLOY_LONG: Shape = keys(&[
    ("mode", &STRING),
    ("endpoint_mode", &STRING),
    ("replicas", &COUNT),
    ("labels", &LIST_OR_DICT),
    ("rollback_config", &UPDATE_CONFIG),
    ("update_config", &UPDATE_CONFIG),
    ("resources", &RESOURCES),
    ("restart_policy", &RESTART_POLICY),
    ("placement", &PLACEMENT),
]);
static DEPLOY: Shape = Either(&[&NULL, &DEPLOY_LONG]);

/// A service.
pub(crate) static SERVICE: Shape = keys(&[
    ("annotations", &LIST_OR_DICT),
    ("attach", &FLAG),
    ("blkio_config", &BLKIO),
    ("build", &BUILD),
    ("cap_add", &UNIQUE_STRINGS),
    ("cap_drop", &UNIQUE_STRINGS),
    ("cgroup", &Word(&["host", "private"])),
    ("cgroup_parent", &STRING),
    ("command", &COMMAND),
    ("configs", &FILE_MOUNTS),
    ("container_name", &Text(is_container_name, "a name of letters, digits, `.`, `_` and `-`")),
    ("cpu_count", &Bounded(0, i64::MAX)),
    ("cpu_percent", &Bounded(0, 100)),
    ("cpu_period", &AMOUNT),
    ("cpu_quota", &AMOUNT),
    ("cpu_rt_period", &AMOUNT),
    ("cpu_rt_runtime", &AMOUNT),
    ("cpu_shares", &AMOUNT),
    ("cpus", &AMOUNT),
    ("cpuset", &STRING),
    ("credential_spec", &CREDENTIAL_SPEC),
    ("depends_on", &DEPENDS_ON),
    ("deploy", &DEPLOY),
    ("develop", &DEVELOP),
    ("device_cgroup_rules", &UNIQUE_STRINGS),
    ("devices", &DEVICES),
    ("dns", &STRING_OR_LIST),
    ("dns_opt", &UNIQUE_STRINGS),
    ("dns_search", &STRING_OR_LIST),
    ("domainname", &STRING),
    ("entrypoint", &COMMAND),
    ("env_file", &ENV_FILE),
    ("environment", &LIST_OR_DICT),
    ("expose", &NUMBERS_OR_STRINGS),
    ("extends", &EXTENDS),
    ("external_links", &UNIQUE_STRINGS),
    ("extra_hosts", &EXTRA_HOSTS),
    ("gpus", &GPUS),
    ("group_add", &NUMBERS_OR_STRINGS),
    ("healthcheck", &HEALTHCHECK),
    ("hostname", &STRING),
    ("image", &STRING),
    ("init", &FLAG),
    ("ipc", &STRING),
    ("isolation", &STRING),
    ("label_file", &LABEL_FILE),
    ("labels", &LIST_OR_DICT),
    ("links", &UNIQUE_STRINGS),
    ("logging", &LOGGING),
    ("mac_address", &STRING),
    ("mem_limit", &AMOUNT),
    ("mem_reservation", &COUNT),
    ("mem_swappiness", &COUNT),
    ("memswap_limit", &AMOUNT),
    ("models", &SERVICE_MODELS),
    ("network_mode", &STRING),
    ("networks", &SERVICE_NETWORKS),
    ("oom_kill_disable", &FLAG),
    ("oom_score_adj", &Bounded(-1000, 1000)),
    ("pid", &Scalar(&[String, Null])),
    ("pids_limit", &AMOUNT),
    ("platform", &STRING),
    ("ports", &PORTS),
    ("post_start", &HOOKS),
    ("pre_start", &PRE_START),
    ("pre_stop", &HOOKS),
    ("privileged", &FLAG),
    ("profiles", &UNIQUE_STRINGS),
    ("provider", &PROVIDER),
    (
        "pull_policy",
        &Text(
            is_pull_policy,
            "`always`, `never`, `build`, `missing`, `daily`, `weekly` or `every_<time>`",
        ),
    ),
    ("pull_refresh_after", &STRING),
    ("read_only", &FLAG),
    ("restart", &STRING),
    ("runtime", &STRING),
    ("scale", &COUNT),
    ("secrets", &FILE_MOUNTS),
    ("security_opt", &UNIQUE_STRINGS),
    ("shm_size", &AMOUNT),
    ("stdin_open", &FLAG),
    ("stop_grace_period", &STRING),
    ("stop_signal", &STRING),
    ("storage_opt", &OPEN),
    ("sysctls", &LIST_OR_DICT),
    ("tmpfs", &STRING_OR_LIST),
    ("tty", &FLAG),
    ("ulimits", &ULIMITS),
    ("use_api_socket", &BOOL),
    ("user", &STRING),
    ("userns_mode", &STRING),
    ("uts", &STRING),
    ("volumes", &VOLUME_USES),
    ("volumes_from", &UNIQUE_STRINGS),
    ("working_dir", &STRING),
]);

static EXTERNAL_LONG: Shape = keys(&[("name", &STRING)]);
static EXTERNAL: Shape = Either(&[&FLAG, &EXTERNAL_LONG]);
static EXTERNAL_OPEN_LONG: Shape =
    Object(Keys { fields: &[("name", &STRING)], required: &[], extensible: true, open: true });
static EXTERNAL_OPEN: Shape = Either(&[&FLAG, &EXTERNAL_OPEN_LONG]);

static POOL: Shape = keys(&[
    ("subnet", &STRING),
    ("ip_range", &STRING),
    ("gateway", &STRING),
    ("aux_addresses", &STRING_DICT),
]);
static POOLS: Shape = List(&POOL, Unique::No);
static IPAM: Shape = keys(&[("driver", &STRING), ("config", &POOLS), ("options", &STRING_DICT)]);
static NETWORK_LONG: Shape = keys(&[
    ("name", &STRING),
    ("driver", &STRING),
    ("driver_opts", &OPTIONS),
    ("ipam", &IPAM),
    ("external", &EXTERNAL),
    ("internal", &FLAG),
    ("enable_ipv4", &FLAG),
    ("enable_ipv6", &FLAG),
    ("attachable", &FLAG),
    ("labels", &LIST_OR_DICT),
]);
static NETWORK: Shape = Either(&[&NULL, &NETWORK_LONG]);
static VOLUME_DEFINITION: Shape = keys(&[
    ("name", &STRING),
    ("driver", &STRING),
    ("driver_opts", &OPTIONS),
    ("external", &EXTERNAL),
    ("labels", &LIST_OR_DICT),
]);
static VOLUME: Shape = Either(&[&NULL, &VOLUME_DEFINITION]);
static SECRET: Shape = keys(&[
    ("name", &STRING),
    ("environment", &STRING),
    ("file", &STRING),
    ("external", &EXTERNAL_OPEN),
    ("labels", &LIST_OR_DICT),
    ("driver", &STRING),
    ("driver_opts", &OPTIONS),
    ("template_driver", &STRING),
]);
static CONFIG: Shape = keys(&[
    ("name", &STRING),
    ("content", &STRING),
    ("environment", &STRING),
    ("file", &STRING),
    ("external", &EXTERNAL_OPEN),
    ("labels", &LIST_OR_DICT),
    ("template_driver", &STRING),
]);
static MODEL: Shape = needs(
    &["model"],
    &[
        ("name", &STRING),
        ("model", &STRING),
        ("context_size", &INTEGER),
        ("runtime_flags", &STRINGS),
    ],
);
static INCLUDE_LONG: Shape = closed(&[
    ("path", &STRING_OR_LIST),
    ("env_file", &STRING_OR_LIST),
    ("project_directory", &STRING),
]);
static INCLUDE: Shape = Either(&[&STRING, &INCLUDE_LONG]);

/// A Compose file.
pub(crate) static TOP: Shape = keys(&[
    ("version", &STRING),
    ("name", &STRING),
    ("include", &List(&INCLUDE, Unique::No)),
    ("services", &named(&SERVICE)),
    ("models", &named_open(&MODEL)),
    ("networks", &named_open(&NETWORK)),
    ("volumes", &named(&VOLUME)),
    ("secrets", &named(&SECRET)),
    ("configs", &named(&CONFIG)),
]);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_specification_has_93_service_keys() {
        let Object(service) = &SERVICE else { panic!("a service is a mapping") };
        assert_eq!(service.fields.len(), 93);
    }
}
