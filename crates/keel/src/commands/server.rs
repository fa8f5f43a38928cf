//! `keel server`: runs, stops and describes the server.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use keel_model::{NodeName, Timestamp, ZoneName};
use keel_render::Engine;
use keel_server::api::client::{Client, Error};
use keel_server::api::images::EngineView;
use keel_server::api::types::{ProxyView, ServerInfo};
use tokio::time::{Instant, sleep};

use crate::access_log::AccessLogArgs;
use crate::context::{Context, print, print_json};
use crate::failure::{Failure, UNREACHABLE, split_hint};
use crate::lacks;
use crate::spawn;
use crate::ui::time;

/// Exit code of a server that finds another one on its state directory.
pub const EXIT_IN_USE: u8 = 75;
/// How long `server stop` waits for the server to be gone.
const STOP_LIMIT: Duration = Duration::from_secs(30);
/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(20);

/// Options of `keel server`.
#[derive(Args, Clone, Debug)]
pub struct ServerArgs {
    /// What to do (default: run)
    #[command(subcommand)]
    pub action: Option<Action>,
    /// How to run, without a subcommand
    #[command(flatten)]
    pub run: RunArgs,
}

/// What to do with the server.
#[derive(Clone, Debug, Subcommand)]
pub enum Action {
    /// Run the server in the foreground
    Run(RunArgs),
    /// End the server; instances run on, and so does the proxy while a stack is up, but nothing is restarted or changed
    Stop,
    /// Describe the server that runs
    Status,
}

/// How the server is run.
#[derive(Args, Clone, Debug, Default)]
pub struct RunArgs {
    /// Run in the background; the log goes to server.log in the state directory
    #[arg(short, long)]
    pub detach: bool,
    /// The machine's name (default: its host name)
    #[arg(long, env = "KEEL_NODE", hide_env_values = true, value_name = "NAME")]
    pub node: Option<NodeName>,
    /// The zone that the machine is in, for services with `prefer_zone`
    #[arg(long, env = "KEEL_ZONE", hide_env_values = true, value_name = "NAME")]
    pub zone: Option<ZoneName>,
    /// Network of the virtual addresses (default: 10.77.0.0/16 for root, else 127.77.0.0/16)
    #[arg(long, env = "KEEL_VIP_CIDR", hide_env_values = true, value_name = "CIDR")]
    pub vip_cidr: Option<String>,
    /// Serve metrics for Prometheus at this address too; a port alone is one of 127.0.0.1
    #[arg(long, env = "KEEL_METRICS_LISTEN", hide_env_values = true, value_name = "[ADDR:]PORT")]
    #[arg(value_parser = parse_address)]
    pub metrics_listen: Option<SocketAddr>,
    /// How requests are logged
    #[command(flatten)]
    pub access_log: AccessLogArgs,
    /// Load balancer that handles traffic in the place of keel's own (see docs/engines.md)
    #[arg(long, env = "KEEL_PROXY_ENGINE", hide_env_values = true, value_name = "ENGINE")]
    pub proxy_engine: Option<Proxy>,
    /// Leave the terminal; set by the command that starts a server in the background
    #[arg(long, hide = true)]
    pub background: bool,
}

/// What handles traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Proxy {
    // The names say it all; doc comments would make the help long.
    #[allow(missing_docs)]
    Keel,
    #[allow(missing_docs)]
    Haproxy,
    #[allow(missing_docs)]
    Nginx,
}

impl Proxy {
    /// The engine in the place of our own proxy.
    fn engine(self) -> Option<Engine> {
        match self {
            Self::Keel => None,
            Self::Haproxy => Some(Engine::Haproxy),
            Self::Nginx => Some(Engine::Nginx),
        }
    }
}

/// An address with its port, or a port of the loopback address.
fn parse_address(text: &str) -> Result<SocketAddr, String> {
    let port = text.strip_prefix(':').unwrap_or(text).parse::<u16>();
    match (port, text.parse::<SocketAddr>()) {
        (Ok(port), _) => Ok((Ipv4Addr::LOCALHOST, port).into()),
        (_, Ok(address)) => Ok(address),
        _ => Err(format!("{text:?} is no address: write 9090, 10.0.0.5:9090 or [::]:9090")),
    }
}

