//! Hostile and arbitrary input: an error with a place, quickly, and never a panic.

#![allow(clippy::unwrap_used)] // A failed expectation ends a test.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use keel_compose::{Code, Diagnostic, LoadOptions, MemorySource, Project, load};
use proptest::prelude::*;

fn read(bytes: impl Into<Vec<u8>>) -> Result<Project, Vec<Diagnostic>> {
    let source = MemorySource::new().with("/p/compose.yaml", bytes);
    load(&LoadOptions::new("/p", BTreeMap::new()), &source)
}

fn refused_within(limit: Duration, text: String, code: Code) {
    let start = Instant::now();
    let error = read(text).unwrap_err().remove(0);
    assert!(start.elapsed() < limit, "took {:?}", start.elapsed());
    assert_eq!(error.code, code);
    assert!(error.span.is_some());
}

#[test]
fn an_alias_bomb_is_refused_within_a_second() {
    let mut text = String::from("x-0: &a0 {k: [a, a, a, a, a, a, a, a, a, a]}\n");
    for level in 1..30 {
        let alias = format!("*a{}", level - 1);
        let list = [alias.as_str(); 10].join(", ");
        text += &format!("x-{level}: &a{level} {{k: [{list}]}}\n");
    }
    refused_within(Duration::from_secs(1), text, Code::Budget);
}

#[test]
fn a_cyclic_alias_is_refused_within_a_second() {
    refused_within(Duration::from_secs(1), "a: &a\n  b: &b [*a]\n".to_owned(), Code::Cycle);
    refused_within(Duration::from_secs(1), "x: &x\n  <<: *x\n".to_owned(), Code::Cycle);
}

#[test]
fn deep_nesting_is_refused_within_a_second() {
    for (open, close) in [("[", "]"), ("{a: ", "}")] {
        let text = format!("x-a: {}1{}", open.repeat(100_000), close.repeat(100_000));
        let start = Instant::now();
        assert!(read(text).is_err());
        assert!(start.elapsed() < Duration::from_secs(1));
    }
    let mut block = String::new();
    for level in 0..300 {
        block += &format!("{}a:\n", " ".repeat(level));
    }
    assert!(read(block).is_err());
}

#[test]
fn bytes_that_are_not_text_have_a_place() {
    let error = read(&b"services:\n  a: \xff\n"[..]).unwrap_err().remove(0);
    let span = error.span.unwrap();
    assert_eq!((span.line, span.column), (2, 6));
}

#[test]
fn a_long_chain_of_extends_is_bounded() {
    let mut text = String::from("services:\n");
    for at in 0..500 {
        text += &format!("  s{at}: {{extends: s{}, command: x}}\n", at + 1);
    }
    text += "  s500: {command: x}\n";
    // Bounded either way: refused, or done without exhausting the stack.
    let start = Instant::now();
    let _ = read(text);
    assert!(start.elapsed() < Duration::from_secs(5));
}

/// Lines that look like Compose files, so that arbitrary combinations get past the parser.
fn fragment() -> impl Strategy<Value = String> {
    let line = prop::sample::select(vec![
        "services:",
        "  a:",
        "  b: &b",
        "    image: x",
        "    <<: *b",
        "    command: [a, \"${X:-y}\"]",
        "    command: ./a $PORT",
        "    ports: [\"80:80\", 9, \"1-2:3-4\", {target: 1}]",
        "    volumes: [a:/b, /c, {type: bind, source: x, target: /y}]",
        "    environment: {A: , B: 1, C: 0x1, D: 2024-01-01}",
        "    environment: [A, B=1]",
        "    depends_on: [a, b]",
        "    extends: a",
        "    extends: {file: compose.yaml, service: b}",
        "    deploy: {replicas: ${N:-2}, resources: {limits: {cpus: 0.1}}}",
        "    healthcheck: !reset {test: x}",
        "    labels: !override [a=b]",
        "    x-keel: {runtime: process}",
        "    networks: {n: }",
        "    build: .",
        "include: [compose.yaml]",
        "networks: {n: {ipam: {config: [{subnet: a}]}}}",
        "volumes: {a: }",
        "configs: {c: {content: x}}",
        "name: ${N}",
        "---",
        "- x",
        "? y",
        "\t",
        "#",
    ]);
    prop::collection::vec(line, 0..14).prop_map(|lines| lines.join("\n"))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = read(bytes);
    }

    #[test]
    fn arbitrary_text_never_panics(text in "[ -~\n\t\u{80}-\u{2ff}]{0,200}") {
        let _ = read(text);
    }

    #[test]
    fn arbitrary_fragments_never_panic(text in fragment()) {
        let source = MemorySource::new().with("/p/compose.yaml", text);
        if let Ok(project) = load(&LoadOptions::new("/p", BTreeMap::new()), &source) {
            let _ = (project.json_text(), project.to_yaml(), project.to_stack(&source));
        }
    }

    #[test]
    fn arbitrary_values_are_printed_and_read_back(value in "[ -~\n\t\u{a0}-\u{17f}]{0,40}") {
        let quoted = serde_json::to_string(&value.replace('$', "$$")).unwrap();
        let text = format!("services: {{a: {{image: x, environment: {{V: {quoted}}}}}}}");
        let project = read(text).unwrap();
        let again = read(project.to_yaml()).unwrap();
        let json = again.to_json();
        prop_assert_eq!(json["services"]["a"]["environment"]["V"].as_str(), Some(value.as_str()));
    }

    #[test]
    fn arbitrary_variable_files_never_panic(text in "[ -~\n\t]{0,120}") {
        let source = MemorySource::new().with("/p/compose.yaml", "services: {a: {image: x}}").with("/p/.env", text);
        let _ = load(&LoadOptions::new("/p", BTreeMap::new()), &source);
    }
}
