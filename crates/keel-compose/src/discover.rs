//! Which files, variables, profiles and name a project has, before any file is merged.
//!
//! The order is Docker's: the caller's environment, then `--env-file` or `.env` of the working directory, then
//! `COMPOSE_FILE` or the default names searched upwards, then `.env` beside the files that were found.

use std::path::{Path, PathBuf};

use crate::diagnostic::{Code, Diagnostic, Outcome, fail};
use crate::load::LoadOptions;
use crate::loader::{Loader, Variables, join};
use crate::source::PathKind;

/// The names of a Compose file, best first.
pub const FILE_NAMES: [&str; 4] =
    ["compose.yaml", "compose.yml", "docker-compose.yml", "docker-compose.yaml"];

/// The names of the file that is merged on top of a default file, best first.
pub const OVERRIDE_NAMES: [&str; 4] = [
    "compose.override.yml",
    "compose.override.yaml",
    "docker-compose.override.yml",
    "docker-compose.override.yaml",
];

/// What was found.
pub(crate) struct Found {
    pub files: Vec<PathBuf>,
    pub directory: PathBuf,
    pub variables: Variables,
    pub profiles: Vec<String>,
}

/// Finds the files and variables of a project.
pub(crate) fn discover(loader: &Loader<'_>, options: &LoadOptions) -> Outcome<Found> {
    let mut variables = options.environment.clone();
    variables
        .entry("PWD".to_owned())
        .or_insert_with(|| options.working_dir.to_string_lossy().into_owned());

    let mut files: Vec<PathBuf> =
        options.files.iter().map(|file| absolute(&options.working_dir, file)).collect();
    let mut env_files = env_files(loader, options, &files)?;
    load_env(loader, &env_files, &mut variables)?;

    if files.is_empty() {
        files = match variables.get("COMPOSE_FILE") {
            Some(list) => listed(loader, options, list, &variables)?,
            None => default_files(loader, &directory(options, &files)),
        };
    }
    let second = self::env_files(loader, options, &files)?;
    if !second.is_empty() {
        env_files = second;
    }
    load_env(loader, &env_files, &mut variables)?;

    let profiles = if options.profiles.is_empty() {
        let list = variables.get("COMPOSE_PROFILES").map(String::as_str).unwrap_or_default();
        list.split(',').map(|profile| profile.trim().to_owned()).collect()
    } else {
        options.profiles.clone()
    };
    if files.is_empty() {
        let message =
            format!("there is no Compose file in {} or above", options.working_dir.display());
        return fail(
            Diagnostic::error(Code::Project, message)
                .help("create compose.yaml, or name a file with -f"),
        );
    }
    Ok(Found { directory: directory(options, &files), files, variables, profiles })
}

/// The project directory: given, or that of the first file, or the working directory.
fn directory(options: &LoadOptions, files: &[PathBuf]) -> PathBuf {
    if let Some(directory) = &options.project_directory {
        return absolute(&options.working_dir, directory);
    }
    let file = files.iter().find(|file| *file != Path::new("-"));
    match file.and_then(|file| file.parent()) {
        Some(parent) => parent.to_owned(),
        None => options.working_dir.clone(),
    }
}

fn absolute(directory: &Path, path: &Path) -> PathBuf {
    if path == Path::new("-") { path.to_owned() } else { join(directory, &path.to_string_lossy()) }
}

fn env_files(
    loader: &Loader<'_>,
    options: &LoadOptions,
    files: &[PathBuf],
) -> Outcome<Vec<PathBuf>> {
    if !options.env_files.is_empty() {
        return Ok(options
            .env_files
            .iter()
            .map(|file| absolute(&options.working_dir, file))
            .collect());
    }
    if let Some(list) = options.environment.get("COMPOSE_ENV_FILES").filter(|list| !list.is_empty())
    {
        let names = list.split(',').filter(|name| !name.is_empty());
        return Ok(names.map(|name| absolute(&options.working_dir, Path::new(name))).collect());
    }
    if let Some(text) = options.environment.get("COMPOSE_DISABLE_ENV_FILE") {
        match text.as_str() {
            "1" | "t" | "T" | "true" | "True" | "TRUE" => return Ok(Vec::new()),
            "0" | "f" | "F" | "false" | "False" | "FALSE" => {}
            _ => {
                let message =
                    format!("COMPOSE_DISABLE_ENV_FILE must be true or false, not `{text}`");
                return fail(Diagnostic::error(Code::InvalidValue, message));
            }
        }
    }
    let default = directory(options, files).join(".env");
    let exists = loader.source.kind(&default) == PathKind::File;
    Ok(if exists { vec![default] } else { Vec::new() })
}

/// Adds the variables of files; those that are set already stay.
fn load_env(loader: &Loader<'_>, files: &[PathBuf], variables: &mut Variables) -> Outcome<()> {
    let files: Vec<_> = files.iter().map(|file| (file.clone(), None)).collect();
    for (key, value) in loader.env_files(&files, variables)? {
        variables.entry(key).or_insert(value);
    }
    Ok(())
}

/// The files that `COMPOSE_FILE` lists.
fn listed(
    loader: &Loader<'_>,
    options: &LoadOptions,
    list: &str,
    variables: &Variables,
) -> Outcome<Vec<PathBuf>> {
    let separator = variables.get("COMPOSE_PATH_SEPARATOR").filter(|text| !text.is_empty());
    let separator = separator.map_or(":", String::as_str);
    list.split(separator)
        .map(|name| {
            let path = absolute(&options.working_dir, Path::new(name));
            if path != Path::new("-") && loader.source.kind(&path) == PathKind::Missing {
                let message =
                    format!("COMPOSE_FILE names {}, which does not exist", path.display());
                return fail(Diagnostic::error(Code::File, message));
            }
            Ok(path)
        })
        .collect()
}

/// The default file, in the directory or the nearest one above it, and its override file.
fn default_files(loader: &Loader<'_>, start: &Path) -> Vec<PathBuf> {
    let existing = |directory: &Path, names: &[&str]| {
        let paths: Vec<PathBuf> = names.iter().map(|name| directory.join(name)).collect();
        paths
            .into_iter()
            .filter(|path| loader.source.kind(path) != PathKind::Missing)
            .collect::<Vec<PathBuf>>()
    };
    for directory in start.ancestors() {
        let found = existing(directory, &FILE_NAMES);
        let Some(first) = found.first() else { continue };
        warn_of_several(loader, &found);
        let overrides = existing(directory, &OVERRIDE_NAMES);
        warn_of_several(loader, &overrides);
        return std::iter::once(first.clone()).chain(overrides.into_iter().next()).collect();
    }
    Vec::new()
}

fn warn_of_several(loader: &Loader<'_>, found: &[PathBuf]) {
    if let [used, ignored @ ..] = found
        && !ignored.is_empty()
    {
        let names: Vec<String> = ignored.iter().map(|path| path.display().to_string()).collect();
        let message = format!("{} is used; {} is not read", used.display(), names.join(", "));
        loader.notes.borrow_mut().push(Diagnostic::warning(Code::Project, message));
    }
}
