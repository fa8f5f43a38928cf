//! Commands inside instances and before them, and what an instance uses.

use std::collections::BTreeMap;
use std::fs;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use keel_model::{Hook, InstanceId};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};

use super::environment::expand;
use super::users::Accounts;
use super::{Inner, blocking};
use crate::cgroup::Group;
use crate::record::{self, Running};
use crate::shim::plan::ProcessPlan;
use crate::types::{Error, ExecOutput, ExecRequest, Launch, ProcessExec, Resources, StartError};
use crate::{steps, traffic};

/// How long a command may take when the request does not say.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);
/// How much output is kept when the request does not say.
const DEFAULT_OUTPUT: usize = 4 << 10;
/// How much output of a hook is kept.
const HOOK_OUTPUT: usize = 16 << 10;
/// How long output may come from what a command left running in the background.
const OUTPUT_WAIT: Duration = Duration::from_millis(200);

/// What `keel exec` needs.
pub(super) fn exec_spec(inner: &Inner, id: &InstanceId) -> Result<ProcessExec, Error> {
    let (kept, running) = inner.running(id)?;
    Ok(ProcessExec {
        instance: id.clone(),
        pid: u32::try_from(running.pid).unwrap_or(0),
        start_ticks: running.start_ticks,
        environment: kept.environment,
        working_dir: kept.working_dir,
        user: kept.user,
        groups: kept.launch.spec.groups,
        namespaces: kept.namespaces,
        cgroups: running.group.procs_files(),
        shim_program: inner.options.shim_program.clone(),
    })
}

/// Runs a command inside a running instance.
pub(super) async fn exec(
    inner: &Inner,
    id: &InstanceId,
    request: ExecRequest,
) -> Result<ExecOutput, Error> {
    let mut spec = exec_spec(inner, id)?;
    let (kept, _) = inner.running(id)?;
    if let Some(user) = &request.user {
        let found = Accounts::read().resolve(Some(user), &spec.groups, inner.own);
        spec.set_user(found.map_err(|message| start_error(id, &message))?);
    }
    let command = request.command.iter().map(|word| expand(word, &kept.placeholders)).collect();
    let environment = expand_all(&request.environment, &kept.placeholders);
    let plan = spec.plan(command, &environment, request.working_dir);
    let timeout = request.timeout.unwrap_or(DEFAULT_TIMEOUT);
    let keep = if request.max_output == 0 { DEFAULT_OUTPUT } else { request.max_output };
    helper(inner, &plan, timeout, keep).await
}

fn expand_all(
    all: &BTreeMap<String, String>,
    placeholders: &BTreeMap<String, String>,
) -> BTreeMap<String, String> {
    all.iter().map(|(key, value)| (key.clone(), expand(value, placeholders))).collect()
}

fn start_error(id: &InstanceId, message: &str) -> Error {
    Error::Start(StartError {
        failure: keel_model::StartFailure::Environment,
        message: format!("instance {id}: {message}"),
    })
}

/// Runs a step before the instance.
pub(super) async fn run_hook(
    inner: &Arc<Inner>,
    launch: &Launch,
    hook: &Hook,
    timeout: Duration,
) -> Result<ExecOutput, Error> {
    let (shared, mut launch) = (inner.clone(), launch.clone());
    if let Some(user) = &hook.user {
        launch.spec.user = Some(user.clone());
    }
    if let Some(dir) = &hook.working_dir {
        launch.spec.working_dir = Some(dir.clone());
    }
    launch.spec.command = hook.command.clone();
    launch.spec.environment.extend(hook.environment.clone());
    let dir = inner.dir(&launch.id);
    let prepared = blocking(move || shared.prepare(&launch, Group::default(), true)).await?;
    if !dir.join(record::LAUNCH).exists() {
        record::write(&dir, record::FAILED, &prepared.kept)
            .map_err(Error::system(format!("can't write into {}", dir.display())))?;
    }
    let done = helper(inner, &prepared.process, timeout, HOOK_OUTPUT).await?;
    let (policy, output) = (prepared.kept.launch.spec.logs.clone(), done.output.clone());
    blocking(move || steps::keep(&dir, &policy, &output)).await;
    Ok(done)
}

