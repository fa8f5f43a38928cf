//! What can be known to fail before anything is changed: a program that is not there.
//!
//! Looks only at what no later step could still make: a program below a mount of the instance, or one that a
//! `pre_start` step may put there, is left to the start itself.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use keel_model::{RuntimeKind, ServiceName, Spec};

use crate::error::Refusal;

/// Where programs are looked for when neither the service nor the server names a PATH.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Refuses a service whose program can't be started here.
///
/// # Errors
/// [`Refusal`] that names the program.
pub fn check(service: &ServiceName, spec: &Spec) -> Result<(), Refusal> {
    let program = spec.command.first().map_or("", String::as_str);
    // What a container runs is in its image, which was looked for when the service was pinned.
    if spec.runtime != RuntimeKind::Process || !spec.pre_start.is_empty() || program.contains("${")
    {
        return Ok(());
    }
    let directory = spec.working_dir.clone().unwrap_or_else(|| PathBuf::from("/"));
    let own = |path: &Path| {
        let targets = spec.mounts.iter().map(|mount| &mount.target);
        let targets = targets.chain(spec.files.iter().map(|file| &file.target));
        targets.into_iter().any(|target| path.starts_with(target))
    };
    if own(&directory) {
        return Ok(());
    }
    if !directory.is_dir() {
        return Err(Refusal::new(
            "invalid",
            format!("service `{service}`: there is no directory {}", directory.display()),
        )
        .hint("create it, or name another one with `working_dir`"));
    }
    let searched = spec.environment.get("PATH").cloned().or_else(|| std::env::var("PATH").ok());
    let searched = searched.unwrap_or_else(|| DEFAULT_PATH.to_owned());
    let candidates: Vec<PathBuf> = if program.contains('/') {
        vec![directory.join(program)]
    } else {
        searched.split(':').map(|part| directory.join(part).join(program)).collect()
    };
    if candidates.iter().any(|path| own(path) || executable(path)) {
        return Ok(());
    }
    Err(match candidates.iter().find(|path| path.exists()) {
        Some(path) => Refusal::new(
            "invalid",
            format!("service `{service}`: {} can't be executed", path.display()),
        )
        .hint(format!("try `chmod +x {}`, or name another program", path.display())),
        None => Refusal::new(
            "invalid",
            format!("service `{service}`: the program `{program}` was not found"),
        )
        .hint(if program.contains('/') {
            format!("there is no {}", candidates[0].display())
        } else {
            format!("install it, or write its whole path; the server looks in {searched}")
        }),
    })
}

fn executable(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(command: &str, directory: &str) -> Result<(), Refusal> {
        let spec = serde_json::from_value(serde_json::json!({
            "runtime": "process", "image": null, "command": [command], "environment": {},
            "working_dir": directory, "user": null, "mounts": [
                {"source": "anonymous", "target": "/mounted", "read_only": false}
            ], "files": [],
            "limits": {"cpu_milli": null, "cpu_shares": null, "cpuset": null, "memory": null,
                "memory_swap": null, "pids": null, "oom_score_adj": null},
            "health": null, "network": "shared", "init": false,
            "pre_start": [], "post_start": [], "pre_stop": [],
            "logs": {"keep": true, "max_size": 1000, "max_files": 1}, "ports": []
        }))
        .unwrap();
        check(&ServiceName::new("web").unwrap(), &spec)
    }

    #[test]
    fn programs_are_found_or_named() {
        assert!(checked("sh", "/").is_ok());
        assert!(checked("/bin/sh", "/").is_ok());
        assert!(checked("./sh", "/bin").is_ok());
        assert!(checked("${KEEL_INSTANCE}", "/").is_ok());
        assert!(checked("/mounted/program", "/").is_ok(), "may be inside the volume");
        let missing = checked("no-such-program", "/").unwrap_err();
        assert!(missing.message.contains("`no-such-program` was not found"), "{missing}");
        let forbidden = checked("/etc/passwd", "/").unwrap_err();
        assert!(forbidden.message.contains("/etc/passwd can't be executed"), "{forbidden}");
        let nowhere = checked("sh", "/no/such/directory").unwrap_err();
        assert!(nowhere.message.contains("no directory /no/such/directory"), "{nowhere}");
    }
}
