//! Settings of how a service runs: readiness, protocol, rollout, backoff.

use keel_model::{Probe, Protocol};

use super::reader::Reader;
use super::{BACKOFF_KEYS, READINESS_KEYS, ROLLOUT_KEYS, XKeel, XReadiness};
use crate::diagnostic::Code;
use crate::value::{Node, Value};

const PROTOCOLS: [(&str, Protocol); 4] = [
    ("auto", Protocol::Auto),
    ("http", Protocol::Http),
    ("http2", Protocol::Http2),
    ("tcp", Protocol::Tcp),
];

impl Reader {
    pub(super) fn readiness(&mut self, node: &Node, settings: &mut XReadiness) {
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

    pub(super) fn protocol(&mut self, node: &Node, settings: &mut XKeel) {
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

    pub(super) fn rollout(&mut self, node: &Node, settings: &mut XKeel) {
        for (key, value) in self.keys(node, "x-keel.rollout", &ROLLOUT_KEYS) {
            let duration = self.duration(value);
            match key {
                "min_healthy_time" => settings.min_healthy_time = duration,
                "progress_deadline" => settings.progress_deadline = duration,
                _ => settings.drain_timeout = duration,
            }
        }
    }

    pub(super) fn backoff(&mut self, node: &Node, settings: &mut XKeel) {
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
