//! Every input that fuzzing found worth keeping still does no harm.

#![allow(clippy::unwrap_used, reason = "these are tests")]

use std::fs;
use std::path::Path;

use fuzz::TARGETS;

/// Most files of one target, and bytes of all: the corpus is read by people's editors and cloned by everybody.
const MAX_FILES: usize = 200;
const MAX_BYTES: usize = 1 << 20;

#[test]
fn every_target_holds_on_its_corpus() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let mut bytes = 0;
    for target in TARGETS {
        let mut files: Vec<_> = fs::read_dir(corpus.join(target.name))
            .unwrap_or_else(|error| panic!("no corpus for {}: {error}", target.name))
            .map(|entry| entry.unwrap().path())
            .collect();
        files.sort();
        assert!((5..=MAX_FILES).contains(&files.len()), "{}: {} files", target.name, files.len());
        for file in files {
            let input = fs::read(&file).unwrap();
            bytes += input.len();
            // Shown if it panics.
            eprintln!("{}", file.display());
            (target.run)(&input);
        }
    }
    assert!(bytes <= MAX_BYTES, "{bytes} bytes");
    let known = fs::read_dir(corpus).unwrap().count();
    assert_eq!(known, TARGETS.len(), "a directory without a target");
}

#[test]
fn every_target_holds_on_nothing_and_on_everything() {
    let all: Vec<u8> = (0..=255).collect();
    for target in TARGETS {
        for input in [&b""[..], b"\r\n\r\n", &all, &all.repeat(300)] {
            (target.run)(input);
        }
    }
}
