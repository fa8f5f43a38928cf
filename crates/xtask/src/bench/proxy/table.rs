//! The result in words and numbers.

use super::case::Measure;
use super::engine::Engine;
use super::{Measured, Row, Sample};
use crate::bench::figure::{Figure, median};

/// What is held against the bars.
pub fn figures(rows: &[Row]) -> Vec<Figure> {
    let mut figures = Vec::new();
    for row in rows {
        let name = match row.case.measure {
            Measure::Cpu => format!("{}: CPU per request ÷ HAProxy's", row.case.title),
            Measure::P99 => format!("{} ÷ HAProxy's", row.case.title),
        };
        let ratios = row.ratios(Engine::Keel);
        figures.push(match row.of(Engine::Keel) {
            Measured::NotServed(_) => Figure::missing(name, row.case.bar, "", "not served yet"),
            Measured::Samples(_) if ratios.is_empty() => {
                Figure::missing(name, row.case.bar, "", "HAProxy failed")
            }
            Measured::Samples(_) => Figure::median(name, &ratios, row.case.bar, ""),
        });
    }
    for row in rows.iter().filter(|row| !row.ratios(Engine::HaproxySplice).is_empty()) {
        let name = format!("{}: HAProxy with `option splice-response` ÷ without", row.case.title);
        figures.push(Figure::median(name, &row.ratios(Engine::HaproxySplice), f64::INFINITY, ""));
    }
    for engine in Engine::SHOWN {
        let name = format!("requests that failed through {}, all cases", engine.name());
        // Those of the others tell whether the comparison is sound; ours must not fail any.
        let bar = if engine == Engine::Keel { 0.0 } else { f64::INFINITY };
        figures.push(Figure::new(name, failed(rows, engine), bar, ""));
    }
    figures
}

#[allow(clippy::cast_precision_loss)]
fn failed(rows: &[Row], engine: Engine) -> f64 {
    let samples = rows.iter().flat_map(|row| row.of(engine).samples());
    samples.map(|sample| sample.count.errors).sum::<u64>() as f64
}

/// One line on a finished case, for somebody who waits.
pub fn line(row: &Row) -> String {
    let mut line = format!("{:<10}", row.case.name);
    for engine in Engine::SHOWN {
        line += &match row.of(engine) {
            Measured::Samples(_) => format!("  {} {}", engine.name(), cell(row, engine)),
            Measured::NotServed(why) => {
                let why: String = why.lines().next().unwrap_or("").chars().take(80).collect();
                format!("  {} not served ({why})", engine.name())
            }
        };
    }
    line
}

/// The absolute numbers of this machine, and nginx' ratios.
pub fn markdown(rows: &[Row]) -> String {
    let mut text = String::from(
        "Each proxy has one worker and one core for itself; clients and backends share the others. Rounds are \
         interleaved and begin with new processes, ratios are taken within a round, and the median over rounds counts.\n\n\
         Medians: CPU time of the whole proxy per request (latency: p50 / p99), requests per second, and how busy \
         the proxy's core was. The last column is nginx ÷ HAProxy.\n\n\
         | case | keel | HAProxy | nginx | nginx ÷ HAProxy |\n|---|---:|---:|---:|---:|\n",
    );
    for row in rows {
        text += &format!("| {} |", row.case.title);
        for engine in Engine::SHOWN {
            text += &format!(" {} |", cell(row, engine));
        }
        let ratios = row.ratios(Engine::Nginx);
        let ratio =
            if ratios.is_empty() { "–".to_owned() } else { format!("{:.2}", median(&ratios)) };
        text += &format!(" {ratio} |\n");
    }
    text += "\n![The same as a picture](pictures/proxy-bench.svg)\n";
    text
}

fn cell(row: &Row, engine: Engine) -> String {
    let measured = row.of(engine);
    let (Some(cpu), Some(rate)) =
        (measured.median(Sample::cpu_us), measured.median(Sample::per_second))
    else {
        return "–".to_owned();
    };
    let busy = measured.median(|s| s.cpu_seconds / s.count.seconds * 100.0).unwrap_or(0.0);
    let first = match row.case.measure {
        Measure::Cpu => format!("{cpu:.1} µs"),
        Measure::P99 => {
            let p99 = measured.median(|s| s.measured(Measure::P99)).unwrap_or(f64::INFINITY);
            let p50 = measured.median(|s| s.count.p50_us.unwrap_or(f64::INFINITY));
            format!("{:.0} / {p99:.0} µs", p50.unwrap_or(f64::INFINITY))
        }
    };
    format!("{first} · {}/s · {busy:.0} %", grouped(rate))
}

/// Thousands apart.
fn grouped(number: f64) -> String {
    let digits = format!("{number:.0}");
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::grouped;

    #[test]
    fn thousands_stand_apart() {
        assert_eq!(grouped(7.0), "7");
        assert_eq!(grouped(123.4), "123");
        assert_eq!(grouped(1234.0), "1,234");
        assert_eq!(grouped(1_234_567.0), "1,234,567");
    }
}
