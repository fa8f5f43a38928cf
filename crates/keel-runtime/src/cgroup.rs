//! Control groups of version 1, version 2, and both side by side: limits, accounts, and the certain kill.
//!
//! An instance gets `keel/<tag>/<instance>` beneath each hierarchy that it needs: the unified one always (its
//! `cgroup.kill` ends everything at once), those of version 1 for the controllers that only they have. What can't
//! be had is said in words, never silently dropped. Files are only written beneath our own directories, except
//! for `cgroup.subtree_control` of the unified root.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use keel_model::Limits;
use serde::{Deserialize, Serialize};

use crate::types::Transfer;

/// The scheduling period against which CPU quotas are counted (the kernel's default).
const PERIOD_US: u64 = 100_000;
/// The smallest quota that the kernel takes.
const MIN_QUOTA_US: u64 = 1_000;
/// How long an empty group may take to become removable after its processes were killed.
const REMOVE_WAIT: Duration = Duration::from_secs(2);
/// Rounds of killing a version-1 group whose processes go on forking.
const KILL_ROUNDS: usize = 50;
/// The v1 hierarchy that counts CPU time.
const CPU_ACCOUNT: &str = "cpuacct";
/// The name of the unified hierarchy among a group's directories.
const UNIFIED: &str = "unified";

/// What is mounted on this machine.
#[derive(Clone, Debug, Default)]
pub(crate) struct Hierarchies {
    unified: Option<PathBuf>,
    unified_controllers: BTreeSet<String>,
    v1: BTreeMap<String, PathBuf>,
}

impl Hierarchies {
    /// Reads what this process sees.
    pub(crate) fn detect() -> Self {
        Self::from_mountinfo(&fs::read_to_string("/proc/self/mountinfo").unwrap_or_default())
    }

    fn from_mountinfo(text: &str) -> Self {
        let mut found = Self::default();
        for line in text.lines() {
            let Some((before, after)) = line.split_once(" - ") else { continue };
            let Some(target) = before.split(' ').nth(4) else { continue };
            let mut after = after.split(' ');
            let kind = after.next().unwrap_or("");
            let options = after.nth(1).unwrap_or("");
            match kind {
                "cgroup2" if found.unified.is_none() => {
                    let path = PathBuf::from(target);
                    let list =
                        fs::read_to_string(path.join("cgroup.controllers")).unwrap_or_default();
                    found.unified_controllers = list.split_whitespace().map(Into::into).collect();
                    found.unified = Some(path);
                }
                "cgroup" => {
                    for option in options.split(',') {
                        if let "blkio" | "cpu" | "cpuacct" | "cpuset" | "memory" | "pids"
                        | "name=systemd" = option
                        {
                            found.v1.entry(option.to_owned()).or_insert_with(|| target.into());
                        }
                    }
                }
                _ => {}
            }
        }
        found
    }

    /// How `controller` can be used: its directory name among a group's and its mount point.
    fn controller(&self, controller: &str) -> Option<(&str, &Path)> {
        if let Some(unified) = &self.unified
            && self.unified_controllers.contains(controller)
        {
            return Some((UNIFIED, unified));
        }
        self.v1.get_key_value(controller).map(|(name, path)| (name.as_str(), path.as_path()))
    }
}

/// The place beneath which the groups of one runtime are.
#[derive(Clone, Debug)]
pub(crate) struct Slice {
    hierarchies: Hierarchies,
    base: PathBuf,
}

/// The directories of one instance, by hierarchy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Group {
    dirs: BTreeMap<String, PathBuf>,
}

impl Slice {
    /// The slice named `tag` (different for each state directory).
    pub(crate) fn new(hierarchies: Hierarchies, tag: &str) -> Self {
        Self { hierarchies, base: Path::new("keel").join(tag) }
    }

