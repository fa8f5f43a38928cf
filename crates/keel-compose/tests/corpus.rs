//! Every case of `tests/corpus`, byte for byte.
//!
//! A case is a directory with a project. `args` holds flags, `environment` the caller's variables. The expected
//! documents were printed by Docker Compose's own loader (2.40), except where this platform differs on purpose: the
//! cases with host processes, `pre_start` and `container_name` with replicas. `expected.error` holds our diagnostics for
//! projects that Docker Compose rejects too.

#![allow(clippy::unwrap_used)] // A failed expectation ends a test.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use keel_compose::{LoadOptions, MemorySource, Project, load};

/// Where the expected documents think that the projects are.
const ROOT: &str = "/project";

struct Case {
    name: String,
    directory: PathBuf,
    source: MemorySource,
    options: LoadOptions,
}

fn files_below(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { files_below(&path, found) } else { found.push(path) }
    }
}

fn read(directory: &Path) -> Case {
    let name = directory.file_name().unwrap().to_string_lossy().into_owned();
    let root = PathBuf::from(ROOT).join(&name);
    let mut files = Vec::new();
    files_below(directory, &mut files);
    let source = files.iter().fold(MemorySource::new(), |source, file| {
        source.with(root.join(file.strip_prefix(directory).unwrap()), fs::read(file).unwrap())
    });
    let text = |name: &str| fs::read_to_string(directory.join(name)).unwrap_or_default();
    let mut environment = BTreeMap::from([("PATH".to_owned(), "/usr/bin".to_owned())]);
    for line in text("environment").lines() {
        let (key, value) = line.split_once('=').unwrap();
        environment.insert(key.to_owned(), value.to_owned());
    }
    let options = flags(LoadOptions::new(root, environment), &text("args"));
    Case { name, directory: directory.to_owned(), source, options }
}

fn flags(mut options: LoadOptions, text: &str) -> LoadOptions {
    let mut words = text.split_whitespace();
    while let Some(word) = words.next() {
        let mut value = || words.next().unwrap().to_owned();
        match word {
            "-f" => options.files.push(value().into()),
            "-p" => options.project_name = Some(value()),
            "--profile" => options.profiles.push(value()),
            "--env-file" => options.env_files.push(value().into()),
            "--project-directory" => options.project_directory = Some(value().into()),
            service => options.services.push(service.to_owned()),
        }
    }
    options
}

/// What is wrong with a case, or nothing.
fn judge(case: &Case) -> Option<String> {
    let expected = |name: &str| fs::read_to_string(case.directory.join(name)).ok();
    match (load(&case.options, &case.source), expected("expected.error")) {
        (Ok(project), None) => {
            let json = expected("expected.json").expect("a case expects a document or an error");
            let yaml = expected("expected.yaml").expect("a case expects both renderings");
            differences(&project, json.trim_end(), &yaml)
        }
        (Err(errors), Some(expected)) => {
            let text: String = errors.iter().map(|error| format!("{error}\n")).collect();
            (text != expected).then(|| format!("expected\n{expected}\nbut got\n{text}"))
        }
        (Ok(_), Some(_)) => Some("was accepted".to_owned()),
        (Err(errors), None) => {
            Some(errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
        }
    }
}

fn differences(project: &Project, json: &str, yaml: &str) -> Option<String> {
    if project.json_text() != json {
        return Some(format!("expected\n{json}\nbut got\n{}", project.json_text()));
    }
    if project.to_yaml() != yaml {
        return Some(format!("expected\n{yaml}\nbut got\n{}", project.to_yaml()));
    }
    None
}

#[test]
fn every_case_prints_what_is_expected() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus");
    let mut directories: Vec<PathBuf> =
        fs::read_dir(corpus).unwrap().map(|entry| entry.unwrap().path()).collect();
    directories.sort();
    assert!(directories.len() >= 60, "the corpus is incomplete");
    let failures: Vec<String> = directories
        .iter()
        .map(|directory| read(directory))
        .filter_map(|case| judge(&case).map(|failure| format!("{}: {failure}", case.name)))
        .collect();
    assert!(failures.is_empty(), "{} cases fail:\n\n{}", failures.len(), failures.join("\n\n"));
}

/// Printing a project and loading what was printed changes nothing.
#[test]
fn printed_projects_load_again() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus");
    for entry in fs::read_dir(corpus).unwrap() {
        let case = read(&entry.unwrap().path());
        // Its printed form names a service that it does not contain; Docker Compose prints the same.
        if case.name == "profile-optional-dependency" {
            continue;
        }
        let Ok(project) = load(&case.options, &case.source) else { continue };
        let text = project.to_yaml();
        let source = MemorySource::new().with("/project/compose.yaml", text.clone());
        let mut options = LoadOptions::new("/project", BTreeMap::new());
        options.all_resources = true;
        options.profiles = vec!["*".to_owned()];
        let again = load(&options, &source)
            .unwrap_or_else(|errors| panic!("{}: {errors:?}\n{text}", case.name));
        assert_eq!(again.to_yaml(), text, "{}", case.name);
    }
}
