//! Gives the calling process a mount namespace of its own with volumes, secrets, configs and generated files.
//!
//! Everything else of the host stays visible as it is. Runs after fork (or in a helper), single-threaded, still
//! with the platform's rights. Mount points must exist: the server made them.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use rustix::mount::{
    MountFlags, MountPropagationFlags, mount, mount_bind_recursive, mount_change, mount_remount,
};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

use super::plan::{Failure, FileStep, MountStep, ProcessPlan, Surroundings};

/// Where secrets are by default.
const SECRETS: &str = "/run/secrets";
/// Room for the secrets and configs of one instance.
const FILES_ROOM: u64 = 64 << 20;

/// Enters or makes the namespaces of `plan`.
pub(crate) fn surround(plan: &ProcessPlan) -> Result<(), Failure> {
    match &plan.surroundings {
        Surroundings::Join { namespaces, pid, start_ticks } => {
            super::child::join(&plan.instance, *namespaces, *pid, *start_ticks)
        }
        Surroundings::Make { namespaces, network, staging, mounts, files } => {
            if let Some(path) = network {
                enter_network(path).map_err(|error| {
                    Failure::environment(format!(
                        "instance {}: can't enter its network namespace {}: {error}",
                        plan.instance,
                        path.display()
                    ))
                })?;
            }
            if namespaces.mount {
                let mut flags = UnshareFlags::NEWNS;
                if namespaces.user {
                    flags |= UnshareFlags::NEWUSER;
                }
                let ids = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
                let own = crate::sys::unshare(flags)
                    .and_then(|()| if namespaces.user { map_ids(ids) } else { Ok(()) })
                    .and_then(|()| {
                        let flags = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
                        mount_change("/", flags).map_err(Into::into)
                    });
                own.map_err(|error| {
                    Failure::environment(format!(
                        "instance {}: can't make a mount namespace: {error}",
                        plan.instance
                    ))
                })?;
                for step in mounts {
                    perform(&plan.instance, step)?;
                }
            }
            place_files(&plan.instance, staging, files)
        }
    }
}

fn enter_network(path: &Path) -> io::Result<()> {
    let namespace = fs::File::open(path)?;
    move_into_link_name_space(
        std::os::fd::AsFd::as_fd(&namespace),
        Some(LinkNameSpaceType::Network),
    )
    .map_err(Into::into)
}

/// Inside a new user namespace we are who we were outside.
fn map_ids((uid, gid): (u32, u32)) -> io::Result<()> {
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("{uid} {uid} 1"))?;
    fs::write("/proc/self/gid_map", format!("{gid} {gid} 1"))
}

fn perform(instance: &str, step: &MountStep) -> Result<(), Failure> {
    match step {
        MountStep::Bind { source, target, read_only } => {
            bind(source, target, *read_only).map_err(|error| {
                Failure::environment(format!(
                    "instance {instance}: can't mount {} at {}: {error}",
                    source.display(),
                    target.display()
                ))
            })
        }
        MountStep::Tmpfs { target, size, mode, read_only } => {
            tmpfs(target, *size, *mode, *read_only).map_err(|error| {
                Failure::environment(format!(
                    "instance {instance}: can't mount a tmpfs at {}: {error}",
                    target.display()
                ))
            })
        }
    }
}

fn bind(source: &Path, target: &Path, read_only: bool) -> io::Result<()> {
    mount_bind_recursive(source, target)?;
    if read_only {
        make_read_only(target)?;
    }
    Ok(())
}

fn make_read_only(target: &Path) -> io::Result<()> {
    // Flags that the mount has already must be repeated: without rights over its file system the kernel refuses
    // to take one away.
    let mut flags = MountFlags::BIND | MountFlags::RDONLY;
    let now = rustix::fs::statvfs(target)?.f_flag;
    for (is, flag) in [
        (rustix::fs::StatVfsMountFlags::NOSUID, MountFlags::NOSUID),
        (rustix::fs::StatVfsMountFlags::NODEV, MountFlags::NODEV),
        (rustix::fs::StatVfsMountFlags::NOEXEC, MountFlags::NOEXEC),
        (rustix::fs::StatVfsMountFlags::NOATIME, MountFlags::NOATIME),
        (rustix::fs::StatVfsMountFlags::NODIRATIME, MountFlags::NODIRATIME),
        (rustix::fs::StatVfsMountFlags::RELATIME, MountFlags::RELATIME),
    ] {
        if now.contains(is) {
            flags |= flag;
        }
    }
    mount_remount(target, flags, "").map_err(Into::into)
}

fn tmpfs(target: &Path, size: Option<u64>, mode: u32, read_only: bool) -> io::Result<()> {
    let mut data = format!("mode={mode:o}");
    if let Some(size) = size {
        data.push_str(&format!(",size={size}"));
    }
    let mut flags = MountFlags::NOSUID | MountFlags::NODEV;
    if read_only {
        flags |= MountFlags::RDONLY;
    }
    let data = std::ffi::CString::new(data)?;
    mount("tmpfs", target, "tmpfs", flags, data.as_c_str()).map_err(Into::into)
}

/// Writes secrets and configs: into memory that nobody else sees, mounted at their targets; or right where they are to
/// be, when nothing can be mounted.
fn place_files(instance: &str, staging: &Path, files: &[FileStep]) -> Result<(), Failure> {
    let failed = |path: &Path, error: io::Error| {
        Failure::environment(format!("instance {instance}: can't put {}: {error}", path.display()))
    };
    for file in files.iter().filter(|file| file.direct) {
        write_file(&file.target, file).map_err(|error| failed(&file.target, error))?;
    }
    let files: Vec<&FileStep> = files.iter().filter(|file| !file.direct).collect();
    if files.is_empty() {
        return Ok(());
    }
    tmpfs(staging, Some(FILES_ROOM), 0o755, false).map_err(|error| failed(staging, error))?;
    let secrets = staging.join("secrets");
    let mut shown = false;
    for (number, file) in files.into_iter().enumerate() {
        let result = if let Ok(name) = file.target.strip_prefix(SECRETS) {
            shown = true;
            write_file(&secrets.join(name), file)
        } else {
            let source = staging.join(number.to_string());
            write_file(&source, file).and_then(|()| bind(&source, &file.target, true))
        };
        result.map_err(|error| failed(&file.target, error))?;
    }
    if shown {
        bind(&secrets, Path::new(SECRETS), true)
            .map_err(|error| failed(Path::new(SECRETS), error))?;
    }
    Ok(())
}

fn write_file(path: &PathBuf, file: &FileStep) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    let _ = fs::remove_file(path);
    let mut out = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    out.write_all(file.content.expose())?;
    let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    if (uid, gid) != (file.uid, file.gid) {
        chown(path, Some(file.uid), Some(file.gid))?;
    }
    fs::set_permissions(path, fs::Permissions::from_mode(file.mode))
}

/// Whether this process may have mounts of its own.
pub(crate) fn try_namespace() -> io::Result<()> {
    let ids = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    if ids.0 == 0 {
        crate::sys::unshare(UnshareFlags::NEWNS)?;
    } else {
        crate::sys::unshare(UnshareFlags::NEWNS | UnshareFlags::NEWUSER)?;
        map_ids(ids)?;
    }
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    tmpfs(Path::new("/tmp"), Some(4096), 0o755, false)
}
