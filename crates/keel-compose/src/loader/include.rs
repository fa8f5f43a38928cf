//! `include`: other Compose files whose resources become part of this project.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Loader, Scope, join, relative};
use crate::diagnostic::{Code, Diagnostic, Outcome, Span, fail, nearest};
use crate::source::PathKind;
use crate::value::{Map, Node, Value};

/// Deepest chain of files that include each other.
const MAX_DEPTH: usize = 32;

/// The sections that an include contributes.
const SECTIONS: [&str; 6] = ["services", "volumes", "networks", "secrets", "configs", "models"];

/// One entry of `include`.
struct Include {
    files: Vec<(String, Span)>,
    directory: Option<String>,
    env_files: Vec<(String, Span)>,
    span: Span,
}

impl Loader<'_> {
    /// Loads everything that a document includes and adds it to the document.
    pub(super) fn apply_include(
        &self,
        document: &mut Node,
        scope: &Scope,
        included: &[PathBuf],
    ) -> Outcome<()> {
        let Some(list) = document.as_map_mut().and_then(|map| map.remove("include")) else {
            return Ok(());
        };
        if list.is_null() {
            return Ok(());
        }
        let Some(items) = list.as_seq() else {
            let message = format!("`include` must be a list, not {}", list.kind_name());
            return fail(Diagnostic::error(Code::InvalidValue, message).at(&list.span));
        };
        for item in items {
            let include = read(item)?;
            let imported = self.included(&include, scope, included)?;
            import(document, imported, &include.span)?;
        }
        Ok(())
    }

    fn included(&self, include: &Include, scope: &Scope, included: &[PathBuf]) -> Outcome<Node> {
        let Some((main, main_span)) = include.files.first() else {
            return fail(
                Diagnostic::error(Code::MissingKey, "`include` needs a `path`").at(&include.span),
            );
        };
        let mut files = Vec::new();
        for (file, span) in &include.files {
            self.refuse_remote(file, span)?;
            let path = join(&scope.directory, file);
            self.read(&path, Some(span))?;
            files.push(path);
        }
        if included.len() >= MAX_DEPTH {
            let message = format!("files include each other more than {MAX_DEPTH} deep");
            return fail(Diagnostic::error(Code::Budget, message).at(main_span));
        }
        if included.contains(&files[0]) {
            let message = format!("{main} includes itself, directly or through other files");
            return fail(
                Diagnostic::error(Code::Cycle, message).at(main_span).help("break the circle"),
            );
        }
        let parent = files[0].parent().unwrap_or(Path::new("/")).to_owned();
        let directory = match &include.directory {
            None => parent,
            Some(directory) => join(&scope.directory, directory),
        };
        let prefix = match &include.directory {
            Some(directory) if directory.starts_with('/') => PathBuf::from(directory),
            Some(_) if self.source.kind(&directory) != PathKind::Directory => {
                relative(&scope.directory, directory.parent().unwrap_or(Path::new("/")))
            }
            _ => relative(&scope.directory, &directory),
        };
        let env_files = self.include_env_files(include, scope, &directory)?;
        let mut variables = self.env_files(&env_files, &scope.variables)?;
        for (key, value) in scope.variables.iter() {
            variables.insert(key.clone(), value.clone());
        }
        let inner = Scope::new(directory, prefix, Arc::new(variables));
        // The paths of an include become relative to the including project even when those stay relative.
        self.project(&files, &inner, included, true)
    }

    fn include_env_files(
        &self,
        include: &Include,
        scope: &Scope,
        directory: &Path,
    ) -> Outcome<Vec<(PathBuf, Option<Span>)>> {
        if include.env_files.is_empty() {
            let default = directory.join(".env");
            let exists = self.source.kind(&default) == PathKind::File;
            return Ok(if exists { vec![(default, None)] } else { Vec::new() });
        }
        let files = include.env_files.iter();
        Ok(files.map(|(file, span)| (join(&scope.directory, file), Some(span.clone()))).collect())
    }

    /// Remote files are a way for others to decide what runs here; Docker fetches them, we do not.
    pub(super) fn refuse_remote(&self, file: &str, span: &Span) -> Outcome<()> {
        let remote = ["oci://", "https://", "http://", "git://", "ssh://", "git@", "github.com/"];
        if !remote.iter().any(|prefix| file.starts_with(prefix)) {
            return Ok(());
        }
        fail(
            Diagnostic::error(Code::Unsupported, format!("`{file}` is a remote file"))
                .at(span)
                .help("fetch it and name the local copy"),
        )
    }
}

