//! `keel routes`: lists which requests lead to which service.

use keel_model::ServiceName;
use keel_server::api::types::{EntrypointView, RouteView};

use crate::cli::{FileArgs, OutputForm};
use crate::context::{Context, print, print_json};
use crate::failure::Failure;
use crate::ui::table;
use crate::{names, project};

/// Width of the RULE column.
const RULE_WIDTH: usize = 60;

/// Options of `keel routes`.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct RoutesArgs {
    /// Only routes to these services
    #[arg(value_name = "SERVICE")]
    pub services: Vec<String>,
    /// The routes of all stacks
    #[arg(short, long, conflicts_with = "services")]
    pub all: bool,
    /// Do not cut long rules
    #[arg(long)]
    pub no_trunc: bool,
    /// As --output
    #[arg(long, hide = true, value_name = "FORM")]
    pub format: Option<OutputForm>,
    /// Compose files
    #[command(flatten)]
    pub files: FileArgs,
}

/// Runs the command.
///
/// # Errors
/// When there is no such stack or service.
pub async fn run(ctx: &Context, args: RoutesArgs) -> Result<(), Failure> {
    let client = ctx.client();
    let routes = if args.all {
        client.routes().await?
    } else {
        let stack = project::stack_name(ctx)?;
        let (_, services) = names::stack_with(&client, &stack, &args.services).await?;
        let mut routes = client.routes().await?;
        routes.retain(|route| route.stack == stack && leads_to(route, &services));
        routes
    };
    if ctx.json() || args.format == Some(OutputForm::Json) {
        return print_json(&routes);
    }
    print(&render(&routes, args.all, args.no_trunc))
}

fn leads_to(route: &RouteView, services: &[ServiceName]) -> bool {
    services.is_empty()
        || services.iter().any(|name| *name == route.service || route.split.contains_key(name))
}

fn render(routes: &[RouteView], all: bool, full: bool) -> String {
    let width = if full { usize::MAX } else { RULE_WIDTH };
    let mut header = vec!["ROUTE", "RULE", "ENTRYPOINTS", "TLS", "SERVICE"];
    let mut rows: Vec<Vec<String>> = routes
        .iter()
        .map(|route| {
            vec![
                route.name.clone(),
                table::cut(&route.rule, width),
                route.entrypoints.iter().map(entrypoint).collect::<Vec<_>>().join(", "),
                route.tls.clone(),
                target(route),
            ]
        })
        .collect();
    if all {
        header.insert(0, "STACK");
        for (row, route) in rows.iter_mut().zip(routes) {
            row.insert(0, route.stack.to_string());
        }
    }
    table::render(&header, &rows)
}

fn entrypoint(view: &EntrypointView) -> String {
    let closed = if view.error.is_some() { " (not open)" } else { "" };
    format!("{} {}{closed}", view.name, view.address)
}

/// `cart:80`, and the shares of others: `cart:80 90%, cart-v2 10%`.
fn target(route: &RouteView) -> String {
    let port = route.port.map(|port| format!(":{port}")).unwrap_or_default();
    let mut text = format!("{}{port}", route.service);
    if !route.split.is_empty() {
        let rest =
            1000 - route.split.values().map(|share| u32::from(*share)).sum::<u32>().min(1000);
        text.push_str(&format!(" {}", percent(rest)));
        for (service, share) in &route.split {
            text.push_str(&format!(", {service} {}", percent(u32::from(*share))));
        }
    }
    text
}

fn percent(per_mille: u32) -> String {
    match per_mille % 10 {
        0 => format!("{}%", per_mille / 10),
        tenth => format!("{}.{tenth}%", per_mille / 10),
    }
}

#[cfg(test)]
mod tests {
    use keel_model::{RouteKind, StackName};

    use super::*;

    fn route(name: &str, rule: &str, tls: &str) -> RouteView {
        RouteView {
            stack: StackName::new("shop").unwrap(),
            name: name.to_owned(),
            rule: rule.to_owned(),
            priority: 1,
            kind: RouteKind::Http,
            entrypoints: vec![EntrypointView {
                name: "web".to_owned(),
                address: "0.0.0.0:80".parse().unwrap(),
                tls: false,
                error: (name == "cart").then(|| "permission denied".to_owned()),
            }],
            tls: tls.to_owned(),
            service: ServiceName::new("cart").unwrap(),
            port: Some(8080),
            split: std::collections::BTreeMap::new(),
            filters: Vec::new(),
        }
    }

    #[test]
    fn routes_are_a_table() {
        let mut shared = route(
            "api",
            "Host(`shop.example.com`) && PathPrefix(`/a-path-that-is-much-too-long`)",
            "acme",
        );
        shared.split.insert(ServiceName::new("cart-v2").unwrap(), 25);
        let routes = [route("cart", "Host(`cart.example.com`)", "none"), shared];
        insta::assert_snapshot!(render(&routes, true, false), @r"
        STACK   ROUTE   RULE                                                           ENTRYPOINTS                 TLS    SERVICE
        shop    cart    Host(`cart.example.com`)                                       web 0.0.0.0:80 (not open)   none   cart:8080
        shop    api     Host(`shop.example.com`) && PathPrefix(`/a-path-that-is-muc…   web 0.0.0.0:80              acme   cart:8080 97.5%, cart-v2 2.5%
        ");
    }
}
