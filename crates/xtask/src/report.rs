//! How results look: colour where it is wanted, and always a word as well.

use std::io::IsTerminal;

/// Whether to colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    Plain,
    Coloured,
}

/// Meanings that have a colour.
#[derive(Clone, Copy)]
pub(crate) enum Tone {
    Good,
    Bad,
    Faint,
    Strong,
}

impl Style {
    /// Colour on a terminal, unless `NO_COLOR` is set to anything.
    pub(crate) fn detect() -> Self {
        let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        if std::io::stderr().is_terminal() && !unwanted { Self::Coloured } else { Self::Plain }
    }

    pub(crate) fn paint(self, tone: Tone, text: &str) -> String {
        let code = match tone {
            Tone::Good => "32",
            Tone::Bad => "1;31",
            Tone::Faint => "2",
            Tone::Strong => "1",
        };
        match self {
            Self::Plain => text.to_owned(),
            Self::Coloured => format!("\x1b[{code}m{text}\x1b[0m"),
        }
    }
}

/// What a check found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// These fail the check.
    pub(crate) problems: Vec<String>,
    /// These are only said.
    pub(crate) notes: Vec<String>,
}

impl Verdict {
    pub(crate) fn failed(&self) -> bool {
        !self.problems.is_empty()
    }

    pub(crate) fn print(&self, what: &str, style: Style) {
        for problem in &self.problems {
            eprintln!("{} {problem}", style.paint(Tone::Bad, "✗"));
        }
        for note in &self.notes {
            eprintln!("{} {note}", style.paint(Tone::Faint, "· note:"));
        }
        match self.problems.len() {
            0 => eprintln!("{} {what}", style.paint(Tone::Good, "✓ ok")),
            n => eprintln!("{} {what}: {n} to fix", style.paint(Tone::Bad, "✗ failed")),
        }
    }
}
