//! How requests are logged, as options of the server and the proxy.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use keel_route::access_log::{ALL, AccessLog, LogFormat, LogScope};

use crate::failure::Failure;
use crate::ui::time;

const HEADING: &str = "Access log options";

/// Options of the access log.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = HEADING)]
pub struct AccessLogArgs {
    /// Log each request in this file (default: requests are not logged)
    #[arg(long, env = "KEEL_ACCESS_LOG", hide_env_values = true, value_name = "FILE")]
    pub access_log: Option<PathBuf>,
    /// How a line looks (default: json)
    #[arg(long, env = "KEEL_ACCESS_LOG_FORMAT", hide_env_values = true, value_name = "FORMAT")]
    pub access_log_format: Option<Format>,
    /// Of a thousand requests, log so many; failures and slow ones always are (default: 1000)
    #[arg(long, env = "KEEL_ACCESS_LOG_SAMPLE", hide_env_values = true, value_name = "N")]
    #[arg(value_parser = clap::value_parser!(u16).range(..=i64::from(ALL)))]
    pub access_log_sample: Option<u16>,
    /// Requests that take this long count as slow (default: 1s)
    #[arg(long, env = "KEEL_ACCESS_LOG_SLOW", hide_env_values = true, value_name = "TIME")]
    #[arg(value_parser = time::parse_seconds)]
    pub access_log_slow: Option<Duration>,
    /// Keep queries, which may hold secrets, in paths and referrers
    #[arg(long, env = "KEEL_ACCESS_LOG_QUERY", hide_env_values = true)]
    #[arg(value_parser = clap::builder::BoolishValueParser::new())]
    pub access_log_query: bool,
    /// Which requests: all, or only those at published ports (default: all)
    #[arg(long, env = "KEEL_ACCESS_LOG_SCOPE", hide_env_values = true, value_name = "SCOPE")]
    pub access_log_scope: Option<Scope>,
    /// Move the file aside before it grows beyond this size, such as 100m; 0: never (default: 100m)
    #[arg(long, env = "KEEL_ACCESS_LOG_MAX_SIZE", hide_env_values = true, value_name = "SIZE")]
    #[arg(value_parser = parse_size)]
    pub access_log_max_size: Option<u64>,
    /// Keep so many files that were moved aside (default: 5)
    #[arg(long, env = "KEEL_ACCESS_LOG_KEEP", hide_env_values = true, value_name = "N")]
    #[arg(value_parser = clap::value_parser!(u32).range(..=1000))]
    pub access_log_keep: Option<u32>,
}

/// How a line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs)]
pub enum Format {
    Json,
    Combined,
}

/// Which requests are logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs)]
pub enum Scope {
    All,
    Published,
}

impl AccessLogArgs {
    /// The log that is wanted, if one is.
    ///
    /// # Errors
    /// When there is no directory for the file.
    pub fn settle(&self) -> Result<Option<AccessLog>, Failure> {
        let Some(given) = &self.access_log else { return Ok(None) };
        let wrong = |reason: String| Failure::usage(format!("--access-log: {reason}"));
        let path = std::path::absolute(given).map_err(|error| wrong(error.to_string()))?;
        let directory = path.parent().filter(|directory| directory.is_dir());
        if directory.is_none() || path.is_dir() {
            let reason = format!("{} can't be a file", path.display());
            return Err(wrong(reason).hint("name a file in a directory that exists"));
        }
        let default = AccessLog::default();
        let slow_ms = |slow: Duration| u64::try_from(slow.as_millis()).unwrap_or(u64::MAX);
        Ok(Some(AccessLog {
            path,
            format: match self.access_log_format {
                Some(Format::Combined) => LogFormat::Combined,
                Some(Format::Json) | None => LogFormat::Json,
            },
            sample_per_mille: self.access_log_sample.unwrap_or(default.sample_per_mille),
            slow_ms: self.access_log_slow.map_or(default.slow_ms, slow_ms),
            query: self.access_log_query,
            scope: match self.access_log_scope {
                Some(Scope::Published) => LogScope::Published,
                Some(Scope::All) | None => LogScope::All,
            },
            max_size: self.access_log_max_size.unwrap_or(default.max_size),
            keep: self.access_log_keep.unwrap_or(default.keep),
        }))
    }