impl ServerArgs {
    /// Whether the server itself is to run in this process.
    pub fn is_run(&self) -> bool {
        match &self.action {
            None => !self.run.detach,
            Some(Action::Run(args)) => !args.detach,
            Some(Action::Stop | Action::Status) => false,
        }
    }

    fn run_args(&self) -> &RunArgs {
        match &self.action {
            Some(Action::Run(args)) => args,
            _ => &self.run,
        }
    }
}

/// Runs the server in this process until it is told to end.
///
/// # Errors
/// When it can't start.
pub fn serve(ctx: &Context, args: &ServerArgs) -> Result<(), Failure> {
    let args = args.run_args();
    if args.background {
        // The terminal's Ctrl-C and hang-up are for the command that started this process. It fails only for the
        // leader of a process group, which then is on its own already.
        let _ = rustix::process::setsid();
    }
    let program = std::env::current_exe().map_err(|error| {
        Failure::unreachable(format!("cannot find this program's file: {error}"))
    })?;
    let options = keel_server::ServerOptions {
        state_dir: ctx.state_dir.clone(),
        node: args.node.clone(),
        zone: args.zone.clone(),
        network: args.vip_cidr.clone(),
        proxy_engine: args.proxy_engine.and_then(Proxy::engine).map(|e| e.command().to_owned()),
        program,
        metrics: args.metrics_listen,
        access_log: args.access_log.settle()?,
    };
    keel_server::run(&options).map_err(|error| failure(&error))
}

