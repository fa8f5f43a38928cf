//! A proxy by itself, for measurements: `proxy CONTROL_SOCKET SNAPSHOT_FILE WORKERS`.

use std::path::PathBuf;

fn main() -> Result<(), keel_proxy::Error> {
    let mut args = std::env::args().skip(1);
    let mut next = || args.next().unwrap_or_default();
    keel_proxy::run(keel_proxy::ProxyOptions {
        control_socket: PathBuf::from(next()),
        snapshot_file: PathBuf::from(next()),
        workers: next().parse().unwrap_or(1),
        hold_timeout: keel_proxy::HOLD_TIMEOUT,
        version: env!("CARGO_PKG_VERSION").into(),
        access_log: None,
        take_over: false,
        sockets_from_stdin: false,
    })
}
