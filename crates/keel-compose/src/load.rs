//! The way in: [`load`] turns options and files into a [`Project`].

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::consistency;
use crate::diagnostic::{Code, Diagnostic, Outcome, Span, fail, nearest};
use crate::discover::{Found, discover};
use crate::loader::{Loader, Scope, Variables, in_file, join};
use crate::normalize::normalize;
use crate::print;
use crate::project::Project;
use crate::source::FileSource;
use crate::template::Template;
use crate::value::{Map, Node, Value};
use crate::yaml::{Limits, parse};
use crate::{dotenv, services, xkeel};

/// What to load and how; the flags of `docker compose` and the caller's surroundings.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// `-f`, in order; `-` is standard input. Empty: `COMPOSE_FILE` or the default names.
    pub files: Vec<PathBuf>,
    /// `--project-directory`.
    pub project_directory: Option<PathBuf>,
    /// `-p`.
    pub project_name: Option<String>,
    /// `--profile`; `*` activates all. Empty: `COMPOSE_PROFILES`.
    pub profiles: Vec<String>,
    /// `--env-file`. Empty: `COMPOSE_ENV_FILES` or `.env`.
    pub env_files: Vec<PathBuf>,
    /// The caller's environment.
    pub environment: BTreeMap<String, String>,
    /// The caller's directory, absolute.
    pub working_dir: PathBuf,
    /// Only these services and what they depend on; empty means all.
    pub services: Vec<String>,
    /// Replace variables (`--no-interpolate` is `false`; then only [`Project::model_json`] is meaningful).
    pub interpolate: bool,
    /// Add defaults such as the `default` network (`--no-normalize` is `false`).
    pub normalize: bool,
    /// Make paths absolute (`--no-path-resolution` is `false`).
    pub resolve_paths: bool,
    /// Check references between parts (`--no-consistency` is `false`).
    pub consistency: bool,
    /// Read `env_file`s and look up variables without a value (`--no-env-resolution` is `false`).
    pub resolve_environment: bool,
    /// Keep networks, volumes, secrets and configs that no active service uses (`--all-resources`).
    pub all_resources: bool,
}

impl LoadOptions {
    /// Everything default, from a directory.
    #[must_use]
    pub fn new(working_dir: impl Into<PathBuf>, environment: BTreeMap<String, String>) -> Self {
        Self {
            files: Vec::new(),
            project_directory: None,
            project_name: None,
            profiles: Vec::new(),
            env_files: Vec::new(),
            environment,
            working_dir: working_dir.into(),
            services: Vec::new(),
            interpolate: true,
            normalize: true,
            resolve_paths: true,
            consistency: true,
            resolve_environment: true,
            all_resources: false,
        }
    }
}

/// Loads a project.
///
/// # Errors
/// Everything that is wrong with it, as far as one phase can tell, each at its place.
pub fn load(options: &LoadOptions, source: &dyn FileSource) -> Result<Project, Vec<Diagnostic>> {
    let loader =
        Loader { source, interpolate: options.interpolate, notes: RefCell::new(Vec::new()) };
    let mut found = discover(&loader, options)?;
    let name = project_name(&loader, options, &found)?;
    found.variables.insert("COMPOSE_PROJECT_NAME".to_owned(), name.clone());

    let variables = if options.interpolate {
        found.variables
    } else {
        // Without interpolation nothing of the caller's environment may reach the model.
        Variables::from([("COMPOSE_PROJECT_NAME".to_owned(), name.clone())])
    };
    let scope = Scope::new(found.directory.clone(), found.directory.clone(), Arc::new(variables));
    let mut model = loader.project(&found.files, &scope, &[], options.resolve_paths)?;
    if model.as_map().is_none_or(Map::is_empty) {
        let span = model.span.clone();
        return fail(
            Diagnostic::error(Code::Project, "the file is empty").at(&span).help("add `services:`"),
        );
    }
    if name.is_empty() {
        return fail(
            Diagnostic::error(Code::Project, "the project has no name")
                .help("name it with -p or with a top-level `name:`"),
        );
    }
    services::settle(&mut model)?;
    let span = model.span.clone();
    if let Some(map) = model.as_map_mut() {
        map.insert("name", Node::string(name.clone(), &span));
    }
    if options.normalize {
        normalize(&mut model, &name, &scope.variables);
    }
    let mut project = Project {
        name,
        directory: found.directory,
        files: found.files,
        profiles: found.profiles,
        variables: scope.variables,
        model,
        inactive: BTreeSet::new(),
        notes: Vec::new(),
    };
    if options.interpolate {
        finish(&loader, options, &mut project)?;
    }
    project.notes = loader.notes.take();
    Ok(project)
}

