//! `keel edges`: who calls whom, how often, how fast, and with what success.

use std::collections::BTreeMap;
use std::time::Duration;

use keel_server::api::client::Client;
use keel_server::api::types::{EdgeStats, EdgesView};
use serde::Serialize;

use crate::context::{Context, print_look};
use crate::failure::Failure;
use crate::ui::{quantity, table, time};

/// Looks that are closer together say nothing.
const SHORTEST: Duration = Duration::from_millis(100);

/// Options of `keel edges`.
#[derive(clap::Args, Clone, Debug)]
pub struct EdgesArgs {
    /// Only edges from or to these services, as SERVICE or STACK/SERVICE
    #[arg(value_name = "SERVICE")]
    pub services: Vec<String>,
    /// Go on, with a new look after each interval
    #[arg(short, long)]
    pub watch: bool,
    /// Measure for this long
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = parse_interval)]
    pub interval: Duration,
    /// Show all since the proxy started, instead of measuring
    #[arg(long, conflicts_with_all = ["watch", "interval"])]
    pub total: bool,
}

fn parse_interval(text: &str) -> Result<Duration, String> {
    let interval = time::parse_seconds(text)?;
    if interval < SHORTEST {
        return Err(format!("measure for {SHORTEST:?} at least"));
    }
    Ok(interval)
}

/// Runs the command.
///
/// # Errors
/// When the server can't be reached.
pub async fn run(ctx: &Context, args: EdgesArgs) -> Result<(), Failure> {
    let client = ctx.client();
    let filter = Filter { stack: ctx.global.project_name.clone(), services: args.services.clone() };
    let mut before = look(ctx, &client).await?;
    if args.total {
        return show(ctx, &rows(before.edges.iter(), &filter, None), args.watch);
    }
    loop {
        tokio::time::sleep(args.interval).await;
        let after = look(ctx, &client).await?;
        let seconds = after.at.since(before.at).as_secs_f64().max(SHORTEST.as_secs_f64());
        let edges = between(&before, &after);
        show(ctx, &rows(edges.iter(), &filter, Some(seconds)), args.watch)?;
        if !args.watch {
            return Ok(());
        }
        before = after;
    }
}

async fn look(ctx: &Context, client: &Client) -> Result<EdgesView, Failure> {
    let view = client.edges().await?;
    if view.proxy.is_none() {
        ctx.warn("no proxy runs; its last figures are shown");
    }
    Ok(view)
}

/// Which edges are shown.
#[derive(Debug, Default)]
struct Filter {
    stack: Option<String>,
    services: Vec<String>,
}

impl Filter {
    fn wants(&self, row: &Row) -> bool {
        let ends =
            [&row.caller, &row.service].map(|name| name.split_once('/').unwrap_or(("", name)));
        let stack = |wanted: &String| ends.iter().any(|(stack, _)| stack == wanted);
        let service = |wanted: &String| {
            ends.iter().any(|(stack, service)| match wanted.split_once('/') {
                Some(whole) => whole == (*stack, *service),
                None => service == wanted,
            })
        };
        self.stack.as_ref().is_none_or(stack)
            && (self.services.is_empty() || self.services.iter().any(service))
    }
}

type Key<'a> = (&'a str, &'a str, &'a str);

fn key(edge: &EdgeStats) -> Key<'_> {
    (&edge.cluster, &edge.route, &edge.caller)
}

/// What was counted between two looks.
fn between(before: &EdgesView, after: &EdgesView) -> Vec<EdgeStats> {
    // The counters of another proxy begin at zero.
    let same = before.proxy == after.proxy;
    let known: BTreeMap<Key<'_>, &EdgeStats> =
        before.edges.iter().filter(|_| same).map(|edge| (key(edge), edge)).collect();
    let since = |edge: &EdgeStats| match known.get(&key(edge)) {
        Some(earlier) => edge.since(earlier),
        None => edge.clone(),
    };
    after.edges.iter().map(since).collect()
}

