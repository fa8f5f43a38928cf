//! All gates in order, with a summary.
//!
//! The cheap ones end nothing. The first one that fails among those that compile ends the run, since the next ones would
//! mostly repeat its message; `--keep-going` runs them all the same. Every gate uses the `dev` profile, so that
//! nothing is compiled twice but what differs by nature (checked, or built).

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::report::{Style, Tone, Verdict};
use crate::workspace::Workspace;
use crate::{docs, graph, tidy, unused};

type Check = fn(&Workspace, &[String], Style) -> Result<Verdict>;

/// How a gate is passed.
enum How {
    /// By a check of ours with these arguments.
    Check(Check, &'static [&'static str]),
    /// By a cargo command, with this addition to its environment.
    Cargo(&'static [&'static str], Option<(&'static str, &'static str)>),
    /// By a program of the project.
    Program(&'static [&'static str]),
    /// By the tests, with nextest where it is installed.
    Tests,
}

struct Gate {
    name: &'static str,
    cheap: bool,
    how: How,
}

const WARNINGS_DENIED: Option<(&str, &str)> = Some(("RUSTDOCFLAGS", "-D warnings"));

const GATES: &[Gate] = &[
    Gate { name: "fmt", cheap: true, how: How::Cargo(&["fmt", "--all", "--check"], None) },
    Gate { name: "tidy", cheap: true, how: How::Check(tidy::run, &[]) },
    Gate { name: "graph", cheap: true, how: How::Check(graph::run, &[]) },
    Gate { name: "unused", cheap: true, how: How::Check(unused::run, &[]) },
    Gate {
        name: "clippy",
        cheap: false,
        how: How::Cargo(
            &["clippy", "--locked", "--workspace", "--all-targets", "--", "-D", "warnings"],
            None,
        ),
    },
    Gate {
        name: "rustdoc",
        cheap: false,
        how: How::Cargo(&["doc", "--locked", "--workspace", "--no-deps"], WARNINGS_DENIED),
    },
    Gate {
        name: "doctests",
        cheap: false,
        how: How::Cargo(&["test", "--locked", "--workspace", "--doc"], None),
    },
    Gate {
        name: "examples",
        cheap: false,
        how: How::Program(&["python3", "examples/test_examples.py"]),
    },
    Gate { name: "tests", cheap: false, how: How::Tests },
    Gate { name: "docs", cheap: false, how: How::Check(docs::run, &["--check"]) },
];

/// What became of a gate.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Passed(Duration),
    Failed(Duration),
    NotRun,
}

pub(crate) fn run(workspace: &Workspace, arguments: &[String], style: Style) -> Result<Verdict> {
    let keep_going = arguments.iter().any(|argument| argument == "--keep-going");
    let named: Vec<_> = arguments.iter().filter(|argument| *argument != "--keep-going").collect();
    if let Some(unknown) = named.iter().find(|name| !GATES.iter().any(|gate| gate.name == **name)) {
        let names: Vec<_> = GATES.iter().map(|gate| gate.name).collect();
        bail!("no gate {unknown:?}; there are: {}", names.join(", "));
    }
    let chosen =
        GATES.iter().filter(|gate| named.is_empty() || named.iter().any(|n| *n == gate.name));
    let mut outcomes = Vec::new();
    let mut stopped = false;
    for gate in chosen {
        let stops = stopped && !gate.cheap && !keep_going;
        let tested = outcomes.iter().any(|(name, _)| *name == "tests");
        let more: &[&str] = if tested && gate.name == "docs" { &[docs::BUILT] } else { &[] };
        let outcome = if stops { Outcome::NotRun } else { pass(workspace, gate, more, style)? };
        stopped |= !gate.cheap && matches!(outcome, Outcome::Failed(_));
        outcomes.push((gate.name, outcome));
    }
    eprintln!("\n{}", table(&outcomes, style));
    let failed = outcomes.iter().filter(|(_, outcome)| matches!(outcome, Outcome::Failed(_)));
    let problems = failed.map(|(name, _)| format!("{name} (alone: cargo xtask ci {name})"));
    Ok(Verdict { problems: problems.collect(), notes: Vec::new() })
}

/// Runs one gate; `more` are further arguments for a check of ours.
fn pass(workspace: &Workspace, gate: &Gate, more: &[&str], style: Style) -> Result<Outcome> {
    eprintln!("\n{}", style.paint(Tone::Strong, &format!("── {}", gate.name)));
    let started = Instant::now();
    let passed = match &gate.how {
        How::Check(check, arguments) => {
            let arguments: Vec<_> =
                arguments.iter().chain(more).map(|&argument| argument.to_owned()).collect();
            match check(workspace, &arguments, style) {
                Ok(verdict) => {
                    verdict.print(gate.name, style);
                    !verdict.failed()
                }
                Err(error) => {
                    eprintln!("{} {error:#}", style.paint(Tone::Bad, "✗"));
                    false
                }
            }
        }
        How::Cargo(arguments, variable) => cargo(workspace, arguments, *variable)?,
        How::Program(words) => {
            let mut command = Command::new(words[0]);
            command.current_dir(&workspace.root).args(&words[1..]).status()?.success()
        }
        How::Tests if has_nextest() => cargo(
            workspace,
            &["nextest", "run", "--locked", "--workspace", "--no-fail-fast"],
            None,
        )?,
        How::Tests => cargo(
            workspace,
            &["test", "--locked", "--workspace", "--all-targets", "--no-fail-fast"],
            None,
        )?,
    };
    let took = started.elapsed();
    Ok(if passed { Outcome::Passed(took) } else { Outcome::Failed(took) })
}

fn cargo(
    workspace: &Workspace,
    arguments: &[&str],
    variable: Option<(&str, &str)>,
) -> Result<bool> {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(program);
    command.current_dir(&workspace.root).args(arguments).envs(variable);
    Ok(command.status()?.success())
}

fn has_nextest() -> bool {
    Command::new("cargo-nextest")
        .args(["nextest", "--version"])
        .output()
        .is_ok_and(|output| output.status.success())
}

fn table(outcomes: &[(&str, Outcome)], style: Style) -> String {
    let total: Duration = outcomes
        .iter()
        .map(|(_, outcome)| match outcome {
            Outcome::Passed(took) | Outcome::Failed(took) => *took,
            Outcome::NotRun => Duration::ZERO,
        })
        .sum();
    let mut text = String::new();
    for (name, outcome) in outcomes {
        let (tone, mark, took) = match outcome {
            Outcome::Passed(took) => (Tone::Good, "✓ ok", seconds(*took)),
            Outcome::Failed(took) => (Tone::Bad, "✗ failed", seconds(*took)),
            Outcome::NotRun => (Tone::Faint, "– not run", String::new()),
        };
        let mark = style.paint(tone, &format!("{mark:<10}"));
        text += format!("{name:<10}{mark}{took:>8}").trim_end();
        text += "\n";
    }
    text + &format!("{:<20}{:>8}", "total", seconds(total))
}

fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_is_aligned_and_says_it_in_words() {
        let outcomes = [
            ("fmt", Outcome::Passed(Duration::from_millis(1240))),
            ("clippy", Outcome::Failed(Duration::from_millis(61_050))),
            ("tests", Outcome::NotRun),
        ];
        assert_eq!(
            table(&outcomes, Style::Plain),
            "fmt       ✓ ok         1.2 s\n\
             clippy    ✗ failed    61.0 s\n\
             tests     – not run\n\
             total                 62.3 s"
        );
        assert!(table(&outcomes, Style::Coloured).contains("\x1b[32m✓ ok"));
    }
}
