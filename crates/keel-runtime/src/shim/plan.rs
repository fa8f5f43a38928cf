//! What the server tells a shim to do: every decision is taken, only effects are left.

use std::path::PathBuf;

use keel_model::{Content, LogPolicy, StartFailure, Timestamp};
use serde::{Deserialize, Serialize};

use crate::cgroup::Group;
use crate::types::{Identity, Namespaces};

/// Largest plan that a shim reads: 1 MiB for each of a few dozen secrets and configs.
pub(crate) const MAX_PLAN: u64 = 64 << 20;

/// One attempt of an instance, for `shim run`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct RunPlan {
    pub dir: PathBuf,
    pub attempt: u32,
    pub logs: LogPolicy,
    /// Where the workload is accounted and killed.
    pub group: Group,
    /// Where the shim itself lives.
    pub shim_group: Group,
    pub process: ProcessPlan,
}

/// A process to become, in surroundings to make first.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ProcessPlan {
    /// The instance, for messages.
    pub instance: String,
    pub argv: Vec<String>,
    pub environment: Vec<(String, String)>,
    pub working_dir: Option<PathBuf>,
    pub user: Identity,
    /// `cgroup.procs` files to join. The shim fills them in for a workload.
    pub cgroups: Vec<PathBuf>,
    /// Resource number, soft and hard limit.
    pub limits: Vec<(u32, u64, u64)>,
    pub oom_score_adj: Option<i32>,
    /// Standard input never ends instead of being empty.
    pub open_stdin: bool,
    pub surroundings: Surroundings,
}

/// The namespaces of a process.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Surroundings {
    /// New ones.
    Make {
        /// Which.
        namespaces: Namespaces,
        /// The network namespace to enter.
        network: Option<PathBuf>,
        /// Where files are put before they are mounted (exists, private).
        staging: PathBuf,
        mounts: Vec<MountStep>,
        files: Vec<FileStep>,
    },
    /// Those of a running process.
    Join { namespaces: Namespaces, pid: i32, start_ticks: u64 },
}

/// One mount, in order.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum MountStep {
    /// A file or directory of the host.
    Bind { source: PathBuf, target: PathBuf, read_only: bool },
    /// Memory.
    Tmpfs { target: PathBuf, size: Option<u64>, mode: u32, read_only: bool },
}

/// A file with content.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct FileStep {
    pub target: PathBuf,
    /// Written where it is to be, instead of mounted there out of memory.
    pub direct: bool,
    pub content: Content,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
}

/// What `shim run` answers on its standard output.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Report {
    /// It runs.
    Started { pid: i32, started_at: Timestamp },
    /// It does not.
    Failed(Failure),
}

/// Why a process could not be made.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Failure {
    pub failure: StartFailure,
    pub message: String,
}

impl Failure {
    /// Something around the program is not as it must be.
    pub(crate) fn environment(message: impl Into<String>) -> Self {
        Self { failure: StartFailure::Environment, message: message.into() }
    }
}