/// One edge, as programs see it. Times are in microseconds and absent without requests.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Row {
    /// `stack/service`; empty for callers outside, or not known.
    caller: String,
    /// `stack/service`; empty for answers of the proxy itself.
    service: String,
    port: Option<u16>,
    route: String,
    /// How long was measured; absent for all since the proxy started.
    seconds: Option<f64>,
    requests: u64,
    requests_per_second: Option<f64>,
    errors: u64,
    error_ratio: Option<f64>,
    retries: u64,
    p50_us: Option<u64>,
    p95_us: Option<u64>,
    p99_us: Option<u64>,
    bytes_in: u64,
    bytes_out: u64,
    statuses: BTreeMap<u16, u64>,
    grpc_statuses: BTreeMap<u16, u64>,
}

impl Row {
    #[allow(clippy::cast_precision_loss, reason = "shares and rates are no exact numbers")]
    fn new(edge: &EdgeStats, seconds: Option<f64>) -> Self {
        let (service, port) = edge.cluster.rsplit_once(':').unwrap_or((&edge.cluster, ""));
        let (requests, errors) = (edge.requests(), edge.errors());
        Self {
            caller: edge.caller.clone(),
            service: service.to_owned(),
            port: port.parse().ok(),
            route: edge.route.clone(),
            seconds,
            requests,
            requests_per_second: seconds.map(|seconds| requests as f64 / seconds),
            errors,
            error_ratio: (requests > 0).then(|| errors as f64 / requests as f64),
            retries: edge.retries,
            p50_us: edge.latency.quantile(0.5),
            p95_us: edge.latency.quantile(0.95),
            p99_us: edge.latency.quantile(0.99),
            bytes_in: edge.bytes_in,
            bytes_out: edge.bytes_out,
            statuses: edge.statuses.clone(),
            grpc_statuses: edge.grpc_statuses.clone(),
        }
    }
}

fn rows<'a>(
    edges: impl Iterator<Item = &'a EdgeStats>,
    filter: &Filter,
    seconds: Option<f64>,
) -> Vec<Row> {
    let all = edges.map(|edge| Row::new(edge, seconds));
    let mut rows: Vec<Row> = all.filter(|row| filter.wants(row)).collect();
    rows.sort_by(|a, b| {
        (&a.service, a.port, &a.route, &a.caller).cmp(&(&b.service, b.port, &b.route, &b.caller))
    });
    rows
}

fn show(ctx: &Context, rows: &[Row], watch: bool) -> Result<(), Failure> {
    print_look(&rows, || render(rows), ctx.json(), watch)
}

fn render(rows: &[Row]) -> String {
    let routes = rows.iter().any(|row| !row.route.is_empty());
    let measured = rows.first().is_some_and(|row| row.seconds.is_some());
    let mut header = vec!["CALLER", "SERVICE"];
    header.extend(routes.then_some("ROUTE"));
    header.extend(if measured { ["REQ/S", "ERRORS"] } else { ["REQUESTS", "ERRORS"] });
    header.extend(["P50", "P95", "P99"]);
    header.extend(if measured { ["IN/S", "OUT/S"] } else { ["IN", "OUT"] });
    let rows: Vec<Vec<String>> = rows.iter().map(|row| cells(row, routes)).collect();
    table::render(&header, &rows)
}

#[allow(clippy::cast_precision_loss, reason = "a few digits are shown")]
fn cells(row: &Row, routes: bool) -> Vec<String> {
    let name = |text: &str| if text.is_empty() { "-".to_owned() } else { text.to_owned() };
    let service = match row.port {
        Some(port) => format!("{}:{port}", row.service),
        None => name(&row.service),
    };
    let mut cells = vec![name(&row.caller), service];
    cells.extend(routes.then(|| name(&row.route)));
    cells.push(match row.requests_per_second {
        Some(rate) => quantity::plain(rate),
        None => row.requests.to_string(),
    });
    let dash = || "-".to_owned();
    let percent = |ratio: f64| format!("{}%", quantity::plain(ratio * 100.0));
    cells.push(row.error_ratio.map_or_else(dash, percent));
    cells.extend(
        [row.p50_us, row.p95_us, row.p99_us].map(|us| us.map_or_else(dash, quantity::micros)),
    );
    let seconds = row.seconds.unwrap_or(1.0);
    cells.extend([row.bytes_in, row.bytes_out].map(|n| quantity::bytes(n as f64 / seconds)));
    cells
}

