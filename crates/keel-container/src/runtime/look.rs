//! Knows what containers do: from what the engine tells, from their processes, and by looking again.

use std::collections::HashMap;
use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bollard::Docker;
use bollard::models::{ContainerInspectResponse, ContainerStateStatusEnum, EventActor};
use bollard::query_parameters::EventsOptionsBuilder;
use futures_util::StreamExt as _;
use keel_model::{Exit, InstanceId, Timestamp};
use keel_runtime::{record, stamp};
use tokio::task::JoinHandle;

use super::kept::{FILE, Kept};
use super::{Entry, Inner, blocking, labels};
use crate::answer::{is_between, understood};
use crate::{EngineInfo, Error, Kind};

/// Pause before the engine is looked for again; doubles up to [`PAUSE_MAX`].
const PAUSE: Duration = Duration::from_millis(100);
/// The longest such pause.
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// Everything is looked at this often even if the engine tells nothing.
const LOOK: Duration = Duration::from_secs(30);
/// Pause between two looks at a container whose process has ended while the engine does not know yet.
const END_PAUSE: Duration = Duration::from_millis(5);
/// After this the end is believed without an engine that does not answer.
const END_WAIT: Duration = Duration::from_secs(2);
/// And without one that answers and has not noticed: on a busy machine it can take seconds, and knows the exit code.
const END_WAIT_MAX: Duration = Duration::from_secs(10);
/// How long the engine may take to say what it knows.
const ANSWER: Duration = Duration::from_secs(10);
/// How long Podman may take from the end of a process to the end of its container.
const SETTLE: Duration = Duration::from_secs(5);
/// What the engine tells that may have changed a container, as Docker and Podman name it.
const NEWS: [&str; 8] = ["die", "died", "stop", "kill", "oom", "start", "destroy", "remove"];
/// Codes above this stand for signals, as shells have it.
const SIGNALS: i64 = 128;
/// The largest signal.
const SIGNAL_MAX: i64 = 64;

/// The engine's id of the main process; 0 when none runs.
pub(super) fn pid(seen: &ContainerInspectResponse) -> u32 {
    let pid = seen.state.as_ref().and_then(|state| state.pid);
    pid.and_then(|pid| u32::try_from(pid).ok()).unwrap_or(0)
}

fn time(text: Option<&String>) -> Option<Timestamp> {
    let millis = text?.parse::<jiff::Timestamp>().ok()?.as_millisecond();
    u64::try_from(millis).ok().filter(|millis| *millis > 0).map(Timestamp)
}

/// When it was started last.
pub(crate) fn begun(seen: &ContainerInspectResponse) -> Option<Timestamp> {
    time(seen.state.as_ref()?.started_at.as_ref())
}

/// How it ended, if it has.
pub(super) fn exit(seen: &ContainerInspectResponse) -> Option<Exit> {
    let state = seen.state.as_ref()?;
    if state.running == Some(true) || state.restarting == Some(true) || state.paused == Some(true) {
        return None;
    }
    // Podman's word while it waits for the end that it was asked for: it lives, and its code is still a zero.
    if state.status == Some(ContainerStateStatusEnum::STOPPING) {
        return None;
    }
    let code = state.exit_code.unwrap_or(0);
    let signal = (SIGNALS + 1..=SIGNALS + SIGNAL_MAX).contains(&code).then(|| code - SIGNALS);
    let number = |code: i64| i32::try_from(code).ok();
    Some(Exit {
        code: if signal.is_some() { None } else { number(code) },
        signal: signal.and_then(number),
        oom: state.oom_killed == Some(true),
        at: time(state.finished_at.as_ref()).unwrap_or_else(stamp::now),
    })
}

/// It is gone, and nobody saw how.
fn unseen() -> Exit {
    Exit { code: None, signal: None, oom: false, at: stamp::now() }
}

/// Reads the records of what an earlier server started.
pub(super) async fn read_records(inner: &Arc<Inner>) {
    let dir = inner.dir.clone();
    let records = blocking(move || -> Vec<Kept> {
        let entries = fs::read_dir(&dir).into_iter().flatten().flatten();
        entries.filter_map(|entry| record::read(&entry.path(), FILE)).collect()
    });
    for kept in records.await {
        let id = kept.launch.id.clone();
        let new = {
            let mut entries = inner.entries();
            let new = !entries.contains_key(&id);
            entries.entry(id.clone()).or_insert_with(|| Entry::new(kept, false));
            new
        };
        if new {
            watch(inner, &id);
        }
    }
}

