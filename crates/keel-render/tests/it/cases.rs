//! What routes mean, as a table: routes, then requests with what must come of them. Both engines are held to it.

#![allow(clippy::too_many_lines, reason = "tables")]

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use keel_model::{
    BasicAuth, ClientKey, Compress, Cors, HeaderEdits, PathRewrite, RateLimit, Redirect, Rewrite,
    Rule,
};
use keel_render::Engine;
use keel_route::snapshot::RouteEntry;

use crate::make::{all, any, at, host, id, not, prefix, route, with_filters};

/// One group of routes and what they do.
pub struct Case {
    pub name: &'static str,
    pub routes: Vec<RouteEntry>,
    pub asks: Vec<Ask>,
    /// Held to by this engine only; the other one reports a gap.
    pub only: Option<Engine>,
}

/// A request and what must come of it.
pub struct Ask {
    /// `GET host/path`.
    pub line: &'static str,
    pub fields: &'static str,
    pub from: Ipv4Addr,
    pub expected: &'static [Expect],
}

/// What must be so.
#[derive(Clone, Copy, Debug)]
pub enum Expect {
    Status(u16),
    /// The endpoint with this name answered.
    From(&'static str),
    /// The endpoint saw this line.
    Sees(&'static str),
    /// The endpoint saw no line that begins with this.
    SeesNo(&'static str),
    /// The answer has this field.
    Field(&'static str),
    /// The answer has no such field.
    NoField(&'static str),
}

use Expect::{Field, From, NoField, Sees, SeesNo, Status};

const HERE: Ipv4Addr = Ipv4Addr::LOCALHOST;

/// A request without further fields.
fn ask(line: &'static str, expected: &'static [Expect]) -> Ask {
    Ask { line, fields: "", from: HERE, expected }
}

fn ask_with(line: &'static str, fields: &'static str, expected: &'static [Expect]) -> Ask {
    Ask { line, fields, from: HERE, expected }
}

fn case(name: &'static str, routes: Vec<RouteEntry>, asks: Vec<Ask>) -> Case {
    Case { name, routes, asks, only: None }
}

fn text(text: &str) -> String {
    text.to_owned()
}

fn map<const N: usize>(pairs: [(&str, &str); N]) -> BTreeMap<String, String> {
    pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).into()
}

fn path(change: PathRewrite) -> Rewrite {
    Rewrite { host: None, path: vec![change] }
}

fn rewriting(name: &str, at: &str, change: PathRewrite) -> RouteEntry {
    with_filters(route(name, prefix(at), "one"), |f| f.rewrite = Some(path(change)))
}

/// All cases. Endpoints are called `one`, `two` and `three`.
pub fn cases() -> Vec<Case> {
    let mut cases = matching();
    cases.extend(spellings());
    cases.extend(rewrites());
    cases.extend(redirects());
    cases.extend(headers());
    cases.extend(guards());
    cases.extend(cross_origin());
    cases.extend(hostile());
    cases
}

fn matching() -> Vec<Case> {
    vec![
        case(
            "hosts",
            vec![
                route("a", host("a.example"), "one"),
                route("b", host("*.b.example"), "two"),
                route("c", Rule::HostRegex(text("c[0-9]+\\.example")), "three"),
            ],
            vec![
                ask("GET a.example/", &[From("one")]),
                ask("GET A.EXAMPLE:8080/", &[From("one")]),
                ask("GET x.b.example/", &[From("two")]),
                ask("GET b.example/", &[Status(404)]),
                ask("GET x.y.b.example/", &[Status(404)]),
                ask("GET c12.example/", &[From("three")]),
                ask("GET C1.example/", &[From("three")]),
                ask("GET xc1.example/", &[Status(404)]),
                ask("GET c1.example.org/", &[Status(404)]),
                ask("GET a.example./", &[From("one")]),
            ],
        ),
        case(
            "paths",
            vec![
                at(3, route("exact", Rule::Path(text("/api/exact")), "one")),
                at(2, route("prefix", prefix("/api"), "two")),
                at(1, route("regex", Rule::PathRegex(text("/v[0-9]{1,2}/(a|b)")), "three")),
            ],
            vec![
                ask("GET h/api/exact?q=1", &[From("one"), Sees("GET /api/exact?q=1 HTTP/1.1")]),
                ask("GET h/api/exact/", &[From("two")]),
                ask("GET h/api", &[From("two")]),
                ask("GET h/api/", &[From("two")]),
                ask("GET h/apis", &[Status(404)]),
                ask("GET h/API", &[Status(404)]),
                ask("GET h/v12/bc", &[From("three")]),
                ask("GET h/v123/b", &[Status(404)]),
                ask("GET h/x/v1/a", &[Status(404)]),
            ],
        ),
        case(
            "priorities, and names among equals",
            vec![
                at(1, route("low", prefix("/"), "one")),
                at(5, route("z", prefix("/x"), "two")),
                at(5, route("b", prefix("/x"), "three")),
            ],
            vec![ask("GET h/x", &[From("three")]), ask("GET h/y", &[From("one")])],
        ),
        case(
            "methods, headers and queries",
            vec![
                at(9, route("m", Rule::Method(text("PURGE")), "one")),
                at(8, route("h", Rule::Header(text("X-A"), Some(text("1, 2"))), "two")),
                at(7, route("p", Rule::Header(text("x-there"), None), "three")),
                at(6, route("r", Rule::HeaderRegex(text("X-R"), text("^v[12]$")), "one")),
                at(5, route("q", Rule::Query(text("a b"), Some(text("c&d"))), "two")),
                at(4, route("n", Rule::Query(text("debug"), None), "three")),
            ],
            vec![
                ask("PURGE h/", &[From("one")]),
                ask("GET h/", &[Status(404)]),
                ask_with("GET h/", "X-A: 1, 2\r\n", &[From("two")]),
                ask_with("GET h/", "X-A: 1\r\n", &[Status(404)]),
                ask_with("GET h/", "X-THERE: x\r\n", &[From("three")]),
                ask_with("GET h/", "X-R: v2\r\n", &[From("one")]),
                ask_with("GET h/", "X-R: v3\r\n", &[Status(404)]),
                ask("GET h/?x=1&a+b=c%26d", &[From("two")]),
                ask("GET h/?%61%20b=c%26d", &[From("two")]),
                ask("GET h/?a+b=c", &[Status(404)]),
                ask("GET h/?debug", &[From("three")]),
                ask("GET h/?x&debug=1", &[From("three")]),
                ask("GET h/?debugger", &[Status(404)]),
            ],
        ),
        case(
            "all, any and not, with the client's address",
            vec![at(
                2,
                route(
                    "both",
                    all([
                        any([host("a"), prefix("/a")]),
                        not(Rule::Method(text("POST"))),
                        Rule::Client("127.0.0.0/24".parse().unwrap()),
                    ]),
                    "one",
                ),
            )],
            vec![
                ask("GET a/", &[From("one")]),
                ask("GET b/a", &[From("one")]),
                ask("GET b/b", &[Status(404)]),
                ask("POST a/", &[Status(404)]),
                Ask {
                    line: "GET a/",
                    fields: "",
                    from: Ipv4Addr::new(127, 7, 0, 1),
                    expected: &[Status(404)],
                },
            ],
        ),
    ]
}

fn spellings() -> Vec<Case> {
    vec![case(
        "spellings of one path",
        vec![
            at(2, route("admin", prefix("/admin/x y"), "two")),
            at(1, route("rest", prefix("/"), "one")),
        ],
        vec![
            ask("GET h/admin/x%20y", &[From("two"), Sees("GET /admin/x%20y HTTP/1.1")]),
            ask("GET h/%61dmin/x%20y/z", &[From("two"), Sees("GET /%61dmin/x%20y/z HTTP/1.1")]),
            ask("GET h//admin///x%20y", &[From("two"), Sees("GET //admin///x%20y HTTP/1.1")]),
            ask("GET h/a/../admin/b?z=..", &[From("one"), Sees("GET /admin/b?z=.. HTTP/1.1")]),
            ask("GET h/a/%2e%2E/b?z=../..", &[From("one"), Sees("GET /b?z=../.. HTTP/1.1")]),
            ask("GET h/admin/../b", &[From("one"), Sees("GET /b HTTP/1.1")]),
            ask("GET h/a%2Fb%C3%A4?x=%20", &[From("one"), Sees("GET /a%2Fb%C3%A4?x=%20 HTTP/1.1")]),
        ],
    )]
}

fn rewrites() -> Vec<Case> {
    vec![case(
        "rewrites",
        vec![
            rewriting("replace", "/replace", PathRewrite::Replace(text("/new place"))),
            rewriting("strip", "/s", PathRewrite::StripPrefix(vec![text("/s/a"), text("/s")])),
            rewriting("add", "/add", PathRewrite::AddPrefix(text("/v1/$x/"))),
            rewriting(
                "swap",
                "/old",
                PathRewrite::ReplacePrefix { from: text("/old"), to: text("/new/") },
            ),
            rewriting(
                "root",
                "/gone",
                PathRewrite::ReplacePrefix { from: text("/gone"), to: text("/") },
            ),
            rewriting(
                "regex",
                "/r",
                PathRewrite::Regex {
                    from: text("/(?<user>[a-z]+)/([0-9]+)"),
                    to: text("/$2/${user}%/$$1/\\1"),
                },
            ),
            with_filters(route("host", prefix("/host"), "one"), |f| {
                f.rewrite = Some(Rewrite {
                    host: Some(text("inside.example")),
                    path: vec![
                        PathRewrite::StripPrefix(vec![text("/host")]),
                        PathRewrite::AddPrefix(text("/in")),
                    ],
                });
            }),
        ],
        vec![
            ask("GET h/replace/x?q=1", &[Sees("GET /new%20place?q=1 HTTP/1.1")]),
            ask(
                "GET h/s/a/b?q=%20",
                &[Sees("GET /b?q=%20 HTTP/1.1"), Sees("x-forwarded-prefix: /s/a")],
            ),
            ask("GET h/s/ab", &[Sees("GET /ab HTTP/1.1"), Sees("x-forwarded-prefix: /s")]),
            ask("GET h/add/s", &[SeesNo("x-forwarded-prefix")]),
            ask("GET h/s", &[Sees("GET / HTTP/1.1")]),
            ask("GET h/s/a", &[Sees("GET / HTTP/1.1")]),
            ask("GET h/s//x", &[Sees("GET /x HTTP/1.1")]),
            ask("GET h/add/x", &[Sees("GET /v1/$x/add/x HTTP/1.1")]),
            ask("GET h/old/x%2Fy", &[Sees("GET /new/x%2Fy HTTP/1.1")]),
            ask("GET h/old", &[Sees("GET /new HTTP/1.1")]),
            ask("GET h/gone/x", &[Sees("GET /x HTTP/1.1")]),
            ask("GET h/gone", &[Sees("GET / HTTP/1.1")]),
            ask("GET h/r/bob/12/z", &[Sees("GET /r/12/bob%25/$1/%5C1/z HTTP/1.1")]),
            ask("GET h/r/nothing", &[Sees("GET /r/nothing HTTP/1.1")]),
            ask("GET h/host/x", &[Sees("GET /in/x HTTP/1.1"), Sees("host: inside.example")]),
        ],
    )]
}

fn redirects() -> Vec<Case> {
    let to = |name: &str, redirect: Redirect| {
        with_filters(route(name, prefix(&format!("/{name}")), "one"), |f| {
            f.redirect = Some(redirect);
        })
    };
    let plain = Redirect { scheme: None, host: None, port: None, path: None, status: 302 };
    let swap = PathRewrite::ReplacePrefix { from: text("/path"), to: text("/new") };
    vec![case(
        "redirects",
        vec![
            at(1, route("rest", prefix("/"), "one")),
            to("tls", Redirect { scheme: Some(text("https")), status: 301, ..plain.clone() }),
            to("port", Redirect { port: Some(8443), scheme: Some(text("https")), ..plain.clone() }),
            to("host", Redirect { host: Some(text("b.example")), status: 308, ..plain.clone() }),
            to("path", Redirect { path: Some(swap), status: 307, ..plain.clone() }),
            to("odd", Redirect { port: Some(80), status: 200, ..plain.clone() }),
        ],
        vec![
            ask(
                "GET a.example:8080/tls/x?q=1",
                &[Status(301), Field("location: https://a.example/tls/x?q=1")],
            ),
            ask(
                "GET a.example/port",
                &[Status(302), Field("location: https://a.example:8443/port")],
            ),
            ask(
                "GET a.example:8080/host",
                &[Status(308), Field("location: http://b.example/host")],
            ),
            ask(
                "GET a.example:8080/path/y?z",
                &[Status(307), Field("location: http://a.example:8080/new/y?z")],
            ),
            ask("GET a.example:8080/odd", &[Status(302), Field("location: http://a.example/odd")]),
            ask("GET a.example/odd", &[From("one")]),
            ask("GET a.example:80/odd", &[From("one")]),
            ask("GET B.example/host", &[From("one")]),
            ask("GET a.example/pathology", &[From("one")]),
            ask("GET a.example/path%2Fx", &[Status(400)]),
        ],
    )]
}

fn headers() -> Vec<Case> {
    let edits = HeaderEdits {
        remove: vec![text("X-Gone"), text("Cookie")],
        set: map([("X-Set", "50% of $HOME"), ("X-Other", "it's; \"quoted\" {}")]),
        add: map([("X-Add", "b c")]),
    };
    let answers = HeaderEdits {
        remove: vec![text("X-Name")],
        set: map([("X-Set", "100%; $uri %[src]")]),
        add: map([("X-Extra", "two")]),
    };
    vec![
        case(
            "fields of requests",
            vec![with_filters(route("h", prefix("/"), "one"), |f| {
                f.request_headers = edits.clone()
            })],
            vec![
                ask_with(
                    "GET h/",
                    "X-Gone: 1\r\nCookie: a=b\r\nX-Set: mine\r\n",
                    &[
                        SeesNo("x-gone"),
                        SeesNo("cookie"),
                        Sees("x-set: 50% of $HOME"),
                        Sees("x-other: it's; \"quoted\" {}"),
                        Sees("x-add: b c"),
                        Sees("x-forwarded-for: 127.0.0.1"),
                        Sees("x-forwarded-proto: http"),
                        Sees("x-forwarded-host: h"),
                    ],
                ),
                ask_with(
                    "GET h/",
                    "X-Add: a\r\nX-Forwarded-Host: o\r\n",
                    &[Sees("x-forwarded-host: o")],
                ),
            ],
        ),
        case(
            "fields of answers",
            vec![with_filters(route("h", prefix("/"), "one"), |f| f.response_headers = answers)],
            vec![ask_with(
                "GET h/",
                "X-Want-Field: X-Extra: one\r\nX-Want-Status: 503\r\n",
                &[
                    Status(503),
                    NoField("x-name"),
                    Field("x-set: 100%; $uri %[src]"),
                    Field("x-extra: one"),
                    Field("x-extra: two"),
                ],
            )],
        ),
    ]
}

/// `pw` as bcrypt, which both know.
pub const BCRYPT: &str = "bob:$2y$05$u6OzfYto6sQcoENUGLY7Zub966chKoeMLeuoS61MyPWZTsWzDe0ES";

fn guards() -> Vec<Case> {
    let auth = BasicAuth {
        realm: text("a \"b\" \\ $c"),
        users: vec![text(BCRYPT), text("bad\nline:x"), text("nohash")],
        user_header: Some(text("X-User")),
        remove_header: true,
    };
    let limit =
        |key: ClientKey| RateLimit { requests: 1, per: Duration::from_secs(60), burst: 2, key };
    let limited = |name: &str, key: ClientKey| {
        with_filters(route(name, prefix(&format!("/{name}")), "one"), |f| {
            f.rate_limits = vec![limit(key)];
        })
    };
    vec![
        case(
            "networks that are let in",
            vec![with_filters(route("in", prefix("/"), "one"), |f| {
                f.allow = vec!["127.0.0.0/24".parse().unwrap(), "::1/128".parse().unwrap()];
            })],
            vec![
                ask("GET h/", &[From("one")]),
                Ask {
                    line: "GET h/",
                    fields: "",
                    from: Ipv4Addr::new(127, 7, 0, 1),
                    expected: &[Status(403)],
                },
            ],
        ),
        case(
            "passwords",
            vec![with_filters(route("auth", prefix("/"), "one"), |f| f.basic_auth = Some(auth))],
            vec![
                ask(
                    "GET h/",
                    &[Status(401), Field(r#"www-authenticate: Basic realm="a \"b\" \\ $c""#)],
                ),
                ask_with("GET h/", "Authorization: Basic Ym9iOndyb25n\r\n", &[Status(401)]),
                ask_with(
                    "GET h/",
                    "Authorization: Basic Ym9iOnB3\r\nX-User: root\r\n",
                    &[From("one"), Sees("x-user: bob"), SeesNo("authorization")],
                ),
            ],
        ),
        case(
            "rate limits",
            vec![
                limited("all", ClientKey::All),
                limited("source", ClientKey::Source),
                limited("header", ClientKey::Header(text("X-Key"))),
                limited("cookie", ClientKey::Cookie(text("k"))),
            ],
            vec![
                ask("GET h/all", &[From("one")]),
                ask("GET h/all", &[From("one")]),
                ask("GET h/all", &[Status(429)]),
                ask("GET h/source", &[From("one")]),
                ask("GET h/source", &[From("one")]),
                ask("GET h/source", &[Status(429)]),
                Ask {
                    line: "GET h/source",
                    fields: "",
                    from: Ipv4Addr::new(127, 7, 0, 1),
                    expected: &[From("one")],
                },
                ask_with("GET h/header", "X-Key: a\r\n", &[From("one")]),
                ask_with("GET h/header", "X-Key: a\r\n", &[From("one")]),
                ask_with("GET h/header", "X-Key: a\r\n", &[Status(429)]),
                ask_with("GET h/header", "X-Key: b\r\n", &[From("one")]),
                ask("GET h/header", &[From("one")]),
                ask("GET h/header", &[From("one")]),
                ask("GET h/header", &[Status(429)]),
                Ask {
                    line: "GET h/header",
                    fields: "",
                    from: Ipv4Addr::new(127, 7, 0, 1),
                    expected: &[From("one")],
                },
                ask_with("GET h/cookie", "Cookie: j=1; k=a\r\n", &[From("one")]),
                ask_with("GET h/cookie", "Cookie: k=a; j=2\r\n", &[From("one")]),
                ask_with("GET h/cookie", "Cookie: k=a\r\n", &[Status(429)]),
                ask_with("GET h/cookie", "Cookie: k=b\r\n", &[From("one")]),
            ],
        ),
        case(
            "sizes of bodies",
            vec![with_filters(route("size", prefix("/"), "one"), |f| f.max_body = Some(10))],
            vec![
                ask_with(
                    "POST h/",
                    "Content-Length: 10\r\n\r\n0123456789",
                    &[From("one"), Sees("body 10")],
                ),
                ask_with("POST h/", "Content-Length: 11\r\n\r\n0123456789a", &[Status(413)]),
            ],
        ),
        case(
            "compression",
            vec![
                with_filters(route("zip", prefix("/zip"), "one"), |f| {
                    f.compress = Some(Compress::default());
                }),
                route("plain", prefix("/plain"), "one"),
            ],
            vec![
                ask_with(
                    "GET h/zip",
                    "Accept-Encoding: gzip\r\nX-Want-Size: 4000\r\n",
                    &[Status(200), Field("content-encoding: gzip")],
                ),
                ask_with(
                    "GET h/zip",
                    "Accept-Encoding: gzip\r\nX-Want-Size: 4000\r\nX-Want-Type: image/png\r\n",
                    &[From("one"), NoField("content-encoding")],
                ),
                ask_with(
                    "GET h/zip",
                    "X-Want-Size: 4000\r\n",
                    &[From("one"), NoField("content-encoding")],
                ),
                ask_with(
                    "GET h/plain",
                    "Accept-Encoding: gzip\r\nX-Want-Size: 4000\r\n",
                    &[From("one"), NoField("content-encoding")],
                ),
            ],
        ),
    ]
}

fn cross_origin() -> Vec<Case> {
    let cors = Cors {
        origins: vec![text("https://a.example"), text("https://*.b.example")],
        methods: vec![text("GET"), text("PUT")],
        headers: vec![text("X-One")],
        expose: vec![text("X-Name")],
        credentials: true,
        max_age: Some(Duration::from_secs(600)),
    };
    let open = Cors { origins: vec![text("*")], headers: vec![text("*")], ..Cors::default() };
    vec![case(
        "scripts of other sites",
        vec![
            with_filters(route("cors", prefix("/cors"), "one"), |f| f.cors = Some(cors.clone())),
            with_filters(route("guarded", prefix("/guarded"), "one"), |f| {
                f.cors = Some(cors);
                f.basic_auth = Some(BasicAuth {
                    realm: text("r"),
                    users: vec![text(BCRYPT)],
                    user_header: None,
                    remove_header: false,
                });
            }),
            with_filters(route("open", prefix("/open"), "one"), |f| f.cors = Some(open)),
        ],
        vec![
            ask_with(
                "OPTIONS h/cors",
                "Origin: https://a.example\r\nAccess-Control-Request-Method: PUT\r\n",
                &[
                    Status(204),
                    Field("access-control-allow-origin: https://a.example"),
                    Field("access-control-allow-methods: GET, PUT"),
                    Field("access-control-allow-headers: X-One"),
                    Field("access-control-allow-credentials: true"),
                    Field("access-control-max-age: 600"),
                    Field(
                        "vary: Origin, Access-Control-Request-Method, Access-Control-Request-Headers",
                    ),
                ],
            ),
            ask_with(
                "OPTIONS h/cors",
                "Origin: https://evil.example\r\nAccess-Control-Request-Method: PUT\r\n",
                &[
                    Status(204),
                    NoField("access-control-allow-origin"),
                    NoField("access-control-allow-methods"),
                ],
            ),
            ask_with(
                "GET h/cors",
                "Origin: https://x.b.example\r\n",
                &[
                    From("one"),
                    Field("access-control-allow-origin: https://x.b.example"),
                    Field("access-control-expose-headers: X-Name"),
                ],
            ),
            ask_with(
                "GET h/cors",
                "Origin: https://x.y.b.example\r\n",
                &[From("one"), NoField("access-control-allow-origin")],
            ),
            ask_with("OPTIONS h/cors", "Origin: https://a.example\r\n", &[From("one")]),
            ask_with(
                "OPTIONS h/open",
                "Origin: http://z\r\nAccess-Control-Request-Method: GET\r\nAccess-Control-Request-Headers: x-a, x-b\r\n",
                &[
                    Status(204),
                    Field("access-control-allow-origin: *"),
                    Field("access-control-allow-methods: GET, HEAD, POST"),
                    Field("access-control-allow-headers: x-a, x-b"),
                ],
            ),
            ask(
                "GET h/open",
                &[From("one"), Field("access-control-allow-origin: *"), NoField("vary")],
            ),
            ask_with(
                "GET h/cors",
                "X-Want-Field: Access-Control-Allow-Origin: *\r\n",
                &[From("one"), NoField("access-control-allow-origin"), Field("vary: Origin")],
            ),
            ask_with(
                "GET h/guarded",
                "Origin: https://a.example\r\n",
                &[Status(401), Field("access-control-allow-origin: https://a.example")],
            ),
        ],
    )]
}

/// Values that would end a word, a directive or a line, if they were not quoted.
fn hostile() -> Vec<Case> {
    let value = "a\"b'c;d{e}f$g%[src]h%i\\j#k`l ${x} $1 \\1 %%";
    let set = |name: &str| {
        with_filters(route(name, prefix("/set"), "one"), |f| {
            f.request_headers.set = map([("X-Hostile", value)]);
            f.response_headers.set = map([("X-Hostile", value), ("X-Line", "a\r\nSet-Cookie: x")]);
            f.request_headers.add = map([("bad name", "x"), ("X-Nul", "\0")]);
        })
    };
    vec![case(
        "hostile values",
        vec![
            at(20, set("a\"; }\n$x%[y]")),
            at(9, route("h", Rule::Header(text("X-H"), Some(text(value))), "two")),
            at(8, route("q", Rule::Query(text("}; \"$"), Some(text("{'\\"))), "three")),
            at(7, route("p", Rule::Path(text("/x\"y;{z}'$%[a]\\")), "two")),
            at(
                6,
                route(
                    "r",
                    Rule::HeaderRegex(text("X-R"), text("^[\";{}'$ ]{2}\\\\#%\\[$")),
                    "three",
                ),
            ),
            at(5, route("e", Rule::Header(text("X-E"), Some(text(""))), "two")),
            at(4, route("m", Rule::Method(text("}")), "two")),
            at(4, route("d", Rule::Header(text("X-D"), Some(text("--"))), "two")),
            at(4, route("f", Rule::Header(text("X-D"), Some(text("}"))), "three")),
            at(4, route("l", Rule::Header(text("X-L"), Some(text("a\nb"))), "two")),
        ],
        vec![
            ask(
                "GET h/set",
                &[
                    From("one"),
                    Sees("x-hostile: a\"b'c;d{e}f$g%[src]h%i\\j#k`l ${x} $1 \\1 %%"),
                    Field("x-hostile: a\"b'c;d{e}f$g%[src]h%i\\j#k`l ${x} $1 \\1 %%"),
                    NoField("set-cookie"),
                    NoField("x-line"),
                ],
            ),
            ask_with(
                "GET h/",
                "X-H: a\"b'c;d{e}f$g%[src]h%i\\j#k`l ${x} $1 \\1 %%\r\n",
                &[From("two")],
            ),
            ask_with("GET h/", "X-H: a\r\n", &[Status(404)]),
            ask("GET h/?%7D%3B+%22%24=%7B%27%5C", &[From("three")]),
            ask("GET h/x%22y;%7Bz%7D'$%25%5Ba%5D%5C", &[From("two")]),
            ask_with("GET h/", "X-R: ;}\\#%[\r\n", &[From("three")]),
            ask_with("GET h/", "X-R: ;;}\\#%[\r\n", &[Status(404)]),
            ask_with("GET h/", "X-D: --\r\n", &[From("two")]),
            ask_with("GET h/", "X-D: }\r\n", &[From("three")]),
            ask_with("GET h/", "X-L: a\r\n", &[Status(404)]),
        ],
    )]
}

/// The clusters that the routes of all cases lead to.
pub fn clusters(
    endpoints: &[(&'static str, SocketAddr)],
) -> BTreeMap<String, keel_route::snapshot::Cluster> {
    let one =
        |(name, at): &(&'static str, SocketAddr)| (id(name), crate::make::cluster(&[(*name, *at)]));
    endpoints.iter().map(one).collect()
}
