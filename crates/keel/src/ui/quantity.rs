//! Numbers with their unit, short enough for a table.

/// Bytes, as `docker stats` has them: `512B`, `1.5kB`, `20MB`.
pub fn bytes(count: f64) -> String {
    scaled(count, 1000.0, &["B", "kB", "MB", "GB", "TB"])
}

/// Microseconds: `830µs`, `1.2ms`, `3.4s`.
#[allow(clippy::cast_precision_loss, reason = "three digits are shown")]
pub fn micros(us: u64) -> String {
    scaled(us as f64, 1000.0, &["µs", "ms", "s"])
}

/// A number with a digit behind the point where it says something: `0.4`, `1250`.
pub fn plain(number: f64) -> String {
    if number == 0.0 || number >= 10.0 { format!("{number:.0}") } else { format!("{number:.1}") }
}

fn scaled(mut number: f64, step: f64, units: &[&str]) -> String {
    let mut at = 0;
    // What would be rounded up to a whole step belongs to the next unit.
    while number >= step - 0.5 && at + 1 < units.len() {
        number /= step;
        at += 1;
    }
    let text = if at == 0 { format!("{number:.0}") } else { plain(number) };
    format!("{text}{}", units[at])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_short() {
        let shown = [0.0, 512.0, 999.4, 999.6, 1_500.0, 20_000_000.0, 3e15].map(bytes);
        assert_eq!(shown, ["0B", "512B", "999B", "1.0kB", "1.5kB", "20MB", "3000TB"]);
        let shown = [0, 830, 1_200, 34_000, 999_999, 3_400_000, 90_000_000].map(micros);
        assert_eq!(shown, ["0µs", "830µs", "1.2ms", "34ms", "1.0s", "3.4s", "90s"]);
        let shown = [0.0, 0.44, 9.9, 1250.4].map(plain);
        assert_eq!(shown, ["0", "0.4", "9.9", "1250"]);
    }
}
