//! The type of a plain scalar, by the rules of go-yaml v3 (a mix of YAML 1.1 and 1.2 with its own twists).
//!
//! `yes`, `on` and `1:30` are strings; `0755` and `0o755` are 493; `1_000` is 1000; dates are timestamps.

use crate::number::{parse_float, parse_go_int};
use crate::value::Value;

/// Decodes an untagged plain scalar.
pub(super) fn resolve(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "true" | "True" | "TRUE" => return Value::Bool(true),
        "false" | "False" | "FALSE" => return Value::Bool(false),
        ".nan" | ".NaN" | ".NAN" => return Value::Float(f64::NAN),
        ".inf" | ".Inf" | ".INF" | "+.inf" | "+.Inf" | "+.INF" => {
            return Value::Float(f64::INFINITY);
        }
        "-.inf" | "-.Inf" | "-.INF" => return Value::Float(f64::NEG_INFINITY),
        _ => {}
    }
    match text.as_bytes()[0] {
        b'.' => float(text).map_or_else(|| Value::String(text.to_owned()), Value::Float),
        b'+' | b'-' | b'0'..=b'9' => numeric(text),
        _ => Value::String(text.to_owned()),
    }
}

fn numeric(text: &str) -> Value {
    if let Some(time) = timestamp(text) {
        return Value::Time(time);
    }
    let plain: String = text.chars().filter(|c| *c != '_').collect();
    if let Some(value) = parse_go_int(&plain).and_then(integer) {
        return value;
    }
    match float(&plain) {
        Some(value) => Value::Float(value),
        None => Value::String(text.to_owned()),
    }
}

/// An integer that fits 64 bits, signed or unsigned.
fn integer(value: i128) -> Option<Value> {
    i64::try_from(value).map(Value::Int).or_else(|_| u64::try_from(value).map(Value::Uint)).ok()
}

/// go-yaml's float pattern: sign, digits with an optional point, optional exponent.
fn float(text: &str) -> Option<f64> {
    let body = text.strip_prefix(['+', '-']).unwrap_or(text);
    let (mantissa, exponent) = match body.find(['e', 'E']) {
        Some(at) => (&body[..at], Some(&body[at + 1..])),
        None => (body, None),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    let exponent_is_valid = exponent.is_none_or(|part| {
        let part = part.strip_prefix(['+', '-']).unwrap_or(part);
        !part.is_empty() && digits(part)
    });
    if !digits(whole)
        || !digits(fraction)
        || whole.len() + fraction.len() == 0
        || !exponent_is_valid
    {
        return None;
    }
    parse_float(text.strip_prefix('+').unwrap_or(text)).filter(|value| value.is_finite())
}

/// A timestamp in one of the forms that go-yaml accepts, printed as RFC 3339.
fn timestamp(text: &str) -> Option<String> {
    let bytes = text.as_bytes();
    if bytes.len() < 8 || bytes.get(4) != Some(&b'-') || !bytes[..4].iter().all(u8::is_ascii_digit)
    {
        return None;
    }
    let (date, time) = match text.find(['T', 't', ' ']) {
        Some(at) => (&text[..at], Some((&text[at..=at], text[at + 1..].trim_start()))),
        None => (text, None),
    };
    let mut parts = date.split('-');
    let (year, month, day) = (parts.next()?, parts.next()?, parts.next()?);
    let strict = time.is_none();
    let number = |part: &str, max: u32| {
        let valid = (1..=2).contains(&part.len()) && (!strict || part.len() == 2);
        part.parse::<u32>().ok().filter(|n| valid && *n <= max)
    };
    let (month, day) = (number(month, 12)?, number(day, 31)?);
    if parts.next().is_some()
        || month == 0
        || day == 0
        || !day_exists(year.parse().ok()?, month, day)
    {
        return None;
    }
    let clock = match time {
        None => "00:00:00Z".to_owned(),
        Some((separator, rest)) => clock(separator, rest)?,
    };
    Some(format!("{year}-{month:02}-{day:02}T{clock}"))
}

fn day_exists(year: u32, month: u32, day: u32) -> bool {
    let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    day <= match month {
        4 | 6 | 9 | 11 => 30,
        2 if leap => 29,
        2 => 28,
        _ => 31,
    }
}

/// `hh:mm:ss[.fraction][zone]`; a zone is required after `T` and forbidden after a space.
fn clock(separator: &str, rest: &str) -> Option<String> {
    let zone_at = rest.find(['Z', '+', '-']);
    let (time, zone) = rest.split_at(zone_at.unwrap_or(rest.len()));
    if (separator == " ") != zone.is_empty() {
        return None;
    }
    let (seconds, fraction) = time.split_once('.').unwrap_or((time, ""));
    let mut fields = seconds.split(':');
    let mut field = |max: u32| {
        let part = fields.next()?;
        part.parse::<u32>().ok().filter(|n| (1..=2).contains(&part.len()) && *n <= max)
    };
    let (hour, minute, second) = (field(23)?, field(59)?, field(59)?);
    if fields.next().is_some() || !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let zone_is_valid = matches!(zone, "" | "Z")
        || (zone.len() == 6
            && zone.as_bytes()[3] == b':'
            && zone[1..].bytes().enumerate().all(|(at, byte)| at == 2 || byte.is_ascii_digit()));
    let fraction = fraction.trim_end_matches('0');
    let point = if fraction.is_empty() { "" } else { "." };
    let zone = if zone.is_empty() { "Z" } else { zone };
    zone_is_valid.then(|| format!("{hour:02}:{minute:02}:{second:02}{point}{fraction}{zone}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scalars_are_what_go_yaml_makes_of_them() {
        let string = |text: &str| Value::String(text.to_owned());
        for (text, value) in [
            ("yes", string("yes")),
            ("on", string("on")),
            ("1:30", string("1:30")),
            ("0755", Value::Int(493)),
            ("0o755", Value::Int(493)),
            ("0x1F", Value::Int(31)),
            ("0b11", Value::Int(3)),
            ("1_000", Value::Int(1000)),
            ("089", Value::Float(89.0)),
            ("+12", Value::Int(12)),
            ("-7", Value::Int(-7)),
            ("1.50", Value::Float(1.5)),
            ("1e3", Value::Float(1000.0)),
            (".5", Value::Float(0.5)),
            ("1.2.3", string("1.2.3")),
            ("1.2.3.4", string("1.2.3.4")),
            ("-", string("-")),
            ("0x", string("0x")),
            ("TRUE", Value::Bool(true)),
            ("~", Value::Null),
            ("2024-01-02", Value::Time("2024-01-02T00:00:00Z".to_owned())),
            ("2024-13-02", string("2024-13-02")),
            ("2024-1-2", string("2024-1-2")),
            ("18446744073709551615", Value::Uint(u64::MAX)),
        ] {
            assert_eq!(resolve(text), value, "{text}");
        }
    }
}
