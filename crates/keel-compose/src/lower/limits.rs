//! Resource limits: the old keys of a service and `deploy.resources.limits`.

use std::collections::BTreeMap;

use keel_model::Limits;

use super::{Context, Lower};
use crate::print::{bytes_of, number_of};
use crate::value::{Node, Value};

/// Period of the CPU quota when the file gives none, in microseconds (the kernel's default).
const DEFAULT_CPU_PERIOD: f64 = 100_000.0;

impl Lower<'_> {
    pub(super) fn limits(&mut self, context: &Context<'_>) -> Limits {
        let node = context.node;
        let deploy = node.at(&["deploy", "resources", "limits"]);
        let either = |old: &str, new: &str| {
            node.get(old)
                .filter(|node| !node.is_null())
                .or_else(|| deploy.and_then(|limits| limits.get(new)))
        };
        let (cpus, memory, pids) =
            (either("cpus", "cpus"), either("mem_limit", "memory"), either("pids_limit", "pids"));
        let quota = self.number(node.get("cpu_quota")).filter(|quota| *quota > 0.0);
        let period = self.number(node.get("cpu_period")).filter(|period| *period > 0.0);
        let cpus = self
            .number(cpus)
            .filter(|cpus| *cpus > 0.0)
            .or_else(|| Some(quota? / period.unwrap_or(DEFAULT_CPU_PERIOD)));
        let score = self.number(node.get("oom_score_adj"));
        Limits {
            cpu_milli: cpus.map(|cpus| whole(cpus * 1000.0).max(1)),
            cpu_shares: self.number(node.get("cpu_shares")).filter(|shares| *shares > 0.0).map(whole),
            cpuset: node.text("cpuset").filter(|set| !set.is_empty()).map(str::to_owned),
            memory: self.bytes(memory),
            memory_swap: self.swap(context),
            pids: self.pids(context, pids),
            #[allow(clippy::cast_possible_truncation)] // The schema keeps it within ±1000.
            oom_score_adj: score.map(|score| score as i32),
            ulimits: self.ulimits(node.get("ulimits")),
        }
    }

    /// A container without a limit of its own for swap has that of its engine, which differs from no limit (-1).
    fn swap(&mut self, context: &Context<'_>) -> Option<u64> {
        let node = context.node.get("memswap_limit").filter(|node| !node.is_null())?;
        if context.is_container() && self.take(bytes_of(node))? < 0 {
            return Some(u64::MAX);
        }
        self.bytes(Some(node))
    }

    /// An engine may have a limit of its own, which -1 takes away.
    fn pids(&mut self, context: &Context<'_>, node: Option<&Node>) -> Option<u64> {
        let pids = self.number(node)?;
        if pids < 0.0 && context.is_container() {
            return Some(u64::MAX);
        }
        (pids > 0.0).then(|| whole(pids))
    }

    pub(super) fn number(&mut self, node: Option<&Node>) -> Option<f64> {
        let node = node.filter(|node| !node.is_null())?;
        self.take(number_of(node))
    }

    /// A size; zero and negative values mean no limit.
    pub(super) fn bytes(&mut self, node: Option<&Node>) -> Option<u64> {
        let node = node.filter(|node| !node.is_null())?;
        let bytes = self.take(bytes_of(node))?;
        u64::try_from(bytes).ok().filter(|bytes| *bytes > 0)
    }

    pub(super) fn ulimits(&mut self, node: Option<&Node>) -> BTreeMap<String, (u64, u64)> {
        let mut limits = BTreeMap::new();
        for (name, value) in node.into_iter().flat_map(Node::entries) {
            let (soft, hard) = match &value.value {
                Value::Map(map) => (map.get("soft"), map.get("hard")),
                _ => (Some(value), Some(value)),
            };
            let soft = self.number(soft).map(unlimited);
            let hard = self.number(hard).map(unlimited);
            if let (Some(soft), Some(hard)) = (soft, hard) {
                limits.insert(name.to_owned(), (soft, hard));
            }
        }
        limits
    }
}

/// A limit, where a negative number means none.
fn unlimited(number: f64) -> u64 {
    if number < 0.0 { u64::MAX } else { whole(number) }
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // A float cast saturates.
pub(super) fn whole(number: f64) -> u64 {
    number.round() as u64
}
