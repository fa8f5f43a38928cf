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
}
