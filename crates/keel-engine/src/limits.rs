//! Every bound of the driver, by name.

use std::time::Duration;

/// An engine has this long to start, or to take over a new configuration.
pub const START: Duration = Duration::from_secs(10);
/// Between two looks at whether it has.
pub const LOOK: Duration = Duration::from_millis(5);
/// Workers of an engine that was killed have this long to give up their listeners.
pub const RELEASE: Duration = Duration::from_secs(1);
/// nginx is told to reload at most this often.
pub const RELOAD_PAUSE: Duration = Duration::from_millis(200);
/// A configuration that was not accepted is tried again after this, if nothing changes before.
pub const RETRY: Duration = Duration::from_secs(5);
/// Pause before an engine that ended is started again; doubles up to the next.
pub const RESTART: Duration = Duration::from_millis(10);
/// The longest such pause.
pub const RESTART_MOST: Duration = Duration::from_secs(2);
/// An engine that ran for this long may be started again without a pause.
pub const SETTLED: Duration = Duration::from_secs(5);
/// Connections end by themselves for this long when the driver is told to end; then they are cut.
pub const DRAIN: Duration = Duration::from_secs(30);
/// So long when there is a successor.
pub const RETIRED_DRAIN: Duration = Duration::from_secs(3600);
/// Most listening sockets that an engine hands over.
pub const MAX_SOCKETS: usize = 1 << 20;
/// The part of the driver's descriptors that copies of an engine's listening sockets may take. There are twice as many while an
/// engine is started with them.
pub const HELD_SHARE: u64 = 4;
/// How often an engine is asked for sockets if not all are among those that it gives.
pub const HELD_TRIES: usize = 5;
/// Numbers in flight at draining endpoints are looked at this often.
pub const IN_FLIGHT_LOOK: Duration = Duration::from_millis(50);
/// They are reported at least this often while they are not zero.
pub const IN_FLIGHT_REPORT: Duration = Duration::from_millis(500);
/// The server has this long to take a frame.
pub const CONTROL_WRITE: Duration = Duration::from_secs(5);
/// Nothing is accepted for this long when that failed.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// An engine's command line has this long to answer.
pub const ANSWER: Duration = Duration::from_secs(5);
/// Longest answer of an engine's command line, in bytes.
pub const MAX_ANSWER: u64 = 64 << 20;
/// The state is written to its file this long after a change, with all changes until then.
pub const SAVE_DELAY: Duration = Duration::from_millis(200);
/// A log of the engine larger than this, in bytes, is begun anew with the next start.
pub const MAX_LOG: u64 = 10 << 20;
/// Bytes at the end of the log that are looked at for reasons.
pub const LOG_TAIL: u64 = 8 << 10;
/// Connections that an engine may have open at once, unless file descriptors are fewer.
pub const MAX_CONNECTIONS: u64 = 50_000;
/// File descriptors of an engine that are left for everything but connections.
pub const SPARE_DESCRIPTORS: u64 = 512;
/// Places that are told of each thing that an engine can't do.
pub const MAX_PLACES: usize = 1000;
/// Things to tell people that are kept until the server asks for them.
pub const MAX_NOTICES: usize = 16;
/// How an engine ended is known at most this long after it has.
pub const REAPED: Duration = Duration::from_millis(200);
