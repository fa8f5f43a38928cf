//! What the engines can't do, each with its reason: one table, from which the documentation is made too.

use crate::Engine;

/// Something of ours that an engine does not do, or does differently.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Gap {
    /// What.
    pub what: Lack,
    /// For which listener, route or cluster.
    pub place: String,
    /// Why, and what happens instead.
    pub why: &'static str,
}

macro_rules! lacks {
    ($($(#[$doc:meta])* $name:ident: $what:literal, haproxy: $haproxy:expr, nginx: $nginx:expr;)*) => {
        /// Kinds of gap.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Lack {
            $($(#[$doc])* $name,)*
        }

        impl Lack {
            /// Every kind.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// What is lacking, in a few words.
            #[must_use]
            pub const fn what(self) -> &'static str {
                match self { $(Self::$name => $what,)* }
            }

            /// Why `engine` lacks it, and what happens instead; `None` if it does not.
            #[must_use]
            pub const fn why(self, engine: Engine) -> Option<&'static str> {
                match (self, engine) {
                    $((Self::$name, Engine::Haproxy) => $haproxy, (Self::$name, Engine::Nginx) => $nginx,)*
                }
            }
        }
    };
}

lacks! {
    /// Bytes of a connection do not decide what it speaks.
    Detection: "telling protocols apart by first bytes",
        haproxy: None,
        nginx: Some("passed on as an opaque connection, so that all its requests reach one endpoint; declare `http` for the port");
    /// Networks of a Compose file.
    Networks: "networks that keep services apart",
        haproxy: Some("who calls is not known to it; services that share no network reach each other"),
        nginx: Some("who calls is not known to it; services that share no network reach each other");
    /// HTTP/2 without TLS.
    CleartextHttp2: "HTTP/2 without TLS beside HTTP/1.1",
        haproxy: None,
        nginx: Some("nginx 1.22 speaks one of them on a plain port, at entrypoints HTTP/1.1; use one with TLS");
    /// HTTP/2 towards services.
    UpstreamHttp2: "HTTP/2 to services",
        haproxy: None,
        nginx: Some("only as gRPC calls (`grpc_pass`): no upgrades, and the path is decoded and encoded again");
    /// No listener for opaque connections.
    Opaque: "opaque connections",
        haproxy: None,
        nginx: Some("the stream module is not installed (`apt install libnginx-mod-stream`); the listener is left out");
    /// Trailers.
    Trailers: "trailers of HTTP/1.1",
        haproxy: None,
        nginx: Some("nginx drops them, except in gRPC calls");
    /// Long heads.
    HeadSize: "request heads over 15 KiB",
        haproxy: Some("refused (400): a head has to fit into one buffer of 16 KiB"),
        nginx: None;
    /// Spellings of one path.
    PathReadings: "telling what a regular expression, or a very long rule, makes of the other readings of a path (`%2F`, `%5C`, `;`)",
        haproxy: Some("a request whose path has other readings is refused (400) where this route is asked"),
        nginx: Some("a request whose path has other readings is refused (400) where this route is asked");
    /// Rule too wide.
    RuleSize: "rules with more than 64 alternatives or 40 tests",
        haproxy: Some("the route is left out; split it"),
        nginx: Some("the route is left out; split it");
    /// Not a regular expression.
    Expression: "this regular expression",
        haproxy: Some("it is not one, or is too long; what needs it is left out"),
        nginx: Some("it is not one, or is too long; what needs it is left out");
    /// Groups of an expression.
    Groups: "more than 6 groups in the replacement of a path rewrite",
        haproxy: Some("a replacement knows `\\1` to `\\9`; the rewrite is left out"),
        nginx: Some("a replacement knows `$1` to `$9`; the rewrite is left out");
    /// Name of a header.
    HeaderName: "header names with other characters than letters, digits, `-` and `_`",
        haproxy: Some("they can't be named in its expressions; what needs it is left out"),
        nginx: Some("they can't be named in its variables; what needs it is left out");
    /// Control characters.
    ControlCharacter: "control characters in values",
        haproxy: Some("they would end a line of the configuration; what needs it is left out"),
        nginx: Some("they would end a header field; what needs it is left out");
    /// File names.
    FileName: "file names with `$` or control characters",
        haproxy: None,
        nginx: Some("`$` begins a variable in nginx; what needs it is left out");
    /// Weights.
    Weights: "weights finer than 1/10,000",
        haproxy: None,
        nginx: Some("`split_clients` knows hundredths of a percent; shares are rounded");
    /// Compression.
    Codings: "compression with zstd or brotli",
        haproxy: Some("HAProxy compresses with gzip only"),
        nginx: Some("nginx-light has gzip only");
    /// Smallest answer.
    CompressMinimum: "leaving small answers uncompressed",
        haproxy: Some("HAProxy 2.6 compresses answers of any size"),
        nginx: None;
    /// Media types with a star.
    CompressTypes: "compression of `text/*`",
        haproxy: None,
        nginx: Some("`gzip_types` takes whole types only; the usual ones are listed in its place");
    /// Password hashes.
    PasswordHash: "`$apr1$` and `{SHA}` password hashes",
        haproxy: Some("HAProxy checks with crypt(3), which has bcrypt but not these; the user can't log in"),
        nginx: None;
    /// Users.
    UserLine: "lines that are no user of an htpasswd file",
        haproxy: Some("it would not be understood; the user can't log in"),
        nginx: Some("it would not be understood; the user can't log in");
    /// Order of filters.
    FilterOrder: "asking for the password before counting requests",
        haproxy: None,
        nginx: Some("nginx counts requests first, so requests without a password use up the allowance too");
    /// Number of limits.
    LimitCount: "more than three rate limits for one route",
        haproxy: Some("HAProxy 2.6 tracks three keys per request; the others are left out"),
        nginx: None;
    /// Rounding of limits.
    LimitRounding: "rates that are no whole number per second or minute",
        haproxy: None,
        nginx: Some("rounded up to whole requests per minute");
    /// Largest body.
    BodySize: "a largest size for bodies without Content-Length",
        haproxy: Some("only what has arrived with the head is counted"),
        nginx: None;
    /// `Server` and `Date`.
    ServerHeader: "setting `Server` or `Date` of answers",
        haproxy: None,
        nginx: Some("nginx sets its own when the service's are taken away");
    /// Redirect status.
    RedirectStatus: "redirects with another status than 301, 302, 303, 307, 308",
        haproxy: Some("302 is sent"),
        nginx: Some("302 is sent");
    /// Certificate by ALPN.
    AlpnChallenge: "tls-alpn-01 challenges",
        haproxy: Some("certificates are chosen by server name only; use http-01"),
        nginx: Some("certificates are chosen by server name only; use http-01");
    /// No certificate.
    Certificate: "TLS without any certificate",
        haproxy: Some("HAProxy needs one to listen; the listener is left out"),
        nginx: Some("handshakes are refused, and opaque connections left out");
    /// Malformed certificate.
    CertificateName: "this name of a certificate",
        haproxy: Some("it is no host name, or the certificate can't be read; it is left out"),
        nginx: Some("it is no host name, or the certificate can't be read; it is left out");
    /// PROXY protocol in.
    AcceptProxy: "PROXY protocol headers from some clients only",
        haproxy: None,
        nginx: Some("every connection must begin with one; only those from the networks given are believed");
    /// PROXY protocol out.
    SendProxy: "PROXY protocol towards services",
        haproxy: None,
        nginx: Some("nginx sends none with HTTP requests, and version 1 only with opaque connections");
    /// Active checks.
    ActiveCheck: "active health checks",
        haproxy: None,
        nginx: Some("the open source version has none; the probes of the platform still apply");
    /// All endpoints fail their checks.
    AllChecksFail: "serving on when every endpoint fails its check",
        haproxy: Some("requests are refused (503) until a check succeeds"),
        nginx: None;
    /// Outliers.
    Outlier: "leaving out endpoints that answer with errors",
        haproxy: Some("HAProxy would leave out the last endpoint as well; failed requests are tried elsewhere instead"),
        nginx: Some("refused connections and timeouts count, statuses do not");
    /// Hold.
    Hold: "holding requests while no endpoint is ready",
        haproxy: Some("they are refused (503) at once"),
        nginx: Some("they are refused (503) at once");
    /// Retry budget.
    RetryBudget: "a budget for retries",
        haproxy: Some("every request may be tried up to three times, or as often as `attempts` says"),
        nginx: Some("every request may be tried at each endpoint");
    /// Time of a try.
    PerTryTimeout: "a time limit for each try",
        haproxy: Some("the time for the answer holds for each try"),
        nginx: Some("the time for the answer holds for each try");
    /// Statuses.
    RetryStatus: "retries on this status",
        haproxy: Some("HAProxy retries on 401, 403, 404, 408, 425, 500, 501, 502, 503 and 504 only"),
        nginx: Some("nginx retries on 403, 404, 429, 500, 502, 503 and 504 only");
    /// Whole request.
    RequestTimeout: "a time limit for a whole request",
        haproxy: Some("each wait for the service has this limit, not their sum"),
        nginx: Some("each wait for the service has this limit, not their sum");
    /// Idle bodies.
    IdleTimeout: "a time limit between the pieces of a body",
        haproxy: Some("one limit holds for the answer's head and its pieces: that for the head"),
        nginx: Some("one limit holds for the answer's head and its pieces: that for the head");
    /// Queue.
    Pending: "a queue for requests beyond the connection limit",
        haproxy: None,
        nginx: Some("the open source version has none; they are refused (502)");
    /// Adaptive concurrency.
    Adaptive: "concurrency limits that adapt",
        haproxy: Some("use `max_requests`"),
        nginx: Some("use `max_requests`");
    /// Slow start.
    SlowStart: "slow start",
        haproxy: None,
        nginx: Some("the open source version has none");
    /// Sticky cookie.
    Sticky: "a cookie that names the endpoint",
        haproxy: None,
        nginx: Some("a random cookie is hashed: when endpoints change, some clients move; the balance policy is not used");
    /// Zones.
    Zones: "preferring the own zone by degrees",
        haproxy: Some("others are used once no endpoint of the zone is left"),
        nginx: Some("others are used once no endpoint of the zone is left; not with hashing");
    /// Hash keys of connections.
    HashKey: "hashing opaque connections by header, cookie or path",
        haproxy: Some("the client's address is hashed"),
        nginx: Some("the client's address is hashed");
    /// Double listener.
    Listener: "two listeners at one address",
        haproxy: Some("the first one is used"),
        nginx: Some("the first one is used");
    /// Reload closes idle connections.
    IdleClients: "changes that leave idle connections of clients open",
        haproxy: Some("a reload closes them where the protocol is told apart by first bytes, elsewhere with the next answer; changes of endpoints need no reload"),
        nginx: Some("a reload closes them; clients have to repeat a request that crosses with that, as RFC 9112 tells them to");
    /// Number in flight.
    InFlight: "counting what is in flight at a draining endpoint",
        haproxy: None,
        nginx: Some("drained once every worker of before the change has ended");
    /// Counters.
    Counters: "numbers by route, caller and status",
        haproxy: Some("numbers by service only, and those of a worker end with it"),
        nginx: Some("no numbers: `stub_status` knows no services");
    /// Ids of requests.
    RequestIds: "ids of requests (`X-Request-Id`, `traceparent`)",
        haproxy: Some("none are made; those of clients pass"),
        nginx: Some("none are made; those of clients pass");
    /// Access log.
    AccessLog: "an access log",
        haproxy: Some("nothing is written to it"),
        nginx: Some("nothing is written to it");
}

impl Lack {
    /// What is lacking whatever is asked for, and missed by whoever looks for it. No [`Gap`] is made of these.
    pub const ALWAYS: &'static [Self] = &[Self::RequestIds, Self::Counters];
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_lacking_somewhere() {
        for lack in Lack::ALL {
            let reasons = [Engine::Haproxy, Engine::Nginx].map(|engine| lack.why(engine));
            assert!(reasons.iter().any(Option::is_some), "{lack:?}");
        }
    }
}
