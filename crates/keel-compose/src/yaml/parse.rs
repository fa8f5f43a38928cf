//! Text → spanned tree.
//!
//! Events come from saphyr-parser; this module builds the tree, expands aliases and `<<`, refuses duplicate and
//! non-string keys, and resolves plain scalars. Invariants: no recursion on input, depth and node count (after
//! expansion) are bounded, and an alias to an enclosing anchor is refused, so that hostile input costs little.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use saphyr_parser::{Event, Marker, Parser, ScalarStyle, Tag as YamlTag};

use super::scalar;
use crate::diagnostic::{Code, Diagnostic, Outcome, Span, fail};
use crate::value::{Map, Node, Tag, Value};

/// Characters that the loader uses for marks of its own; Unicode reserves them for such use, so no text has them.
const RESERVED: std::ops::RangeInclusive<char> = '\u{fdd0}'..='\u{fdef}';

/// Bounds on one file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Bytes.
    pub bytes: usize,
    /// Nested collections.
    pub depth: usize,
    /// Values that are written out.
    pub nodes: usize,
    /// Values that anchors and aliases may copy.
    pub copies: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { bytes: 16 << 20, depth: 128, nodes: 1_000_000, copies: 200_000 }
    }
}

/// Parses all documents of a file.
pub(crate) fn parse(file: &Arc<str>, bytes: &[u8], limits: Limits) -> Outcome<Vec<Node>> {
    let start = Span { file: file.clone(), line: 1, column: 1 };
    if bytes.len() > limits.bytes {
        let message = format!("the file is larger than {} MiB", limits.bytes >> 20);
        return fail(Diagnostic::error(Code::Budget, message).at(&start));
    }
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text.strip_prefix('\u{feff}').unwrap_or(text),
        Err(error) => return fail(not_utf8(bytes, error.valid_up_to(), &start)),
    };
    if let Some(at) = text.find(|c| RESERVED.contains(&c)) {
        let span = position(text, at, &start);
        let message = "the text contains a Unicode noncharacter (U+FDD0 to U+FDEF)";
        return fail(Diagnostic::error(Code::Syntax, message).at(&span).help("remove it"));
    }
    Builder::new(file.clone(), limits).run(text)
}

fn not_utf8(bytes: &[u8], at: usize, start: &Span) -> Diagnostic {
    let valid = std::str::from_utf8(&bytes[..at]).unwrap_or_default();
    Diagnostic::error(Code::Syntax, "the file is not UTF-8 text")
        .at(&position(valid, at, start))
        .help("save it as UTF-8")
}

/// The span of a byte offset.
fn position(text: &str, at: usize, start: &Span) -> Span {
    let before = &text[..at];
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    Span { file: start.file.clone(), line: number(line), column: number(column) }
}

/// A collection that is still open.
struct Frame {
    kind: Kind,
    anchor: usize,
    tag: Option<YamlTag>,
    span: Span,
    size: usize,
}

enum Kind {
    Seq(Vec<Node>),
    Map { map: Map, merges: Vec<Node>, merge_at: Option<Span>, key: Option<Key> },
}

/// A key that waits for its value.
struct Key {
    text: String,
    span: Span,
    merge: bool,
}

/// A finished value and how many values it holds.
type Sized = (Node, usize);

struct Builder {
    file: Arc<str>,
    limits: Limits,
    frames: Vec<Frame>,
    anchors: HashMap<usize, Sized>,
    open: HashSet<usize>,
    nodes: usize,
    copies: usize,
    documents: Vec<Node>,
}

impl Builder {
    fn new(file: Arc<str>, limits: Limits) -> Self {
        Self {
            file,
            limits,
            frames: Vec::new(),
            anchors: HashMap::new(),
            open: HashSet::new(),
            nodes: 0,
            copies: 0,
            documents: Vec::new(),
        }
    }

