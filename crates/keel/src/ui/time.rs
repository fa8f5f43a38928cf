//! Times and durations as people write and read them, in the forms `docker` uses.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jiff::civil;
use jiff::tz::TimeZone;
use keel_model::Timestamp;

const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

/// The wall clock.
pub fn now() -> Timestamp {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX))
}

/// Reads a point in time: RFC 3339, a date or date and time (local), Unix seconds, or a duration before `now`.
///
/// # Errors
/// When `text` has none of these forms; the error names them.
pub fn parse_point(text: &str, now: Timestamp) -> Result<Timestamp, String> {
    let text = text.trim();
    if let Ok(duration) = parse_duration(text) {
        return Ok(now - duration);
    }
    if let Some(at) = parse_unix(text) {
        return Ok(at);
    }
    if let Ok(at) = text.parse::<jiff::Timestamp>() {
        return from_jiff(at);
    }
    let civil = text
        .parse::<civil::DateTime>()
        .or_else(|_| text.parse::<civil::Date>().map(|date| date.at(0, 0, 0, 0)));
    match civil {
        Ok(at) => {
            let zoned = at.to_zoned(TimeZone::system()).map_err(|e| e.to_string())?;
            from_jiff(zoned.timestamp())
        }
        Err(_) => Err(format!(
            "{text:?} is not a time: write 2026-01-02T15:04:05Z, 2026-01-02, Unix seconds, or how long ago, \
             such as 10m or 1h30m"
        )),
    }
}

fn from_jiff(at: jiff::Timestamp) -> Result<Timestamp, String> {
    u64::try_from(at.as_millisecond())
        .map(Timestamp)
        .map_err(|_| "times before 1970 are not supported".to_owned())
}

fn parse_unix(text: &str) -> Option<Timestamp> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(fraction) {
        return None;
    }
    let seconds: u64 = whole.parse().ok()?;
    let millis: u64 = format!("{fraction:0<3}").get(..3)?.parse().ok()?;
    Some(Timestamp(seconds.checked_mul(1000)?.checked_add(millis)?))
}

/// Reads a duration in Go's form: `1h30m`, `10s`, `1.5h`, `300ms`.
///
/// # Errors
/// When `text` is not of that form; plain numbers are not, since they would be ambiguous.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a duration: write for example 10s, 5m or 1h30m");
    let mut rest = text;
    let mut total = 0.0_f64;
    if rest.is_empty() {
        return Err(wrong());
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
        let number: f64 = rest[..digits].parse().map_err(|_| wrong())?;
        rest = &rest[digits..];
        let unit = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        total += number
            * match &rest[..unit] {
                "ns" => 1e-9,
                "us" | "µs" => 1e-6,
                "ms" => 1e-3,
                "s" => 1.0,
                "m" => MINUTE as f64,
                "h" => HOUR as f64,
                "d" => DAY as f64,
                _ => return Err(wrong()),
            };
        rest = &rest[unit..];
    }
    Duration::try_from_secs_f64(total).map_err(|_| wrong())
}

/// Reads seconds or a duration: `60`, `1m`.
///
/// # Errors
/// When `text` is neither.
pub fn parse_seconds(text: &str) -> Result<Duration, String> {
    text.parse::<u64>().map(Duration::from_secs).or_else(|_| parse_duration(text))
}

/// A duration in the words of `docker ps`: `5 seconds`, `About a minute`, `3 hours`.
pub fn words(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0 => "Less than a second".to_owned(),
        1 => "1 second".to_owned(),
        2..MINUTE => format!("{seconds} seconds"),
        _ if seconds / MINUTE == 1 => "About a minute".to_owned(),
        _ if seconds < HOUR => format!("{} minutes", seconds / MINUTE),
        _ if (seconds + HOUR / 2) / HOUR == 1 => "About an hour".to_owned(),
        _ if seconds < 2 * DAY => format!("{} hours", (seconds + HOUR / 2) / HOUR),
        _ if seconds < 14 * DAY => format!("{} days", seconds / DAY),
        _ if seconds < 60 * DAY => format!("{} weeks", seconds / DAY / 7),
        _ if seconds < 730 * DAY => format!("{} months", seconds / DAY / 30),
        _ => format!("{} years", seconds / DAY / 365),
    }
}

/// A short duration for progress: `0.8s`, `12s`, `2m05s`.
pub fn short(duration: Duration) -> String {
    let seconds = duration.as_secs();
    if seconds < 10 {
        format!("{:.1}s", duration.as_secs_f64())
    } else if seconds < MINUTE {
        format!("{seconds}s")
    } else if seconds < HOUR {
        format!("{}m{:02}s", seconds / MINUTE, seconds % MINUTE)
    } else {
        format!("{}h{:02}m", seconds / HOUR, seconds % HOUR / MINUTE)
    }
}

/// A point in time in RFC 3339, UTC, with milliseconds.
pub fn rfc3339(at: Timestamp) -> String {
    let at = i64::try_from(at.0).ok().and_then(|at| jiff::Timestamp::from_millisecond(at).ok());
    at.map_or_else(|| "?".to_owned(), |at| format!("{at:.3}"))
}

/// The time of day here: `14:03:59`.
pub fn of_day(at: Timestamp) -> String {
    let at = i64::try_from(at.0).ok().and_then(|at| jiff::Timestamp::from_millisecond(at).ok());
    at.map_or_else(
        || "?".to_owned(),
        |at| at.to_zoned(TimeZone::system()).strftime("%H:%M:%S").to_string(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_800_000_000_000);

    #[test]
    fn points_in_time_have_many_forms() {
        let back = |text: &str| NOW.0 - parse_point(text, NOW).unwrap().0;
        assert_eq!(back("10m"), 600_000);
        assert_eq!(back("1h30m"), 5_400_000);
        assert_eq!(back("1.5s"), 1_500);
        assert_eq!(parse_point("1700000000", NOW).unwrap(), Timestamp(1_700_000_000_000));
        assert_eq!(parse_point("1700000000.25", NOW).unwrap(), Timestamp(1_700_000_000_250));
        assert_eq!(parse_point("2023-11-14T22:13:20Z", NOW).unwrap(), Timestamp(1_700_000_000_000));
        assert_eq!(
            parse_point("2023-11-14T23:13:20.5+01:00", NOW).unwrap(),
            Timestamp(1_700_000_000_500)
        );
        assert!(parse_point("2026-01-02", NOW).is_ok());
        assert!(parse_point("2026-01-02T10:00:00", NOW).is_ok());
        for bad in ["", "yesterday", "10x", "2026-13-01", "m", "1m2", "99999999999999999999"] {
            assert!(parse_point(bad, NOW).is_err(), "{bad}");
        }
    }

    #[test]
    fn durations_read_like_docker() {
        let words = |seconds| words(Duration::from_secs(seconds));
        assert_eq!(words(0), "Less than a second");
        assert_eq!(words(59), "59 seconds");
        assert_eq!(words(90), "About a minute");
        assert_eq!(words(180), "3 minutes");
        assert_eq!(words(3_700), "About an hour");
        assert_eq!(words(3 * DAY), "3 days");
        assert_eq!(short(Duration::from_millis(840)), "0.8s");
        assert_eq!(short(Duration::from_secs(125)), "2m05s");
    }

    #[test]
    fn timestamps_are_utc() {
        assert_eq!(rfc3339(Timestamp(1_700_000_000_250)), "2023-11-14T22:13:20.250Z");
    }
}
