//! A runtime without processes, for tests of what stands above a runtime.
//!
//! Instances live in memory and do what a [`Script`] (by service) or their own command says. The commands that it
//! understands: `exit N`, `exit-after MS N`, `say WORD…` (each word a line, then runs), `say-env NAME…` (values),
//! `stubborn` (writes `ready`, ends only by SIGKILL), `missing`, `forbidden`; anything else runs until it is stopped.
//! Clones share everything, which is what a restart of the server looks like to a runtime.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, TcpListener};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use keel_model::{
    Exit, Hook, InstanceId, MountSource, PortBinding, ServiceName, StackName, StartFailure,
    Timestamp,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::stamp;
use crate::types::{
    Capabilities, Capability, Error, ExecOutput, ExecRequest, ExecSpec, Launch, LogLine, LogQuery,
    LogStream, Resources, Runtime, Seen, StartError, Started, VolumeInfo,
};

/// Lines in a log channel.
const QUEUE: usize = 64;
/// How long a killed instance may take to be gone.
const KILL_WAIT: Duration = Duration::from_secs(10);

const AWAY: &str = "what runs it is away";

/// What instances of a service do.
#[derive(Clone, Debug, Default)]
pub struct Script {
    /// Their start fails like this.
    pub refuse: Option<StartError>,
    /// Their start takes this long.
    pub start_delay: Duration,
    /// They end by themselves after this time with this code.
    pub exit_after: Option<(Duration, i32)>,
    /// They ignore every signal but SIGKILL.
    pub stubborn: bool,
    /// What they write to standard output at the start.
    pub output: Vec<String>,
    /// What commands inside them answer; code 0 when absent.
    pub exec: Option<ExecOutput>,
    /// They really listen on their ports and answer every HTTP request with 200 and their id.
    pub listen: bool,
}

struct Entry {
    launch: Launch,
    pid: u32,
    ports: Vec<PortBinding>,
    started_at: Timestamp,
    exit: Option<Exit>,
    lines: Vec<LogLine>,
    tasks: Vec<JoinHandle<()>>,
    gone: bool,
}

#[derive(Default)]
struct State {
    entries: BTreeMap<InstanceId, Entry>,
    scripts: BTreeMap<ServiceName, Script>,
    starts: Vec<(InstanceId, u32)>,
    commands: Vec<(InstanceId, Vec<String>)>,
    volumes: BTreeMap<String, StackName>,
    held: BTreeSet<String>,
    away: bool,
    foreign: BTreeMap<String, Option<i32>>,
    pids: u32,
}

/// A scripted runtime in memory; see the module.
#[derive(Clone)]
pub struct FakeRuntime {
    state: Arc<Mutex<State>>,
    changed: Arc<watch::Sender<u64>>,
}

impl Default for FakeRuntime {
    fn default() -> Self {
        Self::new()
    }
}

impl FakeRuntime {
    /// One without instances.
    #[must_use]
    pub fn new() -> Self {
        Self { state: Arc::default(), changed: Arc::new(watch::Sender::new(0)) }
    }

    /// What instances of `service` do from their next start on.
    pub fn script(&self, service: &ServiceName, script: Script) {
        self.state().scripts.insert(service.clone(), script);
    }

    /// Ends an instance as if by itself. `false` when it does not run.
    pub fn end(&self, id: &InstanceId, code: Option<i32>, signal: Option<i32>, oom: bool) -> bool {
        let exit = Exit { code, signal, oom, at: stamp::now() };
        let attempt = self.state().entries.get(id).map(|entry| entry.launch.attempt);
        attempt.is_some_and(|attempt| self.finish(id, attempt, exit))
    }

    /// Has an instance write a line to standard output.
    pub fn say(&self, id: &InstanceId, text: &str) {
        if let Some(entry) = self.state().entries.get_mut(id) {
            entry.lines.push(line(text));
        }
        self.bump();
    }

