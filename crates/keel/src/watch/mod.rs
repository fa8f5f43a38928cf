//! `develop.watch`: files that change here are copied into containers, or services are restarted or rebuilt.
//!
//! Everything happens in this process: it has the files, and the engine's address from the server. Three things go on side
//! by side until the stack is gone or somebody ends it: changes of files are found and handed to the services that they
//! concern; how the stack stands is followed; and each service works on what it was handed, batch after batch.

mod command;
mod decide;
mod deliver;
mod filter;
mod ledger;
mod notice;
mod release;
mod rules;
mod say;
mod service;
mod tree;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use futures_util::future::try_join_all;
use keel_model::{Stack, StackName};
use keel_server::api::client::Client;

pub use rules::{Plan, plan};
pub use say::{Say, Stream};

use crate::failure::Failure;
use crate::images::Sources;
use crate::wait;
use decide::Rule;
use notice::{Asking, Notices};
use service::Service;
use tree::{Found, Root, Tree};

/// What the services are worked on with.
pub struct Setting<'a> {
    /// The server.
    pub client: &'a Client,
    /// The stack as its files describe it.
    pub stack: &'a Stack,
    /// Where its images come from.
    pub sources: Sources,
    /// How it is told.
    pub say: Say<'a>,
    /// Nothing is shown of builds.
    pub quiet: bool,
    /// One build at a time: each may use all that the machine has.
    building: tokio::sync::Mutex<()>,
}

impl<'a> Setting<'a> {
    /// All of it.
    pub fn new(
        client: &'a Client,
        stack: &'a Stack,
        sources: Sources,
        say: Say<'a>,
        quiet: bool,
    ) -> Self {
        Self { client, stack, sources, say, quiet, building: tokio::sync::Mutex::default() }
    }
}

/// Files, and where it is heard that they change.
struct Files {
    notices: Notices,
    /// Away while somebody looks.
    looked: Option<(Tree, Asking)>,
}

/// Watches until the stack is gone.
///
/// # Errors
/// When files can't be watched, or the server goes away and does not come back.
pub async fn run(setting: &Setting<'_>, plan: &Plan) -> Result<(), Failure> {
    let files = Files::begin(setting, &plan.rules).await?;
    let services: Vec<Service<'_>> = plan
        .services()
        .into_iter()
        .filter_map(|name| {
            let kind = setting.stack.services.get(&name)?.spec.runtime;
            Some(Service::new(setting, name, kind, &plan.rules))
        })
        .collect();
    let view = setting.client.stack(setting.stack.name.as_str()).await?;
    services.iter().for_each(|service| service.see(&view));
    let names: Vec<&str> = services.iter().map(|service| service.name.as_str()).collect();
    let count = say::count(files.len(), "file");
    setting.say.note(&format!("watching {count} for {}; Ctrl-C ends the watch", names.join(", ")));
    files.begin_with(setting, &plan.rules, &services);
    tokio::select! {
        gone = follow(setting, &services) => gone,
        failed = files.follow(setting, &plan.rules, &services) => failed,
        failed = try_join_all(services.iter().map(Service::run)) => failed.map(drop),
    }
}

/// Follows how the stack stands, until it is gone.
async fn follow(setting: &Setting<'_>, services: &[Service<'_>]) -> Result<(), Failure> {
    let stack: &StackName = &setting.stack.name;
    let mut watch = wait::Watch::new(setting.client.clone(), stack.clone());
    while let Some(view) = watch.next().await? {
        services.iter().for_each(|service| service.see(&view));
    }
    setting.say.note(&format!("{stack} was removed; nothing is watched any more"));
    Ok(())
}

impl Files {
    async fn begin(setting: &Setting<'_>, rules: &[Rule]) -> Result<Self, Failure> {
        let roots = roots(rules);
        let (notices, mut asking) = notice::begin().map_err(|error| failed(&error))?;
        let begun = blocking(move || {
            let (tree, found) = Tree::new(roots, &mut asking)?;
            Ok((tree, asking, found))
        });
        let (tree, asking, found) = begun.await.map_err(|error| failed(&error))?;
        tell_unreadable(setting, &found);
        Ok(Self { notices, looked: Some((tree, asking)) })
    }

    fn len(&self) -> usize {
        self.looked.as_ref().map_or(0, |(tree, _)| tree.len())
    }

    /// Hands out what is copied at the beginning.
    fn begin_with(&self, setting: &Setting<'_>, rules: &[Rule], services: &[Service<'_>]) {
        let Some((tree, _)) = &self.looked else { return };
        let left_out = |name: &keel_model::ServiceName, path: &Path| {
            let source = setting.sources.get(name.as_str());
            filter::describes_the_stack(path, source.and_then(|source| source.build.as_deref()))
        };
        hand_out(services, decide::begin(rules, |root| tree.below(root), left_out));
    }

    /// Finds changes, and hands them out.
    async fn follow(
        mut self,
        setting: &Setting<'_>,
        rules: &[Rule],
        services: &[Service<'_>],
    ) -> Result<(), Failure> {
        loop {
            let dirty = self.notices.settled().await;
            let Some((mut tree, mut asking)) = self.looked.take() else { return Ok(()) };
            let looked = blocking(move || {
                let found = tree.refresh(&dirty, &mut asking)?;
                Ok((tree, asking, found))
            });
            let (tree, asking, found) = looked.await.map_err(|error| failed(&error))?;
            self.looked = Some((tree, asking));
            tell_unreadable(setting, &found);
            hand_out(services, decide::decide(rules, &found.changed));
        }
    }
}

fn hand_out(services: &[Service<'_>], mut all: BTreeMap<keel_model::ServiceName, decide::Work>) {
    for service in services {
        if let Some(work) = all.remove(&service.name) {
            service.give(work);
        }
    }
}

/// Each watched path once, with what counts for any of its rules.
fn roots(rules: &[Rule]) -> Vec<Root> {
    let paths: BTreeSet<&PathBuf> = rules.iter().map(|rule| &rule.path).collect();
    let filters = |path: &PathBuf| {
        let of = rules.iter().filter(|rule| rule.path == *path);
        of.map(|rule| rule.filter.clone()).collect()
    };
    paths.into_iter().map(|path| Root { path: path.clone(), filters: filters(path) }).collect()
}

fn tell_unreadable(setting: &Setting<'_>, found: &Found) {
    for (path, error) in &found.unreadable {
        let text = format!("{} can't be read, and is not watched: {error}", path.display());
        setting.say.ctx.warn(&text);
    }
}

fn failed(error: &io::Error) -> Failure {
    Failure::failed("watch", format!("files can't be watched: {error}"))
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}
