//! How the watch tells what it does: one line for each batch.

use std::time::Duration;

use keel_model::ServiceName;
use serde::Serialize;

use crate::context::{Context, print, print_json_line};
use crate::failure::Failure;
use crate::ui::time;

/// Where lines go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// They are what the command is for.
    Output,
    /// Beside the logs of the services.
    Talk,
}

/// Tells.
#[derive(Clone, Copy)]
pub struct Say<'a> {
    /// Options and streams.
    pub ctx: &'a Context,
    /// Where lines go.
    pub stream: Stream,
}

/// What was done about a batch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Batch {
    /// Files, links and directories that had changed.
    pub changed: usize,
    /// What was done, in order: `copied to 2 instances`, `restarted`.
    pub done: Vec<String>,
    /// What could not be done.
    pub failed: Vec<String>,
}

#[derive(Serialize)]
struct Json<'a> {
    at: String,
    service: &'a str,
    #[serde(flatten)]
    batch: &'a Batch,
    duration_ms: u64,
}

impl Batch {
    /// `3 files: copied to 2 instances, restarted`.
    fn text(&self) -> String {
        let files = count(self.changed, "file");
        let all: Vec<&str> = self.done.iter().chain(&self.failed).map(String::as_str).collect();
        let all = if all.is_empty() { "nothing to do".to_owned() } else { all.join(", ") };
        match self.changed {
            0 => all,
            _ => format!("{files}: {all}"),
        }
    }
}

/// `1 file`, `2 files`.
pub fn count(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

impl Say<'_> {
    /// Tells what was done about a batch.
    pub fn batch(
        &self,
        service: &ServiceName,
        batch: &Batch,
        took: Duration,
    ) -> Result<(), Failure> {
        let now = time::now();
        let ctx = self.ctx;
        if ctx.json() && self.stream == Stream::Output {
            return print_json_line(&Json {
                at: time::rfc3339(now),
                service: service.as_str(),
                batch,
                duration_ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
            });
        }
        let paint = if self.stream == Stream::Output { ctx.paint } else { ctx.talk };
        let sign = if batch.failed.is_empty() { paint.good("✔") } else { paint.bad("✘") };
        let (at, took) = (paint.dim(time::of_day(now)), paint.dim(time::short(took)));
        let line = format!("{at} {sign} {}  {}  {took}", paint.bold(service), batch.text());
        match self.stream {
            Stream::Output => print(&format!("{line}\n")),
            Stream::Talk => {
                ctx.note(&line);
                Ok(())
            }
        }
    }

    /// Tells what is going on.
    pub fn note(&self, text: &str) {
        self.ctx.note(&self.ctx.talk.dim(text));
    }

    /// Tells what a command in an instance says.
    pub fn line(&self, instance: &str, line: &str) {
        self.ctx.note(&format!("{} {line}", self.ctx.talk.dim(format_args!("{instance} |"))));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_how_many_files_and_what_became_of_them() {
        let batch = |changed, done: &[&str], failed: &[&str]| {
            let owned = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
            Batch { changed, done: owned(done), failed: owned(failed) }.text()
        };
        assert_eq!(batch(1, &["copied to 2 instances"], &[]), "1 file: copied to 2 instances");
        assert_eq!(batch(3, &["built"], &["not released"]), "3 files: built, not released");
        assert_eq!(batch(0, &["copied to 1 new instance"], &[]), "copied to 1 new instance");
        assert_eq!(batch(2, &[], &[]), "2 files: nothing to do");
    }
}
