//! The pages of `docs/` that the binary writes about itself.
//!
//! Each page is what one hidden subcommand of `keel` prints, so the page and the behaviour come from one definition.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::report::{Style, Verdict};
use crate::workspace::Workspace;

/// Takes the binary that the tests have just built, instead of building one with other features of shared packages.
pub(crate) const BUILT: &str = "--built";

/// Page → the subcommand that prints it.
const PAGES: &[(&str, &str)] = &[
    ("docs/cli.md", "help-markdown"),
    ("docs/compose-support.md", "help-compose-support"),
    ("docs/labels.md", "help-labels"),
];

pub(crate) fn run(workspace: &Workspace, arguments: &[String], _: Style) -> Result<Verdict> {
    let has = |flag: &str| arguments.iter().any(|argument| argument == flag);
    if let Some(other) = arguments.iter().find(|a| *a != "--check" && *a != BUILT) {
        bail!("unexpected argument {other:?}");
    }
    let check = has("--check");
    let program = if has(BUILT) { workspace.target.join("debug/keel") } else { build(workspace)? };
    let mut verdict = Verdict::default();
    for (page, subcommand) in PAGES {
        let wanted = print(&program, subcommand)?;
        let path = workspace.root.join(page);
        if fs::read_to_string(&path).is_ok_and(|found| found == wanted) {
            continue;
        }
        if check {
            let difference = difference(&path, &wanted)?;
            let problem = format!("{page} is stale; run: cargo xtask docs\n{difference}");
            verdict.problems.push(problem);
        } else {
            fs::create_dir_all(path.parent().context("a page lies in a directory")?)?;
            fs::write(&path, wanted).with_context(|| path.display().to_string())?;
            verdict.notes.push(format!("{page} written"));
        }
    }
    Ok(verdict)
}

/// Builds the binary for this alone.
fn build(workspace: &Workspace) -> Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .current_dir(&workspace.root)
        .args(["build", "--quiet", "--locked", "--package", "keel"])
        .status()
        .context("cargo could not be started")?;
    if !status.success() {
        bail!("keel could not be built");
    }
    Ok(workspace.target.join("debug/keel"))
}

/// What `keel SUBCOMMAND` prints, tidied to end in one line break.
fn print(program: &Path, subcommand: &str) -> Result<String> {
    let output = Command::new(program)
        .arg(subcommand)
        // A page must not depend on who makes it.
        .env("NO_COLOR", "1")
        .env("COLUMNS", "100")
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| program.display().to_string())?;
    if !output.status.success() {
        bail!("`keel {subcommand}` failed ({})", output.status);
    }
    let text = String::from_utf8(output.stdout).context("the page is not text")?;
    if text.trim().is_empty() {
        bail!("`keel {subcommand}` printed nothing");
    }
    Ok(format!("{}\n", text.trim_end()))
}

/// How the file differs from what it should be, as `diff -u` shows it.
fn difference(path: &Path, wanted: &str) -> Result<String> {
    let old = if path.exists() { path } else { Path::new("/dev/null") };
    let mut child = Command::new("diff")
        .args(["-u", "--label", "found", "--label", "wanted"])
        .arg(old)
        .arg("-")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("diff could not be started")?;
    let mut input = child.stdin.take().context("a pipe was asked for")?;
    let text = wanted.to_owned();
    let writer = std::thread::spawn(move || input.write_all(text.as_bytes()));
    let output = child.wait_with_output()?;
    // The difference is shown as far as diff read.
    let _ = writer.join();
    Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_is_shown_line_by_line() {
        let path = std::env::temp_dir().join(format!("xtask-docs-{}", std::process::id()));
        fs::write(&path, "same\nold\n").unwrap();
        let shown = difference(&path, "same\nnew\n").unwrap();
        fs::remove_file(&path).unwrap();
        assert!(shown.contains("\n-old\n+new"), "{shown}");
        let absent = difference(&path, "new\n").unwrap();
        assert!(absent.ends_with("+new"), "{absent}");
    }
}
