//! Secrets and configs: their content, read once, and where they appear.

use std::path::{Path, PathBuf};

use keel_model::{Content, FileMount};

use super::{Context, Lower};
use crate::diagnostic::Code;
use crate::loader::join;
use crate::print::file_mode;
use crate::value::Node;

/// Largest content of a secret or config.
const MAX_CONTENT: usize = 1 << 20;

/// The two kinds of files and what they have by default.
struct Kind {
    section: &'static str,
    word: &'static str,
    directory: &'static str,
    mode: u32,
    secret: bool,
}

const KINDS: [Kind; 2] = [
    Kind {
        section: "secrets",
        word: "secret",
        directory: "/run/secrets",
        mode: 0o400,
        secret: true,
    },
    Kind { section: "configs", word: "config", directory: "/", mode: 0o444, secret: false },
];

impl Lower<'_> {
    pub(super) fn files(&mut self, context: &Context<'_>) -> Vec<FileMount> {
        let mut files = Vec::new();
        for kind in &KINDS {
            for item in context.node.get(kind.section).map(Node::items).unwrap_or_default() {
                files.extend(self.file(context, kind, item));
            }
        }
        files
    }

    fn file(&mut self, context: &Context<'_>, kind: &Kind, item: &Node) -> Option<FileMount> {
        let name = item.text("source").unwrap_or_default();
        let definition = self.project.model.at(&[kind.section, name])?;
        let content = self.content(kind, name, definition)?;
        let target = item.text("target").filter(|target| !target.is_empty()).unwrap_or(name);
        // Programs in containers begin as root and go on as somebody else, who reads the secret: Docker Compose's mode.
        let default = if context.is_container() { 0o444 } else { kind.mode };
        let mode = match item.get("mode").filter(|mode| !mode.is_null()) {
            Some(mode) => {
                self.take(file_mode(mode)).and_then(|mode| u32::try_from(mode & 0o7777).ok())
            }
            None => Some(default),
        };
        Some(FileMount {
            name: name.to_owned(),
            content,
            target: join(Path::new(kind.directory), target),
            uid: self.id(item, "uid"),
            gid: self.id(item, "gid"),
            mode: mode.unwrap_or(default),
            secret: kind.secret,
        })
    }

    fn id(&mut self, item: &Node, key: &str) -> Option<u32> {
        let node = item.get(key)?;
        let text = node.display().filter(|text| !text.is_empty())?;
        match text.parse() {
            Ok(id) => Some(id),
            Err(_) => {
                self.error(
                    Code::InvalidValue,
                    &node.span,
                    format!("`{key}` must be a number, not `{text}`"),
                    "write for example \"1000\"",
                );
                None
            }
        }
    }

    /// What a top-level secret holds.
    pub(super) fn secret(&mut self, name: &str, definition: &Node) -> Option<Content> {
        self.content(&KINDS[0], name, definition)
    }

    fn content(&mut self, kind: &Kind, name: &str, definition: &Node) -> Option<Content> {
        let word = kind.word;
        for key in ["template_driver", "labels"] {
            if let Some(node) = definition.get(key) {
                self.warn(&node.span, format!("`{key}` of the {word} `{name}` has no effect"));
            }
        }
        let bytes = if let Some(path) = definition.text("file") {
            let span = definition.get("file").map_or(&definition.span, |node| &node.span);
            let path: PathBuf = join(&self.project.directory, path);
            match self.source.read(&path) {
                Ok(bytes) => bytes,
                Err(error) => {
                    let message =
                        format!("cannot read the {word} `{name}` from {}: {error}", path.display());
                    self.error(Code::File, span, message, "create the file, or correct its path");
                    return None;
                }
            }
        } else if let Some(text) = definition.text("content") {
            text.as_bytes().to_vec()
        } else if let Some(variable) = definition.text("environment") {
            match self.project.variables.get(variable) {
                Some(value) => value.as_bytes().to_vec(),
                None => {
                    let message = format!(
                        "the {word} `{name}` takes the variable `{variable}`, which is not set"
                    );
                    self.error(
                        Code::MissingKey,
                        &definition.span,
                        message,
                        format!("set {variable}"),
                    );
                    return None;
                }
            }
        } else {
            let message = format!(
                "the {word} `{name}` is kept by a swarm, which this platform is not part of"
            );
            self.error(
                Code::Unsupported,
                &definition.span,
                message,
                "give it a `file` or an `environment`",
            );
            return None;
        };
        if bytes.len() > MAX_CONTENT {
            let message = format!(
                "the {word} `{name}` has {} bytes; at most {MAX_CONTENT} are possible",
                bytes.len()
            );
            self.error(Code::Budget, &definition.span, message, "mount it as a volume");
            return None;
        }
        Some(Content::new(bytes))
    }
}
