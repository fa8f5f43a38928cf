//! `keel volumes`: the named volumes of a stack.

use keel_server::api::usage::VolumeView;

use crate::cli::{FileArgs, OutputForm};
use crate::context::{Context, print, print_json};
use crate::failure::Failure;
use crate::ui::table;
use crate::{names, project};

/// Options of `keel volumes`.
#[derive(clap::Args, Clone, Debug)]
pub struct VolumesArgs {
    /// Only volumes of these services
    #[arg(value_name = "SERVICE")]
    pub services: Vec<String>,
    /// Only names of volumes
    #[arg(short, long)]
    pub quiet: bool,
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
pub async fn run(ctx: &Context, args: VolumesArgs) -> Result<(), Failure> {
    let stack = project::stack_name(ctx)?;
    let client = ctx.client();
    // A stack that is down may have left some.
    let services = match args.services.as_slice() {
        [] => Vec::new(),
        named => names::stack_with(&client, &stack, named).await?.1,
    };
    let mut volumes = client.volumes(stack.as_str()).await?;
    volumes.retain(|volume| {
        services.is_empty() || volume.used_by.iter().any(|user| services.contains(user))
    });
    if args.quiet {
        return print(&volumes.iter().map(|it| format!("{}\n", it.name)).collect::<String>());
    }
    if ctx.json() || args.format == Some(OutputForm::Json) {
        return print_json(&volumes);
    }
    let cells: Vec<Vec<String>> = volumes.iter().map(cells).collect();
    print(&table::render(&["DRIVER", "VOLUME NAME", "USED BY", "PATH"], &cells))
}

fn cells(volume: &VolumeView) -> Vec<String> {
    let users: Vec<&str> = volume.used_by.iter().map(|user| user.as_str()).collect();
    let path = match &volume.path {
        Some(path) => path.display().to_string(),
        None => "(external)".to_owned(),
    };
    vec![volume.driver.clone(), volume.name.clone(), users.join(", "), path]
}
