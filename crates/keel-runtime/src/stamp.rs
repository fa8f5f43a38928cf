//! Wall-clock time as log files hold it: RFC 3339, UTC, nanoseconds, always 30 bytes.
//!
//! Our own few lines rather than a library, because the shim formats one per read and must stay small.

use std::time::{SystemTime, UNIX_EPOCH};

use keel_model::Timestamp;

/// Bytes of one formatted time.
pub(crate) const LEN: usize = 30;

/// Now, in whole milliseconds.
#[must_use]
pub fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// Now, formatted.
pub(crate) fn now_text() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    format(since.as_secs(), since.subsec_nanos())
}

/// Formats `secs` after the Unix epoch.
fn format(secs: u64, nanos: u32) -> String {
    let (year, month, day) = civil(secs / 86_400);
    let rest = secs % 86_400;
    let (h, m, s) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{h:02}:{m:02}:{s:02}.{nanos:09}Z")
}

/// Reads what [`format`] wrote.
pub(crate) fn parse(text: &[u8]) -> Option<Timestamp> {
    if text.len() != LEN || text[10] != b'T' || text[19] != b'.' || text[29] != b'Z' {
        return None;
    }
    let number = |from: usize, to: usize| -> Option<u64> {
        text[from..to].iter().try_fold(0u64, |sum, byte| {
            byte.is_ascii_digit().then(|| sum * 10 + u64::from(byte - b'0'))
        })
    };
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    if year < 1970 || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    let secs = days(year, month, day) * 86_400
        + number(11, 13)? * 3600
        + number(14, 16)? * 60
        + number(17, 19)?;
    Some(Timestamp(secs * 1000 + number(20, 29)? / 1_000_000))
}

// Both conversions count days in years that begin with March, so that the leap day is the last of its year.

fn days(year: u64, month: u64, day: u64) -> u64 {
    let shifted = if month <= 2 { year - 1 } else { year };
    let from_march = (month + 9) % 12;
    let day_of_year = (153 * from_march + 2) / 5 + day - 1;
    365 * shifted + shifted / 4 - shifted / 100 + shifted / 400 + day_of_year - 719_468
}

fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_moments() {
        assert_eq!(format(0, 0), "1970-01-01T00:00:00.000000000Z");
        assert_eq!(format(951_782_400, 5), "2000-02-29T00:00:00.000000005Z");
        assert_eq!(format(1_795_437_776, 120_000_000), "2026-11-23T12:42:56.120000000Z");
        assert_eq!(format(4_107_542_400, 0), "2100-03-01T00:00:00.000000000Z");
    }

    #[test]
    fn what_is_written_can_be_read() {
        for day in (0..60_000).step_by(17) {
            let text = format(day * 86_400 + 12_345, 987_654_321);
            assert_eq!(parse(text.as_bytes()), Some(Timestamp(day * 86_400_000 + 12_345_987)));
        }
        for bad in ["", "1970-01-01T00:00:00.000000000X", "19x0-01-01T00:00:00.000000000Z"] {
            assert_eq!(parse(bad.as_bytes()), None);
        }
    }
}
