//! What `pre_start` steps say: it is kept in the log of the instance that they were run for.

use std::path::Path;

use keel_model::LogPolicy;
use tokio::sync::mpsc;

use crate::shim::pump::{Log, NAME};
use crate::types::{LogLine, LogQuery};

/// By what their lines are told from those of the instance.
const MARK: &str = "pre_start";

/// Keeps what a step said. Blocks. What can't be written is lost, and counted.
pub fn keep(dir: &Path, policy: &LogPolicy, output: &str) {
    if policy.keep && !output.is_empty() && std::fs::create_dir_all(dir).is_ok() {
        Log::new(dir, policy.clone()).add(MARK, output);
    }
}

/// Whether anything was kept.
#[must_use]
pub fn are_kept(dir: &Path) -> bool {
    dir.join(NAME).exists()
}

/// What was kept.
#[must_use]
pub fn read(dir: &Path, query: LogQuery) -> mpsc::Receiver<LogLine> {
    crate::logs::read(dir.to_owned(), LogQuery { follow: false, ..query })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_steps_say_is_marked_and_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("new");
        assert!(!are_kept(&place));
        let policy = LogPolicy::default();
        keep(&place, &LogPolicy { keep: false, ..policy.clone() }, "x");
        assert!(!are_kept(&place));
        keep(&place, &policy, "one\n\ntwo");
        keep(&place, &policy, &"long".repeat(10_000));
        let mut lines = read(&place, LogQuery::default());
        let mut texts = Vec::new();
        while let Some(line) = lines.recv().await {
            texts.push(line.text);
        }
        assert_eq!(texts[..3], ["[pre_start] one", "[pre_start] ", "[pre_start] two"]);
        assert_eq!((texts.len(), texts[3].starts_with("[pre_start] longlong")), (4, true));
    }
}