/// Has the shim program become the command of `plan`, and collects what comes of it.
async fn helper(
    inner: &Inner,
    plan: &ProcessPlan,
    timeout: Duration,
    keep: usize,
) -> Result<ExecOutput, Error> {
    let failed = || Error::system(format!("can't run a command for instance {}", plan.instance));
    let (output, error_output) = std::io::pipe().map_err(failed())?;
    let second = error_output.try_clone().map_err(failed())?;
    let mut child = Command::new(&inner.options.shim_program)
        .args(["shim", "exec"])
        .stdin(Stdio::piped())
        .stdout(error_output)
        .stderr(second)
        .current_dir("/")
        .kill_on_drop(true)
        .spawn()
        .map_err(failed())?;
    let json = serde_json::to_vec(plan).map_err(|e| failed()(e.into()))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A helper that is gone already says why in its output.
        let _ = stdin.write_all(&json).await;
    }
    let output = tokio::net::unix::pipe::Receiver::from_owned_fd(output.into()).map_err(failed())?;
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok());
    let mut kept = Vec::new();
    let done = tokio::time::timeout(timeout, collect(&mut child, output, &mut kept, keep)).await;
    let Ok(status) = done else {
        if let Some(pid) = pid {
            // Its session leader still exists (we have not waited for it), so the number means it.
            kill_session(pid).await;
        }
        let _ = child.kill().await;
        return Err(Error::TimedOut(timeout));
    };
    let status = status.map_err(failed())?;
    let code = std::os::unix::process::ExitStatusExt::signal(&status)
        .map_or_else(|| status.code().unwrap_or(-1), |signal| 128 + signal);
    Ok(ExecOutput { code, output: String::from_utf8_lossy(&kept).into_owned() })
}

async fn kill_session(leader: i32) {
    blocking(move || {
        for pid in session(leader) {
            let _ = crate::sys::kill(pid, libc::SIGKILL);
        }
    })
    .await;
}

/// Reads the output, keeping its end, until the command has ended.
async fn collect(
    child: &mut Child,
    mut output: tokio::net::unix::pipe::Receiver,
    kept: &mut Vec<u8>,
    keep: usize,
) -> std::io::Result<std::process::ExitStatus> {
    let mut chunk = [0u8; 4096];
    let mut open = true;
    let status = loop {
        tokio::select! {
            read = output.read(&mut chunk), if open => match read {
                Ok(0) | Err(_) => open = false,
                Ok(count) => add(kept, &chunk[..count], keep),
            },
            status = child.wait() => break status?,
        }
    };
    while open {
        match tokio::time::timeout(OUTPUT_WAIT, output.read(&mut chunk)).await {
            Ok(Ok(count)) if count > 0 => add(kept, &chunk[..count], keep),
            _ => open = false,
        }
    }
    Ok(status)
}

fn add(kept: &mut Vec<u8>, bytes: &[u8], keep: usize) {
    kept.extend_from_slice(bytes);
    if kept.len() > keep {
        kept.drain(..kept.len() - keep);
    }
}

/// What the instance uses now: from its cgroup, or summed over the processes that belong to it where the kernel does
/// not count there. Blocking.
pub(super) fn resources(running: &Running) -> Resources {
    let group = &running.group;
    let (cpu, memory, pids) = (group.cpu_usec(), group.memory_bytes(), group.pids());
    let network = u32::try_from(running.pid).ok().and_then(traffic::network);
    let block = group.block();
    if let (Some(cpu_usec), Some(memory_bytes), Some(pids), Some(_)) = (cpu, memory, pids, block) {
        return Resources { cpu_usec, memory_bytes, pids, network, block };
    }
    let members = match group.members() {
        members if members.is_empty() => session(running.pid),
        members => members,
    };
    let page = rustix::param::page_size() as u64;
    let tick = rustix::param::clock_ticks_per_second().max(1);
    let mut sum = Resources::default();
    let block = block.or_else(|| traffic::block(&members));
    for stat in members.into_iter().filter_map(record::stat).filter(|stat| !stat.zombie) {
        sum.cpu_usec += stat.cpu_ticks * 1_000_000 / tick;
        sum.memory_bytes += stat.rss_pages * page;
        sum.pids += stat.threads;
    }
    Resources {
        cpu_usec: cpu.unwrap_or(sum.cpu_usec),
        memory_bytes: memory.unwrap_or(sum.memory_bytes),
        pids: pids.unwrap_or(sum.pids),
        network,
        block,
    }
}

/// The processes whose session `leader` leads.
fn session(leader: i32) -> Vec<i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten();
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| record::stat(*pid).is_some_and(|stat| stat.session == leader))
        .collect()
}