    /// The same as words of a command line, for a server in the background.
    ///
    /// # Errors
    /// As [`Self::settle`].
    pub fn words(&self) -> Result<Vec<String>, Failure> {
        let Some(log) = self.settle()? else { return Ok(Vec::new()) };
        let name = |value: Option<clap::builder::PossibleValue>| {
            value.map(|value| value.get_name().to_owned()).unwrap_or_default()
        };
        let format = self.access_log_format.unwrap_or(Format::Json).to_possible_value();
        let scope = self.access_log_scope.unwrap_or(Scope::All).to_possible_value();
        let mut words = Vec::new();
        for (option, value) in [
            ("--access-log", log.path.display().to_string()),
            ("--access-log-format", name(format)),
            ("--access-log-sample", log.sample_per_mille.to_string()),
            ("--access-log-slow", format!("{}ms", log.slow_ms)),
            ("--access-log-scope", name(scope)),
            ("--access-log-max-size", log.max_size.to_string()),
            ("--access-log-keep", log.keep.to_string()),
        ] {
            words.extend([option.to_owned(), value]);
        }
        words.extend(log.query.then(|| "--access-log-query".to_owned()));
        Ok(words)
    }
}

/// Reads a size as Compose files have it: `100m`, `1gb`, plain bytes.
fn parse_size(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is not a size: write for example 500k, 100m or 2g");
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..digits].parse().map_err(|_| wrong())?;
    let shift = match text[digits..].to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" => 10,
        "m" | "mb" => 20,
        "g" | "gb" => 30,
        _ => return Err(wrong()),
    };
    number.checked_mul(1 << shift).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        log: AccessLogArgs,
    }

    fn settled(words: &[String]) -> Option<AccessLog> {
        let words = std::iter::once("keel").chain(words.iter().map(String::as_str));
        Line::try_parse_from(words).unwrap().log.settle().unwrap()
    }

    #[test]
    fn the_words_for_a_server_in_the_background_say_the_same() {
        assert_eq!(settled(&[]), None);
        let directory = tempfile::tempdir().unwrap();
        let args = AccessLogArgs {
            access_log: Some(directory.path().join("a.log")),
            access_log_format: Some(Format::Combined),
            access_log_sample: Some(10),
            access_log_slow: Some(Duration::from_millis(1500)),
            access_log_query: true,
            access_log_scope: Some(Scope::Published),
            access_log_max_size: Some(1 << 20),
            access_log_keep: Some(2),
        };
        let log = args.settle().unwrap().unwrap();
        assert_eq!(settled(&args.words().unwrap()), Some(log.clone()));
        assert_eq!((log.format, log.slow_ms), (LogFormat::Combined, 1500));
        let plain = AccessLogArgs { access_log: args.access_log, ..AccessLogArgs::default() };
        assert_eq!(settled(&plain.words().unwrap()), plain.settle().unwrap());
    }

    #[test]
    fn a_file_needs_a_directory() {
        for path in ["/nowhere/at/all.log", "/"] {
            let args = AccessLogArgs { access_log: Some(path.into()), ..AccessLogArgs::default() };
            assert!(args.settle().is_err(), "{path}");
        }
    }

    #[test]
    fn sizes() {
        assert_eq!(parse_size("0"), Ok(0));
        assert_eq!(parse_size("3K"), Ok(3 << 10));
        assert_eq!(parse_size("100mb"), Ok(100 << 20));
        for bad in ["", "m", "1t", "-1", "1.5g", "99999999999g"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }
}