fn read(item: &Node) -> Outcome<Include> {
    let mut include = Include {
        files: Vec::new(),
        directory: None,
        env_files: Vec::new(),
        span: item.span.clone(),
    };
    match &item.value {
        Value::String(path) => include.files.push((path.clone(), item.span.clone())),
        Value::Map(map) => {
            for (key, value) in map.iter() {
                match key {
                    "path" => include.files = texts(value, "path")?,
                    "env_file" => include.env_files = texts(value, "env_file")?,
                    "project_directory" => {
                        include.directory = Some(directory_text(value)?);
                    }
                    _ => {
                        let message = format!("`include` has no key `{key}`");
                        let help = match nearest(key, ["path", "env_file", "project_directory"]) {
                            Some(near) => format!("did you mean `{near}`?"),
                            None => "use `path`, `env_file` and `project_directory`".to_owned(),
                        };
                        let mut error = Diagnostic::error(Code::UnknownKey, message).help(help);
                        error.span = map.key_span(key).cloned();
                        return fail(error);
                    }
                }
            }
            include.directory = include.directory.filter(|text| !text.is_empty());
        }
        _ => {
            let message = format!(
                "an item of `include` must be a path or a mapping, not {}",
                item.kind_name()
            );
            return fail(Diagnostic::error(Code::InvalidValue, message).at(&item.span));
        }
    }
    Ok(include)
}

/// The project directory; a number is a name too.
fn directory_text(node: &Node) -> Outcome<String> {
    match &node.value {
        Value::String(text) => Ok(text.clone()),
        Value::Int(number) => Ok(number.to_string()),
        _ => {
            let message = "`include.project_directory` must be a string";
            fail(Diagnostic::error(Code::InvalidValue, message).at(&node.span))
        }
    }
}

/// A string or a list of strings, with places.
fn texts(node: &Node, key: &str) -> Outcome<Vec<(String, Span)>> {
    let one = |node: &Node| match node.as_str() {
        Some(text) => Ok((text.to_owned(), node.span.clone())),
        None => {
            let message = format!("`include.{key}` must be a string or a list of strings");
            fail(Diagnostic::error(Code::InvalidValue, message).at(&node.span))
        }
    };
    match node.as_seq() {
        Some(items) => items.iter().map(one).collect(),
        None => Ok(vec![one(node)?]),
    }
}

/// Adds the resources of an included project; a different definition of the same name is a conflict.
fn import(document: &mut Node, imported: Node, include: &Span) -> Outcome<()> {
    let Some(target) = document.as_map_mut() else { return Ok(()) };
    let Value::Map(mut source) = imported.value else { return Ok(()) };
    for section in SECTIONS {
        let Some(Node { value: Value::Map(resources), span, .. }) = source.remove(section) else {
            continue;
        };
        if target.get(section).is_none_or(Node::is_null) {
            target.insert(section, Node::new(Value::Map(Map::new()), &span));
        }
        let Some(own) = target.get_mut(section).and_then(Node::as_map_mut) else { continue };
        for (name, span, resource) in resources {
            match own.get(&name) {
                None => own.insert_at(name, span, resource),
                Some(existing) if *existing == resource => {}
                Some(_) => {
                    let here = own.key_span(&name).cloned().unwrap_or_else(|| include.clone());
                    let message = format!(
                        "`{section}.{name}` is defined here and, differently, in an included file at {span}"
                    );
                    return fail(
                        Diagnostic::error(Code::Conflict, message)
                            .at(&here)
                            .help("rename one, or change the included one with an override file in `include.path`"),
                    );
                }
            }
        }
    }
    Ok(())
}
