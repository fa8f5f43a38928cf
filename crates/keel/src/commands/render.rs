//! `keel render`: the configuration of another load balancer for the same traffic.

use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use keel_render::{Engine, Gap, Rendered, render};
use keel_route::snapshot::Snapshot;
use keel_server::api::client::Error;
use serde_json::json;

use crate::context::{Context, print, print_json};
use crate::failure::{Failure, split_hint};
use crate::lacks;

/// What stands in the place of a password hash on a terminal. No password has it.
const HIDDEN: &str = "*hidden*";

/// Options of `keel render`.
#[derive(Args, Clone, Debug)]
pub struct RenderArgs {
    /// The load balancer
    #[arg(value_name = "ENGINE")]
    pub engine: EngineName,
    /// Write all files, keys included, to this directory; otherwise the main one goes to standard output
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Let the load balancer check the configuration
    #[arg(long)]
    pub check: bool,
}

/// A load balancer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum EngineName {
    // The names say it all; doc comments would make the help long.
    #[allow(missing_docs)]
    Haproxy,
    #[allow(missing_docs)]
    Nginx,
}

impl From<EngineName> for Engine {
    fn from(name: EngineName) -> Self {
        match name {
            EngineName::Haproxy => Self::Haproxy,
            EngineName::Nginx => Self::Nginx,
        }
    }
}

/// Runs the command.
///
/// # Errors
/// When there is nothing to render, it can't be written, or the check fails.
pub async fn run(ctx: &Context, args: RenderArgs) -> Result<(), Failure> {
    let engine = Engine::from(args.engine);
    let mut snapshot = snapshot(ctx).await?;
    let to_terminal = args.out.is_none() && std::io::stdout().is_terminal();
    if to_terminal && hide(&mut snapshot) {
        ctx.note("password hashes are not shown on a terminal; use --out DIR or a pipe");
    }
    let directory = match &args.out {
        Some(out) => std::path::absolute(out).map_err(|error| cannot_write(out, &error))?,
        None => PathBuf::from("/run"),
    };
    let rendered = render(engine, &snapshot, &keel_engine::options(engine, &directory));
    if let Some(out) = &args.out {
        keel_engine::write(&rendered, &directory, None)
            .map_err(|error| cannot_write(out, &error))?;
    }
    tell_gaps(ctx, engine, &rendered.gaps);
    if args.check {
        check(engine, &rendered, args.out.as_deref().map(|_| directory.as_path()))?;
        ctx.note(&format!("{} {} accepts it", ctx.talk.good("✔"), engine.command()));
    }
    if ctx.json() {
        return print_json(&in_json(engine, &rendered, to_terminal));
    }
    match &args.out {
        Some(out) => {
            let count = rendered.files.len() + rendered.joined.len();
            let files = if count == 1 { "1 file".to_owned() } else { format!("{count} files") };
            ctx.note(&format!(
                "{} wrote {files} to {}; start it with: {}",
                ctx.talk.good("✔"),
                out.display(),
                keel_engine::start_line(engine, &directory)
            ));
            Ok(())
        }
        None => {
            let others = rendered.files.len() + rendered.joined.len() - 1;
            if others > 0 {
                let files = if others == 1 { "file belongs" } else { "files belong" };
                ctx.note(&format!("{others} more {files} to it; use --out DIR to have them"));
            }
            print(&rendered.files[engine.main_file()])
        }
    }
}

/// What the data plane was told last: by the server that runs, or else as the data plane keeps it.
async fn snapshot(ctx: &Context) -> Result<Snapshot, Failure> {
    match ctx.client().snapshot().await {
        Ok(snapshot) => return Ok(snapshot),
        Err(Error::NotRunning { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    let path = ctx.state_dir.join("proxy.snapshot");
    let known = std::fs::read(&path).ok().and_then(|json| serde_json::from_slice(&json).ok());
    match known {
        Some(snapshot) => {
            ctx.warn(&format!("no server runs; this is the state of {}", path.display()));
            Ok(snapshot)
        }
        None => Err(Failure::unreachable("no keel server runs, so no endpoint is known")
            .hint("start the stack with `keel up -d`, then run this again")),
    }
}

/// Replaces password hashes; whether there were any.
fn hide(snapshot: &mut Snapshot) -> bool {
    let routes = snapshot.tables.values_mut().flat_map(|table| &mut table.routes);
    let users = routes.filter_map(|route| route.filters.basic_auth.as_mut());
    let mut any = false;
    for line in users.flat_map(|auth| &mut auth.users) {
        any = true;
        let name = line.split(':').next().unwrap_or_default();
        *line = format!("{name}:{HIDDEN}");
    }
    any
}

fn check(engine: Engine, rendered: &Rendered, directory: Option<&Path>) -> Result<(), Failure> {
    let failed = |error: keel_engine::Error| {
        let text = error.to_string();
        let (message, hint) = split_hint(&text);
        let failure = Failure::failed("check", message);
        match hint {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    };
    if let Some(directory) = directory {
        return keel_engine::check(engine, directory).map_err(failed);
    }
    let scratch = std::env::temp_dir().join(format!("keel-render-{}", std::process::id()));
    let written = keel_engine::write(rendered, &scratch, None);
    let checked = written
        .map_err(|error| cannot_write(&scratch, &error))
        .and_then(|()| keel_engine::check(engine, &scratch).map_err(failed));
    // Its keys must not stay behind.
    let _ = std::fs::remove_dir_all(&scratch);
    checked
}

fn tell_gaps(ctx: &Context, engine: Engine, gaps: &[Gap]) {
    let rows = gaps.iter().map(|gap| [gap.place.as_str(), gap.what.what(), gap.why]);
    lacks::tell(ctx, engine.command(), "you asked for", rows);
}

fn in_json(engine: Engine, rendered: &Rendered, hide_secrets: bool) -> serde_json::Value {
    let shown = |path: &&String| {
        !hide_secrets || *path == engine.main_file() || !rendered.secret.contains(*path)
    };
    let files: BTreeMap<&String, &String> =
        rendered.files.iter().filter(|(path, _)| shown(path)).collect();
    let gaps = rendered
        .gaps
        .iter()
        .map(|gap| json!({ "where": gap.place, "what": gap.what.what(), "why": gap.why }));
    json!({
        "engine": engine.command(),
        "main": engine.main_file(),
        "files": files,
        "gaps": gaps.collect::<Vec<_>>(),
    })
}

fn cannot_write(path: &Path, error: &std::io::Error) -> Failure {
    Failure::failed("io", format!("cannot write to {}: {error}", path.display()))
}