/// Looks at every container that is not known to have ended. Those of an engine that is away stay as they are known.
pub(super) async fn all(inner: &Arc<Inner>) {
    let running = |entry: &Entry| entry.kept.exit.is_none();
    let ids: Vec<InstanceId> = {
        let entries = inner.entries();
        entries.iter().filter(|(_, entry)| running(entry)).map(|(id, _)| id.clone()).collect()
    };
    for id in ids {
        look(inner, &id).await;
    }
}

/// Looks at one container, and watches its process if that is another now.
async fn look(inner: &Arc<Inner>, id: &InstanceId) {
    // Whoever starts it looks too.
    if inner.entries().get(id).is_some_and(|entry| entry.starting) {
        return;
    }
    inner.look_at(id).await;
    if inner.entries().get(id).is_some_and(|entry| entry.watcher.is_none()) {
        watch(inner, id);
    }
}

impl Inner {
    /// Looks at one container and notes what has become of it; false if the engine could not be asked.
    pub(super) async fn look_at(&self, id: &InstanceId) -> bool {
        let Ok(kept) = self.running(id) else { return true };
        let asked = async {
            let client = self.engine.client().await?;
            Ok((self.inspect(&client, &kept.container).await?, self.engine.info().await?))
        };
        let hangs = || Err(self.engine.failed(&bollard::errors::Error::RequestTimeoutError));
        match tokio::time::timeout(ANSWER, asked).await.unwrap_or_else(|_| hangs()) {
            Ok((seen, info)) => {
                self.note(id, &kept, &seen, &info);
                true
            }
            Err(Error::NotFound { .. }) => {
                self.finish(id, &kept, unseen());
                true
            }
            Err(error) => {
                tracing::debug!(instance = %id, %error, "the container engine could not be asked");
                false
            }
        }
    }

    /// What the engine knows of a container.
    pub(super) async fn inspect(
        &self,
        client: &Docker,
        container: &str,
    ) -> Result<ContainerInspectResponse, Error> {
        let until = Instant::now() + SETTLE;
        loop {
            let seen = client.inspect_container(container, None).await;
            if is_between(&seen) && Instant::now() < until {
                tokio::time::sleep(END_PAUSE).await;
            } else {
                return understood(seen).map_err(|error| self.engine.failed(&error));
            }
        }
    }

    fn note(
        &self,
        id: &InstanceId,
        kept: &Kept,
        seen: &ContainerInspectResponse,
        info: &EngineInfo,
    ) {
        let state = seen.state.clone().unwrap_or_default();
        // One that was only made says zero here, and that it ended well.
        let begun = time(state.started_at.as_ref()).is_some()
            && state.started_at.as_ref() != Some(&kept.before);
        match exit(seen) {
            // The attempt was never begun: whoever was to start it died first.
            Some(exit) if !begun => {
                self.finish(id, kept, Exit { code: None, signal: None, oom: false, ..exit });
            }
            Some(exit) => self.finish(id, kept, exit),
            // Whoever started it died before that was noted, or somebody else has started it again.
            None if pid(seen) != kept.pid => self.note_process(id, seen, info),
            None => {}
        }
    }

    /// Notes which process it is, and where it answers.
    fn note_process(&self, id: &InstanceId, seen: &ContainerInspectResponse, info: &EngineInfo) {
        {
            let mut entries = self.entries();
            let Some(entry) = entries.get_mut(id).filter(|entry| !entry.starting) else { return };
            let kept = &mut entry.kept;
            kept.find(seen, info);
            if let Err(error) = record::write(&self.dir(id), FILE, kept) {
                // The engine knows it, and is asked again.
                tracing::warn!(instance = %id, %error, "another process could not be noted");
            }
            entry.ended = false;
            entry.watcher.take().iter().for_each(JoinHandle::abort);
        }
        self.bump();
    }

    /// Notes that the process is gone: nobody shall wait for the engine's word before he stops sending requests there.
    fn note_end(&self, id: &InstanceId, looked_at: &Kept) {
        let mut entries = self.entries();
        let same = |entry: &&mut Entry| !entry.starting && entry.kept.process == looked_at.process;
        let Some(entry) = entries.get_mut(id).filter(same) else { return };
        entry.ended = true;
        drop(entries);
        self.bump();
    }

