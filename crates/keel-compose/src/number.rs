//! Numbers, sizes and durations as Go and Docker's libraries read and print them.
//!
//! Compose files are defined by what go-yaml, Go's `fmt` and `go-units` do, down to `1e+06` for a million; this
//! module holds that knowledge and nothing else.

/// A float as `fmt.Sprint` and go-yaml print it: the shortest digits that read back the same, with an exponent
/// below 1e-4 and from 1e6 on.
pub(crate) fn go_general(value: f64) -> String {
    if value.is_nan() {
        return "NaN".to_owned();
    }
    if value.is_infinite() {
        return if value > 0.0 { "+Inf" } else { "-Inf" }.to_owned();
    }
    let scientific = format!("{value:e}");
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..6).contains(&exponent) || value == 0.0 {
        return format!("{value}");
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{mantissa}e{sign}{:02}", exponent.abs())
}

/// Reads a Go integer literal with its base prefix (`0x`, `0o`, `0b`, leading `0` for octal), as
/// `strconv.ParseInt(text, 0, 64)` does for text without underscores.
pub(crate) fn parse_go_int(text: &str) -> Option<i128> {
    let (negative, digits) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let lower = digits.to_ascii_lowercase();
    let (radix, digits) = if let Some(rest) = lower.strip_prefix("0x") {
        (16, rest)
    } else if let Some(rest) = lower.strip_prefix("0o") {
        (8, rest)
    } else if let Some(rest) = lower.strip_prefix("0b") {
        (2, rest)
    } else if lower.len() > 1 && lower.starts_with('0') {
        (8, &lower[1..])
    } else {
        (10, lower.as_str())
    };
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return None;
    }
    let value = i128::from_str_radix(digits, radix).ok()?;
    Some(if negative { -value } else { value })
}

/// A decimal integer as `strconv.Atoi` reads it.
pub(crate) fn parse_decimal(text: &str) -> Option<i64> {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.strip_prefix('+').unwrap_or(text).parse().ok()
}

/// A float as `strconv.ParseFloat` reads it (decimal forms; `inf` and `nan` included).
pub(crate) fn parse_float(text: &str) -> Option<f64> {
    if text.is_empty() || text.contains(char::is_whitespace) {
        return None;
    }
    text.parse().ok()
}

/// The shortest decimal that reads back as the same 32-bit float, as a 64-bit float.
///
/// Docker keeps `cpus` in 32 bits; printing `0.1` must not become `0.10000000149`.
pub(crate) fn through_f32(value: f64) -> f64 {
    #[allow(clippy::cast_possible_truncation)] // The loss of precision is the point.
    let narrow = value as f32;
    narrow.to_string().parse().unwrap_or(value)
}

/// A size in bytes as `units.RAMInBytes` reads it: a decimal number and `b`, `k`, `kb`, `kib`, … in powers of 1024.
pub(crate) fn parse_size(text: &str) -> Result<i64, String> {
    let invalid = || format!("`{text}` is not a size such as `512m` or `1.5gb`");
    let last =
        text.rfind(|c: char| c.is_ascii_digit() || c == '.' || c == ' ').ok_or_else(invalid)?;
    let (number, suffix) = if text.as_bytes()[last] == b' ' {
        (&text[..last], &text[last + 1..])
    } else {
        text.split_at(last + 1)
    };
    let number = parse_float(number).filter(|n| *n >= 0.0).ok_or_else(invalid)?;
    let suffix = suffix.to_ascii_lowercase();
    let factor: u64 = match suffix.as_bytes() {
        [] | [b'b'] => 1,
        [unit] | [unit, b'b'] | [unit, b'i', b'b'] => match unit {
            b'k' => 1 << 10,
            b'm' => 1 << 20,
            b'g' => 1 << 30,
            b't' => 1 << 40,
            b'p' => 1 << 50,
            _ => return Err(invalid()),
        },
        _ => return Err(invalid()),
    };
    #[allow(clippy::cast_possible_truncation, clippy::cast_precision_loss)] // As Go converts.
    Ok((number * factor as f64) as i64)
}

