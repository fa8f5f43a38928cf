//! What is done with each label: the one table behind reading, warnings, refusals and `docs/labels.md`.

use crate::diagnostic::nearest;
use crate::keys::Support::{self, Honoured, Partly, Refused, Warn};

/// A label and what is done with it. `*` stands for a name, `[]` for a number in brackets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LabelRow {
    /// Its key without `traefik.`.
    pub pattern: &'static str,
    /// What is done with it.
    pub support: Support,
}

const fn row(pattern: &'static str, support: Support) -> LabelRow {
    LabelRow { pattern, support }
}

const NO_NETWORKS: Support = Warn("a service has one address, whatever networks it is in");
const OF_RULE: Support = Warn("certificates are for the hosts of the rule");
const OBSERVED: Support =
    Warn("every request is counted; logs and traces are set for the whole proxy");
const PROBE: Support =
    Warn("the check asks each instance at its own port with GET; a status from 200 to 399 is good");
const BUFFERED: Support = Warn("bodies are passed on as they come");
const EJECTED: Support =
    Warn("instances that fail are always left out; see `x-keel.traffic.outlier`");
const OWN_AUTH: Support = Refused(
    "the service would be open without it: use `basicauth`, or let the service ask by itself",
);
const BEHIND: Support = Refused(
    "the client is who connects, or who the PROXY protocol says (`x-keel.entrypoints.*.accept_proxy_from`)",
);
const SHARED_KEY: Support = Warn(
    "clients are told apart by the address that connects, or that the PROXY protocol says; use `requestheadername` for others",
);
const OLD_TLS: Support =
    Warn("use `redirectscheme`, or `tls` on the router: `web` then redirects by itself");
const CERTIFICATE_HEADERS: Support = Warn(
    "certificates of clients are checked by the entrypoint (`x-keel.entrypoints.*.client_auth`)",
);

