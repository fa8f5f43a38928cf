//! Figures and their bars.

/// One measured figure. Smaller is better.
#[derive(Clone, Debug)]
pub struct Figure {
    /// What was measured.
    pub name: String,
    /// The value that is held against the bar (a median, a maximum, a count; the name says which).
    pub value: f64,
    /// The largest value that is good.
    pub bar: f64,
    /// Unit of both.
    pub unit: &'static str,
    /// Smallest and largest single measurement, where there are several.
    pub spread: Option<(f64, f64)>,
}

impl Figure {
    /// A single value.
    pub fn new(name: impl Into<String>, value: f64, bar: f64, unit: &'static str) -> Self {
        Self { name: name.into(), value, bar, unit, spread: None }
    }

    /// The median of several values, with their spread.
    pub fn median(name: impl Into<String>, values: &[f64], bar: f64, unit: &'static str) -> Self {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let value = sorted.get(sorted.len() / 2).copied().unwrap_or(f64::INFINITY);
        let spread = sorted.first().copied().zip(sorted.last().copied());
        Self { name: name.into(), value, bar, unit, spread }
    }

    /// Whether the bar is met.
    pub fn holds(&self) -> bool {
        self.value <= self.bar
    }

    /// Value or bar as text.
    pub fn text(&self, value: f64) -> String {
        if value.fract() == 0.0 || value >= 1000.0 {
            format!("{value:.0} {}", self.unit)
        } else {
            format!("{value:.2} {}", self.unit)
        }
    }

    /// The spread as text.
    pub fn spread_text(&self) -> String {
        self.spread.map_or_else(String::new, |(least, most)| {
            format!("{} – {}", self.text(least), self.text(most))
        })
    }

    /// `ok` or `short`.
    pub fn verdict(&self) -> &'static str {
        if self.holds() { "ok" } else { "short" }
    }
}

/// Prints one aligned line per figure.
pub fn print(figures: &[Figure]) {
    let wide = |text: &dyn Fn(&Figure) -> String| {
        figures.iter().map(|figure| text(figure).chars().count()).max().unwrap_or(0)
    };
    let name = wide(&|figure| figure.name.clone());
    let value = wide(&|figure| figure.text(figure.value));
    let bar = wide(&|figure| figure.text(figure.bar));
    for figure in figures {
        let spread = figure.spread_text();
        let spread = if spread.is_empty() { spread } else { format!("  ({spread})") };
        println!(
            "{:<name$}  {:>value$}  {:>bar$}  {}{spread}",
            figure.name,
            figure.text(figure.value),
            figure.text(figure.bar),
            figure.verdict()
        );
    }
}
