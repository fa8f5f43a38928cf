//! The few system calls that no safe library offers, each in one small function.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Which side of a fork we are on.
pub(crate) enum Fork {
    /// The new process.
    Child,
    /// The old one, with the id of the new.
    Parent(i32),
}

/// Splits the process in two. Only for the shim, which has one thread: the child may then do anything.
#[allow(unsafe_code)]
pub(crate) fn fork() -> io::Result<Fork> {
    // SAFETY: the shim is single-threaded, so no lock can be held by a thread that the child lacks.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Fork::Child),
        pid => Ok(Fork::Parent(pid)),
    }
}

/// `CLONE_INTO_CGROUP` of linux/sched.h.
const CLONE_INTO_CGROUP: u64 = 1 << 33;

/// As [`fork`], but the child is born into the (version 2) cgroup whose directory this is; Linux 5.7 or later.
#[allow(unsafe_code)]
pub(crate) fn fork_into(cgroup: BorrowedFd<'_>) -> io::Result<Fork> {
    let fd = u64::try_from(cgroup.as_raw_fd()).map_err(io::Error::other)?;
    // SAFETY: a structure of plain numbers, for which zero means "not asked for".
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = CLONE_INTO_CGROUP;
    args.exit_signal = libc::SIGCHLD as u64;
    args.cgroup = fd;
    // SAFETY: without CLONE_VM this is a fork: the child has a copy of everything and goes on here. The shim is
    // single-threaded and the child execs or exits, so what libc's own fork would tidy up does not matter.
    match unsafe { libc::syscall(libc::SYS_clone3, &mut args, size_of::<libc::clone_args>()) } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Fork::Child),
        pid => Ok(Fork::Parent(i32::try_from(pid).map_err(io::Error::other)?)),
    }
}

/// Ends the process without running exit handlers; for children between fork and exec.
#[allow(unsafe_code)]
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: always sound; it only ends the process.
    unsafe { libc::_exit(code) }
}

/// Becomes another program. Returns only the reason why it could not.
#[allow(unsafe_code)]
pub(crate) fn execve(program: &Path, argv: &[String], env: &[(String, String)]) -> io::Error {
    let text = |bytes: &[u8]| {
        CString::new(bytes.to_vec()).map_err(|_| {
            io::Error::new(io::ErrorKind::InvalidInput, "an argument or variable holds a NUL byte")
        })
    };
    let prepared = (|| -> io::Result<_> {
        let program = text(program.as_os_str().as_bytes())?;
        let argv = argv.iter().map(|a| text(a.as_bytes())).collect::<io::Result<Vec<_>>>()?;
        let env = env
            .iter()
            .map(|(k, v)| text(format!("{k}={v}").as_bytes()))
            .collect::<io::Result<Vec<_>>>()?;
        Ok((program, argv, env))
    })();
    let (program, argv, env) = match prepared {
        Ok(prepared) => prepared,
        Err(error) => return error,
    };
    let pointers = |list: &[CString]| -> Vec<*const libc::c_char> {
        list.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (argv_ptrs, env_ptrs) = (pointers(&argv), pointers(&env));
    // SAFETY: all three are NUL-terminated and outlive the call, the arrays end with a null pointer.
    unsafe { libc::execve(program.as_ptr(), argv_ptrs.as_ptr(), env_ptrs.as_ptr()) };
    io::Error::last_os_error()
}

/// Blocks SIGCHLD and returns a descriptor that becomes readable when a child ends.
#[allow(unsafe_code)]
pub(crate) fn child_signal() -> io::Result<OwnedFd> {
    // SAFETY: the set is initialised by sigemptyset before use; the descriptor is ours alone.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGCHLD);
        if libc::sigprocmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) != 0 {
            return Err(io::Error::last_os_error());
        }
        match libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) {
            -1 => Err(io::Error::last_os_error()),
            fd => Ok(OwnedFd::from_raw_fd(fd)),
        }
    }
}

/// Gives every signal its default meaning again and blocks none: what a fresh program expects.
#[allow(unsafe_code)]
pub(crate) fn reset_signals() {
    // SAFETY: plain calls with valid arguments; failures (SIGKILL, SIGSTOP) are meant to be ignored.
    unsafe {
        for signal in 1..=libc::SIGRTMAX() {
            libc::signal(signal, libc::SIG_DFL);
        }
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigprocmask(libc::SIG_SETMASK, &set, std::ptr::null_mut());
    }
}

/// Makes a process descriptor something that tasks can wait on: it is readable once the process has ended.
#[allow(unsafe_code)]
pub(crate) fn watchable(process: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the descriptor is owned, so it stays open and the same for as long as the registration.
    unsafe { AsyncFd::register_with_interest(process, Interest::READABLE) }.map_err(Into::into)
}

/// Sends any signal number (real-time ones too) to exactly the process behind `pidfd`.
#[allow(unsafe_code)]
pub(crate) fn pidfd_signal(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    let none = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: the descriptor is open for the length of the call; a null siginfo is allowed.
    let result =
        unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, none, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Sends a signal by number; only to processes that can't have been recycled (our children, a cgroup's members).
