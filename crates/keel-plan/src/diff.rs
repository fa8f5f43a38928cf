//! What a new record changes: the answer of `keel diff`, before anything is done.
//!
//! Invariant: nothing secret appears in a [`FieldChange`]: file contents, values under keys that look secret, secret
//! command-line options and passwords in URLs are masked; see `mask.rs`.

mod routes;

use std::collections::BTreeSet;
use std::time::Duration;

use keel_model::{Order, RevisionId, Service, ServiceName, Stack, StackRecord};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::mask;

/// What happens to a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChangeKind {
    /// It is new.
    Create,
    /// Its definition changes.
    Update,
    /// Only the number of its instances changes.
    Scale,
    /// It goes.
    Remove,
}

/// One field that changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FieldChange {
    /// Which, as a dotted path (`environment.LOG_LEVEL`).
    pub path: String,
    /// Its value before, if it had one; masked if it must stay hidden.
    pub before: Option<String>,
    /// Its value afterwards, if it has one; masked if it must stay hidden.
    pub after: Option<String>,
}

/// What happens to one service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Which.
    pub service: ServiceName,
    /// What happens.
    pub kind: ChangeKind,
    /// Which fields change, in order of path; empty for new and removed services.
    pub fields: Vec<FieldChange>,
    /// In which order its instances are replaced; absent when they stay.
    pub replaces: Option<Order>,
    /// The revision before.
    pub from: Option<RevisionId>,
    /// The revision afterwards.
    pub to: Option<RevisionId>,
}

/// What changes from `old` to `new`, in order of service. Services that stay as they are do not appear.
#[must_use]
pub fn diff(old: Option<&StackRecord>, new: &StackRecord) -> Vec<Change> {
    let names: BTreeSet<&ServiceName> = old
        .into_iter()
        .flat_map(|record| record.stack.services.keys())
        .chain(new.stack.services.keys())
        .collect();
    names.into_iter().filter_map(|name| one(old, new, name)).collect()
}

fn one(old: Option<&StackRecord>, new: &StackRecord, name: &ServiceName) -> Option<Change> {
    let before = old.and_then(|record| present(record, name));
    let after = present(new, name);
    let mut change = Change {
        service: name.clone(),
        kind: ChangeKind::Update,
        fields: Vec::new(),
        replaces: None,
        from: before.map(|service| service.spec.revision()),
        to: after.map(|service| service.spec.revision()),
    };
    match (before, after) {
        (None, None) => return None,
        (None, Some(_)) => change.kind = ChangeKind::Create,
        (Some(_), None) => change.kind = ChangeKind::Remove,
        (Some(was), Some(is)) => {
            let before = old.map_or(&new.stack, |record| &record.stack);
            change.fields = fields(&view(was, before), &view(is, &new.stack));
            change.fields.extend(intents(old, new, name));
            change.replaces = (change.from != change.to).then(|| is.order());
            if change.fields.is_empty() {
                return None;
            }
            if change.fields.iter().all(|field| field.path == "scale") {
                change.kind = ChangeKind::Scale;
            }
        }
    }
    Some(change)
}

fn present<'a>(record: &'a StackRecord, name: &ServiceName) -> Option<&'a Service> {
    record.stack.services.get(name).filter(|_| !record.removing)
}

