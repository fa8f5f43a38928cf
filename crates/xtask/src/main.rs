//! The project's own tools: `cargo xtask ci` and what it is made of.
//!
//! Each command is one module with a `run` function and one line in [`COMMANDS`].

mod bench;
mod ci;
mod docs;
mod fuzz;
mod graph;
mod report;
mod source;
mod tidy;
mod unused;
mod workspace;

use std::process::ExitCode;

use report::{Style, Verdict};
use workspace::Workspace;

/// One subcommand.
struct Command {
    name: &'static str,
    usage: &'static str,
    about: &'static str,
    run: fn(&Workspace, &[String], Style) -> anyhow::Result<Verdict>,
}

const COMMANDS: &[Command] = &[
    Command {
        name: "ci",
        usage: "[--keep-going] [GATE…]",
        about: "every gate in order, or those named",
        run: ci::run,
    },
    Command {
        name: "docs",
        usage: "[--check] [--built]",
        about: "write the generated pages of docs/, or show how they differ (from the built binary)",
        run: docs::run,
    },
    Command {
        name: "fuzz",
        usage: "[TARGET…] [--runs N] [--keep]",
        about: "fuzz the readers of hostile bytes (and keep what reaches new code)",
        run: fuzz::run,
    },
    Command {
        name: "graph",
        usage: "",
        about: "who may depend on whom, and what a pure crate may not use",
        run: graph::run,
    },
    Command {
        name: "tidy",
        usage: "",
        about: "file lengths, module headers, leftovers, banned words",
        run: tidy::run,
    },
    Command {
        name: "unused",
        usage: "",
        about: "dependencies that nothing mentions",
        run: unused::run,
    },
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Some((name, rest)) = arguments.split_first() else {
        eprint!("{}", usage());
        return ExitCode::from(2);
    };
    if matches!(name.as_str(), "help" | "--help" | "-h") {
        print!("{}", usage());
        return ExitCode::SUCCESS;
    }
    if name == "bench" {
        return bench::main(rest);
    }
    if name == bench::kit::COMMAND {
        return bench::kit::main(rest);
    }
    let Some(command) = COMMANDS.iter().find(|command| command.name == name) else {
        eprint!("xtask: no command {name:?}\n\n{}", usage());
        return ExitCode::from(2);
    };
    let style = Style::detect();
    let result = Workspace::load().and_then(|workspace| (command.run)(&workspace, rest, style));
    match result {
        Ok(verdict) => {
            verdict.print(command.name, style);
            if verdict.failed() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
        }
        Err(error) => {
            eprintln!("xtask {}: {error:#}", command.name);
            ExitCode::from(2)
        }
    }
}

fn usage() -> String {
    let mut text = "usage: cargo xtask COMMAND\n\n".to_owned();
    for Command { name, usage, about, .. } in COMMANDS {
        text += &format!("  {:32}{about}\n", format!("{name} {usage}"));
    }
    text
}

/// Refuses arguments of a command that takes none.
fn no_arguments(arguments: &[String]) -> anyhow::Result<()> {
    match arguments.first() {
        Some(argument) => anyhow::bail!("unexpected argument {argument:?}"),
        None => Ok(()),
    }
}
