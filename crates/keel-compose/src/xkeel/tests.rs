use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::{Value as Json, json};

use super::*;
use crate::yaml::{Limits, parse};

const SCHEMA: &str = include_str!("../../../../docs/x-keel.schema.json");

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
        (json!({"restart_backoff": {"initial": "1s", "max": "1m", "reset_after": "10m"}}), true),
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
    let lines: Vec<u32> = errors.iter().map(|error| error.span.as_ref().unwrap().line).collect();
    assert_eq!(lines, [1, 2]);
    assert!(errors[0].help.as_ref().unwrap().contains("readiness"));
    assert!(errors[1].help.as_ref().unwrap().contains("drain_timeout"));
    let wrong = read_top(&node("runtime: process")).unwrap_err();
    assert!(wrong[0].help.as_ref().unwrap().contains("setting of a service"));
    assert_eq!(read_top(&node("{}")), Ok(XTop::default()));
}
