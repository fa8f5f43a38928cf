//! One kind of load, made for a while by the tool that is best at it, and counted.

use std::time::Duration;

use serde::Deserialize;

use super::engine::Doors;
use super::rig::{Client, Rig};
use crate::bench::Error;

/// A tool that takes so much longer than it was asked to run hangs.
const PATIENCE: Duration = Duration::from_secs(15);

/// What is asked of a proxy.
#[derive(Clone, Copy, Debug)]
pub enum Load {
    /// wrk: HTTP/1.1, the next request after the last answer on each connection.
    Http { connections: u32, path: &'static str, tls: bool },
    /// wrk: a connection for each request.
    Connect { connections: u32 },
    /// ab: a connection and a full TLS handshake for each request; it never resumes a session.
    Handshake { connections: u32 },
    /// h2load: HTTP/2, with or without TLS.
    Http2 { connections: u32, streams: u32, tls: bool },
    /// The kit: 64 bytes there and back.
    Echo { connections: u32 },
    /// The kit: 64 bytes there, 1 MiB back.
    Bulk { connections: u32 },
    /// The kit: HTTP/1.1 at a constant rate.
    Paced { connections: u32, rate: f64 },
}

/// What came of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
pub struct Count {
    /// Answered as they should be.
    pub requests: u64,
    /// Everything else.
    pub errors: u64,
    /// How long it took.
    pub seconds: f64,
    /// Bytes received, where the tool tells.
    #[serde(default)]
    pub bytes: u64,
    /// Median latency in microseconds, where it means something.
    #[serde(default)]
    pub p50_us: Option<f64>,
    /// Its 99th percentile.
    #[serde(default)]
    pub p99_us: Option<f64>,
}

impl Load {
    /// Runs it for whole `seconds`.
    pub fn run(self, rig: &Rig, doors: Doors, seconds: u32) -> Result<Count, Error> {
        let patience = PATIENCE + Duration::from_secs(seconds.into());
        match self {
            Self::Http { connections, path, tls } => {
                let (scheme, port) =
                    if tls { ("https", doors.https) } else { ("http", doors.http) };
                let url = format!("{scheme}://localhost:{port}{path}");
                wrk(rig, connections, seconds, &[], &url, patience)
            }
            Self::Connect { connections } => {
                let url = format!("http://localhost:{}/small", doors.http);
                wrk(rig, connections, seconds, &["-H", "Connection: close"], &url, patience)
            }
            Self::Handshake { connections } => {
                let words = format!(
                    "-q -c{connections} -t{seconds} -n1000000 -fTLS1.3 https://localhost:{}/small",
                    doors.https
                );
                read_ab(&rig.client(client("ab", "apache2-utils", &words), patience)?)
            }
            Self::Http2 { connections, streams, tls } => {
                let (scheme, port) = if tls { ("https", doors.https) } else { ("http", doors.h2c) };
                let words = format!(
                    "-t1 -c{connections} -m{streams} --duration={seconds} {scheme}://localhost:{port}/small"
                );
                read_h2load(
                    &rig.client(client("h2load", "nghttp2-client", &words), patience)?,
                    seconds,
                )
            }
            Self::Echo { connections } => {
                stream(rig, doors.echo, connections, seconds, 64, patience)
            }
            Self::Bulk { connections } => {
                stream(rig, doors.bulk, connections, seconds, 1 << 20, patience)
            }
            Self::Paced { connections, rate } => {
                let words = format!(
                    "paced target=127.0.0.1:{} path=/small connections={connections} rate={rate} seconds={seconds}",
                    doors.http
                );
                kit(rig, &words, patience)
            }
        }
    }

