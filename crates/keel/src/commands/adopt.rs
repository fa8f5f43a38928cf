//! `keel adopt`: takes over what `docker compose` has started, as it runs.

use std::collections::BTreeSet;
use std::time::Duration;

use keel_model::ServiceName;
use keel_server::api::adopt::{AdoptRequest, AdoptView};

use crate::change::Change;
use crate::cli::FileArgs;
use crate::commands::up;
use crate::context::{Context, print, print_json};
use crate::failure::Failure;
use crate::ui::{table, time};
use crate::wait::Until;
use crate::{project, spawn};

/// Options of `keel adopt`.
#[derive(clap::Args, Clone, Debug)]
pub struct AdoptArgs {
    /// Only these services
    #[arg(value_name = "SERVICE")]
    pub services: Vec<String>,
    /// Show what would be taken over, and change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Give up waiting after this time (seconds, or a duration such as 5m); the takeover goes on
    #[arg(long, value_name = "TIME", value_parser = time::parse_seconds, default_value = "10m")]
    pub wait_timeout: Duration,
    /// Compose files
    #[command(flatten)]
    pub files: FileArgs,
}

/// Runs the command.
///
/// # Errors
/// When the files are wrong, there is no such project, or a container can't be taken over.
pub async fn run(ctx: &Context, args: AdoptArgs) -> Result<(), Failure> {
    check_root(rustix::process::geteuid().is_root())?;
    let stack = project::stack(ctx, &args.services)?;
    let services = up::selection(&stack, &args.services, false)?;
    let client = spawn::ensure_server(ctx).await?;
    let name = stack.name.clone();
    let mut request = AdoptRequest {
        stack,
        services: services.map(Vec::from_iter),
        containers: None,
        change: describe(&args.services),
    };
    let view = client.adopt(&request).await?;
    let taken = view.taken();
    let only_shown = args.dry_run || taken.is_empty();
    match (ctx.json(), only_shown) {
        (true, true) => print_json(&view)?,
        // What was done follows.
        (true, false) => {}
        (false, _) => print(&render(&view))?,
    }
    for warning in &view.warnings {
        ctx.warn(warning);
    }
    for note in &view.notes {
        ctx.note(&format!("{}: {note}", ctx.talk.hint("note")));
    }
    if taken.is_empty() {
        ctx.note(&format!("there is nothing to take over of {name}"));
        return Ok(());
    }
    if args.dry_run {
        return Ok(());
    }
    request.containers = Some(taken);
    let done = client.adopt(&request).await?;
    let Some(applied) = &done.applied else {
        return Err(Failure::failed("internal", "the server took nothing over"));
    };
    let of_taken = view.containers.iter().filter(|row| row.instance.is_some());
    let services: BTreeSet<ServiceName> =
        of_taken.filter_map(|row| ServiceName::new(&row.service).ok()).collect();
    let change = Change {
        ctx,
        client: &client,
        stack: &name,
        applied,
        services: Some(services),
        until: Until::Converged,
        limit: Some(args.wait_timeout),
        done: format!("{name} is taken over"),
    };
    change.settle().await.map(drop)
}

fn check_root(is_root: bool) -> Result<(), Failure> {
    if is_root {
        return Ok(());
    }
    Err(Failure::failed(
        "not_root",
        "only root can take over containers: their ports are led to keel's proxy, and they are told names",
    )
    .hint("sudo keel adopt"))
}

fn render(view: &AdoptView) -> String {
    let rows = view.containers.iter().map(|row| {
        let instance = row.instance.as_ref().map_or("-", |id| id.as_str());
        let texts = [&row.service, &row.container, &row.state, instance, &row.what];
        texts.map(str::to_owned).to_vec()
    });
    let header = ["SERVICE", "CONTAINER", "STATE", "BECOMES", "WHAT HAPPENS"];
    table::render(&header, &rows.collect::<Vec<_>>())
}

/// For `keel history`.
fn describe(services: &[String]) -> String {
    let words = std::iter::once("adopt").chain(services.iter().map(String::as_str));
    words.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use keel_model::InstanceId;
    use keel_server::api::adopt::AdoptRow;

    use super::*;

    #[test]
    fn only_root_takes_over() {
        assert!(check_root(true).is_ok());
        let Err(Failure::Told(report)) = check_root(false) else { panic!("it is refused") };
        assert_eq!((report.code.as_str(), report.exit), ("not_root", 1));
        assert_eq!(report.hint.as_deref(), Some("sudo keel adopt"));
    }

    #[test]
    fn containers_are_shown_in_columns() {
        let row = |service: &str, instance: Option<&str>, what: &str| AdoptRow {
            service: service.to_owned(),
            container: format!("shop_{service}_1"),
            id: "ab".to_owned(),
            state: "running".to_owned(),
            instance: instance.map(|id| InstanceId::new(id).unwrap()),
            what: what.to_owned(),
        };
        let containers = vec![
            row("web", Some("shop-web-1"), "adopted as it runs"),
            row("old", None, "left alone: the file has no such service"),
        ];
        insta::assert_snapshot!(render(&AdoptView { containers, ..AdoptView::default() }), @r"
        SERVICE   CONTAINER    STATE     BECOMES      WHAT HAPPENS
        web       shop_web_1   running   shop-web-1   adopted as it runs
        old       shop_old_1   running   -            left alone: the file has no such service
        ");
    }
}
