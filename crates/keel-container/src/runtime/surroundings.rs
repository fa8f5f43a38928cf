//! What a container needs to be there before it is created: networks, volumes, files, directories to bind.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use bollard::Docker;
use bollard::models::{Ipam, IpamConfig, NetworkCreateRequest, VolumeCreateRequest};
use keel_model::{MountSource, Network, Spec, StackName, Volume};
use keel_runtime::Launch;

use super::{Inner, blocking, labels};
use crate::{EngineInfo, Error};

/// The first version of the API that mounts a part of a volume.
const SUBPATHS: (usize, usize) = (1, 45);
/// The first that mounts an image.
const IMAGES: (usize, usize) = (1, 48);

/// What was made ready.
pub(super) struct Surroundings {
    pub files: Vec<PathBuf>,
    pub subpaths: BTreeMap<PathBuf, PathBuf>,
}

impl Inner {
    /// Makes ready what the container of `launch` needs. The text of an error names what is missing.
    pub(super) async fn surround(
        &self,
        client: &Docker,
        info: &EngineInfo,
        launch: &Launch,
    ) -> Result<Surroundings, String> {
        for network in &launch.networks {
            self.network(client, &launch.stack, network).await?;
        }
        for volume in &launch.volumes {
            self.volume(client, &launch.stack, volume).await?;
        }
        for mount in &launch.spec.mounts {
            if matches!(mount.source, MountSource::Image { .. }) && info.api < IMAGES {
                return Err(format!(
                    "{} can't mount an image at {}; it can from Docker 28 on",
                    info.text,
                    mount.target.display()
                ));
            }
        }
        let subpaths = self.subpaths(client, info, &launch.spec).await?;
        let (dir, spec) = (self.dir(&launch.id), launch.spec.clone());
        // Another machine has its own files: the engine says what is missing there.
        let files = match info.local {
            true => {
                let made = move || {
                    bind_sources(&spec)?;
                    stage(&dir, &spec)
                };
                blocking(made).await?
            }
            false => Vec::new(),
        };
        Ok(Surroundings { files, subpaths })
    }

    async fn network(
        &self,
        client: &Docker,
        stack: &StackName,
        network: &Network,
    ) -> Result<(), String> {
        // Engines before Docker 25 make a second network of the same name without a word.
        let mut there = self.networks.lock().await;
        if there.contains(&network.name) {
            return Ok(());
        }
        let known = client.inspect_network(&network.name, None).await;
        let error = match known.map_err(|error| self.engine.failed(&error)) {
            Ok(_) => {
                there.insert(network.name.clone());
                return Ok(());
            }
            Err(error @ Error::NotFound { .. }) => error,
            Err(error) => return Err(format!("network {}: {error}", network.name)),
        };
        if network.external {
            return Err(format!(
                "there is no network {:?}, which the file calls external ({error}); make it with `docker network \
                 create {}`",
                network.name, network.name
            ));
        }
        let made = client.create_network(self.network_request(stack, network)).await;
        match made.map_err(|error| self.engine.failed(&error)) {
            // Another instance was quicker.
            Ok(_) | Err(Error::Conflict { .. }) => {
                there.insert(network.name.clone());
                Ok(())
            }
            Err(error) => Err(format!("network {} can't be made: {error}", network.name)),
        }
    }

    /// Has networks looked for again; whether any were thought to be there.
    pub(super) async fn forget_networks(&self) -> bool {
        !std::mem::take(&mut *self.networks.lock().await).is_empty()
    }

    fn network_request(&self, stack: &StackName, network: &Network) -> NetworkCreateRequest {
        let map = |items: &BTreeMap<String, String>| -> HashMap<String, String> {
            items.clone().into_iter().collect()
        };
        let mut options = map(&network.driver_opts);
        if network.internal {
            // A network that the engine calls internal has no route to the virtual addresses of other services
            // either. Without masquerading nothing comes back from outside of the machine.
            options
                .entry("com.docker.network.bridge.enable_ip_masquerade".into())
                .or_insert_with(|| "false".into());
        }
        let mut labels = map(&network.labels);
        labels.extend(self.own_labels(stack));
        let subnets: Vec<_> = network
            .subnets
            .iter()
            .map(|subnet| IpamConfig {
                subnet: subnet.subnet.clone(),
                ip_range: subnet.ip_range.clone(),
                gateway: subnet.gateway.clone(),
                auxiliary_addresses: Some(map(&subnet.aux_addresses)),
            })
            .collect();
        let managed = network.ipam_driver.is_some() || !subnets.is_empty();
        NetworkCreateRequest {
            name: network.name.clone(),
            driver: Some(network.driver.clone().unwrap_or_else(|| "bridge".into())),
            attachable: network.attachable.then_some(true),
            enable_ipv4: network.ipv4,
            enable_ipv6: network.ipv6,
            options: Some(options),
            labels: Some(labels),
            ipam: managed.then(|| Ipam {
                driver: Some(network.ipam_driver.clone().unwrap_or_else(|| "default".into())),
                config: Some(subnets),
                options: Some(map(&network.ipam_options)),
            }),
            ..Default::default()
        }
    }

