//! Runs the fuzz targets of `fuzz/` under libFuzzer, for a bounded number of runs each.
//!
//! The stable compiler has what libFuzzer needs, behind flags of its code generator; no other toolchain is installed
//! for it. Inputs that reach something new gather below the target directory; `--keep` adds the smallest set
//! of them that reaches everything to the committed corpus, which the tests run over.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::report::{Style, Verdict};
use crate::workspace::Workspace;

/// Runs of each target unless told otherwise.
const RUNS: u64 = 1_000_000;
/// A target that is slower than this for a million runs ends before it has done them.
const MAX_TIME: Duration = Duration::from_secs(1800);
/// An input that takes longer is a finding.
const INPUT_TIMEOUT: Duration = Duration::from_secs(5);
/// Memory that a target may use is bounded by this, in MiB.
const MEMORY_MB: u32 = 1024;
/// Most inputs of one target that `--keep` leaves in the committed corpus.
const MAX_KEPT: usize = 190;
/// What the instrumentation of libFuzzer is called in the compiler, and the mark for our own code.
const FLAGS: &[&str] = &[
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Ccodegen-units=1",
    "--cfg=fuzzing",
];

/// What was asked for.
#[derive(Debug, PartialEq, Eq)]
struct Plan {
    targets: Vec<String>,
    runs: u64,
    keep: bool,
}

pub(crate) fn run(workspace: &Workspace, arguments: &[String], _: Style) -> Result<Verdict> {
    let places = Places::new(workspace);
    let plan = Plan::parse(arguments, &places.targets()?)?;
    let program = build(workspace, &places)?;
    let mut verdict = Verdict::default();
    for target in &plan.targets {
        let engine = Engine { program: &program, places: &places, target };
        let started = Instant::now();
        if engine.fuzz(plan.runs)? {
            let seconds = started.elapsed().as_secs_f64();
            // Well below 2^52.
            #[allow(clippy::cast_precision_loss)]
            let speed = plan.runs as f64 / seconds;
            verdict.notes.push(format!(
                "{target}: {} runs in {seconds:.0} s, {speed:.0} a second, nothing found",
                plan.runs
            ));
        } else {
            verdict.problems.push(engine.finding()?);
        }
        if plan.keep {
            verdict.notes.push(engine.keep()?);
        }
    }
    Ok(verdict)
}

impl Plan {
    fn parse(arguments: &[String], known: &[String]) -> Result<Self> {
        let mut plan = Self { targets: Vec::new(), runs: RUNS, keep: false };
        let mut arguments = arguments.iter();
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--keep" => plan.keep = true,
                "--runs" => {
                    let runs = arguments.next().and_then(|n| n.parse().ok());
                    plan.runs = runs.filter(|n| *n > 0).context("--runs needs a number")?;
                }
                name if known.iter().any(|k| k == name) => plan.targets.push(name.to_owned()),
                other => bail!("no target {other:?}; there are: {}", known.join(", ")),
            }
        }
        if plan.targets.is_empty() {
            plan.targets = known.to_vec();
        }
        Ok(plan)
    }
}

/// Where things lie.
struct Places {
    /// The committed corpus.
    corpus: PathBuf,
    /// Everything else.
    work: PathBuf,
}

impl Places {
    fn new(workspace: &Workspace) -> Self {
        Self { corpus: workspace.root.join("fuzz/corpus"), work: workspace.target.join("fuzz") }
    }

    /// The targets are what there is a corpus for; a test makes sure that all have one.
    fn targets(&self) -> Result<Vec<String>> {
        names(&self.corpus)
    }
}

/// Builds the program that has all targets; its path.
fn build(workspace: &Workspace, places: &Places) -> Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let host = host()?;
    let status = Command::new(cargo)
        .current_dir(&workspace.root)
        .args(["build", "--locked", "--package", "fuzz", "--bin", "fuzz", "--profile", "fuzz"])
        // With a target the flags go to what runs there only, not to build scripts and macros.
        .args(["--target", &host, "--target-dir"])
        .arg(&places.work)
        .env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join("\x1f"))
        .status()
        .context("cargo could not be started")?;
    if !status.success() {
        bail!("the targets could not be built");
    }
    Ok(places.work.join(host).join("fuzz/fuzz"))
}

/// The machine that the compiler runs on, as it calls it.
fn host() -> Result<String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc).arg("-vV").output().context("rustc could not be started")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("rustc did not say its host")?.to_owned())
}

/// libFuzzer with one target.
struct Engine<'a> {
    program: &'a Path,
    places: &'a Places,
    target: &'a str,
}

