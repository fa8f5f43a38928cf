//! Further contexts of a build, for builders that know only one: an image stands for each, and the text of the
//! Dockerfile names it. Pure.
//!
//! Docker before version 23 and Podman have no further contexts, and what has them takes this as well. A context comes
//! before a stage or an image of the same name, as BuildKit has it.

use std::collections::{BTreeMap, BTreeSet};

/// A Dockerfile in which contexts are images.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Rewritten {
    pub(super) text: String,
    /// Stages that were put before the others; they shift the numbers of those.
    pub(super) shift: usize,
}

/// An instruction with the lines that belong to it, or what is between two.
struct Piece<'a> {
    text: &'a str,
    /// In upper case; empty for comments and empty lines.
    word: String,
}

/// Makes the names in `contexts` stand for the images there.
pub(super) fn with_contexts(text: &str, contexts: &BTreeMap<String, String>) -> Rewritten {
    let pieces = pieces(text);
    let stages: Vec<String> = pieces.iter().filter_map(stage).collect();
    let ours: Vec<(&String, &String)> = contexts
        .iter()
        .filter(|(name, _)| is_stage_name(name) && !stages.contains(&name.to_lowercase()))
        .collect();
    let shift = ours.len();
    let mut out = String::new();
    let (mut begun, mut dropped) = (false, false);
    for piece in &pieces {
        if piece.word == "FROM" {
            if !begun {
                for (name, image) in &ours {
                    out.push_str(&format!("FROM {image} AS {name}\n"));
                }
            }
            begun = true;
            let replaced = stage(piece).and_then(|name| {
                let (_, image) = contexts.iter().find(|(it, _)| it.to_lowercase() == name)?;
                Some(format!("FROM {image} AS {name}\n"))
            });
            dropped = replaced.is_some();
            match replaced {
                Some(line) => out.push_str(&line),
                None => out.push_str(&from(piece.text, contexts)),
            }
        } else if !dropped {
            match piece.word.as_str() {
                "COPY" | "ADD" | "RUN" => out.push_str(&options(piece.text, contexts, shift)),
                _ => out.push_str(piece.text),
            }
        }
    }
    Rewritten { text: out, shift }
}

/// The name of the stage that a `FROM` begins, in lower case.
fn stage(piece: &Piece<'_>) -> Option<String> {
    if piece.word != "FROM" {
        return None;
    }
    let mut words = words(piece.text).skip(1).skip_while(|word| word.starts_with("--")).skip(1);
    words.next().filter(|word| word.eq_ignore_ascii_case("as"))?;
    words.next().map(str::to_lowercase)
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split_whitespace().filter(|word| *word != "\\" && *word != "`")
}

/// As names of stages are.
fn is_stage_name(name: &str) -> bool {
    name.starts_with(|first: char| first.is_ascii_lowercase())
        && name.bytes().all(|byte| {
            byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_.".contains(&byte)
        })
}

/// The image that stands for a name that no stage can have.
fn image<'a>(name: &str, contexts: &'a BTreeMap<String, String>) -> Option<&'a String> {
    let plain = |name: &str| name.strip_suffix(":latest").unwrap_or(name).to_owned();
    let known = |it: &&String| !is_stage_name(it) || name.ends_with(":latest");
    let found = contexts.keys().filter(known).find(|it| plain(it) == plain(name))?;
    contexts.get(found)
}

/// A `FROM` whose image may be a context.
fn from(text: &str, contexts: &BTreeMap<String, String>) -> String {
    let name = words(text).skip(1).find(|word| !word.starts_with("--"));
    match name.and_then(|name| Some((name, image(name, contexts)?))) {
        Some((name, image)) => text.replacen(name, image, 1),
        None => text.to_owned(),
    }
}

/// An instruction whose options may name a context, or a stage by its number.
fn options(text: &str, contexts: &BTreeMap<String, String>, shift: usize) -> String {
    let mut out = text.to_owned();
    for option in words(text).skip(1).take_while(|word| word.starts_with("--")) {
        let value = option.strip_prefix("--from=").or_else(|| {
            let mount = option.strip_prefix("--mount=")?;
            mount.split(',').find_map(|part| part.strip_prefix("from="))
        });
        let Some(value) = value else { continue };
        let number = value.parse::<usize>().ok().filter(|_| shift > 0);
        let new = number.map(|number| (number + shift).to_string());
        if let Some(new) = new.or_else(|| image(value, contexts).cloned()) {
            let changed = option.replacen(&format!("from={value}"), &format!("from={new}"), 1);
            out = out.replacen(option, &changed, 1);
        }
    }
    out
}

