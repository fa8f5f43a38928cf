//! What the counters of an edge mean: how many requests, how many failed, and what came between two looks.

use std::collections::BTreeMap;

use crate::histogram::Histogram;
use crate::snapshot::EdgeStats;

/// Codes of gRPC that speak of the service and not of the call: UNKNOWN, DEADLINE_EXCEEDED, UNIMPLEMENTED, INTERNAL,
/// UNAVAILABLE, DATA_LOSS (as OpenTelemetry's semantic conventions tell a server's errors).
const GRPC_FAILURES: [u16; 6] = [2, 4, 12, 13, 14, 15];

/// Whether a status of gRPC says that the service failed.
#[must_use]
pub fn is_grpc_failure(code: u16) -> bool {
    GRPC_FAILURES.contains(&code)
}

impl EdgeStats {
    /// Requests and opaque connections.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.statuses.values().sum()
    }

    /// Answers that say that the service failed, or the way to it: 500 and above, and failures in gRPC's terms.
    #[must_use]
    pub fn errors(&self) -> u64 {
        let http = self.statuses.range(500..).map(|(_, count)| count).sum::<u64>();
        let grpc = self.grpc_statuses.iter().filter(|(code, _)| is_grpc_failure(**code));
        http + grpc.map(|(_, count)| count).sum::<u64>()
    }

    /// What came after `before`. Counters that have gone down were begun anew, and all they count came after.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        if self.requests() < before.requests() || self.latency.count() < before.latency.count() {
            return self.clone();
        }
        Self {
            route: self.route.clone(),
            caller: self.caller.clone(),
            cluster: self.cluster.clone(),
            statuses: difference(&self.statuses, &before.statuses),
            grpc_statuses: difference(&self.grpc_statuses, &before.grpc_statuses),
            retries: self.retries.saturating_sub(before.retries),
            bytes_in: self.bytes_in.saturating_sub(before.bytes_in),
            bytes_out: self.bytes_out.saturating_sub(before.bytes_out),
            latency: self.latency.since(&before.latency),
        }
    }
}

fn difference(after: &BTreeMap<u16, u64>, before: &BTreeMap<u16, u64>) -> BTreeMap<u16, u64> {
    let grown = |(key, count): (&u16, &u64)| {
        let more = count.saturating_sub(before.get(key).copied().unwrap_or(0));
        (more > 0).then_some((*key, more))
    };
    after.iter().filter_map(grown).collect()
}

impl Histogram {
    /// The values that came after `before` was taken.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        let earlier = |bucket: u16| {
            let at = before.counts.binary_search_by_key(&bucket, |(b, _)| *b);
            at.map_or(0, |at| before.counts[at].1)
        };
        let grown = |(bucket, count): &(u16, u64)| {
            let more = count.saturating_sub(earlier(*bucket));
            (more > 0).then_some((*bucket, more))
        };
        Self {
            sum: self.sum.saturating_sub(before.sum),
            counts: self.counts.iter().filter_map(grown).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::histogram::{BUCKETS, bucket};

    fn edge(statuses: &[(u16, u64)], latencies: &[u64]) -> EdgeStats {
        let mut counts = vec![0; BUCKETS];
        latencies.iter().for_each(|l| counts[bucket(*l)] += 1);
        EdgeStats {
            statuses: statuses.iter().copied().collect(),
            latency: Histogram::new(latencies.iter().sum(), counts),
            ..EdgeStats::default()
        }
    }

    #[test]
    fn failures_are_those_of_the_service() {
        let mut edge = edge(&[(0, 1), (200, 5), (404, 2), (502, 3)], &[]);
        edge.grpc_statuses = [(0, 2), (5, 1), (14, 2)].into();
        assert_eq!((edge.requests(), edge.errors()), (11, 5));
    }

    #[test]
    fn counters_that_begin_anew_are_taken_as_they_are() {
        let (before, after) = (edge(&[(200, 5)], &[1, 2]), edge(&[(200, 3)], &[4]));
        assert_eq!(after.since(&before), after);
    }

    proptest! {
        #[test]
        fn the_difference_and_what_was_before_make_up_the_whole(
            one in prop::collection::vec(0u64..1_000_000, 0..50),
            two in prop::collection::vec(0u64..1_000_000, 0..50),
        ) {
            let statuses = |n: &[u64]| [(200, n.len() as u64)];
            let all: Vec<u64> = one.iter().chain(&two).copied().collect();
            let before = edge(&statuses(&one), &one);
            let after = edge(&statuses(&all), &all);
            let between = after.since(&before);
            prop_assert_eq!(between.requests(), two.len() as u64);
            let mut sum = before.latency;
            sum.add(&between.latency);
            prop_assert_eq!(sum, after.latency);
        }
    }
}
