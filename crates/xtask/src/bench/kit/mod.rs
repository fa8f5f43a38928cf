//! What stands on the other side of a proxy under test: servers and clients that cost little.
//!
//! `xtask bench-kit TASK key=value…`, run by the benches as processes of their own from the release build. Tools that
//! everybody knows (wrk, h2load, ab) are preferred; here is what they lack: a server that is never what limits, a
//! client for opaque TCP, and one that asks at a constant rate whatever the answers do.

mod paced;
mod poll;
mod serve;
mod stream;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Duration;

use super::Error;

/// The word after `xtask` that leads here.
pub const COMMAND: &str = "bench-kit";

/// Runs one task to its end.
pub fn main(arguments: &[String]) -> ExitCode {
    let Some((task, rest)) = arguments.split_first() else {
        eprintln!("usage: xtask {COMMAND} serve|stream|paced key=value…");
        return ExitCode::from(2);
    };
    let result = Arguments::parse(rest).and_then(|arguments| match task.as_str() {
        "serve" => serve::run(&arguments),
        "stream" => stream::run(&arguments),
        "paced" => paced::run(&arguments),
        other => Err(format!("no task {other:?}").into()),
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask {COMMAND} {task}: {error}");
            ExitCode::FAILURE
        }
    }
}

/// `key=value` words.
struct Arguments(BTreeMap<String, String>);

impl Arguments {
    fn parse(words: &[String]) -> Result<Self, Error> {
        let pairs = words.iter().map(|word| {
            let (key, value) = word.split_once('=').ok_or_else(|| format!("{word:?} lacks a ="))?;
            Ok::<_, String>((key.to_owned(), value.to_owned()))
        });
        Ok(Self(pairs.collect::<Result<_, _>>()?))
    }

    fn get<T: FromStr>(&self, key: &str) -> Result<T, Error> {
        let value = self.0.get(key).ok_or_else(|| format!("{key}= is missing"))?;
        value.parse().map_err(|_| format!("{key}={value} is not understood").into())
    }

    /// A list with commas; empty if the key is absent.
    fn list<T: FromStr>(&self, key: &str) -> Result<Vec<T>, Error> {
        let value = self.0.get(key).map_or("", String::as_str);
        let items = value.split(',').filter(|item| !item.is_empty()).map(|item| {
            item.parse().map_err(|_| format!("{key}={value}: {item} is not understood"))
        });
        Ok(items.collect::<Result<_, _>>()?)
    }

    fn target(&self) -> Result<SocketAddr, Error> {
        self.get("target")
    }

    fn seconds(&self) -> Result<Duration, Error> {
        Ok(Duration::try_from_secs_f64(self.get("seconds")?)?)
    }
}
