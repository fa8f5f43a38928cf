//! Volumes, binds and memory file systems of a service.

use std::path::PathBuf;

use keel_model::{Mount, MountOptions, MountSource, RuntimeKind};

use super::container::text;
use super::spec::is_true;
use super::{Context, Lower};
use crate::diagnostic::Code;
use crate::loader::join;
use crate::number::parse_size;
use crate::print::{file_mode, file_mode_text};
use crate::value::Node;

/// Where containers find the socket of the engine, and where it is on the host.
const API_SOCKET: &str = "/var/run/docker.sock";

/// Options of memory file systems that container engines take, besides `size` and `mode`.
const TMPFS_FLAGS: [&str; 18] = [
    "suid",
    "nosuid",
    "dev",
    "nodev",
    "exec",
    "noexec",
    "sync",
    "async",
    "dirsync",
    "atime",
    "noatime",
    "diratime",
    "nodiratime",
    "relatime",
    "norelatime",
    "strictatime",
    "nostrictatime",
    "defaults",
];

/// Those with a value.
const TMPFS_VALUES: [&str; 5] = ["uid", "gid", "nr_inodes", "nr_blocks", "mpol"];

impl Lower<'_> {
    pub(super) fn mounts(&mut self, context: &Context<'_>) -> Vec<Mount> {
        let mut mounts = self.own_mounts(context, context.node);
        if is_true(context.node.get("use_api_socket")) && context.is_container() {
            mounts.push(api_socket());
        }
        for item in context.node.get("volumes_from").map(Node::items).unwrap_or_default() {
            let text = item.as_str().unwrap_or_default();
            if text.starts_with("container:") {
                continue;
            }
            let (service, mode) = text.split_once(':').unwrap_or((text, "rw"));
            let Some(node) = self.project.service(service) else {
                let message = format!("`volumes_from` names the unknown service `{service}`");
                self.error(
                    Code::UndefinedReference,
                    &item.span,
                    message,
                    "name a service of this file",
                );
                continue;
            };
            for mut mount in self.own_mounts(context, node) {
                mount.read_only |= mode == "ro";
                if context.is_container() && mount.source == MountSource::Anonymous {
                    let target = mount.target.display();
                    let message = format!(
                        "the volume {target} of `{service}` has no name and is not shared; give it one"
                    );
                    self.warn(&item.span, message);
                    continue;
                }
                if !mounts.iter().any(|own| own.target == mount.target) {
                    mounts.push(mount);
                }
            }
        }
        mounts
    }

    /// What a service mounts itself, for it or for another that takes its volumes.
    fn own_mounts(&mut self, context: &Context<'_>, service: &Node) -> Vec<Mount> {
        let mut mounts = Vec::new();
        for item in service.get("volumes").map(Node::items).unwrap_or_default() {
            if let Some(source) = self.mount_source(context, item) {
                let target = item.text("target").unwrap_or_default();
                let target = self.target(target);
                let read_only = is_true(item.get("read_only"));
                let options = match context.runtime {
                    RuntimeKind::Process => None,
                    RuntimeKind::Container => self.mount_options(item),
                };
                mounts.push(Mount { source, target, read_only, options });
            }
        }
        let tmpfs = service.get("tmpfs");
        let items = tmpfs.map(|node| node.as_seq().unwrap_or(std::slice::from_ref(node)));
        for item in items.unwrap_or_default() {
            mounts.extend(self.tmpfs(context, item));
        }
        mounts
    }

    fn mount_options(&mut self, item: &Node) -> Option<Box<MountOptions>> {
        let bind = item.get("bind");
        let of_bind = |key: &str| bind.and_then(|bind| text(bind, key));
        let options = MountOptions {
            no_copy: is_true(item.at(&["volume", "nocopy"])),
            propagation: of_bind("propagation"),
            selinux: of_bind("selinux"),
            recursive: of_bind("recursive"),
            tmpfs: Vec::new(),
            labels: self.labels(item.at(&["volume", "labels"])),
        };
        (options != MountOptions::default()).then(|| Box::new(options))
    }

    /// Targets are absolute; a relative one is below the root, as container engines have it.
    fn target(&self, text: &str) -> PathBuf {
        join(std::path::Path::new("/"), text)
    }

    fn mount_source(&mut self, context: &Context<'_>, item: &Node) -> Option<MountSource> {
        let source = item.text("source").unwrap_or_default();
        match item.text("type").unwrap_or("volume") {
            "volume" if source.is_empty() => Some(MountSource::Anonymous),
            "volume" => {
                let name = self
                    .project
                    .model
                    .at(&["volumes", source])
                    .and_then(|volume| volume.text("name"));
                let subpath = item.get("volume").and_then(|options| options.text("subpath"));
                Some(MountSource::Volume {
                    name: name.unwrap_or(source).to_owned(),
                    subpath: subpath.filter(|path| !path.is_empty()).map(PathBuf::from),
                })
            }
            "bind" => {
                let create = item.at(&["bind", "create_host_path"]);
                let path = join(&self.project.directory, source);
                // Where the long form does not say it, Docker Compose creates it.
                let unsaid = create.is_none() && context.is_container();
                Some(MountSource::Bind { path, create: unsaid || is_true(create) })
            }
            "tmpfs" => {
                let size = item.at(&["tmpfs", "size"]);
                let mode = item.at(&["tmpfs", "mode"]);
                let size = self.bytes(size);
                let mode = mode.and_then(|mode| self.take(file_mode(mode)));
                Some(MountSource::Tmpfs {
                    size,
                    mode: mode.and_then(|mode| u32::try_from(mode).ok()),
                })
            }
            "image" if context.is_container() => self.image_source(item, source),
            other => {
                let message = if context.is_container() {
                    format!("mounts of the type `{other}` do not work here")
                } else {
                    format!("mounts of the type `{other}` do not work for host processes")
                };
                self.error(
                    Code::Unsupported,
                    &item.span,
                    message,
                    "use the type `bind`, `volume` or `tmpfs`",
                );
                None
            }
        }
    }

    fn image_source(&mut self, item: &Node, source: &str) -> Option<MountSource> {
        if source.is_empty() {
            let message = "a mount of an image needs a `source`";
            self.error(Code::MissingKey, &item.span, message, "name the image");
            return None;
        }
        let subpath = item.get("image").and_then(|options| text(options, "subpath"));
        Some(MountSource::Image { name: source.to_owned(), subpath: subpath.map(PathBuf::from) })
    }

    /// `TARGET[:OPTIONS]` of the key `tmpfs`.
    fn tmpfs(&mut self, context: &Context<'_>, item: &Node) -> Option<Mount> {
        let text = item.as_str()?;
        let (target, options) = text.split_once(':').unwrap_or((text, ""));
        let (mut size, mut mode, mut read_only) = (None, None, false);
        let mut further = Vec::new();
        for option in options.split(',').filter(|option| !option.is_empty()) {
            let (key, value) = option.split_once('=').unwrap_or((option, ""));
            let understood = match key {
                "size" => {
                    size = parse_size(value).ok().and_then(|size| u64::try_from(size).ok());
                    size.is_some()
                }
                "mode" => {
                    mode = file_mode_text(value).and_then(|mode| u32::try_from(mode).ok());
                    mode.is_some()
                }
                "ro" => {
                    read_only = true;
                    true
                }
                "rw" => true,
                _ if context.is_container() => {
                    further.push(option.to_owned());
                    TMPFS_FLAGS.contains(&option)
                        || (TMPFS_VALUES.contains(&key) && !value.is_empty())
                }
                _ => {
                    self.warn(&item.span, format!("the tmpfs option `{option}` has no effect"));
                    true
                }
            };
            if !understood {
                let message = format!("`{option}` is not a tmpfs option");
                self.error(
                    Code::InvalidValue,
                    &item.span,
                    message,
                    "write for example /run:size=64m,mode=1777",
                );
            }
        }
        Some(Mount {
            source: MountSource::Tmpfs { size, mode },
            target: self.target(target),
            read_only,
            options: (!further.is_empty())
                .then(|| Box::new(MountOptions { tmpfs: further, ..MountOptions::default() })),
        })
    }
}

/// The engine's socket, for a container that drives the engine itself.
fn api_socket() -> Mount {
    Mount {
        source: MountSource::Bind { path: API_SOCKET.into(), create: false },
        target: API_SOCKET.into(),
        read_only: false,
        options: None,
    }
}
