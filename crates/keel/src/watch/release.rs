//! Restarts and rebuilds: the same changes that `keel restart` and `keel up` make.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use keel_model::{RuntimeKind, Scale, ServiceName, Stack};
use keel_server::api::client::ServiceOperation;
use keel_server::api::types::{Applied, ApplyRequest, ServicesRequest};

use super::Setting;
use super::say::Stream;
use crate::cli::ProgressForm;
use crate::evidence::Evidence;
use crate::failure::Failure;
use crate::images::{self, BuildOptions};
use crate::ui::progress::Progress;
use crate::ui::time;
use crate::wait::{Outcome, Until, Wait};

/// How long a release or a restart is waited for: the progress deadline of a rollout.
const LIMIT: Duration = Duration::from_secs(600);

/// What became of a rebuild.
#[derive(Debug)]
pub(super) enum Released {
    /// It is in force; how that came.
    Yes(String),
    /// It is what runs already.
    Same,
    /// Why not.
    No(String),
}

impl Setting<'_> {
    /// Where the image of a service is built from.
    pub(super) fn context(&self, service: &ServiceName) -> Option<PathBuf> {
        let build = self.sources.get(service.as_str())?.build.as_ref()?;
        std::fs::canonicalize(&build.context).ok()
    }

    /// Replaces what runs, one instance after the other. Containers are started again as they are: what was copied into
    /// them stays.
    pub(super) async fn restart(
        &self,
        service: &ServiceName,
        kind: RuntimeKind,
    ) -> Result<(), String> {
        let in_place = kind == RuntimeKind::Container;
        let request = ServicesRequest { services: vec![service.clone()], in_place };
        let stack = self.stack.name.as_str();
        let applied = self.client.operate(stack, ServiceOperation::Restart, &request).await;
        let applied = applied.map_err(|error| format!("not restarted: {error}"))?;
        self.settle(service, &applied).await.map_err(|why| format!("restarted, {why}"))
    }

    /// Replaces what runs if its image is another one now. A process is replaced in any case: what it is made of is not
    /// ours to know.
    pub(super) async fn release(&self, service: &ServiceName, kind: RuntimeKind) -> Released {
        let is_container = kind == RuntimeKind::Container;
        let applied = match self.apply(service, !is_container).await {
            Ok(applied) => applied,
            Err(failure) => return Released::No(format!("not released: {}", failure.summary())),
        };
        if applied.changes.is_empty() && is_container {
            return Released::Same;
        }
        match self.settle(service, &applied).await {
            Ok(()) if is_container => Released::Yes("built and released".to_owned()),
            Ok(()) => Released::Yes("released".to_owned()),
            Err(why) => Released::No(format!("not released: {why}")),
        }
    }

    /// Builds the image of a service.
    pub(super) async fn build(&self, service: &ServiceName) -> Result<(), Failure> {
        let _turn = self.building.lock().await;
        let only = Some(BTreeSet::from([service.to_string()]));
        let options = BuildOptions { only, quiet: self.quiet, ..BuildOptions::default() };
        images::build(self.say.ctx, self.client, &self.sources, &options).await.map(drop)
    }

    async fn apply(&self, service: &ServiceName, force_recreate: bool) -> Result<Applied, Failure> {
        let mut stack = Stack::clone(self.stack);
        // A changed file is no wish for another number of instances than there are.
        let view = self.client.stack(stack.name.as_str()).await?;
        if let (Some(definition), Some(shown)) =
            (stack.services.get_mut(service), view.services.get(service))
            && let Scale::Replicated(_) = definition.scale
        {
            definition.scale = Scale::Replicated(shown.desired);
        }
        let request = ApplyRequest {
            stack,
            services: Some(vec![service.clone()]),
            remove_orphans: false,
            force_recreate,
            change: format!("watch: rebuild {service}"),
        };
        Ok(self.client.apply(&request).await?)
    }

    /// Waits until a change is in force.
    async fn settle(&self, service: &ServiceName, applied: &Applied) -> Result<(), String> {
        let ctx = self.say.ctx;
        let wait = Wait {
            stack: self.stack.name.clone(),
            services: Some(BTreeSet::from([service.clone()])),
            generation: applied.generation,
            until: Until::Converged,
            limit: Some(LIMIT),
        };
        let mut progress = Progress::new(ProgressForm::Quiet, ctx.talk);
        let mut evidence = Evidence::default();
        match wait.run(self.client, &mut progress, &mut evidence).await {
            Ok(Outcome::Reached(_)) => Ok(()),
            Ok(Outcome::Failed(view)) => {
                // Where the logs are followed, failures are told there.
                if self.say.stream == Stream::Output {
                    let failure =
                        evidence.failure(self.stack.name.as_str(), wait.scope(&view), ctx.talk);
                    failure.report(ctx.talk, ctx.json());
                }
                Err("it failed".to_owned())
            }
            Ok(Outcome::TimedOut(_)) => {
                Err(format!("not done within {}; it goes on", time::short(LIMIT)))
            }
            Err(failure) => Err(failure.summary()),
        }
    }
}
