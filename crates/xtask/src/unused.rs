//! Dependencies that no source of their crate mentions.
//!
//! Textual, so it may miss one whose name occurs for another reason; it never accuses one that is used. A dependency
//! used in a way that leaves no name (through a macro of another crate, say) is listed where cargo-machete looks
//! too: `[package.metadata.cargo-machete] ignored = ["name"]`.

use std::collections::BTreeSet;

use anyhow::Result;

use crate::report::{Style, Verdict};
use crate::source::Code;
use crate::workspace::{Dependency, Package, Workspace, read};

pub(crate) fn run(workspace: &Workspace, arguments: &[String], _: Style) -> Result<Verdict> {
    crate::no_arguments(arguments)?;
    let mut verdict = Verdict::default();
    for package in &workspace.packages {
        let mut own = codes(package, &["src"])?;
        let mut tests = codes(package, &["src", "tests", "benches", "examples"])?;
        let build = package.directory.join("build.rs");
        if build.is_file() {
            own.push(Code::of(&read(&build)?));
            tests.push(Code::of(&read(&build)?));
        }
        verdict.problems.extend(check(package, &own, &tests));
    }
    let manifest = read(&workspace.root.join("Cargo.toml"))?;
    let used: BTreeSet<_> = workspace
        .packages
        .iter()
        .flat_map(|package| &package.dependencies)
        .map(|dependency| dependency.rename.as_ref().unwrap_or(&dependency.name).as_str())
        .collect();
    for name in shared(&manifest).into_iter().filter(|name| !used.contains(name)) {
        verdict.notes.push(format!("Cargo.toml: no crate uses the shared dependency {name}"));
    }
    Ok(verdict)
}

fn codes(package: &Package, below: &[&str]) -> Result<Vec<Code>> {
    let mut codes = Vec::new();
    for directory in below {
        for path in package.rust_files(directory)? {
            codes.push(Code::of(&read(&path)?));
        }
    }
    Ok(codes)
}

fn check(package: &Package, own: &[Code], tests: &[Code]) -> Vec<String> {
    let used = |dependency: &Dependency| {
        let name = dependency.rename.as_ref().unwrap_or(&dependency.name);
        let word = name.replace('-', "_");
        let codes = if dependency.kind.as_deref() == Some("dev") { tests } else { own };
        package.used_otherwise.contains(name)
            || dependency.name == package.name
            || codes.iter().any(|code| code.mentions(&word))
    };
    package
        .dependencies
        .iter()
        .filter(|dependency| !used(dependency))
        .map(|dependency| format!("{}: {} is not used", package.name, dependency.name))
        .collect()
}

/// The names under `[workspace.dependencies]`.
fn shared(manifest: &str) -> Vec<&str> {
    manifest
        .lines()
        .skip_while(|line| line.trim() != "[workspace.dependencies]")
        .skip(1)
        .take_while(|line| !line.starts_with('['))
        .filter_map(|line| line.split_once('='))
        .map(|(name, _)| name.trim())
        .filter(|name| !name.is_empty() && !name.starts_with('#'))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dependency(name: &str, rename: Option<&str>, kind: Option<&str>) -> Dependency {
        let own = str::to_owned;
        Dependency { name: own(name), rename: rename.map(own), kind: kind.map(own) }
    }

    #[test]
    fn what_no_code_names_is_unused() {
        let package = Package {
            id: "a".to_owned(),
            name: "a".to_owned(),
            directory: "a".into(),
            dependencies: vec![
                dependency("serde-json", None, None),
                dependency("ghost", None, None),
                dependency("hidden", None, None),
                dependency("real-name", Some("other"), None),
                dependency("proptest", None, Some("dev")),
                dependency("only-in-tests", None, None),
                dependency("a", None, Some("dev")),
            ],
            used_otherwise: vec!["hidden".to_owned()],
        };
        let own = [Code::of("use serde_json::Value; // ghost\nfn f() { other::g(); \"ghost\" }")];
        let tests = [Code::of("proptest! {} only_in_tests::f()")];
        assert_eq!(
            check(&package, &own, &tests),
            ["a: ghost is not used", "a: only-in-tests is not used"]
        );
    }

    #[test]
    fn shared_names_are_read() {
        let manifest = "[workspace]\nx = 1\n[workspace.dependencies]\n# c = 1\na = \"1\"\n\nb-c = { }\n[profile]\nd = 1";
        assert_eq!(shared(manifest), ["a", "b-c"]);
    }
}