const UNITS: [(&str, i64); 10] = [
    ("ns", 1),
    ("us", 1_000),
    ("\u{b5}s", 1_000),
    ("\u{3bc}s", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
    ("d", 86_400_000_000_000),
    ("w", 604_800_000_000_000),
];

/// A duration such as `1m30s` in nanoseconds; days and weeks are units too.
pub(crate) fn parse_duration(text: &str) -> Option<i64> {
    let (negative, mut rest) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    if rest == "0" {
        return Some(0);
    }
    if rest.is_empty() {
        return None;
    }
    let mut total: i64 = 0;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let whole = &rest[..end];
        rest = &rest[end..];
        let mut fraction = "";
        if let Some(after) = rest.strip_prefix('.') {
            let end = after.find(|c: char| !c.is_ascii_digit()).unwrap_or(after.len());
            fraction = &after[..end];
            rest = &after[end..];
        }
        if whole.is_empty() && fraction.is_empty() {
            return None;
        }
        let end = rest.find(|c: char| c == '.' || c.is_ascii_digit()).unwrap_or(rest.len());
        let unit = UNITS.iter().find(|(name, _)| *name == &rest[..end])?.1;
        rest = &rest[end..];
        let whole: i64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
        let part = fraction_of(fraction, unit);
        total = total.checked_add(whole.checked_mul(unit)?)?.checked_add(part)?;
    }
    Some(if negative { -total } else { total })
}

/// `0.<digits>` of a unit, truncated.
fn fraction_of(digits: &str, unit: i64) -> i64 {
    let digits = &digits[..digits.len().min(18)];
    let numerator: i128 = digits.parse().unwrap_or(0);
    let denominator = 10_i128.pow(u32::try_from(digits.len()).unwrap_or(0));
    i64::try_from(numerator * i128::from(unit) / denominator).unwrap_or(0)
}

/// A duration as Go prints it: `1h0m0s`, `1.5s`, `250ms`, `0s`.
pub(crate) fn print_duration(nanos: i64) -> String {
    let sign = if nanos < 0 { "-" } else { "" };
    let total = nanos.unsigned_abs();
    if total == 0 {
        return "0s".to_owned();
    }
    if total < 1_000_000_000 {
        let (unit, name) = match total {
            0..1_000 => (1, "ns"),
            1_000..1_000_000 => (1_000, "\u{b5}s"),
            _ => (1_000_000, "ms"),
        };
        return format!("{sign}{}{name}", decimal(total, unit));
    }
    let seconds = total % 60_000_000_000;
    let minutes = total / 60_000_000_000;
    let text = format!("{}s", decimal(seconds, 1_000_000_000));
    if minutes == 0 {
        format!("{sign}{text}")
    } else if minutes < 60 {
        format!("{sign}{minutes}m{text}")
    } else {
        format!("{sign}{}h{}m{text}", minutes / 60, minutes % 60)
    }
}

/// `value / unit` as a decimal without trailing zeros; `unit` is a power of ten.
fn decimal(value: u64, unit: u64) -> String {
    let whole = value / unit;
    let rest = value % unit;
    if rest == 0 {
        return whole.to_string();
    }
    let width = unit.ilog10() as usize;
    format!("{whole}.{}", format!("{rest:0width$}").trim_end_matches('0'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_print_as_go_prints_them() {
        for (value, text) in [
            (1e6, "1e+06"),
            (100_000.0, "100000"),
            (123_456_789.0, "1.23456789e+08"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (1.5, "1.5"),
        ] {
            assert_eq!(go_general(value), text);
        }
    }

    #[test]
    fn durations_round_trip_through_go_form() {
        for (text, printed) in [
            ("90s", "1m30s"),
            ("1.5h", "1h30m0s"),
            ("250ms", "250ms"),
            ("1d", "24h0m0s"),
            ("0", "0s"),
            ("1.000001s", "1.000001s"),
            ("3us", "3\u{b5}s"),
        ] {
            assert_eq!(
                parse_duration(text).map(print_duration).as_deref(),
                Some(printed),
                "{text}"
            );
        }
        for bad in ["", "5", "s", "1x", "1 s"] {
            assert_eq!(parse_duration(bad), None, "{bad}");
        }
    }

    #[test]
    fn sizes() {
        assert_eq!(parse_size("1.5g"), Ok(1_610_612_736));
        assert_eq!(parse_size("64 MiB"), Ok(67_108_864));
        assert_eq!(parse_size("10"), Ok(10));
        assert!(parse_size("ten").is_err());
        assert!(parse_size("1q").is_err());
        assert!(parse_size("-1").is_err());
    }
}
