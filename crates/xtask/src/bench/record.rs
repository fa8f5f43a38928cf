//! Keeps the last result of each bench in `docs/benchmarks.md`.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::Error;
use super::figure::Outcome;

/// Replaces the section of `name`.
pub fn keep(name: &str, about: &str, outcome: &Outcome) -> Result<(), Error> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/benchmarks.md");
    let old = fs::read_to_string(&path).unwrap_or_else(|_| INTRODUCTION.to_owned());
    let mut section = format!(
        "## {name}\n\n{about}. {}, {}, `cargo xtask bench {name}`.\n\n\
         | figure | value | bar | | spread |\n|---|---:|---:|---|---|\n",
        date(),
        machine()
    );
    for figure in &outcome.figures {
        section.push_str(&format!(
            "| {} | {} | {} | {} | {} |\n",
            figure.name,
            figure.value_text(),
            figure.bar_text(),
            figure.verdict(),
            figure.spread_text()
        ));
    }
    if !outcome.appendix.is_empty() {
        section.push_str(&format!("\n{}\n", outcome.appendix.trim_end()));
    }
    fs::write(path, replace_section(&old, name, &section))?;
    Ok(())
}

const INTRODUCTION: &str = "# Benchmarks\n\nThe last result of each `cargo xtask bench NAME`. A bar is the largest \
value that is good; a spread gives the smallest and the largest of several measurements.\n\n";

fn replace_section(document: &str, name: &str, section: &str) -> String {
    let heading = format!("## {name}\n");
    let Some(start) = document.find(&heading) else {
        return format!("{}\n\n{section}", document.trim_end());
    };
    let rest = &document[start + heading.len()..];
    match rest.find("\n## ") {
        Some(end) => format!("{}{section}{}", &document[..start], &rest[end..]),
        None => format!("{}{section}", &document[..start]),
    }
}

fn date() -> String {
    let output = Command::new("date").arg("+%Y-%m-%d").output();
    output.map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned()).unwrap_or_default()
}

fn machine() -> String {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let kernel: String = kernel.trim().split('-').next().unwrap_or_default().to_owned();
    format!("{cores} cores, Linux {kernel}")
}

#[cfg(test)]
mod tests {
    use super::replace_section;

    #[test]
    fn a_section_is_replaced_and_the_others_stay() {
        let document = "# B\n\n## one\n\nold\n\n## two\n\nstays\n";
        let replaced = replace_section(document, "one", "## one\n\nnew\n");
        assert_eq!(replaced, "# B\n\n## one\n\nnew\n\n## two\n\nstays\n");
        let added = replace_section(document, "three", "## three\n\nnew\n");
        assert_eq!(added, "# B\n\n## one\n\nold\n\n## two\n\nstays\n\n## three\n\nnew\n");
    }
}
