//! From a [`Launch`] to a running workload: everything is decided here, the shim only performs it.

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use keel_model::{Content, NetworkMode, PortBinding, StartFailure};

use super::environment::{environment, expand, placeholders};
use super::surroundings::{self, Places};
use super::users::Accounts;
use super::{Entry, Inner, Kept, blocking, watch};
use crate::cgroup::Group;
use crate::record::{self, Running};
use crate::shim::plan::{Failure, ProcessPlan, Report, RunPlan, Surroundings};
use crate::stamp;
use crate::types::{Launch, Namespaces, StartError, Started};

/// How long mounts, cgroup and exec may take together (a bind mount may lie on a slow network).
const START_WAIT: Duration = Duration::from_secs(60);

/// What was prepared.
pub(super) struct Prepared {
    pub kept: Kept,
    pub process: ProcessPlan,
}

fn environment_error(message: impl Into<String>) -> StartError {
    StartError { failure: StartFailure::Environment, message: message.into() }
}

/// Starts one attempt. The caller holds the instance's gate.
pub(super) async fn start(inner: &Arc<Inner>, launch: Launch) -> Result<Started, StartError> {
    let id = launch.id.clone();
    let dir = inner.dir(&id);
    if let Ok((kept, running)) = inner.running(&id) {
        if kept.launch.attempt == launch.attempt {
            return Ok(started(&kept, &running));
        }
        return Err(environment_error(format!(
            "instance {id} still runs its attempt {}; stop it first",
            kept.launch.attempt
        )));
    }
    watch::clear(&dir).await;
    let shared = inner.clone();
    let work = move || -> Result<(Kept, Running), StartError> {
        let prepared = shared.prepare(&launch, Group::default(), false)?;
        shared.launch(prepared)
    };
    let work = tokio::time::timeout(START_WAIT, blocking(work));
    let (kept, running) = work.await.unwrap_or_else(|_| {
        Err(environment_error(format!(
            "instance {id} could not be started within {} s",
            START_WAIT.as_secs()
        )))
    })?;
    let answer = started(&kept, &running);
    let entry = Entry { kept, running: Some(running), exit: None, watcher: None };
    if let Some(old) = inner.entries().insert(id.clone(), entry)
        && let Some(watcher) = old.watcher
    {
        watcher.abort();
    }
    watch::spawn(inner, &id);
    inner.bump();
    Ok(answer)
}

fn started(kept: &Kept, running: &Running) -> Started {
    Started {
        pid: u32::try_from(running.pid).unwrap_or(0),
        ports: kept.ports.clone(),
        address: kept.network.as_ref().map(|network| network.address.into()),
        not_enforced: kept.not_enforced.clone(),
        shares: Vec::new(),
        started_at: running.started_at,
    }
}

impl Inner {
    /// Decides everything about an attempt (or, with `hook`, about a step before it) and makes what it needs.
    pub(super) fn prepare(
        &self,
        launch: &Launch,
        group: Group,
        hook: bool,
    ) -> Result<Prepared, StartError> {
        let id = &launch.id;
        let failed = |message: String| environment_error(format!("instance {id}: {message}"));
        let spec = &launch.spec;
        let dir = self.dir(id);
        let staging = dir.join("files");
        for path in [&dir, &staging] {
            surroundings::passable_dir(path)
                .map_err(|e| failed(format!("can't make {}: {e}", path.display())))?;
        }
        let accounts = Accounts::read();
        let user =
            accounts.resolve(spec.user.as_deref(), &spec.groups, self.own).map_err(failed)?;
        let before = record::read::<Kept>(&dir, record::LAUNCH)
            .or_else(|| record::read::<Kept>(&dir, record::FAILED));
        let isolated = spec.network == NetworkMode::Isolated && !hook;
        let (ports, port, network) =
            self.addresses(launch, before.as_ref(), isolated).map_err(failed)?;
        let mounts = &self.capabilities.mounts;
        let allowed = if mounts.available { Ok(()) } else { Err(mounts.reason.as_str()) };
        let places = Places { dir: &dir, volumes: &self.volumes_dir, mounts: allowed };
        let mut plan = surroundings::Plan::make(launch, &user, &places).map_err(failed)?;
        let mount = !plan.mounts.is_empty() || plan.files.iter().any(|file| !file.direct);
        let namespaces = Namespaces { mount, network: isolated, user: mount && self.own.0 != 0 };
        let known = placeholders(launch, &ports, port, &plan.secrets_dir);
        let all = environment(launch, &user, &known, std::env::vars_os().filter_map(text));
        let argv = spec.command.iter().map(|word| expand(word, &known)).collect();
        let working_dir = spec.working_dir.clone().unwrap_or_else(|| PathBuf::from("/"));
        let group = if hook { group } else { self.group(launch, before.as_ref(), &mut plan) };
        let (limits, oom_score_adj) = self.process_limits(launch, &mut plan).map_err(failed)?;
        if spec.tty {
            plan.not_enforced.push("tty: a host process gets no terminal".into());
        }
        let process = ProcessPlan {
            instance: id.to_string(),
            argv,
            environment: all.clone().into_iter().collect(),
            working_dir: Some(working_dir.clone()),
            user: user.clone(),
            cgroups: Vec::new(),
            limits,
            oom_score_adj,
            open_stdin: spec.stdin_open,
            surroundings: Surroundings::Make {
                namespaces,
                network: network.as_ref().map(super::network::Network::path),
                staging,
                mounts: plan.mounts,
                files: plan.files,
            },
        };
        let kept = Kept {
            launch: without_content(launch),
            ports,
            port: port.port(),
            environment: all,
            placeholders: known,
            user,
            working_dir,
            namespaces,
            group,
            network,
            not_enforced: plan.not_enforced,
            prepared_at: stamp::now(),
        };
        Ok(Prepared { kept, process })
    }

