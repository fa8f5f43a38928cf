//! How quick an endpoint is: the peak-sensitive moving average of its latency.
//!
//! After a sample `s` at time `t`, with the value `v` from time `t₀` before it:
//!
//! - `v = s` if `s > v` (a peak counts at once),
//! - else `v = v · w + s · (1 − w)` with `w = exp(−(t − t₀) / τ)`, τ = [`DECAY`].
//!
//! Read at time `t`, it is `v · exp(−(t − t₀) / τ)`: who has not been asked for a while looks quicker with time, so
//! that a slow endpoint is asked again now and then and found out when it has recovered. The load that a request
//! adds is this value times the requests in flight plus one. Formula and τ are those of Finagle's `PeakEwma` load
//! metric, which linkerd2-proxy and tower use too.
//!
//! The state is one word, shared by all threads. Samples within one millisecond of each other change it only
//! if they are peaks; the others are thinned out, which costs nothing but precision that nobody needs.

use std::time::Duration;

/// Time constant τ: after this, 63 % of what was before is forgotten.
pub const DECAY: Duration = Duration::from_secs(10);
/// After this long without a sample nothing is known. By then the value has decayed to a four-hundredth.
pub const FORGET: Duration = Duration::from_secs(60);

/// The moving average of an endpoint's latency. The default knows nothing yet.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Ewma {
    /// Microseconds; 0 as long as there was no sample. A fraction is kept because at thousands of samples a second
    /// each moves the value by less than one.
    micros: f32,
    /// Time of the last sample: the lower 32 bits of the caller's milliseconds, which wrap after 49 days.
    at_ms: u32,
}

impl Ewma {
    /// After an answer that took `latency_us`, at `now_ms`.
    #[must_use]
    #[allow(clippy::cast_precision_loss)] // Seven digits are plenty.
    pub fn observe(self, latency_us: u64, now_ms: u64) -> Self {
        let sample = (latency_us as f32).max(1.0);
        let elapsed = self.elapsed(now_ms);
        let micros = if sample >= self.micros || elapsed >= millis(FORGET) {
            sample
        } else {
            let kept = decay(elapsed);
            self.micros * kept + sample * (1.0 - kept)
        };
        Self { micros, at_ms: self.at_ms.wrapping_add(elapsed) }
    }

    /// After a failure that took `latency_us`, at `now_ms`. Failing fast is not being fast: what was known stays as it
    /// is, and does not fade either, unless the failure was slow.
    #[must_use]
    pub fn failed(self, latency_us: u64, now_ms: u64) -> Self {
        match self.known(now_ms) {
            Some(_) => self.observe(latency_us.max(self.whole_micros().into()), now_ms),
            None => self,
        }
    }

    /// The value at `now_ms` in microseconds, at least 1; `None` if nothing is known.
    #[must_use]
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // Neither negative nor above u32.
    pub fn value(self, now_ms: u64) -> Option<u32> {
        let elapsed = self.known(now_ms)?;
        if elapsed == 0 {
            return Some(self.whole_micros());
        }
        Some(((self.micros * decay(elapsed)) as u32).max(1))
    }

    /// In one word, to be shared between threads. Knowing nothing is 0.
    #[must_use]
    pub fn pack(self) -> u64 {
        u64::from(self.micros.to_bits()) << 32 | u64::from(self.at_ms)
    }

    /// The reverse of [`Ewma::pack`]. A word that `pack` has not made gives a value of no meaning.
    #[must_use]
    pub fn unpack(word: u64) -> Self {
        let micros = f32::from_bits(u32::try_from(word >> 32).unwrap_or(0));
        Self { micros, at_ms: low(word) }
    }

    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // As in `value`; `as` saturates.
    fn whole_micros(self) -> u32 {
        self.micros as u32
    }

    /// Milliseconds since the last sample, if that says something still.
    fn known(self, now_ms: u64) -> Option<u32> {
        let elapsed = self.elapsed(now_ms);
        (self.micros > 0.0 && elapsed < millis(FORGET)).then_some(elapsed)
    }

    /// Milliseconds since the last sample. Another thread's clock may have been read later than this one's: then 0.
    fn elapsed(self, now_ms: u64) -> u32 {
        let passed = low(now_ms).wrapping_sub(self.at_ms);
        if self.micros > 0.0 && passed > u32::MAX / 2 { 0 } else { passed }
    }
}

