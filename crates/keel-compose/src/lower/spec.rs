//! What an instance is started with: command, environment, directory, user, hooks.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use keel_model::{Hook, NetworkMode, Spec};

use super::health::Health;
use super::ports::Ports;
use super::{Context, Lower};
use crate::diagnostic::Code;
use crate::loader::join;
use crate::print::{command_of, duration_of, environment_of};
use crate::shellwords;
use crate::value::{Node, Value};

impl Lower<'_> {
    pub(super) fn spec(&mut self, context: &Context<'_>, ports: &Ports) -> Option<Spec> {
        let node = context.node;
        let command = self.command(context)?;
        let environment = self.environment(node.get("environment"));
        let (health, of_image) = match self.health(context) {
            Health::Unchecked => (None, None),
            Health::Check(check) => (Some(check), None),
            Health::OfImage(times) => (None, Some(times)),
        };
        let container = context
            .is_container()
            .then(|| Box::new(self.container(context, of_image, ports.udp.clone())));
        Some(Spec {
            runtime: context.runtime,
            image: None,
            container,
            command,
            environment,
            working_dir: self.working_dir(context),
            user: node.text("user").filter(|user| !user.is_empty()).map(str::to_owned),
            groups: texts(node.get("group_add")),
            mounts: self.mounts(context),
            files: self.files(context),
            limits: self.limits(context),
            health,
            network: self.network_mode(context),
            hosts: self.hosts(node.get("extra_hosts")),
            init: is_true(node.get("init")),
            pre_start: self.hooks(context, "pre_start"),
            post_start: self.hooks(context, "post_start"),
            pre_stop: self.hooks(context, "pre_stop"),
            logs: self.logs(context),
            tty: is_true(node.get("tty")),
            stdin_open: is_true(node.get("stdin_open")),
            labels: self.instance_labels(node.get("labels")),
            ports: ports.targets.clone(),
        })
    }

    /// What a process runs, or what the entrypoint of a container gets.
    fn command(&mut self, context: &Context<'_>) -> Option<Vec<String>> {
        let node = context.node;
        if context.is_container() {
            return Some(self.words(node.get("command")));
        }
        let mut command = self.words(node.get("entrypoint"));
        command.extend(self.words(node.get("command")));
        if command.is_empty() {
            let message = format!("the service `{}` has nothing to run", context.name);
            self.error(Code::MissingKey, context.span, message, "give it a `command`");
            return None;
        }
        Some(command)
    }

    /// A process starts in the directory of the file unless it says otherwise, a container in that of its image.
    fn working_dir(&self, context: &Context<'_>) -> Option<PathBuf> {
        let directory = context.node.text("working_dir").unwrap_or_default();
        self.directory(context, directory)
    }

    /// A directory that a service names: of the host, or inside the container.
    fn directory(&self, context: &Context<'_>, path: &str) -> Option<PathBuf> {
        if context.is_container() {
            return Some(path).filter(|path| !path.is_empty()).map(PathBuf::from);
        }
        Some(join(&self.project.directory, path))
    }

    fn network_mode(&mut self, context: &Context<'_>) -> NetworkMode {
        let mode = context.settings.network.unwrap_or(NetworkMode::Shared);
        if mode == NetworkMode::Isolated
            && context.is_container()
            && let Some(node) = context.node.at(&["x-keel", "network"])
        {
            self.warn(&node.span, "`x-keel.network` has no effect: it is for host processes; a container has `networks` or `network_mode`");
            return NetworkMode::Shared;
        }
        mode
    }

    /// Labels without those about routing: a new route replaces no instance.
    fn instance_labels(&mut self, node: Option<&Node>) -> BTreeMap<String, String> {
        let mut labels = self.labels(node);
        labels.retain(|key, _| !crate::labels::is_routing(key));
        labels
    }

    /// A command as words; warns when a shell would have been needed.
    pub(super) fn words(&mut self, node: Option<&Node>) -> Vec<String> {
        let Some(node) = node.filter(|node| !node.is_null()) else { return Vec::new() };
        if let Some(rest) = node.as_str().and_then(shellwords::dropped) {
            self.warn(
                &node.span,
                format!("no shell runs this command: `{rest}` is dropped, as Docker Compose does; write [sh, -c, …]"),
            );
        }
        self.take(command_of(node)).unwrap_or_default()
    }

    /// Variables that have a value.
    pub(super) fn environment(&mut self, node: Option<&Node>) -> BTreeMap<String, String> {
        let variables = self.variables(node);
        variables.into_iter().filter_map(|(key, value)| Some((key, value?))).collect()
    }

    /// Variables; `None` for those that have only a name.
    pub(super) fn variables(&mut self, node: Option<&Node>) -> BTreeMap<String, Option<String>> {
        let Some(node) = node.filter(|node| !node.is_null()) else { return BTreeMap::new() };
        self.take(environment_of(node)).unwrap_or_default()
    }

    pub(super) fn hosts(&mut self, node: Option<&Node>) -> BTreeMap<String, Vec<String>> {
        let mut hosts: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let Some(node) = node.filter(|node| !node.is_null()) else { return hosts };
        for line in self.take(crate::print::hosts_of(node)).unwrap_or_default() {
            if let Some((host, address)) = line.split_once('=') {
                hosts.entry(host.to_owned()).or_default().push(address.to_owned());
            }
        }
        hosts
    }

    fn hooks(&mut self, context: &Context<'_>, key: &str) -> Vec<Hook> {
        let items = context.node.get(key).map(Node::items).unwrap_or_default();
        items.iter().filter_map(|item| self.hook(context, key, item)).collect()
    }

    /// A step of `key`.
    pub(super) fn hook(&mut self, context: &Context<'_>, key: &str, item: &Node) -> Option<Hook> {
        let command = self.words(item.get("command"));
        let image = item.text("image").filter(|image| context.is_container() && !image.is_empty());
        // A step in an image of its own may leave the command to it.
        if command.is_empty() && image.is_none() {
            let message = format!("a step of `{key}` has no command");
            self.error(Code::MissingKey, &item.span, message, "give it a `command`");
            return None;
        }
        let working_dir = item.text("working_dir").filter(|path| !path.is_empty());
        Some(Hook {
            command,
            environment: self.environment(item.get("environment")),
            working_dir: working_dir.and_then(|path| self.directory(context, path)),
            user: item.text("user").filter(|user| !user.is_empty()).map(str::to_owned),
            per_replica: is_true(item.get("per_replica")),
            image: image.map(str::to_owned),
            privileged: context.is_container() && is_true(item.get("privileged")),
        })
    }

    pub(super) fn duration(&mut self, node: Option<&Node>) -> Option<Duration> {
        let node = node.filter(|node| !node.is_null())?;
        let nanos = self.take(duration_of(node))?;
        match u64::try_from(nanos) {
            Ok(nanos) => Some(Duration::from_nanos(nanos)),
            Err(_) => {
                self.error(
                    Code::InvalidValue,
                    &node.span,
                    "a duration cannot be negative",
                    "write for example `10s`",
                );
                None
            }
        }
    }
}

/// Whether a flag is set.
pub(super) fn is_true(node: Option<&Node>) -> bool {
    node.is_some_and(|node| match &node.value {
        Value::Bool(value) => *value,
        Value::String(text) => crate::interpolate::boolean(text) == Some(true),
        _ => false,
    })
}

/// The items of a list as strings.
pub(super) fn texts(node: Option<&Node>) -> Vec<String> {
    node.map(Node::items).unwrap_or_default().iter().filter_map(Node::display).collect()
}
