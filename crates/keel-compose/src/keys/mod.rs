//! What this platform does with every key: the one table behind warnings, refusals and `docs/compose-support.md`.
//!
//! Each key of the schema has a row that says what it means for a host process and what for a container. A key that has
//! no effect says why, so that nothing is ignored in silence.

mod table;

use keel_model::RuntimeKind;

pub use table::{NESTED_KEYS, SERVICE_KEYS, TOP_KEYS};

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
    /// Nothing else than what is said of the key above it.
    AsAbove,
}

impl Support {
    /// For a table: what happens, and why or how.
    pub(crate) fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::Honoured => ("honoured", ""),
            Self::Partly(note) => ("honoured in part", note),
            Self::Warn(note) => ("warning", note),
            Self::Refused(note) => ("refused", note),
            Self::AsAbove => ("as the key above it", ""),
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
    /// What happens to it in a service that runs as a container, or at the top level of a file with containers.
    pub container: Support,
}

impl KeyRow {
    /// What happens to it in a service that this runtime starts.
    pub(crate) fn support(self, runtime: RuntimeKind) -> Support {
        match runtime {
            RuntimeKind::Process => self.process,
            RuntimeKind::Container => self.container,
        }
    }
}

/// The table of all keys as a Markdown page, for `docs/compose-support.md`.
#[must_use]
pub fn support_table_markdown() -> String {
    let mut page = String::from(
        "# What is done with each Compose key\n\n\
         Generated from the key table of `keel-compose`; do not edit.\n\n\
         Every key of the current Compose Specification is honoured, or accepted with a warning that says why it\n\
         has no effect, or refused with its place and a remedy. An unknown key is an error that names its nearest\n\
         neighbour.\n\n\
         A service is a container when it has an `image` or a `build`, and a process of the host when it has a\n\
         `command` and neither of them; `x-keel: {runtime: process}` runs the `command` of a service with an image\n\
         on the host. Both kinds mix in one file and reach each other by the names of services.\n",
    );
    for (title, rows) in [
        ("Top level", &TOP_KEYS[..]),
        ("Service", &SERVICE_KEYS[..]),
        ("Nested keys that differ from the key above them", &NESTED_KEYS[..]),
    ] {
        page.push_str(&format!(
            "\n## {title}\n\n| key | host process | container |\n|---|---|---|\n"
        ));
        for row in rows {
            let (process, container) = (cell(row.process), cell(row.container));
            page.push_str(&format!("| `{}` | {process} | {container} |\n", row.key));
        }
    }
    page.push_str(DIFFERENCES);
    page
}

/// What happens, and why or how.
fn cell(support: Support) -> String {
    match support.words() {
        (what, "") => what.to_owned(),
        (what, note) => format!("{what}: {note}"),
    }
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

## How containers differ from those of Docker Compose

- The names of services and their aliases lead to the load balancer, which knows who is ready; the engine is told no
  aliases inside the stack.
- TCP ports are published by the load balancer, so that a container can be replaced without closing them.
- What only one container can have (a fixed address, a UDP port of the host, the ports of the host with
  `network_mode: host`) is refused for several replicas, and the old container ends before the new one starts.
- `service_healthy` and the health check of the image work on every engine, also where the engine runs none.
- Commands and variables of containers are taken as Docker Compose takes them: `$PORT` is the caller's variable.
- `pre_start` steps run once per revision, or with `per_replica` before every instance. `keel run` runs none for its own
  command, as `docker compose run` does not, and those of the services that it depends on.
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
