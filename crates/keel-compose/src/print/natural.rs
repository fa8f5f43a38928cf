//! The order in which go-yaml prints the keys of a mapping.
//!
//! Runs of digits compare as numbers (`web2` before `web10`), letters as characters, and a letter against another
//! character by whether a number has just ended.

use std::cmp::Ordering;

/// Compares two keys.
pub(super) fn compare(a: &str, b: &str) -> Ordering {
    let a: Vec<char> = a.chars().collect();
    let b: Vec<char> = b.chars().collect();
    let mut after_digit = false;
    for at in 0..a.len().min(b.len()) {
        let (x, y) = (a[at], b[at]);
        if x == y {
            after_digit = x.is_numeric();
            continue;
        }
        return match (x.is_alphabetic(), y.is_alphabetic()) {
            (true, true) => x.cmp(&y),
            (true, false) => {
                if after_digit {
                    Ordering::Less
                } else {
                    Ordering::Greater
                }
            }
            (false, true) => {
                if after_digit {
                    Ordering::Greater
                } else {
                    Ordering::Less
                }
            }
            (false, false) => numbers(&a, &b, at),
        };
    }
    a.len().cmp(&b.len())
}

/// Compares the numbers that begin at a place, or the characters when there are none.
fn numbers(a: &[char], b: &[char], at: usize) -> Ordering {
    // A zero inside a longer number counts as a digit of it.
    let significant = (a[at] == '0' || b[at] == '0')
        && a[..at].iter().rev().take_while(|c| c.is_ascii_digit()).any(|c| *c != '0');
    let read = |text: &[char]| {
        let digits: Vec<char> =
            text[at..].iter().copied().take_while(char::is_ascii_digit).collect();
        let start = u64::from(significant);
        let value = digits.iter().fold(start, |value, digit| {
            value.wrapping_mul(10).wrapping_add(u64::from(*digit) - u64::from('0'))
        });
        (value, digits.len())
    };
    let ((value_a, length_a), (value_b, length_b)) = (read(a), read(b));
    value_a.cmp(&value_b).then(length_a.cmp(&length_b)).then(a[at].cmp(&b[at]))
}

#[cfg(test)]
mod tests {
    use super::compare;

    #[test]
    fn keys_sort_as_people_count() {
        let mut keys = vec!["web10", "web2", "a", "B", "a_b", "ab", "1", "a1b", "a1"];
        keys.sort_by(|a, b| compare(a, b));
        assert_eq!(keys, ["1", "B", "a", "a_b", "a1", "a1b", "ab", "web2", "web10"]);
    }
}
