//! Log lines of a stack, as they come, over restarts of the server; and how they are printed.

use keel_model::{StackName, Timestamp};
use keel_server::api::client::{Client, Error, Lines};
use keel_server::api::types::{LogRecord, LogsQuery};
use serde::Serialize;
use tokio::time::{Instant, sleep};

use crate::context::{Context, print, print_json_line};
use crate::failure::Failure;
use crate::ui::prefix::Prefixes;
use crate::ui::time;
use crate::wait::{RECONNECT, RECONNECT_PAUSE};

/// Lines of one millisecond that are remembered, to tell repeated ones after a reconnection.
const MAX_SAME_TIME: usize = 10_000;

/// The log lines of a stack.
pub struct LogStream {
    client: Client,
    stack: StackName,
    query: LogsQuery,
    lines: Option<Lines<LogRecord>>,
    /// Time of the latest line, and the lines that have it.
    latest: Timestamp,
    same_time: Vec<(String, String)>,
    /// Lines of `same_time` that the server sends again after a reconnection.
    repeated: Vec<(String, String)>,
}

impl LogStream {
    /// Opens the stream.
    ///
    /// # Errors
    /// When the server refuses or does not answer.
    pub async fn open(
        client: &Client,
        stack: &StackName,
        query: LogsQuery,
    ) -> Result<Self, Failure> {
        let lines = client.logs(stack.as_str(), &query).await?;
        Ok(Self {
            client: client.clone(),
            stack: stack.clone(),
            query,
            lines: Some(lines),
            latest: Timestamp(0),
            same_time: Vec::new(),
            repeated: Vec::new(),
        })
    }

    /// The next line; `None` when there are no more, or the stack is gone.
    ///
    /// # Errors
    /// When the server goes away for good.
    pub async fn next(&mut self) -> Result<Option<LogRecord>, Failure> {
        let mut lost = None;
        loop {
            if let Some(lines) = &mut self.lines {
                match lines.next().await {
                    Some(Ok(record)) => {
                        if self.is_new(&record) {
                            return Ok(Some(record));
                        }
                        continue;
                    }
                    None if !self.query.follow => return Ok(None),
                    Some(Err(error)) if !self.query.follow => return Err(error.into()),
                    Some(Err(_)) | None => self.lines = None,
                }
            }
            let since = *lost.get_or_insert_with(Instant::now);
            sleep(RECONNECT_PAUSE).await;
            match self.client.logs(self.stack.as_str(), &self.resumed()).await {
                Ok(lines) => {
                    self.lines = Some(lines);
                    self.repeated.clone_from(&self.same_time);
                }
                Err(Error::Refused(_)) => return Ok(None),
                Err(error) if since.elapsed() > RECONNECT => return Err(error.into()),
                Err(_) => {}
            }
        }
    }

    fn resumed(&self) -> LogsQuery {
        if self.latest == Timestamp(0) {
            return self.query.clone();
        }
        LogsQuery { since: Some(self.latest.0), tail: None, ..self.query.clone() }
    }

    fn is_new(&mut self, record: &LogRecord) -> bool {
        let line = (record.instance.to_string(), record.text.clone());
        if record.at == self.latest
            && let Some(at) = self.repeated.iter().position(|other| *other == line)
        {
            self.repeated.swap_remove(at);
            return false;
        }
        if record.at > self.latest {
            self.latest = record.at;
            self.same_time.clear();
            self.repeated.clear();
        }
        if record.at == self.latest && self.same_time.len() < MAX_SAME_TIME {
            self.same_time.push(line);
        }
        true
    }
}

/// How log lines look.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct LogStyle {
    /// Show when each line was written
    #[arg(short, long)]
    pub timestamps: bool,
    /// Do not show which instance wrote a line
    #[arg(long)]
    pub no_log_prefix: bool,
    /// Do not colour the prefixes
    #[arg(long)]
    pub no_color: bool,
}

/// Prints log lines on standard output.
pub struct LogPrinter {
    style: LogStyle,
    json: bool,
    stack: StackName,
    prefixes: Prefixes,
}