    /// Whether limits can be enforced, by trying.
    pub(crate) fn check(&self) -> Result<String, String> {
        let wanted = ["cpu", "memory", "pids"];
        let missing: Vec<&str> =
            wanted.into_iter().filter(|c| self.hierarchies.controller(c).is_none()).collect();
        if !missing.is_empty() {
            return Err(format!("this kernel offers no {} cgroup controller", missing.join(", ")));
        }
        let limits = Limits {
            cpu_milli: Some(1000),
            memory: Some(1 << 30),
            pids: Some(100),
            ..Limits::default()
        };
        let (group, problems) = self.create("probe", &limits);
        let result = match (group.dirs.is_empty(), problems.first()) {
            (false, None) => Ok(format!("cgroups at {}", self.describe())),
            (_, Some(problem)) => Err(problem.clone()),
            (true, None) => Err("no cgroup hierarchy is mounted".to_owned()),
        };
        let _ = group.remove();
        result
    }

    fn describe(&self) -> String {
        let v1: Vec<&str> = self.hierarchies.v1.keys().map(String::as_str).collect();
        match &self.hierarchies.unified {
            Some(path) if v1.is_empty() => format!("{} (v2)", path.display()),
            Some(path) => format!("{} (v2) and v1 for {}", path.display(), v1.join(", ")),
            None => format!("v1 for {}", v1.join(", ")),
        }
    }

    /// Makes the group `name` with `limits`. The texts say what is not enforced, and why.
    pub(crate) fn create(&self, name: &str, limits: &Limits) -> (Group, Vec<String>) {
        let mut group = Group::default();
        let mut problems = Vec::new();
        let mut failed = BTreeSet::new();
        // A version-1 hierarchy is joined only where something is to be limited: moving a process there makes the
        // kernel wait for every CPU, some 10 ms per start, while a process can be born into the unified one.
        let mut wanted = Vec::new();
        for (controller, limited) in [
            ("cpu", limits.cpu_milli.is_some() || limits.cpu_shares.is_some()),
            ("cpuset", limits.cpuset.is_some()),
            ("memory", limits.memory.is_some()),
            ("pids", limits.pids.is_some()),
            // Where systemd keeps its units in a hierarchy of version 1, leaving it there means being killed with the
            // server's unit.
            ("name=systemd", Path::new("/run/systemd/system").exists()),
        ] {
            if limited {
                wanted.push(controller);
            }
        }
        let unified = self.hierarchies.unified.as_deref().map(|path| (UNIFIED, path));
        let places = wanted.iter().filter_map(|c| self.hierarchies.controller(c)).chain(unified);
        for (key, mount) in places {
            if group.dirs.contains_key(key) || failed.contains(key) {
                continue;
            }
            match self.make(key, mount, name) {
                Ok(dir) => {
                    group.dirs.insert(key.to_owned(), dir);
                }
                Err(error) => {
                    failed.insert(key);
                    problems.push(format!(
                        "no {key} cgroup at {}: {error}",
                        mount.join(&self.base).display()
                    ));
                }
            }
        }
        // Said once, by what can't be limited rather than by where.
        let limits_missed = group.limit(limits);
        if limits_missed.is_empty() || !group.dirs.is_empty() {
            return (group, limits_missed);
        }
        problems.extend(limits_missed);
        (group, problems)
    }

    /// Makes the group that the shims themselves live in, so that nothing that happens to the server's group
    /// (a stopped systemd unit, its memory limit) ends them.
    pub(crate) fn create_for_shims(&self) -> Group {
        self.create("shims", &Limits::default()).0
    }

