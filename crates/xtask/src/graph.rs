//! Who may depend on whom, and what a pure crate may not touch.
//!
//! The arrows are those of ARCHITECTURE.md. Test-only dependencies are free, except that nothing depends on the
//! binary. A pure crate decides and performs no I/O: it may not reach a runtime through any dependency, nor name a
//! file, socket, process, clock or source of chance in its own code.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;

use crate::report::{Style, Verdict};
use crate::source::Code;
use crate::workspace::{Package, Workspace, read};

/// Crate → the crates of ours that it may use.
const ARROWS: &[(&str, &[&str])] = &[
    ("keel-model", &[]),
    ("keel-compose", &["keel-model"]),
    ("keel-plan", &["keel-model"]),
    ("keel-route", &["keel-model"]),
    ("keel-query", &["keel-model"]),
    ("keel-pipeline", &["keel-model"]),
    ("keel-store", &["keel-model"]),
    ("keel-runtime", &["keel-model"]),
    ("keel-render", &["keel-model", "keel-route"]),
    ("keel-link", &["keel-model", "keel-route"]),
    ("keel-proxy", &["keel-model", "keel-route", "keel-link"]),
    ("keel-container", &["keel-model", "keel-runtime"]),
    ("keel-engine", &["keel-model", "keel-route", "keel-render", "keel-link"]),
    ("keel-discovery", &["keel-model"]),
    ("keel-acme", &["keel-model", "keel-route", "keel-store"]),
    ("keel-telemetry", &["keel-model", "keel-query"]),
    ("keel-kubernetes", &["keel-model", "keel-compose", "keel-plan"]),
    ("keel-cloud", &["keel-model"]),
    (
        "keel-server",
        &[
            "keel-model",
            "keel-compose",
            "keel-plan",
            "keel-route",
            "keel-query",
            "keel-pipeline",
            "keel-store",
            "keel-link",
            "keel-runtime",
            "keel-container",
            "keel-discovery",
            "keel-acme",
            "keel-telemetry",
            "keel-kubernetes",
            "keel-cloud",
        ],
    ),
    ("xtask", &[]),
];
/// The crate that wires: it may use all, and none may use it.
const BINARY: &str = "keel";
/// Development only: may use all but the binary.
const SIMULATION: &str = "keel-sim";

/// Crates below the I/O line.
const PURE: &[&str] = &[
    "keel-model",
    "keel-compose",
    "keel-plan",
    "keel-route",
    "keel-render",
    "keel-query",
    "keel-pipeline",
];
/// Packages that no pure crate may need, directly or not.
const IMPURE_PACKAGES: &[&str] = &[
    "tokio",
    "async-std",
    "smol",
    "mio",
    "socket2",
    "hyper",
    "reqwest",
    "rustix",
    "nix",
    "notify",
    "tempfile",
    "redb",
    "rand",
    "fastrand",
    "getrandom",
];
/// What the code of a pure crate may not name, with whether it has to be a whole word, and what to do instead.
const IMPURE_PATHS: &[(&str, bool, &str)] = &[
    ("tokio", true, "let the caller drive it"),
    ("std::fs", true, "take the content through an argument or a trait"),
    ("std::env", true, "take the environment through an argument"),
    ("std::process", true, "return what is to be run"),
    ("std::thread", true, "let the caller drive it"),
    ("std::net::Tcp", false, "take bytes, return bytes"),
    ("std::net::Udp", false, "take bytes, return bytes"),
    ("std::os::unix::net", true, "take bytes, return bytes"),
    ("std::time::Instant", true, "take `now` through an argument"),
    ("Instant::now", true, "take `now` through an argument"),
    ("std::time::SystemTime", true, "take `now` through an argument"),
    ("SystemTime::now", true, "take `now` through an argument"),
    ("rand", true, "take chance through an argument"),
];

pub(crate) fn run(workspace: &Workspace, arguments: &[String], _: Style) -> Result<Verdict> {
    crate::no_arguments(arguments)?;
    let mut verdict = Verdict::default();
    for package in &workspace.packages {
        verdict.problems.extend(check_arrows(package));
        if PURE.contains(&package.name.as_str()) {
            verdict.problems.extend(check_needs(workspace, package));
            for (path, code) in sources(package)? {
                let path = workspace.show(&path);
                verdict.problems.extend(check_paths(&path, &code));
            }
        }
    }
    Ok(verdict)
}

/// The package's own code without tests.
fn sources(package: &Package) -> Result<Vec<(std::path::PathBuf, Code)>> {
    let mut sources = Vec::new();
    let mut tests = Vec::new();
    for path in package.rust_files("src")? {
        let code = Code::of(&read(&path)?);
        let stem = path.file_stem().unwrap_or_default();
        let root = ["lib", "main", "mod"].iter().any(|root| stem == *root);
        let directory = if root { path.with_file_name("") } else { path.with_extension("") };
        for module in code.test_modules() {
            tests.push(directory.join(format!("{module}.rs")));
            tests.push(directory.join(module));
        }
        sources.push((path, code.without_tests()));
    }
    sources.retain(|(path, _)| !tests.iter().any(|test| path.starts_with(test)));
    Ok(sources)
}

