//! Every bound of the data plane, by name: times, sizes and numbers.

use std::time::Duration;

/// A connection to an endpoint that takes longer counts as refused.
pub const CONNECT: Duration = Duration::from_secs(1);
/// From the first byte of a request to the end of its head; a slower client is cut off.
pub const REQUEST_HEAD: Duration = Duration::from_secs(10);
/// Between two reads of a request's or an answer's body, and for one write to make progress.
pub const BODY_STALL: Duration = Duration::from_secs(120);
/// A client may keep its connection idle for this long between requests.
pub const CLIENT_IDLE: Duration = Duration::from_secs(75);
/// Idle clients of a proxy that is about to end are closed after this.
pub const CLIENT_IDLE_ENDING: Duration = Duration::from_secs(3);
/// Idle connections to endpoints are closed after this: before common servers close them (Node.js 5 s).
pub const UPSTREAM_IDLE: Duration = Duration::from_secs(4);
/// A request that must not be repeated only goes out on a kept-alive connection used this recently.
pub const UPSTREAM_FRESH: Duration = Duration::from_secs(1);
/// Connections to an endpoint are not kept for this long after one could not be made because of their number; waiting
/// requests look again within it.
pub const PLACE_WANTED: Duration = Duration::from_secs(1);
/// First bytes of a connection are waited for this long; then the server is assumed to speak first.
pub const DETECT: Duration = Duration::from_millis(200);
/// With every endpoint refusing and none expected, news of the service are awaited for this long.
pub const REFUSED_GRACE: Duration = Duration::from_secs(1);
/// Pause before all endpoints of a service are tried again after all refused; doubles up to the next.
pub const REFUSED_PAUSE: Duration = Duration::from_millis(20);
/// The longest such pause.
pub const REFUSED_PAUSE_MOST: Duration = Duration::from_millis(500);
/// Bytes of a refused request are read and dropped for this long, so that the client sees the answer.
pub const LINGER: Duration = Duration::from_secs(2);
/// At most this many bytes are dropped in that time.
pub const LINGER_BYTES: usize = 1 << 20;
/// Connections of a proxy that has a successor end by themselves for this long; then they are cut.
pub const RETIRED_DRAIN: Duration = Duration::from_secs(3600);
/// Connections end by themselves for this long when the proxy ends; then they are cut.
pub const DRAIN: Duration = Duration::from_secs(30);
/// Nothing is accepted for this long when file descriptors ran out.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// An engine whose place is taken has this long to give up its addresses.
pub const RELEASE: Duration = Duration::from_secs(1);
/// Between two tries to open them.
pub const RELEASE_LOOK: Duration = Duration::from_millis(10);
/// How often timeouts and idle connections are looked at; times are kept to this precision.
pub const TICK: Duration = Duration::from_millis(250);
/// After a change of endpoints those of the next so many are brought into force together.
pub const CHANGE_PAUSE: Duration = Duration::from_millis(7);
/// Numbers in flight at draining endpoints are reported this often.
pub const IN_FLIGHT_REPORT: Duration = Duration::from_millis(500);
/// The server has this long to take a frame.
pub const CONTROL_WRITE: Duration = Duration::from_secs(5);
/// The state is written to its file this long after a change, with all changes until then.
pub const SAVE_DELAY: Duration = Duration::from_millis(200);

