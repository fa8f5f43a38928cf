//! Why a command did not succeed, and the exit code that says so.
//!
//! Exit codes: 0 done; 1 the operation failed; 2 usage; 3 the input files are wrong; 4 the server can't be
//! reached or started; 75 another server has the state directory; 130 interrupted. `keel exec` ends with the code of the command that it ran.

use std::process::ExitCode;

use keel_server::api::client;

use crate::ui::paint::Paint;

/// The operation failed.
pub const FAILED: u8 = 1;
/// The command line is wrong.
pub const USAGE: u8 = 2;
/// The input files are wrong.
pub const INPUT: u8 = 3;
/// The server can't be reached or started.
pub const UNREACHABLE: u8 = 4;
/// Interrupted by the user.
pub const INTERRUPTED: u8 = 130;

/// What the help of `keel` says about exit codes.
pub const EXIT_CODES: &str = "\
Exit codes:
  0    done
  1    the operation failed (a service failed, a revision was rolled back, no such service, …)
  2    the command line is wrong
  3    the Compose files are wrong
  4    the server can't be reached or started
  75   another server has the state directory
  130  interrupted";

/// Why a command did not succeed.
#[derive(Debug)]
pub enum Failure {
    /// To be told to the user.
    Told(Report),
    /// All has been said, or nothing needs to be: end with this code.
    Quiet(u8),
}

/// What happened, and what to do.
#[derive(Debug)]
pub struct Report {
    /// Exit code.
    pub exit: u8,
    /// For programs.
    pub code: String,
    /// What happened, and where.
    pub message: String,
    /// Log lines and other context, shown below the message.
    pub details: Vec<String>,
    /// What to do.
    pub hint: Option<String>,
}

impl Failure {
    /// The operation failed.
    pub fn failed(code: &str, message: impl Into<String>) -> Self {
        Self::new(FAILED, code, message)
    }

    /// The command line makes no sense.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(USAGE, "usage", message)
    }

    /// The input files are wrong in a way that has no place in them.
    pub fn input(message: impl Into<String>) -> Self {
        Self::new(INPUT, "input", message)
    }

    /// The server can't be reached or started.
    pub fn unreachable(message: impl Into<String>) -> Self {
        Self::new(UNREACHABLE, "server", message)
    }

    fn new(exit: u8, code: &str, message: impl Into<String>) -> Self {
        Self::Told(Report {
            exit,
            code: code.to_owned(),
            message: message.into(),
            details: Vec::new(),
            hint: None,
        })
    }

    /// Ends with another exit code.
    pub fn exit(mut self, exit: u8) -> Self {
        if let Self::Told(report) = &mut self {
            report.exit = exit;
        }
        self
    }

    /// Adds what to do.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        if let Self::Told(report) = &mut self {
            report.hint = Some(hint.into());
        }
        self
    }

    /// Adds context.
    pub fn details(mut self, details: Vec<String>) -> Self {
        if let Self::Told(report) = &mut self {
            report.details.extend(details);
        }
        self
    }

    /// What happened, in one line.
    pub fn summary(&self) -> String {
        match self {
            Self::Quiet(_) => "it failed".to_owned(),
            Self::Told(report) => report.message.clone(),
        }
    }

    /// Whether a service failed, so that what was asked for has been done and did not come out well.
    pub fn is_of_a_service(&self) -> bool {
        matches!(self, Self::Told(report) if ["service_failed", "rolled_back"].contains(&report.code.as_str()))
    }

    /// Tells the user on standard error and gives the exit code.
    pub fn report(&self, paint: Paint, json: bool) -> ExitCode {
        match self {
            Self::Quiet(code) => ExitCode::from(*code),
            Self::Told(report) => {
                let text = if json { report.json() } else { report.text(paint) };
                crate::say(&text);
                ExitCode::from(report.exit)
            }
        }
    }
}

impl Report {
    fn text(&self, paint: Paint) -> String {
        let mut text = format!("{}: {}\n", paint.error("error"), paint.bold(&self.message));
        for line in &self.details {
            text.push_str(&format!("  {line}\n"));
        }
        if let Some(hint) = &self.hint {
            text.push_str(&format!("{}: {hint}\n", paint.hint("hint")));
        }
        text
    }

    fn json(&self) -> String {
        let value = serde_json::json!({
            "severity": "error",
            "code": self.code,
            "message": self.message,
            "details": self.details,
            "hint": self.hint,
        });
        format!("{value}\n")
    }
}

/// Errors of lower layers carry their hint in their text.
pub fn split_hint(text: &str) -> (&str, Option<&str>) {
    match text.split_once("\n  hint: ") {
        Some((message, hint)) => (message, Some(hint)),
        None => (text, None),
    }
}

impl From<client::Error> for Failure {
    fn from(error: client::Error) -> Self {
        let message = error.to_string();
        match error {
            client::Error::Refused(body) => {
                let (text, hint) = split_hint(&body.message);
                let hint = body.hint.as_deref().or(hint).map(str::to_owned);
                let failure = Self::failed(&body.code, text);
                match hint {
                    Some(hint) => failure.hint(hint),
                    None => failure,
                }
            }
            client::Error::NotRunning { .. } => Self::unreachable(message).hint(
                "`keel up` starts one; `keel server` runs one in the foreground. If it keeps its state \
                 elsewhere, name the directory with --state-dir",
            ),
            client::Error::Denied { .. } => Self::unreachable(message).hint(
                "it belongs to another user: run keel as that user (or with sudo), or use a server of your \
                 own with --state-dir",
            ),
            client::Error::Broken { .. } => Self::unreachable(message)
                .hint("`keel server status` tells whether it runs; its log is server.log in its state directory"),
        }
    }
}

impl From<std::io::Error> for Failure {
    /// Standard output could not be written. A reader that has seen enough (`keel logs | head`) is no error.
    fn from(error: std::io::Error) -> Self {
        if error.kind() == std::io::ErrorKind::BrokenPipe {
            Self::Quiet(0)
        } else {
            Self::failed("io", format!("cannot write the output: {error}"))
        }
    }
}
