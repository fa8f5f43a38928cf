//! Progress per service while a change takes effect.
//!
//! On a terminal: a line per service that is rewritten, and a summary when all is done. Elsewhere: a line per change.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use keel_model::ServiceName;
use keel_server::api::types::{ServiceView, StackView};
use unicode_width::UnicodeWidthStr as _;

use super::paint::Paint;
use super::{status, table, time};
use crate::cli::ProgressForm;
use crate::wait::settled;

/// How often spinners turn.
const TICK: Duration = Duration::from_millis(100);
/// Longest reason shown, in columns.
const MAX_REASON: usize = 120;
/// Redraws per second at most.
const REDRAWS: u8 = 20;

/// What is shown of one service.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Row {
    state: String,
    ready: u32,
    desired: u32,
    reason: String,
    /// While a revision is rolled out: how many instances have it and are ready.
    updated: Option<u32>,
    converged: bool,
    failed: bool,
}

impl Row {
    fn of(view: &ServiceView) -> Self {
        let waits = status::waits(view, time::now()).filter(|_| !view.converged);
        let reason = waits.as_deref().unwrap_or(&view.reason);
        Self {
            state: view.state.clone(),
            ready: view.ready,
            desired: view.desired,
            reason: table::shorten(reason.lines().next().unwrap_or(""), MAX_REASON),
            updated: (view.state == "updating").then(|| updated(view)),
            converged: settled(view),
            failed: view.failed && settled(view),
        }
    }

    fn symbol(&self, paint: Paint) -> String {
        match (self.failed, self.converged) {
            (true, _) => paint.bad("✘"),
            (false, true) => paint.good("✔"),
            (false, false) => paint.frame("…"),
        }
    }

    /// `3/3 ready  running`, with the reason unless all is well.
    fn text(&self, paint: Paint) -> String {
        let count = format!("{}/{} ready", self.ready, self.desired);
        let state = match (self.failed, self.converged) {
            (true, _) => paint.bad(&self.state),
            (false, true) => paint.good(&self.state),
            (false, false) => match self.updated {
                Some(updated) => format!("{} {updated}/{}", self.state, self.desired),
                None => self.state.clone(),
            },
        };
        let settled = self.converged && !self.failed;
        let reason = if self.reason.is_empty() || settled {
            String::new()
        } else {
            paint.dim(format_args!("  ({})", self.reason))
        };
        format!("{}  {state}{reason}", table::pad(&count, 11))
    }
}

/// Instances of the wanted revision that take requests.
fn updated(view: &ServiceView) -> u32 {
    let ready = view.instances.iter().filter(|i| i.ready && i.revision == view.revision);
    u32::try_from(ready.count()).unwrap_or(u32::MAX)
}

struct Line {
    bar: Option<ProgressBar>,
    row: Row,
    settled: Option<Duration>,
}

/// Shows progress on standard error.
pub struct Progress {
    form: ProgressForm,
    paint: Paint,
    bars: Option<MultiProgress>,
    lines: BTreeMap<ServiceName, Line>,
    started: Instant,
}

impl Progress {
    /// Begins to show progress; `form` is settled.
    pub fn new(form: ProgressForm, paint: Paint) -> Self {
        let bars = (form == ProgressForm::Tty)
            .then(|| MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(REDRAWS)));
        Self { form, paint, bars, lines: BTreeMap::new(), started: Instant::now() }
    }

    /// Time since the beginning.
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Shows what has changed.
    pub fn update<'a>(
        &mut self,
        services: impl Iterator<Item = (&'a ServiceName, &'a ServiceView)>,
    ) {
        let services: Vec<_> = services.collect();
        let width = services.iter().map(|(name, _)| name.as_str().width()).max().unwrap_or(0);
        self.lines.retain(|name, line| {
            let stays = services.iter().any(|(other, _)| *other == name);
            if let (false, Some(bar)) = (stays, &line.bar) {
                bar.finish_and_clear();
            }
            stays
        });
        for (name, view) in services {
            self.show(name, Row::of(view), width);
        }
    }

    fn show(&mut self, name: &ServiceName, row: Row, width: usize) {
        let elapsed = self.started.elapsed();
        let known = self.lines.get(name);
        if known.is_some_and(|line| line.row == row) {
            return;
        }
        let bar = known.and_then(|line| line.bar.clone()).or_else(|| self.new_bar());
        let label = table::pad(name.as_str(), width);
        let text = row.text(self.paint);
        match &bar {
            Some(bar) if row.converged || row.failed => {
                let line = format!(
                    "{} {label}  {text}  {}",
                    row.symbol(self.paint),
                    self.paint.dim(time::short(elapsed))
                );
                bar.set_style(style("{wide_msg}"));
                bar.set_message(line);
                bar.disable_steady_tick();
                bar.tick();
            }
            Some(bar) => {
                bar.set_style(style("{spinner:.blue} {wide_msg} {elapsed:.dim}"));
                bar.set_message(format!("{label}  {text}"));
                bar.enable_steady_tick(TICK);
            }
            None if self.form == ProgressForm::Plain => {
                crate::say(&format!("{} {label}  {text}\n", row.symbol(self.paint)));
            }
            None => {}
        }
        let settled = row.converged.then_some(elapsed);
        self.lines.insert(name.clone(), Line { bar, row, settled });
    }

    fn new_bar(&self) -> Option<ProgressBar> {
        self.bars.as_ref().map(|bars| bars.add(ProgressBar::new_spinner()))
    }

    /// Ends with `summary` in place of the lines; lines of failed services stay.
    pub fn finish(mut self, summary: &str) {
        self.clear();
        if self.form == ProgressForm::Tty {
            for (name, line) in self.lines.iter().filter(|(_, line)| line.row.failed) {
                let after = line.settled.unwrap_or_else(|| self.started.elapsed());
                crate::say(&format!(
                    "{} {name}  {}  {}\n",
                    line.row.symbol(self.paint),
                    line.row.text(self.paint),
                    self.paint.dim(time::short(after))
                ));
            }
        }
        if self.form != ProgressForm::Quiet {
            crate::say(&format!("{summary}\n"));
        }
    }

    fn clear(&mut self) {
        for line in self.lines.values() {
            if let Some(bar) = &line.bar {
                bar.finish_and_clear();
            }
        }
        if let Some(bars) = self.bars.take() {
            let _ = bars.clear();
        }
    }
}

impl Drop for Progress {
    /// A command that ends early leaves no half-drawn lines behind.
    fn drop(&mut self) {
        self.clear();
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("the templates above are well-formed")
}

/// `5 services, 11 instances`.
pub fn count(view: &StackView) -> String {
    let plural = |n: usize, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
    let instances: u32 = view.services.values().map(|service| service.running).sum();
    format!(
        "{}, {}",
        plural(view.services.len(), "service"),
        plural(instances as usize, "instance")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(state: &str, ready: u32, converged: bool, failed: bool) -> Row {
        Row {
            state: state.to_owned(),
            ready,
            desired: 3,
            reason: "waiting for db to be healthy".to_owned(),
            updated: None,
            converged,
            failed,
        }
    }

    #[test]
    fn rows_say_what_is_missing() {
        assert_eq!(
            row("waiting", 0, false, false).text(Paint::PLAIN),
            "0/3 ready    waiting  (waiting for db to be healthy)"
        );
        assert_eq!(row("running", 3, true, false).text(Paint::PLAIN), "3/3 ready    running");
        assert!(row("rolled back", 3, true, true).text(Paint::PLAIN).contains("waiting for db"));
    }
}