    /// Notes an end, unless the attempt that it is about is not the newest any more.
    fn finish(&self, id: &InstanceId, looked_at: &Kept, exit: Exit) {
        {
            let mut entries = self.entries();
            let Some(entry) = entries.get_mut(id) else { return };
            let same = entry.kept.launch.attempt == looked_at.launch.attempt
                && entry.kept.container == looked_at.container;
            if entry.starting || !same || entry.kept.exit.is_some() {
                return;
            }
            entry.kept.exit = Some(exit);
            if let Err(error) = record::write(&self.dir(id), FILE, &entry.kept) {
                // The engine knows it too, and can be asked again.
                tracing::warn!(instance = %id, %error, "an exit could not be noted");
            }
        }
        self.bump();
    }
}

impl Inner {
    /// The instance that an event is about.
    fn concerned(&self, actor: &EventActor) -> Option<InstanceId> {
        let entries = self.entries();
        let container = actor.id.as_deref()?;
        let known = entries.iter().find(|(_, entry)| entry.kept.container == container);
        if let Some((id, _)) = known {
            return Some(id.clone());
        }
        let label = |key| actor.attributes.as_ref()?.get(key);
        let id = label(labels::INSTANCE).filter(|_| label(labels::SERVER) == Some(&self.tag))?;
        InstanceId::new(id.clone()).ok()
    }
}

/// Starts the watcher of a running instance, if its process can be watched.
pub(super) fn watch(inner: &Arc<Inner>, id: &InstanceId) {
    let Ok(kept) = inner.running(id) else { return };
    let Some(process) = kept.process.clone() else { return };
    let (shared, owned) = (Arc::clone(inner), id.clone());
    let task = tokio::spawn(async move {
        if process.ended().await.is_err() {
            // The engine will tell.
            return;
        }
        shared.note_end(&owned, &kept);
        let begun = Instant::now();
        loop {
            let looked = tokio::time::timeout(END_WAIT, shared.look_at(&owned)).await;
            let answers = looked.unwrap_or(false);
            if answers && shared.running(&owned).is_err() {
                return;
            }
            if begun.elapsed() > if answers { END_WAIT_MAX } else { END_WAIT } {
                break;
            }
            tokio::time::sleep(END_PAUSE).await;
        }
        shared.finish(&owned, &kept, unseen());
    });
    if let Some(entry) = inner.entries().get_mut(id)
        && let Some(old) = entry.watcher.replace(task)
    {
        old.abort();
    }
}

/// Follows what the engine tells, until aborted.
pub(super) async fn follow(inner: Arc<Inner>) {
    let mut pause = PAUSE;
    let mut away = false;
    loop {
        match listen(&inner, &mut pause, &mut away).await {
            Ok(()) => tracing::info!("the container engine has ended its events"),
            Err(error) => {
                if !std::mem::replace(&mut away, true) {
                    tracing::warn!(%error, "the container engine is away; what runs goes on");
                }
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

async fn listen(inner: &Arc<Inner>, pause: &mut Duration, away: &mut bool) -> Result<(), Error> {
    let client = inner.engine.client().await?;
    let mut filters = HashMap::from([("type", vec!["container"])]);
    // Containers that were taken over have no label of ours. The commands that health checks run are left out where the
    // engine knows these names.
    if inner.engine.info().await?.kind == Kind::Docker {
        filters.insert("event", NEWS.to_vec());
    }
    let options = EventsOptionsBuilder::default().filters(&filters).build();
    let mut events = client.events(Some(options));
    // What happened before they were followed.
    all(inner).await;
    if std::mem::take(away) {
        tracing::info!("the container engine is back");
    }
    *pause = PAUSE;
    loop {
        let event = match tokio::time::timeout(LOOK, events.next()).await {
            Err(_) => {
                all(inner).await;
                // An engine that hangs does not end its events either.
                let ping = tokio::time::timeout(ANSWER, client.ping());
                match ping.await {
                    Ok(Ok(_)) => continue,
                    Ok(Err(error)) => return Err(inner.engine.failed(&error)),
                    Err(_) => {
                        return Err(inner
                            .engine
                            .failed(&bollard::errors::Error::RequestTimeoutError));
                    }
                }
            }
            Ok(None) => return Ok(()),
            Ok(Some(event)) => event.map_err(|error| inner.engine.failed(&error))?,
        };
        let news = event.action.as_deref().is_some_and(|action| NEWS.contains(&action));
        let id = event.actor.filter(|_| news).and_then(|actor| inner.concerned(&actor));
        if let Some(id) = id {
            look(inner, &id).await;
        }
    }
}