    /// There is a container that something else has started: it runs, or has ended with this code.
    pub fn foreign(&self, container: &str, ended: Option<i32>) {
        self.state().foreign.insert(container.to_owned(), ended);
    }

    /// The process of an instance is gone, and how it ended is not known; or there is one again.
    pub fn vanish(&self, id: &InstanceId, gone: bool) {
        if let Some(entry) = self.state().entries.get_mut(id) {
            entry.gone = gone;
        }
        self.bump();
    }

    /// What runs instances is away, or is back.
    pub fn away(&self, away: bool) {
        self.state().away = away;
    }

    /// Somebody uses a volume, or does not any more.
    pub fn hold(&self, volume: &str, held: bool) {
        let mut state = self.state();
        if held {
            state.held.insert(volume.to_owned())
        } else {
            state.held.remove(volume)
        };
    }

    /// Every successful start so far, with its attempt.
    #[must_use]
    pub fn starts(&self) -> Vec<(InstanceId, u32)> {
        self.state().starts.clone()
    }

    /// Every command and hook that was run so far.
    #[must_use]
    pub fn commands(&self) -> Vec<(InstanceId, Vec<String>)> {
        self.state().commands.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn bump(&self) {
        self.changed.send_modify(|count| *count += 1);
    }

    fn finish(&self, id: &InstanceId, attempt: u32, exit: Exit) -> bool {
        let ended = match self.state().entries.get_mut(id) {
            Some(entry) if entry.launch.attempt == attempt && entry.exit.is_none() => {
                entry.exit = Some(exit);
                entry.tasks.drain(..).for_each(|task| task.abort());
                true
            }
            _ => false,
        };
        if ended {
            self.bump();
        }
        ended
    }

    fn running<T>(&self, id: &InstanceId, with: impl FnOnce(&Entry) -> T) -> Result<T, Error> {
        match self.state().entries.get(id) {
            None => Err(Error::NoSuchInstance(id.clone())),
            Some(entry) if entry.exit.is_some() => Err(Error::NotRunning(id.clone())),
            Some(entry) => Ok(with(entry)),
        }
    }

    fn stubborn(&self, id: &InstanceId) -> bool {
        let state = self.state();
        state.entries.get(id).is_some_and(|entry| {
            let scripted = state.scripts.get(&entry.launch.service).is_some_and(|s| s.stubborn);
            scripted || entry.launch.spec.command.first().is_some_and(|word| word == "stubborn")
        })
    }

    fn exit_in(&self, id: &InstanceId, attempt: u32, after: Duration, code: i32) {
        let (this, owned) = (self.clone(), id.clone());
        let task = tokio::spawn(async move {
            tokio::time::sleep(after).await;
            let exit = Exit { code: Some(code), signal: None, oom: false, at: stamp::now() };
            // Not through `finish`, which would abort this very task while it runs.
            if let Some(entry) = this.state().entries.get_mut(&owned)
                && entry.launch.attempt == attempt
                && entry.exit.is_none()
            {
                entry.exit = Some(exit);
            }
            this.bump();
        });
        if let Some(entry) = self.state().entries.get_mut(id) {
            entry.tasks.push(task);
        }
    }

    /// Ports of its own for an instance, the same ones after a restart.
    fn ports(&self, launch: &Launch) -> Result<Vec<(PortBinding, TcpListener)>, StartError> {
        let before = self.state().entries.get(&launch.id).map(|entry| entry.ports.clone());
        let bind = |target: u16| {
            let old = before.iter().flatten().find(|binding| binding.target == target);
            old.and_then(|binding| TcpListener::bind(binding.address).ok())
                .map_or_else(|| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)), Ok)
                .and_then(|listener| {
                    listener.set_nonblocking(true)?;
                    let address = listener.local_addr()?;
                    Ok((PortBinding { target, address }, listener))
                })
                .map_err(|error| StartError {
                    failure: StartFailure::Environment,
                    message: format!("instance {}: no port: {error}", launch.id),
                })
        };
        launch.spec.ports.iter().map(|target| bind(*target)).collect()
    }
}