/// All labels of Traefik 3 (and what 2 had besides) for a service.
pub const LABELS: &[LabelRow] = &[
    row("enable", Partly("`false` hides the service; without it a service with a rule is exposed")),
    row("docker.network", NO_NETWORKS),
    row("docker.lbswarm", NO_NETWORKS),
    row("docker.allownonrunning", Warn("instances that do not run get no requests")),
    row("swarm.network", NO_NETWORKS),
    row("swarm.lbswarm", NO_NETWORKS),
    row(
        "http.routers.*.rule",
        Partly("`QueryRegexp` is refused; a `PathPrefix` ends at a segment: `/api` is not `/apis`"),
    ),
    row(
        "http.routers.*.rulesyntax",
        Warn("both syntaxes are read where they can mean only one thing"),
    ),
    row(
        "http.routers.*.entrypoints",
        Partly(
            "`web` and `websecure` are there; others are defined by `x-keel.entrypoints`; without: `websecure` with TLS, else `web`",
        ),
    ),
    row("http.routers.*.priority", Honoured),
    row(
        "http.routers.*.middlewares",
        Partly(
            "in a fixed order: allow list, redirect, CORS, auth, rate limit, body size, path, headers, compression; paths change in the order of the list",
        ),
    ),
    row(
        "http.routers.*.service",
        Partly("a service that labels define, or the name of a Compose service"),
    ),
    row("http.routers.*.tls", Honoured),
    row("http.routers.*.tls.certresolver", Partly("any name stands for `x-keel.acme`")),
    row(
        "http.routers.*.tls.options",
        Warn("the oldest version and certificates of clients are settings of the entrypoint"),
    ),
    row("http.routers.*.tls.domains[].main", OF_RULE),
    row("http.routers.*.tls.domains[].sans", OF_RULE),
    row("http.routers.*.observability.accesslogs", OBSERVED),
    row("http.routers.*.observability.metrics", OBSERVED),
    row("http.routers.*.observability.tracing", OBSERVED),
    row("http.routers.*.observability.traceverbosity", OBSERVED),
    row("http.services.*.loadbalancer.server.port", Honoured),
    row("http.services.*.loadbalancer.server.scheme", Partly("`http`, `https`, `h2c`")),
    row(
        "http.services.*.loadbalancer.server.url",
        Refused("leave it out: the addresses of instances are known"),
    ),
    row("http.services.*.loadbalancer.server.weight", Warn("instances are alike")),
    row("http.services.*.loadbalancer.server.preservepath", Warn("the path is always kept")),
    row(
        "http.services.*.loadbalancer.strategy",
        Partly(
            "`wrr` is round robin; `p2c` and `leasttime` are the default; `hrw` hashes the source",
        ),
    ),
    row("http.services.*.loadbalancer.sticky", Honoured),
    row("http.services.*.loadbalancer.sticky.cookie", Honoured),
    row("http.services.*.loadbalancer.sticky.cookie.name", Partly("`keel_<service>` when absent")),
    row("http.services.*.loadbalancer.sticky.cookie.secure", Honoured),
    row("http.services.*.loadbalancer.sticky.cookie.samesite", Honoured),
    row("http.services.*.loadbalancer.sticky.cookie.maxage", Honoured),
    row(
        "http.services.*.loadbalancer.sticky.cookie.httponly",
        Warn("the cookie is never for scripts"),
    ),
    row(
        "http.services.*.loadbalancer.sticky.cookie.path",
        Warn("the cookie is for the whole host"),
    ),
    row(
        "http.services.*.loadbalancer.sticky.cookie.domain",
        Warn("the cookie is for the host of the request"),
    ),
    row("http.services.*.loadbalancer.healthcheck.path", Honoured),
    row("http.services.*.loadbalancer.healthcheck.interval", Honoured),
    row("http.services.*.loadbalancer.healthcheck.timeout", Honoured),
    row("http.services.*.loadbalancer.healthcheck.unhealthyinterval", PROBE),
    row("http.services.*.loadbalancer.healthcheck.hostname", PROBE),
    row("http.services.*.loadbalancer.healthcheck.headers.*", PROBE),
    row("http.services.*.loadbalancer.healthcheck.port", PROBE),
    row("http.services.*.loadbalancer.healthcheck.scheme", PROBE),
    row("http.services.*.loadbalancer.healthcheck.mode", PROBE),
    row("http.services.*.loadbalancer.healthcheck.method", PROBE),
    row("http.services.*.loadbalancer.healthcheck.status", PROBE),
    row("http.services.*.loadbalancer.healthcheck.followredirects", PROBE),
    row("http.services.*.loadbalancer.passivehealthcheck.failurewindow", EJECTED),
    row("http.services.*.loadbalancer.passivehealthcheck.maxfailedattempts", EJECTED),
    row(
        "http.services.*.loadbalancer.passhostheader",
        Partly("`true` is how it is; for `false` write `x-keel.routes[].rewrite.host`"),
    ),
    row(
        "http.services.*.loadbalancer.responseforwarding.flushinterval",
        Warn("answers are passed on as they come"),
    ),
    row(
        "http.services.*.loadbalancer.serverstransport",
        Warn("TLS towards a service is set by `x-keel.traffic.tls`"),
    ),
    row("http.middlewares.*.addprefix.prefix", Honoured),
    row("http.middlewares.*.stripprefix.prefixes", Partly("whole segments")),
    row("http.middlewares.*.stripprefix.forceslash", Warn("a path always begins with `/`")),
    row("http.middlewares.*.stripprefixregex.regex", Honoured),
    row("http.middlewares.*.replacepath.path", Honoured),
    row("http.middlewares.*.replacepathregex.regex", Partly("the first match is replaced")),
    row("http.middlewares.*.replacepathregex.replacement", Honoured),
    row("http.middlewares.*.redirectscheme.scheme", Honoured),
    row("http.middlewares.*.redirectscheme.port", Honoured),
    row("http.middlewares.*.redirectscheme.permanent", Partly("308, else 307")),
    row(
        "http.middlewares.*.redirectregex.regex",
        Partly("from any path of a host to another host: `^https?://old/(.*)`"),
    ),
    row(
        "http.middlewares.*.redirectregex.replacement",
        Partly("`https://new/${1}`, with a path before it if need be"),
    ),
    row("http.middlewares.*.redirectregex.permanent", Partly("308, else 307")),
    row("http.middlewares.*.headers.customrequestheaders.*", Honoured),
    row("http.middlewares.*.headers.customresponseheaders.*", Honoured),
    row("http.middlewares.*.headers.accesscontrolallowcredentials", Honoured),
    row("http.middlewares.*.headers.accesscontrolallowheaders", Honoured),
    row("http.middlewares.*.headers.accesscontrolallowmethods", Honoured),
    row("http.middlewares.*.headers.accesscontrolalloworigin", Honoured),
    row("http.middlewares.*.headers.accesscontrolalloworiginlist", Honoured),
    row(
        "http.middlewares.*.headers.accesscontrolalloworiginlistregex",
        Refused("name the origins, with one `*` if need be: https://*.example.com"),
    ),
    row("http.middlewares.*.headers.accesscontrolexposeheaders", Honoured),
    row("http.middlewares.*.headers.accesscontrolmaxage", Honoured),
    row(
        "http.middlewares.*.headers.addvaryheader",
        Partly("it is always added where it is needed"),
    ),
    row(
        "http.middlewares.*.headers.allowedhosts",
        Refused("match hosts by the rule of the router"),
    ),
    row(
        "http.middlewares.*.headers.hostsproxyheaders",
        Refused("match hosts by the rule of the router"),
    ),
    row("http.middlewares.*.headers.sslredirect", OLD_TLS),
    row("http.middlewares.*.headers.ssltemporaryredirect", OLD_TLS),
    row("http.middlewares.*.headers.sslhost", OLD_TLS),
    row("http.middlewares.*.headers.sslforcehost", OLD_TLS),
    row("http.middlewares.*.headers.sslproxyheaders.*", OLD_TLS),
    row("http.middlewares.*.headers.stsseconds", Honoured),
    row("http.middlewares.*.headers.stsincludesubdomains", Honoured),
    row("http.middlewares.*.headers.stspreload", Honoured),
    row(
        "http.middlewares.*.headers.forcestsheader",
        Partly("it is always sent; browsers believe it over TLS only"),
    ),
    row("http.middlewares.*.headers.framedeny", Honoured),
    row("http.middlewares.*.headers.customframeoptionsvalue", Honoured),
    row("http.middlewares.*.headers.contenttypenosniff", Honoured),
    row("http.middlewares.*.headers.browserxssfilter", Honoured),
    row("http.middlewares.*.headers.custombrowserxssvalue", Honoured),
    row("http.middlewares.*.headers.contentsecuritypolicy", Honoured),
    row("http.middlewares.*.headers.contentsecuritypolicyreportonly", Honoured),
    row("http.middlewares.*.headers.referrerpolicy", Honoured),
    row("http.middlewares.*.headers.permissionspolicy", Honoured),
    row("http.middlewares.*.headers.featurepolicy", Honoured),
    row("http.middlewares.*.headers.publickey", Warn("browsers know no pinned keys any more")),
    row("http.middlewares.*.headers.isdevelopment", Warn("headers are the same everywhere")),
    row("http.middlewares.*.basicauth.users", Honoured),
    row(
        "http.middlewares.*.basicauth.usersfile",
        Partly("read when the stack is applied, from the directory of the Compose file"),
    ),
    row("http.middlewares.*.basicauth.realm", Honoured),
    row("http.middlewares.*.basicauth.headerfield", Honoured),
    row("http.middlewares.*.basicauth.removeheader", Honoured),
    row("http.middlewares.*.digestauth.**", OWN_AUTH),
    row("http.middlewares.*.forwardauth.**", OWN_AUTH),
    row("http.middlewares.*.plugin.**", Refused("there are no plugins")),
    row("http.middlewares.*.ratelimit.average", Honoured),
    row("http.middlewares.*.ratelimit.period", Honoured),
    row("http.middlewares.*.ratelimit.burst", Honoured),
    row("http.middlewares.*.ratelimit.sourcecriterion.requestheadername", Honoured),
    row(
        "http.middlewares.*.ratelimit.sourcecriterion.requesthost",
        Partly("all clients of the route share one allowance"),
    ),
    row("http.middlewares.*.ratelimit.sourcecriterion.ipstrategy.depth", SHARED_KEY),
    row("http.middlewares.*.ratelimit.sourcecriterion.ipstrategy.excludedips", SHARED_KEY),
    row("http.middlewares.*.ratelimit.sourcecriterion.ipstrategy.ipv6subnet", SHARED_KEY),
    row("http.middlewares.*.ratelimit.redis.**", Warn("each proxy counts by itself")),
    row("http.middlewares.*.ipallowlist.sourcerange", Honoured),
    row("http.middlewares.*.ipallowlist.rejectstatuscode", Warn("it is 403")),
    row("http.middlewares.*.ipallowlist.ipstrategy.**", BEHIND),
    row("http.middlewares.*.ipallowlist.ipstrategy", BEHIND),
    row("http.middlewares.*.ipwhitelist.sourcerange", Honoured),
    row("http.middlewares.*.ipwhitelist.ipstrategy.**", BEHIND),
    row("http.middlewares.*.ipwhitelist.ipstrategy", BEHIND),
    row("http.middlewares.*.compress", Honoured),
    row("http.middlewares.*.compress.includedcontenttypes", Honoured),
    row(
        "http.middlewares.*.compress.excludedcontenttypes",
        Warn("name the types that are compressed: `includedcontenttypes`"),
    ),
    row("http.middlewares.*.compress.minresponsebodybytes", Honoured),
    row("http.middlewares.*.compress.encodings", Honoured),
    row(
        "http.middlewares.*.compress.defaultencoding",
        Warn("what a client does not ask for is not compressed"),
    ),
    row("http.middlewares.*.buffering.maxrequestbodybytes", Honoured),
    row("http.middlewares.*.buffering.memrequestbodybytes", BUFFERED),
    row("http.middlewares.*.buffering.maxresponsebodybytes", BUFFERED),
    row("http.middlewares.*.buffering.memresponsebodybytes", BUFFERED),
    row("http.middlewares.*.buffering.retryexpression", BUFFERED),
    row(
        "http.middlewares.*.retry.attempts",
        Partly("for all traffic of the service, within the budget of retries"),
    ),
    row("http.middlewares.*.retry.initialinterval", Warn("another instance is tried at once")),
    row("http.middlewares.*.chain.middlewares", Honoured),
    row("http.middlewares.*.circuitbreaker.**", EJECTED),
    row(
        "http.middlewares.*.inflightreq.**",
        Warn("requests in flight are bounded by `x-keel.traffic.limits`"),
    ),
    row("http.middlewares.*.errors.**", Warn("answers of the service are passed on as they are")),
    row("http.middlewares.*.contenttype", Warn("the media type is the service's")),
    row("http.middlewares.*.contenttype.autodetect", Warn("the media type is the service's")),
    row("http.middlewares.*.grpcweb.**", Warn("gRPC is passed on as it is")),
    row("http.middlewares.*.passtlsclientcert.**", CERTIFICATE_HEADERS),
    row("tcp.routers.*.rule", Partly("`HostSNIRegexp` and `ALPN` are refused")),
    row(
        "tcp.routers.*.rulesyntax",
        Warn("both syntaxes are read where they can mean only one thing"),
    ),
    row("tcp.routers.*.entrypoints", Partly("without: `websecure`; needed without TLS")),
    row("tcp.routers.*.priority", Honoured),
    row("tcp.routers.*.middlewares", Honoured),
    row(
        "tcp.routers.*.service",
        Partly("a service that labels define, or the name of a Compose service"),
    ),
    row("tcp.routers.*.tls", Honoured),
    row("tcp.routers.*.tls.passthrough", Honoured),
    row("tcp.routers.*.tls.certresolver", Partly("any name stands for `x-keel.acme`")),
    row(
        "tcp.routers.*.tls.options",
        Warn("the oldest version and certificates of clients are settings of the entrypoint"),
    ),
    row("tcp.routers.*.tls.domains[].main", OF_RULE),
    row("tcp.routers.*.tls.domains[].sans", OF_RULE),
    row("tcp.services.*.loadbalancer.server.port", Honoured),
    row("tcp.services.*.loadbalancer.server.tls", Honoured),
    row("tcp.services.*.loadbalancer.proxyprotocol", Honoured),
    row("tcp.services.*.loadbalancer.proxyprotocol.version", Honoured),
    row("tcp.services.*.loadbalancer.terminationdelay", Warn("each direction ends by itself")),
    row(
        "tcp.services.*.loadbalancer.serverstransport",
        Warn("TLS towards a service is set by `x-keel.traffic.tls`"),
    ),
    row("tcp.middlewares.*.ipallowlist.sourcerange", Partly("others are not served by the route")),
    row("tcp.middlewares.*.ipwhitelist.sourcerange", Partly("others are not served by the route")),
    row(
        "tcp.middlewares.*.inflightconn.amount",
        Warn("connections are bounded by `x-keel.traffic.limits`"),
    ),
    row(
        "udp.**",
        Refused("the load balancer speaks TCP: let the program listen on a port of the host"),
    ),
    row("tls.**", Warn("certificates are named by routes (`x-keel.routes[].tls`)")),
];

