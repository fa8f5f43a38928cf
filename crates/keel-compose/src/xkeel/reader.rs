//! Strict reading of mappings: what is wrong becomes an error at its place, and reading goes on.

use std::time::Duration;

use ipnet::IpNet;

use crate::diagnostic::{Code, Diagnostic, Span, nearest};
use crate::number::{parse_decimal, parse_duration, parse_size};
use crate::routes::{Located, forms};
use crate::rule::{HEADER_HELP, PATTERN_HELP, parse_network};
use crate::value::{Map, Node, Value};

/// Collects what is wrong.
#[derive(Default)]
pub(crate) struct Reader {
    pub errors: Vec<Diagnostic>,
}

/// What the user wrote, in words.
pub(super) fn given(node: &Node) -> String {
    match node.display() {
        Some(text) if !node.is_null() => format!("`{}`", plain(&text)),
        _ => node.kind_name().to_owned(),
    }
}

/// A text in one line.
fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for c in text.chars() {
        match c.is_control() {
            true => plain.extend(c.escape_default()),
            false => plain.push(c),
        }
    }
    plain
}

impl Reader {
    pub fn error(&mut self, code: Code, span: &Span, message: String) -> &mut Diagnostic {
        self.errors.push(Diagnostic::error(code, message).at(span));
        self.errors.last_mut().expect("one was pushed")
    }

    /// A value of the wrong form, and what to write instead.
    pub fn wrong(&mut self, node: &Node, wanted: &str, help: &str) {
        let message = format!("this must be {wanted}, not {}", given(node));
        self.error(Code::InvalidValue, &node.span, message).help =
            (!help.is_empty()).then(|| help.to_owned());
    }