    /// Where the instance answers: ports of its own on the loopback address, or an address of its own.
    fn addresses(
        &self,
        launch: &Launch,
        before: Option<&Kept>,
        isolated: bool,
    ) -> Result<(Vec<PortBinding>, SocketAddr, Option<super::network::Network>), String> {
        let targets = &launch.spec.ports;
        if isolated {
            if !self.capabilities.network.available {
                return Err(format!(
                    "it asks for a network of its own: {}; remove `network: isolated`",
                    self.capabilities.network.reason
                ));
            }
            let old = before.and_then(|kept| kept.network.as_ref());
            let network = self.networks.make(&launch.id, old)?;
            let at = |port| SocketAddr::new(IpAddr::V4(network.address), port);
            let ports =
                targets.iter().map(|t| PortBinding { target: *t, address: at(*t) }).collect();
            return Ok((ports, at(targets.first().copied().unwrap_or(8080)), Some(network)));
        }
        let old: Vec<u16> = match before {
            Some(kept) if kept.network.is_none() => {
                let same = |t: &u16| kept.ports.iter().find(|b| b.target == *t);
                if targets.is_empty() {
                    vec![kept.port]
                } else {
                    targets.iter().map(|t| same(t).map_or(0, |b| b.address.port())).collect()
                }
            }
            _ => Vec::new(),
        };
        let given = self.ports.take(&launch.id, &old, targets.len().max(1))?;
        let at = |port| SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port);
        let ports = targets
            .iter()
            .zip(&given)
            .map(|(target, port)| PortBinding { target: *target, address: at(*port) })
            .collect();
        Ok((ports, at(given[0]), None))
    }

    /// A fresh control group, so that accounts and OOM counts are this attempt's.
    fn group(
        &self,
        launch: &Launch,
        before: Option<&Kept>,
        plan: &mut surroundings::Plan,
    ) -> Group {
        if let Some(kept) = before {
            kept.group.kill();
            let _ = kept.group.remove();
        }
        let limits = &launch.spec.limits;
        let wanted = limits.cpu_milli.is_some()
            || limits.cpu_shares.is_some()
            || limits.cpuset.is_some()
            || limits.memory.is_some()
            || limits.pids.is_some();
        if !self.capabilities.limits.available {
            if wanted {
                plan.not_enforced.push(format!(
                    "CPU, memory and process limits: {}",
                    self.capabilities.limits.reason
                ));
            }
            return Group::default();
        }
        let (group, problems) = self.slice.create(launch.id.as_str(), limits);
        plan.not_enforced.extend(problems);
        group
    }

    /// Limits that a process sets for itself: resource number, soft, hard; and its `oom_score_adj`.
    #[expect(clippy::type_complexity, reason = "resource number, soft, hard")]
    fn process_limits(
        &self,
        launch: &Launch,
        plan: &mut surroundings::Plan,
    ) -> Result<(Vec<(u32, u64, u64)>, Option<i32>), String> {
        let limits = &launch.spec.limits;
        let may_raise = may_raise_limits();
        let mut all = Vec::new();
        for (name, (soft, hard)) in &limits.ulimits {
            let resource = resource(name)
                .ok_or_else(|| format!("there is no ulimit {name:?}; see `man setrlimit`"))?;
            let most = hard_limit(resource);
            if !may_raise && most.is_some_and(|most| *hard > most) {
                plan.not_enforced
                    .push(format!("ulimit {name}={hard}: we may not raise limits here"));
            } else {
                all.push((resource, *soft, *hard));
            }
        }
        let score = match limits.oom_score_adj {
            Some(score) if !may_raise && score < 0 => {
                plan.not_enforced.push(format!("oom_score_adj {score}: we may not lower it here"));
                None
            }
            other => other,
        };
        Ok((all, score))
    }

    /// Hands the prepared attempt to a shim and waits for its word. Leaves nothing running on failure.
    fn launch(&self, prepared: Prepared) -> Result<(Kept, Running), StartError> {
        let Prepared { kept, process } = prepared;
        let id = kept.launch.id.clone();
        let dir = self.dir(&id);
        let failed = |message: String| environment_error(format!("instance {id}: {message}"));
        let undo = |error: StartError| {
            kept.group.kill();
            let _ = fs::remove_file(dir.join(record::LAUNCH));
            // The rest of what the attempt made is found again through this record at the next start or removal.
            let _ = record::write(&dir, record::FAILED, &kept);
            error
        };
        for stale in [record::EXIT, record::RUNNING] {
            let _ = fs::remove_file(dir.join(stale));
        }
        record::write(&dir, record::LAUNCH, &kept)
            .map_err(|e| {
                failed(format!("can't write into {}: {e}; is the disk full?", dir.display()))
            })
            .map_err(undo)?;
        let plan = RunPlan {
            dir: dir.clone(),
            attempt: kept.launch.attempt,
            logs: kept.launch.spec.logs.clone(),
            group: kept.group.clone(),
            shim_group: self.shim_group.clone(),
            process,
        };
        let report = self.run_shim(&plan).map_err(failed).map_err(undo)?;
        match report {
            Report::Failed(Failure { failure, message }) => {
                Err(undo(StartError { failure, message }))
            }
            Report::Started { .. } => {
                let running = record::read::<Running>(&dir, record::RUNNING)
                    .ok_or_else(|| failed("its shim left no record".into()))
                    .map_err(undo)?;
                let _ = fs::remove_file(dir.join(record::FAILED));
                Ok((kept, running))
            }
        }
    }

    fn run_shim(&self, plan: &RunPlan) -> Result<Report, String> {
        let program = &self.options.shim_program;
        let failed =
            |error: std::io::Error| format!("can't run the shim {}: {error}", program.display());
        let mut child = Command::new(program)
            .args(["shim", "run"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .current_dir("/")
            .spawn()
            .map_err(failed)?;
        let json = serde_json::to_vec(plan).map_err(|e| failed(e.into()))?;
        let sent = match child.stdin.take() {
            Some(mut stdin) => stdin.write_all(&json),
            None => Ok(()),
        };
        let mut answer = Vec::new();
        let read = match child.stdout.take() {
            Some(mut stdout) => stdout.read_to_end(&mut answer).map(|_| ()),
            None => Ok(()),
        };
        let _ = child.wait();
        sent.and(read).map_err(failed)?;
        serde_json::from_slice(&answer)
            .map_err(|_| format!("the shim {} ended without an answer", program.display()))
    }
}

fn without_content(launch: &Launch) -> Launch {
    let mut launch = launch.clone();
    for file in &mut launch.spec.files {
        file.content = Content::new(Vec::new());
    }
    launch
}

fn text(pair: (std::ffi::OsString, std::ffi::OsString)) -> Option<(String, String)> {
    Some((pair.0.into_string().ok()?, pair.1.into_string().ok()?))
}

/// The kernel's number of a `ulimits` name.
fn resource(name: &str) -> Option<u32> {
    Some(match name {
        "cpu" => libc::RLIMIT_CPU,
        "fsize" => libc::RLIMIT_FSIZE,
        "data" => libc::RLIMIT_DATA,
        "stack" => libc::RLIMIT_STACK,
        "core" => libc::RLIMIT_CORE,
        "rss" => libc::RLIMIT_RSS,
        "nproc" => libc::RLIMIT_NPROC,
        "nofile" => libc::RLIMIT_NOFILE,
        "memlock" => libc::RLIMIT_MEMLOCK,
        "as" => libc::RLIMIT_AS,
        "locks" => libc::RLIMIT_LOCKS,
        "sigpending" => libc::RLIMIT_SIGPENDING,
        "msgqueue" => libc::RLIMIT_MSGQUEUE,
        "nice" => libc::RLIMIT_NICE,
        "rtprio" => libc::RLIMIT_RTPRIO,
        "rttime" => libc::RLIMIT_RTTIME,
        _ => return None,
    })
}

/// Whether we have `CAP_SYS_RESOURCE`: root has, except in many containers.
fn may_raise_limits() -> bool {
    const CAP_SYS_RESOURCE: u64 = 1 << 24;
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let held = line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    held.is_some_and(|held| held & CAP_SYS_RESOURCE != 0)
}

/// Our own hard limit, which we may give to others but not exceed without rights.
fn hard_limit(resource: u32) -> Option<u64> {
    let text = fs::read_to_string("/proc/self/limits").ok()?;
    let label = match resource {
        libc::RLIMIT_NOFILE => "Max open files",
        libc::RLIMIT_NPROC => "Max processes",
        libc::RLIMIT_MEMLOCK => "Max locked memory",
        libc::RLIMIT_CORE => "Max core file size",
        libc::RLIMIT_STACK => "Max stack size",
        _ => return None,
    };
    let line = text.lines().find_map(|line| line.strip_prefix(label))?;
    line.split_whitespace().nth(1)?.parse().ok()
}