#[allow(unsafe_code)]
pub(crate) fn kill(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: a plain system call on numbers.
    if unsafe { libc::kill(pid, signal) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// `struct pidfd_info` of linux/pidfd.h, first version plus what precedes `exit_code`.
#[repr(C)]
#[derive(Default)]
struct PidfdInfo {
    mask: u64,
    cgroupid: u64,
    pid: u32,
    tgid: u32,
    ppid: u32,
    ruid: u32,
    rgid: u32,
    euid: u32,
    egid: u32,
    suid: u32,
    sgid: u32,
    fsuid: u32,
    fsgid: u32,
    exit_code: i32,
}

const PIDFD_INFO_EXIT: u64 = 1 << 3;
/// `_IOWR(0xFF, 11, struct pidfd_info)` with the 64 bytes of the structure above.
const PIDFD_GET_INFO: libc::Ioctl = (3 << 30) | (64 << 16) | (0xFF << 8) | 11;

/// The raw wait status of a process that was reaped by its parent, which need not be us. Linux 6.15 or later, and
/// only when the descriptor was opened before that. `None` when it has not been reaped; an error when the kernel does
/// not tell.
#[allow(unsafe_code)]
pub(crate) fn pidfd_exit_info(pidfd: BorrowedFd<'_>) -> io::Result<Option<i32>> {
    let mut info = PidfdInfo { mask: PIDFD_INFO_EXIT, ..PidfdInfo::default() };
    // SAFETY: the request encodes the size of the structure, which is ours and writable.
    let result = unsafe { libc::ioctl(pidfd.as_raw_fd(), PIDFD_GET_INFO, &mut info) };
    if result == 0 {
        Ok((info.mask & PIDFD_INFO_EXIT != 0).then_some(info.exit_code))
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Lets a descriptor survive the next exec.
pub(crate) fn keep_on_exec(fd: BorrowedFd<'_>) -> io::Result<()> {
    rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty()).map_err(Into::into)
}

/// Takes over a descriptor that the program before us left open for us, and closes it for those after us.
#[allow(unsafe_code)]
pub(crate) fn inherited(fd: RawFd) -> io::Result<OwnedFd> {
    if fd < 3 {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not an inherited descriptor"));
    }
    // SAFETY: fcntl on any number is harmless.
    if unsafe { libc::fcntl(fd, libc::F_GETFD) } == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is open, and our caller passed it to us by number so that we own it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC)?;
    Ok(fd)
}

/// Moves the calling (single-threaded) process into new namespaces.
#[allow(unsafe_code)]
pub(crate) fn unshare(flags: rustix::thread::UnshareFlags) -> io::Result<()> {
    // SAFETY: the shim is single-threaded and never asks for CLONE_FILES.
    unsafe { rustix::thread::unshare_unsafe(flags) }.map_err(Into::into)
}

/// Sets a resource limit by its kernel number.
#[allow(unsafe_code)]
pub(crate) fn set_limit(resource: u32, soft: u64, hard: u64) -> io::Result<()> {
    let limit = libc::rlimit64 { rlim_cur: soft, rlim_max: hard };
    // SAFETY: the structure lives through the call.
    let result = unsafe { libc::setrlimit64(resource, &limit) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Gives memory that is not needed any more back to the system: free heap, and every page that can be had again
/// from its file. A shim starts with a large program mapped and then needs a few pages of it for ever.
#[allow(unsafe_code)]
pub(crate) fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: a plain call.
    unsafe {
        libc::malloc_trim(0);
    }
    let Ok(maps) = std::fs::read_to_string("/proc/self/smaps") else { return };
    for (start, len) in clean_file_mappings(&maps) {
        // SAFETY: the range is a private file mapping without a single modified page (`Anonymous: 0 kB`), so its
        // content is that of the file and the kernel reads it again on the next access.
        unsafe { libc::madvise(start as *mut libc::c_void, len, libc::MADV_DONTNEED) };
    }
}

/// Address and length of each file mapping that holds nothing but what its file holds.
fn clean_file_mappings(smaps: &str) -> Vec<(usize, usize)> {
    let mut clean = Vec::new();
    let mut current: Option<(usize, usize)> = None;
    for line in smaps.lines() {
        let mut words = line.split_ascii_whitespace();
        let Some(first) = words.next() else { continue };
        if let Some((from, to)) = first.split_once('-') {
            let mode = words.next().unwrap_or("");
            let file = words.nth(3).is_some_and(|path| path.starts_with('/'));
            let from = usize::from_str_radix(from, 16);
            let to = usize::from_str_radix(to, 16);
            current = match (from, to) {
                (Ok(from), Ok(to)) if file && mode.starts_with('r') && mode.ends_with('p') => {
                    Some((from, to - from))
                }
                _ => None,
            };
        } else if first == "Anonymous:"
            && let (Some(mapping), Some("0")) = (current.take(), words.next())
        {
            clean.push(mapping);
        }
    }
    clean
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_unmodified_file_mappings_are_given_back() {
        let smaps = "\
1000-3000 r-xp 00000000 fe:00 123 /bin/x\nRss: 8 kB\nAnonymous:             0 kB\n\
3000-4000 r--p 00002000 fe:00 123 /bin/x\nAnonymous:             4 kB\n\
4000-5000 rw-p 00003000 fe:00 123 /bin/x\nAnonymous:             0 kB\n\
5000-6000 rw-p 00000000 00:00 0 [heap]\nAnonymous:             0 kB\n";
        assert_eq!(clean_file_mappings(smaps), vec![(0x1000, 0x2000), (0x4000, 0x1000)]);
    }

    #[test]
    fn the_structure_has_the_size_that_the_request_names() {
        assert_eq!(std::mem::size_of::<PidfdInfo>(), 64);
    }
}
