//! What only the embedded store promises: locking, durability, and clear words about a bad disk.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use keel_store::{Error, RedbStore, Store, Transaction};

const DEADLINE: Duration = Duration::from_secs(20);

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.unwrap().block_on(future)
}

fn open(directory: &Path) -> RedbStore {
    RedbStore::open(directory).unwrap()
}

/// Runs the named test of this binary as a child that behaves as `ROLE` says.
fn child(test: &str, directory: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env("KEEL_STORE_TEST_CHILD", directory)
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap()
}

fn role() -> Option<std::path::PathBuf> {
    std::env::var_os("KEEL_STORE_TEST_CHILD").map(Into::into)
}

#[test]
fn content_survives_reopening() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("not/there/yet");
    block_on(async {
        let (version, lease);
        {
            let store = open(&path);
            lease = store.grant(Duration::from_secs(60)).await.unwrap();
            let both = Transaction::new().put("a", "1").put_leased("b", "2", lease);
            version = store.commit(both).await.unwrap().committed().unwrap();
        }
        let store = open(&path);
        let listing = store.list("").await.unwrap();
        assert_eq!(listing.version, version);
        assert_eq!(&*listing.entries[0].value, b"1");
        assert_eq!(listing.entries[1].lease, Some(lease));
        store.keep_alive(lease).await.unwrap();
        assert!(store.grant(Duration::from_secs(60)).await.unwrap() > lease);
        let next = store.commit(Transaction::new().put("a", "3")).await.unwrap();
        assert!(next.committed().unwrap() > version);
    });
}

#[test]
fn leased_keys_die_after_reopening() {
    let directory = tempfile::tempdir().unwrap();
    block_on(async {
        let ttl = Duration::from_secs(3);
        {
            let store = open(directory.path());
            let lease = store.grant(ttl).await.unwrap();
            let write = Transaction::new().put_leased("a", "1", lease);
            store.commit(write).await.unwrap().committed().unwrap();
        }
        let store = open(directory.path());
        let mut watch = store.watch("a");
        assert!(store.get("a").await.unwrap().is_some(), "its holder may come back");
        let gone = tokio::time::timeout(DEADLINE, async {
            while store.get("a").await.unwrap().is_some() {
                watch.changed().await;
            }
        });
        gone.await.unwrap();
    });
}

#[test]
fn a_second_process_is_refused_and_a_killed_one_forgotten() {
    if let Some(directory) = role() {
        let _store = open(&directory);
        println!("open");
        std::io::stdout().flush().unwrap();
        loop {
            std::thread::park();
        }
    }
    let directory = tempfile::tempdir().unwrap();
    let mut child =
        child("a_second_process_is_refused_and_a_killed_one_forgotten", directory.path());
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().ends_with("open")));
    let error = RedbStore::open(directory.path()).unwrap_err();
    let expected = Error::InUse { path: directory.path().to_owned(), pid: Some(child.id()) };
    assert_eq!(error, expected);
    assert!(error.to_string().contains(&format!("in use by process {}", child.id())), "{error}");
    child.kill().unwrap();
    child.wait().unwrap();
    let held = open(directory.path());
    let error = RedbStore::open(directory.path()).unwrap_err();
    assert!(matches!(error, Error::InUse { pid: Some(pid), .. } if pid == std::process::id()));
    drop(held);
    let _free_again = open(directory.path());
}

#[test]
fn an_unusable_directory_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("file");
    fs::write(&path, "").unwrap();
    let error = RedbStore::open(&path.join("state")).unwrap_err();
    assert!(matches!(error, Error::NotWritable { .. }), "{error:?}");
    assert!(error.to_string().contains("file/state is not writable"), "{error}");
    // Not even root may write here.
    let error = RedbStore::open(Path::new("/proc/keel-store-test")).unwrap_err();
    assert!(matches!(error, Error::NotWritable { .. }), "{error:?}");
}

