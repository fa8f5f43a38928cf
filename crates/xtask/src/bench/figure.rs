//! Figures and their bars.

/// One measured figure. Smaller is better.
#[derive(Clone, Debug)]
pub struct Figure {
    /// What was measured.
    pub name: String,
    /// The value that is held against the bar (a median, a maximum, a count; the name says which).
    pub value: f64,
    /// The largest value that is good; infinite for what is only told.
    pub bar: f64,
    /// Unit of both.
    pub unit: &'static str,
    /// Smallest and largest single measurement, where there are several.
    pub spread: Option<(f64, f64)>,
    /// Why there is no value.
    pub missing: Option<String>,
}

impl Figure {
    /// A single value.
    pub fn new(name: impl Into<String>, value: f64, bar: f64, unit: &'static str) -> Self {
        Self { name: name.into(), value, bar, unit, spread: None, missing: None }
    }

    /// A value without a bar.
    pub fn told(name: impl Into<String>, value: f64, unit: &'static str) -> Self {
        Self::new(name, value, f64::INFINITY, unit)
    }

    /// A bar that nothing could be held against: not met.
    pub fn missing(
        name: impl Into<String>,
        bar: f64,
        unit: &'static str,
        why: impl Into<String>,
    ) -> Self {
        Self { missing: Some(why.into()), ..Self::new(name, f64::INFINITY, bar, unit) }
    }

    /// The median of several values, with their spread.
    pub fn median(name: impl Into<String>, values: &[f64], bar: f64, unit: &'static str) -> Self {
        let least = values.iter().copied().reduce(f64::min);
        let spread = least.zip(values.iter().copied().reduce(f64::max));
        Self { spread, ..Self::new(name, median(values), bar, unit) }
    }

    /// Whether the bar is met.
    pub fn holds(&self) -> bool {
        self.missing.is_none() && self.value <= self.bar
    }

    /// The value as text, or why there is none.
    pub fn value_text(&self) -> String {
        self.missing.clone().unwrap_or_else(|| self.text(self.value))
    }

    /// The bar as text; empty if there is none.
    pub fn bar_text(&self) -> String {
        if self.bar.is_finite() { self.text(self.bar) } else { String::new() }
    }

    fn text(&self, value: f64) -> String {
        let decimals = if value.fract() == 0.0 || value >= 1000.0 { 0 } else { 2 };
        format!("{value:.decimals$} {}", self.unit).trim_end().to_owned()
    }

    /// The spread as text.
    pub fn spread_text(&self) -> String {
        self.spread.map_or_else(String::new, |(least, most)| {
            format!("{} – {}", self.text(least), self.text(most))
        })
    }

    /// `ok` or `short`; nothing without a bar.
    pub fn verdict(&self) -> &'static str {
        match (self.bar.is_finite(), self.holds()) {
            (false, _) => "",
            (true, true) => "ok",
            (true, false) => "short",
        }
    }
}

/// The middle value; of an even number of values the larger of the two in the middle.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::INFINITY)
}

/// What a bench found.
#[derive(Debug, Default)]
pub struct Outcome {
    /// What is held against bars.
    pub figures: Vec<Figure>,
    /// What else belongs into the document: Markdown, may be empty.
    pub appendix: String,
}

impl From<Vec<Figure>> for Outcome {
    fn from(figures: Vec<Figure>) -> Self {
        Self { figures, appendix: String::new() }
    }
}

/// Prints one aligned line per figure.
pub fn print(figures: &[Figure]) {
    let wide = |text: &dyn Fn(&Figure) -> String| {
        figures.iter().map(|figure| text(figure).chars().count()).max().unwrap_or(0)
    };
    let name = wide(&|figure| figure.name.clone());
    let value = wide(&Figure::value_text);
    let bar = wide(&Figure::bar_text);
    for figure in figures {
        let spread = figure.spread_text();
        let spread = if spread.is_empty() { spread } else { format!("  ({spread})") };
        println!(
            "{:<name$}  {:>value$}  {:>bar$}  {}{spread}",
            figure.name,
            figure.value_text(),
            figure.bar_text(),
            figure.verdict()
        );
    }
}
