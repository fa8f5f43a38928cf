//! The page as scrapers see it: as it is written here, and as Prometheus' own checker judges it.

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::sync::Arc;

use keel_route::histogram::{BUCKETS, Histogram, bucket};
use keel_route::snapshot::{EndpointCounts, Stats};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::watch;

use super::*;

fn state() -> ProxyState {
    let mut counts = vec![0; BUCKETS];
    for us in [300, 900, 1_000, 40_000_000] {
        counts[bucket(us)] += 1;
    }
    let edge = EdgeStats {
        route: "shop/front".to_owned(),
        caller: "shop/web".to_owned(),
        cluster: "shop/cart:80".to_owned(),
        statuses: [(200, 3), (503, 1)].into(),
        grpc_statuses: [(14, 2)].into(),
        retries: 5,
        bytes_in: 6,
        bytes_out: 7,
        latency: Histogram::new(40_002_200, counts),
    };
    let outside = EdgeStats {
        cluster: "shop/cart:80".to_owned(),
        statuses: [(0, 1)].into(),
        ..EdgeStats::default()
    };
    let cluster = ClusterStats {
        failed: 1,
        held: 2,
        in_flight: 3,
        endpoints: EndpointCounts { ready: 4, ejected: 5, draining: 6 },
        ..ClusterStats::default()
    };
    let mut stats = Stats { edges: vec![edge, outside], ..Stats::default() };
    stats.clusters.insert("shop/cart:80".to_owned(), cluster);
    stats.proxy.log_dropped = 8;
    let asked = Some(tokio::time::Instant::now());
    ProxyState {
        pid: Some(1),
        version: "9".to_owned(),
        stats: Arc::new(stats),
        asked,
        ..ProxyState::default()
    }
}

fn text(format: Format) -> String {
    let usage = Usage::of(std::process::id()).unwrap();
    write(format, &state(), &[("server", usage), ("proxy", usage)])
}

#[test]
fn everything_that_is_counted_is_shown() {
    let page = text(Format::Text);
    let edge = r#"stack="shop",service="cart",port="80",route="shop/front",caller="shop/web""#;
    for line in [
        format!(r#"keel_proxy_requests_total{{{edge},code="200"}} 3"#),
        format!(r#"keel_proxy_requests_total{{{edge},code="503"}} 1"#),
        r#"keel_proxy_requests_total{stack="shop",service="cart",port="80",route="",caller="",code="0"} 1"#.to_owned(),
        format!(r#"keel_proxy_grpc_calls_total{{{edge},grpc_status="14"}} 2"#),
        format!(r#"keel_proxy_request_duration_seconds_bucket{{{edge},le="0.0005"}} 1"#),
        // Times from 960 to 1023 µs are one bucket: 1000 µs is not for sure at most 1 ms.
        format!(r#"keel_proxy_request_duration_seconds_bucket{{{edge},le="0.001"}} 2"#),
        format!(r#"keel_proxy_request_duration_seconds_bucket{{{edge},le="0.0025"}} 3"#),
        format!(r#"keel_proxy_request_duration_seconds_bucket{{{edge},le="30"}} 3"#),
        format!(r#"keel_proxy_request_duration_seconds_bucket{{{edge},le="+Inf"}} 4"#),
        format!(r#"keel_proxy_request_duration_seconds_sum{{{edge}}} 40.0022"#),
        format!(r#"keel_proxy_request_duration_seconds_count{{{edge}}} 4"#),
        format!("keel_proxy_retries_total{{{edge}}} 5"),
        format!("keel_proxy_received_bytes_total{{{edge}}} 6"),
        format!("keel_proxy_sent_bytes_total{{{edge}}} 7"),
        r#"keel_proxy_failed_requests_total{stack="shop",service="cart",port="80"} 1"#.to_owned(),
        r#"keel_proxy_held_requests_total{stack="shop",service="cart",port="80"} 2"#.to_owned(),
        r#"keel_proxy_requests_in_flight{stack="shop",service="cart",port="80"} 3"#.to_owned(),
        r#"keel_proxy_endpoints{stack="shop",service="cart",port="80",state="ready"} 4"#.to_owned(),
        r#"keel_proxy_endpoints{stack="shop",service="cart",port="80",state="ejected"} 5"#.to_owned(),
        r#"keel_proxy_endpoints{stack="shop",service="cart",port="80",state="draining"} 6"#.to_owned(),
        "keel_proxy_access_log_dropped_lines_total 8".to_owned(),
        "keel_proxy_up 1".to_owned(),
        r#"keel_build_info{process="proxy",version="9"} 1"#.to_owned(),
    ] {
        assert!(page.lines().any(|found| found == line), "{line} is not in\n{page}");
    }
    assert!(page.contains("process_resident_memory_bytes{process=\"proxy\"} "));
}

#[test]
fn without_a_proxy_the_page_says_so() {
    let page = write(Format::Text, &ProxyState::default(), &[]);
    assert!(page.contains("\nkeel_proxy_up 0\n"), "{page}");
    assert!(!page.contains("process=\"proxy\""), "{page}");
}

/// The rules that scrapers hold a page to, as far as a few lines can.
#[test]
fn families_are_whole_and_series_are_unique() {
    for format in [Format::Text, Format::OpenMetrics] {
        let page = text(format);
        let mut series = std::collections::BTreeSet::new();
        let mut families = std::collections::BTreeSet::new();
        let mut family = "";
        for line in page.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                family = rest.split(' ').next().unwrap();
                assert!(families.insert(family), "{family} comes twice");
            } else if !line.starts_with('#') {
                let (name, value) = line.rsplit_once(' ').unwrap();
                assert!(value.parse::<f64>().is_ok(), "{line}");
                assert!(name.starts_with(family), "{line} is no part of {family}");
                assert!(series.insert(name), "{name} comes twice");
            }
        }
    }
}

/// Only where Debian's package `prometheus` is installed.
#[test]
fn prometheus_finds_no_fault() {
    let promtool = std::env::var_os("PROMTOOL").unwrap_or_else(|| "promtool".into());
    let child = Command::new(promtool)
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut child) = child else {
        println!("skipped: there is no promtool");
        return;
    };
    child.stdin.take().unwrap().write_all(text(Format::Text).as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && said.is_empty(), "{said}");
}

async fn ask(address: std::net::SocketAddr, request: &str) -> String {
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let request = format!("{request} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn over_tcp_there_are_metrics_and_nothing_else() {
    let state = ProxyState { pid: None, ..state() };
    let (_sender, receiver) = watch::channel(state);
    let figures = Figures { ask: Arc::default(), state: receiver };
    let listener = bind("127.0.0.1:0".parse().ok()).await.unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    let address = start(listener, &figures, &mut tasks).unwrap();
    assert!(matches!(bind(Some(address)).await, Err(crate::Error::Metrics { .. })));
    let page = ask(address, "GET /metrics").await;
    assert!(page.starts_with("HTTP/1.1 200 OK\r\n"), "{page}");
    assert!(page.contains("content-type: text/plain; version=0.0.4; charset=utf-8\r\n"), "{page}");
    assert!(page.contains("\nkeel_proxy_up 0\n"), "{page}");
    assert!(ask(address, "GET /v1/stacks").await.starts_with("HTTP/1.1 404 "));
    assert!(ask(address, "POST /metrics").await.starts_with("HTTP/1.1 405 "));
}