/// Profiles, checks, environment and selection.
fn finish(loader: &Loader<'_>, options: &LoadOptions, project: &mut Project) -> Outcome<()> {
    print::check(&project.model)?;
    check_settings(project)?;
    services::apply_profiles(project);
    if options.consistency {
        consistency::check(&consistency::Model {
            root: &project.model,
            inactive: &project.inactive,
        })?;
    }
    if options.resolve_environment {
        resolve_service_files(loader, project)?;
    }
    services::select(project, &options.services)?;
    if !options.all_resources {
        services::drop_unused(project);
    }
    if options.consistency {
        services::check_container_names(project)?;
    }
    Ok(())
}

/// Checks `x-keel` of every service, active or not.
fn check_settings(project: &Project) -> Outcome<()> {
    let top = project.model.get("x-keel").map(xkeel::read_top);
    let mut errors = top.and_then(Result::err).unwrap_or_default();
    for (_, service) in project.model.get("services").into_iter().flat_map(Node::entries) {
        if let Some(Err(found)) = service.get("x-keel").map(xkeel::read) {
            errors.extend(found);
        }
    }
    errors.sort_by(|a, b| a.span.cmp(&b.span));
    if errors.is_empty() { Ok(()) } else { Err(errors) }
}

/// Replaces `env_file` and `label_file` of active services by what they contain.
fn resolve_service_files(loader: &Loader<'_>, project: &mut Project) -> Outcome<()> {
    let variables = project.variables.clone();
    let inactive = project.inactive.clone();
    let directory = project.directory.clone();
    let services = project.model.as_map_mut().and_then(|map| map.get_mut("services"));
    for (name, service) in services.and_then(Node::as_map_mut).into_iter().flat_map(Map::iter_mut) {
        if inactive.contains(name) {
            continue;
        }
        let span = service.span.clone();
        let process = services::is_process(service);
        let Some(map) = service.as_map_mut() else { continue };
        resolve_environment(loader, map, &variables, process, &directory)?;
        resolve_labels(loader, map, &directory, &span)?;
    }
    Ok(())
}

fn resolve_environment(
    loader: &Loader<'_>,
    service: &mut Map,
    variables: &Variables,
    process: bool,
    directory: &Path,
) -> Outcome<()> {
    let own_node = service.get("environment").cloned();
    let mut own = match &own_node {
        Some(node) if !node.is_null() => print::environment_of(node)?,
        _ => BTreeMap::new(),
    };
    for (key, value) in &mut own {
        if value.is_none() {
            *value = if process && crate::template::is_instance_variable(key) {
                Some(format!("${{{key}}}"))
            } else {
                variables.get(key).cloned()
            };
        }
    }
    let mut merged: Variables =
        own.iter().filter_map(|(key, value)| Some((key.clone(), value.clone()?))).collect();
    let files = service.remove("env_file");
    for file in files.iter().flat_map(Node::items) {
        read_env_file(loader, file, directory, (&mut merged, &own), variables)?;
    }
    let mut result: BTreeMap<String, Option<String>> =
        merged.into_iter().map(|(key, value)| (key, Some(value))).collect();
    result.extend(own);
    if result.is_empty() && own_node.is_none() {
        return Ok(());
    }
    let place = own_node.map_or_else(
        || files.map_or_else(|| Span::start_of(""), |node| node.span),
        |node| node.span,
    );
    let mut map = Map::new();
    for (key, value) in result {
        let value = value.map_or(Value::Null, Value::String);
        map.insert(key, Node::new(value, &place));
    }
    service.insert("environment", Node::new(Value::Map(map), &place));
    Ok(())
}

fn read_env_file(
    loader: &Loader<'_>,
    file: &Node,
    directory: &Path,
    (merged, own): (&mut Variables, &BTreeMap<String, Option<String>>),
    variables: &Variables,
) -> Outcome<()> {
    let Some(path) = file.text("path") else { return Ok(()) };
    let path = join(directory, path);
    let required = !matches!(
        file.get("required").and_then(Node::display).as_deref(),
        Some("false" | "no" | "off" | "n")
    );
    if loader.source.kind(&path) == crate::source::PathKind::Missing {
        if !required {
            return Ok(());
        }
        let message = format!("there is no env file {}", path.display());
        return fail(
            Diagnostic::error(Code::File, message)
                .at(&file.span)
                .help("create it, or write `required: false` beside its `path`"),
        );
    }
    let text = loader.text(&path, Some(&file.span), "env file")?;
    let lookup =
        |name: &str| variables.get(name).cloned().or_else(|| own.get(name).cloned().flatten());
    let result = match file.text("format") {
        None | Some("" | ".env") => dotenv::parse(&text, merged, &lookup)
            .map(|unset| loader.note_unset_in_file(&path, unset)),
        Some("raw") => dotenv::parse_raw(&text, merged, &lookup),
        Some(other) => {
            let message = format!("`{other}` is not a format of env files");
            return fail(
                Diagnostic::error(Code::InvalidValue, message)
                    .at(&file.span)
                    .help("write `raw`, or leave it out"),
            );
        }
    };
    result.or_else(|error| fail(in_file(&path, &error)))
}

