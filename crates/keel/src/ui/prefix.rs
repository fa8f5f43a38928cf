//! The coloured, aligned `instance |` in front of log lines.

use std::collections::BTreeMap;

use anstyle::{AnsiColor, Style};
use unicode_width::UnicodeWidthStr as _;

use super::paint::{Paint, color};
use super::table;

/// Instances whose colour is remembered; beyond it colours start anew, which only costs looks.
const MAX_NAMES: usize = 4096;

const COLORS: [AnsiColor; 10] = [
    AnsiColor::Cyan,
    AnsiColor::Yellow,
    AnsiColor::Green,
    AnsiColor::Magenta,
    AnsiColor::Blue,
    AnsiColor::BrightCyan,
    AnsiColor::BrightYellow,
    AnsiColor::BrightGreen,
    AnsiColor::BrightMagenta,
    AnsiColor::BrightBlue,
];

/// Gives each name a colour and all names one width, which grows with the longest name seen.
#[derive(Debug)]
pub struct Prefixes {
    paint: Paint,
    styles: BTreeMap<String, Style>,
    width: usize,
}

impl Prefixes {
    /// No names yet.
    pub fn new(paint: Paint) -> Self {
        Self { paint, styles: BTreeMap::new(), width: 0 }
    }

    /// Makes room for a name before its first line.
    pub fn expect(&mut self, name: &str) {
        self.width = self.width.max(name.width());
    }

    /// `name  | `, coloured.
    pub fn prefix(&mut self, name: &str) -> String {
        self.expect(name);
        if self.styles.len() >= MAX_NAMES {
            self.styles.clear();
        }
        let next = color(COLORS[self.styles.len() % COLORS.len()]);
        let style = *self.styles.entry(name.to_owned()).or_insert(next);
        self.paint.style(style, format_args!("{}  | ", table::pad(name, self.width)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_align() {
        let mut prefixes = Prefixes::new(Paint::PLAIN);
        prefixes.expect("catalog-10");
        assert_eq!(prefixes.prefix("web-1"), "web-1       | ");
        assert_eq!(prefixes.prefix("catalog-10"), "catalog-10  | ");
    }
}
