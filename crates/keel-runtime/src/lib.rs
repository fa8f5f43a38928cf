//! Runs instances: the [`Runtime`] trait, the process runtime with its shim, probes, and a scripted fake.
//!
//! A runtime starts, watches, stops and describes instances on one machine. It decides nothing about how many
//! there should be or when they restart. Invariants that every implementation keeps (and that the module `conformance`
//! checks):
//!
//! * the death of the process that holds the [`Runtime`] stops no workload; a new one finds them all again;
//! * an exit is recorded once, with what ended it, whether or not anybody watched;
//! * stopping ends everything that an instance started;
//! * a process id is never taken for an instance's after the kernel gave it to somebody else.

mod cgroup;
#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
mod exec;
mod fake;
mod foreign;
mod logs;
mod mixed;
mod once;
mod probe;
mod process;
pub mod record;
mod shim;
pub mod stamp;
pub mod steps;
mod sys;
mod traffic;
mod types;

pub use exec::exec_into;
pub use fake::{FakeRuntime, Script};
pub use foreign::ForeignProcess;
pub use mixed::MixedRuntime;
pub use once::{Once, OncePort};
pub use probe::check;
pub use process::{ProcessOptions, ProcessRuntime};
pub use shim::shim_main;
pub use types::{
    Capabilities, Capability, ContainerExec, Error, ExecOutput, ExecRequest, ExecSpec, Identity,
    Launch, LogLine, LogQuery, LogStream, Namespaces, Origin, ProcessExec, Resources, Runtime,
    Seen, StartError, Started, Transfer, VolumeInfo,
};
