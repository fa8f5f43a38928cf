//! Rules that one value must satisfy beyond the schema: exclusive keys, addresses, blank paths.

use crate::diagnostic::{Code, Diagnostic, Outcome};
use crate::path::{ITEM, Path};
use crate::short::is_ip;
use crate::value::{Node, Value};

/// Checks a merged document; all violations are reported.
pub(crate) fn validate(document: &Node) -> Outcome<()> {
    let mut errors = Vec::new();
    walk(document, &Path::ROOT, &mut errors);
    if errors.is_empty() { Ok(()) } else { Err(errors) }
}

fn walk(node: &Node, path: &Path<'_>, errors: &mut Vec<Diagnostic>) {
    let handled = path.with_parts(|parts| {
        match parts {
            ["volumes", _] => external(node, path, errors),
            ["configs", _] => file_object(node, path, &["file", "environment", "content"], errors),
            ["secrets", _] => file_object(node, path, &["file", "environment"], errors),
            ["services", _, "ports", _] => address(node, path, errors),
            ["services", _, "develop", "watch", _, "path"] => blank(node, path, errors),
            ["services", _, "deploy", "resources", "reservations", "devices", _]
            | ["services", _, "gpus", _] => device_request(node, path, errors),
            _ => return false,
        }
        true
    });
    if handled {
        return;
    }
    match &node.value {
        Value::Map(map) => {
            for (key, child) in map.iter() {
                walk(child, &path.child(key), errors);
            }
        }
        Value::Seq(items) => {
            for item in items {
                walk(item, &path.child(ITEM), errors);
            }
        }
        _ => {}
    }
}

fn external(node: &Node, path: &Path<'_>, errors: &mut Vec<Diagnostic>) {
    if !matches!(node.get("external"), Some(Node { value: Value::Bool(true), .. })) {
        return;
    }
    for (key, child) in node.entries() {
        if !matches!(key, "name" | "external") && !key.starts_with("x-") {
            let message = format!("`{path}` is external and cannot have `{key}`");
            errors.push(
                Diagnostic::error(Code::Conflict, message)
                    .at(&child.span)
                    .help("an external volume is made elsewhere; remove one of the two keys"),
            );
        }
    }
}

fn file_object(node: &Node, path: &Path<'_>, keys: &[&str], errors: &mut Vec<Diagnostic>) {
    let given: Vec<&str> = keys.iter().copied().filter(|key| node.get(key).is_some()).collect();
    let list =
        |keys: &[&str]| keys.iter().map(|key| format!("`{key}`")).collect::<Vec<_>>().join(", ");
    if given.len() > 1 {
        let message = format!("`{path}` has more than one of {}", list(&given));
        errors.push(
            Diagnostic::error(Code::Conflict, message).at(&node.span).help("keep one of them"),
        );
    } else if given.is_empty() && node.get("driver").is_none() && node.get("external").is_none() {
        let message = format!("`{path}` needs one of {}", list(keys));
        errors.push(Diagnostic::error(Code::MissingKey, message).at(&node.span));
    }
}

fn address(node: &Node, path: &Path<'_>, errors: &mut Vec<Diagnostic>) {
    if let Some(ip) = node.get("host_ip")
        && !ip.as_str().is_some_and(is_ip)
    {
        let text = ip.display().unwrap_or_default();
        let message = format!("`{path}.host_ip` must be an IP address, not `{text}`");
        errors.push(Diagnostic::error(Code::InvalidValue, message).at(&ip.span));
    }
}

fn blank(node: &Node, path: &Path<'_>, errors: &mut Vec<Diagnostic>) {
    if node.as_str() == Some("") {
        let message = format!("`{path}` cannot be blank");
        errors.push(Diagnostic::error(Code::InvalidValue, message).at(&node.span));
    }
}

fn device_request(node: &Node, path: &Path<'_>, errors: &mut Vec<Diagnostic>) {
    if node.get("count").is_some() && node.get("device_ids").is_some() {
        let message = format!("`{path}` has both `count` and `device_ids`");
        errors.push(
            Diagnostic::error(Code::Conflict, message).at(&node.span).help("keep one of them"),
        );
    }
}