/// Who has sent less than this of a message, the content of one packet, may wait for an acknowledgement before he sends
/// the rest (RFC 9293, 3.7.4).
pub const SEGMENT: usize = 1448;
/// Longest head of a request or an answer.
pub const MAX_HEAD: usize = 64 * 1024;
/// Longest body, and chunk of one. Nothing is that long; programs that count in fewer bits are not to be led astray.
pub const MAX_BODY: u64 = (1 << 52) - 1;
/// Most header fields of a request or an answer.
pub const MAX_FIELDS: usize = 128;
/// A connection on which nobody has spoken moves away from draining endpoints this often.
pub const MAX_MOVES: u32 = 16;
/// Most announcements (1xx) before an answer.
pub const MAX_INTERIM: u32 = 32;
/// Most names in `Connection` fields besides the usual ones.
pub const MAX_NOMINATED: usize = 8;
/// Longest extension of a chunk.
pub const MAX_CHUNK_EXTENSION: usize = 256;
/// Longest trailer section.
pub const MAX_TRAILERS: usize = 8 * 1024;
/// A request body up to this size is kept so that the request can be repeated.
pub const MAX_REPEATABLE_BODY: usize = 64 * 1024;
/// Buffer of one direction of a connection while it is in use: a head and 16 KiB of a body come in one read.
pub const BUFFER: usize = 32 * 1024;
/// Unused buffers kept by each worker.
pub const SPARE_BUFFERS: usize = 64;
/// A body of up to so many bytes is copied behind its head to be written with it.
pub const SMALL_BODY: usize = 4096;
/// Buffer through which bodies and opaque bytes move, one per worker.
pub const SCRATCH: usize = 64 * 1024;
/// Idle connections kept to one endpoint by each worker.
pub const MAX_IDLE_PER_ENDPOINT: usize = 256;
/// Connections waiting to be accepted; the system cuts it to `net.core.somaxconn`.
pub const BACKLOG: i32 = 4096;
/// File descriptors left for everything but connections.
pub const SPARE_DESCRIPTORS: u64 = 128;
/// Changes on their way to one worker.
pub const COMMAND_QUEUE: usize = 16;
/// Refused connections waiting to be reported; more are not reported.
pub const REFUSED_QUEUE: usize = 256;
/// Bytes that move through the kernel at once.
pub const PIPE: usize = 1 << 20;
/// Unused pipes kept by each worker.
pub const SPARE_PIPES: usize = 32;
/// Turns in a row with less than a scratch buffer's worth after which copying is cheaper again.
pub const SMALL_TURNS: u32 = 8;
/// What is left of a body from this length on moves through the kernel.
pub const SPLICE_BODY: u64 = 128 * 1024;
/// Lines of the access log that a worker hands over at once; half of it, give or take a line.
pub const LOG_BLOCK: usize = 128 * 1024;
/// Such blocks waiting to be written; more are dropped.
pub const LOG_QUEUE: usize = 64;
/// Longest text of a client in the access log, before what has to be escaped is.
pub const MAX_LOG_FIELD: usize = 4 * 1024;
/// How often it is looked whether the access log is still at its path, or can be opened.
pub const LOG_LOOK: Duration = Duration::from_secs(1);
/// The last lines of the access log have this long to be written when the proxy ends.
pub const LOG_END: Duration = Duration::from_secs(1);
/// Edges that each worker tells apart.
pub const MAX_EDGES: usize = 10_000;
/// Largest piece of a body that is handed to HTTP/2 without asking whether the peer takes it.
pub const MAX_H2_PIECE: usize = 64 * 1024;
/// Pieces of a body that are shorter are put together while they wait: the library counts what they cost beyond
/// their length from here down.
pub const SMALL_PIECE: usize = 256;
/// Bytes that the small pieces on one connection of HTTP/2 may cost beyond their length until they are put together.
/// All that come in one burst are there at once: as many as fit into the window, if they are as short as messages are.
pub const MAX_H2_SMALL_PIECES: usize = 32 << 20;
/// Requests at a time on one connection of HTTP/2.
pub const MAX_H2_STREAMS: u32 = 256;
/// Streams of one connection of HTTP/2 that its client reset before they were looked at; a client with more is cut off
/// (CVE-2023-44487).
pub const MAX_H2_RESETS: usize = 64;
/// Streams of one connection of HTTP/2 that were reset here and are still remembered: what its client had under way
/// for them is no offence. As many as there may be at once.
pub const MAX_H2_REMEMBERED: usize = MAX_H2_STREAMS as usize;
/// Streams of one connection of HTTP/2 that are reset here because its client broke a rule, before it is cut off
/// (CVE-2025-8671). They add up for as long as the connection lives.
pub const MAX_H2_OFFENCES: usize = 1024;
/// Requests that a client of HTTP/2 may begin and give up at once, beyond those that time makes good; a client with more
/// is cut off. Each costs an endpoint as much as one that is waited for.
pub const MAX_H2_GIVEN_UP: u64 = 500;
/// So many of them each second makes good.
pub const H2_GIVEN_UP_PER_SECOND: u64 = 50;
/// A request that is given up later than this was meant.
pub const H2_SOON: Duration = Duration::from_secs(1);
/// Tasks of a worker that have served a request of HTTP/2 and rest until the next. Each is some kilobytes large.
pub const MAX_RESTING: usize = 1024;
/// Bytes of a request that may be on their way on one stream of HTTP/2.
pub const H2_STREAM_WINDOW: u32 = 256 * 1024;
/// Bytes of all requests that may be on their way on one connection of HTTP/2.
pub const H2_CONNECTION_WINDOW: u32 = 1 << 20;
/// Bytes of all answers that may be on their way on one connection of HTTP/2 to an endpoint: as many as its streams
/// may have together. Clients share it, and one that does not read must not use up what another one needs.
pub const H2_UPSTREAM_WINDOW: u32 = MAX_H2_STREAMS * H2_STREAM_WINDOW;
/// Bytes that one stream of HTTP/2 may keep waiting for the peer.
pub const MAX_H2_SEND_BUFFER: usize = 256 * 1024;
/// Requests that are too many are asked to come back after this at the earliest.
pub const BUSY: Duration = Duration::from_secs(1);
/// What failed for want of something (a disk, a descriptor, an address) is tried again after this; doubles up to the next.
pub const AGAIN: Duration = Duration::from_secs(1);
/// The longest such pause.
pub const AGAIN_MOST: Duration = Duration::from_secs(60);
/// Between two writes of the state lies at least this many times what one takes.
pub const SAVE_SHARE: u32 = 100;
/// But the file is never behind by much more than this.
pub const SAVE_MOST: Duration = Duration::from_secs(5);
/// What happened to endpoints that is kept for the server's next question; what is more is only counted.
pub const MAX_NOTICES: usize = 20;
