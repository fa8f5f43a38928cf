//! `x-keel`: our own settings of a service, all optional.
//!
//! They are read strictly: an unknown key or a value of the wrong form is an error at its place. The keys are also
//! published as a JSON Schema, `docs/x-keel.schema.json`; a test keeps the two in step.

use std::collections::BTreeMap;
use std::time::Duration;

use keel_model::{NetworkMode, Probe, Protocol, RuntimeKind};

use crate::diagnostic::{Code, Diagnostic, Span, nearest};
use crate::number::parse_duration;
use crate::value::{Map, Node, Value};

/// Keys of `x-keel` in a service.
pub(crate) const KEYS: [&str; 6] =
    ["runtime", "network", "readiness", "protocol", "rollout", "restart_backoff"];
/// Keys of `readiness`.
pub(crate) const READINESS_KEYS: [&str; 10] = [
    "http",
    "tcp",
    "exec",
    "none",
    "port",
    "interval",
    "timeout",
    "successes",
    "failures",
    "startup_timeout",
];
/// Keys of `rollout`.
pub(crate) const ROLLOUT_KEYS: [&str; 3] =
    ["min_healthy_time", "progress_deadline", "drain_timeout"];
/// Keys of `restart_backoff`.
pub(crate) const BACKOFF_KEYS: [&str; 3] = ["initial", "max", "reset_after"];

/// The settings of one service; `None` means the default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct XKeel {
    pub runtime: Option<RuntimeKind>,
    pub network: Option<NetworkMode>,
    pub readiness: XReadiness,
    pub protocol: Option<Protocol>,
    pub protocols: BTreeMap<u16, Protocol>,
    pub min_healthy_time: Option<Duration>,
    pub progress_deadline: Option<Duration>,
    pub drain_timeout: Option<Duration>,
    pub backoff_initial: Option<Duration>,
    pub backoff_max: Option<Duration>,
    pub backoff_reset_after: Option<Duration>,
}

/// The settings of `readiness`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct XReadiness {
    pub probe: Option<Probe>,
    pub port: Option<u16>,
    pub interval: Option<Duration>,
    pub timeout: Option<Duration>,
    pub successes: Option<u32>,
    pub failures: Option<u32>,
    pub startup_timeout: Option<Duration>,
}

/// Checks the top-level `x-keel`, which has no keys yet.
pub(crate) fn check_top(node: &Node) -> Vec<Diagnostic> {
    let mut reader = Reader::default();
    reader.keys(node, "x-keel", &[]);
    for error in &mut reader.errors {
        error.help = Some("the settings of `x-keel` stand in a service".to_owned());
    }
    reader.errors
}

/// Reads `x-keel` of a service.
pub(crate) fn read(node: &Node) -> Result<XKeel, Vec<Diagnostic>> {
    let mut reader = Reader::default();
    let mut settings = XKeel::default();
    for (key, value) in reader.keys(node, "x-keel", &KEYS) {
        match key {
            "runtime" => {
                settings.runtime = reader.word(
                    value,
                    &[("process", RuntimeKind::Process), ("container", RuntimeKind::Container)],
                );
            }
            "network" => {
                settings.network = reader.word(
                    value,
                    &[("shared", NetworkMode::Shared), ("isolated", NetworkMode::Isolated)],
                );
            }
            "readiness" => reader.readiness(value, &mut settings.readiness),
            "protocol" => reader.protocol(value, &mut settings),
            "rollout" => reader.rollout(value, &mut settings),
            _ => reader.backoff(value, &mut settings),
        }
    }
    if reader.errors.is_empty() { Ok(settings) } else { Err(reader.errors) }
}

const PROTOCOLS: [(&str, Protocol); 3] =
    [("auto", Protocol::Auto), ("http", Protocol::Http), ("tcp", Protocol::Tcp)];

#[derive(Default)]
struct Reader {
    errors: Vec<Diagnostic>,
}

impl Reader {
    fn error(&mut self, code: Code, span: &Span, message: String) -> &mut Diagnostic {
        self.errors.push(Diagnostic::error(code, message).at(span));
        self.errors.last_mut().expect("one was pushed")
    }