fn line(text: &str) -> LogLine {
    LogLine { at: stamp::now(), stream: LogStream::Stdout, text: text.to_owned(), partial: false }
}

fn refused(launch: &Launch, script: &Script) -> Option<StartError> {
    let (failure, message) = match launch.spec.command.first().map(String::as_str) {
        Some("missing") => (StartFailure::NotFound, "program \"missing\" was not found"),
        Some("forbidden") => (StartFailure::NotExecutable, "forbidden can't be executed"),
        _ => return script.refuse.clone(),
    };
    Some(StartError { failure, message: format!("instance {}: {message}", launch.id) })
}

/// What an instance writes at its start, and when it ends by itself with which code.
fn behaviour(
    launch: &Launch,
    script: &Script,
    ports: &[PortBinding],
) -> (Vec<LogLine>, Option<(Duration, i32)>) {
    let mut said: Vec<LogLine> = script.output.iter().map(|text| line(text)).collect();
    let mut ends = script.exit_after;
    let command: Vec<&str> = launch.spec.command.iter().map(String::as_str).collect();
    match command.as_slice() {
        ["exit", code] => ends = Some((Duration::ZERO, code.parse().unwrap_or(1))),
        ["exit-after", after, code] => {
            let after = Duration::from_millis(after.parse().unwrap_or(0));
            ends = Some((after, code.parse().unwrap_or(1)));
        }
        ["say", words @ ..] => said.extend(words.iter().map(|word| line(word))),
        ["say-env", names @ ..] => {
            let value = |name: &str| {
                let own = launch.spec.environment.get(name);
                let value = own.or_else(|| launch.environment.get(name)).cloned();
                match name {
                    "KEEL_INSTANCE" => launch.id.to_string(),
                    "PORT" => ports.first().map_or(0, |p| p.address.port()).to_string(),
                    _ => value.unwrap_or_default(),
                }
            };
            said.extend(names.iter().map(|name| line(&value(name))));
        }
        ["stubborn"] => said.push(line("ready")),
        _ => {}
    }
    (said, ends)
}

/// Answers every HTTP request with 200 and `id`.
async fn serve(listener: tokio::net::TcpListener, id: String) {
    while let Ok((mut stream, _)) = listener.accept().await {
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{id}", id.len());
        tokio::spawn(async move {
            let mut request = [0u8; 4096];
            while let Ok(1..) = stream.read(&mut request).await {
                if stream.write_all(answer.as_bytes()).await.is_err() {
                    return;
                }
            }
        });
    }
}

#[async_trait]
impl Runtime for FakeRuntime {
    fn capabilities(&self) -> Capabilities {
        let yes = || Capability::yes("pretended");
        Capabilities { limits: yes(), network: yes(), mounts: yes(), names: yes(), users: yes() }
    }

