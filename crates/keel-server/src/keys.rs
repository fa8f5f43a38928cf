//! Where each record lies in the store. The only place that spells a key.
//!
//! ```text
//! meta/network                                   the network of virtual addresses
//! meta/detours                                   there may be rules of ours in the machine's packet filter
//! meta/lacks                                     what people were told that the engine lacks
//! stacks/<stack>/record                          StackRecord: what the user wants
//! stacks/<stack>/history/<generation>            StackRecord: what the user wanted
//! stacks/<stack>/services/<service>/address      ServiceAddress
//! stacks/<stack>/services/<service>/serial       next serial
//! stacks/<stack>/services/<service>/detours      host ports that an engine holds for it → where the proxy listens
//! stacks/<stack>/services/<service>/rollout      Rollout
//! stacks/<stack>/services/<service>/revisions/<revision>   Service
//! stacks/<stack>/services/<service>/prepared/<revision>    its `pre_start` steps ran
//! stacks/<stack>/instances/<instance>/assignment Assignment
//! status/<instance>                              InstanceStatus, written by its node
//! events/<seq>                                   Event
//! certificates/<hash>                            the last good certificate of a pair of files
//! images/<hash>                                  when an image was pulled that is pulled every so often
//! kept/<stack>/<service>                         names of ours were given to images of this service
//! digests/<image>                                what registries call an image that a service runs
//! acme/…                                         accounts, orders, certificates (see `keel_acme`)
//! ```

use keel_model::{Generation, InstanceId, RevisionId, ServiceName, StackName};
use sha2::{Digest as _, Sha256};

/// Everything that is wanted.
pub const STACKS: &str = "stacks/";
/// What nodes report.
pub const STATUS: &str = "status/";
/// What happened.
pub const EVENTS: &str = "events/";
/// The last good certificates from files.
pub const CERTIFICATES: &str = "certificates/";
/// What is kept about certificates from authorities; the keys below it are `keel_acme`'s.
pub const ACME: &str = "acme/";
/// The network of virtual addresses.
pub const NETWORK: &str = "meta/network";
/// What people were told that the engine in the place of our proxy lacks.
pub const LACKS: &str = "meta/lacks";

/// There may be rules of ours in the machine's packet filter.
pub const DETOURS: &str = "meta/detours";

/// When the image of this name was pulled.
pub fn pulled(reference: &str) -> String {
    let digest = Sha256::digest(reference);
    let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("images/{hex}")
}

/// Services whose images have names of ours.
pub const KEPT: &str = "kept/";
/// What registries call images.
pub const DIGESTS: &str = "digests/";

/// That images of this service have names of ours.
pub fn kept(stack: &StackName, service: &ServiceName) -> String {
    format!("{KEPT}{stack}/{service}")
}

/// What registries call the image with this id (`sha256:…`).
pub fn digests(image: &str) -> String {
    format!("{DIGESTS}{image}")
}

/// Everything of one stack.
pub fn stack(stack: &StackName) -> String {
    format!("{STACKS}{stack}/")
}

/// What the user wants.
pub fn record(stack: &StackName) -> String {
    format!("{STACKS}{stack}/record")
}

/// What the user wanted.
pub fn history(stack: &StackName, generation: Generation) -> String {
    format!("{STACKS}{stack}/history/{:020}", generation.0)
}

fn service(stack: &StackName, service: &ServiceName, leaf: &str) -> String {
    format!("{STACKS}{stack}/services/{service}/{leaf}")
}

/// The virtual address.
pub fn address(stack: &StackName, name: &ServiceName) -> String {
    service(stack, name, "address")
}

/// The next serial.
pub fn serial(stack: &StackName, name: &ServiceName) -> String {
    service(stack, name, "serial")
}

/// Host ports that an engine holds for it, and where the proxy listens in their place.
pub fn detours(stack: &StackName, name: &ServiceName) -> String {
    service(stack, name, "detours")
}

/// The last rollout.
pub fn rollout(stack: &StackName, name: &ServiceName) -> String {
    service(stack, name, "rollout")
}

/// The definition of one revision.
pub fn revision(stack: &StackName, name: &ServiceName, revision: &RevisionId) -> String {
    service(stack, name, &format!("revisions/{revision}"))
}

/// That the `pre_start` steps of a revision ran.
pub fn prepared(stack: &StackName, name: &ServiceName, revision: &RevisionId) -> String {
    service(stack, name, &format!("prepared/{revision}"))
}

/// What the leader says of an instance.
pub fn assignment(stack: &StackName, instance: &InstanceId) -> String {
    format!("{STACKS}{stack}/instances/{instance}/assignment")
}

/// What its node says of an instance.
pub fn status(instance: &InstanceId) -> String {
    format!("{STATUS}{instance}")
}

/// One event.
pub fn event(seq: u64) -> String {
    format!("{EVENTS}{seq:020}")
}