#[cfg(test)]
mod tests {
    use keel_model::Timestamp;
    use keel_route::histogram::{BUCKETS, Histogram, bucket};

    use super::*;

    fn edge(caller: &str, cluster: &str, statuses: &[(u16, u64)], us: u64) -> EdgeStats {
        let count: u64 = statuses.iter().map(|(_, n)| n).sum();
        let mut counts = vec![0; BUCKETS];
        counts[bucket(us)] = count;
        EdgeStats {
            caller: caller.to_owned(),
            cluster: cluster.to_owned(),
            statuses: statuses.iter().copied().collect(),
            bytes_out: count * 1000,
            latency: Histogram::new(us * count, counts),
            ..EdgeStats::default()
        }
    }

    fn view(at: u64, proxy: u32, edges: Vec<EdgeStats>) -> EdgesView {
        EdgesView { at: Timestamp(at), proxy: Some(proxy), edges }
    }

    #[test]
    fn only_what_came_between_two_looks_is_measured() {
        let before = view(0, 1, vec![edge("shop/web", "shop/cart:80", &[(200, 10)], 900)]);
        let edges = vec![
            edge("", "shop/web:80", &[(200, 3), (502, 1)], 2_000),
            edge("shop/web", "shop/cart:80", &[(200, 30)], 900),
        ];
        let after = view(2_000, 1, edges);
        let measured = between(&before, &after);
        let rows = rows(measured.iter(), &Filter::default(), Some(2.0));
        insta::assert_snapshot!(render(&rows), @r"
        CALLER     SERVICE        REQ/S   ERRORS   P50     P95     P99     IN/S   OUT/S
        shop/web   shop/cart:80   10      0%       959µs   959µs   959µs   0B     10kB
        -          shop/web:80    2.0     25%      2.0ms   2.0ms   2.0ms   0B     2.0kB
        ");
        let other = between(&view(0, 7, before.edges.clone()), &after);
        assert_eq!(other[1].requests(), 30, "another proxy has begun anew");
    }

    #[test]
    fn edges_without_traffic_have_no_times() {
        let quiet = [edge("", "shop/web:80", &[], 0)];
        let mut rows = rows(quiet.iter(), &Filter::default(), None);
        rows[0].route = "shop/front".to_owned();
        insta::assert_snapshot!(render(&rows), @r"
        CALLER   SERVICE       ROUTE        REQUESTS   ERRORS   P50   P95   P99   IN   OUT
        -        shop/web:80   shop/front   0          -        -     -     -     0B   0B
        ");
        assert_eq!(serde_json::to_value(&rows[0]).unwrap()["p50_us"], serde_json::Value::Null);
    }

    #[test]
    fn edges_are_chosen_by_either_end() {
        let edges = [
            edge("", "shop/web:80", &[], 0),
            edge("shop/web", "shop/cart:80", &[], 0),
            edge("blog/web", "blog/db:5432", &[], 0),
        ];
        let chosen = |stack: Option<&str>, services: &[&str]| {
            let services = services.iter().map(|&s| s.to_owned()).collect();
            let filter = Filter { stack: stack.map(str::to_owned), services };
            let rows = rows(edges.iter(), &filter, None);
            rows.iter().map(|row| row.service.clone()).collect::<Vec<_>>()
        };
        assert_eq!(chosen(None, &[]).len(), 3);
        assert_eq!(chosen(Some("shop"), &[]), ["shop/cart", "shop/web"]);
        assert_eq!(chosen(None, &["web"]).len(), 3);
        assert_eq!(chosen(None, &["blog/web"]), ["blog/db"]);
        assert_eq!(chosen(Some("shop"), &["db"]), [""; 0]);
    }
}
