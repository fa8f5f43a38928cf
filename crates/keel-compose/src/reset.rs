//! `!reset` and `!override`: taking values away from the files before.

use crate::path::ITEM;
use crate::value::{Map, Node, Tag, Value};

/// The places whose earlier values go.
#[derive(Clone, Debug, Default)]
pub(crate) struct Resets(Vec<Vec<String>>);

impl Resets {
    /// Notes the tagged places of a document and removes its `!reset` values.
    pub fn extract(document: &mut Node) -> Self {
        let mut resets = Self::default();
        resets.walk(document, &mut Vec::new());
        resets
    }

    fn walk(&mut self, node: &mut Node, path: &mut Vec<String>) {
        match &mut node.value {
            Value::Map(map) => map.retain(|key, child| {
                path.push(key.to_owned());
                let keep = self.visit(child, path);
                path.pop();
                keep
            }),
            Value::Seq(items) => items.retain_mut(|item| {
                path.push(ITEM.to_owned());
                let keep = self.visit(item, path);
                path.pop();
                keep
            }),
            _ => {}
        }
    }

    /// Whether the value stays in its document.
    fn visit(&mut self, node: &mut Node, path: &mut Vec<String>) -> bool {
        match node.tag {
            Tag::None => {
                self.walk(node, path);
                true
            }
            tag => {
                // Items of lists have no identity, so only keys can be taken away from earlier files.
                if path.last().is_some_and(|last| last != ITEM) {
                    self.0.push(path.clone());
                }
                tag == Tag::Override
            }
        }
    }

    /// Takes the noted places away from an earlier document.
    pub fn apply(&self, document: &mut Node) {
        for path in &self.0 {
            remove(document, path);
        }
    }

    /// As [`Resets::apply`], for one service that stands outside its document.
    pub fn apply_to_service(&self, name: &str, service: &mut Node) {
        for path in &self.0 {
            if let [top, owner, rest @ ..] = path.as_slice()
                && top == "services"
                && owner == name
                && !rest.is_empty()
            {
                remove(service, rest);
            }
        }
    }
}

fn remove(node: &mut Node, path: &[String]) {
    let [key, rest @ ..] = path else { return };
    match (&mut node.value, rest.is_empty()) {
        (Value::Map(map), true) => {
            map.remove(key);
        }
        (Value::Map(map), false) => {
            if let Some(child) = Map::get_mut(map, key) {
                remove(child, rest);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::yaml::{Limits, parse};

    fn document(text: &str) -> Node {
        parse(&Arc::from("f"), text.as_bytes(), Limits::default()).unwrap().remove(0)
    }

    #[test]
    fn tagged_values_are_noted_and_taken_away() {
        let mut over = document("a: {b: !reset null, c: !override [2]}\n");
        let mut base = document("a: {b: 1, c: [1], d: 4}\n");
        let resets = Resets::extract(&mut over);
        resets.apply(&mut base);
        assert!(over.at(&["a", "b"]).is_none());
        assert!(over.at(&["a", "c"]).is_some());
        assert_eq!(base.get("a").unwrap().entries().map(|(k, _)| k).collect::<Vec<_>>(), ["d"]);
    }
}
