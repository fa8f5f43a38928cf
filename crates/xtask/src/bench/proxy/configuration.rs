//! The same job in the words of each proxy.
//!
//! Alike in all: one worker, connections to backends kept and reused, the same four HTTP backends, `X-Forwarded-For`
//! added, TLS with the same certificate and session tickets issued, no access log, no health checks. Where a proxy
//! has a choice, it gets its fastest: HAProxy `http-reuse always` and round robin, nginx a pool as large as the number
//! of clients. What HAProxy does not do unless told is told as a fourth proxy: `option splice-response`. Ours counts every request per edge with a latency histogram, which cannot be switched off.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::engine::Doors;
use super::rig::Rig;
use crate::bench::Error;

/// An endpoint as it stands in a snapshot.
pub fn endpoint(instance: &str, address: &str, state: &str) -> Value {
    json!({"instance": instance, "address": address, "state": state})
}

/// A cluster of backends of this machine.
pub fn cluster(name: &str, ports: &[u16]) -> Value {
    let endpoints: Vec<_> = ports
        .iter()
        .map(|port| {
            endpoint(&format!("bench-{name}-{port}"), &format!("127.0.0.1:{port}"), "ready")
        })
        .collect();
    json!({"endpoints": endpoints, "expected": true})
}

/// The snapshot (`keel_route::snapshot::Snapshot`) that ours serves.
pub fn keel(rig: &Rig, doors: Doors) -> Result<Value, Error> {
    // Protocols are said, as HAProxy and nginx are told.
    let listener = |port: u16, protocol: &str, cluster: &str| {
        json!({
            "bind": format!("127.0.0.1:{port}"),
            "protocol": protocol,
            "cluster": format!("bench/{cluster}"),
            "published": true,
        })
    };
    let mut https = listener(doors.https, "http", "web:80");
    https["tls"] = json!({});
    let mut web = cluster("web", &rig.backends.http);
    web["protocol"] = json!("http");
    Ok(json!({
        "generation": 1,
        "listeners": [
            listener(doors.http, "http", "web:80"),
            https,
            listener(doors.h2c, "http", "web:80"),
            listener(doors.echo, "tcp", "echo:7"),
            listener(doors.bulk, "tcp", "bulk:9"),
        ],
        "clusters": {
            "bench/web:80": web,
            "bench/echo:7": cluster("echo", &[rig.backends.echo]),
            "bench/bulk:9": cluster("bulk", &[rig.backends.bulk]),
        },
        "certificates": [{
            "chain": fs::read_to_string(&rig.certificate)?,
            "key": fs::read_to_string(&rig.key)?,
        }],
    }))
}

/// What differs between two HAProxies.
#[derive(Clone, Copy, Debug)]
pub struct Variant {
    /// As many as 20,000 file descriptors allow.
    maxconn: u32,
    /// A line for its defaults.
    option: &'static str,
}

impl Variant {
    pub const DEFAULT: Self = Self { maxconn: 9000, option: "" };
    /// It wants descriptors for pipes as well.
    pub const SPLICE: Self = Self { maxconn: 4000, option: "  option splice-response\n" };
}

pub fn haproxy(rig: &Rig, doors: Doors, certificate: &Path, variant: Variant) -> String {
    let Variant { maxconn, option } = variant;
    let Doors { http, https, h2c, echo, bulk } = doors;
    let servers: String = rig
        .backends
        .http
        .iter()
        .map(|port| format!("  server s{port} 127.0.0.1:{port}\n"))
        .collect();
    format!(
        "global
  nbthread 1
  maxconn {maxconn}
defaults
  timeout connect 5s
  timeout client 75s
  timeout server 60s
{option}frontend web
  mode http
  option forwardfor
  bind 127.0.0.1:{http}
  bind 127.0.0.1:{https} ssl crt {certificate} alpn h2,http/1.1 ssl-min-ver TLSv1.2
  bind 127.0.0.1:{h2c} proto h2
  default_backend web
backend web
  mode http
  balance roundrobin
  http-reuse always
{servers}listen echo
  mode tcp
  bind 127.0.0.1:{echo}
  server s 127.0.0.1:{backend_echo}
listen bulk
  mode tcp
  bind 127.0.0.1:{bulk}
  server s 127.0.0.1:{backend_bulk}
",
        certificate = certificate.display(),
        backend_echo = rig.backends.echo,
        backend_bulk = rig.backends.bulk,
    )
}

pub fn nginx(rig: &Rig, doors: Doors, stream_module: &Path) -> String {
    let Doors { http, https, h2c, echo, bulk } = doors;
    let servers: String =
        rig.backends.http.iter().map(|port| format!("    server 127.0.0.1:{port};\n")).collect();
    format!(
        "load_module {module};
daemon off;
master_process off;
worker_processes 1;
worker_rlimit_nofile 20000;
pid {directory}/nginx.pid;
error_log stderr crit;
events {{ worker_connections 19000; }}
http {{
  access_log off;
  keepalive_timeout 75s;
  keepalive_requests 100000000;
  client_body_temp_path {directory}/body;
  proxy_temp_path {directory}/proxy;
  fastcgi_temp_path {directory}/fastcgi;
  uwsgi_temp_path {directory}/uwsgi;
  scgi_temp_path {directory}/scgi;
  upstream web {{
{servers}    keepalive 1024;
    keepalive_requests 100000000;
  }}
  ssl_certificate {certificate};
  ssl_certificate_key {key};
  ssl_protocols TLSv1.2 TLSv1.3;
  server {{
    listen 127.0.0.1:{http};
    listen 127.0.0.1:{https} ssl http2;
    listen 127.0.0.1:{h2c} http2;
    location / {{
      proxy_pass http://web;
      proxy_http_version 1.1;
      proxy_set_header Connection \"\";
      proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
      proxy_max_temp_file_size 0;
    }}
  }}
}}
stream {{
  server {{ listen 127.0.0.1:{echo}; proxy_pass 127.0.0.1:{backend_echo}; }}
  server {{ listen 127.0.0.1:{bulk}; proxy_pass 127.0.0.1:{backend_bulk}; }}
}}
",
        module = stream_module.display(),
        directory = rig.directory().display(),
        certificate = rig.certificate.display(),
        key = rig.key.display(),
        backend_echo = rig.backends.echo,
        backend_bulk = rig.backends.bulk,
    )
}
