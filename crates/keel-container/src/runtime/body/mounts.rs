//! What is mounted in a container.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use bollard::models::{
    HostConfig, MountBindOptions, MountBindOptionsPropagationEnum, MountImageOptions,
    MountTmpfsOptions, MountType, MountVolumeOptions,
};
use keel_model::{Mount, MountOptions, MountSource};
use keel_runtime::Launch;

use super::{Setting, map, signed, some};

/// Those that the engine knows only in the old form have their options after colons.
pub(super) fn put(host: &mut HostConfig, launch: &Launch, setting: &Setting<'_>) {
    let (mut mounts, mut binds) = (Vec::new(), Vec::new());
    let mut memory = HashMap::new();
    for mount in &launch.spec.mounts {
        let none = MountOptions::default();
        let options = mount.options.as_deref().unwrap_or(&none);
        if let Some(place) = setting.subpaths.get(&mount.target) {
            mounts.push(bind(place, &mount.target, mount.read_only));
            continue;
        }
        match (&mount.source, &options.selinux) {
            (MountSource::Bind { path, .. }, Some(label)) => {
                let access = if mount.read_only { "ro" } else { "rw" };
                let mut text =
                    format!("{}:{}:{access},{label}", path.display(), mount.target.display());
                if let Some(propagation) = &options.propagation {
                    text = format!("{text},{propagation}");
                }
                binds.push(text);
            }
            (MountSource::Tmpfs { size, mode }, _) if !options.tmpfs.is_empty() => {
                let text = tmpfs(*size, *mode, mount.read_only, &options.tmpfs);
                memory.insert(mount.target.display().to_string(), text);
            }
            _ => mounts.push(mounted(mount, options, setting)),
        }
    }
    for (file, place) in launch.spec.files.iter().zip(setting.files) {
        mounts.push(bind(place, &file.target, true));
    }
    host.mounts = some(&mounts);
    host.binds = some(&binds);
    host.tmpfs = (!memory.is_empty()).then_some(memory);
}

/// A memory file system in the old form, which takes every option of `mount` on every engine.
fn tmpfs(size: Option<u64>, mode: Option<u32>, read_only: bool, options: &[String]) -> String {
    let mut all = options.to_vec();
    all.extend(size.map(|size| format!("size={size}")));
    all.extend(mode.map(|mode| format!("mode={mode:o}")));
    all.extend(read_only.then(|| "ro".to_owned()));
    all.join(",")
}

fn bind(source: &Path, target: &Path, read_only: bool) -> bollard::models::Mount {
    bollard::models::Mount {
        typ: Some(MountType::BIND),
        source: Some(source.display().to_string()),
        target: Some(target.display().to_string()),
        read_only: read_only.then_some(true),
        ..Default::default()
    }
}

fn mounted(mount: &Mount, options: &MountOptions, setting: &Setting<'_>) -> bollard::models::Mount {
    let text = |path: &PathBuf| path.display().to_string();
    let mut all = bollard::models::Mount {
        target: Some(text(&mount.target)),
        read_only: mount.read_only.then_some(true),
        ..Default::default()
    };
    match &mount.source {
        MountSource::Volume { name, subpath } => {
            all.typ = Some(MountType::VOLUME);
            all.source = Some(name.clone());
            all.volume_options = Some(MountVolumeOptions {
                no_copy: options.no_copy.then_some(true),
                subpath: subpath.as_ref().map(text),
                labels: map(&options.labels),
                ..Default::default()
            });
        }
        MountSource::Anonymous => {
            all.typ = Some(MountType::VOLUME);
            all.source = setting.unnamed.get(&mount.target).cloned();
            all.volume_options = Some(MountVolumeOptions {
                no_copy: options.no_copy.then_some(true),
                ..Default::default()
            });
        }
        MountSource::Bind { path, .. } => {
            all.typ = Some(MountType::BIND);
            all.source = Some(text(path));
            all.bind_options = Some(MountBindOptions {
                propagation: options.propagation.as_deref().and_then(propagation),
                non_recursive: (options.recursive.as_deref() == Some("disabled")).then_some(true),
                read_only_non_recursive: (options.recursive.as_deref() == Some("writable"))
                    .then_some(true),
                read_only_force_recursive: (options.recursive.as_deref() == Some("readonly"))
                    .then_some(true),
                ..Default::default()
            });
        }
        MountSource::Tmpfs { size, mode } => {
            all.typ = Some(MountType::TMPFS);
            all.tmpfs_options = Some(MountTmpfsOptions {
                size_bytes: size.map(signed),
                mode: Some(i64::from(mode.unwrap_or(0o1777))),
                ..Default::default()
            });
        }
        MountSource::Image { name, subpath } => {
            all.typ = Some(MountType::IMAGE);
            all.source = Some(name.clone());
            all.image_options = Some(MountImageOptions { subpath: subpath.as_ref().map(text) });
        }
    }
    all
}

fn propagation(text: &str) -> Option<MountBindOptionsPropagationEnum> {
    use MountBindOptionsPropagationEnum as Known;
    Some(match text {
        "private" => Known::PRIVATE,
        "rprivate" => Known::RPRIVATE,
        "shared" => Known::SHARED,
        "rshared" => Known::RSHARED,
        "slave" => Known::SLAVE,
        "rslave" => Known::RSLAVE,
        _ => return None,
    })
}