#[derive(Serialize)]
struct JsonLine<'a> {
    at: String,
    instance: &'a str,
    service: &'a str,
    stream: &'a str,
    text: &'a str,
}

impl LogPrinter {
    /// Prints in this style.
    pub fn new(ctx: &Context, stack: &StackName, style: LogStyle) -> Self {
        let paint = if style.no_color { crate::ui::paint::Paint::PLAIN } else { ctx.paint };
        Self { style, json: ctx.json(), stack: stack.clone(), prefixes: Prefixes::new(paint) }
    }

    /// Makes room for an instance before its first line.
    pub fn expect(&mut self, instance: &str) {
        let short = short_name(&self.stack, instance);
        self.prefixes.expect(short);
    }

    /// Prints one line.
    ///
    /// # Errors
    /// When standard output can't be written.
    pub fn print(&mut self, record: &LogRecord) -> Result<(), Failure> {
        if self.json {
            return print_json_line(&JsonLine {
                at: time::rfc3339(record.at),
                instance: record.instance.as_str(),
                service: record.service.as_str(),
                stream: &record.stream,
                text: &record.text,
            });
        }
        print(&self.line(record))
    }

    fn line(&mut self, record: &LogRecord) -> String {
        let prefix = if self.style.no_log_prefix {
            String::new()
        } else {
            self.prefixes.prefix(short_name(&self.stack, record.instance.as_str()))
        };
        let at = if self.style.timestamps {
            format!("{} ", time::rfc3339(record.at))
        } else {
            String::new()
        };
        format!("{prefix}{at}{}\n", record.text)
    }
}

/// An instance's name without that of its stack, as `docker compose logs` has it.
pub fn short_name<'a>(stack: &StackName, instance: &'a str) -> &'a str {
    instance
        .strip_prefix(stack.as_str())
        .and_then(|rest| rest.strip_prefix('-'))
        .unwrap_or(instance)
}

#[cfg(test)]
mod tests {
    use keel_model::{InstanceId, ServiceName};

    use super::*;

    fn record(instance: &str, at: u64, text: &str) -> LogRecord {
        LogRecord {
            instance: InstanceId::new(instance).unwrap(),
            service: ServiceName::new("web").unwrap(),
            at: Timestamp(at),
            stream: "stdout".to_owned(),
            text: text.to_owned(),
        }
    }

    fn printer(style: LogStyle) -> LogPrinter {
        LogPrinter {
            style,
            json: false,
            stack: StackName::new("shop").unwrap(),
            prefixes: Prefixes::new(crate::ui::paint::Paint::PLAIN),
        }
    }

    #[test]
    fn lines_look_like_those_of_docker_compose() {
        let line = record("shop-web-1", 1_700_000_000_250, "hello");
        assert_eq!(printer(LogStyle::default()).line(&line), "web-1  | hello\n");
        let style = LogStyle { timestamps: true, no_log_prefix: true, no_color: false };
        assert_eq!(printer(style).line(&line), "2023-11-14T22:13:20.250Z hello\n");
    }

    #[test]
    fn lines_that_come_again_after_a_reconnection_are_dropped() {
        let mut stream = LogStream {
            client: Client::new("/nowhere"),
            stack: StackName::new("shop").unwrap(),
            query: LogsQuery::default(),
            lines: None,
            latest: Timestamp(0),
            same_time: Vec::new(),
            repeated: Vec::new(),
        };
        assert!(stream.is_new(&record("shop-web-1", 5, "a")));
        assert!(stream.is_new(&record("shop-web-1", 6, "b")));
        assert!(stream.is_new(&record("shop-web-1", 6, "b")));
        assert_eq!(stream.resumed().since, Some(6));
        stream.repeated.clone_from(&stream.same_time);
        assert!(!stream.is_new(&record("shop-web-1", 6, "b")));
        assert!(!stream.is_new(&record("shop-web-1", 6, "b")));
        assert!(stream.is_new(&record("shop-web-1", 6, "b")));
        assert!(stream.is_new(&record("shop-web-1", 7, "b")));
    }
}