    fn own_labels(&self, stack: &StackName) -> [(String, String); 2] {
        [
            (labels::SERVER.to_owned(), self.tag.clone()),
            (labels::STACK.to_owned(), stack.to_string()),
        ]
    }

    async fn volume(
        &self,
        client: &Docker,
        stack: &StackName,
        volume: &Volume,
    ) -> Result<(), String> {
        let known = client.inspect_volume(&volume.name).await;
        let error = match known.map_err(|error| self.engine.failed(&error)) {
            Ok(_) => return Ok(()),
            Err(error @ Error::NotFound { .. }) => error,
            Err(error) => return Err(format!("volume {}: {error}", volume.name)),
        };
        if volume.external {
            return Err(format!(
                "there is no volume {:?}, which the file calls external ({error}); make it with `docker volume \
                 create {}`",
                volume.name, volume.name
            ));
        }
        let mut labels: HashMap<_, _> = volume.labels.clone().into_iter().collect();
        labels.extend(self.own_labels(stack));
        let request = VolumeCreateRequest {
            name: Some(volume.name.clone()),
            driver: volume.driver.clone(),
            driver_opts: Some(volume.driver_opts.clone().into_iter().collect()),
            labels: Some(labels),
            ..Default::default()
        };
        let made = client.create_volume(request).await;
        made.map(drop).map_err(|error| {
            format!("volume {} can't be made: {}", volume.name, self.engine.failed(&error))
        })
    }

    /// Where the parts of volumes are that are mounted, for engines that mount whole volumes only.
    async fn subpaths(
        &self,
        client: &Docker,
        info: &EngineInfo,
        spec: &Spec,
    ) -> Result<BTreeMap<PathBuf, PathBuf>, String> {
        let mut places = BTreeMap::new();
        if info.api >= SUBPATHS {
            return Ok(places);
        }
        for mount in &spec.mounts {
            let MountSource::Volume { name, subpath: Some(subpath) } = &mount.source else {
                continue;
            };
            let inside = subpath.components().all(|c| matches!(c, std::path::Component::Normal(_)));
            if !inside {
                return Err(format!(
                    "volume {name}: {} is not a path inside it",
                    subpath.display()
                ));
            }
            let known = client.inspect_volume(name).await;
            let known = known.map_err(|error| self.engine.failed(&error).to_string())?;
            if !info.local || known.driver != "local" {
                return Err(format!(
                    "volume {name}: {} can't mount a part of it; Docker can from version 26 on",
                    info.text
                ));
            }
            let place = Path::new(&known.mountpoint).join(subpath);
            if !place.exists() {
                return Err(format!("volume {name} holds no {}", subpath.display()));
            }
            places.insert(mount.target.clone(), place);
        }
        Ok(places)
    }
}

/// Makes directories that are to be bound and may be made; names those that are missing.
fn bind_sources(spec: &Spec) -> Result<(), String> {
    for mount in &spec.mounts {
        let MountSource::Bind { path, create } = &mount.source else { continue };
        if path.exists() {
            continue;
        }
        if !create {
            return Err(format!("there is no {}, which is to be mounted", path.display()));
        }
        fs::create_dir_all(path).map_err(|error| {
            format!("{} is to be mounted and can't be made: {error}", path.display())
        })?;
    }
    Ok(())
}

/// Writes secrets and configs where only their readers see them, in the order of the spec.
fn stage(dir: &Path, spec: &Spec) -> Result<Vec<PathBuf>, String> {
    let staging = dir.join("files");
    let failed =
        |path: &Path, error: &io::Error| format!("can't write {}: {error}", path.display());
    let mut files = Vec::new();
    for (number, file) in spec.files.iter().enumerate() {
        let path = staging.join(number.to_string());
        let written = fs::create_dir_all(&staging).and_then(|()| {
            let new = staging.join(format!("{number}.new"));
            let mut options = OpenOptions::new();
            let mut out = options.write(true).create(true).truncate(true).mode(0o600).open(&new)?;
            out.write_all(file.content.expose())?;
            if rustix::process::geteuid().is_root() {
                std::os::unix::fs::chown(&new, file.uid.or(Some(0)), file.gid.or(Some(0)))?;
            }
            fs::set_permissions(&new, fs::Permissions::from_mode(file.mode))?;
            fs::rename(&new, &path)
        });
        written.map_err(|error| failed(&path, &error))?;
        files.push(path);
    }
    Ok(files)
}
