//! A configuration for nginx 1.22.
//!
//! One server block per listener and host, so that nginx's own table finds the host. What is left of the rules is one
//! variable per test and one map that looks for the first alternative that holds; its value is an internal location,
//! one per route and cluster, which has the filters and passes the request on. Opaque connections go through the
//! stream module. Blocks come in the order in which they are needed.

mod atoms;
mod cors;
mod filters;
mod locations;
mod rewrite;
mod servers;
mod stream;
mod upstream;
mod words;

use std::collections::{BTreeMap, BTreeSet};

use keel_route::snapshot::Snapshot;

use self::atoms::Atoms;
use self::words::{Blocks, Directive, matching, quoted};
use crate::plan::Plan;
use crate::readings::{DOUBTFUL, HARD, UNREADABLE};
use crate::tls::{self, Usable};
use crate::{Engine, Options, Rendered, StreamModule};

/// What the variables of the stream module's atoms begin with.
const STREAM_ATOMS: &str = "keel_s";

/// Characters that may stand in a path as they are, inside of a class.
const PATH_CHARACTERS: &str = r"A-Za-z0-9\x21\x24-\x2F:\x3B=@_~";

/// What is written, block by block.
struct Writer<'a> {
    plan: Plan<'a>,
    certificates: Vec<Usable<'a>>,
    atoms: Atoms,
    maps: Blocks,
    upstreams: Blocks,
    upstreams_known: BTreeSet<String>,
    servers: Blocks,
    /// Memory for limits that was declared.
    zones: BTreeSet<String>,
    stream_atoms: Atoms,
    stream_maps: Blocks,
    stream_upstreams: Blocks,
    stream_upstreams_known: BTreeSet<String>,
    stream_servers: Blocks,
    /// Locations that were written, by route and number of the cluster.
    locations: BTreeMap<String, Vec<Directive>>,
    /// Variables that were defined: shares by route, values of cookies, and keys of sticky ones.
    splits: BTreeMap<String, String>,
    cookies: BTreeMap<String, String>,
    sticky: BTreeMap<String, (String, String)>,
    variables: usize,
    paths: usize,
    loops: usize,
}

pub(crate) fn render(snapshot: &Snapshot, options: &Options) -> Rendered {
    let mut plan = Plan::new(Engine::Nginx, snapshot, options);
    let certificates = tls::usable(&mut plan);
    let mut writer = Writer {
        plan,
        certificates,
        atoms: Atoms::new("keel_t"),
        maps: Blocks::at_depth(1),
        upstreams: Blocks::at_depth(1),
        upstreams_known: BTreeSet::new(),
        servers: Blocks::at_depth(1),
        zones: BTreeSet::new(),
        stream_atoms: Atoms::new(STREAM_ATOMS),
        stream_maps: Blocks::at_depth(1),
        stream_upstreams: Blocks::at_depth(1),
        stream_upstreams_known: BTreeSet::new(),
        stream_servers: Blocks::at_depth(1),
        locations: BTreeMap::new(),
        splits: BTreeMap::new(),
        cookies: BTreeMap::new(),
        sticky: BTreeMap::new(),
        variables: 0,
        paths: 0,
        loops: 0,
    };
    for certificate in writer.certificates.clone() {
        let (chain, key) = files_of(&certificate);
        writer.secret(key, certificate.pem.key.clone());
        writer.plan.out.files.insert(chain, certificate.pem.chain.clone());
    }
    for group in writer.plan.groups.clone() {
        writer.group(&group);
    }
    writer.finish()
}

/// Where the chain and the key of a certificate are.
fn files_of(certificate: &Usable<'_>) -> (String, String) {
    let index = certificate.index;
    (format!("certs/{index}.pem"), format!("certs/{index}.key"))
}

impl Writer<'_> {
    fn secret(&mut self, path: String, content: String) {
        self.plan.out.secret.insert(path.clone());
        self.plan.out.files.insert(path, content);
    }

    /// A variable of our own that no other has.
    fn variable(&mut self, kind: &str) -> String {
        self.variables += 1;
        format!("$keel_{kind}{}", self.variables)
    }

    /// The path of one more socket between servers of ours.
    fn next_loop(&mut self) -> String {
        self.loops += 1;
        format!("unix:{}/loop{}.sock", self.plan.options.socket_dir, self.loops)
    }

    fn finish(self) -> Rendered {
        let mut all = Blocks::default();
        self.main(&mut all);
        if !self.servers.is_empty() {
            all.open("http");
            all.lines(HTTP);
            all.append(request_variables());
            let parts = [self.atoms.maps, self.maps, self.upstreams, self.servers];
            parts.into_iter().for_each(|part| all.append(part));
            all.close();
        }
        if !self.stream_servers.is_empty() {
            all.open("stream");
            all.block("geo $keel_dollar", &["default \"$\"".to_owned()]);
            let parts = [
                self.stream_atoms.maps,
                self.stream_maps,
                self.stream_upstreams,
                self.stream_servers,
            ];
            parts.into_iter().for_each(|part| all.append(part));
            all.close();
        }
        let mut out = self.plan.out;
        out.files.insert(Engine::Nginx.main_file().to_owned(), all.into_text());
        out
    }

    fn main(&self, all: &mut Blocks) {
        let options = self.plan.options;
        if let (StreamModule::File(path), false) = (&options.stream, self.stream_servers.is_empty())
        {
            all.line(format!("load_module {}", quoted(path)));
        }
        if let Some((user, group)) = &options.user {
            all.line(format!("user {} {}", quoted(user), quoted(group)));
        }
        let workers = options.workers.map_or_else(|| "auto".to_owned(), |n| n.to_string());
        all.line(format!("worker_processes {workers}"));
        all.lines(["pid nginx.pid", "error_log stderr notice", "pcre_jit on"]);
        all.open("events");
        all.line(format!("worker_connections {}", options.max_connections.unwrap_or(8192)));
        all.close();
    }
}

