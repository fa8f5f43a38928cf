//! Runs a command inside an instance with the caller's own terminal.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Seek, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use crate::process::users::Accounts;
use crate::shim::plan::{ProcessPlan, Surroundings};
use crate::types::{Error, Identity, ProcessExec, StartError};

impl ProcessExec {
    /// Makes the command run as `user` (`name`, `uid`, `name:group`, …, by this machine's `/etc/passwd` and
    /// `/etc/group`) instead of as the instance's own user, with `HOME` and `USER` to match.
    ///
    /// # Errors
    /// When there is no such user or group, or becoming that user needs rights that the calling process lacks.
    pub fn become_user(&mut self, user: &str) -> Result<(), Error> {
        let own = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
        let failed = |message: String| {
            Error::Start(StartError {
                failure: keel_model::StartFailure::Environment,
                message: format!("instance {}: {message}", self.instance),
            })
        };
        let found = Accounts::read().find(Some(user), &self.groups, own).map_err(failed)?;
        if found.switch && own.0 != 0 {
            let Identity { name, uid, gid, .. } = found;
            return Err(failed(format!(
                "running a command as {name} ({uid}:{gid}) needs root; run keel as root"
            )));
        }
        self.set_user(found);
        Ok(())
    }

    /// Takes `user`, and its home and name where the environment has the former user's; what the service sets
    /// itself stays.
    pub(crate) fn set_user(&mut self, user: Identity) {
        let home = |user: &Identity| user.home.display().to_string();
        let old = [("HOME", home(&self.user)), ("USER", self.user.name.clone())];
        let new = [home(&user), user.name.clone()];
        for ((key, old), new) in old.into_iter().zip(new) {
            if let Some(value) = self.environment.get_mut(key).filter(|value| **value == old) {
                *value = new;
            }
        }
        self.user = user;
    }

    /// The plan for a helper that becomes `command` inside the instance.
    pub(crate) fn plan(
        &self,
        command: Vec<String>,
        environment: &BTreeMap<String, String>,
        working_dir: Option<PathBuf>,
    ) -> ProcessPlan {
        let mut all = self.environment.clone();
        all.extend(environment.iter().map(|(key, value)| (key.clone(), value.clone())));
        ProcessPlan {
            instance: self.instance.to_string(),
            argv: command,
            environment: all.into_iter().collect(),
            working_dir: Some(working_dir.unwrap_or_else(|| self.working_dir.clone())),
            user: self.user.clone(),
            cgroups: self.cgroups.clone(),
            limits: Vec::new(),
            oom_score_adj: None,
            open_stdin: false,
            surroundings: Surroundings::Join {
                namespaces: self.namespaces,
                pid: i32::try_from(self.pid).unwrap_or(0),
                start_ticks: self.start_ticks,
            },
        }
    }
}

/// Replaces the calling process by `command` inside the instance that `spec` describes. Standard input, output and
/// error stay the caller's. Returns only the reason why it could not.
///
/// Works from programs with several threads too: it goes through a fresh start of the shim program, because the
/// kernel lets only a process with one thread change its namespaces.
pub fn exec_into(
    spec: &ProcessExec,
    command: Vec<String>,
    environment: &BTreeMap<String, String>,
    working_dir: Option<PathBuf>,
) -> io::Error {
    let prepare = || -> io::Result<File> {
        let plan = spec.plan(command, environment, working_dir);
        let json = serde_json::to_vec(&plan).map_err(io::Error::other)?;
        let memory = rustix::fs::memfd_create("keel-exec", rustix::fs::MemfdFlags::empty())?;
        let mut file = File::from(memory);
        file.write_all(&json)?;
        file.rewind()?;
        crate::sys::keep_on_exec(file.as_fd())?;
        Ok(file)
    };
    match prepare() {
        Ok(file) => Command::new(&spec.shim_program)
            .args(["shim", "exec", &file.as_raw_fd().to_string()])
            .exec(),
        Err(error) => error,
    }
}
