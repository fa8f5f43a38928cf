//! The command of `sync+exec`, in one instance.

use std::process::Stdio;

use keel_container::inside::{self, Lines};
use keel_container::terminal::Command;
use keel_model::{Hook, InstanceId};
use keel_runtime::{ContainerExec, ExecSpec};
use tokio::io::AsyncReadExt as _;

use super::Setting;
use crate::follow::short_name;

/// Runs it, and tells what it says.
///
/// # Errors
/// What went wrong, with the instance.
pub(super) async fn run(
    setting: &Setting<'_>,
    instance: &InstanceId,
    hook: &Hook,
) -> Result<(), String> {
    let short = short_name(&setting.stack.name, instance.as_str());
    let program = hook.command.first().map_or("", String::as_str);
    let spec = setting.client.exec_spec(instance.as_str()).await;
    let code = match spec.map_err(|error| format!("{short}: {error}"))? {
        ExecSpec::Container(into) => in_container(setting, &into, hook, short).await,
        ExecSpec::Process(_) => beside_process(setting, instance, hook, short).await,
    };
    match code.map_err(|error| format!("{program} can't be run in {short}: {error}"))? {
        0 => Ok(()),
        code => Err(format!("{program} ended with code {code} in {short}")),
    }
}

async fn in_container(
    setting: &Setting<'_>,
    into: &ContainerExec,
    hook: &Hook,
    short: &str,
) -> Result<i32, String> {
    let command = Command {
        command: hook.command.clone(),
        environment: hook.environment.clone(),
        working_dir: hook.working_dir.clone(),
        user: hook.user.clone(),
        privileged: hook.privileged,
        terminal: false,
    };
    let done = inside::run(into, command, |line| setting.say.line(short, line)).await;
    done.map_err(|error| error.to_string())
}

/// What enters a process becomes the command, so that this is another `keel`.
async fn beside_process(
    setting: &Setting<'_>,
    instance: &InstanceId,
    hook: &Hook,
    short: &str,
) -> Result<i32, String> {
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let mut command = tokio::process::Command::new(program);
    command.arg("--state-dir").arg(&setting.say.ctx.state_dir);
    command.args(["--project-name", setting.stack.name.as_str(), "exec", "-T"]);
    for (name, value) in &hook.environment {
        command.arg("--env").arg(format!("{name}={value}"));
    }
    if let Some(dir) = &hook.working_dir {
        command.arg("--workdir").arg(dir);
    }
    if let Some(user) = &hook.user {
        command.args(["--user", user]);
    }
    command.arg(instance.as_str()).args(&hook.command);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().map_err(|error| error.to_string())?;
    let (out, err) = (child.stdout.take(), child.stderr.take());
    tokio::join!(tell(setting, out, short), tell(setting, err, short));
    let status = child.wait().await.map_err(|error| error.to_string())?;
    Ok(status.code().unwrap_or(-1))
}

async fn tell(setting: &Setting<'_>, from: Option<impl tokio::io::AsyncRead + Unpin>, short: &str) {
    let Some(mut from) = from else { return };
    let (mut lines, mut buffer) = (Lines::default(), vec![0; 16 << 10]);
    let mut say = |line: &str| setting.say.line(short, line);
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        lines.add(&buffer[..count], &mut say);
    }
    lines.end(&mut say);
}