#[test]
fn a_damaged_file_is_named_and_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("state.redb");
    block_on(async {
        let store = open(directory.path());
        for n in 0..50 {
            let write = Transaction::new().put(format!("k{n}"), vec![n; 5000]);
            store.commit(write).await.unwrap().committed().unwrap();
        }
    });
    let good = fs::read(&file).unwrap();
    let expect = |damaged: &[u8], what: &str| {
        fs::write(&file, damaged).unwrap();
        let error = RedbStore::open(directory.path()).err();
        assert!(matches!(error, Some(Error::Corrupt { .. })), "{what}: {error:?}");
        let text = error.unwrap().to_string();
        assert!(text.contains("state.redb is damaged") && text.contains("hint:"), "{text}");
    };
    expect(b"this is no database", "text");
    expect(&vec![0; good.len()], "zeros");
    expect(&good[..good.len() / 2], "cut in half");
    expect(&good[..100], "cut in the header");
    let mut header = good.clone();
    header[..64].fill(0x55);
    expect(&header, "no header");
    let value = good.windows(5000).position(|w| w.iter().all(|b| *b == 7)).unwrap();
    let mut flipped = good.clone();
    flipped[value + 2500] ^= 1;
    expect(&flipped, "one bit");
    fs::write(&file, &good).unwrap();
    assert_eq!(block_on(open(directory.path()).list("")).unwrap().entries.len(), 50);
}

#[test]
fn damage_anywhere_never_panics_nor_goes_unseen() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("state.redb");
    block_on(async {
        let store = open(directory.path());
        for n in 0..20u8 {
            let write = Transaction::new().put(format!("k{n}"), vec![n; 300]);
            store.commit(write).await.unwrap().committed().unwrap();
        }
    });
    let good = fs::read(&file).unwrap();
    let expected = block_on(open(directory.path()).list("")).unwrap().entries;
    for at in (0..good.len()).step_by(good.len() / 97) {
        let mut damaged = good.clone();
        let end = (at + 40).min(damaged.len());
        damaged[at..end].iter_mut().for_each(|byte| *byte = !*byte);
        fs::write(&file, damaged).unwrap();
        match RedbStore::open(directory.path()) {
            // Damage to a page that is not in use, or that the file holds twice.
            Ok(store) => assert_eq!(block_on(store.list("")).unwrap().entries, expected),
            Err(Error::Corrupt { .. }) => {}
            Err(error) => panic!("at {at}: {error:?}"),
        }
    }
}

/// Commits pairs of keys from several tasks, prints each number once both are acknowledged.
fn commit_until_killed(directory: &Path) -> ! {
    block_on(async {
        let store = open(directory);
        let listing = store.list("a/").await.unwrap();
        let next = Arc::new(AtomicU64::new(listing.entries.len() as u64 * 10));
        let tasks: Vec<_> = (0..4)
            .map(|_| {
                let (store, next) = (store.clone(), Arc::clone(&next));
                tokio::spawn(async move {
                    loop {
                        let n = next.fetch_add(1, Ordering::Relaxed);
                        let value = n.to_string().repeat(1 + usize::try_from(n % 400).unwrap());
                        let write = Transaction::new()
                            .put(format!("a/{n:08}"), value.clone())
                            .put(format!("b/{n:08}"), value);
                        store.commit(write).await.unwrap().committed().unwrap();
                        println!("ack {n}");
                    }
                })
            })
            .collect();
        futures_util::future::join_all(tasks).await;
    });
    unreachable!("the tasks never end")
}

#[test]
fn every_acknowledged_commit_survives_kill_9() {
    const KILLS: u64 = 30;
    if let Some(directory) = role() {
        commit_until_killed(&directory);
    }
    let directory = tempfile::tempdir().unwrap();
    let mut acknowledged = Vec::new();
    let mut version = 0;
    for round in 0..KILLS {
        let mut child = child("every_acknowledged_commit_survives_kill_9", directory.path());
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        // A kill soon after an acknowledgement hits the next commit at some point of its writing; the first
        // rounds hit the making of the file.
        let patience = (round * 7919) % 113;
        let mut number = |line: std::io::Result<String>| {
            let line = line.unwrap();
            let n = line.strip_prefix("ack ").and_then(|n| n.parse::<u64>().ok());
            n.inspect(|n| acknowledged.push(*n)).is_some()
        };
        if round % 5 == 0 {
            let until = Instant::now() + Duration::from_micros(round * 900);
            while Instant::now() < until {
                std::hint::spin_loop();
            }
        } else {
            let mut count = 0;
            while count < patience {
                count += u64::from(number(lines.next().expect("the child goes on")));
            }
        }
        child.kill().unwrap();
        child.wait().unwrap();
        // What it had printed before it died counts too.
        lines.for_each(|line| {
            number(line);
        });
        let listing = block_on(open(directory.path()).list("")).unwrap();
        assert!(listing.version.0 >= version, "the version fell in round {round}");
        version = listing.version.0;
        let find = |key: String| {
            let found = listing.entries.binary_search_by(|entry| entry.key.cmp(&key));
            found.ok().map(|at| &listing.entries[at])
        };
        for n in &acknowledged {
            assert!(find(format!("a/{n:08}")).is_some(), "{n} lost in round {round}");
        }
        for entry in &listing.entries {
            let (side, number) = entry.key.split_once('/').unwrap();
            let other = find(format!("{}/{number}", if side == "a" { "b" } else { "a" }));
            assert_eq!(other.map(|o| (&o.value, o.version)), Some((&entry.value, entry.version)));
        }
    }
    assert!(acknowledged.len() > 500, "only {} commits", acknowledged.len());
}