    /// The known entries of a mapping; everything else becomes an error. Null is an empty mapping.
    fn keys<'n>(
        &mut self,
        node: &'n Node,
        place: &str,
        known: &[&'static str],
    ) -> Vec<(&'n str, &'n Node)> {
        let map: &Map = match &node.value {
            Value::Map(map) => map,
            Value::Null => return Vec::new(),
            _ => {
                let message = format!("`{place}` must be a mapping, not {}", node.kind_name());
                self.error(Code::InvalidValue, &node.span, message);
                return Vec::new();
            }
        };
        let mut entries = Vec::new();
        for (key, value) in map.iter() {
            if known.contains(&key) {
                entries.push((key, value));
                continue;
            }
            let span = map.key_span(key).unwrap_or(&node.span).clone();
            let help = match nearest(key, known.iter().copied()) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("the keys are: {}", known.join(", ")),
            };
            self.error(Code::UnknownKey, &span, format!("`{place}` has no key `{key}`")).help =
                Some(help);
        }
        entries
    }

    fn word<T: Copy>(&mut self, node: &Node, words: &[(&'static str, T)]) -> Option<T> {
        let found = node.as_str().and_then(|text| words.iter().find(|(word, _)| *word == text));
        if found.is_none() {
            let list: Vec<String> = words.iter().map(|(word, _)| format!("`{word}`")).collect();
            let given = node
                .display()
                .map_or_else(|| node.kind_name().to_owned(), |text| format!("`{text}`"));
            self.error(
                Code::InvalidValue,
                &node.span,
                format!("this must be {}, not {given}", list.join(" or ")),
            );
        }
        found.map(|(_, value)| *value)
    }

    fn duration(&mut self, node: &Node) -> Option<Duration> {
        let nanos =
            node.as_str().and_then(parse_duration).and_then(|nanos| u64::try_from(nanos).ok());
        if nanos.is_none() {
            let given = node
                .display()
                .map_or_else(|| node.kind_name().to_owned(), |text| format!("`{text}`"));
            self.error(
                Code::InvalidValue,
                &node.span,
                format!("this must be a duration, not {given}"),
            )
            .help = Some("write for example `10s`, `1m30s` or `500ms`".to_owned());
        }
        nanos.map(Duration::from_nanos)
    }

    fn number(&mut self, node: &Node, low: i64, high: i64) -> Option<i64> {
        match node.value {
            Value::Int(number) if (low..=high).contains(&number) => Some(number),
            _ => {
                let given = node
                    .display()
                    .map_or_else(|| node.kind_name().to_owned(), |text| format!("`{text}`"));
                let message = format!("this must be an integer from {low} to {high}, not {given}");
                self.error(Code::InvalidValue, &node.span, message);
                None
            }
        }
    }

    fn port(&mut self, node: &Node) -> Option<u16> {
        self.number(node, 1, i64::from(u16::MAX)).and_then(|port| u16::try_from(port).ok())
    }

    fn count(&mut self, node: &Node) -> Option<u32> {
        self.number(node, 1, 1000).and_then(|count| u32::try_from(count).ok())
    }

    fn readiness(&mut self, node: &Node, settings: &mut XReadiness) {
        if node.as_str() == Some("none") {
            settings.probe = Some(Probe::None);
            return;
        }
        for (key, value) in self.keys(node, "x-keel.readiness", &READINESS_KEYS) {
            match key {
                "http" | "tcp" | "exec" | "none" => {
                    let probe = self.probe(key, value);
                    if settings.probe.is_some() && probe.is_some() {
                        self.error(
                            Code::Conflict,
                            &value.span,
                            "`readiness` has more than one of `http`, `tcp`, `exec` and `none`"
                                .to_owned(),
                        )
                        .help = Some("keep one of them".to_owned());
                    }
                    settings.probe = settings.probe.take().or(probe);
                }
                "port" => settings.port = self.port(value),
                "interval" => settings.interval = self.duration(value),
                "timeout" => settings.timeout = self.duration(value),
                "successes" => settings.successes = self.count(value),
                "failures" => settings.failures = self.count(value),
                _ => settings.startup_timeout = self.duration(value),
            }
        }
    }

    fn probe(&mut self, key: &str, value: &Node) -> Option<Probe> {
        let (probe, wanted) = match key {
            "http" => {
                let path = value.as_str().filter(|path| path.starts_with('/'));
                (
                    path.map(|path| Probe::Http { path: path.to_owned() }),
                    "a path that begins with `/`",
                )
            }
            "exec" => {
                let words: Option<Vec<String>> =
                    value.items().iter().map(|item| item.as_str().map(str::to_owned)).collect();
                (
                    words.filter(|words| !words.is_empty()).map(Probe::Exec),
                    "a list: program and arguments",
                )
            }
            _ => {
                let probe = if key == "tcp" { Probe::Tcp } else { Probe::None };
                ((value.value == Value::Bool(true)).then_some(probe), "`true`")
            }
        };
        if probe.is_none() {
            self.error(
                Code::InvalidValue,
                &value.span,
                format!("`readiness.{key}` must be {wanted}"),
            );
        }
        probe
    }

    fn protocol(&mut self, node: &Node, settings: &mut XKeel) {
        let Value::Map(map) = &node.value else {
            settings.protocol = self.word(node, &PROTOCOLS);
            return;
        };
        for (port, value) in map.iter() {
            let protocol = self.word(value, &PROTOCOLS);
            match (port.parse::<u16>(), protocol) {
                (Ok(port), Some(protocol)) if port > 0 => {
                    settings.protocols.insert(port, protocol);
                }
                (Ok(port), None) if port > 0 => {}
                _ => {
                    let span = map.key_span(port).unwrap_or(&node.span).clone();
                    self.error(Code::InvalidValue, &span, format!("`{port}` is not a port"));
                }
            }
        }
    }

    fn rollout(&mut self, node: &Node, settings: &mut XKeel) {
        for (key, value) in self.keys(node, "x-keel.rollout", &ROLLOUT_KEYS) {
            let duration = self.duration(value);
            match key {
                "min_healthy_time" => settings.min_healthy_time = duration,
                "progress_deadline" => settings.progress_deadline = duration,
                _ => settings.drain_timeout = duration,
            }
        }
    }

    fn backoff(&mut self, node: &Node, settings: &mut XKeel) {
        for (key, value) in self.keys(node, "x-keel.restart_backoff", &BACKOFF_KEYS) {
            let duration = self.duration(value);
            match key {
                "initial" => settings.backoff_initial = duration,
                "max" => settings.backoff_max = duration,
                _ => settings.backoff_reset_after = duration,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Arc;

    use serde_json::{Value as Json, json};

    use super::*;
    use crate::yaml::{Limits, parse};

    const SCHEMA: &str = include_str!("../../../docs/x-keel.schema.json");

    fn node(text: &str) -> Node {
        parse(&Arc::from("f"), text.as_bytes(), Limits::default()).unwrap().remove(0)
    }

    fn schema() -> Json {
        serde_json::from_str(SCHEMA).unwrap()
    }

    fn properties(pointer: &str) -> BTreeSet<String> {
        let schema = schema();
        schema.pointer(pointer).unwrap().as_object().unwrap().keys().cloned().collect()
    }

    #[test]
    fn the_published_schema_is_valid_and_has_the_same_keys() {
        jsonschema::meta::validate(&schema()).unwrap();
        let set = |keys: &[&str]| keys.iter().map(|key| (*key).to_owned()).collect::<BTreeSet<_>>();
        assert_eq!(properties("/properties"), set(&KEYS));
        assert_eq!(properties("/$defs/readiness/properties"), set(&READINESS_KEYS));
        assert_eq!(properties("/$defs/rollout/properties"), set(&ROLLOUT_KEYS));
        assert_eq!(properties("/$defs/restart_backoff/properties"), set(&BACKOFF_KEYS));
    }

    #[test]
    fn parser_and_schema_agree() {
        let validator = jsonschema::validator_for(&schema()).unwrap();
        let cases = [
            (json!({}), true),
            (json!({"runtime": "process", "network": "isolated"}), true),
            (json!({"runtime": "vm"}), false),
            (json!({"readiness": "none"}), true),
            (
                json!({"readiness": {"http": "/ready", "port": 80, "interval": "1s", "failures": 2}}),
                true,
            ),
            (json!({"readiness": {"http": "ready"}}), false),
            (json!({"readiness": {"http": "/a", "tcp": true}}), false),
            (json!({"readiness": {"tcp": false}}), false),
            (json!({"readiness": {"exec": []}}), false),
            (json!({"readiness": {"exec": ["true"], "timeout": "1.5s"}}), true),
            (json!({"readiness": {"port": 0}}), false),
            (json!({"readiness": {"interval": 5}}), false),
            (json!({"protocol": "http"}), true),
            (json!({"protocol": {"8080": "tcp"}}), true),
            (json!({"protocol": {"web": "tcp"}}), false),
            (json!({"protocol": "smtp"}), false),
            (json!({"rollout": {"min_healthy_time": "30s", "drain_timeout": "1m"}}), true),
            (json!({"rollout": {"drain": "1m"}}), false),
            (
                json!({"restart_backoff": {"initial": "1s", "max": "1m", "reset_after": "10m"}}),
                true,
            ),
            (json!({"vip": true}), false),
            (json!([]), false),
        ];
        for (value, valid) in cases {
            assert_eq!(validator.is_valid(&value), valid, "schema: {value}");
            assert_eq!(read(&node(&value.to_string())).is_ok(), valid, "parser: {value}");
        }
    }

    #[test]
    fn errors_have_places_and_neighbours() {
        let errors = read(&node("readines: none\nrollout: {drain_timeot: 1s}\n")).unwrap_err();
        let lines: Vec<u32> =
            errors.iter().map(|error| error.span.as_ref().unwrap().line).collect();
        assert_eq!(lines, [1, 2]);
        assert!(errors[0].help.as_ref().unwrap().contains("readiness"));
        assert!(errors[1].help.as_ref().unwrap().contains("drain_timeout"));
        assert_eq!(check_top(&node("runtime: process")).len(), 1);
        assert!(check_top(&node("{}")).is_empty());
    }
}