    async fn start(&self, launch: Launch) -> Result<Started, StartError> {
        let script = self.state().scripts.get(&launch.service).cloned().unwrap_or_default();
        tokio::time::sleep(script.start_delay).await;
        if let Ok((attempt, started)) = self.running(&launch.id, |entry| {
            let started = Started {
                pid: entry.pid,
                ports: entry.ports.clone(),
                address: None,
                not_enforced: Vec::new(),
                shares: Vec::new(),
                started_at: entry.started_at,
            };
            (entry.launch.attempt, started)
        }) {
            return if attempt == launch.attempt {
                Ok(started)
            } else {
                Err(StartError {
                    failure: StartFailure::Environment,
                    message: format!("instance {} still runs its attempt {attempt}", launch.id),
                })
            };
        }
        if self.state().away {
            let message = format!("instance {}: {AWAY}", launch.id);
            return Err(StartError { failure: StartFailure::Away, message });
        }
        if let Some(error) = refused(&launch, &script) {
            return Err(error);
        }
        let (ports, listeners): (Vec<_>, Vec<_>) = self.ports(&launch)?.into_iter().unzip();
        let started_at = stamp::now();
        let (said, ends) = behaviour(&launch, &script, &ports);
        let mut tasks = Vec::new();
        for listener in listeners.into_iter().filter(|_| script.listen) {
            if let Ok(listener) = tokio::net::TcpListener::from_std(listener) {
                tasks.push(tokio::spawn(serve(listener, launch.id.to_string())));
            }
        }
        let (id, attempt) = (launch.id.clone(), launch.attempt);
        let pid = {
            let mut state = self.state();
            state.pids += 1;
            let pid = state.pids;
            state.starts.push((id.clone(), attempt));
            let mut lines = state.entries.remove(&id).map(|old| old.lines).unwrap_or_default();
            lines.extend(said);
            for mount in &launch.spec.mounts {
                if let MountSource::Volume { name, .. } = &mount.source {
                    let stack = || launch.stack.clone();
                    state.volumes.entry(name.clone()).or_insert_with(stack);
                }
            }
            let ports = ports.clone();
            let entry =
                Entry { launch, pid, ports, started_at, exit: None, lines, tasks, gone: false };
            state.entries.insert(id.clone(), entry);
            pid
        };
        if let Some((after, code)) = ends {
            self.exit_in(&id, attempt, after, code);
        }
        self.bump();
        Ok(Started {
            pid,
            ports,
            address: None,
            not_enforced: Vec::new(),
            shares: Vec::new(),
            started_at,
        })
    }

    async fn adopt(&self, launch: Launch, container: &str) -> Result<Option<Started>, StartError> {
        let Some(ended) = self.state().foreign.get(container).copied() else { return Ok(None) };
        let (ports, _): (Vec<_>, Vec<_>) = self.ports(&launch)?.into_iter().unzip();
        let started_at = stamp::now();
        let exit =
            ended.map(|code| Exit { code: Some(code), signal: None, oom: false, at: started_at });
        let (id, lines, tasks) = (launch.id.clone(), Vec::new(), Vec::new());
        let pid = {
            let mut state = self.state();
            state.pids += 1;
            let pid = state.pids;
            let entry = Entry {
                launch,
                pid,
                ports: ports.clone(),
                started_at,
                exit,
                lines,
                tasks,
                gone: false,
            };
            state.entries.insert(id, entry);
            pid
        };
        self.bump();
        Ok(Some(Started {
            pid,
            ports,
            address: None,
            not_enforced: Vec::new(),
            shares: Vec::new(),
            started_at,
        }))
    }

    async fn stop(&self, id: &InstanceId, signal: i32, grace: Duration) -> Result<Exit, Error> {
        let mut changed = self.changed.subscribe();
        let _ = self.signal(id, signal).await;
        let wait = async {
            loop {
                match self.seen(id) {
                    None => return Err(Error::NoSuchInstance(id.clone())),
                    Some(Seen { exit: Some(exit), .. }) => return Ok(exit),
                    Some(_) => {
                        let _ = changed.changed().await;
                    }
                }
            }
        };
        if let Ok(result) = tokio::time::timeout(grace, wait).await {
            return result;
        }
        self.end(id, None, Some(libc::SIGKILL), false);
        match self.seen(id).and_then(|seen| seen.exit) {
            Some(exit) => Ok(exit),
            None => Err(Error::TimedOut(KILL_WAIT)),
        }
    }

    async fn signal(&self, id: &InstanceId, signal: i32) -> Result<(), Error> {
        self.running(id, |_| ())?;
        if signal == libc::SIGKILL || !self.stubborn(id) {
            self.end(id, None, Some(signal), false);
        }
        Ok(())
    }

    async fn list(&self) -> Result<Vec<Seen>, Error> {
        let ids: Vec<InstanceId> = self.state().entries.keys().cloned().collect();
        Ok(ids.iter().filter_map(|id| self.seen(id)).collect())
    }