/// The images that stages begin with, as far as can be said without building: with the arguments before the first stage,
/// and `arguments` in their place.
pub(super) fn bases(text: &str, arguments: &BTreeMap<String, String>) -> BTreeSet<String> {
    let mut known: BTreeMap<String, String> = BTreeMap::new();
    let (mut stages, mut found) = (BTreeSet::new(), BTreeSet::new());
    for piece in &pieces(text) {
        if piece.word == "ARG" && found.is_empty() && stages.is_empty() {
            for declared in words(piece.text).skip(1) {
                let (name, value) = declared.split_once('=').unwrap_or((declared, ""));
                let value = arguments.get(name).map_or(value.trim_matches(['"', '\'']), |it| it);
                known.insert(name.to_owned(), value.to_owned());
            }
        }
        if piece.word != "FROM" {
            continue;
        }
        let name = words(piece.text).skip(1).find(|word| !word.starts_with("--"));
        let name = name.and_then(|name| expanded(name, &known));
        let own = |name: &String| name != "scratch" && !stages.contains(&name.to_lowercase());
        found.extend(name.filter(own));
        stages.extend(stage(piece));
    }
    found
}

/// With the values of variables, if all are simple and known.
fn expanded(name: &str, known: &BTreeMap<String, String>) -> Option<String> {
    let mut out = String::new();
    let mut rest = name;
    while let Some((before, after)) = rest.split_once('$') {
        out.push_str(before);
        let end = |text: &str| {
            text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(text.len())
        };
        let (variable, after) = match after.strip_prefix('{') {
            Some(after) => after.split_once('}')?,
            None => after.split_at(end(after)),
        };
        out.push_str(known.get(variable).filter(|value| !value.is_empty())?);
        rest = after;
    }
    out.push_str(rest);
    Some(out)
}

/// Cuts the text into instructions. Nothing is lost.
fn pieces(text: &str) -> Vec<Piece<'_>> {
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    let escape = escape(&lines);
    let mut pieces = Vec::new();
    let (mut at, mut next) = (0, 0);
    while next < lines.len() {
        let first = lines[next].trim_start();
        let mut length = lines[next].len();
        next += 1;
        let word = first.split_whitespace().next().unwrap_or_default().to_ascii_uppercase();
        let is_instruction = !word.is_empty() && !word.starts_with('#');
        if is_instruction {
            let mut ends = !first.trim_end().ends_with(escape);
            let mut last = next;
            while !ends && next < lines.len() {
                let line = lines[next].trim();
                length += lines[next].len();
                next += 1;
                // Comments and empty lines do not end what is continued.
                ends = !(line.is_empty() || line.starts_with('#') || line.ends_with(escape));
                last = next;
            }
            next = last;
            let whole = &text[at..at + length];
            if ["RUN", "COPY", "ADD"].contains(&word.as_str()) {
                for end in here_documents(whole) {
                    while next < lines.len() {
                        let line = lines[next].trim_end_matches(['\n', '\r']);
                        length += lines[next].len();
                        next += 1;
                        let line = if end.1 { line.trim_start_matches('\t') } else { line };
                        if line == end.0 {
                            break;
                        }
                    }
                }
            }
        }
        let word = if is_instruction { word } else { String::new() };
        pieces.push(Piece { text: &text[at..at + length], word });
        at += length;
    }
    pieces
}

/// The character that continues a line; a comment at the very beginning may choose it.
fn escape(lines: &[&str]) -> char {
    let directives = lines.iter().take_while(|line| line.starts_with('#'));
    let chosen = directives.filter_map(|line| {
        let (name, value) = line.trim_start_matches('#').split_once('=')?;
        name.trim().eq_ignore_ascii_case("escape").then(|| value.trim().chars().next())?
    });
    chosen.last().unwrap_or('\\')
}