    fn run(mut self, text: &str) -> Outcome<Vec<Node>> {
        let mut parser = Parser::new_from_str(text);
        while let Some(event) = parser.next_event() {
            let (event, range) = event.or_else(|error| {
                let span = self.span(*error.marker());
                fail(
                    Diagnostic::error(Code::Syntax, format!("not valid YAML: {}", error.info()))
                        .at(&span),
                )
            })?;
            let span = self.span(range.start);
            let length = (range.start.line() == range.end.line())
                .then(|| range.end.col().saturating_sub(range.start.col()));
            self.event(event, span, length)?;
        }
        Ok(self.documents)
    }

    fn span(&self, marker: Marker) -> Span {
        let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        Span {
            file: self.file.clone(),
            line: number(marker.line().max(1)),
            column: number(marker.col() + 1),
        }
    }

    /// `length`: columns that the event takes, when it is all on one line.
    fn event(&mut self, event: Event<'_>, span: Span, length: Option<usize>) -> Outcome<()> {
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                let plain = style == ScalarStyle::Plain;
                if self.wants_key() {
                    return self.key(&text, plain, tag.as_deref(), span);
                }
                let mut node = scalar_node(&text, plain, tag.as_deref(), &span)?;
                node.inset = length.and_then(|length| inset(length, &text, style));
                self.count(1, &span)?;
                self.finish(node, 1, anchor)
            }
            Event::Alias(anchor) => {
                let node = self.alias(anchor, &span)?;
                self.finish(node.0, node.1, 0)
            }
            Event::SequenceStart(anchor, tag) => {
                self.open_frame(Kind::Seq(Vec::new()), anchor, tag.as_deref(), span)
            }
            Event::MappingStart(anchor, tag) => {
                let kind =
                    Kind::Map { map: Map::new(), merges: Vec::new(), merge_at: None, key: None };
                self.open_frame(kind, anchor, tag.as_deref(), span)
            }
            Event::SequenceEnd | Event::MappingEnd => self.close_frame(),
            Event::DocumentStart(_) => {
                self.anchors.clear();
                Ok(())
            }
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => Ok(()),
        }
    }

    /// Whether the next value is a key of the innermost mapping.
    fn wants_key(&self) -> bool {
        matches!(self.frames.last(), Some(Frame { kind: Kind::Map { key: None, .. }, .. }))
    }

    fn count(&mut self, size: usize, span: &Span) -> Outcome<()> {
        self.nodes += size;
        if self.nodes > self.limits.nodes {
            let message = format!("the file has more than {} values", self.limits.nodes);
            return fail(Diagnostic::error(Code::Budget, message).at(span).help("split it"));
        }
        Ok(())
    }

    /// Counts values that are copied for an anchor or an alias.
    fn count_copies(&mut self, size: usize, span: &Span) -> Outcome<()> {
        self.copies += size;
        if self.copies > self.limits.copies {
            let message = format!("aliases expand to more than {} values", self.limits.copies);
            return fail(
                Diagnostic::error(Code::Budget, message)
                    .at(span)
                    .help("use fewer aliases of large values"),
            );
        }
        Ok(())
    }

    fn alias(&mut self, anchor: usize, span: &Span) -> Outcome<Sized> {
        if self.open.contains(&anchor) {
            let message = "this alias stands inside the value that it names, which would never end";
            return fail(Diagnostic::error(Code::Cycle, message).at(span));
        }
        let size = match self.anchors.get(&anchor) {
            Some((_, size)) => *size,
            None => return fail(Diagnostic::error(Code::Syntax, "unknown anchor").at(span)),
        };
        self.count_copies(size, span)?;
        Ok(self.anchors[&anchor].clone())
    }

    fn open_frame(
        &mut self,
        kind: Kind,
        anchor: usize,
        tag: Option<&YamlTag>,
        span: Span,
    ) -> Outcome<()> {
        if self.wants_key() {
            return fail(Diagnostic::error(Code::Syntax, "a key must be a string").at(&span));
        }
        if self.frames.len() >= self.limits.depth {
            let message = format!("values are nested more than {} deep", self.limits.depth);
            return fail(Diagnostic::error(Code::Budget, message).at(&span));
        }
        self.count(1, &span)?;
        if anchor > 0 {
            self.open.insert(anchor);
        }
        self.frames.push(Frame { kind, anchor, tag: tag.cloned(), span, size: 1 });
        Ok(())
    }

    fn close_frame(&mut self) -> Outcome<()> {
        let Some(frame) = self.frames.pop() else { return Ok(()) };
        self.open.remove(&frame.anchor);
        let value = match frame.kind {
            Kind::Seq(items) => Value::Seq(items),
            Kind::Map { mut map, merges, .. } => {
                merge_into(&mut map, merges)?;
                Value::Map(map)
            }
        };
        let tag = compose_tag(frame.tag.as_ref());
        let node = Node { value, span: frame.span, tag, inset: None };
        self.finish(node, frame.size, frame.anchor)
    }

    /// Puts a finished value where it belongs.
    fn finish(&mut self, node: Node, size: usize, anchor: usize) -> Outcome<()> {
        if anchor > 0 {
            self.count_copies(size, &node.span)?;
            self.anchors.insert(anchor, (node.clone(), size));
        }
        let Some(frame) = self.frames.last_mut() else {
            self.documents.push(node);
            return Ok(());
        };
        frame.size += size;
        match &mut frame.kind {
            Kind::Seq(items) => items.push(node),
            Kind::Map { key: pending @ None, .. } => {
                // An alias as a key.
                let span = node.span.clone();
                let Some(text) = node.as_str().map(str::to_owned) else {
                    return fail(
                        Diagnostic::error(Code::Syntax, "a key must be a string").at(&span),
                    );
                };
                *pending = Some(Key { text, span, merge: false });
            }
            Kind::Map { map, merges, key, .. } => {
                let key = key.take().expect("the arm above takes mappings without a key");
                if key.merge {
                    merges.push(node);
                } else {
                    map.insert_at(key.text, key.span, node);
                }
            }
        }
        Ok(())
    }

    fn key(&mut self, text: &str, plain: bool, tag: Option<&YamlTag>, span: Span) -> Outcome<()> {
        self.count(1, &span)?;
        let merge = plain && text == "<<" && tag.is_none();
        if !merge && !matches!(scalar_node(text, plain, tag, &span)?.value, Value::String(_)) {
            return fail(
                Diagnostic::error(Code::Syntax, format!("the key `{text}` is not a string"))
                    .at(&span)
                    .help(format!("quote it: \"{text}\"")),
            );
        }
        let Some(Frame { kind: Kind::Map { map, merge_at, key, .. }, .. }) = self.frames.last_mut()
        else {
            return Ok(());
        };
        let first =
            if merge { merge_at.replace(span.clone()) } else { map.key_span(text).cloned() };
        if let Some(first) = first {
            let message =
                format!("the key `{text}` is given twice; the first stands on line {}", first.line);
            return fail(
                Diagnostic::error(Code::Syntax, message).at(&span).help("keep one of them"),
            );
        }
        *key = Some(Key { text: text.to_owned(), span, merge });
        Ok(())
    }
}

