//! Whether and how text is coloured.

use std::fmt::Display;
use std::io::IsTerminal;

use anstyle::{AnsiColor, Color, Style};
use clap::ValueEnum;

/// When colour is used; `auto` is on a terminal, unless `NO_COLOR` is set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs)]
pub enum ColorChoice {
    #[default]
    Auto,
    Always,
    Never,
}

/// Colours text for one stream, or leaves it alone.
#[derive(Clone, Copy, Debug)]
pub struct Paint {
    enabled: bool,
}

impl Paint {
    /// Never colours.
    pub const PLAIN: Self = Self { enabled: false };

    /// Decides for a stream.
    pub fn new(choice: ColorChoice, stream: &impl IsTerminal) -> Self {
        let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let enabled = match choice {
            ColorChoice::Always => true,
            ColorChoice::Never => false,
            ColorChoice::Auto => stream.is_terminal() && !set("NO_COLOR") && !dumb,
        };
        Self { enabled }
    }

    /// `text` in `style`.
    pub fn style(self, style: Style, text: impl Display) -> String {
        if self.enabled {
            format!("{}{text}{}", style.render(), style.render_reset())
        } else {
            text.to_string()
        }
    }

    /// For what went wrong.
    pub fn error(self, text: impl Display) -> String {
        self.style(color(AnsiColor::Red).bold(), text)
    }

    /// For what may surprise.
    pub fn warning(self, text: impl Display) -> String {
        self.style(color(AnsiColor::Yellow).bold(), text)
    }

    /// For what went well or is new.
    pub fn good(self, text: impl Display) -> String {
        self.style(color(AnsiColor::Green), text)
    }

    /// For what is gone.
    pub fn bad(self, text: impl Display) -> String {
        self.style(color(AnsiColor::Red), text)
    }

    /// For advice.
    pub fn hint(self, text: impl Display) -> String {
        self.style(color(AnsiColor::Cyan).bold(), text)
    }

    /// For names that stand out.
    pub fn bold(self, text: impl Display) -> String {
        self.style(Style::new().bold(), text)
    }

    /// For what matters less.
    pub fn dim(self, text: impl Display) -> String {
        self.style(Style::new().dimmed(), text)
    }

    /// For positions and frames.
    pub fn frame(self, text: impl Display) -> String {
        self.style(color(AnsiColor::Blue).bold(), text)
    }
}

/// A foreground colour.
pub const fn color(color: AnsiColor) -> Style {
    Style::new().fg_color(Some(Color::Ansi(color)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_text_has_no_escapes() {
        assert_eq!(Paint::PLAIN.error("x"), "x");
        let always = Paint::new(ColorChoice::Always, &std::io::stderr());
        assert!(always.error("x").starts_with("\u{1b}["));
        assert!(always.error("x").ends_with("\u{1b}[0m"));
    }
}