/// Whether the service is started or restarted on the way.
fn intents(old: Option<&StackRecord>, new: &StackRecord, name: &ServiceName) -> Vec<FieldChange> {
    let intent = |record: &StackRecord| record.intents.get(name).cloned().unwrap_or_default();
    let (was, is) = (old.map(intent).unwrap_or_default(), intent(new));
    let change = |path: &str, before: String, after: String| {
        let differs = before != after;
        differs.then(|| FieldChange {
            path: path.to_owned(),
            before: Some(before),
            after: Some(after),
        })
    };
    [
        change("stopped", was.stopped.to_string(), is.stopped.to_string()),
        change("restarts", was.restarts.to_string(), is.restarts.to_string()),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// A service as a tree in the user's words: the fields of its spec stand beside the others, and what its routes use of
/// the stack too.
fn view(service: &Service, stack: &Stack) -> Value {
    let mut tree = serde_json::to_value(service).unwrap_or_default();
    if let Some(fields) = tree.as_object_mut() {
        fields.insert("routes".to_owned(), by_name(routes::tree(service)));
        fields.remove("labels");
        // The image itself says enough.
        fields.remove("image_command");
        fields.extend(routes::surroundings(service, stack));
    }
    let spec = tree.as_object_mut().and_then(|fields| fields.remove("spec"));
    if let (Some(fields), Some(Value::Object(spec))) = (tree.as_object_mut(), spec) {
        // The spec repeats the target ports; those of the service say more.
        fields.extend(spec.into_iter().filter(|(key, _)| key != "ports"));
        for list in ["files", "mounts"] {
            if let Some(items) = fields.get_mut(list) {
                *items = by_name(items.take());
            }
        }
        fields.insert("scale".to_owned(), Value::String(scale_text(service)));
    }
    tree
}

/// A list whose items have a name or target becomes a map, so that a change names the item.
fn by_name(list: Value) -> Value {
    let Value::Array(items) = list else { return list };
    let mut map = Map::new();
    for item in items {
        let key = ["name", "target"].iter().find_map(|key| item.get(key)?.as_str());
        let mut key = key.unwrap_or("?").to_owned();
        while map.contains_key(&key) {
            key.push('\'');
        }
        map.insert(key, item);
    }
    Value::Object(map)
}

fn scale_text(service: &Service) -> String {
    match service.scale {
        keel_model::Scale::Replicated(n) => n.to_string(),
        keel_model::Scale::Global => "one per node".to_owned(),
        keel_model::Scale::Job(n) => format!("{n} to completion"),
        keel_model::Scale::GlobalJob => "one per node to completion".to_owned(),
    }
}

/// The leaves that differ, in order of path.
fn fields(before: &Value, after: &Value) -> Vec<FieldChange> {
    let mut changes = Vec::new();
    walk("", before, after, &mut changes);
    changes.sort_by(|a, b| a.path.cmp(&b.path));
    changes
}

fn walk(path: &str, before: &Value, after: &Value, changes: &mut Vec<FieldChange>) {
    if before == after {
        return;
    }
    let empty = Map::new();
    let maps = match (before, after) {
        (Value::Object(b), Value::Object(a)) => Some((b, a)),
        (Value::Object(b), Value::Null) => Some((b, &empty)),
        (Value::Null, Value::Object(a)) => Some((&empty, a)),
        _ => None,
    };
    if let Some((b, a)) = maps.filter(|(b, a)| !b.is_empty() || !a.is_empty()) {
        let keys: BTreeSet<&String> = b.keys().chain(a.keys()).collect();
        for key in keys {
            let inner = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            let null = Value::Null;
            walk(&inner, b.get(key).unwrap_or(&null), a.get(key).unwrap_or(&null), changes);
        }
        return;
    }
    let (before, mut after) = (shown(path, before), shown(path, after));
    if before == after {
        after = after.map(|text| format!("{text}, changed"));
    }
    changes.push(FieldChange { path: path.to_owned(), before, after });
}

/// A value as people read it, with nothing secret left in it.
fn shown(path: &str, value: &Value) -> Option<String> {
    let key = path.rsplit('.').next().unwrap_or(path);
    // An environment variable's name may hold dots; what follows the section is its name.
    let key = path.strip_prefix("environment.").unwrap_or(key);
    match mask::masked(key, value) {
        Value::Null => None,
        Value::String(text) => Some(text),
        Value::Number(n) if is_duration(path) => n.as_u64().map(duration_text),
        other => Some(other.to_string()),
    }
}

/// Durations are stored as whole milliseconds; these are their names.
fn is_duration(path: &str) -> bool {
    const NAMES: [&str; 14] = [
        "backoff_initial",
        "backoff_max",
        "delay",
        "drain_timeout",
        "grace",
        "interval",
        "min_healthy_time",
        "monitor",
        "progress_deadline",
        "reset_after",
        "start_interval",
        "start_period",
        "startup_timeout",
        "timeout",
    ];
    const TRAFFIC_NAMES: [&str; 12] = [
        "base",
        "connect",
        "hold",
        "idle",
        "interval",
        "max_age",
        "per_try_timeout",
        "request",
        "response",
        "slow_start",
        "timeout",
        "ttl",
    ];
    let mut parts = path.split('.');
    let section = parts.next().unwrap_or_default();
    let settings = ["health", "readiness", "restart", "rollback", "rollout", "stop"];
    if matches!(section, "routes" | "traffic") {
        let last = path.rsplit('.').next().unwrap_or_default();
        return TRAFFIC_NAMES.contains(&last) || path == "traffic.outlier.max";
    }
    settings.contains(&section) && parts.next().is_some_and(|name| NAMES.contains(&name))
}

fn duration_text(millis: u64) -> String {
    let duration = Duration::from_millis(millis);
    if duration.is_zero() { "0s".to_owned() } else { format!("{duration:?}") }
}
