//! From files to one merged model, in Compose's order of phases.
//!
//! For each file: parse, interpolate, extend, include, merge into what came before, remove redefinitions, check the
//! schema, long forms. Then once: defaults, rules, paths, environment. An included project runs through the same
//! function with a scope of its own.

mod extends;
mod include;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::canonical::{self, Strictness};
use crate::diagnostic::{Code, Diagnostic, Outcome, Span, fail};
use crate::interpolate;
use crate::merge::merge;
use crate::reset::Resets;
use crate::resolve::{self, Base};
use crate::source::{FileSource, ReadError};
use crate::value::{Map, Node, Value};
use crate::yaml::{Limits, parse};
use crate::{schema, unique, validate};

pub(crate) type Variables = BTreeMap<String, String>;

/// What is the same for all files of a load.
pub(crate) struct Loader<'a> {
    pub source: &'a dyn FileSource,
    pub interpolate: bool,
    /// Warnings and notes, in the order in which they were found.
    pub notes: RefCell<Vec<Diagnostic>>,
}

/// Where a group of files stands.
pub(crate) struct Scope {
    /// Absolute directory that file names of this group start from.
    pub directory: PathBuf,
    /// The same as the including project sees it; relative inside an include.
    pub prefix: PathBuf,
    /// The variables of this group.
    pub variables: Arc<Variables>,
    /// Files that services of this group extend from, as far as they were loaded.
    bases: RefCell<BTreeMap<PathBuf, (Node, Resets)>>,
}

impl Scope {
    /// A group of which nothing is loaded yet.
    pub fn new(directory: PathBuf, prefix: PathBuf, variables: Arc<Variables>) -> Self {
        Self { directory, prefix, variables, bases: RefCell::new(BTreeMap::new()) }
    }
}

/// Which phases a file goes through.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Depth {
    /// All of them.
    Full,
    /// Only what is needed to take a service out of it.
    Base,
}

impl Loader<'_> {
    /// Loads and merges the files of one project.
    pub fn project(
        &self,
        files: &[PathBuf],
        scope: &Scope,
        included: &[PathBuf],
        resolve_paths: bool,
    ) -> Outcome<Node> {
        let name =
            files.first().map(|file| file.to_string_lossy().into_owned()).unwrap_or_default();
        let mut model = Node::new(Value::Map(Map::new()), &Span::start_of(&name));
        for file in files {
            (model, _) = self.file(file, scope, model, Depth::Full, included)?;
        }
        canonical::set_defaults(&mut model);
        validate::validate(&model)?;
        if resolve_paths {
            resolve::paths(&mut model, &self.base(scope, &scope.prefix))?;
        }
        resolve::environment(&mut model, &scope.variables);
        Ok(model)
    }

    /// Where relative paths of a group start.
    fn base(&self, scope: &Scope, directory: &Path) -> Base<'_> {
        Base {
            directory: directory.to_owned(),
            home: scope.variables.get("HOME").cloned(),
            source: self.source,
        }
    }

    /// Loads one file on top of a model.
    fn file(
        &self,
        path: &Path,
        scope: &Scope,
        mut model: Node,
        depth: Depth,
        included: &[PathBuf],
    ) -> Outcome<(Node, Resets)> {
        let name: Arc<str> = Arc::from(path.to_string_lossy().as_ref());
        let bytes = self.read(path, None)?;
        let mut last = Resets::default();
        for mut document in parse(&name, &bytes, Limits::default())? {
            last = Resets::extract(&mut document);
            model = self.document(path, document, scope, model, (depth, &last), included)?;
        }
        Ok((model, last))
    }

    /// Reads a file, or says at `span` why not.
    fn read(&self, path: &Path, span: Option<&Span>) -> Outcome<Vec<u8>> {
        let result =
            if path == Path::new("-") { self.source.stdin() } else { self.source.read(path) };
        result.or_else(|error| {
            let message = match error {
                ReadError::NotFound => format!("there is no file {}", path.display()),
                error => format!("cannot read {}: {error}", path.display()),
            };
            let mut diagnostic = Diagnostic::error(Code::File, message);
            diagnostic.span = span.cloned();
            fail(diagnostic)
        })
    }

    fn document(
        &self,
        path: &Path,
        mut document: Node,
        scope: &Scope,
        mut model: Node,
        (depth, resets): (Depth, &Resets),
        included: &[PathBuf],
    ) -> Outcome<Node> {
        if document.as_map().is_none() {
            let message = format!("a Compose file must be a mapping, not {}", document.kind_name());
            return fail(Diagnostic::error(Code::InvalidValue, message).at(&document.span));
        }
        if self.interpolate {
            let lookup = |name: &str| scope.variables.get(name).cloned();
            let report = interpolate::interpolate(&mut document, &lookup)?;
            self.note_interpolation(report);
        }
        if depth == Depth::Full {
            self.apply_extends(&mut document, path, scope, resets)?;
            resets.apply(&mut model);
            let mut included = included.to_vec();
            included.push(path.to_owned());
            self.apply_include(&mut document, scope, &included)?;
        }
        model = merge(model, document)?;
        if let Err(errors) = unique::enforce(&mut model) {
            // The schema, when it is violated too, says more.
            let violations = if depth == Depth::Full { schema::check(&model) } else { Vec::new() };
            return Err(if violations.is_empty() { errors } else { violations });
        }
        if depth == Depth::Full {
            let errors = schema::check(&model);
            if !errors.is_empty() {
                return Err(errors);
            }
            self.drop_version(&mut model);
        }
        let strictness = if self.interpolate { Strictness::Strict } else { Strictness::Lenient };
        canonical::canonicalize(&mut model, strictness, &mut self.notes.borrow_mut())?;
        // Long forms can reveal redefinitions: a range of ports that overlaps with another, for example.
        unique::enforce(&mut model)?;
        Ok(model)
    }

    fn note_interpolation(&self, report: interpolate::Report) {
        // A variable of the instance in an `x-` section usually reaches a host process through an alias.
        let unset = report
            .unset
            .into_iter()
            .filter(|(name, _)| !crate::template::is_instance_variable(name));
        for (name, span) in unset {
            self.note_unset(&name, &span);
        }
        let mut notes = self.notes.borrow_mut();
        for (text, span) in report.old_booleans {
            let message = format!("`{text}` is not a boolean in YAML 1.2");
            notes.push(
                Diagnostic::warning(Code::Deprecated, message)
                    .at(&span)
                    .help("write `true` or `false`"),
            );
        }
    }

    /// Warns once for each variable; its first place is enough to find the others.
    fn note_unset(&self, name: &str, span: &Span) {
        let message =
            format!("the variable `{name}` is not set; it is replaced by an empty string");
        let mut notes = self.notes.borrow_mut();
        if notes.iter().any(|note| note.message == message) {
            return;
        }
        notes.push(
            Diagnostic::warning(Code::Interpolation, message)
                .at(span)
                .help(format!("set it, or write `${{{name}:-default}}`")),
        );
    }

    fn drop_version(&self, model: &mut Node) {
        let Some(version) = model.as_map_mut().and_then(|map| map.remove("version")) else {
            return;
        };
        self.notes.borrow_mut().push(
            Diagnostic::warning(Code::Deprecated, "`version` is obsolete and has no effect")
                .at(&version.span)
                .help("remove it"),
        );
    }
}

