//! Paths: no spelling of a path leads past the route that guards it.

use std::net::Ipv4Addr;
use std::sync::OnceLock;

use keel_model::{Filters, RouteKind, Rule};
use keel_route::memory::Memory;
use keel_route::path::forwarded;
use keel_route::request::RequestView;
use keel_route::snapshot::{RouteEntry, RouteTable};
use keel_route::table::Table;

/// What is guarded; all else is open.
const GUARDED: &str = "admin";

/// `paths`.
pub fn run(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if !text.starts_with('/') || text.contains('?') || !text.bytes().all(|b| b.is_ascii_graphic()) {
        return;
    }
    let path = forwarded(text);
    assert_eq!(forwarded(&path), path, "resolved twice");
    assert!(path.starts_with('/'), "{path:?}");
    let is_dots =
        |segment: &str| matches!(&segment.to_ascii_lowercase().replace("%2e", ".")[..], "." | "..");
    assert!(!path.split('/').any(is_dots), "dots are left in {path:?}");

    let headers: &[(&str, &str)] = &[];
    let view = RequestView {
        method: "GET",
        host: "a",
        path: text,
        query: None,
        client: Ipv4Addr::LOCALHOST.into(),
        tls: false,
        sni: None,
        headers: &headers,
    };
    let found = table().find(&view).map(|route| route.name());
    if found == Some("open") {
        for service in SERVICES {
            let seen = service.read(&path);
            assert_ne!(
                seen.first().map(String::as_str),
                Some(GUARDED),
                "{service:?} sees {seen:?}"
            );
        }
    }
}

fn table() -> &'static Table {
    static TABLE: OnceLock<Table> = OnceLock::new();
    TABLE.get_or_init(|| {
        let route = |name: &str, path: &str, priority| RouteEntry {
            name: name.into(),
            rule: Rule::PathPrefix(path.into()),
            priority,
            kind: RouteKind::Http,
            clusters: vec![("a/b:1".into(), 1)],
            filters: Filters::default(),
            timeout_ms: None,
        };
        let routes = vec![route("guarded", "/admin", 2), route("open", "/", 1)];
        let table = RouteTable { routes, redirect_https: None };
        Table::compile(&table, &Memory::new([7; 48])).expect("good routes")
    })
}

/// How a service reads a path.
#[derive(Clone, Copy, Debug)]
struct Service {
    /// A backslash parts segments.
    backslash: bool,
    /// What is encoded is decoded before the path is split.
    decodes_first: bool,
    /// `;x` does not belong to a segment.
    parameters: bool,
}

const SERVICES: [Service; 8] = {
    let mut services = [Service { backslash: false, decodes_first: false, parameters: false }; 8];
    let mut at = 0;
    while at < 8 {
        services[at] =
            Service { backslash: at & 1 != 0, decodes_first: at & 2 != 0, parameters: at & 4 != 0 };
        at += 1;
    }
    services
};

impl Service {
    /// The segments that it sees: merged slashes, resolved dots.
    fn read(self, path: &str) -> Vec<String> {
        let path = if self.decodes_first { decoded(path) } else { path.to_owned() };
        let path = if self.backslash { path.replace('\\', "/") } else { path };
        let mut seen: Vec<String> = Vec::new();
        for segment in path.split('/') {
            let segment =
                if self.parameters { segment.split(';').next().unwrap_or("") } else { segment };
            let segment = if self.decodes_first { segment.to_owned() } else { decoded(segment) };
            match segment.as_str() {
                "" | "." => {}
                ".." => drop(seen.pop()),
                _ => seen.push(segment),
            }
        }
        seen
    }
}

/// Percent-encoding decoded, once.
fn decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let digits = bytes.get(at + 1..at + 3).and_then(|d| std::str::from_utf8(d).ok());
        let value = digits.filter(|d| d.bytes().all(|b| b.is_ascii_hexdigit()));
        match value.and_then(|d| u8::from_str_radix(d, 16).ok()) {
            Some(byte) if bytes[at] == b'%' => {
                out.push(byte);
                at += 3;
            }
            _ => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}
