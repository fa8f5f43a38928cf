//! What the BuildKit that is part of Docker can't do: by Docker's plugin `buildx`, which can start another, in the user's
//! own process, which may read the user's files and speak to the user's SSH agent.

use std::io::Write as _;
use std::process::Stdio;

use keel_model::Build;
use keel_server::api::images::EngineView;

use crate::failure::Failure;

/// A build by the plugin.
pub struct Plugin<'a> {
    /// Where it is built.
    pub engine: &'a EngineView,
    /// Its name.
    pub reference: &'a str,
    /// `os[/arch[/variant]]`.
    pub platform: Option<&'a str>,
    /// How.
    pub build: &'a Build,
    /// Why the plugin is needed.
    pub needs: &'a [&'static str],
    /// Show nothing of it.
    pub quiet: bool,
}

/// Builds by the plugin.
///
/// # Errors
/// When it is not installed, or the build fails: it has said why.
pub async fn run(plugin: &Plugin<'_>) -> Result<(), Failure> {
    let Plugin { engine, reference, platform, build, needs, quiet } = plugin;
    let installed = tokio::process::Command::new("docker")
        .args(["buildx", "version"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .await;
    if !installed.is_ok_and(|status| status.success()) {
        let message = format!(
            "image {reference} can't be built by the engine's own BuildKit: it does not know {}",
            needs.join(", ")
        );
        return Err(Failure::failed("build_failed", message).hint(
            "install Docker's plugin buildx (docker-buildx, or docker-buildx-plugin with Docker's packages)",
        ));
    }
    let io = |error: std::io::Error| {
        Failure::failed("build_failed", format!("docker buildx can't be run: {error}"))
    };
    // Only its owner may read the files; they go with the directory.
    let secrets = tempfile::tempdir().map_err(io)?;
    let mut arguments = arguments(reference, *platform, build, *quiet);
    for (number, secret) in build.secrets.iter().enumerate() {
        let path = secrets.path().join(number.to_string());
        std::fs::File::create(&path)
            .and_then(|mut file| file.write_all(secret.content.expose()))
            .map_err(io)?;
        arguments.push(format!("--secret=id={},src={}", secret.id, path.display()));
    }
    let inline = build.dockerfile_inline.as_ref().map(|text| {
        let path = secrets.path().join("Dockerfile");
        std::fs::write(&path, text).map(|()| path)
    });
    if let Some(path) = inline.transpose().map_err(io)? {
        arguments.push(format!("--file={}", path.display()));
    }
    arguments.push(build.context.clone());
    let tls = engine.tls.iter().flat_map(|dir| {
        [("DOCKER_TLS_VERIFY", "1".into()), ("DOCKER_CERT_PATH", dir.clone().into_os_string())]
    });
    let status = tokio::process::Command::new("docker")
        .env("DOCKER_HOST", &engine.url)
        .envs(tls)
        .args(["buildx", "build"])
        .args(arguments)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .status()
        .await
        .map_err(io)?;
    if status.success() {
        return Ok(());
    }
    let message =
        format!("image {reference} could not be built: docker buildx ended with {status}");
    Err(Failure::failed("build_failed", message))
}

/// Its options, without secrets, a Dockerfile of its own, and the context.
fn arguments(reference: &str, platform: Option<&str>, build: &Build, quiet: bool) -> Vec<String> {
    let mut all = vec!["--load".to_owned(), format!("--tag={reference}")];
    let mut add = |option: &str, value: &str| all.push(format!("--{option}={value}"));
    let platforms = match platform {
        Some(platform) => vec![platform.to_owned()],
        None => build.platforms.clone(),
    };
    let lists = [
        ("tag", &build.tags),
        ("platform", &platforms),
        ("cache-from", &build.cache_from),
        ("cache-to", &build.cache_to),
        ("allow", &build.entitlements),
        ("no-cache-filter", &build.no_cache_filter),
    ];
    for (option, values) in lists {
        values.iter().for_each(|value| add(option, value));
    }
    let pairs = [
        ("build-arg", &build.args),
        ("label", &build.labels),
        ("build-context", &build.additional_contexts),
    ];
    for (option, values) in pairs {
        values.iter().for_each(|(name, value)| add(option, &format!("{name}={value}")));
    }
    let single = [("target", &build.target), ("network", &build.network)];
    for (option, value) in single {
        value.iter().for_each(|value| add(option, value));
    }
    for (name, addresses) in &build.extra_hosts {
        addresses.iter().for_each(|address| add("add-host", &format!("{name}={address}")));
    }
    for (name, (soft, hard)) in &build.ulimits {
        add("ulimit", &format!("{name}={soft}:{hard}"));
    }
    if let Some(size) = build.shm_size {
        add("shm-size", &size.to_string());
    }
    for (id, path) in &build.ssh {
        let path = path.as_ref().map(|path| format!("={}", path.display())).unwrap_or_default();
        add("ssh", &format!("{id}{path}"));
    }
    if build.privileged {
        add("allow", "security.insecure");
    }
    if let (Some(file), None) = (&build.dockerfile, &build.dockerfile_inline) {
        let path = std::path::Path::new(&build.context).join(file);
        add("file", &path.display().to_string());
    }
    add("progress", if quiet { "quiet" } else { "plain" });
    let switches = [(build.no_cache, "--no-cache"), (build.pull, "--pull")];
    all.extend(switches.into_iter().filter(|(on, _)| *on).map(|(_, name)| name.to_owned()));
    all
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn everything_is_passed_on() {
        let map = |name: &str, value: &str| BTreeMap::from([(name.to_owned(), value.to_owned())]);
        let build = Build {
            context: "/src".into(),
            dockerfile: Some("deploy/Dockerfile".into()),
            args: map("A", "b c"),
            additional_contexts: map("base", "docker-image://x"),
            cache_to: vec!["type=inline".into()],
            ssh: BTreeMap::from([("default".into(), None), ("k".into(), Some("/k".into()))]),
            ulimits: BTreeMap::from([("nofile".into(), (1, 2))]),
            no_cache: true,
            ..Build::default()
        };
        let all = arguments("shop-api", None, &build, false);
        for wanted in [
            "--tag=shop-api",
            "--file=/src/deploy/Dockerfile",
            "--build-arg=A=b c",
            "--build-context=base=docker-image://x",
            "--cache-to=type=inline",
            "--ssh=default",
            "--ssh=k=/k",
            "--ulimit=nofile=1:2",
            "--progress=plain",
            "--no-cache",
        ] {
            assert!(all.iter().any(|it| it == wanted), "{wanted}: {all:?}");
        }
    }
}
