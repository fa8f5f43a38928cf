//! `develop.watch`: what to do when source files change.

use std::path::PathBuf;

use keel_model::{Hook, ServiceName};

use super::container::{one_or_more, text};
use super::spec::is_true;
use super::{Context, Lower};
use crate::diagnostic::Span;
use crate::loader::join;
use crate::value::Node;

/// What to do when files below a path change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchRule {
    /// What is done.
    pub action: WatchAction,
    /// The file or directory of this machine that is watched; absolute.
    pub path: PathBuf,
    /// Where in the container files are copied to.
    pub target: Option<PathBuf>,
    /// Patterns of files below the path that count; all when empty.
    pub include: Vec<String>,
    /// Patterns of files below the path that do not count.
    pub ignore: Vec<String>,
    /// Whether files are copied once at the beginning.
    pub initial_sync: bool,
    /// What is run in the container after files were copied ([`WatchAction::SyncExec`]).
    pub exec: Option<Hook>,
    /// Where the path is written.
    pub span: Span,
}

/// What is done when a watched file changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatchAction {
    /// It is copied into the container.
    Sync,
    /// The image is built anew, and the container replaced.
    Rebuild,
    /// The container is restarted.
    Restart,
    /// It is copied, and the container restarted.
    SyncRestart,
    /// It is copied, and a command run in the container.
    SyncExec,
}

impl Lower<'_> {
    pub(super) fn watch_rules(&mut self, context: &Context<'_>, name: &ServiceName) {
        let items = context.node.at(&["develop", "watch"]).map(Node::items).unwrap_or_default();
        let rules: Vec<WatchRule> =
            items.iter().filter_map(|item| self.watch_rule(context, item)).collect();
        if !rules.is_empty() {
            self.watch.insert(name.clone(), rules);
        }
    }

    fn watch_rule(&mut self, context: &Context<'_>, item: &Node) -> Option<WatchRule> {
        let action = match item.text("action")? {
            "rebuild" => WatchAction::Rebuild,
            "restart" => WatchAction::Restart,
            "sync+restart" => WatchAction::SyncRestart,
            "sync+exec" => WatchAction::SyncExec,
            _ => WatchAction::Sync,
        };
        let exec = item.get("exec").filter(|exec| !exec.is_null());
        Some(WatchRule {
            action,
            path: join(&self.project.directory, item.text("path")?),
            target: text(item, "target").map(PathBuf::from),
            include: one_or_more(item.get("include")),
            ignore: one_or_more(item.get("ignore")),
            initial_sync: is_true(item.get("initial_sync")),
            exec: exec.and_then(|exec| self.hook(context, "develop.watch", exec)),
            span: item.get("path").unwrap_or(item).span.clone(),
        })
    }
}
