//! `keel restart`, `keel stop` and `keel start`.

use keel_model::ServiceName;
use keel_server::api::client::ServiceOperation;
use keel_server::api::types::ServicesRequest;

use crate::change::{Change, WaitArgs};
use crate::cli::FileArgs;
use crate::context::Context;
use crate::failure::Failure;
use crate::wait::Until;
use crate::{names, project};

macro_rules! options {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(clap::Args, Clone, Debug)]
        pub struct $name {
            /// Which services (default: all)
            #[arg(value_name = "SERVICE")]
            pub services: Vec<String>,
            /// Whether and how long to wait
            #[command(flatten)]
            pub wait: WaitArgs,
            /// Compose files
            #[command(flatten)]
            pub files: FileArgs,
        }
    };
}

options!(
    /// Options of `keel restart`.
    RestartArgs
);
options!(
    /// Options of `keel stop`.
    StopArgs
);
options!(
    /// Options of `keel start`.
    StartArgs
);

/// Replaces the instances of services one at a time, so that no request is lost.
///
/// # Errors
/// When there is no such service, or it does not get ready again.
pub async fn restart(ctx: &Context, args: RestartArgs) -> Result<(), Failure> {
    run(ctx, ServiceOperation::Restart, &args.services, &args.wait).await
}

/// Stops services.
///
/// # Errors
/// When there is no such service, or it does not stop in time.
pub async fn stop(ctx: &Context, args: StopArgs) -> Result<(), Failure> {
    run(ctx, ServiceOperation::Stop, &args.services, &args.wait).await
}

/// Starts stopped services.
///
/// # Errors
/// When there is no such service, or it does not get ready.
pub async fn start(ctx: &Context, args: StartArgs) -> Result<(), Failure> {
    run(ctx, ServiceOperation::Start, &args.services, &args.wait).await
}

async fn run(
    ctx: &Context,
    operation: ServiceOperation,
    services: &[String],
    wait: &WaitArgs,
) -> Result<(), Failure> {
    let stack = project::stack_name(ctx)?;
    let client = ctx.client();
    let (_, services) = names::stack_with(&client, &stack, services).await?;
    let request = ServicesRequest { services: services.clone(), in_place: false };
    let applied = client.operate(stack.as_str(), operation, &request).await?;
    let (until, done) = match operation {
        ServiceOperation::Stop => (Until::Stopped, "stopped"),
        ServiceOperation::Start => (Until::Converged, "started"),
        ServiceOperation::Restart => (Until::Converged, "restarted"),
        ServiceOperation::Remove => (Until::Stopped, "removed"),
    };
    let change = Change {
        ctx,
        client: &client,
        stack: &stack,
        applied: &applied,
        done: format!("{} is {done}", subject(stack.as_str(), &services)),
        services: (!services.is_empty()).then(|| services.into_iter().collect()),
        until,
        limit: Some(wait.wait_timeout),
    };
    if wait.detach {
        return change.print_result("accepted");
    }
    change.settle().await.map(|_| ())
}

/// `shop` or `shop (cart, catalog)`.
fn subject(stack: &str, services: &[ServiceName]) -> String {
    if services.is_empty() {
        return stack.to_owned();
    }
    let names: Vec<&str> = services.iter().map(ServiceName::as_str).collect();
    format!("{stack} ({})", names.join(", "))
}
