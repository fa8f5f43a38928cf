//! `keel version`.

use crate::context::{Context, print, print_json};
use crate::failure::Failure;

/// This program's version.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Options of `keel version`.
#[derive(clap::Args, Clone, Debug)]
pub struct VersionArgs {
    /// Only the number
    #[arg(long)]
    pub short: bool,
}

/// Runs the command. A server that does not run is no error.
///
/// # Errors
/// When standard output can't be written.
pub async fn run(ctx: &Context, args: VersionArgs) -> Result<(), Failure> {
    if args.short {
        return print(&format!("{VERSION}\n"));
    }
    let server = ctx.client().info().await.ok();
    if ctx.json() {
        return print_json(&serde_json::json!({
            "version": VERSION,
            "server": server.map(|server| server.version),
        }));
    }
    let server = server.map(|s| format!("server version {}\n", s.version)).unwrap_or_default();
    print(&format!("keel version {VERSION}\n{server}"))
}
