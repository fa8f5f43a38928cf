//! `keel attach`: takes the input and output of an instance's main process.

use keel_container::attach::{Attach, End};
use keel_runtime::ExecSpec;

use crate::cli::FileArgs;
use crate::context::Context;
use crate::failure::Failure;
use crate::{instances, project};

/// Options of `keel attach`.
#[derive(clap::Args, Clone, Debug)]
pub struct AttachArgs {
    /// The service, or one of its instances
    pub service: String,
    /// Number of the instance within its service, from 1, in the order of `keel ps`
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub index: usize,
    /// Only output
    #[arg(long)]
    pub no_stdin: bool,
    /// Keys that end this and leave the instance as it is, where it has a terminal (default: ctrl-p,ctrl-q)
    #[arg(long, value_name = "KEYS")]
    pub detach_keys: Option<String>,
    /// Pass signals on to the process
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    #[arg(num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub sig_proxy: bool,
    /// Compose files
    #[command(flatten)]
    pub files: FileArgs,
}

/// Runs the command. Ends this process with the exit code of the other.
///
/// # Errors
/// When no instance runs, or it is not a container.
pub async fn run(ctx: &Context, args: AttachArgs) -> Result<(), Failure> {
    let stack = project::stack_name(ctx)?;
    let client = ctx.client();
    let view = client.stack(stack.as_str()).await?;
    let instance = instances::choose(&view, &args.service, args.index)?;
    let container = match client.exec_spec(instance.id.as_str()).await? {
        ExecSpec::Container(container) => container,
        ExecSpec::Process(_) => {
            let message = format!(
                "instance {} is a host process, whose input and output are not to be had again",
                instance.id
            );
            return Err(Failure::failed("attach", message)
                .hint("`keel logs -f` shows its output; `keel exec` runs a command beside it"));
        }
    };
    let how = Attach {
        input: !args.no_stdin,
        signals: args.sig_proxy,
        start: false,
        detach_keys: args.detach_keys,
    };
    let end = keel_container::attach::attach(&container, &how).await.map_err(|error| {
        Failure::failed("attach", format!("cannot attach to {}: {error}", instance.id))
    })?;
    match end {
        End::Detached => Ok(()),
        End::Exited(code) => std::process::exit(code),
    }
}