/// Adds the keys of `<<` values that the mapping does not have itself; earlier sources win.
fn merge_into(map: &mut Map, merges: Vec<Node>) -> Outcome<()> {
    for source in merges {
        let sources = match source.value {
            Value::Seq(items) => items,
            _ => vec![source],
        };
        for source in sources {
            let Value::Map(entries) = source.value else {
                let message = format!(
                    "`<<` needs a mapping or a list of mappings, not {}",
                    source.kind_name()
                );
                return fail(Diagnostic::error(Code::Syntax, message).at(&source.span));
            };
            for (key, span, node) in entries {
                if !map.contains(&key) {
                    map.insert_at(key, span, node);
                }
            }
        }
    }
    Ok(())
}

fn compose_tag(tag: Option<&YamlTag>) -> Tag {
    match tag {
        Some(tag) if tag.handle == "!" && tag.suffix == "reset" => Tag::Reset,
        Some(tag) if tag.handle == "!" && tag.suffix == "override" => Tag::Override,
        _ => Tag::None,
    }
}

fn scalar_node(text: &str, plain: bool, tag: Option<&YamlTag>, span: &Span) -> Outcome<Node> {
    let string = || Value::String(text.to_owned());
    let resolved = || if plain { scalar::resolve(text) } else { string() };
    let value = match tag {
        None => resolved(),
        Some(tag) if tag.is_yaml_core_schema() => core_value(text, &tag.suffix, span)?,
        // The non-specific tag `!` and Compose's own tags keep the text; null stays null for `!reset null`.
        Some(_) => string(),
    };
    Ok(Node { value, span: span.clone(), tag: compose_tag(tag), inset: None })
}

