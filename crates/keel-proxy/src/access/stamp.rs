//! Points in time as the formats of the access log write them. The text of a second is made once per second.

use std::io::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

/// Milliseconds since 1970, of the wall clock.
pub fn now_ms() -> u64 {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX)
}

/// Writes points in time, in UTC.
#[derive(Debug, Default)]
pub struct Stamps {
    second: u64,
    rfc3339: String,
    apache: String,
}

impl Stamps {
    /// `2026-01-02T15:04:05.678Z` (RFC 3339).
    pub fn rfc3339(&mut self, ms: u64, out: &mut Vec<u8>) {
        self.turn_to(ms / 1_000);
        out.extend_from_slice(self.rfc3339.as_bytes());
        // Writing to memory does not fail.
        let _ = write!(out, ".{:03}Z", ms % 1_000);
    }

    /// `02/Jan/2026:15:04:05 +0000`, as Apache's `%t` has it between its brackets.
    pub fn apache(&mut self, ms: u64, out: &mut Vec<u8>) {
        self.turn_to(ms / 1_000);
        out.extend_from_slice(self.apache.as_bytes());
    }

    fn turn_to(&mut self, second: u64) {
        if second == self.second && !self.rfc3339.is_empty() {
            return;
        }
        let at = i64::try_from(second).ok().and_then(|s| jiff::Timestamp::from_second(s).ok());
        let at = at.unwrap_or(jiff::Timestamp::UNIX_EPOCH);
        self.second = second;
        self.rfc3339 = at.strftime("%Y-%m-%dT%H:%M:%S").to_string();
        self.apache = at.strftime("%d/%b/%Y:%H:%M:%S +0000").to_string();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms() {
        let mut stamps = Stamps::default();
        let mut both = |ms| {
            let (mut one, mut two) = (Vec::new(), Vec::new());
            stamps.rfc3339(ms, &mut one);
            stamps.apache(ms, &mut two);
            (String::from_utf8(one).unwrap(), String::from_utf8(two).unwrap())
        };
        let at = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        assert_eq!(both(0), at("1970-01-01T00:00:00.000Z", "01/Jan/1970:00:00:00 +0000"));
        let second = at("2023-11-14T22:13:20.007Z", "14/Nov/2023:22:13:20 +0000");
        assert_eq!(both(1_700_000_000_007), second);
        assert_eq!(both(1_700_000_000_999).0, "2023-11-14T22:13:20.999Z");
        assert_eq!(both(1_700_000_001_000).1, "14/Nov/2023:22:13:21 +0000");
    }
}