/// The lexical way from one absolute directory to another.
pub(crate) fn relative(from: &Path, to: &Path) -> PathBuf {
    let mut from_parts = from.components().peekable();
    let mut to_parts = to.components().peekable();
    while let (Some(a), Some(b)) = (from_parts.peek(), to_parts.peek()) {
        if a != b {
            break;
        }
        from_parts.next();
        to_parts.next();
    }
    let mut path: PathBuf = from_parts.map(|_| "..").collect();
    path.extend(to_parts);
    if path.as_os_str().is_empty() { PathBuf::from(".") } else { path }
}

/// Joins and cleans lexically, as Go's `filepath.Join` does.
pub(crate) fn join(directory: &Path, path: &str) -> PathBuf {
    if path.starts_with('/') {
        return PathBuf::from(crate::short::clean(path));
    }
    PathBuf::from(crate::short::clean(&format!("{}/{path}", directory.display())))
}

impl Loader<'_> {
    /// The variables of dotenv files; later files see and override earlier ones, `known` wins in references.
    pub fn env_files(
        &self,
        files: &[(PathBuf, Option<Span>)],
        known: &Variables,
    ) -> Outcome<Variables> {
        let mut found = Variables::new();
        for (path, span) in files {
            let text = self.text(path, span.as_ref(), "env file")?;
            let so_far = found.clone();
            let lookup = |name: &str| known.get(name).or_else(|| so_far.get(name)).cloned();
            let unset = crate::dotenv::parse(&text, &mut found, &lookup)
                .or_else(|error| fail(in_file(path, &error)))?;
            self.note_unset_in_file(path, unset);
        }
        Ok(found)
    }

    /// The text of a file that is not YAML.
    pub fn text(&self, path: &Path, span: Option<&Span>, what: &str) -> Outcome<String> {
        let bytes = self.source.read(path).or_else(|error| {
            let message = format!("cannot read the {what} {}: {error}", path.display());
            let mut diagnostic = Diagnostic::error(Code::File, message);
            diagnostic.span = span.cloned();
            fail(diagnostic)
        })?;
        String::from_utf8(bytes).or_else(|_| {
            let message = format!("the {what} {} is not UTF-8 text", path.display());
            fail(Diagnostic::error(Code::File, message))
        })
    }

    /// Warns about variables that a variable file uses without a value.
    pub fn note_unset_in_file(&self, path: &Path, unset: impl IntoIterator<Item = String>) {
        let span = Span::start_of(&path.to_string_lossy());
        for name in unset {
            self.note_unset(&name, &span);
        }
    }
}

/// An error of a variable file, at its line.
pub(crate) fn in_file(path: &Path, error: &crate::dotenv::DotenvError) -> Diagnostic {
    let span = Span { line: error.line, ..Span::start_of(&path.to_string_lossy()) };
    Diagnostic::error(Code::Syntax, error.message.clone()).at(&span)
}
