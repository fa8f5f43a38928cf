//! `pre_start` steps: run to completion once per revision, before its first instance starts.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use keel_model::{Assignment, RevisionId, Service, ServiceName, StackName};
use keel_runtime::{Error as RuntimeError, Launch};
use keel_store::Transaction;
use tokio::sync::OnceCell;

use super::Context;
use crate::keys;

/// Longest run of one step.
const STEP_TIMEOUT: Duration = Duration::from_secs(3600);

type Key = (StackName, ServiceName, RevisionId);

/// Which preparations are done or under way. Instances of one revision wait for one run.
#[derive(Default)]
pub struct Preparations(Mutex<HashMap<Key, Arc<OnceCell<()>>>>);

impl Preparations {
    fn cell(&self, key: Key) -> Arc<OnceCell<()>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(key).or_default().clone()
    }
}

impl Context {
    /// Runs the `pre_start` steps that this start needs. While they wait for an engine that is away, `waits` hears why.
    ///
    /// # Errors
    /// The text for people when a step fails.
    pub(super) async fn prepare(
        &self,
        assignment: &Assignment,
        service: &Service,
        launch: &Launch,
        waits: &(impl Fn(&str) + Sync),
    ) -> Result<(), String> {
        let once = service.spec.pre_start.iter().any(|step| !step.per_replica);
        if once {
            let key =
                (assignment.stack.clone(), assignment.service.clone(), assignment.revision.clone());
            let cell = self.preparations.cell(key);
            cell.get_or_try_init(|| self.prepare_once(assignment, service, launch, waits)).await?;
        }
        self.steps(service, launch, true, waits).await
    }

    async fn prepare_once(
        &self,
        assignment: &Assignment,
        service: &Service,
        launch: &Launch,
        waits: &(impl Fn(&str) + Sync),
    ) -> Result<(), String> {
        let key = keys::prepared(&assignment.stack, &assignment.service, &assignment.revision);
        if self.store.get(&key).await.map_err(|e| e.to_string())?.is_some() {
            return Ok(());
        }
        self.steps(service, launch, false, waits).await?;
        let done = Transaction::new().put(key, b"true".to_vec());
        self.store.commit(done).await.map(|_| ()).map_err(|e| e.to_string())
    }

    async fn steps(
        &self,
        service: &Service,
        launch: &Launch,
        each: bool,
        waits: &(impl Fn(&str) + Sync),
    ) -> Result<(), String> {
        for step in service.spec.pre_start.iter().filter(|step| step.per_replica == each) {
            let program = step.command.first().map_or("", String::as_str);
            let output = loop {
                match self.runtime.run_hook(launch, step, STEP_TIMEOUT).await {
                    Ok(output) => break output,
                    Err(RuntimeError::Away(why)) => {
                        waits(&why);
                        tokio::time::sleep(super::worker::AWAY_RETRY).await;
                    }
                    Err(error) => {
                        return Err(format!(
                            "the pre_start step `{program}` could not run: {error}"
                        ));
                    }
                }
            };
            if output.code != 0 {
                return Err(format!(
                    "the pre_start step `{program}` ended with code {}: {}",
                    output.code,
                    super::health::last_words(&output.output),
                ));
            }
        }
        Ok(())
    }
}