    fn seen(&self, id: &InstanceId) -> Option<Seen> {
        self.state().entries.get(id).map(|entry| Seen {
            id: id.clone(),
            attempt: entry.launch.attempt,
            pid: (entry.exit.is_none() && !entry.gone).then_some(entry.pid),
            ports: entry.ports.clone(),
            address: None,
            started_at: entry.started_at,
            exit: entry.exit.clone(),
            not_enforced: Vec::new(),
            shares: Vec::new(),
        })
    }

    fn changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    async fn remove(&self, id: &InstanceId) -> Result<(), Error> {
        self.end(id, None, Some(libc::SIGKILL), false);
        self.state().entries.remove(id);
        self.bump();
        Ok(())
    }

    async fn exec(&self, id: &InstanceId, request: ExecRequest) -> Result<ExecOutput, Error> {
        let service = self.running(id, |entry| entry.launch.service.clone())?;
        let mut state = self.state();
        state.commands.push((id.clone(), request.command));
        let scripted = state.scripts.get(&service).and_then(|script| script.exec.clone());
        Ok(scripted.unwrap_or(ExecOutput { code: 0, output: String::new() }))
    }

    async fn run_hook(
        &self,
        launch: &Launch,
        hook: &Hook,
        _timeout: Duration,
    ) -> Result<ExecOutput, Error> {
        let mut state = self.state();
        if state.away {
            return Err(Error::Away(format!("instance {}: {AWAY}", launch.id)));
        }
        state.commands.push((launch.id.clone(), hook.command.clone()));
        let scripted = state.scripts.get(&launch.service).and_then(|script| script.exec.clone());
        Ok(scripted.unwrap_or(ExecOutput { code: 0, output: String::new() }))
    }

    async fn exec_spec(&self, id: &InstanceId) -> Result<ExecSpec, Error> {
        self.running(id, |_| ())?;
        Err(Error::system(format!("enter instance {id}"))(std::io::Error::other(
            "a pretended instance can't be entered",
        )))
    }

    async fn logs(
        &self,
        id: &InstanceId,
        query: LogQuery,
    ) -> Result<mpsc::Receiver<LogLine>, Error> {
        if self.seen(id).is_none() {
            return Err(Error::NoSuchInstance(id.clone()));
        }
        let (sender, receiver) = mpsc::channel(QUEUE);
        let (this, id, mut changed) = (self.clone(), id.clone(), self.changed.subscribe());
        tokio::spawn(async move {
            let all = |from: usize| {
                let state = this.state();
                state.entries.get(&id).map(|entry| entry.lines[from..].to_vec())
            };
            let mut at = all(0)
                .map_or(0, |lines| query.tail.map_or(0, |tail| lines.len().saturating_sub(tail)));
            while let Some(lines) = all(at) {
                at += lines.len();
                for line in lines {
                    let young = query.since.is_none_or(|since| line.at >= since);
                    let old = query.until.is_none_or(|until| line.at <= until);
                    if young && old && sender.send(line).await.is_err() {
                        return;
                    }
                }
                let wake = async {
                    tokio::select! {
                        () = sender.closed() => false,
                        result = changed.changed() => result.is_ok(),
                    }
                };
                if !query.follow || !wake.await {
                    return;
                }
            }
        });
        Ok(receiver)
    }

    async fn resources(&self, id: &InstanceId) -> Result<Resources, Error> {
        self.running(id, |_| Resources {
            cpu_usec: 1000,
            memory_bytes: 1 << 20,
            pids: 1,
            ..Resources::default()
        })
    }

    async fn volumes(&self) -> Result<Vec<VolumeInfo>, Error> {
        let info = |(name, stack): (&String, &StackName)| VolumeInfo {
            name: name.clone(),
            path: std::path::Path::new("/nowhere").join(name),
            stack: Some(stack.clone()),
        };
        Ok(self.state().volumes.iter().map(info).collect())
    }

    async fn remove_volume(&self, name: &str) -> Result<(), Error> {
        let mut state = self.state();
        if state.held.contains(name) {
            let reason = "somebody uses it".to_owned();
            return Err(Error::Volume { name: name.to_owned(), reason });
        }
        state.volumes.remove(name);
        Ok(())
    }
}
