//! Writing metrics as text, in the two forms that scrapers of the Prometheus family read.
//!
//! Prometheus' own (0.0.4) is what people read with curl and every scraper understands; OpenMetrics 1.0 is what
//! Prometheus asks for. Client libraries own the counters that they show; ours live in another process, and the one
//! that shows foreign numbers (`prometheus-client`) writes OpenMetrics only. Both forms are a page of rules.

use std::fmt::Write as _;

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Prometheus' text format.
    Text,
    /// OpenMetrics.
    OpenMetrics,
}

impl Format {
    /// What a scraper with this `Accept` wants; the text format where it has no preference.
    pub fn accepted(accept: &str) -> Self {
        let weight = |kinds: &[&str]| {
            let ranges = accept.split(',').filter_map(|range| {
                let mut parts = range.split(';').map(str::trim);
                let kind = parts.next()?;
                let mut weight = 1.0;
                for parameter in parts {
                    match parameter.split_once('=') {
                        Some(("q", value)) => weight = value.trim().parse().ok()?,
                        // Another version than ours.
                        Some(("version", version))
                            if !matches!(version, "0.0.1" | "0.0.4" | "1.0.0") =>
                        {
                            return None;
                        }
                        _ => {}
                    }
                }
                kinds.iter().any(|k| kind.eq_ignore_ascii_case(k)).then_some(weight)
            });
            ranges.fold(0.0, f32::max)
        };
        let open = weight(&["application/openmetrics-text"]);
        if open > 0.0 && open >= weight(&["text/plain"]) { Self::OpenMetrics } else { Self::Text }
    }

    /// The value of `Content-Type`.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// What kind of numbers a family holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only goes up, but for a restart.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts by upper bound.
    Histogram,
}

/// Name and value of each label.
pub type Labels<'a> = [(&'a str, &'a str)];

/// A page of metrics.
#[derive(Debug)]
pub struct Exposition {
    format: Format,
    page: String,
    /// The family that is being written.
    name: &'static str,
    kind: Kind,
}

impl Exposition {
    /// An empty page.
    pub fn new(format: Format) -> Self {
        Self { format, page: String::new(), name: "", kind: Kind::Gauge }
    }

    /// Begins a family. The name of a counter is given without `_total`.
    pub fn family(&mut self, name: &'static str, kind: Kind, help: &str) {
        (self.name, self.kind) = (name, kind);
        let shown = match (kind, self.format) {
            (Kind::Counter, Format::Text) => format!("{name}_total"),
            _ => name.to_owned(),
        };
        let word = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        self.line(format_args!("# HELP {shown} {help}"));
        self.line(format_args!("# TYPE {shown} {word}"));
    }

    /// A number of the family.
    pub fn sample(&mut self, labels: &Labels<'_>, value: u64) {
        self.write("", labels, None, &value.to_string());
    }

    /// A number of the family with a fraction.
    pub fn fraction(&mut self, labels: &Labels<'_>, value: f64) {
        self.write("", labels, None, &value.to_string());
    }

    /// A histogram of the family: how many are at most each bound (in seconds), how many there are, and their sum (in
    /// seconds).
    pub fn histogram(&mut self, labels: &Labels<'_>, bounds: &[(f64, u64)], count: u64, sum: f64) {
        for (bound, below) in bounds {
            self.write("_bucket", labels, Some(&self.bound(*bound)), &below.to_string());
        }
        self.write("_bucket", labels, Some("+Inf"), &count.to_string());
        self.write("_sum", labels, None, &sum.to_string());
        self.write("_count", labels, None, &count.to_string());
    }

    /// OpenMetrics wants to see that a bound is a number with a fraction.
    fn bound(&self, bound: f64) -> String {
        match self.format {
            Format::OpenMetrics if bound.fract() == 0.0 => format!("{bound:.1}"),
            Format::OpenMetrics | Format::Text => bound.to_string(),
        }
    }

    fn write(&mut self, suffix: &str, labels: &Labels<'_>, le: Option<&str>, value: &str) {
        let suffix = if self.kind == Kind::Counter { "_total" } else { suffix };
        let mut text = format!("{}{suffix}", self.name);
        let le = le.map(|le| ("le", le));
        for (at, (name, value)) in labels.iter().copied().chain(le).enumerate() {
            text.push_str(if at == 0 { "{" } else { "," });
            let _ = write!(text, "{name}=\"");
            for c in value.chars() {
                match c {
                    '\\' | '"' => text.extend(['\\', c]),
                    '\n' => text.push_str("\\n"),
                    c => text.push(c),
                }
            }
            text.push('"');
        }
        if text.ends_with('"') {
            text.push('}');
        }
        self.line(format_args!("{text} {value}"));
    }

    fn line(&mut self, text: std::fmt::Arguments<'_>) {
        // Writing to a string does not fail.
        let _ = self.page.write_fmt(text);
        self.page.push('\n');
    }

    /// The whole page.
    pub fn finish(mut self) -> String {
        if self.format == Format::OpenMetrics {
            self.page.push_str("# EOF\n");
        }
        self.page
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(format: Format) -> String {
        let mut page = Exposition::new(format);
        page.family("a", Kind::Counter, "How many.");
        page.sample(&[("of", "\"x\\\n"), ("code", "200")], 3);
        page.family("b_seconds", Kind::Histogram, "How long.");
        page.histogram(&[("of", "x")], &[(0.25, 1), (1.0, 2)], 4, 7.5);
        page.family("c", Kind::Gauge, "What.");
        page.sample(&[], 1);
        page.fraction(&[], 0.000_001);
        page.finish()
    }

    #[test]
    fn both_forms() {
        assert_eq!(
            page(Format::Text),
            "# HELP a_total How many.\n# TYPE a_total counter\na_total{of=\"\\\"x\\\\\\n\",code=\"200\"} 3\n\
             # HELP b_seconds How long.\n# TYPE b_seconds histogram\n\
             b_seconds_bucket{of=\"x\",le=\"0.25\"} 1\nb_seconds_bucket{of=\"x\",le=\"1\"} 2\n\
             b_seconds_bucket{of=\"x\",le=\"+Inf\"} 4\nb_seconds_sum{of=\"x\"} 7.5\nb_seconds_count{of=\"x\"} 4\n\
             # HELP c What.\n# TYPE c gauge\nc 1\nc 0.000001\n"
        );
        let open = page(Format::OpenMetrics);
        assert!(open.starts_with("# HELP a How many.\n# TYPE a counter\na_total{"), "{open}");
        assert!(open.contains("le=\"1.0\"") && open.ends_with("# EOF\n"), "{open}");
    }

    #[test]
    fn scrapers_get_what_they_ask_for() {
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,\
                          application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        assert_eq!(Format::accepted(prometheus), Format::OpenMetrics);
        for text in [
            "",
            "*/*",
            "text/plain",
            "application/openmetrics-text;q=0",
            "application/openmetrics-text;version=2.0.0",
            "text/plain;q=0.9, application/openmetrics-text;q=0.5",
            "application/openmetrics-text;q=x",
        ] {
            assert_eq!(Format::accepted(text), Format::Text, "{text}");
        }
        assert_eq!(Format::accepted("Application/OpenMetrics-Text"), Format::OpenMetrics);
    }
}
