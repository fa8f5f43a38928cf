//! Splitting a command line into words as Compose does.
//!
//! Quotes and backslashes work as in a shell; variables do not. Like go-shellwords, reading stops at `;`, `&`, `|`,
//! `<` and `>` outside quotes, and what follows is dropped: Docker does the same.

/// The words of a line.
///
/// # Errors
/// When a quote is not closed.
pub fn split(line: &str) -> Result<Vec<String>, &'static str> {
    read(line).map(|(words, _)| words)
}

/// The part of a line that [`split`] drops, if any.
pub(crate) fn dropped(line: &str) -> Option<&str> {
    let (_, end) = read(line).ok()?;
    end.map(|end| &line[end..])
}

/// The words, and where reading stopped before the end.
fn read(line: &str) -> Result<(Vec<String>, Option<usize>), &'static str> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut started = false;
    let mut stopped = None;
    let mut state = Quotes::default();
    for (at, c) in line.char_indices() {
        if state.escaped {
            word.push(c);
            state.escaped = false;
            started = true;
            continue;
        }
        match c {
            '\\' if state.single => word.push(c),
            '\\' => state.escaped = true,
            ' ' | '\t' | '\r' | '\n' if state.any() => word.push(c),
            ' ' | '\t' | '\r' | '\n' => {
                if started {
                    words.push(std::mem::take(&mut word));
                    started = false;
                }
            }
            '"' if !state.single && !state.dollar => {
                started |= state.double;
                state.double = !state.double;
            }
            '\'' if !state.double && !state.dollar => {
                started |= state.single;
                state.single = !state.single;
            }
            '(' if !state.single && !state.double && !state.back => {
                if state.dollar || !word.ends_with('$') {
                    return Err("a parenthesis is not quoted");
                }
                state.dollar = true;
                word.push(c);
            }
            ';' | '&' | '|' | '<' | '>' if !state.any() => {
                // `2>` is a redirection, not a word that ends in 2.
                if c == '>' && word.starts_with(|first: char| first.is_ascii_digit()) {
                    started = false;
                }
                stopped = Some(at);
                break;
            }
            _ => {
                state.other(c);
                started = true;
                word.push(c);
            }
        }
    }
    if started {
        words.push(word);
    }
    if state.escaped || state.any() {
        return Err("a quote or parenthesis is not closed");
    }
    Ok((words, stopped))
}

/// What is open at a place of the line.
#[derive(Default)]
#[allow(clippy::struct_excessive_bools)] // They are independent.
struct Quotes {
    escaped: bool,
    double: bool,
    single: bool,
    back: bool,
    dollar: bool,
}

impl Quotes {
    fn any(&self) -> bool {
        self.single || self.double || self.back || self.dollar
    }

    /// Backquotes and closing parentheses stay in the word and change what is open.
    fn other(&mut self, c: char) {
        if c == '`' && !self.single && !self.double && !self.dollar {
            self.back = !self.back;
        }
        if c == ')' && !self.single && !self.double && !self.back {
            self.dollar = !self.dollar;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{dropped, split};

    #[test]
    fn words() {
        for (line, expected) in [
            ("a  'b c' \"d \\\"e\"", vec!["a", "b c", "d \"e"]),
            ("sh -c 'exec \"$0\"' x", vec!["sh", "-c", "exec \"$0\"", "x"]),
            ("a '' b", vec!["a", "", "b"]),
            ("echo a > b", vec!["echo", "a"]),
            ("a\\ b", vec!["a b"]),
            ("", vec![]),
            ("x 2>&1", vec!["x"]),
        ] {
            assert_eq!(split(line).unwrap(), expected, "{line}");
        }
        assert_eq!(dropped("a 'b;c' && d"), Some("&& d"));
        assert_eq!(dropped("a b"), None);
        for bad in ["'a", "\"a", "a\\", "a (b)"] {
            assert!(split(bad).is_err(), "{bad}");
        }
    }
}