/// A small file system of its own, gone when dropped.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount(megabytes: u32) -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={megabytes}m"), "tmpfs"])
            .arg(directory.path())
            .stderr(Stdio::null())
            .status();
        mounted.is_ok_and(|status| status.success()).then_some(Self(directory))
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.path()).status();
    }
}

#[test]
fn a_full_disk_refuses_writes_until_there_is_room() {
    let Some(disk) = SmallDisk::mount(4) else {
        eprintln!("skipped: mounting a small tmpfs needs root");
        return;
    };
    let ballast = ["first", "second"].map(|name| disk.path().join(name));
    block_on(async {
        let store = open(disk.path());
        fs::write(&ballast[0], vec![0; 1 << 20]).unwrap();
        store.commit(Transaction::new().put("a", "1")).await.unwrap().committed().unwrap();
        let lease = store.grant(Duration::from_secs(1)).await.unwrap();
        let leased = Transaction::new().put_leased("leased", "1", lease);
        let before = store.commit(leased).await.unwrap().committed().unwrap();

        // First a change that is too large by itself, then a disk without a single free block.
        let large = Transaction::new().put("large", vec![1; 6 << 20]);
        let error = store.commit(large.clone()).await.unwrap_err();
        assert_eq!(error, Error::Full { path: disk.path().join("state.redb") });
        assert!(error.to_string().contains("no space left"), "{error}");
        fill(&ballast[1]);
        let small = Transaction::new().put("small", vec![1; 64 << 10]);
        assert!(matches!(store.commit(small.clone()).await, Err(Error::Full { .. })));
        assert!(store.get("large").await.unwrap().is_none());
        assert_eq!(&*store.get("a").await.unwrap().unwrap().value, b"1");
        assert_eq!(store.list("").await.unwrap().entries[0].version.0, 1);

        // A small change is not held back by a large one that it shares the disk transaction with.
        ballast.iter().for_each(|path| fs::remove_file(path).unwrap());
        let both = futures_util::future::join(store.commit(large), store.commit(small)).await;
        assert!(matches!(both.0, Err(Error::Full { .. })), "{both:?}");
        let after = both.1.unwrap().committed().unwrap();
        assert!(after > before);

        // The lease that ran out meanwhile takes its key along once there is room.
        let mut watch = store.watch("leased");
        let gone = tokio::time::timeout(DEADLINE, async {
            while store.get("leased").await.unwrap().is_some() {
                watch.changed().await;
            }
        });
        gone.await.unwrap();
        let entries = store.list("").await.unwrap().entries;
        drop(store);
        assert_eq!(open(disk.path()).list("").await.unwrap().entries, entries);
    });
}

#[test]
fn a_full_disk_at_the_start_is_named() {
    let Some(disk) = SmallDisk::mount(1) else {
        eprintln!("skipped: mounting a small tmpfs needs root");
        return;
    };
    fill(&disk.path().join("ballast"));
    let error = RedbStore::open(&disk.path().join("state")).err();
    assert!(matches!(error, Some(Error::Full { .. })), "{error:?}");
}

fn fill(path: &Path) {
    let mut file = fs::File::create(path).unwrap();
    let block = [0; 4096];
    while file.write_all(&block).is_ok() {}
}
