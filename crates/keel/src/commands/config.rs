//! `keel config`: checks the Compose files and prints them in canonical form, as `docker compose config` does.
//!
//! It needs no server.

use std::fs;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use keel_compose::Project;

use crate::cli::FileArgs;
use crate::context::{Context, print, print_json};
use crate::failure::Failure;
use crate::project::{self, Phases};
use crate::ui::table;

/// Options of `keel config`.
#[derive(Args, Clone, Debug, Default)]
pub struct ConfigArgs {
    /// Only these services, with what they depend on
    #[arg(value_name = "SERVICE")]
    pub services: Vec<String>,
    /// Form of the document (default: yaml, or json with `--output json`)
    #[arg(long, value_name = "FORM")]
    pub format: Option<Format>,
    /// What to print instead of the document
    #[command(flatten)]
    pub only: Only,
    /// Only check, as `keel up` does; print nothing but mistakes
    #[arg(short, long)]
    pub quiet: bool,
    /// Do not replace variables
    #[arg(long)]
    pub no_interpolate: bool,
    /// Do not add defaults such as the default network
    #[arg(long)]
    pub no_normalize: bool,
    /// Do not make paths absolute
    #[arg(long)]
    pub no_path_resolution: bool,
    /// Do not check references between parts
    #[arg(long)]
    pub no_consistency: bool,
    /// Do not read env files of services
    #[arg(long)]
    pub no_env_resolution: bool,
    /// Write to this file instead of standard output
    #[arg(short, value_name = "FILE")]
    pub o: Option<PathBuf>,
    /// Compose files
    #[command(flatten)]
    pub files: FileArgs,
}

/// Form of the document.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    // The names say it all; doc comments would make the help long.
    #[allow(missing_docs)]
    Yaml,
    #[allow(missing_docs)]
    Json,
}

/// What to print instead of the document.
#[derive(Args, Clone, Debug, Default)]
#[group(multiple = false)]
pub struct Only {
    /// Print the names of services, one per line
    #[arg(long = "services", id = "only_services")]
    pub services: bool,
    /// Print the names of images, one per line
    #[arg(long)]
    pub images: bool,
    /// Print the names of volumes, one per line
    #[arg(long)]
    pub volumes: bool,
    /// Print the names of networks, one per line
    #[arg(long)]
    pub networks: bool,
    /// Print the names of models, one per line
    #[arg(long)]
    pub models: bool,
    /// Print the names of profiles, one per line
    #[arg(long)]
    pub profiles: bool,
    /// Print the environment that variables are replaced from
    #[arg(long)]
    pub environment: bool,
    /// Print the variables that the files use, with their defaults
    #[arg(long)]
    pub variables: bool,
    /// Print a hash per service; `*` for all, or names separated by commas
    #[arg(long, value_name = "SERVICES")]
    pub hash: Option<String>,
}

/// Runs the command.
///
/// # Errors
/// When the files are wrong or the output can't be written.
pub fn run(ctx: &Context, args: &ConfigArgs) -> Result<(), Failure> {
    let phases = Phases {
        interpolate: !args.no_interpolate && !args.only.variables,
        normalize: !args.no_normalize,
        resolve_paths: !args.no_path_resolution,
        consistency: !args.no_consistency,
        resolve_environment: !args.no_env_resolution,
    };
    if args.quiet && phases == project::ALL {
        return project::check(ctx, &args.services);
    }
    let project = project::load_with(ctx, &args.services, phases)?;
    if args.quiet {
        return Ok(());
    }
    let text = match list(&project, &args.only)? {
        Some(lines) if ctx.json() => return print_json(&lines),
        Some(lines) => lines.iter().map(|line| format!("{line}\n")).collect(),
        None if args.only.variables => variables(&project),
        None => document(ctx, &project, args),
    };
    match &args.o {
        None => print(&text),
        Some(path) => fs::write(path, text).map_err(|error| {
            Failure::failed("io", format!("cannot write {}: {error}", path.display()))
        }),
    }
}

/// What is asked for instead of the document, when it is a list.
fn list(project: &Project, only: &Only) -> Result<Option<Vec<String>>, Failure> {
    let owned = |names: Vec<&str>| Some(names.into_iter().map(str::to_owned).collect());
    Ok(if only.services {
        owned(project.services())
    } else if only.images {
        Some(project.images())
    } else if only.volumes {
        owned(project.volumes())
    } else if only.networks {
        owned(project.networks())
    } else if only.models {
        owned(project.models())
    } else if only.profiles {
        owned(project.profiles())
    } else if only.environment {
        let pairs = project.environment().iter();
        Some(pairs.map(|(name, value)| format!("{name}={value}")).collect())
    } else if let Some(names) = &only.hash {
        Some(hashes(project, names)?)
    } else {
        None
    })
}

fn hashes(project: &Project, names: &str) -> Result<Vec<String>, Failure> {
    let known = project.services();
    let names: Vec<&str> = if names == "*" { known.clone() } else { names.split(',').collect() };
    names
        .into_iter()
        .map(|name| {
            let hash = project
                .hash(name)
                .ok_or_else(|| crate::names::unknown_service(name, project.name(), &known))?;
            Ok(format!("{name} {hash}"))
        })
        .collect()
}

fn variables(project: &Project) -> String {
    let rows: Vec<Vec<String>> = project
        .variables()
        .into_iter()
        .map(|(name, variable)| {
            vec![
                name,
                variable.required.to_string(),
                variable.default_value,
                variable.alternate_value,
            ]
        })
        .collect();
    table::render(&["NAME", "REQUIRED", "DEFAULT VALUE", "ALTERNATE VALUE"], &rows)
}

fn document(ctx: &Context, project: &Project, args: &ConfigArgs) -> String {
    let default = if ctx.json() { Format::Json } else { Format::Yaml };
    let mut text = match (args.format.unwrap_or(default), args.no_interpolate) {
        (Format::Yaml, false) => project.to_yaml(),
        (Format::Yaml, true) => project.model_yaml(),
        (Format::Json, false) => project.json_text(),
        (Format::Json, true) => format!("{:#}", project.model_json()),
    };
    if !text.ends_with('\n') {
        text.push('\n');
    }
    text
}
