//! The spanned tree that every phase works on.
//!
//! A [`Node`] is one value of a Compose file with the place it came from. Mappings are kept in key order, because
//! Compose gives no meaning to the order of keys and a deterministic order makes every later phase repeatable.

use std::collections::BTreeMap;
use std::collections::btree_map;

use crate::diagnostic::Span;
use crate::number;

/// A value and where it was written.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub value: Value,
    pub span: Span,
    pub tag: Tag,
    /// Columns from the place to the first character of a text that stands in the file as it is: 1 behind a quote. `None`
    /// where that is not so: escapes, blocks, variables that were replaced, forms that were rewritten.
    pub inset: Option<u32>,
}

/// The two tags that Compose gives a meaning to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Tag {
    #[default]
    None,
    /// `!reset`: take the value away from the files before.
    Reset,
    /// `!override`: replace instead of merge.
    Override,
}

/// A value as go-yaml would have decoded it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Float(f64),
    /// A plain timestamp, in the form it is printed again.
    Time(String),
    String(String),
    Seq(Vec<Node>),
    Map(Map),
}

impl PartialEq for Node {
    /// Equal values are equal wherever they were written.
    fn eq(&self, other: &Self) -> bool {
        self.value == other.value
    }
}

impl Node {
    pub fn new(value: Value, span: &Span) -> Self {
        Self { value, span: span.clone(), tag: Tag::None, inset: None }
    }

    pub fn string(text: impl Into<String>, span: &Span) -> Self {
        Self::new(Value::String(text.into()), span)
    }

    /// The place of a character of the text, counted from 0; that of the whole text where it can't be told.
    pub fn place_of(&self, character: usize) -> Span {
        let mut span = self.span.clone();
        if let (Some(inset), Ok(character)) = (self.inset, u32::try_from(character)) {
            span.column = span.column.saturating_add(inset).saturating_add(character);
        }
        span
    }

    pub fn null(span: &Span) -> Self {
        Self::new(Value::Null, span)
    }

    pub fn is_null(&self) -> bool {
        self.value == Value::Null
    }

    pub fn as_str(&self) -> Option<&str> {
        match &self.value {
            Value::String(text) => Some(text),
            _ => None,
        }
    }

    pub fn as_map(&self) -> Option<&Map> {
        match &self.value {
            Value::Map(map) => Some(map),
            _ => None,
        }
    }

    pub fn as_map_mut(&mut self) -> Option<&mut Map> {
        match &mut self.value {
            Value::Map(map) => Some(map),
            _ => None,
        }
    }

    pub fn as_seq(&self) -> Option<&[Node]> {
        match &self.value {
            Value::Seq(items) => Some(items),
            _ => None,
        }
    }

    /// The entries of a mapping; none for anything else.
    pub fn entries(&self) -> impl Iterator<Item = (&str, &Node)> {
        self.as_map().into_iter().flat_map(Map::iter)
    }

    /// The items of a sequence; none for anything else.
    pub fn items(&self) -> &[Node] {
        self.as_seq().unwrap_or_default()
    }

    /// The value under a key, when this is a mapping that has it.
    pub fn get(&self, key: &str) -> Option<&Node> {
        self.as_map().and_then(|map| map.get(key))
    }

    /// The value at a path of keys.
    pub fn at(&self, path: &[&str]) -> Option<&Node> {
        path.iter().try_fold(self, |node, key| node.get(key))
    }

    /// The text under a key.
    pub fn text(&self, key: &str) -> Option<&str> {
        self.get(key).and_then(Node::as_str)
    }

    /// The value as Go's `%v` prints it; `None` for mappings and sequences.
    pub fn display(&self) -> Option<String> {
        Some(match &self.value {
            Value::Null => "<nil>".to_owned(),
            Value::Bool(value) => value.to_string(),
            Value::Int(value) => value.to_string(),
            Value::Uint(value) => value.to_string(),
            Value::Float(value) => number::go_general(*value),
            Value::Time(text) | Value::String(text) => text.clone(),
            Value::Seq(_) | Value::Map(_) => return None,
        })
    }

    /// What a user calls this kind of value.
    pub fn kind_name(&self) -> &'static str {
        match &self.value {
            Value::Null => "null",
            Value::Bool(_) => "a boolean",
            Value::Int(_) | Value::Uint(_) => "an integer",
            Value::Float(_) => "a number",
            Value::Time(_) => "a timestamp",
            Value::String(_) => "a string",
            Value::Seq(_) => "a list",
            Value::Map(_) => "a mapping",
        }
    }
}

/// One entry of a mapping: where the key stands, and the value.
#[derive(Clone, Debug, PartialEq)]
struct Entry {
    key: Span,
    node: Node,
}

/// A mapping in key order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Map(BTreeMap<String, Entry>);

impl PartialEq for Map {
    fn eq(&self, other: &Self) -> bool {
        self.0.len() == other.0.len()
            && self.iter().zip(other.iter()).all(|(a, b)| a.0 == b.0 && a.1 == b.1)
    }
}

impl Map {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn contains(&self, key: &str) -> bool {
        self.0.contains_key(key)
    }

    pub fn get(&self, key: &str) -> Option<&Node> {
        self.0.get(key).map(|entry| &entry.node)
    }

    pub fn get_mut(&mut self, key: &str) -> Option<&mut Node> {
        self.0.get_mut(key).map(|entry| &mut entry.node)
    }

    /// Where the key stands.
    pub fn key_span(&self, key: &str) -> Option<&Span> {
        self.0.get(key).map(|entry| &entry.key)
    }

    /// Sets a value; the key is taken to stand where the value does.
    pub fn insert(&mut self, key: impl Into<String>, node: Node) {
        let span = node.span.clone();
        self.insert_at(key, span, node);
    }

    pub fn insert_at(&mut self, key: impl Into<String>, span: Span, node: Node) {
        self.0.insert(key.into(), Entry { key: span, node });
    }

    pub fn remove(&mut self, key: &str) -> Option<Node> {
        self.0.remove(key).map(|entry| entry.node)
    }

    pub fn retain(&mut self, mut keep: impl FnMut(&str, &mut Node) -> bool) {
        self.0.retain(|key, entry| keep(key, &mut entry.node));
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &Node)> {
        self.0.iter().map(|(key, entry)| (key.as_str(), &entry.node))
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = (&str, &mut Node)> {
        self.0.iter_mut().map(|(key, entry)| (key.as_str(), &mut entry.node))
    }

    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }
}

impl IntoIterator for Map {
    type Item = (String, Span, Node);
    type IntoIter = IntoIter;

    fn into_iter(self) -> IntoIter {
        IntoIter(self.0.into_iter())
    }
}

/// The entries of a mapping, by value: key, place of the key, value.
pub(crate) struct IntoIter(btree_map::IntoIter<String, Entry>);

impl Iterator for IntoIter {
    type Item = (String, Span, Node);

    fn next(&mut self) -> Option<Self::Item> {
        self.0.next().map(|(key, entry)| (key, entry.key, entry.node))
    }
}