/// The ends of the here-documents of an instruction, and whether tabs before them do not count.
fn here_documents(instruction: &str) -> Vec<(String, bool)> {
    let found = instruction.split_whitespace().filter_map(|word| {
        // `cat <<< x` is the shell's.
        let rest = word.trim_start_matches(|c: char| c.is_ascii_digit()).strip_prefix("<<")?;
        let (rest, tabs) = match rest.strip_prefix('-') {
            Some(rest) => (rest, true),
            None => (rest, false),
        };
        let name = rest.trim_matches(['"', '\'']);
        let is_name = !name.is_empty()
            && name.chars().all(|c| c.is_alphanumeric() || c == '_' || c == '-' || c == '.');
        is_name.then(|| (name.to_owned(), tabs))
    });
    found.collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn contexts(all: &[(&str, &str)]) -> BTreeMap<String, String> {
        all.iter().map(|(name, image)| ((*name).to_owned(), (*image).to_owned())).collect()
    }

    #[test]
    fn contexts_become_stages() {
        let text = "# syntax=docker/dockerfile:1\nARG BASE=lib\n\nFROM $BASE AS one\nCOPY --from=lib \\\n  # why\n  /a /b\n\
                    FROM scratch\nCOPY --chown=1 --from=0 /x /x\nRUN --mount=type=bind,from=lib,target=/l ls\n";
        let got = with_contexts(text, &contexts(&[("lib", "keel/context/a:1")]));
        let expected = "# syntax=docker/dockerfile:1\nARG BASE=lib\n\nFROM keel/context/a:1 AS lib\nFROM $BASE AS one\n\
                        COPY --from=lib \\\n  # why\n  /a /b\nFROM scratch\nCOPY --chown=1 --from=1 /x /x\n\
                        RUN --mount=type=bind,from=lib,target=/l ls\n";
        assert_eq!(got, Rewritten { text: expected.into(), shift: 1 });
    }

    #[test]
    fn a_context_comes_before_a_stage_and_an_image_of_its_name() {
        let text = "FROM a AS build\nRUN <<EOF\nFROM not\nEOF\nFROM node:18 AS x\nCOPY --from=build / /\nFROM alpine:latest\n";
        let all = contexts(&[("build", "i/b:1"), ("node:18", "i/n:1"), ("alpine", "i/a:1")]);
        let got = with_contexts(text, &all);
        let expected = "FROM i/a:1 AS alpine\nFROM i/b:1 AS build\nFROM i/n:1 AS x\nCOPY --from=build / /\nFROM i/a:1\n";
        assert_eq!(got, Rewritten { text: expected.into(), shift: 1 });
    }

    #[test]
    fn what_is_continued_or_quoted_is_no_instruction() {
        let text =
            "# escape=`\nFROM a\nRUN x `\nFROM b\nRUN <<-\"END\" cat\n\tFROM c\n\tEND\nCMD x\n";
        let words: Vec<String> = pieces(text).into_iter().map(|piece| piece.word).collect();
        assert_eq!(words, ["", "FROM", "RUN", "RUN", "CMD"]);
    }

    #[test]
    fn what_stages_begin_with_is_known() {
        let text = "ARG TAG=1\nARG BASE=\"a\"\nFROM --platform=linux/amd64 $BASE:${TAG} AS one\nFROM one AS two\nFROM scratch\n\
                    ARG X=y\nFROM ${NONE}\nFROM ${TAG:-x}\nFROM b\n";
        let of = |arguments: &[(&str, &str)]| -> Vec<String> {
            bases(text, &contexts(arguments)).into_iter().collect()
        };
        assert_eq!(of(&[]), ["a:1", "b"]);
        assert_eq!(of(&[("TAG", "2")]), ["a:2", "b"]);
    }

    proptest! {
        #[test]
        fn nothing_is_lost(text in "([A-Za-z#<\\\\ =`-]{0,12}\n?){0,8}|(FROM a|RUN x \\\\|RUN <<E|E|# c|\n){0,12}") {
            let all: String = pieces(&text).iter().map(|piece| piece.text).collect();
            prop_assert_eq!(&all, &text);
            prop_assert_eq!(with_contexts(&text, &BTreeMap::new()).text, text.clone());
            let _ = bases(&text, &BTreeMap::new());
        }
    }
}
