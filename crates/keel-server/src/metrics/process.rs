//! What a process uses, as `/proc` tells it.

use std::fs;

use keel_model::Timestamp;

use super::exposition::{Exposition, Kind};

/// What a process uses.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    cpu_seconds: f64,
    threads: u64,
    virtual_bytes: u64,
    resident_bytes: u64,
    /// Seconds since 1970.
    started: f64,
    open_files: u64,
    most_files: Option<u64>,
}

impl Usage {
    /// Of the process `pid`; `None` if it is gone.
    pub fn of(pid: u32) -> Option<Self> {
        let read = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}")).ok();
        let mut usage = Self::from_stat(&read("stat")?, &fs::read_to_string("/proc/stat").ok()?)?;
        usage.open_files =
            fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count) as u64;
        usage.most_files = read("limits").and_then(|limits| most_files(&limits));
        Some(usage)
    }

    #[allow(clippy::cast_precision_loss, reason = "ticks since boot fit")]
    fn from_stat(own: &str, system: &str) -> Option<Self> {
        // The name may hold anything; fields are counted from its end (proc(5); the state is the third).
        let fields: Vec<&str> = own.rsplit_once(')')?.1.split_whitespace().collect();
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        let tick = rustix::param::clock_ticks_per_second().max(1) as f64;
        let boot = system.lines().find_map(|line| line.strip_prefix("btime "))?;
        Some(Self {
            cpu_seconds: (field(14)? + field(15)?) as f64 / tick,
            threads: field(20)?,
            started: boot.trim().parse::<f64>().ok()? + field(22)? as f64 / tick,
            virtual_bytes: field(23)?,
            resident_bytes: field(24)? * rustix::param::page_size() as u64,
            open_files: 0,
            most_files: None,
        })
    }
}

/// When the process `pid` started; `None` if it is gone.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a time is positive")]
pub fn started(pid: u32) -> Option<Timestamp> {
    let usage = Usage::of(pid)?;
    Some(Timestamp((usage.started * 1000.0) as u64))
}

fn most_files(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// The families that every exporter has, for each of `processes`.
pub fn write(page: &mut Exposition, processes: &[(&str, Usage)]) {
    let mut fractions = |name, kind, help, value: fn(&Usage) -> f64| {
        page.family(name, kind, help);
        processes.iter().for_each(|(n, usage)| page.fraction(&[("process", n)], value(usage)));
    };
    let help = "CPU time used, user and system, in seconds.";
    fractions("process_cpu_seconds", Kind::Counter, help, |u| u.cpu_seconds);
    let help = "When the process started, in seconds since 1970.";
    fractions("process_start_time_seconds", Kind::Gauge, help, |u| u.started);
    let mut numbers = |name, help, value: fn(&Usage) -> Option<u64>| {
        page.family(name, Kind::Gauge, help);
        for (name, usage) in processes {
            if let Some(value) = value(usage) {
                page.sample(&[("process", name)], value);
            }
        }
    };
    let resident = |u: &Usage| Some(u.resident_bytes);
    numbers("process_resident_memory_bytes", "Memory in use, in bytes.", resident);
    let address_space = |u: &Usage| Some(u.virtual_bytes);
    numbers("process_virtual_memory_bytes", "Address space in use, in bytes.", address_space);
    numbers("process_open_fds", "Open file descriptors.", |u| Some(u.open_files));
    numbers("process_max_fds", "Most file descriptors that may be open.", |u| u.most_files);
    numbers("process_threads", "Threads.", |u| Some(u.threads));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_is_read_whatever_the_name_of_the_program() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 100 0 0 0 150 50 0 0 20 0 3 0 1000 8192 2 18446744073709551615";
        let usage = Usage::from_stat(stat, "cpu 1 2\nbtime 1700000000\n").unwrap();
        let tick = rustix::param::clock_ticks_per_second() as f64;
        assert_eq!(usage.cpu_seconds, 200.0 / tick);
        assert_eq!((usage.threads, usage.virtual_bytes), (3, 8192));
        assert_eq!(usage.resident_bytes, 2 * rustix::param::page_size() as u64);
        assert_eq!(usage.started, 1_700_000_000.0 + 1000.0 / tick);
        assert_eq!(Usage::from_stat("nonsense", ""), None);
        let limits = "Limit Soft Hard Units\nMax open files            1024     4096     files\n";
        assert_eq!(most_files(limits), Some(1024));
    }

    #[test]
    fn this_process_uses_something() {
        let usage = Usage::of(std::process::id()).unwrap();
        assert!(usage.resident_bytes > 0 && usage.open_files > 2 && usage.most_files.is_some());
        assert_eq!(Usage::of(u32::MAX), None);
    }
}