fn resolve_labels(
    loader: &Loader<'_>,
    service: &mut Map,
    directory: &Path,
    span: &Span,
) -> Outcome<()> {
    let Some(files) = service.remove("label_file") else { return Ok(()) };
    let mut labels = Variables::new();
    for file in files.items() {
        let path = join(directory, file.as_str().unwrap_or_default());
        let text = loader.text(&path, Some(&file.span), "label file")?;
        let known = labels.clone();
        let unset = dotenv::parse(&text, &mut labels, &|name| known.get(name).cloned())
            .or_else(|error| fail(in_file(&path, &error)))?;
        loader.note_unset_in_file(&path, unset);
    }
    let own = service.get("labels").filter(|node| !node.is_null()).map(print::environment_of);
    for (key, value) in own.transpose()?.unwrap_or_default() {
        labels.insert(key, value.unwrap_or_default());
    }
    let mut map = Map::new();
    for (key, value) in labels {
        map.insert(key, Node::string(value, span));
    }
    service.insert("labels", Node::new(Value::Map(map), span));
    Ok(())
}

/// The project's name: `-p`, `COMPOSE_PROJECT_NAME`, the last `name:`, or the directory's name.
fn project_name(loader: &Loader<'_>, options: &LoadOptions, found: &Found) -> Outcome<String> {
    let given = options
        .project_name
        .as_ref()
        .or_else(|| found.variables.get("COMPOSE_PROJECT_NAME"))
        .filter(|name| !name.is_empty());
    if let Some(name) = given {
        if normalized_name(name) == *name {
            return Ok(name.clone());
        }
        let message = format!(
            "`{name}` is not a project name: use lower-case letters, digits, `-` and `_`, and begin with a letter or digit"
        );
        return fail(Diagnostic::error(Code::Project, message));
    }
    let mut named = None;
    for path in &found.files {
        let file: Arc<str> = Arc::from(path.to_string_lossy().as_ref());
        let bytes =
            if path.as_os_str() == "-" { loader.source.stdin() } else { loader.source.read(path) };
        let Ok(bytes) = bytes else { continue };
        // A cheap look first: most files have no name, and the real parse comes later.
        if !bytes.windows(4).any(|window| window == b"name") {
            continue;
        }
        let Ok(documents) = parse(&file, &bytes, Limits::default()) else { continue };
        for document in documents {
            let name = document.get("name").filter(|node| !node.is_null());
            if let Some(name) =
                name.filter(|node| node.display().is_some_and(|text| !text.is_empty()))
            {
                named = Some(name.clone());
            }
        }
    }
    let Some(node) = named else {
        let directory =
            found.directory.file_name().unwrap_or_default().to_string_lossy().into_owned();
        return Ok(normalized_name(&directory));
    };
    let text = node.display().unwrap_or_default();
    let finish = |text: String| if options.normalize { normalized_name(&text) } else { text };
    if !options.interpolate {
        return Ok(finish(text));
    }
    let lookup = |name: &str| found.variables.get(name).cloned();
    let mut template = Template { lookup: &lookup, defer: false, unset: BTreeSet::new() };
    let text = template
        .substitute(&text)
        .or_else(|error| fail(crate::interpolate::describe(&error).at(&node.span)))?;
    Ok(finish(text))
}

/// A name in the form that Docker makes of any text.
pub(crate) fn normalized_name(text: &str) -> String {
    let kept: String = text
        .to_lowercase()
        .chars()
        .filter(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '_' | '-'))
        .collect();
    kept.trim_start_matches(['_', '-']).to_owned()
}

/// An error for a service that does not exist.
pub(crate) fn no_such_service(name: &str, known: &BTreeSet<&str>) -> Diagnostic {
    let error =
        Diagnostic::error(Code::UndefinedReference, format!("there is no service `{name}`"));
    match nearest(name, known.iter().copied()) {
        Some(near) => error.help(format!("did you mean `{near}`?")),
        None => error.help(format!(
            "the services are: {}",
            known.iter().copied().collect::<Vec<_>>().join(", ")
        )),
    }
}
