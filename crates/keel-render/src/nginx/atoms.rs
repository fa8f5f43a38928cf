//! Conditions: each [`Atom`] becomes a variable that is `1` or `0`, and a map looks for the first alternative whose
//! pattern of ones and zeros is there.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use super::words::{Blocks, matching};
use crate::rules::{Alternative, Atom, Field, Test, canonical};
use crate::{path, pattern, readings};

/// The host for which a server block stands.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Host {
    /// None that has a block of its own.
    Other,
    Exact(String),
    /// Any labels in front of this (`.example.com`), unless there is a closer block.
    Below(String),
}

/// What is left to be tested of an alternative once the host is known as far as `host` tells; `None` if it never holds.
pub(crate) fn known_host(alternative: &Alternative, host: &Host) -> Option<Alternative> {
    let mut left = Vec::new();
    for literal in alternative {
        if literal.atom.field != Field::Host {
            left.push(literal.clone());
            continue;
        }
        let mut open = literal.atom.clone();
        open.tests.clear();
        let mut holds = false;
        for test in &literal.atom.tests {
            match (test, host) {
                (Test::Exact(name), Host::Exact(known)) => holds |= name == known,
                (Test::Label(suffix), Host::Exact(known)) => {
                    let label = known.strip_suffix(suffix.as_str());
                    holds |= label.is_some_and(|label| !label.is_empty() && !label.contains('.'));
                }
                (Test::Label(suffix), Host::Below(parent)) if suffix == parent => {
                    open.tests.insert(test.clone());
                }
                (Test::Exact(_) | Test::Label(_), _) => {}
                _ => {
                    open.tests.insert(test.clone());
                }
            }
        }
        let known = if holds { Some(true) } else { open.tests.is_empty().then_some(false) };
        match known {
            Some(known) if known == literal.holds => {}
            Some(_) => return None,
            None => left.push(crate::rules::Literal { atom: open, holds: literal.holds }),
        }
    }
    Some(left)
}

/// The variables for atoms.
#[derive(Debug)]
pub(crate) struct Atoms {
    prefix: &'static str,
    names: BTreeMap<Atom, String>,
    pub maps: Blocks,
}

impl Atoms {
    /// Their names begin with `prefix`.
    pub fn new(prefix: &'static str) -> Self {
        Self { prefix, names: BTreeMap::new(), maps: Blocks::at_depth(1) }
    }

    /// The variable for an atom.
    fn name(&mut self, atom: &Atom) -> String {
        if let Some(name) = self.names.get(atom) {
            return name.clone();
        }
        let name = format!("${}{}", self.prefix, self.names.len() + 1);
        self.define(&name, atom);
        self.names.insert(atom.clone(), name.clone());
        name
    }

    fn define(&mut self, name: &str, atom: &Atom) {
        let source = match &atom.field {
            Field::Host => "$host".to_owned(),
            Field::Path => "$keel_uri".to_owned(),
            Field::Readings => {
                let mut lines = vec!["default 0".to_owned(), format!("{} 1", matching(r"\A2"))];
                let differ = readings::differ(atom.tests.iter());
                lines.extend(differ.map(|text| format!("{} 1", matching(&format!(r"\A1{text}")))));
                return self.maps.block(format!("map $keel_doubt$request_uri {name}"), &lines);
            }
            Field::Method => "$request_method".to_owned(),
            Field::Header(header) => header_variable(header),
            Field::Query => "$args".to_owned(),
            Field::Sni if self.prefix == super::STREAM_ATOMS => {
                "$ssl_preread_server_name".to_owned()
            }
            Field::Sni => "$ssl_server_name".to_owned(),
            Field::Client => {
                let nets = atom.tests.iter().filter_map(|test| match test {
                    Test::Net(net) => Some(*net),
                    _ => None,
                });
                return self.maps.block(format!("geo {name}"), &networks(nets));
            }
        };
        let mut lines = vec!["default 0".to_owned()];
        for test in &atom.tests {
            let expression = match (test, &atom.field) {
                (Test::Exact(text), Field::Path) => {
                    format!(r"\A{}\z", pattern::literal(&path::decoded(text)))
                }
                (Test::Exact(text), Field::Sni) => {
                    format!(r"(?i)\A{}\z", pattern::literal(text.as_bytes()))
                }
                (Test::Exact(text), _) => format!(r"\A{}\z", pattern::literal(text.as_bytes())),
                (Test::Label(suffix), _) => {
                    format!(r"(?i)\A[^.]+{}\z", pattern::literal(suffix.as_bytes()))
                }
                (Test::Prefix(prefix), _) if prefix.is_empty() => r"\A/".to_owned(),
                (Test::Prefix(prefix), _) => {
                    format!(r"\A{}(?:/|\z)", pattern::literal(&path::decoded(prefix)))
                }
                (Test::Regex(expression), _) => expression.clone(),
                (Test::Present, _) => ".".to_owned(),
                (Test::Net(_), _) => continue,
            };
            lines.push(format!("{} 1", matching(&expression)));
        }
        self.maps.block(format!("map {source} {name}"), &lines);
    }

