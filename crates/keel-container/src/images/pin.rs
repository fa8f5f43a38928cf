//! What a service takes from its image. Pure.

use std::path::PathBuf;

use keel_model::{
    HealthCheck, HealthTimes, Mount, MountSource, Protocol, Service, ServicePort, Transport,
};

use super::facts::ImageFacts;

/// Makes `service` run exactly this image, with the health check and the stop signal that it leaves to the image.
/// A service that is no container is left alone.
pub fn pin(service: &mut Service, image: &ImageFacts) {
    let Some(container) = service.spec.container.as_mut() else { return };
    container.image_id = Some(image.id.clone());
    service.image_command = Some(image.command.clone());
    if let (Some(own), Some((test, times))) = (&container.from_image.health, &image.health) {
        service.spec.health = Some(HealthCheck::at_times(test.clone(), &first(own, times)));
    }
    if let (true, Some(signal)) = (container.from_image.stop_signal, image.stop_signal) {
        service.stop.signal = signal;
    }
    // As the engine does, but so that what is in them is found again after a release.
    for target in image.volumes.iter().map(PathBuf::from) {
        let mounts = &mut service.spec.mounts;
        if mounts.iter().all(|mount| mount.target != target) {
            let source = MountSource::Anonymous;
            mounts.push(Mount { source, target, read_only: false, options: None });
        }
    }
    if container.from_image.ports {
        service.readiness.from_image |= service.spec.ports.is_empty() && !image.ports.is_empty();
        // Other containers reach it at these without the file naming them, as they do without a platform.
        for target in image.ports.iter().filter_map(|port| port.strip_suffix("/tcp")?.parse().ok())
        {
            if service.ports.iter().all(|port| port.target != target) {
                service.ports.push(ServicePort {
                    target,
                    name: None,
                    transport: Transport::Tcp,
                    protocol: Protocol::Auto,
                });
            }
            if !service.spec.ports.contains(&target) {
                service.spec.ports.push(target);
            }
        }
    }
}

/// Times of the file, and those of the image where the file gives none.
fn first(file: &HealthTimes, image: &HealthTimes) -> HealthTimes {
    HealthTimes {
        interval: file.interval.or(image.interval),
        timeout: file.timeout.or(image.timeout),
        start_period: file.start_period.or(image.start_period),
        start_interval: file.start_interval.or(image.start_interval),
        retries: file.retries.or(image.retries),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use keel_model::{ContainerSpec, FromImage, ImageCommand, Test};

    use super::*;

    fn service(from_image: FromImage) -> Service {
        let json = serde_json::json!({
            "spec": {
                "runtime": "container", "image": "a", "command": [], "environment": {}, "mounts": [],
                "files": [], "limits": {}, "network": "isolated", "init": false, "pre_start": [],
                "post_start": [], "pre_stop": [], "ports": [],
                "logs": keel_model::LogPolicy::default(),
            },
            "scale": {"replicated": 1}, "ports": [], "publish": [], "aliases": [], "depends_on": {},
            "restart": keel_model::RestartPolicy::default(),
            "rollout": keel_model::RolloutPolicy::default(),
            "stop": keel_model::StopPolicy::default(),
            "readiness": keel_model::Readiness::default(),
        });
        let mut service: Service = serde_json::from_value(json).unwrap();
        service.spec.container = Some(Box::new(ContainerSpec { from_image, ..Default::default() }));
        service
    }

    fn image() -> ImageFacts {
        let times = HealthTimes {
            interval: Some(Duration::from_secs(7)),
            retries: Some(9),
            ..HealthTimes::default()
        };
        ImageFacts {
            id: "sha256:ab".into(),
            health: Some((Test::Shell("true".into()), times)),
            stop_signal: Some(3),
            volumes: ["/data".into()].into(),
            ports: ["80/tcp".into(), "5432/tcp".into(), "53/udp".into()].into(),
            command: ImageCommand { entrypoint: vec!["/run".into()], command: vec!["it".into()] },
            ..ImageFacts::default()
        }
    }

    #[test]
    fn what_the_file_leaves_to_the_image_is_taken() {
        let times = HealthTimes { retries: Some(2), ..HealthTimes::default() };
        let mut it = service(FromImage { health: Some(times), stop_signal: true, ports: true });
        pin(&mut it, &image());
        let health = it.spec.health.clone().unwrap();
        assert_eq!((health.retries, health.interval), (2, Duration::from_secs(7)));
        assert_eq!(health.start_interval, Duration::from_secs(1));
        assert_eq!(it.stop.signal, 3);
        assert_eq!(it.spec.ports, [5432, 80]);
        assert_eq!(it.spec.mounts.len(), 1);
        assert_eq!(it.order(), keel_model::Order::StopFirst, "it owns data");
        assert_eq!(it.ports.iter().map(|port| port.target).collect::<Vec<_>>(), [5432, 80]);
        assert_eq!(it.spec.container.unwrap().image_id.as_deref(), Some("sha256:ab"));
    }

    #[test]
    fn what_the_file_says_stays() {
        let mut it = service(FromImage::default());
        pin(&mut it, &image());
        assert_eq!((&it.spec.health, it.stop.signal), (&None, 15));
        assert_eq!((it.spec.ports.len(), it.ports.len()), (0, 0));
        let mut process = service(FromImage::default());
        process.spec.container = None;
        let before = process.clone();
        pin(&mut process, &image());
        assert_eq!(process, before);
    }

    #[test]
    fn what_is_run_is_told_as_the_engine_puts_it_together() {
        let runs = |entrypoint: Option<&[&str]>, command: &[&str]| {
            let owned = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
            let mut it = service(FromImage::default());
            pin(&mut it, &image());
            it.spec.command = owned(command);
            it.spec.container.as_mut().unwrap().entrypoint = entrypoint.map(owned);
            it.runs().join(" ")
        };
        assert_eq!(runs(None, &[]), "/run it");
        assert_eq!(runs(None, &["other", "way"]), "/run other way");
        assert_eq!(runs(Some(&["/mine"]), &[]), "/mine");
        assert_eq!(runs(Some(&["/mine"]), &["x"]), "/mine x");
        assert_eq!(runs(Some(&[]), &["x"]), "x");
    }

    #[test]
    fn pinning_again_changes_nothing() {
        let mut it = service(FromImage {
            health: Some(HealthTimes::default()),
            stop_signal: true,
            ports: true,
        });
        pin(&mut it, &image());
        let once = it.clone();
        pin(&mut it, &image());
        assert_eq!(it, once);
    }
}