    /// The known entries of a mapping; everything else becomes an error. Null is an empty mapping.
    pub fn keys<'n>(
        &mut self,
        node: &'n Node,
        place: &str,
        known: &[&'static str],
    ) -> Vec<(&'n str, &'n Node)> {
        let map: &Map = match &node.value {
            Value::Map(map) => map,
            Value::Null => return Vec::new(),
            _ => {
                let message = format!("`{place}` must be a mapping, not {}", node.kind_name());
                self.error(Code::InvalidValue, &node.span, message);
                return Vec::new();
            }
        };
        let mut entries = Vec::new();
        for (key, value) in map.iter() {
            if known.contains(&key) {
                entries.push((key, value));
                continue;
            }
            let span = map.key_span(key).unwrap_or(&node.span).clone();
            let help = match nearest(key, known.iter().copied()) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("the keys are: {}", known.join(", ")),
            };
            self.error(Code::UnknownKey, &span, format!("`{place}` has no key `{key}`")).help =
                Some(help);
        }
        entries
    }

    pub fn word<T: Clone>(&mut self, node: &Node, words: &[(&'static str, T)]) -> Option<T> {
        // `1.2` and `1` are words too, whatever YAML takes them for.
        let text = node.display();
        let found = text.as_deref().and_then(|text| words.iter().find(|(word, _)| *word == text));
        if found.is_none() {
            let list: Vec<String> = words.iter().map(|(word, _)| format!("`{word}`")).collect();
            let near = text.and_then(|text| nearest(&text, words.iter().map(|(word, _)| *word)));
            let help = near.map_or_else(String::new, |near| format!("did you mean `{near}`?"));
            self.wrong(node, &list.join(" or "), &help);
        }
        found.map(|(_, value)| value.clone())
    }

    pub fn duration(&mut self, node: &Node) -> Option<Duration> {
        let nanos =
            node.as_str().and_then(parse_duration).and_then(|nanos| u64::try_from(nanos).ok());
        if nanos.is_none() {
            self.wrong(node, "a duration", "write for example `10s`, `1m30s` or `500ms`");
        }
        nanos.map(Duration::from_nanos)
    }

    /// A duration that is not zero.
    pub fn time(&mut self, node: &Node) -> Option<Duration> {
        let time = self.duration(node)?;
        if time < Duration::from_millis(1) {
            self.wrong(node, "at least `1ms`", "");
            return None;
        }
        Some(time)
    }

    /// An integer; also as text, because that is what a variable gives.
    pub fn number(&mut self, node: &Node, low: i64, high: i64) -> Option<i64> {
        self.number_or(node, low, high, "")
    }

    /// As [`Reader::number`], with what to do about a wrong one.
    pub fn number_or(&mut self, node: &Node, low: i64, high: i64, help: &str) -> Option<i64> {
        let number = match &node.value {
            Value::Int(number) => Some(*number),
            Value::String(text) => parse_decimal(text),
            _ => None,
        };
        let number = number.filter(|number| (low..=high).contains(number));
        if number.is_none() {
            self.wrong(node, &format!("an integer from {low} to {high}"), help);
        }
        number
    }

    pub fn port(&mut self, node: &Node) -> Option<u16> {
        self.number(node, 1, i64::from(u16::MAX)).and_then(|port| u16::try_from(port).ok())
    }

    pub fn count(&mut self, node: &Node) -> Option<u32> {
        self.number(node, 1, 1000).and_then(|count| u32::try_from(count).ok())
    }

    pub fn amount(&mut self, node: &Node, low: u32) -> Option<u32> {
        self.amount_or(node, low, "")
    }

    /// As [`Reader::amount`], with what to do about a wrong one.
    pub fn amount_or(&mut self, node: &Node, low: u32, help: &str) -> Option<u32> {
        let (low, high) = (i64::from(low), i64::from(u32::MAX));
        self.number_or(node, low, high, help).and_then(|number| u32::try_from(number).ok())
    }

    pub fn flag(&mut self, node: &Node) -> Option<bool> {
        let value = match &node.value {
            Value::Bool(value) => Some(*value),
            Value::String(text) => crate::interpolate::boolean(text),
            _ => None,
        };
        if value.is_none() {
            self.wrong(node, "`true` or `false`", "");
        }
        value
    }

    /// A size in bytes, as Compose writes it.
    pub fn bytes(&mut self, node: &Node) -> Option<u64> {
        let size = match &node.value {
            Value::Int(number) => Some(*number),
            Value::String(text) => parse_size(text).ok(),
            _ => None,
        };
        let size = size.and_then(|size| u64::try_from(size).ok());
        if size.is_none() {
            self.wrong(node, "a size", "write for example `10m` or `512k`");
        }
        size
    }

    /// A percentage without fraction.
    pub fn percent(&mut self, node: &Node) -> Option<u8> {
        let share = node.as_str().and_then(forms::share).filter(|share| share % 10 == 0);
        if share.is_none() {
            self.wrong(node, "a percentage from 0% to 100%", "write for example `20%`");
        }
        share.and_then(|share| u8::try_from(share / 10).ok())
    }

    /// A text that is not empty; numbers count as text.
    pub fn text(&mut self, node: &Node, wanted: &str) -> Option<String> {
        let text = match &node.value {
            Value::Seq(_) | Value::Map(_) | Value::Null => None,
            _ => node.display().filter(|text| !text.is_empty()),
        };
        if text.is_none() {
            self.wrong(node, wanted, "");
        }
        text
    }

    /// The items of a list, or the one thing that stands for a list of itself. An empty list is a mistake: it says
    /// nothing, and could be meant for all as well as for none.
    pub fn items<'n>(&mut self, node: &'n Node) -> &'n [Node] {
        let items = node.as_seq().unwrap_or(std::slice::from_ref(node));
        if items.is_empty() {
            self.error(Code::InvalidValue, &node.span, "this list is empty".to_owned()).help =
                Some("write what belongs into it, or leave the key out".to_owned());
        }
        items
    }

    /// One text or a list of them, each with its place.
    pub fn texts(&mut self, node: &Node, wanted: &str) -> Vec<Located<String>> {
        let items = self.items(node);
        let mut texts = Vec::with_capacity(items.len());
        for item in items {
            let text = self.text(item, wanted);
            texts.extend(text.map(|text| Located::new(text, &item.span)));
        }
        texts
    }

    /// One text or a list of them.
    pub fn strings(&mut self, node: &Node, wanted: &str) -> Vec<String> {
        self.texts(node, wanted).into_iter().map(|text| text.value).collect()
    }

    /// One network or a list of them.
    pub fn networks(&mut self, node: &Node) -> Vec<IpNet> {
        let mut networks = Vec::new();
        for item in self.items(node) {
            match item.as_str().and_then(parse_network) {
                Some(network) => networks.push(network),
                None => self.wrong(item, "a network", "write for example 10.0.0.0/8 or 192.0.2.7"),
            }
        }
        networks
    }

    /// An absolute path.
    pub fn path(&mut self, node: &Node) -> Option<String> {
        let path = node.as_str().filter(|path| path.starts_with('/'));
        if path.is_none() {
            let help = match node.as_str().filter(|path| !path.is_empty()) {
                Some(path) => format!("write `/{}`", plain(path)),
                None => "write for example `/api`".to_owned(),
            };
            self.wrong(node, "a path that begins with `/`", &help);
        }
        path.map(str::to_owned)
    }

    /// A path, with a query or without, as it stands in a request.
    pub fn target(&mut self, node: &Node) -> Option<String> {
        let path = self.path(node)?;
        if path.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Some(path);
        }
        let help =
            "write other characters than visible ASCII in their encoded form: `%20` for a space";
        self.wrong(node, "a path as it stands in a request", help);
        None
    }

    /// A regular expression.
    pub fn pattern(&mut self, node: &Node) -> Option<String> {
        let text = self.text(node, "a regular expression")?;
        match crate::rule::check_pattern(&text) {
            Ok(()) => Some(text),
            Err(message) => {
                let message = format!("`{}` is not a regular expression: {message}", plain(&text));
                self.error(Code::InvalidValue, &node.span, message).help =
                    Some(PATTERN_HELP.to_owned());
                None
            }
        }
    }

    /// The name of a header.
    pub fn header_name(&mut self, name: &str, span: &Span) -> Option<String> {
        if crate::rule::is_header_name(name) {
            return Some(name.to_owned());
        }
        let message = format!("`{}` is not the name of a header", plain(name));
        self.error(Code::InvalidValue, span, message).help = Some(HEADER_HELP.to_owned());
        None
    }

    /// The one entry of a mapping that names a kind and what belongs to it.
    pub fn only<'n>(
        &mut self,
        node: &'n Node,
        place: &str,
        known: &[&'static str],
    ) -> Option<(&'n str, &'n Node)> {
        let mistakes = self.errors.len();
        let entries = self.keys(node, place, known);
        match entries[..] {
            [entry] => Some(entry),
            // What was wrong with the keys says it all.
            _ if self.errors.len() > mistakes => None,
            _ => {
                let message = format!("`{place}` must have exactly one of: {}", known.join(", "));
                self.error(Code::InvalidValue, &node.span, message);
                None
            }
        }
    }
}
