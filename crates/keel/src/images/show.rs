//! How the progress of images is shown: a bar per image on a terminal, lines elsewhere.

use std::collections::BTreeMap;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use keel_server::api::images::{ImageLine, ImageNews, Progress};

use crate::cli::ProgressForm;
use crate::context::Context;
use crate::ui::paint::Paint;

/// Redraws per second at most.
const REDRAWS: u8 = 20;
/// How often spinners turn.
const TICK: Duration = Duration::from_millis(100);

/// What is known of an image that is on its way.
#[derive(Default)]
struct Row {
    bar: Option<ProgressBar>,
    /// Bytes done and in all, and what is done, by layer.
    layers: BTreeMap<String, (u64, u64, String)>,
}

/// Shows the progress of images on standard error.
pub struct Show {
    form: ProgressForm,
    paint: Paint,
    bars: Option<MultiProgress>,
    rows: BTreeMap<String, Row>,
    /// What is said of an image that is there now: `pulled`.
    done: &'static str,
}

impl Show {
    /// Begins to show progress.
    pub fn new(ctx: &Context, quiet: bool, done: &'static str) -> Self {
        let form = if quiet { ProgressForm::Quiet } else { ctx.progress() };
        let bars = (form == ProgressForm::Tty)
            .then(|| MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(REDRAWS)));
        Self { form, paint: ctx.talk, bars, rows: BTreeMap::new(), done }
    }

    /// Shows what has been told.
    pub fn update(&mut self, line: &ImageLine) {
        if self.form == ProgressForm::Quiet {
            return;
        }
        let name = &line.reference;
        match &line.news {
            ImageNews::Progress(progress) => self.progress(name, progress),
            ImageNews::Done { changed, .. } => {
                let what = if *changed { self.done } else { "is here" };
                self.finish(name, &self.paint.good("✔"), what);
            }
            ImageNews::Error { .. } => self.finish(name, &self.paint.bad("✘"), "failed"),
        }
    }

    fn progress(&mut self, name: &str, progress: &Progress) {
        let row = self.rows.entry(name.to_owned()).or_default();
        let layer = progress.layer.as_str();
        let new = row.layers.get(layer).is_none_or(|(_, _, status)| *status != progress.status);
        if !layer.is_empty() {
            let entry = row.layers.entry(layer.to_owned()).or_default();
            // Unpacking begins at nothing again; what was loaded stays loaded.
            if let (Some(current), true) = (progress.current, progress.status == "Downloading") {
                *entry = (current, progress.total.unwrap_or(entry.1), String::new());
            } else if progress.status == "Download complete" {
                entry.0 = entry.1;
            }
            entry.2.clone_from(&progress.status);
        }
        match &self.bars {
            Some(bars) => {
                let bar = row.bar.get_or_insert_with(|| {
                    let bar = bars.add(ProgressBar::new(0));
                    bar.enable_steady_tick(TICK);
                    bar
                });
                draw(bar, name, &row.layers, progress);
            }
            None if layer.is_empty() => crate::say(&format!("{name}: {}\n", progress.status)),
            // A line for each step of a layer, not for each piece of it.
            None if new => crate::say(&format!("{name}: {layer}: {}\n", progress.status)),
            None => {}
        }
    }

    fn finish(&mut self, name: &str, symbol: &str, what: &str) {
        let row = self.rows.remove(name).unwrap_or_default();
        let line = format!("{symbol} {name}  {what}");
        match (&self.bars, row.bar) {
            (Some(bars), bar) => {
                if let Some(bar) = bar {
                    bar.finish_and_clear();
                }
                let _ = bars.println(line);
            }
            (None, _) => crate::say(&format!("{line}\n")),
        }
    }

    /// Takes away what is still drawn.
    pub fn end(self) {
        if let Some(bars) = &self.bars {
            let _ = bars.clear();
        }
    }
}

fn draw(
    bar: &ProgressBar,
    name: &str,
    layers: &BTreeMap<String, (u64, u64, String)>,
    progress: &Progress,
) {
    let (current, total) = layers
        .values()
        .fold((0_u64, 0_u64), |sum, (current, total, _)| (sum.0 + current, sum.1 + total));
    let ready = |status: &String| status == "Pull complete" || status == "Already exists";
    let complete = layers.values().filter(|(_, _, status)| ready(status)).count();
    let style = |template: &str| {
        ProgressStyle::with_template(template).expect("the templates below are well-formed")
    };
    if total > 0 {
        bar.set_style(style("{spinner:.blue} {msg} {bar:24.blue} {bytes}/{total_bytes}"));
        bar.set_length(total);
        bar.set_position(current);
        bar.set_message(format!("{name}  {complete}/{} layers", layers.len()));
    } else {
        bar.set_style(style("{spinner:.blue} {wide_msg}"));
        bar.set_message(format!("{name}  {}", progress.status));
    }
}