/// The row of a label, and its path with the words of the table.
pub(super) fn find(parts: &[&str]) -> Option<(&'static LabelRow, Vec<String>)> {
    LABELS.iter().find_map(|row| matched(row.pattern, parts).map(|path| (row, path)))
}

fn matched(pattern: &'static str, parts: &[&str]) -> Option<Vec<String>> {
    let words: Vec<&str> = pattern.split('.').collect();
    let mut path = Vec::with_capacity(parts.len());
    for (index, word) in words.iter().enumerate() {
        match *word {
            "**" => {
                let rest = parts.get(index..).filter(|rest| !rest.is_empty())?;
                path.extend(rest.iter().map(|part| (*part).to_owned()));
                return Some(path);
            }
            // A name at the end may have dots: names of headers.
            "*" if index + 1 == words.len() => {
                let rest = parts.get(index..).filter(|rest| !rest.is_empty())?.join(".");
                path.push(rest);
                return path.last().is_some_and(|name| !name.is_empty()).then_some(path);
            }
            "*" => path.push((*parts.get(index).filter(|name| !name.is_empty())?).to_owned()),
            word => {
                let part = parts.get(index)?.to_ascii_lowercase();
                let plain = match part.split_once('[') {
                    Some((name, number)) if number.ends_with(']') => format!("{name}[]"),
                    _ => part,
                };
                if plain != word {
                    return None;
                }
                path.push(plain);
            }
        }
    }
    (parts.len() == words.len()).then_some(path)
}

/// The label that one was most probably meant to be, with its own names.
pub(super) fn nearest_to(parts: &[&str]) -> Option<String> {
    let filled: Vec<String> = LABELS
        .iter()
        .map(|row| {
            let words = row.pattern.split('.').enumerate();
            let fill = |(index, word)| match word {
                "*" => parts.get(index).copied().unwrap_or("*"),
                word => word,
            };
            words.map(fill).collect::<Vec<_>>().join(".")
        })
        .collect();
    nearest(&parts.join("."), filled.iter().map(String::as_str)).map(str::to_owned)
}

/// The table as a Markdown page, for `docs/labels.md`.
#[must_use]
pub fn label_table_markdown() -> String {
    let mut page = String::from(
        "# What is done with each label of Traefik\n\n\
         Generated from the table of labels of `keel-compose`; do not edit. [routes.md](routes.md) says how labels are\n\
         read. `*` is a name of your choice. `keel.` may stand for `traefik.`.\n\n\
         | label | what is done | note |\n|---|---|---|\n",
    );
    for row in LABELS {
        let (what, note) = row.support.words();
        page.push_str(&format!("| `traefik.{}` | {what} | {note} |\n", row.pattern));
    }
    page
}
