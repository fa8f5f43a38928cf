//! Paths that services read in different ways: the engines refuse what our own proxy refuses, and send nothing elsewhere.

use std::net::SocketAddr;

use keel_model::Rule;
use keel_render::Engine;
use keel_route::memory::Memory;
use keel_route::request::RequestView;
use keel_route::snapshot::{RouteEntry, RouteTable};
use keel_route::table::Table;

use crate::cases;
use crate::echo::{Echo, ask};
use crate::engine::{Running, installed, own_address};
use crate::make::{all, at, host, prefix, route, routed};

/// What becomes of a request: the service it gets to, or the status with which it is refused.
type Verdict = Result<String, u16>;

/// What our own proxy decides.
fn ours(routes: &[RouteEntry], host: &str, path: &str) -> Verdict {
    let table = RouteTable { routes: routes.to_vec(), redirect_https: None };
    let table = Table::compile(&table, &Memory::new([0; 48])).unwrap();
    let headers: &[(&str, &str)] = &[];
    let view = RequestView {
        method: "GET",
        host,
        path,
        query: Some("q=;"),
        client: "127.0.0.1".parse().unwrap(),
        tls: false,
        sni: None,
        headers: &headers,
    };
    match table.find(&view) {
        None => Err(404),
        Some(route) if route.name() == "refused" => Err(400),
        Some(route) => Ok(route.clusters()[0].0.clone()),
    }
}

