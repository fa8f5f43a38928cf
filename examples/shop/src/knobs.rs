//! Failures on request: latency, errors, crashes, memory, hanging, bad health. Set by environment at start and by
//! `POST /knobs` while running.
//!
//! Holds and checks the settings and counts requests down to a crash; `server` carries the effects out. Knobs act on
//! the service's own requests, not on `/knobs`; `hang` and `unhealthy` act on `/healthz` and `/readyz` too.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Longest latency and jitter that can be asked for.
const MAX_LATENCY_MS: u64 = 600_000;
/// Most memory that can be asked for.
const MAX_MEMORY_MB: u64 = 16_384;

/// How a process ends when told to crash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Crash {
    /// Exit code 1.
    Exit,
    /// SIGABRT.
    Abort,
}

/// The failures that are switched on.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Knobs {
    /// Added to every answer.
    pub latency_ms: u64,
    /// Up to so much more, evenly distributed.
    pub jitter_ms: u64,
    /// Fraction of requests answered with 500, 0 to 1.
    pub error_rate: f64,
    /// Crash: at once, or when `crash_after` more requests have come.
    pub crash: Option<Crash>,
    /// Requests until the crash; 0 is at once.
    pub crash_after: u64,
    /// Memory to hold, touched, beside what the service needs.
    pub memory_mb: u64,
    /// Accept connections and requests, never answer.
    pub hang: bool,
    /// `/healthz` and `/readyz` answer 503.
    pub unhealthy: bool,
    /// Wait so long before listening. Only from the environment.
    pub start_delay_ms: u64,
}

/// Environment variable of each knob.
const VARIABLES: [(&str, &str); 9] = [
    ("SHOP_LATENCY_MS", "latency_ms"),
    ("SHOP_JITTER_MS", "jitter_ms"),
    ("SHOP_ERROR_RATE", "error_rate"),
    ("SHOP_CRASH", "crash"),
    ("SHOP_CRASH_AFTER", "crash_after"),
    ("SHOP_MEMORY_MB", "memory_mb"),
    ("SHOP_HANG", "hang"),
    ("SHOP_UNHEALTHY", "unhealthy"),
    ("SHOP_START_DELAY_MS", "start_delay_ms"),
];

impl Knobs {
    /// Reads the knobs from the environment.
    ///
    /// # Errors
    /// The variable, its value, and why it can't be used.
    pub fn from_env(
        env: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, (&'static str, String, String)> {
        let mut knobs = Knobs::default();
        for (variable, field) in VARIABLES {
            let Some(text) = env(variable) else { continue };
            let value = match text.as_str() {
                "1" if matches!(field, "hang" | "unhealthy") => Value::Bool(true),
                "0" if matches!(field, "hang" | "unhealthy") => Value::Bool(false),
                other => {
                    serde_json::from_str(other).unwrap_or_else(|_| Value::String(other.into()))
                }
            };
            let patch = Map::from_iter([(field.to_owned(), value)]);
            knobs = knobs.with(patch).map_err(|why| (variable, text, why))?;
        }
        Ok(knobs)
    }

    /// These knobs with the fields of `patch` replaced; the others keep their value.
    ///
    /// # Errors
    /// What is wrong with the patch, in words for its sender.
    pub fn with(&self, patch: Map<String, Value>) -> Result<Self, String> {
        let Ok(Value::Object(mut all)) = serde_json::to_value(self) else {
            unreachable!("a struct serialises to an object")
        };
        for (name, value) in patch {
            all.insert(name, value);
        }
        let knobs: Knobs =
            serde_json::from_value(Value::Object(all)).map_err(|error| error.to_string())?;
        if !(0.0..=1.0).contains(&knobs.error_rate) {
            return Err("error_rate is a fraction, 0 to 1".into());
        }
        if knobs.latency_ms.max(knobs.jitter_ms).max(knobs.start_delay_ms) > MAX_LATENCY_MS {
            return Err(format!("delays are at most {MAX_LATENCY_MS} ms"));
        }
        if knobs.memory_mb > MAX_MEMORY_MB {
            return Err(format!("memory_mb is at most {MAX_MEMORY_MB}"));
        }
        Ok(knobs)
    }

    /// How long this answer is held back; `chance` is uniform in 0..1.
    pub fn delay(&self, chance: f64) -> Duration {
        Duration::from_millis(self.latency_ms)
            + Duration::from_millis(self.jitter_ms).mul_f64(chance)
    }

    /// Counts one request; says how to crash if this was the last one.
    pub fn count_down(&mut self) -> Option<Crash> {
        let crash = self.crash?;
        self.crash_after = self.crash_after.saturating_sub(1);
        (self.crash_after == 0).then_some(crash)
    }
}

/// A small generator of chances (xorshift64*), seeded by the system once per process; not for secrets.
#[derive(Debug)]
pub struct Dice(u64);

impl Dice {
    /// Seeded from the standard library's random hasher keys.
    pub fn new() -> Self {
        use std::hash::{BuildHasher, RandomState};
        Dice(RandomState::new().hash_one(std::process::id()) | 1)
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// Uniform in 0..1.
    pub fn chance(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patch(text: &str) -> Map<String, Value> {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn a_patch_changes_only_what_it_names() {
        let knobs = Knobs::default().with(patch(r#"{"latency_ms": 20}"#)).unwrap();
        let knobs = knobs.with(patch(r#"{"error_rate": 0.5}"#)).unwrap();
        assert_eq!((knobs.latency_ms, knobs.error_rate), (20, 0.5));
    }

    #[test]
    fn bad_patches_are_refused_in_words() {
        let refused = |text| Knobs::default().with(patch(text)).unwrap_err();
        assert!(refused(r#"{"latncy_ms": 1}"#).contains("latncy_ms"));
        assert!(refused(r#"{"error_rate": 2}"#).contains("fraction"));
        assert!(refused(r#"{"crash": "loudly"}"#).contains("loudly"));
        assert!(refused(r#"{"memory_mb": 999999}"#).contains("at most"));
    }

    #[test]
    fn the_environment_sets_knobs_and_errors_name_the_variable() {
        let knobs = Knobs::from_env(|name| match name {
            "SHOP_CRASH" => Some("abort".into()),
            "SHOP_CRASH_AFTER" => Some("2".into()),
            "SHOP_HANG" => Some("1".into()),
            _ => None,
        })
        .unwrap();
        assert_eq!((knobs.crash, knobs.crash_after, knobs.hang), (Some(Crash::Abort), 2, true));
        let (name, ..) =
            Knobs::from_env(|name| (name == "SHOP_LATENCY_MS").then(|| "soon".into())).unwrap_err();
        assert_eq!(name, "SHOP_LATENCY_MS");
    }

    #[test]
    fn a_crash_comes_with_the_last_counted_request() {
        let mut knobs = Knobs { crash: Some(Crash::Exit), crash_after: 2, ..Knobs::default() };
        assert_eq!(knobs.count_down(), None);
        assert_eq!(knobs.count_down(), Some(Crash::Exit));
    }

    #[test]
    fn chances_stay_in_range_and_delays_between_their_bounds() {
        let mut dice = Dice::new();
        let knobs = Knobs { latency_ms: 10, jitter_ms: 5, ..Knobs::default() };
        for _ in 0..1000 {
            let delay = knobs.delay(dice.chance());
            assert!((10..=15).contains(&delay.as_millis()), "{delay:?}");
        }
    }
}
