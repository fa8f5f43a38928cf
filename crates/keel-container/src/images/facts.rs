//! What is known of an image that is on the machine.

use std::collections::BTreeSet;
use std::time::Duration;

use bollard::models::{HealthConfig, ImageConfig, ImageInspect};
use keel_model::{HealthTimes, ImageCommand, Test, signal_number};
use serde::{Deserialize, Serialize};

/// What is known of an image that is on the machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageFacts {
    /// Its content (`sha256:…`).
    pub id: String,
    /// Its names.
    pub tags: Vec<String>,
    /// What registries call it: `repository@sha256:…`.
    pub digests: Vec<String>,
    /// What it is built for: `os/arch[/variant]`.
    pub platform: String,
    /// It may be there for other platforms too: what keeps images as registries do says that of this machine's only.
    #[serde(default)]
    pub of_several: bool,
    /// When it was built, as RFC 3339.
    pub created: Option<String>,
    /// Its size in bytes, layers included.
    pub size: u64,
    /// Its health check: the test, and the times that it gives.
    pub health: Option<(Test, HealthTimes)>,
    /// The number of its stop signal.
    pub stop_signal: Option<i32>,
    /// Ports that it says it serves, as `80/tcp`.
    pub ports: BTreeSet<String>,
    /// Paths that get a volume of their own.
    pub volumes: BTreeSet<String>,
    /// Whom it runs as; empty is root.
    pub user: String,
    /// It says what is run: it has an entrypoint or a command.
    pub runs: bool,
    /// The same in full.
    #[serde(default)]
    pub command: ImageCommand,
}

impl ImageFacts {
    pub(super) fn of(image: ImageInspect) -> Self {
        let config = image.config.unwrap_or_default();
        let parts = [image.os, image.architecture, image.variant];
        let parts: Vec<String> =
            parts.into_iter().flatten().filter(|part| !part.is_empty()).collect();
        Self {
            // Podman leaves the algorithm out.
            id: image.id.map(|id| with_algorithm(&id)).unwrap_or_default(),
            tags: image.repo_tags.unwrap_or_default(),
            digests: image.repo_digests.unwrap_or_default(),
            platform: parts.join("/"),
            of_several: false,
            created: image.created,
            size: image.size.and_then(|size| u64::try_from(size).ok()).unwrap_or(0),
            health: config.healthcheck.as_ref().and_then(health),
            stop_signal: config.stop_signal.as_deref().and_then(signal_number),
            runs: runs(&config),
            command: ImageCommand {
                entrypoint: config.entrypoint.unwrap_or_default(),
                command: config.cmd.unwrap_or_default(),
            },
            ports: config.exposed_ports.into_iter().flatten().collect(),
            volumes: config.volumes.into_iter().flatten().collect(),
            user: config.user.unwrap_or_default(),
        }
    }

    /// Whether it is known not to be there for `platform`.
    #[must_use]
    pub fn is_not_for(&self, platform: &str) -> bool {
        !self.of_several && !self.is_for(platform)
    }

    /// Whether it is built for `platform` (`os[/arch[/variant]]`), as far as both say.
    #[must_use]
    pub fn is_for(&self, platform: &str) -> bool {
        let mut wanted = platform.split('/').map(canonical);
        let mut has = self.platform.split('/').map(canonical);
        // `arm64` without an operating system is Linux.
        if let Some(first) = platform.split('/').next().map(canonical)
            && !self.platform.is_empty()
            && !matches!(first, "linux" | "windows" | "darwin" | "freebsd")
        {
            has.next();
        }
        loop {
            match (wanted.next(), has.next()) {
                (Some(wanted), Some(has)) if wanted != has => return false,
                (None, _) | (_, None) => return true,
                _ => {}
            }
        }
    }
}

/// Names of processors that mean the same (from containerd's `platforms`).
fn canonical(part: &str) -> &str {
    match part {
        "x86_64" | "x86-64" => "amd64",
        "aarch64" => "arm64",
        "i386" => "386",
        other => other,
    }
}

pub(crate) fn with_algorithm(id: &str) -> String {
    if id.contains(':') { id.to_owned() } else { format!("sha256:{id}") }
}

