//! The names of services in the `/etc/hosts` of a container that was taken over.
//!
//! One that the platform makes has them from its start. This one asks the engine, whose answers lead past the load
//! balancer. The file is the engine's own, mounted into the container, so that it is written in place; what others have
//! in it stays as it is, at every moment.

use std::fs::OpenOptions;
use std::io::{self, Read as _};
use std::net::IpAddr;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;

use keel_model::InstanceId;
use keel_runtime::Error as RuntimeError;

use super::{Inner, blocking, refused};

/// First line of what is ours.
const BEGIN: &str = "# begin of keel's services";
/// Last line of it.
const END: &str = "# end of keel's services";
/// A file larger than this is not touched.
const MAX_FILE: u64 = 1 << 20;

/// Writes `hosts` for a running instance; false where it has no way to addresses outside of its networks.
pub(super) async fn tell(
    inner: &Inner,
    id: &InstanceId,
    hosts: &[(IpAddr, String)],
) -> Result<bool, RuntimeError> {
    let kept = inner.running(id)?;
    if kept.adopted.is_none() {
        return Ok(false);
    }
    let failed = |error| refused(id, "it can't be told names", &error);
    let client = inner.engine.client().await.map_err(failed)?;
    let seen = inner.inspect(&client, &kept.container).await.map_err(failed)?;
    let Some(path) = seen.hosts_path.filter(|path| Path::new(path).is_absolute()) else {
        return Ok(false);
    };
    let pid = kept.pid;
    let block = block(hosts);
    let what = format!("instance {id}: {path} can't be written");
    let written = blocking(move || -> io::Result<bool> {
        if !leads_out(&std::fs::read_to_string(format!("/proc/{pid}/net/route"))?) {
            return Ok(false);
        }
        write(Path::new(&path), &block).map(|()| true)
    });
    written.await.map_err(RuntimeError::system(what))
}

/// Whether a table of routes, as the kernel shows it, has one for every address.
fn leads_out(table: &str) -> bool {
    let mut routes = table.lines().skip(1).map(|line| line.split_ascii_whitespace());
    routes.any(|mut fields| fields.nth(1) == Some("00000000") && fields.nth(5) == Some("00000000"))
}

fn block(hosts: &[(IpAddr, String)]) -> String {
    let lines: String =
        hosts.iter().map(|(address, name)| format!("{address}\t{name}\n")).collect();
    if lines.is_empty() { lines } else { format!("{BEGIN}\n{lines}{END}\n") }
}

/// `text` with this block in the place of the one that it has, at its end.
fn with_block(text: &str, block: &str) -> String {
    let mut ours = false;
    let mut kept = String::new();
    for line in text.lines() {
        match line {
            BEGIN => ours = true,
            END if ours => ours = false,
            _ if ours => {}
            line => {
                kept.push_str(line);
                kept.push('\n');
            }
        }
    }
    // A block that never ends is not ours to cut off what follows.
    if ours {
        return format!("{text}{}{block}", if text.ends_with('\n') { "" } else { "\n" });
    }
    kept + block
}

/// Changes only what differs, from the first such byte on: who reads meanwhile finds all that is before.
fn write(path: &Path, block: &str) -> io::Result<()> {
    let mut options = OpenOptions::new();
    let mut file = options.read(true).write(true).custom_flags(libc::O_NOFOLLOW).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() || metadata.len() > MAX_FILE {
        return Err(io::Error::other("it is no file of names"));
    }
    let mut bytes = Vec::new();
    (&mut file).take(MAX_FILE).read_to_end(&mut bytes)?;
    let text = String::from_utf8(bytes).map_err(io::Error::other)?;
    let wanted = with_block(&text, block);
    if wanted == text {
        return Ok(());
    }
    let same = text.bytes().zip(wanted.bytes()).take_while(|(old, new)| old == new).count();
    file.write_all_at(&wanted.as_bytes()[same..], same as u64)?;
    file.set_len(wanted.len() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_block_is_replaced_and_the_rest_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hosts");
        std::fs::write(&path, "127.0.0.1\tlocalhost\n172.18.0.2\tabc").unwrap();
        let hosts = |names: &[&str]| {
            let entry = |name: &&str| (IpAddr::from([10, 77, 0, 2]), (*name).to_owned());
            block(&names.iter().map(entry).collect::<Vec<_>>())
        };
        let read = || std::fs::read_to_string(&path).unwrap();
        write(&path, &hosts(&["web", "api"])).unwrap();
        assert!(read().ends_with("abc\n# begin of keel's services\n10.77.0.2\tweb\n10.77.0.2\tapi\n# end of keel's services\n"));
        write(&path, &hosts(&["db"])).unwrap();
        assert_eq!(read().matches("10.77.0.2").count(), 1);
        assert!(read().starts_with("127.0.0.1\tlocalhost\n172.18.0.2\tabc\n# begin"));
        write(&path, &hosts(&[])).unwrap();
        assert_eq!(read(), "127.0.0.1\tlocalhost\n172.18.0.2\tabc\n");
    }

    #[test]
    fn a_block_without_an_end_costs_nobody_a_line() {
        let text = format!("{BEGIN}\n10.0.0.1\tx\n");
        assert!(with_block(&text, "new\n").starts_with(&text));
    }

    #[test]
    fn a_link_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (target, link) = (dir.path().join("target"), dir.path().join("link"));
        std::fs::write(&target, "kept\n").unwrap();
        std::os::unix::fs::symlink(&target, &link).unwrap();
        assert!(write(&link, "new\n").is_err());
        assert_eq!(std::fs::read_to_string(target).unwrap(), "kept\n");
    }

    #[test]
    fn a_network_without_a_way_out_is_told_from_others() {
        let head = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\n";
        let own = "eth0\t000012AC\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n";
        let out = "eth0\t00000000\t010012AC\t0003\t0\t0\t0\t00000000\t0\t0\t0\n";
        assert!(!leads_out(&format!("{head}{own}")));
        assert!(leads_out(&format!("{head}{out}{own}")));
    }
}
