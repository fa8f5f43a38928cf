//! Conditions: each [`Atom`] becomes one named ACL, whose lines are alternatives of each other.

use std::collections::BTreeMap;

use super::words::word;
use crate::pattern;
use crate::readings;
use crate::rules::{Alternative, Atom, Field, Test, canonical};

/// Patterns on one line. HAProxy reads at most 64 words.
const PATTERNS: usize = 40;

/// Where the parts of a request are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum View {
    /// In a request, with TLS ended.
    Request,
    /// In the first bytes of a connection.
    FirstBytes,
}

/// The ACLs of one frontend.
#[derive(Debug)]
pub(crate) struct Acls {
    view: View,
    names: BTreeMap<Atom, String>,
    pub lines: Vec<String>,
}

impl Acls {
    pub fn new(view: View) -> Self {
        Self { view, names: BTreeMap::new(), lines: Vec::new() }
    }

    /// Whether any of them looks at the path.
    pub fn look_at_path(&self) -> bool {
        self.names.keys().any(|atom| atom.field == Field::Path)
    }

    /// The condition that holds if all literals do, as words.
    pub fn condition(&mut self, alternative: &Alternative) -> String {
        let words = alternative.iter().map(|literal| {
            let name = self.name(&literal.atom);
            if literal.holds { name } else { format!("!{name}") }
        });
        words.collect::<Vec<_>>().join(" ")
    }

    /// Adds lines for something that is no rule.
    pub fn add(&mut self, name: &str, test: &str) {
        self.lines.push(format!("acl {name} {test}"));
    }

    /// Adds an ACL that holds for addresses in these networks.
    pub fn add_networks(&mut self, name: &str, networks: &[ipnet::IpNet]) {
        let patterns: Vec<String> =
            networks.iter().map(|net| canonical(*net).to_string()).collect();
        self.add_patterns(name, "src", &patterns);
    }

    fn name(&mut self, atom: &Atom) -> String {
        if let Some(name) = self.names.get(atom) {
            return name.clone();
        }
        let name = format!("t{}", self.names.len() + 1);
        self.define(&name, atom);
        self.names.insert(atom.clone(), name.clone());
        name
    }

    fn define(&mut self, name: &str, atom: &Atom) {
        if atom.field == Field::Readings {
            self.add(name, "var(txn.doubt) -m str hard");
            let differ = readings::differ(atom.tests.iter()).map(|text| format!(r"\A{text}"));
            return self.add_patterns(name, "var(txn.path) -m reg", differ.as_slice());
        }
        let fetch = match (&atom.field, self.view) {
            (Field::Host, _) => "var(txn.host)".to_owned(),
            (Field::Path | Field::Readings, _) => "var(txn.path)".to_owned(),
            (Field::Method, _) => "method".to_owned(),
            (Field::Header(header), _) => format!("req.fhdr({header})"),
            (Field::Query, _) => "query".to_owned(),
            (Field::Client, _) => "src".to_owned(),
            (Field::Sni, View::Request) => "ssl_fc_sni,lower,rtrim(.)".to_owned(),
            (Field::Sni, View::FirstBytes) => "req.ssl_sni,lower,rtrim(.)".to_owned(),
        };
        let (mut exact, mut begin, mut regex, mut nets) = (vec![], vec![], vec![], vec![]);
        let mut present = false;
        for test in &atom.tests {
            match test {
                Test::Exact(text) => exact.push(text.clone()),
                Test::Label(suffix) => {
                    regex.push(format!(r"\A[^.]+{}\z", pattern::literal(suffix.as_bytes())));
                }
                Test::Prefix(prefix) => {
                    if !prefix.is_empty() {
                        exact.push(prefix.clone());
                    }
                    begin.push(format!("{prefix}/"));
                }
                Test::Regex(expression) => regex.push(expression.clone()),
                Test::Present => present = true,
                Test::Net(net) => nets.push(net.to_string()),
            }
        }
        if present {
            self.add(name, &format!("{fetch} -m found"));
        }
        for (matcher, patterns) in [("-m str", exact), ("-m beg", begin), ("-m reg", regex)] {
            self.add_patterns(name, &format!("{fetch} {matcher}"), &patterns);
        }
        self.add_patterns(name, &fetch, &nets);
    }

    fn add_patterns(&mut self, name: &str, test: &str, patterns: &[String]) {
        for some in patterns.chunks(PATTERNS) {
            let words: Vec<String> = some.iter().map(|pattern| word(pattern)).collect();
            // What begins with a dash would be taken for an option.
            self.add(name, &format!("{test} -- {}", words.join(" ")));
        }
    }
}