    /// A variable with the target of the first alternative that holds, else `otherwise`; or the target itself if it
    /// is always the same.
    pub fn choice(
        &mut self,
        name: &str,
        candidates: &[(Alternative, String)],
        otherwise: &str,
    ) -> String {
        let always = candidates.iter().position(|(alternative, _)| alternative.is_empty());
        let otherwise = always.map_or(otherwise, |at| candidates[at].1.as_str());
        let candidates = &candidates[..always.unwrap_or(candidates.len())];
        if candidates.is_empty() {
            return otherwise.to_owned();
        }
        let mut columns: Vec<String> = Vec::new();
        let mut lines = vec![format!("default {otherwise}")];
        for (alternative, target) in candidates {
            let mut wanted: BTreeMap<usize, char> = BTreeMap::new();
            for literal in alternative {
                let variable = self.name(&literal.atom);
                let column = columns.iter().position(|column| *column == variable);
                let column = column.unwrap_or_else(|| {
                    columns.push(variable);
                    columns.len() - 1
                });
                wanted.insert(column, if literal.holds { '1' } else { '0' });
            }
            lines.push(format!("{} {target}", matching(&columns_expression(&wanted))));
        }
        self.maps.block(format!("map \"{}\" ${name}", columns.concat()), &lines);
        format!("${name}")
    }
}

/// The entries of a `geo` block that is 1 for addresses in these networks and else 0.
pub(crate) fn networks(networks: impl IntoIterator<Item = IpNet>) -> Vec<String> {
    let halves = |net: IpNet| match net.prefix_len() {
        // The whole of a family is taken for a second default.
        0 => net.subnets(1).map(Iterator::collect).unwrap_or_default(),
        _ => vec![net],
    };
    let all: BTreeSet<IpNet> = networks.into_iter().map(canonical).flat_map(halves).collect();
    let mut lines = vec!["default 0".to_owned()];
    lines.extend(all.into_iter().map(|net| format!("{net} 1")));
    lines
}

/// An expression for ones and zeros at these columns and anything at the others.
fn columns_expression(wanted: &BTreeMap<usize, char>) -> String {
    let mut out = r"\A".to_owned();
    let mut at = 0;
    for (column, digit) in wanted {
        match column - at {
            0 => {}
            1 => out.push('.'),
            any => out.push_str(&format!(".{{{any}}}")),
        }
        out.push(*digit);
        at = column + 1;
    }
    out
}

/// The variable that holds a header of the request.
pub(crate) fn header_variable(name: &str) -> String {
    format!("$http_{}", name.to_ascii_lowercase().replace('-', "_"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_for_columns() {
        let of = |wanted: &[(usize, char)]| columns_expression(&wanted.iter().copied().collect());
        assert_eq!(of(&[(0, '1')]), r"\A1");
        assert_eq!(of(&[(1, '0'), (4, '1')]), r"\A.0.{2}1");
    }
}
