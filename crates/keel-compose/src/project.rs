//! A loaded project, and what `docker compose config` can say about it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value as Json;
use sha2::{Digest, Sha256};

use crate::diagnostic::{Diagnostic, Span};
use crate::lower::{self, Lowered};
use crate::print::{self, Flavor};
use crate::source::FileSource;
use crate::template::{self, Variable};
use crate::value::{Node, Value};
use crate::yaml::emit;

/// A loaded Compose project.
#[derive(Clone, Debug)]
pub struct Project {
    pub(crate) name: String,
    pub(crate) directory: PathBuf,
    pub(crate) files: Vec<PathBuf>,
    pub(crate) profiles: Vec<String>,
    pub(crate) variables: Arc<BTreeMap<String, String>>,
    pub(crate) model: Node,
    pub(crate) inactive: BTreeSet<String>,
    pub(crate) notes: Vec<Diagnostic>,
}

impl Project {
    /// The project's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The project directory, where relative paths start.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The files that were merged, in order.
    #[must_use]
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// Warnings and notes from loading.
    #[must_use]
    pub fn warnings(&self) -> &[Diagnostic] {
        &self.notes
    }

    /// The names of the active services, sorted.
    #[must_use]
    pub fn services(&self) -> Vec<&str> {
        self.active_services().map(|(name, _)| name).collect()
    }

    /// The names of services that no active profile selects.
    #[must_use]
    pub fn inactive_services(&self) -> Vec<&str> {
        self.inactive.iter().map(String::as_str).collect()
    }

    /// The names of volumes, sorted.
    #[must_use]
    pub fn volumes(&self) -> Vec<&str> {
        self.keys("volumes")
    }

    /// The names of networks, sorted.
    #[must_use]
    pub fn networks(&self) -> Vec<&str> {
        self.keys("networks")
    }

    /// The models that the project runs, sorted.
    #[must_use]
    pub fn models(&self) -> Vec<&str> {
        let models = self.model.get("models").into_iter().flat_map(Node::entries);
        models.filter_map(|(_, model)| model.text("model")).collect()
    }

    /// The image of each active service that has or builds one, in the order of services.
    #[must_use]
    pub fn images(&self) -> Vec<String> {
        self.active_services()
            .filter(|(_, service)| !crate::services::is_process(service))
            .map(|(name, service)| match service.text("image") {
                Some(image) if !image.is_empty() => image.to_owned(),
                _ => format!("{}-{name}", self.name),
            })
            .collect()
    }

    /// All profiles that services name, sorted.
    #[must_use]
    pub fn profiles(&self) -> Vec<&str> {
        let services = self.model.get("services").into_iter().flat_map(Node::entries);
        let named: BTreeSet<&str> = services
            .flat_map(|(_, service)| service.get("profiles").map(Node::items).unwrap_or_default())
            .filter_map(Node::as_str)
            .collect();
        named.into_iter().collect()
    }

    /// The variables that interpolation used.
    #[must_use]
    pub fn environment(&self) -> &BTreeMap<String, String> {
        &self.variables
    }

    /// The variables that the files refer to; meaningful when loaded with `interpolate: false`.
    #[must_use]
    pub fn variables(&self) -> BTreeMap<String, Variable> {
        let mut found = BTreeMap::new();
        collect_variables(&self.model, &mut found);
        found
    }

    /// The hash of a service's canonical form; `None` when there is no such active service.
    ///
    /// It changes exactly when the printed service changes. It is not Docker's hash, which depends on the layout
    /// of its structures.
    #[must_use]
    pub fn hash(&self, service: &str) -> Option<String> {
        let (_, node) = self.active_services().find(|(name, _)| *name == service)?;
        let printed = print::service(node, Flavor::Yaml).ok()?;
        let digest = Sha256::digest(printed.to_string().as_bytes());
        Some(digest.iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// The canonical document, as `docker compose config --format json` prints it (before it doubles dollars).
    #[must_use]
    pub fn to_json(&self) -> Json {
        self.printed(Flavor::Json)
    }

    /// The text of `docker compose config --format json`.
    #[must_use]
    pub fn json_text(&self) -> String {
        let text = serde_json::to_string_pretty(&self.to_json())
            .expect("a JSON value with string keys can always be written");
        escape_html(&text).replace('$', "$$")
    }

    /// The text of `docker compose config`.
    #[must_use]
    pub fn to_yaml(&self) -> String {
        emit(&self.printed(Flavor::Yaml)).replace('$', "$$")
    }

    /// The merged model as it is, without types and selection: `docker compose config --no-interpolate`.
    #[must_use]
    pub fn model_json(&self) -> Json {
        print::plain(&self.model, Flavor::Json)
    }

    /// As [`Project::model_json`], in YAML.
    #[must_use]
    pub fn model_yaml(&self) -> String {
        emit(&print::plain(&self.model, Flavor::Yaml))
    }

    /// Where a service is defined.
    #[must_use]
    pub fn span_of(&self, service: &str) -> Option<&Span> {
        self.model.get("services")?.as_map()?.key_span(service)
    }

    /// What the platform is to run.
    ///
    /// Reads the content of secrets and configs from `source`.
    ///
    /// # Errors
    /// Everything that the platform refuses, each at its place: keys that contradict the kind of a service, values that
    /// no engine takes, files that cannot be read.
    pub fn to_stack(&self, source: &dyn FileSource) -> Result<Lowered, Vec<Diagnostic>> {
        lower::lower(self, source)
    }

    fn printed(&self, flavor: Flavor) -> Json {
        // The types were checked when the project was loaded.
        print::project(&self.model, &self.inactive, flavor).map_or(Json::Null, Json::Object)
    }

    fn keys(&self, section: &str) -> Vec<&str> {
        self.model.get(section).into_iter().flat_map(Node::entries).map(|(key, _)| key).collect()
    }

    /// All services by name, active or not.
    pub(crate) fn service(&self, name: &str) -> Option<&Node> {
        self.model.get("services")?.get(name)
    }

    /// The names of active services.
    pub(crate) fn service_names(&self) -> impl Iterator<Item = &str> {
        self.active_services().map(|(name, _)| name)
    }

    /// The active services, in the order of their names.
    pub(crate) fn active_services(&self) -> impl Iterator<Item = (&str, &Node)> {
        let services = self.model.get("services").into_iter().flat_map(Node::entries);
        services.filter(|(name, _)| !self.inactive.contains(*name))
    }
}

fn collect_variables(node: &Node, found: &mut BTreeMap<String, Variable>) {
    match &node.value {
        Value::String(text) => template::variables(text, &mut |name, variable| {
            found.insert(name.to_owned(), variable);
        }),
        Value::Seq(items) => items.iter().for_each(|item| collect_variables(item, found)),
        Value::Map(map) => map.iter().for_each(|(_, child)| collect_variables(child, found)),
        _ => {}
    }
}

/// Go's JSON encoder escapes these characters; scripts may compare texts.
fn escape_html(text: &str) -> String {
    text.replace('&', "\\u0026")
        .replace('<', "\\u003c")
        .replace('>', "\\u003e")
        .replace('\u{2028}', "\\u2028")
        .replace('\u{2029}', "\\u2029")
}
