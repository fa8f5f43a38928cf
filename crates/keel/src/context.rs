//! What every command works with: the options, the streams, the server's address.

use std::io::{self, IsTerminal as _, Write as _};
use std::path::PathBuf;

use keel_server::api::client::Client;
use serde::Serialize;

use crate::cli::{Cli, GlobalArgs, OutputForm, ProgressForm};
use crate::failure::Failure;
use crate::ui::paint::Paint;

/// What every command works with.
#[derive(Debug)]
pub struct Context {
    /// The Compose files named on the command line.
    pub files: Vec<PathBuf>,
    /// The other options.
    pub global: GlobalArgs,
    /// Where the server keeps its state.
    pub state_dir: PathBuf,
    /// Colours standard output.
    pub paint: Paint,
    /// Colours standard error.
    pub talk: Paint,
}

impl Context {
    /// Settles the options of a command line.
    ///
    /// # Errors
    /// When no state directory can be found.
    pub fn new(cli: &Cli) -> Result<Self, Failure> {
        let files = cli.files.file.iter().chain(cli.command.files()).cloned().collect();
        Ok(Self {
            files,
            state_dir: state_dir(cli.global.state_dir.as_deref())?,
            paint: Paint::new(cli.global.color, &io::stdout()),
            talk: Paint::new(cli.global.color, &io::stderr()),
            global: cli.global.clone(),
        })
    }

    /// A client of the server.
    pub fn client(&self) -> Client {
        Client::new(keel_server::socket_path(&self.state_dir))
    }

    /// Whether output is for programs.
    pub fn json(&self) -> bool {
        self.global.output == OutputForm::Json
    }

    /// How progress is shown, settled.
    pub fn progress(&self) -> ProgressForm {
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        match self.global.progress {
            ProgressForm::Auto | ProgressForm::Tty if io::stderr().is_terminal() && !dumb => {
                ProgressForm::Tty
            }
            ProgressForm::Auto | ProgressForm::Tty => ProgressForm::Plain,
            settled => settled,
        }
    }

    /// Says something on standard error.
    pub fn note(&self, text: &str) {
        crate::say(&format!("{text}\n"));
    }

    /// Warns on standard error.
    pub fn warn(&self, text: &str) {
        self.note(&format!("{}: {text}", self.talk.warning("warning")));
    }
}

/// Writes to standard output.
///
/// # Errors
/// When it can't be written; a closed pipe ends the command quietly.
pub fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()?;
    Ok(())
}

/// Writes a value to standard output as indented JSON.
///
/// # Errors
/// As [`print()`].
pub fn print_json(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|error| Failure::failed("internal", format!("cannot write JSON: {error}")))?;
    print(&(text + "\n"))
}

/// Writes a value to standard output as one line of JSON.
///
/// # Errors
/// As [`print()`].
pub fn print_json_line(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string(value)
        .map_err(|error| Failure::failed("internal", format!("cannot write JSON: {error}")))?;
    print(&(text + "\n"))
}

/// Cursor to the top, and everything below it gone.
const CLEAR: &str = "\x1b[H\x1b[J";

/// Writes one of several looks at the same thing, or the only one: a line of JSON each, or a table that takes the place of
/// the one before in a terminal.
///
/// # Errors
/// As [`print()`].
pub fn print_look(
    rows: &impl Serialize,
    table: impl FnOnce() -> String,
    json: bool,
    goes_on: bool,
) -> Result<(), Failure> {
    match (json, goes_on) {
        (true, true) => print_json_line(rows),
        (true, false) => print_json(rows),
        (false, true) if io::stdout().is_terminal() => print(&format!("{CLEAR}{}", table())),
        (false, true) => print(&format!("{}\n", table())),
        (false, false) => print(&table()),
    }
}

fn state_dir(given: Option<&std::path::Path>) -> Result<PathBuf, Failure> {
    if let Some(given) = given {
        return std::path::absolute(given)
            .map_err(|error| Failure::usage(format!("--state-dir: {error}")));
    }
    if rustix::process::geteuid().is_root() {
        return Ok(PathBuf::from("/var/lib/keel"));
    }
    let set = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    set("XDG_STATE_HOME")
        .or_else(|| set("HOME").map(|home| home.join(".local/state")))
        .map(|base| base.join("keel"))
        .ok_or_else(|| {
            Failure::usage("there is no place for the server's state: HOME is not set")
                .hint("name a directory with --state-dir or KEEL_STATE_DIR")
        })
}
