//! What processes have sent and read, as the kernel counts it for them.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use crate::types::Transfer;

/// Bytes received and sent in the network namespace of a process; `None` if it is this process's own, in which it is not
/// known whose they were.
pub(crate) fn network(pid: u32) -> Option<Transfer> {
    let namespace = |pid: &str| fs::metadata(format!("/proc/{pid}/ns/net")).ok().map(|it| it.ino());
    let (own, its) = (namespace("self")?, namespace(&pid.to_string())?);
    if own == its {
        return None;
    }
    Some(interfaces(&fs::read_to_string(format!("/proc/{pid}/net/dev")).ok()?))
}

/// The sum over all interfaces but the loopback.
fn interfaces(text: &str) -> Transfer {
    let one = |line: &str| {
        let (name, counters) = line.split_once(':')?;
        let counters: Vec<u64> =
            counters.split_whitespace().map_while(|word| word.parse().ok()).collect();
        let (inward, outward) = (*counters.first()?, *counters.get(8)?);
        (name.trim() != "lo").then_some(Transfer { inward, outward })
    };
    text.lines().filter_map(one).sum()
}

/// Bytes that these processes had read from and written to disks; `None` if it may not be known of one. What has ended
/// is not counted any more.
pub(crate) fn block(members: &[i32]) -> Option<Transfer> {
    let one = |pid: &i32| {
        let text = fs::read_to_string(format!("/proc/{pid}/io")).ok()?;
        Some(counted(&text))
    };
    members.iter().map(one).collect::<Option<Vec<_>>>().map(|all| all.into_iter().sum())
}

fn counted(text: &str) -> Transfer {
    let field = |name: &str| {
        let lines = text.lines().filter_map(|line| line.split_once(": "));
        lines.into_iter().find(|(key, _)| *key == name)?.1.trim().parse().ok()
    };
    Transfer {
        inward: field("read_bytes").unwrap_or(0),
        outward: field("write_bytes").unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interfaces_are_summed_without_the_loopback() {
        let text = "Inter-|   Receive  |  Transmit\n face |bytes packets\n    lo: 9 1 0 0 0 0 0 0 9 1 0 0 0 0 0 0\n  \
                    eth0:100 2 0 0 0 0 0 0 200 3 0 0 0 0 0 0\n  eth1: 1 2 0 0 0 0 0 0 2 3 0 0 0 0 0 0\n";
        assert_eq!(interfaces(text), Transfer { inward: 101, outward: 202 });
        assert_eq!(network(std::process::id()), None, "it is shared with others");
    }

    #[test]
    fn what_a_process_read_and_wrote_is_known_to_itself() {
        let pid = i32::try_from(std::process::id()).unwrap();
        assert!(block(&[pid]).is_some());
        assert_eq!(block(&[pid, -1]), None);
        let text = "rchar: 5\nread_bytes: 4096\nwrite_bytes: 8192\ncancelled_write_bytes: 1\n";
        assert_eq!(counted(text), Transfer { inward: 4096, outward: 8192 });
    }
}