/// How far in the first character of a scalar stands, when the file has it character by character.
fn inset(length: usize, text: &str, style: ScalarStyle) -> Option<u32> {
    let quotes = match style {
        ScalarStyle::Plain => 0,
        ScalarStyle::SingleQuoted | ScalarStyle::DoubleQuoted => 1,
        _ => return None,
    };
    (length == text.chars().count() + 2 * quotes as usize).then_some(quotes)
}

/// A scalar with an explicit type such as `!!str`.
fn core_value(text: &str, kind: &str, span: &Span) -> Outcome<Value> {
    let resolved = scalar::resolve(text);
    let value = match (kind, resolved) {
        ("str", _) => Some(Value::String(text.to_owned())),
        ("int", value @ (Value::Int(_) | Value::Uint(_)))
        | ("bool", value @ Value::Bool(_))
        | ("float", value @ Value::Float(_))
        | ("null", value @ Value::Null)
        | ("timestamp", value @ Value::Time(_)) => Some(value),
        #[allow(clippy::cast_precision_loss)] // As go-yaml converts.
        ("float", Value::Int(value)) => Some(Value::Float(value as f64)),
        _ => None,
    };
    match value {
        Some(value) => Ok(value),
        None => fail(
            Diagnostic::error(Code::Syntax, format!("cannot read `{text}` as !!{kind}")).at(span),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str) -> Node {
        parse(&Arc::from("f"), text.as_bytes(), Limits::default()).unwrap().remove(0)
    }

    fn error(text: &str) -> Diagnostic {
        parse(&Arc::from("f"), text.as_bytes(), Limits::default()).unwrap_err().remove(0)
    }

    #[test]
    fn merges_and_aliases_expand() {
        let node = one("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: *a\n");
        assert_eq!(node.at(&["b", "x"]).unwrap().value, Value::Int(1));
        assert_eq!(node.at(&["b", "y"]).unwrap().value, Value::Int(3));
        assert_eq!(node.at(&["c", "y"]).unwrap().value, Value::Int(2));
    }

    #[test]
    fn duplicate_keys_say_where() {
        let error = error("a: 1\nb: 2\na: 3\n");
        assert_eq!(error.span.unwrap().line, 3);
        assert!(error.message.contains("line 1"));
    }

    #[test]
    fn non_string_keys_are_refused() {
        assert!(error("a: {80: 1}").help.unwrap().contains("\"80\""));
    }

    #[test]
    fn a_bomb_is_refused_quickly() {
        let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for level in 1..10 {
            let previous = format!("*a{}", level - 1);
            text += &format!("a{level}: &a{level} [{}]\n", [previous.as_str(); 10].join(", "));
        }
        let error = error(&text);
        assert_eq!(error.code, Code::Budget);
        assert!(error.span.is_some());
    }

    #[test]
    fn a_cycle_is_refused() {
        assert_eq!(error("a: &a {b: *a}\n").code, Code::Cycle);
    }

    #[test]
    fn deep_nesting_is_bounded() {
        assert_eq!(error(&("[".repeat(200) + &"]".repeat(200))).code, Code::Budget);
    }

    #[test]
    fn characters_of_a_text_have_places() {
        let node = one("a: text\nb: \"te\\u0078t\"\nc: 'text'\nd: |\n  text\n");
        let column = |key: &str| node.get(key).unwrap().place_of(2).column;
        assert_eq!(["a", "b", "c", "d"].map(column), [6, 4, 7, 3]);
    }

    #[test]
    fn tags_are_kept() {
        let node = one("a: !reset null\nb: !override [1]\n");
        assert_eq!(node.get("a").unwrap().tag, Tag::Reset);
        assert_eq!(node.get("b").unwrap().tag, Tag::Override);
    }
}