    fn make(&self, key: &str, mount: &Path, name: &str) -> io::Result<PathBuf> {
        let mut dir = mount.to_owned();
        for part in
            self.base.components().map(|c| PathBuf::from(c.as_os_str())).chain([name.into()])
        {
            if key == UNIFIED {
                for controller in ["cpu", "memory", "pids", "cpuset"] {
                    if self.hierarchies.unified_controllers.contains(controller) {
                        let file = dir.join("cgroup.subtree_control");
                        let _ = fs::write(file, format!("+{controller}"));
                    }
                }
            }
            let parent = dir.clone();
            dir.push(part);
            match fs::create_dir(&dir) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
            if key == "cpuset" {
                // A version-1 cpuset begins empty and takes no process until it has both.
                for file in ["cpuset.cpus", "cpuset.mems"] {
                    fs::write(dir.join(file), fs::read(parent.join(file))?)?;
                }
            }
        }
        Ok(dir)
    }
}

impl Group {
    /// The files that a process writes `0` to, to join.
    pub(crate) fn procs_files(&self) -> Vec<PathBuf> {
        self.dirs.values().map(|dir| dir.join("cgroup.procs")).collect()
    }

    /// The same without the unified hierarchy, for a process that was born into that.
    pub(crate) fn procs_files_v1(&self) -> Vec<PathBuf> {
        let v1 = self.dirs.iter().filter(|(key, _)| *key != UNIFIED);
        v1.map(|(_, dir)| dir.join("cgroup.procs")).collect()
    }

    /// The directory in the unified hierarchy, into which a process can be born.
    pub(crate) fn unified(&self) -> Option<&Path> {
        self.dirs.get(UNIFIED).map(PathBuf::as_path)
    }

    /// The kernel's number for the group in the unified hierarchy: the inode of its directory.
    pub(crate) fn id(&self) -> Option<u64> {
        fs::metadata(self.unified()?).ok().map(|metadata| metadata.ino())
    }

    fn limit(&self, limits: &Limits) -> Vec<String> {
        let mut problems = Vec::new();
        let mut set = |what: &str, candidates: &[(&str, &str, String)]| {
            let mut reason = "the cgroup controller is not available".to_owned();
            for (key, file, value) in candidates {
                let Some(dir) = self.dirs.get(*key) else { continue };
                let path = dir.join(file);
                if !path.exists() {
                    continue;
                }
                match fs::write(&path, value) {
                    Ok(()) => return,
                    Err(error) => reason = format!("{}: {error}", path.display()),
                }
            }
            problems.push(format!("{what} is not enforced: {reason}"));
        };
        if let Some(milli) = limits.cpu_milli {
            let quota = (milli * PERIOD_US / 1000).max(MIN_QUOTA_US);
            let v2 = (UNIFIED, "cpu.max", format!("{quota} {PERIOD_US}"));
            set("the CPU limit", &[v2, ("cpu", "cpu.cfs_quota_us", quota.to_string())]);
        }
        if let Some(shares) = limits.cpu_shares {
            let shares = shares.clamp(2, 262_144);
            // The mapping that container runtimes use between the two scales.
            let weight = 1 + (shares - 2) * 9_999 / 262_142;
            let v2 = (UNIFIED, "cpu.weight", weight.to_string());
            set("the CPU weight", &[v2, ("cpu", "cpu.shares", shares.to_string())]);
        }
        if let Some(cpus) = &limits.cpuset {
            let v2 = (UNIFIED, "cpuset.cpus", cpus.clone());
            set("the CPU set", &[v2, ("cpuset", "cpuset.cpus", cpus.clone())]);
        }
        if let Some(memory) = limits.memory {
            let value = memory.to_string();
            let v1 = ("memory", "memory.limit_in_bytes", value.clone());
            set("the memory limit", &[(UNIFIED, "memory.max", value), v1]);
        }
        if let (Some(memory), Some(total)) = (limits.memory, limits.memory_swap) {
            let total = total.max(memory);
            let v2 = (UNIFIED, "memory.swap.max", (total - memory).to_string());
            set(
                "the swap limit",
                &[v2, ("memory", "memory.memsw.limit_in_bytes", total.to_string())],
            );
        }
        if let Some(pids) = limits.pids {
            let value = pids.to_string();
            let v1 = ("pids", "pids.max", value.clone());
            set("the limit on processes", &[(UNIFIED, "pids.max", value), v1]);
        }
        problems
    }