fn low(word: u64) -> u32 {
    u32::try_from(word & u64::from(u32::MAX)).unwrap_or(0)
}

fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}

/// What is left of a value after this time.
#[allow(clippy::cast_precision_loss)]
fn decay(elapsed_ms: u32) -> f32 {
    (-(elapsed_ms as f32 / millis(DECAY) as f32)).exp()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DAY: u64 = 86_400_000;

    #[test]
    fn peaks_count_at_once_and_fade() {
        let ewma = Ewma::default();
        assert_eq!(ewma.value(0), None);
        let ewma = ewma.observe(1_000, 5);
        assert_eq!(ewma.value(5), Some(1_000));
        let peak = ewma.observe(50_000, 6);
        assert_eq!(peak.value(6), Some(50_000));
        // exp(-1) of it is left after the time constant.
        assert_eq!(peak.value(10_006), Some(18_393));
        let after = peak.observe(1_000, 10_006).value(10_006);
        assert_eq!(after, Some(18_394 + 632));
        assert_eq!(peak.value(60_005), Some(123));
        assert_eq!(peak.value(60_006), None, "forgotten");
        assert_eq!(peak.observe(7, 60_006).value(60_006), Some(7));
    }

    #[test]
    fn many_small_samples_move_it_as_far_as_few() {
        let of = |step: usize| {
            let start = Ewma::default().observe(8_000, 0);
            let end = (0..=20_000).step_by(step).fold(start, |e, now| e.observe(100, now));
            end.value(20_000).unwrap()
        };
        let expected = 100 + 7_900 * 135 / 1_000;
        for step in [1, 10, 1_000] {
            assert!(of(step).abs_diff(expected) < 15, "{step}: {} {expected}", of(step));
        }
    }

    #[test]
    fn a_quick_failure_does_not_make_it_look_quick() {
        let ewma = Ewma::default().observe(9_000, 0);
        let failing = (0..600).fold(ewma, |e, i| e.failed(50, i * 100));
        assert_eq!(failing.value(59_900), Some(9_000));
        assert_eq!(failing.failed(80_000, 59_900).value(59_900), Some(80_000));
        assert_eq!(Ewma::default().failed(50, 0).value(0), None);
    }

    #[test]
    fn the_clock_may_wrap_and_differ_between_threads() {
        let now = 1 << 32;
        let ewma = Ewma::default().observe(1_000, now - 1);
        assert_eq!(ewma.value(now), Some(999));
        assert_eq!(ewma.value(now - 3), Some(1_000));
        assert_eq!(ewma.observe(500, now - 3), ewma);
        assert_eq!(Ewma::default().observe(1_000, 40 * DAY).value(40 * DAY), Some(1_000));
    }

    proptest! {
        #[test]
        fn packing_loses_nothing_and_the_value_is_within_the_samples(
            samples in prop::collection::vec((0u64..100_000_000, 0u64..5_000), 1..50),
            start in 0u64..100 * DAY,
        ) {
            let mut now = start;
            let mut ewma = Ewma::default();
            for (latency, passed) in &samples {
                now += passed;
                ewma = ewma.observe(*latency, now);
                prop_assert_eq!(Ewma::unpack(ewma.pack()), ewma);
                prop_assert!(ewma.pack() != 0);
                // Never below the latest, never above the largest (as precisely as seven digits are).
                let value = f64::from(ewma.value(now).unwrap());
                let largest = samples.iter().map(|s| s.0).max().unwrap().max(1);
                let (low, high) = (*latency as f64 * 0.999_999 - 1.0, largest as f64 * 1.000_001);
                prop_assert!(low <= value && value <= high, "{low} {value} {high}");
                prop_assert!(ewma.value(now + 100).unwrap() <= ewma.value(now).unwrap());
            }
        }

        #[test]
        fn no_word_is_a_panic(word in any::<u64>(), latency in any::<u64>(), now in any::<u64>()) {
            let ewma = Ewma::unpack(word);
            let _ = (ewma.value(now), ewma.failed(latency, now));
            prop_assert!(ewma.observe(latency, now).value(now).is_none_or(|v| v >= 1));
        }
    }
}
