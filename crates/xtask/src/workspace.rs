//! The workspace as cargo sees it, and its files.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;
use serde_json::Value;

/// The workspace: its packages and what they depend on.
#[derive(Debug)]
pub(crate) struct Workspace {
    pub(crate) root: PathBuf,
    /// Where cargo puts what it builds.
    pub(crate) target: PathBuf,
    pub(crate) packages: Vec<Package>,
    /// The whole resolved graph, by package id.
    pub(crate) resolved: Vec<Resolved>,
}

/// One member of the workspace.
#[derive(Clone, Debug)]
pub(crate) struct Package {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) directory: PathBuf,
    pub(crate) dependencies: Vec<Dependency>,
    /// Names under `[package.metadata.cargo-machete] ignored`.
    pub(crate) used_otherwise: Vec<String>,
}

/// One line of a `[dependencies]` table.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Dependency {
    pub(crate) name: String,
    pub(crate) rename: Option<String>,
    /// None, `dev` or `build`.
    pub(crate) kind: Option<String>,
}

/// One package of the graph with what it is built with outside of tests.
#[derive(Clone, Debug)]
pub(crate) struct Resolved {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) needs: Vec<String>,
}

/// Directories that hold no sources of ours.
const SKIPPED: &[&str] = &["target", "node_modules"];
/// The deepest directory that is looked into.
const MAX_DEPTH: usize = 16;

impl Workspace {
    /// Asks cargo.
    pub(crate) fn load() -> Result<Self> {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let output = Command::new(cargo)
            .args(["metadata", "--format-version", "1", "--locked"])
            .output()
            .context("cargo could not be started")?;
        if !output.status.success() {
            bail!("cargo metadata failed:\n{}", String::from_utf8_lossy(&output.stderr).trim());
        }
        let metadata = serde_json::from_slice(&output.stdout).context("cargo metadata")?;
        Self::parse(&metadata).context("cargo metadata is not as expected")
    }

    /// Reads the output of `cargo metadata`.
    pub(crate) fn parse(metadata: &Value) -> Result<Self> {
        let root = PathBuf::from(text(&metadata["workspace_root"])?);
        let target = PathBuf::from(text(&metadata["target_directory"])?);
        let members = list(&metadata["workspace_members"])?;
        let all = list(&metadata["packages"])?;
        let mut packages = Vec::new();
        for package in all.iter().filter(|package| members.contains(&package["id"])) {
            let manifest = PathBuf::from(text(&package["manifest_path"])?);
            let ignored = &package["metadata"]["cargo-machete"]["ignored"];
            packages.push(Package {
                id: text(&package["id"])?.to_owned(),
                name: text(&package["name"])?.to_owned(),
                directory: manifest.parent().context("a manifest lies in a directory")?.to_owned(),
                dependencies: Deserialize::deserialize(&package["dependencies"])?,
                used_otherwise: Option::deserialize(ignored)?.unwrap_or_default(),
            });
        }
        packages.sort_by(|a, b| a.name.cmp(&b.name));
        let mut resolved = Vec::new();
        for node in list(&metadata["resolve"]["nodes"])? {
            let id = text(&node["id"])?.to_owned();
            let package = all.iter().find(|package| package["id"] == node["id"]);
            let name = text(&package.context("a node without package")?["name"])?.to_owned();
            let needs = list(&node["deps"])?
                .iter()
                .filter(|dep| !only_for_tests_or_builds(dep))
                .map(|dep| text(&dep["pkg"]).map(str::to_owned))
                .collect::<Result<_>>()?;
            resolved.push(Resolved { id, name, needs });
        }
        Ok(Self { root, target, packages, resolved })
    }

    /// A path as messages show it.
    pub(crate) fn show(&self, path: &Path) -> String {
        path.strip_prefix(&self.root).unwrap_or(path).display().to_string()
    }

    /// All files of the tree in order of path, without hidden and built ones (but with `.ci`).
    pub(crate) fn files(&self) -> Result<Vec<PathBuf>> {
        files_below(&self.root)
    }
}

impl Package {
    /// The Rust files under one of the package's directories, in order of path.
    pub(crate) fn rust_files(&self, below: &str) -> Result<Vec<PathBuf>> {
        let directory = self.directory.join(below);
        if !directory.is_dir() {
            return Ok(Vec::new());
        }
        let mut files = files_below(&directory)?;
        files.retain(|file| file.extension().is_some_and(|extension| extension == "rs"));
        Ok(files)
    }
}

/// Reads a file with its name in the error.
pub(crate) fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| path.display().to_string())
}

fn files_below(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut waiting = vec![(directory.to_owned(), 0)];
    while let Some((directory, depth)) = waiting.pop() {
        let entries = fs::read_dir(&directory).with_context(|| directory.display().to_string())?;
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            let hidden = name.starts_with('.') && name != ".ci";
            if hidden || SKIPPED.contains(&name.as_ref()) {
                continue;
            }
            let kind = entry.file_type()?;
            if kind.is_dir() && depth < MAX_DEPTH {
                waiting.push((entry.path(), depth + 1));
            } else if kind.is_file() {
                files.push(entry.path());
            }
        }
    }
    files.sort();
    Ok(files)
}

/// Whether a dependency is only there while tests run or the package is built.
fn only_for_tests_or_builds(dependency: &Value) -> bool {
    let is_aside = |kind: &Value| kind["kind"] == "dev" || kind["kind"] == "build";
    let kinds = dependency["dep_kinds"].as_array();
    kinds.is_some_and(|kinds| kinds.iter().all(is_aside))
}

fn text(value: &Value) -> Result<&str> {
    value.as_str().with_context(|| format!("not text: {value}"))
}

fn list(value: &Value) -> Result<&Vec<Value>> {
    value.as_array().with_context(|| format!("not a list: {value}"))
}
