//! Rules as people write them, mistakes at their character, and every rule that is printed reads back.

use keel_model::Rule;
use proptest::prelude::*;

use super::{Protocol, parse};

fn http(text: &str) -> Rule {
    parse(text, Protocol::Http).unwrap_or_else(|error| panic!("{text}: {error:?}"))
}

fn refused(text: &str) -> (usize, String) {
    let error = parse(text, Protocol::Http).expect_err(text);
    (error.at, error.message + " " + &error.help.unwrap_or_default())
}

#[test]
fn what_traefik_users_write() {
    for (text, printed) in [
        ("Host(`a.example.com`)", "Host(`a.example.com`)"),
        ("Host(\"A.example.com.\")", "Host(`a.example.com`)"),
        (
            "Host(`a`) && PathPrefix(`/b`) || Method(`get`)",
            "Host(`a`) && PathPrefix(`/b`) || Method(`GET`)",
        ),
        ("(Host(`a`)||Host(`b`))&&!Path(`/x`)", "(Host(`a`) || Host(`b`)) && !Path(`/x`)"),
        ("Host(`a`, `b`)", "Host(`a`) || Host(`b`)"),
        ("Host(`a`) && (Path(`/x`) && Path(`/y`))", "Host(`a`) && Path(`/x`) && Path(`/y`)"),
        ("host(`a`) && PATHPREFIX(`/`)", "Host(`a`) && PathPrefix(`/`)"),
        ("Header(`X-A`, `b`) && Query(`v`, `2`)", "Header(`X-A`, `b`) && Query(`v`, `2`)"),
        ("Headers(`X-A`, `b`)", "Header(`X-A`, `b`)"),
        ("Query(`a=b`, `c=d`)", "Query(`a`, `b`) && Query(`c`, `d`)"),
        (
            "ClientIP(`10.0.0.0/8`) || ClientIP(`::1`)",
            "ClientIP(`10.0.0.0/8`) || ClientIP(`::1/128`)",
        ),
        ("HostRegexp(`^[a-z]+\\.example\\.com$`)", "HostRegexp(`^[a-z]+\\.example\\.com$`)"),
        ("HostRegexp(`example`)", "HostRegexp(`^(?:.*(?:example).*)$`)"),
        ("PathRegexp(`^/v[0-9]+`)", "PathRegexp(`^/v[0-9]+`)"),
        ("PathRegexp(`\\.(css|js)$`)", "PathRegexp(`^(?:.*(?:\\.(css|js)$))`)"),
    ] {
        assert_eq!(http(text).to_string(), printed, "{text}");
    }
}

#[test]
fn rules_of_connections() {
    let tcp = |text| parse(text, Protocol::Tcp).map(|rule| rule.to_string()).map_err(|e| e.message);
    assert_eq!(tcp("HostSNI(`*`)"), Ok("HostSNI(`*`)".to_owned()));
    assert_eq!(
        tcp("HostSNI(`*.a.de`, `b.de`)"),
        Ok("HostSNI(`*.a.de`) || HostSNI(`b.de`)".to_owned())
    );
    assert!(tcp("HostSNIRegexp(`a`)").unwrap_err().contains("not supported"));
    assert!(tcp("Host(`a`)").unwrap_err().contains("HTTP rules"));
    assert!(refused("HostSNI(`a`)").1.contains("TCP rules"));
}

