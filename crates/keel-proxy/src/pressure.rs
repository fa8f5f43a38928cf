//! How much memory the proxy uses of what it may use: work is refused in order before it is all gone.
//!
//! The bound is that of the proxy's control group (version 2 or 1), or what the machine has. What is used is what is
//! resident: the allocator gives pages back within a second or so, so that it falls when the load does.

use std::fs;
use std::path::Path;
use std::sync::atomic::Ordering::Relaxed;

use keel_route::shed::{Pressure, Shed};

use crate::shared::Shared;

/// Files that bound a control group seen from inside it.
const BOUNDS: [&str; 2] =
    ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];

/// Looks at memory and says what is refused.
#[derive(Debug)]
pub struct Watch {
    limit: Option<u64>,
    state: Shed,
}

impl Watch {
    pub fn new() -> Self {
        let machine = total();
        let bounds = BOUNDS.iter().filter_map(|path| number(Path::new(path)));
        // An unbounded group of version 1 says a number beyond all memory.
        let limit = bounds.chain(machine).min();
        Self { limit, state: Shed::No }
    }

    /// Looks again.
    pub fn look(&mut self, shared: &Shared) {
        let pressure = Pressure {
            memory_used: resident().unwrap_or(0),
            memory_limit: self.limit,
            connections: shared.connections.load(Relaxed),
            max_connections: shared.max_connections.saturating_mul(shared.workers),
        };
        let next = self.state.next(&pressure);
        if std::mem::discriminant(&next) != std::mem::discriminant(&self.state) {
            tracing::warn!(?next, ?pressure, "what is refused for want of memory has changed");
        }
        self.state = next;
        shared.set_shed(next);
    }
}

fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// What the machine has, in bytes.
fn total() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("MemTotal:"))?;
    let kib: u64 = line.split_ascii_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}

/// What of us is in memory, in bytes.
fn resident() -> Option<u64> {
    let text = fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = text.split_ascii_whitespace().nth(1)?.parse().ok()?;
    Some(pages * u64::try_from(rustix::param::page_size()).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_known() {
        let (resident, total) = (resident().unwrap(), total().unwrap());
        assert!(resident > 100_000 && resident < total, "{resident} {total}");
        assert!(Watch::new().limit.is_some_and(|limit| limit <= total));
    }
}
