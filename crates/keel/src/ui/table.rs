//! Aligned columns, as `docker compose` prints them.
//!
//! Widths are those of a terminal, so that wide characters keep columns straight. Rows are never wrapped: piped
//! output must stay one record per line.

use unicode_width::UnicodeWidthStr as _;

/// Spaces between two columns.
const GAP: usize = 3;

/// Lays out `rows` under `header`; every row has as many cells as the header.
pub fn render(header: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = header.iter().map(|cell| cell.width()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.width());
        }
    }
    let mut text = String::new();
    let header: Vec<String> = header.iter().map(|&cell| cell.to_owned()).collect();
    for row in std::iter::once(&header).chain(rows) {
        let mut line = String::new();
        for (width, cell) in widths.iter().zip(row) {
            line.push_str(cell);
            line.push_str(&" ".repeat(width + GAP - cell.width()));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Cuts `text` to `width` columns, with an ellipsis when something is lost.
pub fn cut(text: &str, width: usize) -> String {
    use unicode_width::UnicodeWidthChar as _;
    if text.width() <= width {
        return text.to_owned();
    }
    let mut kept = String::new();
    let mut used = 0;
    for character in text.chars() {
        let next = character.width().unwrap_or(0);
        if used + next + 1 > width {
            break;
        }
        used += next;
        kept.push(character);
    }
    kept.push('…');
    kept
}

/// Cuts prose to `width` columns, after a word where one ends in the second half.
pub fn shorten(text: &str, width: usize) -> String {
    let cut = cut(text, width);
    let Some(kept) = cut.strip_suffix('…').filter(|_| cut != text) else { return cut };
    let whole = text[kept.len()..].starts_with(' ');
    match kept.rfind(' ').filter(|at| !whole && at * 2 > kept.len()) {
        Some(at) => format!("{}…", kept[..at].trim_end_matches([' ', ',', ':', ';'])),
        None => cut,
    }
}

/// `text` filled up with spaces to `width` columns.
pub fn pad(text: &str, width: usize) -> String {
    format!("{text}{}", " ".repeat(width.saturating_sub(text.width())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_align_by_display_width() {
        let rows = vec![
            vec!["shop-web-1".to_owned(), "Up".to_owned()],
            vec!["店-1".to_owned(), "Exited (1)".to_owned()],
        ];
        insta::assert_snapshot!(render(&["NAME", "STATUS"], &rows), @r"
        NAME         STATUS
        shop-web-1   Up
        店-1         Exited (1)
        ");
    }

    #[test]
    fn cut_counts_columns() {
        assert_eq!(cut("short", 5), "short");
        assert_eq!(cut("longer", 5), "long…");
        assert_eq!(cut("店店店", 4), "店…");
    }

    #[test]
    fn prose_ends_with_a_word() {
        assert_eq!(shorten("is short", 8), "is short");
        assert_eq!(shorten("nothing listens at the port", 20), "nothing listens at…");
        assert_eq!(shorten("nothing listens: at all", 19), "nothing listens…");
        assert_eq!(shorten("nothing listens at all", 16), "nothing listens…");
        assert_eq!(shorten("a sha256:0123456789abcdef", 12), "a sha256:01…");
        assert_eq!(shorten("ends with one…", 20), "ends with one…");
    }
}