#[test]
fn mistakes_have_a_character() {
    for (text, at, needle) in [
        ("", 0, "empty"),
        ("Hots(`a`)", 0, "did you mean `Host`"),
        ("Host(`a`) && ", 13, "breaks off"),
        ("Host(`a`) & Path(`/`)", 10, "write `&&`"),
        ("Host(`a`) Path(`/`)", 10, "`&&` or `||` is missing before `Path`"),
        ("Host(`a`))", 9, "closes nothing"),
        ("(Host(`a`)", 10, "character 1 is never closed"),
        ("Host('a')", 5, "backticks"),
        ("Host(a)", 5, "backticks"),
        ("Host(`a", 5, "never closed"),
        ("Host()", 5, "needs a value"),
        ("Host", 4, "`(` is missing"),
        ("Host(`a` `b`)", 9, "`)` is missing"),
        ("Host(`a:80`)", 5, "leave out the port"),
        ("Host(`http://a`)", 5, "leave out scheme"),
        ("Path(`a`)", 5, "begin with `/`"),
        ("Header(`a b`, `c`)", 7, "name of a header"),
        ("Header(`a`, `b`, `c`)", 0, "two values"),
        ("PathRegexp(`(`)", 11, "not a regular expression: unclosed group"),
        ("HostRegexp(`{sub:[a-z]+}.a.de`)", 11, "version 2"),
        ("Path(`/x/{id}`)", 5, "version 2"),
        ("ClientIP(`10.0.0.0/33`)", 9, "not a network"),
        ("QueryRegexp(`a`, `b`)", 0, "not supported"),
        ("Host(`a`) ; Host(`b`)", 10, "no meaning"),
        ("!", 1, "breaks off"),
        ("|| Host(`a`)", 0, "a matcher must stand here"),
        ("Host(\"a\\n\")", 7, "double quotes"),
    ] {
        let (found, message) = refused(text);
        assert!(message.contains(needle), "{text}: {message}");
        assert_eq!(found, at, "{text}: {message}");
    }
}

#[test]
fn depth_and_length_are_bounded() {
    let deep = "(".repeat(100) + "Host(`a`)" + &")".repeat(100);
    assert!(refused(&deep).1.contains("64 deep"));
    assert!(refused(&"!".repeat(5000)).1.contains("64 deep"));
    let long = ["Host(`a`)"; 2000].join(" || ");
    assert!(refused(&long).1.contains("8192 characters"));
}

/// Rules in the form that the parser gives: lists have two parts or more, and none is inside one of its kind.
fn rules() -> impl Strategy<Value = Rule> {
    let value = "[a-z/`\" \\\\é]{0,6}";
    let leaf = prop_oneof![
        "([*]\\.)?[a-z]{1,8}(\\.[a-z0-9-]{1,8}){0,2}".prop_map(Rule::Host),
        value.prop_map(|text| Rule::Path(format!("/{text}"))),
        value.prop_map(|text| Rule::PathPrefix(format!("/{text}"))),
        "[a-z.+*]{0,5}"
            .prop_filter("a pattern", |p| regex::Regex::new(p).is_ok())
            .prop_map(|pattern| Rule::PathRegex(format!("^/{pattern}"))),
        "[a-z]{1,5}".prop_map(|pattern| Rule::HostRegex(format!("^{pattern}$"))),
        "[A-Z]{1,7}".prop_map(Rule::Method),
        ("[a-zA-Z-]{1,8}", proptest::option::of(value))
            .prop_map(|(name, value)| Rule::Header(name, value)),
        ("[a-z]{1,8}", proptest::option::of("[a-z]{0,3}"))
            .prop_map(|(name, value)| Rule::Query(name, value)),
        any::<u32>()
            .prop_map(|bits| Rule::Client(std::net::IpAddr::from(bits.to_be_bytes()).into())),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        let parts = proptest::collection::vec(inner.clone(), 2..4);
        prop_oneof![
            parts.clone().prop_map(|rules| super::joined(rules, Rule::All)),
            parts.prop_map(|rules| super::joined(rules, Rule::Any)),
            inner.prop_map(|rule| Rule::Not(Box::new(rule))),
        ]
    })
}

proptest! {
    #[test]
    fn what_is_printed_reads_back(rule in rules()) {
        prop_assert_eq!(parse(&rule.to_string(), Protocol::Http), Ok(rule));
    }

    #[test]
    fn any_text_is_read_or_refused_inside_of_it(text in "[a-zA-Z(),`\"'!&|* \\\\/.{}:]{0,60}") {
        if let Err(error) = parse(&text, Protocol::Http) {
            prop_assert!(error.at <= text.chars().count());
        }
    }
}