fn theirs(to: SocketAddr, host: &str, path: &str) -> Verdict {
    let request = format!("GET {path}?q=; HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    let answer = ask(to, "127.0.0.1".parse().unwrap(), request.as_bytes());
    match answer.status {
        200 => Ok(format!("shop/{}:80", answer.name())),
        status => Err(status),
    }
}

fn routes() -> Vec<RouteEntry> {
    let on = |name: &str, path: &str| all([host(name), prefix(path)]);
    vec![
        at(1, route("open", host("adm.test"), "one")),
        at(9, route("guarded", on("adm.test", "/admin"), "two")),
        at(9, route("below", on("adm.test", "/team/a b/keys"), "two")),
        at(9, route("exact", all([host("adm.test"), Rule::Path("/hook".to_owned())]), "two")),
        at(9, route("named", on("adm.test", "/odd;name"), "three")),
        at(1, route("other", host("plain.test"), "three")),
        at(1, route("only", on("only.test", "/api"), "three")),
        at(9, route("v", all([host("re.test"), Rule::PathRegex("/v[0-9]+/".to_owned())]), "two")),
        at(1, route("re", host("re.test"), "one")),
    ]
}

/// Paths on which all three agree.
const ALIKE: &[&str] = &[
    "/",
    "/admin",
    "/admins",
    "/admin/x",
    "//admin",
    "/%61dmin/x",
    "/x/../admin",
    "/admin/../x",
    "/admin%2Fusers",
    "/admin%2fusers",
    "/%2Fadmin",
    "/x%2F..%2Fadmin",
    "/..%2fadmin",
    "/open/..;/admin",
    "/open/..;x=1/admin",
    "/admin;x",
    "/admin;x/y",
    "/admin%3Bx",
    "/admin%3bx/y",
    "/;/admin",
    "/;x/;y/admin",
    "/;x%2Fadmin",
    "/;x%2Fadmin/y",
    "/%2F;x%5Cadmin",
    "/admin%5Cx",
    "/admin\\x",
    "/x\\..\\admin",
    "/admin%00",
    "/x%00",
    "/%61dmin%2fx",
    "/%2f%61dmin",
    "/team%2Fa%20b%2Fkeys",
    "/team;x/a%20b;y/keys;z",
    "/team/%5Ca%20b/;/keys/1",
    "/team%2fa%20b/keys/1",
    "/team/a%20b%2Fkey",
    "/team/a%20b/keys/1%2F2;x",
    "/hook",
    "/hook;x",
    "/hook%2Fx",
    "/hook/x;y",
    "/%2Fhook",
    "/odd;name",
    "/odd;name/x",
    "/odd",
    "/odd;other",
    "/admin/group%2Fproject",
    "/admin/x;v=1/y",
    "/api/group%2Fproject",
    "/api/x;v=1",
    "/users;v=1/admin",
    "/users;v=1/list/admin",
    "/x%2Fadmin",
    "/x;/admin",
    "/a%252fb",
    "/api%2Fx",
    "/%2Fapi",
    "/api",
];

/// Paths that the engines refuse though all their readings lead to one place.
const REFUSED_BY_ENGINES: &[&str] = &[
    "/x/..;/y",
    "/x%2F..%2Fy",
    "/x/a;;;;;;;;;;;;;;;;;;;;;",
    "/;%2F;%2F;%2F;%2Fx",
    "/team;%2Fx%2Fa%20b/keys",
];

/// Long paths, on which an expression could take too long.
fn long() -> Vec<String> {
    let long = "a".repeat(3900);
    vec![
        format!("/;%2F;%2F;%2Fadmin%2F{long}"),
        format!("/admin;{long}"),
        format!("/;%2F;%2F;{long}%2F%2F%2F%2F%2F%2F%2F%2Fadmin"),
        format!("/;%2F;%2F;%2F{long}"),
        format!("/x;{long}"),
        format!("/x;{long}{long}"),
    ]
}

#[test]
fn engines_refuse_what_our_own_proxy_refuses() {
    let echoes = ["one", "two", "three"].map(|name| (name, Echo::new(name)));
    let addresses: Vec<_> = echoes.iter().map(|(name, echo)| (*name, echo.address)).collect();
    let (mut wrong, long) = (Vec::new(), long());
    for engine in installed() {
        let bind = own_address();
        let running = Running::start(engine, &routed(bind, routes(), cases::clusters(&addresses)));
        for host in ["adm.test", "plain.test", "only.test"] {
            for path in ALIKE.iter().copied().chain(long.iter().map(String::as_str)) {
                let (ours, theirs) = (ours(&routes(), host, path), theirs(bind, host, path));
                // Where no route wants it, it may be refused before that is known.
                // nginx refuses what leads out of the root, in its own reading, for every host.
                let refused =
                    theirs == Err(400) && (ours == Err(404) || path.starts_with("/..%2f"));
                if ours != theirs && !refused {
                    wrong.push(format!("{engine:?} {host}{path}: {theirs:?}, ours {ours:?}"));
                }
            }
        }
        for path in REFUSED_BY_ENGINES {
            let verdicts = (ours(&routes(), "adm.test", path), theirs(bind, "adm.test", path));
            if verdicts != (Ok("shop/one:80".to_owned()), Err(400)) {
                wrong.push(format!("{engine:?} {path}: {verdicts:?}"));
            }
        }
        for (path, expected) in
            [("/v1/x", Ok("shop/two:80".to_owned())), ("/v1%2Fx", Err(400)), ("/x;y", Err(400))]
        {
            if theirs(bind, "re.test", path) != expected {
                wrong.push(format!("{engine:?} re.test{path}"));
            }
        }
        if !wrong.is_empty() {
            wrong.push(running.config());
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Paths of many pieces that can be read in several ways, the same ones in every run.
fn many() -> Vec<String> {
    let pieces = [
        "/", "/", "admin", "admin", "x", "..", ".", ";", "%3b", "%2F", "%2f", "%5C", "\\", "hook",
        "%61dmin", "%2e%2E", "//", "team", "a%20b", "keys",
    ];
    let mut state: u64 = 7;
    let mut draw = |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        usize::try_from(state >> 33).unwrap() % below
    };
    (0..1500)
        .map(|_| {
            let length = 1 + draw(7);
            let path: String = (0..length).map(|_| pieces[draw(pieces.len())]).collect();
            format!("/{path}")
        })
        .collect()
}

#[test]
fn no_spelling_gets_to_another_route_than_with_our_own_proxy() {
    let echoes = ["one", "two", "three"].map(|name| (name, Echo::new(name)));
    let addresses: Vec<_> = echoes.iter().map(|(name, echo)| (*name, echo.address)).collect();
    let mut wrong = Vec::new();
    for engine in installed() {
        let bind = own_address();
        let _running = Running::start(engine, &routed(bind, routes(), cases::clusters(&addresses)));
        let mut served = 0;
        for path in many() {
            let (ours, theirs) =
                (ours(&routes(), "adm.test", &path), theirs(bind, "adm.test", &path));
            served += usize::from(theirs.is_ok());
            // nginx takes two slashes for one before it resolves dots; the service gets what it makes of them.
            let dots = path.contains("..") || path.contains("%2e");
            let merged = engine == Engine::Nginx && path.contains("//") && dots;
            // They may refuse more.
            if theirs.is_ok() && ours != theirs && !merged {
                wrong.push(format!("{engine:?} {path}: {theirs:?}, ours {ours:?}"));
            }
        }
        assert!(served > 300, "{engine:?} served {served}");
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