    /// Those that a process is in, as far as they are mounted here.
    pub(crate) fn of_process(pid: u32) -> Option<Self> {
        let hierarchies = Hierarchies::detect();
        let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        let mut dirs = BTreeMap::new();
        for line in text.lines() {
            let mut fields = line.splitn(3, ':').skip(1);
            let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
            let path = path.trim_start_matches('/');
            // The root counts what the whole machine does.
            if path.is_empty() {
                continue;
            }
            match (&hierarchies.unified, controllers) {
                (Some(mount), "") => {
                    dirs.insert(UNIFIED.to_owned(), mount.join(path));
                }
                _ => {
                    for controller in controllers.split(',') {
                        if let Some(mount) = hierarchies.v1.get(controller) {
                            dirs.insert(controller.to_owned(), mount.join(path));
                        }
                    }
                }
            }
        }
        (!dirs.is_empty()).then_some(Self { dirs })
    }

    /// How many processes of the group the kernel killed for want of memory.
    pub(crate) fn oom_kills(&self) -> u64 {
        let v2 = self.field(UNIFIED, "memory.events", "oom_kill");
        v2.or_else(|| self.field("memory", "memory.oom_control", "oom_kill")).unwrap_or(0)
    }

    /// CPU time in microseconds. The unified hierarchy counts it whether or not it has the controller.
    pub(crate) fn cpu_usec(&self) -> Option<u64> {
        let nanos = || self.number(CPU_ACCOUNT, "cpuacct.usage").map(|nanos| nanos / 1000);
        self.field(UNIFIED, "cpu.stat", "usage_usec").or_else(nanos)
    }

    /// Memory in bytes, without files that are held and were not used lately: the kernel gives them up when others want
    /// memory. So `docker stats` counts.
    pub(crate) fn memory_bytes(&self) -> Option<u64> {
        let (used, idle) = match self.number(UNIFIED, "memory.current") {
            Some(used) => (used, self.field(UNIFIED, "memory.stat", "inactive_file")),
            None => (
                self.number("memory", "memory.usage_in_bytes")?,
                self.field("memory", "memory.stat", "total_inactive_file"),
            ),
        };
        Some(used.checked_sub(idle.unwrap_or(0)).unwrap_or(used))
    }

    /// Bytes read from and written to disks.
    pub(crate) fn block(&self) -> Option<Transfer> {
        let text = |key: &str, file: &str| fs::read_to_string(self.dirs.get(key)?.join(file)).ok();
        if let Some(text) = text(UNIFIED, "io.stat") {
            return Some(io_stat(&text));
        }
        let files =
            ["blkio.throttle.io_service_bytes_recursive", "blkio.throttle.io_service_bytes"];
        files.iter().find_map(|file| text("blkio", file)).map(|text| service_bytes(&text))
    }

    /// Processes and threads.
    pub(crate) fn pids(&self) -> Option<u64> {
        self.number(UNIFIED, "pids.current").or_else(|| self.number("pids", "pids.current"))
    }

    fn number(&self, key: &str, file: &str) -> Option<u64> {
        fs::read_to_string(self.dirs.get(key)?.join(file)).ok()?.trim().parse().ok()
    }

    fn field(&self, key: &str, file: &str, name: &str) -> Option<u64> {
        let text = fs::read_to_string(self.dirs.get(key)?.join(file)).ok()?;
        text.lines()
            .filter_map(|line| line.split_once(' '))
            .find(|(field, _)| *field == name)
            .and_then(|(_, value)| value.trim().parse().ok())
    }

    /// The processes in it.
    pub(crate) fn members(&self) -> Vec<i32> {
        let mut pids = Vec::new();
        for file in self.procs_files() {
            let text = fs::read_to_string(file).unwrap_or_default();
            pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
        }
        pids.retain(|pid| *pid > 0);
        pids.sort_unstable();
        pids.dedup();
        pids
    }

