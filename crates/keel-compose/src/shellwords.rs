//! Splitting a command line into words as Compose does.
//!
//! Quotes and backslashes work as in a shell; variables do not. Like go-shellwords, reading stops at `;`, `&`, `|`,
//! `<` and `>` outside quotes, and what follows is dropped: Docker does the same.

/// The words of a line.
pub(crate) fn split(line: &str) -> Result<Vec<String>, &'static str> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut started = false;
    let (mut escaped, mut double, mut single, mut backquote, mut dollar) =
        (false, false, false, false, false);
    for c in line.chars() {
        if escaped {
            word.push(c);
            escaped = false;
            started = true;
            continue;
        }
        let quoted = single || double || backquote || dollar;
        match c {
            '\\' if single => word.push(c),
            '\\' => escaped = true,
            ' ' | '\t' | '\r' | '\n' if quoted => word.push(c),
            ' ' | '\t' | '\r' | '\n' => {
                if started {
                    words.push(std::mem::take(&mut word));
                    started = false;
                }
            }
            '"' if !single && !dollar => {
                started |= double;
                double = !double;
            }
            '\'' if !double && !dollar => {
                started |= single;
                single = !single;
            }
            '(' if !single && !double && !backquote => {
                if dollar || !word.ends_with('$') {
                    return Err("a parenthesis is not quoted");
                }
                dollar = true;
                word.push(c);
            }
            ';' | '&' | '|' | '<' | '>' if !quoted => {
                // `2>` is a redirection, not a word that ends in 2.
                if c == '>' && word.starts_with(|first: char| first.is_ascii_digit()) {
                    started = false;
                }
                break;
            }
            _ => {
                if c == '`' && !single && !double && !dollar {
                    backquote = !backquote;
                }
                if c == ')' && !single && !double && !backquote {
                    dollar = !dollar;
                }
                started = true;
                word.push(c);
            }
        }
    }
    if started {
        words.push(word);
    }
    if escaped || single || double || backquote || dollar {
        return Err("a quote or parenthesis is not closed");
    }
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::split;

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
        for bad in ["'a", "\"a", "a\\", "a (b)"] {
            assert!(split(bad).is_err(), "{bad}");
        }
    }
}
