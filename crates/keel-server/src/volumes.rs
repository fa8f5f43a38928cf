//! The volumes of a stack: deleted with it (`keel down -v`), or later when it has gone without them.

use std::collections::BTreeSet;

use keel_model::{Stack, StackName};
use keel_runtime::{Runtime, VolumeInfo};

use crate::error::Refusal;
use crate::world::World;

/// All that there are on this machine.
///
/// # Errors
/// When a runtime can't say.
pub async fn all(runtime: &dyn Runtime) -> Result<Vec<VolumeInfo>, Refusal> {
    runtime.volumes().await.map_err(|error| Refusal::new("runtime", error.to_string()))
}

/// Those among `all` that were made for a stack.
pub fn made_for(name: &StackName, all: &[VolumeInfo]) -> BTreeSet<String> {
    let ours = all.iter().filter(|volume| volume.stack.as_ref() == Some(name));
    ours.map(|volume| volume.name.clone()).collect()
}

/// Those that a definition asks for, and that are not somebody else's.
pub fn defined(stack: &Stack) -> BTreeSet<String> {
    let own = stack.volumes.values().filter(|volume| !volume.external);
    own.map(|volume| volume.name.clone()).collect()
}

/// Deletes volumes of a stack with their data; for each that stays, why. What is not there is no error.
pub async fn delete(
    runtime: &dyn Runtime,
    world: &World,
    stack: &StackName,
    names: BTreeSet<String>,
) -> Vec<String> {
    let mut stay = Vec::new();
    for name in names {
        let why = match other_user(world, stack, &name) {
            Some(other) => Some(format!("stack {other} uses it too")),
            None => runtime.remove_volume(&name).await.err().map(|error| error.to_string()),
        };
        stay.extend(why.map(|why| format!("volume {name} can't be deleted: {why}")));
    }
    stay
}

/// Another stack that mounts a volume of this name.
fn other_user<'a>(world: &'a World, stack: &StackName, volume: &str) -> Option<&'a StackName> {
    let names = |record: &Stack| record.volumes.values().any(|it| it.name == volume);
    let mut others = world.stacks.iter().filter(|(name, _)| *name != stack);
    let user = others
        .find(|(_, state)| state.record.as_ref().is_some_and(|record| names(&record.value.stack)));
    user.map(|(name, _)| name)
}