    /// Kills everything in the group. Returns once nothing is left or nothing more can be done.
    pub(crate) fn kill(&self) {
        if let Some(dir) = self.dirs.get(UNIFIED) {
            // Atomic against forks. Needs Linux 5.14; the loop below is for older ones and for version 1.
            let _ = fs::write(dir.join("cgroup.kill"), "1");
        }
        for _ in 0..KILL_ROUNDS {
            let members = self.members();
            if members.is_empty() {
                return;
            }
            for pid in members {
                let _ = crate::sys::kill(pid, libc::SIGKILL);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Deletes the directories; waits a little for processes that are being killed to be gone.
    pub(crate) fn remove(&self) -> io::Result<()> {
        let deadline = Instant::now() + REMOVE_WAIT;
        for dir in self.dirs.values() {
            loop {
                match fs::remove_dir(dir) {
                    Ok(()) => break,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                    Err(error) if Instant::now() >= deadline => return Err(error),
                    Err(_) => std::thread::sleep(Duration::from_millis(2)),
                }
            }
        }
        Ok(())
    }
}

/// `8:0 rbytes=4096 wbytes=0 rios=1 wios=0 …`
fn io_stat(text: &str) -> Transfer {
    let one = |line: &str| {
        let field = |name: &str| {
            let fields = line.split_whitespace().filter_map(|field| field.split_once('='));
            fields.into_iter().find(|(key, _)| *key == name)?.1.parse().ok()
        };
        Transfer { inward: field("rbytes").unwrap_or(0), outward: field("wbytes").unwrap_or(0) }
    };
    text.lines().map(one).sum()
}

/// `8:0 Read 4096`, a line for each device and direction.
fn service_bytes(text: &str) -> Transfer {
    let one = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [_, direction, bytes] = words[..] else { return Transfer::default() };
        let bytes = bytes.parse().unwrap_or(0);
        match direction {
            "Read" => Transfer { inward: bytes, outward: 0 },
            "Write" => Transfer { inward: 0, outward: bytes },
            _ => Transfer::default(),
        }
    };
    text.lines().map(one).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory tree that looks like a unified hierarchy; unlike the kernel's it makes no files by itself.
    fn fake_v2(controllers: &str) -> (tempfile::TempDir, Slice) {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("cgroup.controllers"), controllers).unwrap();
        let line = format!("31 23 0:27 / {} rw - cgroup2 cgroup2 rw\n", dir.path().display());
        let slice = Slice::new(Hierarchies::from_mountinfo(&line), "t");
        (dir, slice)
    }

    fn touch(dir: &Path, files: &[&str]) {
        fs::create_dir_all(dir).unwrap();
        for file in files {
            fs::write(dir.join(file), "").unwrap();
        }
    }

    #[test]
    fn v2_limits_are_written_in_its_own_terms() {
        let (root, slice) = fake_v2("cpuset cpu io memory pids");
        let dir = root.path().join("keel/t/a-1");
        touch(
            &dir,
            &["cpu.max", "cpu.weight", "cpuset.cpus", "memory.max", "memory.swap.max", "pids.max"],
        );
        let limits = Limits {
            cpu_milli: Some(1500),
            cpu_shares: Some(1024),
            cpuset: Some("0-1".into()),
            memory: Some(64 << 20),
            memory_swap: Some(96 << 20),
            pids: Some(20),
            ..Limits::default()
        };
        let (group, problems) = slice.create("a-1", &limits);
        assert_eq!(problems, Vec::<String>::new());
        let read = |file: &str| fs::read_to_string(dir.join(file)).unwrap();
        assert_eq!(read("cpu.max"), "150000 100000");
        assert_eq!(read("cpu.weight"), "39");
        assert_eq!(read("cpuset.cpus"), "0-1");
        assert_eq!(read("memory.max"), (64u64 << 20).to_string());
        assert_eq!(read("memory.swap.max"), (32u64 << 20).to_string());
        assert_eq!(read("pids.max"), "20");
        let root_control = fs::read_to_string(root.path().join("cgroup.subtree_control")).unwrap();
        assert!(root_control.starts_with('+'));
        assert_eq!(group.procs_files(), vec![dir.join("cgroup.procs")]);
    }

    #[test]
    fn v2_accounts_are_read() {
        let (root, slice) = fake_v2("cpu memory pids");
        let (group, _) = slice.create("a-1", &Limits::default());
        let dir = root.path().join("keel/t/a-1");
        fs::write(dir.join("memory.events"), "low 0\noom 3\noom_kill 2\n").unwrap();
        fs::write(dir.join("cpu.stat"), "usage_usec 1234\nuser_usec 1000\n").unwrap();
        fs::write(dir.join("memory.current"), "4096\n").unwrap();
        fs::write(dir.join("pids.current"), "3\n").unwrap();
        assert_eq!(group.oom_kills(), 2);
        assert_eq!(group.cpu_usec(), Some(1234));
        assert_eq!((group.memory_bytes(), group.pids()), (Some(4096), Some(3)));
    }

    #[test]
    fn a_limit_without_its_controller_is_named() {
        let (root, slice) = fake_v2("cpu");
        touch(&root.path().join("keel/t/a-1"), &["cpu.max"]);
        let limits = Limits { cpu_milli: Some(500), memory: Some(1 << 20), ..Limits::default() };
        let (_, problems) = slice.create("a-1", &limits);
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(problems[0].contains("memory"), "{problems:?}");
        assert!(slice.check().unwrap_err().contains("memory, pids"));
    }

    #[test]
    fn hybrid_layouts_use_each_controller_where_it_is() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        for name in ["unified", "memory", "cpu"] {
            fs::create_dir(at(name)).unwrap();
        }
        fs::write(at("unified").join("cgroup.controllers"), "hugetlb\n").unwrap();
        let text = format!(
            "1 1 0:1 / {} rw - cgroup cgroup rw,memory\n2 1 0:1 / {} rw - cgroup cgroup rw,cpu,cpuacct\n\
             3 1 0:1 / {} rw - cgroup2 cgroup2 rw\n",
            at("memory").display(),
            at("cpu").display(),
            at("unified").display()
        );
        let slice = Slice::new(Hierarchies::from_mountinfo(&text), "t");
        touch(&at("memory/keel/t/a-1"), &["memory.limit_in_bytes"]);
        let limits = Limits { memory: Some(5), ..Limits::default() };
        let (group, problems) = slice.create("a-1", &limits);
        assert_eq!(problems, Vec::<String>::new());
        let keys: Vec<&str> = group.dirs.keys().map(String::as_str).collect();
        assert_eq!(keys, ["memory", "unified"]);
        assert_eq!(group.procs_files_v1(), [at("memory/keel/t/a-1/cgroup.procs")]);
        assert_eq!(group.unified(), Some(at("unified/keel/t/a-1").as_path()));
        let written = fs::read_to_string(at("memory/keel/t/a-1/memory.limit_in_bytes")).unwrap();
        assert_eq!(written, "5");
    }

    #[test]
    fn what_went_to_disks_is_summed_over_them() {
        let v2 = io_stat("8:0 rbytes=10 wbytes=20 rios=1\n8:16 rbytes=1 wbytes=2\n7:0\n");
        assert_eq!(v2, Transfer { inward: 11, outward: 22 });
        let v1 = service_bytes("8:0 Read 10\n8:0 Write 20\n8:0 Sync 30\n8:16 Read 1\nTotal 61\n");
        assert_eq!(v1, Transfer { inward: 11, outward: 20 });
    }
}
