//! The result as a picture: for each case one bar per proxy, HAProxy = 1, and a mark where ours has to be.

use std::fmt::Write as _;

use super::Row;
use super::engine::Engine;
use crate::bench::Error;
use crate::bench::figure::median;
use crate::bench::platform::root;

const WIDTH: f64 = 880.0;
/// Where the bars begin.
const LEFT: f64 = 330.0;
/// Where the longest may end.
const RIGHT: f64 = 830.0;
const TOP: f64 = 78.0;
const BAR: f64 = 11.0;
const GAP: f64 = 14.0;
const BOTTOM: f64 = 44.0;
/// Ratios beyond this are cut, and say so by their number.
const MOST: f64 = 2.0;

const INK: &str = "#1f2430";
const FAINT: &str = "#6b7280";

fn colour(engine: Engine) -> &'static str {
    match engine {
        Engine::Keel => "#0f766e",
        Engine::Haproxy => "#9aa3b2",
        Engine::Nginx | Engine::HaproxySplice => "#d4d9e2",
    }
}

/// Writes `docs/pictures/proxy-bench.svg`.
pub fn write(rows: &[Row]) -> Result<(), Error> {
    std::fs::write(root().join("docs/pictures/proxy-bench.svg"), draw(rows))?;
    Ok(())
}

fn x(ratio: f64) -> f64 {
    LEFT + ratio.min(MOST) / MOST * (RIGHT - LEFT)
}

#[allow(clippy::cast_precision_loss)]
fn draw(rows: &[Row]) -> String {
    let group = BAR * Engine::SHOWN.len() as f64 + GAP;
    let end = TOP + group * rows.len() as f64;
    let height = end + BOTTOM;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" viewBox=\"0 0 {WIDTH} {height}\" \
         font-family=\"system-ui, 'DejaVu Sans', sans-serif\" font-size=\"12\">\n\
         <title>keel, HAProxy and nginx compared</title>\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n"
    );
    let heading = "CPU time per request (last row: latency), HAProxy = 1; shorter is better";
    text(
        &mut svg,
        24.0,
        30.0,
        "start",
        INK,
        &format!("<tspan font-size=\"16\" font-weight=\"600\">{heading}</tspan>"),
    );
    legend(&mut svg);
    for tenths in [0u8, 5, 10, 15, 20] {
        let ratio = f64::from(tenths) / 10.0;
        let at = x(ratio);
        let stroke = if tenths == 10 { FAINT } else { "#e5e7eb" };
        let _ = writeln!(svg, "<path d=\"M{at:.1} {TOP}V{end:.1}\" stroke=\"{stroke}\"/>");
        text(&mut svg, at, end + 18.0, "middle", FAINT, &format!("{ratio}"));
    }
    for (index, row) in rows.iter().enumerate() {
        group_of(&mut svg, row, TOP + GAP / 2.0 + group * index as f64);
    }
    svg.push_str("</svg>\n");
    svg
}

fn legend(svg: &mut String) {
    let mut at = 24.0;
    for engine in Engine::SHOWN {
        let _ = writeln!(
            svg,
            "<rect x=\"{at}\" y=\"46\" width=\"14\" height=\"11\" fill=\"{}\"/>",
            colour(engine)
        );
        text(svg, at + 20.0, 56.0, "start", INK, engine.name());
        at += 90.0;
    }
    let _ =
        writeln!(svg, "<path d=\"M{} 44v15\" stroke=\"#b91c1c\" stroke-width=\"2\"/>", at + 4.0);
    text(svg, at + 12.0, 56.0, "start", INK, "the bar that keel has to meet");
}

#[allow(clippy::cast_precision_loss)]
fn group_of(svg: &mut String, row: &Row, top: f64) {
    let tall = BAR * Engine::SHOWN.len() as f64;
    text(svg, LEFT - 12.0, top + tall / 2.0 + 4.0, "end", INK, &escaped(row.case.title));
    for (index, engine) in Engine::SHOWN.into_iter().enumerate() {
        let y = top + BAR * index as f64;
        let ratios = row.ratios(engine);
        if ratios.is_empty() {
            small(svg, LEFT + 6.0, y + 8.5, FAINT, "not served");
            continue;
        }
        let ratio = median(&ratios);
        let _ = writeln!(
            svg,
            "<rect x=\"{LEFT}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"{}\"/>",
            x(ratio) - LEFT,
            BAR - 1.0,
            colour(engine)
        );
        let ink = if engine == Engine::Keel { "#ffffff" } else { INK };
        small(svg, LEFT + 6.0, y + 8.5, ink, &format!("{ratio:.2}"));
    }
    let _ = writeln!(
        svg,
        "<path d=\"M{:.1} {:.1}v{:.1}\" stroke=\"#b91c1c\" stroke-width=\"2\"/>",
        x(row.case.bar),
        top - 2.0,
        BAR + 3.0
    );
}

fn text(svg: &mut String, x: f64, y: f64, anchor: &str, fill: &str, words: &str) {
    let _ = writeln!(
        svg,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" fill=\"{fill}\">{words}</text>"
    );
}

fn small(svg: &mut String, x: f64, y: f64, fill: &str, words: &str) {
    text(svg, x, y, "start", fill, &format!("<tspan font-size=\"9.5\">{words}</tspan>"));
}

fn escaped(words: &str) -> String {
    words.replace('&', "&amp;").replace('<', "&lt;")
}