fn runs(config: &ImageConfig) -> bool {
    let says = |words: &Option<Vec<String>>| {
        words.as_ref().is_some_and(|words| words.iter().any(|word| !word.is_empty()))
    };
    says(&config.entrypoint) || says(&config.cmd)
}

/// The health check in what Podman says of an image in its own words, which are Docker's for that part.
pub(super) fn health_of_podman(image: &serde_json::Value) -> Option<(Test, HealthTimes)> {
    let check = image.get("Healthcheck").filter(|check| !check.is_null())?;
    health(&serde_json::from_value(check.clone()).ok()?)
}

fn health(config: &HealthConfig) -> Option<(Test, HealthTimes)> {
    let test = match config.test.as_deref()?.split_first()? {
        (kind, words) if kind == "CMD" && !words.is_empty() => Test::Exec(words.to_vec()),
        (kind, words) if kind == "CMD-SHELL" && !words.is_empty() => Test::Shell(words.join(" ")),
        _ => return None,
    };
    // The engine's form: nanoseconds, and 0 where nothing is said.
    let time = |nanos: Option<i64>| {
        let nanos = nanos.and_then(|nanos| u64::try_from(nanos).ok())?;
        // As the model keeps milliseconds.
        let time = Duration::from_millis(nanos / 1_000_000);
        (!time.is_zero()).then_some(time)
    };
    let retries = config.retries.and_then(|retries| u32::try_from(retries).ok());
    let times = HealthTimes {
        interval: time(config.interval),
        timeout: time(config.timeout),
        start_period: time(config.start_period),
        start_interval: time(config.start_interval),
        retries: retries.filter(|retries| *retries > 0),
    };
    Some((test, times))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_inspected_image_is_understood() {
        let json = r#"{
            "Id": "sha256:ab", "RepoTags": ["a:1"], "RepoDigests": ["a@sha256:cd"], "Os": "linux",
            "Architecture": "arm", "Variant": "v7", "Size": 42, "Created": "2026-01-02T03:04:05Z",
            "Config": {
                "Healthcheck": {"Test": ["CMD-SHELL", "curl -f x"], "Interval": 5000000000, "Retries": 0},
                "StopSignal": "SIGQUIT", "ExposedPorts": {"80/tcp": {}}, "Volumes": {"/data": {}},
                "User": "1000", "Entrypoint": null, "Cmd": ["serve"]
            }
        }"#;
        let facts = ImageFacts::of(serde_json::from_str(json).unwrap());
        let (test, times) = facts.health.clone().unwrap();
        assert_eq!(test, Test::Shell("curl -f x".into()));
        assert_eq!((times.interval, times.retries), (Some(Duration::from_secs(5)), None));
        assert_eq!((facts.stop_signal, facts.size, facts.runs), (Some(3), 42, true));
        assert_eq!(
            (facts.command.entrypoint.len(), &facts.command.command[..]),
            (0, &["serve".to_owned()][..])
        );
        assert_eq!(facts.platform, "linux/arm/v7");
        assert!(facts.ports.contains("80/tcp") && facts.volumes.contains("/data"));
    }

    #[test]
    fn little_that_is_said_is_enough() {
        let facts = ImageFacts::of(serde_json::from_str(r#"{"Id": "ab"}"#).unwrap());
        assert_eq!((facts.id.as_str(), facts.runs), ("sha256:ab", false));
        let none =
            r#"{"Id": "ab", "Config": {"Healthcheck": {"Test": ["NONE"]}, "StopSignal": "x"}}"#;
        let facts = ImageFacts::of(serde_json::from_str(none).unwrap());
        assert_eq!((facts.health, facts.stop_signal), (None, None));
    }

    #[test]
    fn platforms_are_compared_as_far_as_both_say() {
        let facts = ImageFacts { platform: "linux/arm64/v8".into(), ..ImageFacts::default() };
        for platform in ["linux", "linux/arm64", "linux/aarch64", "arm64", "linux/arm64/v8"] {
            assert!(facts.is_for(platform), "{platform}");
        }
        for platform in ["linux/amd64", "windows", "linux/arm64/v7", "amd64"] {
            assert!(!facts.is_for(platform), "{platform}");
        }
    }
}
