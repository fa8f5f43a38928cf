//! What BuildKit tells of its steps, as lines; and which step failed. Pure.

use std::collections::{BTreeMap, VecDeque};

use bollard_buildkit_proto::moby::buildkit::v1::{StatusResponse, Vertex};

/// Last lines of a failed step that are kept for the error.
const LAST_LINES: usize = 20;
/// Longest line that is told, in bytes.
const MAX_LINE: usize = 4096;
/// Most steps that are known; those of a Dockerfile are a few dozen.
const MAX_STEPS: usize = 10_000;
/// What a step that ends with the build ends with.
const CANCELED: &str = "context canceled";
/// Before the names of steps that are not in the Dockerfile.
const INTERNAL: &str = "[internal]";

/// One step.
#[derive(Debug, Default)]
struct Step {
    number: usize,
    name: String,
    began: bool,
    ended: bool,
    error: String,
    /// A line that has not ended.
    begun: Vec<u8>,
    lines: VecDeque<String>,
}

/// What was told so far.
#[derive(Debug, Default)]
pub(super) struct Told(BTreeMap<String, Step>);

/// The step that failed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Failed {
    /// As the Dockerfile has it: `[2/3] RUN make`.
    pub(super) step: String,
    /// What BuildKit says of it.
    pub(super) error: String,
    /// Its last lines.
    pub(super) output: Vec<String>,
}

impl Told {
    /// The lines that this news makes.
    pub(super) fn take(&mut self, news: StatusResponse) -> Vec<String> {
        let mut lines = Vec::new();
        for vertex in &news.vertexes {
            if let Some(step) = self.step(&vertex.digest) {
                lines.extend(step.note(vertex));
            }
        }
        for log in news.logs {
            if let Some(step) = self.step(&log.vertex) {
                lines.extend(step.output(&log.msg));
            }
        }
        lines
    }

    fn step(&mut self, digest: &str) -> Option<&mut Step> {
        let number = self.0.len() + 1;
        if number > MAX_STEPS && !self.0.contains_key(digest) {
            return None;
        }
        let step = self.0.entry(digest.to_owned()).or_default();
        if step.number == 0 {
            step.number = number;
        }
        Some(step)
    }

    /// The first step that failed by itself.
    pub(super) fn failed(&mut self) -> Option<Failed> {
        let failed = |step: &&mut Step| !step.error.is_empty() && !step.error.contains(CANCELED);
        let step = self.0.values_mut().filter(failed).min_by_key(|step| step.number)?;
        let _ = step.output(b"\n");
        Some(Failed {
            step: step.name.clone(),
            error: step.error.clone(),
            output: step.lines.iter().filter(|line| !line.is_empty()).cloned().collect(),
        })
    }
}

impl Step {
    fn note(&mut self, vertex: &Vertex) -> Vec<String> {
        let mut lines = Vec::new();
        self.name.clone_from(&vertex.name);
        let quiet = self.name.starts_with(INTERNAL);
        let mut say = |text: String| {
            if !quiet {
                lines.push(text);
            }
        };
        let number = self.number;
        if (vertex.started.is_some() || vertex.cached) && !std::mem::replace(&mut self.began, true)
        {
            say(format!("#{number} {}", self.name));
        }
        if !vertex.error.is_empty() {
            self.error.clone_from(&vertex.error);
        }
        let ends = vertex.completed.is_some() && !std::mem::replace(&mut self.ended, true);
        if ends && vertex.error.is_empty() {
            say(format!("#{number} {}", if vertex.cached { "CACHED" } else { "DONE" }));
        } else if ends && !vertex.error.contains(CANCELED) {
            say(format!("#{number} ERROR {}", vertex.error));
        }
        lines
    }

    fn output(&mut self, bytes: &[u8]) -> Vec<String> {
        self.begun.extend_from_slice(bytes);
        let mut done = Vec::new();
        loop {
            let end = self.begun.iter().position(|byte| *byte == b'\n');
            let end = end.filter(|end| *end <= MAX_LINE);
            let long = (self.begun.len() > MAX_LINE).then_some(MAX_LINE);
            let Some(end) = end.or(long) else { return done };
            let line: Vec<u8> = self.begun.drain(..end).collect();
            if self.begun.first() == Some(&b'\n') {
                self.begun.remove(0);
            }
            let line = String::from_utf8_lossy(&line).trim_end().to_owned();
            if self.lines.len() == LAST_LINES {
                self.lines.pop_front();
            }
            self.lines.push_back(line.clone());
            done.push(format!("#{} {line}", self.number));
        }
    }
}

#[cfg(test)]
mod tests {
    use bollard_buildkit_proto::moby::buildkit::v1::VertexLog;

    use super::*;

    fn vertex(digest: &str, name: &str) -> Vertex {
        Vertex { digest: digest.into(), name: name.into(), ..Vertex::default() }
    }

    fn log(digest: &str, text: &str) -> VertexLog {
        VertexLog { vertex: digest.into(), msg: text.into(), ..VertexLog::default() }
    }

    #[test]
    fn steps_are_told_apart_and_the_one_that_failed_is_known() {
        let mut told = Told::default();
        let at = Vertex { started: Some(Default::default()), ..Vertex::default() }.started;
        let begun = |it: Vertex| Vertex { started: at, ..it };
        let first = told.take(StatusResponse {
            vertexes: vec![
                vertex("z", "[internal] load build definition"),
                begun(vertex("a", "[1/2] RUN make")),
                begun(vertex("b", "[2/2] RUN test")),
            ],
            logs: vec![log("a", "ma"), log("b", "one\ntwo\n")],
            ..StatusResponse::default()
        });
        assert_eq!(first, ["#2 [1/2] RUN make", "#3 [2/2] RUN test", "#3 one", "#3 two"]);
        let ended =
            |it: Vertex, error: &str| Vertex { completed: at, error: error.into(), ..begun(it) };
        let second = told.take(StatusResponse {
            logs: vec![log("a", "ke\n")],
            vertexes: vec![
                ended(vertex("a", "[1/2] RUN make"), "context canceled"),
                ended(vertex("b", "[2/2] RUN test"), "exit code: 3"),
            ],
            ..StatusResponse::default()
        });
        assert_eq!(second, ["#3 ERROR exit code: 3", "#2 make"]);
        let failed = told.failed().unwrap();
        assert_eq!(
            (failed.step.as_str(), failed.error.as_str()),
            ("[2/2] RUN test", "exit code: 3")
        );
        assert_eq!(failed.output, ["one", "two"]);
    }

    #[test]
    fn long_output_is_cut() {
        let mut step = Step::default();
        let lines = step.output(&vec![b'x'; 3 * MAX_LINE]);
        assert!(lines.iter().all(|line| line.len() <= MAX_LINE + 8), "{lines:?}");
        for number in 0..30 {
            let _ = step.output(format!("{number}\n").as_bytes());
        }
        assert_eq!(
            (step.lines.len(), step.lines.back().map(String::as_str)),
            (LAST_LINES, Some("29"))
        );
    }
}
