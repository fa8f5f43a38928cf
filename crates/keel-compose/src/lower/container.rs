//! What concerns containers only, from the keys of a service.

use std::collections::BTreeMap;
use std::net::IpAddr;

use keel_model::{ContainerSpec, FromImage, HealthTimes, UdpPort};

use super::logs;
use super::spec::{is_true, texts};
use super::{Context, Lower};
use crate::diagnostic::Code;
use crate::loader::join;
use crate::value::{Node, Value};

/// What a security option with a file names its file by.
const SECCOMP: &str = "seccomp";

impl Lower<'_> {
    pub(super) fn container(
        &mut self,
        context: &Context<'_>,
        health: Option<HealthTimes>,
        publish_udp: Vec<UdpPort>,
    ) -> ContainerSpec {
        let node = context.node;
        let entrypoint = node.get("entrypoint").filter(|node| !node.is_null());
        let network = self.network(context);
        let variables = self.variables(node.get("environment"));
        let (log_driver, log_options) = logs::driver(context);
        ContainerSpec {
            image_id: None,
            entrypoint: entrypoint.map(|entrypoint| self.words(Some(entrypoint))),
            from_image: FromImage {
                health,
                stop_signal: text(node, "stop_signal").is_none(),
                ports: super::network::has_ports(&network),
            },
            unset: variables
                .into_iter()
                .filter(|(_, value)| value.is_none())
                .map(|(k, _)| k)
                .collect(),
            platform: self.platform(node),
            hostname: text(node, "hostname"),
            domainname: text(node, "domainname"),
            privileged: is_true(node.get("privileged")),
            read_only: is_true(node.get("read_only")),
            cap_add: texts(node.get("cap_add")),
            cap_drop: texts(node.get("cap_drop")),
            security_opt: self.security_options(context),
            sysctls: self.labels(node.get("sysctls")),
            annotations: self.labels(node.get("annotations")),
            shm_size: self.bytes(node.get("shm_size")),
            devices: Self::devices(node),
            device_cgroup_rules: texts(node.get("device_cgroup_rules")),
            device_requests: self.device_requests(node),
            network,
            links: texts(node.get("external_links")),
            volumes_from: containers_of(node),
            mac_address: text(node, "mac_address"),
            dns: self.name_servers(node.get("dns")),
            dns_opt: texts(node.get("dns_opt")),
            dns_search: one_or_more(node.get("dns_search")),
            ipc: self.namespace(context, "ipc"),
            pid: self.namespace(context, "pid"),
            uts: text(node, "uts"),
            userns: text(node, "userns_mode"),
            cgroup: text(node, "cgroup"),
            cgroup_parent: text(node, "cgroup_parent"),
            oci_runtime: text(node, "runtime"),
            storage_opt: storage_options(node),
            log_driver,
            log_options,
            resources: self.container_resources(node),
            publish_udp,
        }
    }

    /// A namespace that may be that of another service.
    fn namespace(&mut self, context: &Context<'_>, key: &str) -> Option<String> {
        let mode = text(context.node, key)?;
        if let (Some(service), Some(node)) = (mode.strip_prefix("service:"), context.node.get(key))
        {
            self.shares_with(context, key, node, service);
        }
        Some(mode)
    }

    fn name_servers(&mut self, node: Option<&Node>) -> Vec<IpAddr> {
        let mut servers = Vec::new();
        for item in node.map(Node::items).unwrap_or_default() {
            let text = item.display().unwrap_or_default();
            match text.parse() {
                Ok(server) => servers.push(server),
                Err(_) => {
                    let message = format!("the name server `{text}` must be an IP address");
                    let help = "write for example 192.0.2.53";
                    self.error(Code::InvalidValue, &item.span, message, help);
                }
            }
        }
        servers
    }

    /// As Docker's command line reads them: the file of a seccomp profile is replaced by its content.
    fn security_options(&mut self, context: &Context<'_>) -> Vec<String> {
        let items = context.node.get("security_opt").map(Node::items).unwrap_or_default();
        items.iter().filter_map(|item| self.security_option(item)).collect()
    }

    fn security_option(&mut self, item: &Node) -> Option<String> {
        let text = item.display().unwrap_or_default();
        let Some((key, value)) = text.split_once('=').or_else(|| text.split_once(':')) else {
            if text == "no-new-privileges" {
                return Some(text);
            }
            let message = format!("`{text}` is not a security option");
            let help = "write for example no-new-privileges:true or seccomp=profile.json";
            self.error(Code::InvalidValue, &item.span, message, help);
            return None;
        };
        if key != SECCOMP || matches!(value, "unconfined" | "builtin") {
            return Some(format!("{key}={value}"));
        }
        let path = join(&self.project.directory, value);
        let bytes = match self.source.read(&path) {
            Ok(bytes) => bytes,
            Err(error) => {
                let message =
                    format!("cannot read the seccomp profile {}: {error}", path.display());
                let help = "create the file, or correct its path";
                self.error(Code::File, &item.span, message, help);
                return None;
            }
        };
        match serde_json::from_slice::<serde_json::Value>(&bytes) {
            Ok(profile) => Some(format!("{SECCOMP}={profile}")),
            Err(error) => {
                let message =
                    format!("the seccomp profile {} is not JSON: {error}", path.display());
                self.error(Code::InvalidValue, &item.span, message, "correct the file");
                None
            }
        }
    }
}

/// A text that says something.
pub(super) fn text(node: &Node, key: &str) -> Option<String> {
    node.text(key).filter(|text| !text.is_empty()).map(str::to_owned)
}

/// A string, or the items of a list.
pub(super) fn one_or_more(node: Option<&Node>) -> Vec<String> {
    let items = node.map(|node| node.as_seq().unwrap_or(std::slice::from_ref(node)));
    let texts = items.unwrap_or_default().iter().filter(|item| !item.is_null());
    texts.filter_map(Node::display).filter(|text| !text.is_empty()).collect()
}

/// `volumes_from` of containers that the platform did not start.
fn containers_of(node: &Node) -> Vec<String> {
    let texts = texts(node.get("volumes_from"));
    texts.iter().filter_map(|text| Some(text.strip_prefix("container:")?.to_owned())).collect()
}

fn storage_options(node: &Node) -> BTreeMap<String, String> {
    let options = node.get("storage_opt").into_iter().flat_map(Node::entries);
    let options = options.filter(|(_, value)| !matches!(value.value, Value::Null));
    options.filter_map(|(key, value)| Some((key.to_owned(), value.display()?))).collect()
}