/// The parts of a server error that begin with `hint:` are shown as such.
fn failure(error: &keel_server::Error) -> Failure {
    let text = error.to_string();
    let (message, hint) = split_hint(&text);
    let in_use = matches!(error, keel_server::Error::Store(keel_store::Error::InUse { .. }));
    let exit = if in_use { EXIT_IN_USE } else { UNREACHABLE };
    let failure = Failure::unreachable(message).exit(exit);
    match hint {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}

/// Runs the command, except for the server itself.
///
/// # Errors
/// When the server can't be reached or started.
pub async fn run(ctx: &Context, args: ServerArgs) -> Result<(), Failure> {
    match args.action {
        Some(Action::Status) => status(ctx).await,
        Some(Action::Stop) => stop(ctx).await,
        None | Some(Action::Run(_)) => detach(ctx, args.run_args()).await,
    }
}

async fn detach(ctx: &Context, args: &RunArgs) -> Result<(), Failure> {
    let client = ctx.client();
    if let Some(info) = spawn::find(&client).await? {
        return Err(in_use(ctx, &info));
    }
    let mut options = Vec::new();
    if let Some(node) = &args.node {
        options.extend(["--node".to_owned(), node.to_string()]);
    }
    if let Some(zone) = &args.zone {
        options.extend(["--zone".to_owned(), zone.to_string()]);
    }
    if let Some(network) = &args.vip_cidr {
        options.extend(["--vip-cidr".to_owned(), network.clone()]);
    }
    if let Some(address) = &args.metrics_listen {
        options.extend(["--metrics-listen".to_owned(), address.to_string()]);
    }
    options.extend(args.access_log.words()?);
    if let Some(proxy) = args.proxy_engine {
        let name = proxy.engine().map_or("keel", Engine::command);
        options.extend(["--proxy-engine".to_owned(), name.to_owned()]);
    }
    let ours = spawn::start(ctx, &client, &options).await?;
    let info = client.info().await?;
    if !ours {
        return Err(in_use(ctx, &info));
    }
    if ctx.json() {
        return print_json(&json(&info));
    }
    ctx.note(&format!("{} the server runs (pid {})", ctx.talk.good("✔"), info.pid));
    Ok(())
}

fn in_use(ctx: &Context, info: &ServerInfo) -> Failure {
    Failure::unreachable(format!(
        "a server (pid {}) already runs on the state directory {}",
        info.pid,
        ctx.state_dir.display()
    ))
    .hint("stop it with `keel server stop`, or name another directory with --state-dir")
}

async fn stop(ctx: &Context) -> Result<(), Failure> {
    let client = ctx.client();
    let info = client.info().await?;
    let left = running(&client).await;
    client.shutdown().await?;
    let deadline = Instant::now() + STOP_LIMIT;
    while answers(&client).await || is_alive(info.pid) {
        if Instant::now() > deadline {
            return Err(Failure::failed(
                "timeout",
                format!("the server (pid {}) did not end within {STOP_LIMIT:?}", info.pid),
            )
            .hint(format!("end it with `kill -9 {}`: nothing acknowledged is lost", info.pid)));
        }
        sleep(PAUSE).await;
    }
    if ctx.json() {
        return print_json(&serde_json::json!({ "stopped": info.pid }));
    }
    ctx.note(&format!(
        "{} the server (pid {}) is stopped{}",
        ctx.talk.good("✔"),
        info.pid,
        if left { "; instances run on" } else { "" }
    ));
    Ok(())
}

/// Whether any instance runs, as far as the server tells.
async fn running(client: &Client) -> bool {
    for stack in client.stacks().await.unwrap_or_default() {
        let view = client.stack(stack.name.as_str()).await;
        if view.is_ok_and(|view| view.services.values().any(|service| service.running > 0)) {
            return true;
        }
    }
    false
}

async fn answers(client: &Client) -> bool {
    !matches!(client.info().await, Err(Error::NotRunning { .. }))
}

/// Whether a process exists and has not ended.
fn is_alive(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .ok()
        .and_then(|stat| stat.rsplit_once(')').map(|(_, rest)| rest.trim_start().to_owned()))
        .is_some_and(|rest| !rest.starts_with(['Z', 'X']))
}

async fn status(ctx: &Context) -> Result<(), Failure> {
    let client = ctx.client();
    let info = client.info().await?;
    let containers = containers(&client).await?;
    if ctx.json() {
        let mut json = json(&info);
        json["containers"] = match &containers {
            Ok(engine) => serde_json::json!(engine),
            Err(why) => serde_json::json!({ "error": why }),
        };
        return print_json(&json);
    }
    let uptime = time::words(time::now().since(info.started_at));
    let dns = info.dns.map_or_else(|| "off".to_owned(), |address| address.to_string());
    let mut rows = vec![
        ("version", info.version.clone()),
        ("pid", info.pid.to_string()),
        ("up", uptime),
        ("node", info.node.to_string()),
        ("state", info.state_dir.display().to_string()),
        ("network", info.network.clone()),
        ("dns", dns),
        ("containers", containers.map_or_else(|why| format!("none: {why}"), |engine| engine.text)),
    ];
    rows.extend(info.zone.iter().map(|zone| ("zone", zone.to_string())));
    rows.extend(info.metrics.map(|at| ("metrics", format!("http://{at}/metrics"))));
    rows.extend(info.access_log.iter().map(|path| ("access log", path.display().to_string())));
    rows.extend(proxy_row(&info.proxy).map(|row| ("proxy", row)));
    rows.extend(engine_row(&info).map(|row| ("engine", row)));
    rows.extend(info.lacks.iter().map(|lacking| ("lacks", lacks::line(lacking))));
    rows.extend(info.limitations.iter().map(|limitation| ("limited", limitation.clone())));
    print(&listing(&rows))
}

/// The process that handles traffic, or since when there is none.
fn proxy_row(proxy: &ProxyView) -> Option<String> {
    let ago = |at: Timestamp| time::words(time::now().since(at)).to_lowercase();
    let restarts = match proxy.restarts {
        0 => String::new(),
        1 => ", 1 restart".to_owned(),
        more => format!(", {more} restarts"),
    };
    if let Some(pid) = proxy.pid {
        let up = proxy.since.map_or_else(String::new, |since| format!(", up {}", ago(since)));
        return Some(format!("process {pid}{up}{restarts}"));
    }
    let since = ago(proxy.down_since?);
    let why = proxy.down_because.as_deref().unwrap_or("it is not known why");
    Some(format!("down for {since}: {why}{restarts}"))
}

/// The engine that serves, and the one that is wanted if that is another.
fn engine_row(info: &ServerInfo) -> Option<String> {
    let wanted = info.proxy_engine.as_deref().unwrap_or("keel");
    let serves = info.proxy.serves.as_deref().filter(|serves| *serves != wanted);
    match (serves, &info.proxy.not_taken_over) {
        (None, _) => info.proxy_engine.clone(),
        (Some(serves), Some(why)) => {
            Some(format!("{wanted} wanted; {serves} serves: {wanted} did not take over: {why}"))
        }
        (Some(serves), None) => Some(format!("{wanted} wanted; {serves} still serves")),
    }
}

/// The container engine, or why there is none.
async fn containers(client: &Client) -> Result<Result<EngineView, String>, Failure> {
    match client.engine().await {
        Ok(engine) => Ok(Ok(engine)),
        Err(Error::Refused(why)) => Ok(Err(why.message)),
        Err(error) => Err(error.into()),
    }
}

/// One line for each row, the values below each other.
fn listing(rows: &[(&str, String)]) -> String {
    let width = rows.iter().map(|(key, _)| key.len()).max().unwrap_or_default();
    rows.iter().map(|(key, value)| format!("{key:<width$}  {value}\n")).collect()
}

fn json(info: &ServerInfo) -> serde_json::Value {
    serde_json::json!({
        "version": info.version,
        "pid": info.pid,
        "started_at": time::rfc3339(info.started_at),
        "state_dir": info.state_dir,
        "node": info.node,
        "zone": info.zone,
        "network": info.network,
        "dns": info.dns,
        "metrics": info.metrics,
        "access_log": info.access_log,
        "proxy_engine": info.proxy_engine,
        "lacks": info.lacks,
        "limitations": info.limitations,
        "proxy": {
            "pid": info.proxy.pid,
            "serves": info.proxy.serves,
            "since": info.proxy.since.map(time::rfc3339),
            "restarts": info.proxy.restarts,
            "down_since": info.proxy.down_since.map(time::rfc3339),
            "down_because": info.proxy.down_because,
            "not_taken_over": info.proxy.not_taken_over,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_stand_below_each_other() {
        let rows = [("pid", "7".to_owned()), ("access log", "/var/log/keel".to_owned())];
        assert_eq!(listing(&rows), "pid         7\naccess log  /var/log/keel\n");
    }

    #[test]
    fn a_proxy_that_is_there_and_one_that_is_not() {
        let minute = Timestamp(time::now().0 - 60_000);
        let up = ProxyView { pid: Some(7), since: Some(minute), ..ProxyView::default() };
        assert_eq!(proxy_row(&up).unwrap(), "process 7, up about a minute");
        let again = ProxyView { restarts: 2, ..up };
        assert_eq!(proxy_row(&again).unwrap(), "process 7, up about a minute, 2 restarts");
        let down = ProxyView {
            down_since: Some(minute),
            down_because: Some("process 7 ended by signal 9".to_owned()),
            ..ProxyView::default()
        };
        assert_eq!(
            proxy_row(&down).unwrap(),
            "down for about a minute: process 7 ended by signal 9"
        );
        assert_eq!(proxy_row(&ProxyView::default()), None);
    }

    #[test]
    fn a_port_alone_is_for_this_machine() {
        let read = |text: &str| parse_address(text).unwrap().to_string();
        assert_eq!(read("9090"), "127.0.0.1:9090");
        assert_eq!(read(":9090"), "127.0.0.1:9090");
        assert_eq!(read("0.0.0.0:9090"), "0.0.0.0:9090");
        assert_eq!(read("[::1]:9090"), "[::1]:9090");
        for bad in ["", "x", "localhost:9090", "10.0.0.1", "99999"] {
            assert!(parse_address(bad).is_err(), "{bad}");
        }
    }
}