/// What holds for all requests.
const HTTP: &[&str] = &[
    "access_log off",
    "default_type text/plain",
    "server_tokens off",
    "absolute_redirect off",
    "underscores_in_headers on",
    "ignore_invalid_headers off",
    "merge_slashes on",
    "client_header_buffer_size 4k",
    "large_client_header_buffers 4 64k",
    "client_header_timeout 10s",
    "client_body_timeout 120s",
    "send_timeout 120s",
    "keepalive_timeout 75s",
    "keepalive_requests 1000000",
    "client_max_body_size 0",
    "server_names_hash_bucket_size 512",
    "server_names_hash_max_size 16384",
    "map_hash_bucket_size 512",
    "map_hash_max_size 16384",
    "variables_hash_max_size 16384",
    "variables_hash_bucket_size 256",
    "ssl_session_cache shared:keel:10m",
    "client_body_temp_path temp_body",
    "proxy_temp_path temp_proxy",
    "fastcgi_temp_path temp_fastcgi",
    "uwsgi_temp_path temp_uwsgi",
    "scgi_temp_path temp_scgi",
    "proxy_http_version 1.1",
    "proxy_buffering off",
    "proxy_request_buffering off",
    "proxy_buffer_size 64k",
    "proxy_buffers 4 64k",
    "proxy_send_timeout 120s",
    "proxy_pass_header Server",
    "proxy_pass_header Date",
    // What a service says to its proxy is for ours, which has no ear for it, and not for nginx.
    "proxy_ignore_headers X-Accel-Redirect X-Accel-Expires X-Accel-Limit-Rate X-Accel-Buffering X-Accel-Charset",
    "proxy_ssl_protocols TLSv1.2 TLSv1.3",
    "grpc_ssl_protocols TLSv1.2 TLSv1.3",
    "limit_req_status 429",
    "limit_conn_status 503",
    "gzip_proxied any",
    "gzip_vary on",
];

/// Of what else begins with `X-Forwarded-` that which is in use, as nginx deletes no field without its name.
const SAID: [&str; 5] = ["port", "prefix", "scheme", "server", "ssl"];

/// Variables that all requests have. The path that rules see is nginx's own reading of it; the path that services
/// see is the one that was sent, with dot segments resolved.
fn request_variables() -> Blocks {
    let mut maps = Blocks::at_depth(1);
    let map = |maps: &mut Blocks, head: &str, lines: &[&str]| {
        let lines: Vec<String> = lines.iter().map(|line| (*line).to_owned()).collect();
        maps.block(head, &lines);
    };
    map(&mut maps, "geo $keel_dollar", &["default \"$\""]);
    map(&mut maps, "map $http_upgrade $keel_connection", &["default upgrade", "\"\" \"\""]);
    // What clients outside say of an earlier proxy does not pass.
    for (said, otherwise) in [("host", "$http_host"), ("proto", "$scheme")]
        .into_iter()
        .chain(SAID.map(|said| (said, "\"\"")))
    {
        let head = format!("map $keel_trusted$http_x_forwarded_{said} $keel_forwarded_{said}");
        map(&mut maps, &head, &[&format!("default {otherwise}"), r#""~\A1(.+)\z" $1"#]);
    }
    let dots = r#""~\A[^?]*/(?:\.|%2[eE]){1,2}(?:[/?]|\z)" 1"#;
    map(&mut maps, "map $request_uri $keel_dotted", &["default 0", dots]);
    let unfit = format!("\"~\\A1.*[^{PATH_CHARACTERS}]\" 1");
    map(&mut maps, "map $keel_dotted$keel_uri $keel_unfit", &["default 0", &unfit]);
    map(
        &mut maps,
        "map $keel_dotted $keel_sent",
        &["default $request_uri", "1 $keel_uri$is_args$args"],
    );
    map(&mut maps, "map $keel_sent $keel_path", &["default /", r#""~\A([^?]+)" $1"#]);
    let doubt = [(UNREADABLE, 3), (HARD, 2), (DOUBTFUL, 1)]
        .map(|(expression, state)| format!("{} {state}", matching(expression)));
    let doubt: Vec<&str> = std::iter::once("default 0").chain(doubt.iter().map(|l| &**l)).collect();
    map(&mut maps, "map $request_uri $keel_doubt", &doubt);
    // 64 bits of a network are what an IPv6 client has at least.
    let network = r#""~\A([\x00-\xFF]{8})[\x00-\xFF]{8}\z" $1"#;
    map(
        &mut maps,
        "map $binary_remote_addr $keel_client",
        &["default $binary_remote_addr", network],
    );
    maps
}