impl Engine<'_> {
    fn gathered(&self) -> PathBuf {
        self.places.work.join("gathered").join(self.target)
    }

    fn committed(&self) -> PathBuf {
        self.places.corpus.join(self.target)
    }

    fn log(&self) -> PathBuf {
        self.places.work.join(format!("{}.log", self.target))
    }

    fn command(&self) -> Result<Command> {
        let log = File::create(self.log())?;
        let found = self.places.work.join("found");
        fs::create_dir_all(&found)?;
        fs::create_dir_all(self.gathered())?;
        let mut command = Command::new(self.program);
        command
            .env("KEEL_FUZZ_TARGET", self.target)
            .arg(format!("-timeout={}", INPUT_TIMEOUT.as_secs()))
            .arg(format!("-rss_limit_mb={MEMORY_MB}"))
            .arg(format!("-artifact_prefix={}/{}-", found.display(), self.target))
            .stdout(Stdio::null())
            .stderr(log);
        Ok(command)
    }

    /// Whether nothing was found.
    fn fuzz(&self, runs: u64) -> Result<bool> {
        let most = MAX_TIME.as_secs() * runs.div_ceil(1_000_000);
        let status = self
            .command()?
            .arg(format!("-runs={runs}"))
            .arg(format!("-max_total_time={most}"))
            .args([self.gathered(), self.committed()])
            .status()?;
        let log = fs::read_to_string(self.log())?;
        if !status.success() {
            return Ok(false);
        }
        let done = log.lines().rev().find_map(|line| line.strip_prefix("Done "));
        let done = done.and_then(|rest| rest.split(' ').next()).and_then(|n| n.parse().ok());
        match done {
            Some(done) if runs <= done => Ok(true),
            _ => bail!("{} did not get through its runs in {most} s", self.target),
        }
    }

    /// What was found, in words.
    fn finding(&self) -> Result<String> {
        let log = fs::read_to_string(self.log())?;
        let says = |line: &&str| line.contains("panicked at") || line.contains("ERROR:");
        let what: Vec<_> = log.lines().skip_while(|line| !says(line)).take(4).collect();
        let input = log.lines().find(|line| line.contains("Test unit written to"));
        let (what, target) = (what.join("\n  "), self.target);
        Ok(format!(
            "{target}: {what}\n  {}\n  Replay: cargo run -p fuzz -- {target} FILE; then name the file after what it \
             broke and keep it in fuzz/corpus/{target}",
            input.unwrap_or("no input was kept")
        ))
    }

    /// Brings the committed corpus up to date: those named by hand stay, the others are the smallest set that reaches
    /// all that is known.
    fn keep(&self) -> Result<String> {
        let chosen = self.places.work.join("chosen").join(self.target);
        if chosen.exists() {
            fs::remove_dir_all(&chosen)?;
        }
        fs::create_dir_all(&chosen)?;
        let merged = self
            .command()?
            // What code is reached counts, not how often, or there would be thousands.
            .args(["-set_cover_merge=1", "-use_counters=0"])
            .args([&chosen, &self.committed(), &self.gathered()])
            .status()?;
        if !merged.success() {
            bail!("{}: the corpus could not be reduced; see {}", self.target, self.log().display());
        }
        let committed = self.committed();
        for name in names(&committed)?.iter().filter(|name| is_hash(name)) {
            fs::remove_file(committed.join(name))?;
        }
        // The engine writes those first that reach the most that is new.
        let mut inputs = Vec::new();
        for name in names(&chosen)? {
            inputs.push((fs::metadata(chosen.join(&name))?.modified()?, name));
        }
        inputs.sort();
        inputs.truncate(MAX_KEPT);
        for (_, name) in &inputs {
            fs::copy(chosen.join(name), committed.join(name))?;
        }
        Ok(format!("{}: {} inputs kept", self.target, inputs.len()))
    }
}

/// The engine names its inputs by their SHA-1, people by what they broke.
fn is_hash(name: &str) -> bool {
    name.len() == 40 && name.bytes().all(|b| b.is_ascii_hexdigit())
}

fn names(directory: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(directory).with_context(|| directory.display().to_string())? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(arguments: &[&str]) -> Result<Plan> {
        let own = |words: &[&str]| words.iter().map(|&w| w.to_owned()).collect::<Vec<_>>();
        Plan::parse(&own(arguments), &own(&["a", "b"]))
    }

    #[test]
    fn arguments_are_understood() {
        let all = plan(&[]).unwrap();
        assert_eq!((all.targets.len(), all.runs, all.keep), (2, RUNS, false));
        let one = plan(&["b", "--runs", "7", "--keep"]).unwrap();
        assert_eq!((one.targets, one.runs, one.keep), (vec!["b".to_owned()], 7, true));
        assert!(plan(&["c"]).unwrap_err().to_string().contains("a, b"));
        assert!(plan(&["--runs", "0"]).is_err());
        assert!(plan(&["--runs"]).is_err());
    }

    #[test]
    fn inputs_named_by_hand_are_told_apart() {
        assert!(is_hash("da39a3ee5e6b4b0d3255bfef95601890afd80709"));
        assert!(!is_hash("space-after-chunk-size"));
    }
}