    /// Bytes of an answer's body at least; fewer received means that something else was answered.
    pub fn body(self) -> u64 {
        match self {
            Self::Http { path: "/16k", .. } => 16 << 10,
            Self::Http { path: "/1m", .. } | Self::Bulk { .. } => 1 << 20,
            _ => 0,
        }
    }
}

fn client(program: &'static str, package: &'static str, words: &str) -> Client {
    Client { program, package, arguments: words.split(' ').map(str::to_owned).collect() }
}

fn wrk(
    rig: &Rig,
    connections: u32,
    seconds: u32,
    more: &[&str],
    url: &str,
    patience: Duration,
) -> Result<Count, Error> {
    let script = rig.directory().join("wrk.lua");
    std::fs::write(
        &script,
        "function done(summary, latency)\n  local e = summary.errors\n  io.write(string.format(\n\
         'COUNT {\"requests\":%d,\"errors\":%d,\"seconds\":%f,\"bytes\":%d}\\n', summary.requests,\n\
         e.connect + e.read + e.write + e.status + e.timeout, summary.duration / 1e6, summary.bytes))\nend\n",
    )?;
    let words = format!("-t1 -c{connections} -d{seconds}s -s {}", script.display());
    let mut client = client("wrk", "wrk", &words);
    client.arguments.extend(more.iter().map(|&word| word.to_owned()));
    client.arguments.push(url.to_owned());
    let text = rig.client(client, patience)?;
    let line = text.lines().find_map(|line| line.strip_prefix("COUNT "));
    Ok(serde_json::from_str(line.ok_or("no result of wrk")?)?)
}

fn stream(
    rig: &Rig,
    port: u16,
    connections: u32,
    seconds: u32,
    receive: usize,
    patience: Duration,
) -> Result<Count, Error> {
    let words = format!(
        "stream target=127.0.0.1:{port} connections={connections} seconds={seconds} send=64 receive={receive}"
    );
    kit(rig, &words, patience)
}

fn kit(rig: &Rig, words: &str, patience: Duration) -> Result<Count, Error> {
    let words: Vec<_> = words.split(' ').map(str::to_owned).collect();
    Ok(serde_json::from_str(&rig.kit(&words, patience)?)?)
}

fn read_ab(text: &str) -> Result<Count, Error> {
    let number = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|rest| rest.split_whitespace().next()?.parse::<f64>().ok())
    };
    let whole = |name: &str| number(name).map_or(0, |n| format!("{n:.0}").parse().unwrap_or(0));
    let seconds = number("Time taken for tests:").ok_or("no result of ab")?;
    let errors = whole("Failed requests:") + whole("Non-2xx responses:");
    let requests = whole("Complete requests:");
    Ok(Count { requests, errors, seconds, ..Count::default() })
}

/// Reads what h2load printed after running for `seconds`.
pub fn read_h2load(text: &str, seconds: u32) -> Result<Count, Error> {
    let line = text.lines().find_map(|line| line.strip_prefix("requests: "));
    let numbers: Vec<u64> = line
        .ok_or("no result of h2load")?
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|word| word.parse().ok())
        .collect();
    // total, started, done, succeeded, failed, errored, timeout
    let [_, _, _, requests, failed, errored, timeout] = numbers[..] else {
        return Err(format!("h2load says something new: {line:?}").into());
    };
    let errors = failed + errored + timeout;
    Ok(Count { requests, errors, seconds: seconds.into(), ..Count::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_of_the_tools_are_understood() {
        let h2load = "finished in 3.00s, 28344.33 req/s, 2.14MB/s\nrequests: 85033 total, 86057 started, 85033 \
                      done, 85030 succeeded, 3 failed, 0 errored, 0 timeout\nstatus codes: 85030 2xx\n";
        let count = read_h2load(h2load, 3).unwrap();
        assert_eq!((count.requests, count.errors, count.seconds), (85_030, 3, 3.0));
        assert!(read_h2load("requests: 1 total\n", 3).is_err());
        let ab = "Time taken for tests:   2.000 seconds\nComplete requests:      5281\nFailed requests:        2\n";
        let count = read_ab(ab).unwrap();
        assert_eq!((count.requests, count.errors, count.seconds), (5281, 2, 2.0));
        assert!(read_ab("apr_socket_recv: Connection refused (111)\n").is_err());
    }
}
