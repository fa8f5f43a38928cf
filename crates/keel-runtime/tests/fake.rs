//! The fake runtime is a runtime.

use std::sync::Arc;

use keel_runtime::conformance::{Harness, Workload, all};
use keel_runtime::{FakeRuntime, Runtime};

struct Fake(FakeRuntime);

impl Harness for Fake {
    fn runtime(&self) -> Arc<dyn Runtime> {
        Arc::new(self.0.clone())
    }

    fn reopen(&self) {}

    fn command(&self, workload: &Workload) -> Vec<String> {
        let words = |first: &str, rest: &[String]| [&[first.to_owned()], rest].concat();
        match workload {
            Workload::Run => words("run", &[]),
            Workload::Exit(code) => words("exit", &[code.to_string()]),
            Workload::ExitAfter(after, code) => {
                words("exit-after", &[after.to_string(), code.to_string()])
            }
            Workload::Say(lines) => words("say", lines),
            Workload::SayEnv(names) => words("say-env", names),
            Workload::Stubborn => words("stubborn", &[]),
            Workload::Missing => words("missing", &[]),
            Workload::Forbidden => words("forbidden", &[]),
        }
    }
}

#[tokio::test]
async fn conformance() {
    all(&Fake(FakeRuntime::new())).await;
}