fn check_arrows(package: &Package) -> Vec<String> {
    let name = package.name.as_str();
    let known = ARROWS.iter().find(|(crate_, _)| *crate_ == name);
    let ours = |name: &str| name == BINARY || name.starts_with("keel-");
    let mut problems = Vec::new();
    if ours(name) && known.is_none() && name != BINARY && name != SIMULATION {
        problems.push(format!("{name}: a new crate; say in xtask's graph what it may depend on"));
    }
    for dependency in package.dependencies.iter().filter(|dependency| ours(&dependency.name)) {
        let to = dependency.name.as_str();
        let for_tests = dependency.kind.as_deref() == Some("dev");
        let allowed = match known {
            _ if to == BINARY => false,
            _ if to == name || for_tests || name == BINARY || name == SIMULATION => true,
            Some((_, allowed)) => allowed.contains(&to),
            None => !name.starts_with("keel"),
        };
        if !allowed {
            problems.push(format!("{name} → {to}: this arrow is not in ARCHITECTURE.md"));
        }
    }
    problems
}

/// Impure packages that `package` needs, each with the way there.
fn check_needs(workspace: &Workspace, package: &Package) -> Vec<String> {
    let by_id: BTreeMap<_, _> = workspace.resolved.iter().map(|r| (r.id.as_str(), r)).collect();
    let mut problems = Vec::new();
    let mut seen = BTreeSet::new();
    let mut waiting = vec![(package.id.as_str(), package.name.clone())];
    while let Some((id, way)) = waiting.pop() {
        let Some(found) = by_id.get(id).filter(|_| seen.insert(id)) else { continue };
        if IMPURE_PACKAGES.contains(&found.name.as_str()) {
            problems.push(format!("{way}: a pure crate may not need {}", found.name));
            continue;
        }
        for need in &found.needs {
            let name = by_id.get(need.as_str()).map_or("", |need| need.name.as_str());
            waiting.push((need, format!("{way} → {name}")));
        }
    }
    problems
}

fn check_paths(path: &str, code: &Code) -> Vec<String> {
    let mut problems = Vec::new();
    for (forbidden, whole, instead) in IMPURE_PATHS {
        for line in code.uses(forbidden, *whole) {
            problems.push(format!("{path}:{line}: {forbidden} in a pure crate; {instead}"));
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    /// The name of a dependency and its kind.
    type Need = (&'static str, Option<&'static str>);

    fn package(name: &str, dependencies: &[Need]) -> Value {
        let dependencies: Vec<_> = dependencies
            .iter()
            .map(|(name, kind)| json!({"name": name, "rename": null, "kind": kind}))
            .collect();
        json!({
            "id": name, "name": name, "manifest_path": format!("/w/{name}/Cargo.toml"),
            "dependencies": dependencies, "metadata": null,
        })
    }

    /// A workspace in which members and foreign packages depend on each other as given.
    fn workspace(members: &[(&str, &[Need])], foreign: &[&str]) -> Workspace {
        let all: Vec<_> =
            members.iter().copied().chain(foreign.iter().map(|f| (*f, &[][..]))).collect();
        let nodes: Vec<_> = all
            .iter()
            .map(|(name, dependencies)| {
                let dependency =
                    |(name, kind): &Need| json!({"pkg": name, "dep_kinds": [{"kind": kind}]});
                let dependencies: Vec<_> = dependencies.iter().map(dependency).collect();
                json!({"id": name, "deps": dependencies})
            })
            .collect();
        Workspace::parse(&json!({
            "workspace_root": "/w",
            "target_directory": "/w/target",
            "workspace_members": members.iter().map(|(name, _)| name).collect::<Vec<_>>(),
            "packages": all.iter().map(|(name, deps)| package(name, deps)).collect::<Vec<_>>(),
            "resolve": {"nodes": nodes},
        }))
        .unwrap()
    }

    fn arrows(from: &'static str, to: &'static str, kind: Option<&'static str>) -> usize {
        check_arrows(&workspace(&[(from, &[(to, kind)])], &[to]).packages[0]).len()
    }

    #[test]
    fn arrows_point_downwards() {
        assert_eq!(arrows("keel-plan", "keel-model", None), 0);
        assert_eq!(arrows("keel-plan", "serde", None), 0);
        assert_eq!(arrows("keel-plan", "keel-store", None), 1);
        assert_eq!(arrows("keel-plan", "keel-compose", Some("dev")), 0);
        assert_eq!(arrows("keel-model", "keel", Some("dev")), 1);
        assert_eq!(arrows("keel", "keel-store", None), 0);
        assert_eq!(arrows("keel-proxy", "keel-store", None), 1);
        assert_eq!(arrows("keel-strange", "serde", None), 1);
        assert_eq!(arrows("shop", "keel", None), 1);
    }

    #[test]
    fn a_runtime_is_found_behind_other_packages() {
        let members: &[(&str, &[Need])] = &[
            ("keel-plan", &[("keel-model", None), ("proptest", Some("dev"))]),
            ("keel-model", &[("middle", None)]),
            ("middle", &[("tokio", None)]),
            ("proptest", &[("rand", None)]),
        ];
        let workspace = workspace(members, &["tokio", "rand"]);
        let plan = workspace.packages.iter().find(|p| p.name == "keel-plan").unwrap();
        assert_eq!(
            check_needs(&workspace, plan),
            ["keel-plan → keel-model → middle → tokio: a pure crate may not need tokio"]
        );
    }

    #[test]
    fn impure_code_is_found_and_tests_are_free() {
        let found = |source: &str| check_paths("a.rs", &Code::of(source).without_tests()).len();
        assert_eq!(found("use std::{fs, net::SocketAddr};"), 1);
        assert_eq!(found("fn a() { std::net::TcpStream::connect(b); }"), 1);
        assert_eq!(found("// std::fs\n#[cfg(test)]\nmod t { use std::fs; }"), 0);
        assert_eq!(found("fn a(now: Duration) -> IpAddr { operand::b() }"), 0);
        let message = &check_paths("a.rs", &Code::of("\nlet t = Instant::now();"))[0];
        assert_eq!(message, "a.rs:2: Instant::now in a pure crate; take `now` through an argument");
    }
}
