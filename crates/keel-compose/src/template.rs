//! `${…}` in one string.
//!
//! The forms are Compose's: `$NAME`, `${NAME}`, `:-` `-` (default), `:+` `+` (alternative), `:?` `?` (required),
//! nested in defaults, and `$$` for a dollar. A default may contain balanced braces but no line break, and it is
//! evaluated even when it is not used, as compose-go does.
//!
//! A variable of an instance (`PORT`, `KEEL_ADDRESS`, …) can be *deferred*: whether it means the caller's environment or the instance's
//! own port depends on what kind of service uses it, which is known only after all files are merged. Its place is
//! taken by a mark that holds both readings; [`settle`] picks one.

use std::collections::BTreeSet;

/// Deepest nesting of defaults inside defaults.
const MAX_NESTING: usize = 32;

const MARK_OPEN: char = '\u{fdd0}';
const MARK_MIDDLE: char = '\u{fdd1}';
const MARK_CLOSE: char = '\u{fdd2}';
/// Opens the Compose reading when evaluating it failed; the message follows.
const MARK_FAILED: char = '\u{fdd3}';

/// Why a string could not be interpolated.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TemplateError {
    #[error("`{0}` is not a valid use of a variable")]
    Invalid(String),
    #[error("the variable `{variable}` is required but has no value{}", reason(.message))]
    Required { variable: String, message: String },
    #[error("variables are nested more than {MAX_NESTING} deep")]
    Depth,
}

fn reason(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!(": {message}") }
}

/// Interpolates strings against one environment.
pub(crate) struct Template<'a> {
    /// The value of a variable.
    pub lookup: &'a dyn Fn(&str) -> Option<String>,
    /// Leave marks for instance variables.
    pub defer: bool,
    /// Variables that were used without a value and without a default.
    pub unset: BTreeSet<String>,
}

/// The operator after a variable's name.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Operator {
    Default,
    Alternative,
    Required,
}

/// `NAME`, or `NAME` with an operator and its argument; `colon` treats empty as unset.
struct Expression<'t> {
    name: &'t str,
    operator: Option<(Operator, bool, &'t str)>,
}

impl Template<'_> {
    /// Replaces all variables of a text.
    pub fn substitute(&mut self, text: &str) -> Result<String, TemplateError> {
        self.nested(text, 0)
    }

    fn nested(&mut self, text: &str, depth: usize) -> Result<String, TemplateError> {
        if depth > MAX_NESTING {
            return Err(TemplateError::Depth);
        }
        let mut out = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(at) = rest.find('$') {
            out.push_str(&rest[..at]);
            let after = &rest[at + 1..];
            rest = if let Some(after) = after.strip_prefix('$') {
                out.push('$');
                after
            } else if let Some(inner) = after.strip_prefix('{') {
                let (expression, after) =
                    braced(inner).ok_or_else(|| TemplateError::Invalid(text.to_owned()))?;
                out.push_str(&self.expand(&expression, depth)?);
                after
            } else {
                let end = name_end(after);
                if end == 0 {
                    out.push('$');
                } else {
                    out.push_str(
                        &self.expand(&Expression { name: &after[..end], operator: None }, depth)?,
                    );
                }
                &after[end..]
            };
        }
        out.push_str(rest);
        Ok(out)
    }

    fn expand(
        &mut self,
        expression: &Expression<'_>,
        depth: usize,
    ) -> Result<String, TemplateError> {
        if !self.defer || !is_instance_variable(expression.name) {
            return self.evaluate(expression, depth);
        }
        // The Compose reading is evaluated now, without further marks inside it.
        self.defer = false;
        let mut unset = std::mem::take(&mut self.unset);
        let compose = self.evaluate(expression, depth);
        let instance = match expression.operator {
            Some((Operator::Alternative, _, alternative)) => self.nested(alternative, depth + 1)?,
            _ => format!("${{{}}}", expression.name),
        };
        self.defer = true;
        self.unset.remove(expression.name);
        self.unset.append(&mut unset);
        let compose = compose.unwrap_or_else(|error| format!("{MARK_FAILED}{error}"));
        Ok(format!("{MARK_OPEN}{compose}{MARK_MIDDLE}{instance}{MARK_CLOSE}"))
    }

    fn evaluate(
        &mut self,
        expression: &Expression<'_>,
        depth: usize,
    ) -> Result<String, TemplateError> {
        let value = (self.lookup)(expression.name);
        let Some((operator, colon, argument)) = expression.operator else {
            return Ok(value.unwrap_or_else(|| {
                self.unset.insert(expression.name.to_owned());
                String::new()
            }));
        };
        let argument = self.nested(argument, depth + 1)?;
        let given = value.as_ref().is_some_and(|value| !colon || !value.is_empty());
        match operator {
            Operator::Default => Ok(if given { value.unwrap_or_default() } else { argument }),
            Operator::Alternative => Ok(if given { argument } else { value.unwrap_or_default() }),
            Operator::Required if given => Ok(value.unwrap_or_default()),
            Operator::Required => Err(TemplateError::Required {
                variable: expression.name.to_owned(),
                message: argument,
            }),
        }
    }
}

/// The length of the variable name that a text starts with.
fn name_end(text: &str) -> usize {
    if text.starts_with(|c: char| c.is_ascii_digit()) {
        return 0;
    }
    text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(text.len())
}

/// Splits the text after `${` into the expression and what follows its closing brace.
fn braced(text: &str) -> Option<(Expression<'_>, &str)> {
    let end = name_end(text);
    if end == 0 {
        return None;
    }
    let (name, rest) = text.split_at(end);
    if let Some(after) = rest.strip_prefix('}') {
        return Some((Expression { name, operator: None }, after));
    }
    let (colon, operator_text) = match rest.strip_prefix(':') {
        Some(after) => (true, after),
        None => (false, rest),
    };
    let operator = match operator_text.as_bytes().first()? {
        b'-' => Operator::Default,
        b'+' => Operator::Alternative,
        b'?' => Operator::Required,
        _ => return None,
    };
    let body = &operator_text[1..];
    let line = &body[..body.find('\n').unwrap_or(body.len())];
    let last = line.rfind('}')?;
    let close = balanced(line).unwrap_or(last);
    Some((
        Expression { name, operator: Some((operator, colon, &line[..close])) },
        &body[close + 1..],
    ))
}

/// The brace that closes an argument, given the text after the operator.
///
/// The character after an opening brace is skipped, as compose-go does; so `{}` inside a default stays open and the
/// last brace of the line closes.
fn balanced(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    let mut depth = 1;
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            b'}' => {
                depth -= 1;
                if depth == 0 {
                    return Some(at);
                }
            }
            b'{' => {
                depth += 1;
                at += 1;
            }
            _ => {}
        }
        at += 1;
    }
    None
}

/// The variables that every instance has for itself, besides `PORT_<target>`; the runtime fills them in.
const INSTANCE_VARIABLES: [&str; 8] = [
    "PORT",
    "KEEL_ADDRESS",
    "KEEL_INSTANCE",
    "KEEL_SERVICE",
    "KEEL_STACK",
    "KEEL_REVISION",
    "KEEL_ATTEMPT",
    "KEEL_SECRETS_DIR",
];

/// Whether a name is a variable that every instance has for itself.
pub(crate) fn is_instance_variable(name: &str) -> bool {
    INSTANCE_VARIABLES.contains(&name)
        || name
            .strip_prefix("PORT_")
            .is_some_and(|port| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Which reading of a deferred variable is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reading {
    /// The caller's environment, as Compose reads it.
    Compose,
    /// A placeholder for each instance to fill in.
    Instance,
}

/// Replaces the marks of deferred variables by one of their readings.
///
/// Returns `None` when there was no mark, and the message when the reading failed.
pub(crate) fn settle(text: &str, reading: Reading) -> Option<Result<String, String>> {
    if !text.contains(MARK_OPEN) {
        return None;
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once(MARK_OPEN) {
        out.push_str(before);
        let Some((compose, after)) = after.split_once(MARK_MIDDLE) else { break };
        let Some((instance, after)) = after.split_once(MARK_CLOSE) else { break };
        match (reading, compose.strip_prefix(MARK_FAILED)) {
            (Reading::Instance, _) => out.push_str(instance),
            (Reading::Compose, Some(message)) => return Some(Err(message.to_owned())),
            (Reading::Compose, None) => out.push_str(compose),
        }
        rest = after;
    }
    out.push_str(rest);
    Some(Ok(out))
}

/// A variable that a file uses, for `config --variables`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Variable {
    /// The default value, if the file gives one.
    pub default_value: String,
    /// The value that is used instead when the variable is set (`:+`).
    pub alternate_value: String,
    /// Whether the file demands a value (`:?`).
    pub required: bool,
}

/// Calls `found` for every variable of a text, also inside defaults.
pub(crate) fn variables(text: &str, found: &mut dyn FnMut(&str, Variable)) {
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        let after = &rest[at + 1..];
        rest = if let Some(after) = after.strip_prefix('$') {
            after
        } else if let Some((expression, after)) = after.strip_prefix('{').and_then(braced) {
            let mut variable = Variable::default();
            let mut argument = "";
            if let Some((operator, _, text)) = expression.operator {
                argument = text;
                match operator {
                    Operator::Default => text.clone_into(&mut variable.default_value),
                    Operator::Alternative => text.clone_into(&mut variable.alternate_value),
                    Operator::Required => variable.required = true,
                }
            }
            found(expression.name, variable);
            variables(argument, found);
            after
        } else {
            let end = name_end(after);
            if end > 0 {
                found(&after[..end], Variable::default());
            }
            &after[end..]
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lookup(name: &str) -> Option<String> {
        match name {
            "A" => Some("a".to_owned()),
            "EMPTY" => Some(String::new()),
            "PORT" => Some("99".to_owned()),
            _ => None,
        }
    }

    fn run(text: &str, defer: bool) -> Result<String, TemplateError> {
        Template { lookup: &lookup, defer, unset: BTreeSet::new() }.substitute(text)
    }

    #[test]
    fn forms() {
        for (text, expected) in [
            ("$A-${A}", "a-a"),
            ("$$A $${A}", "$A ${A}"),
            ("${X:-d}${EMPTY:-d}${EMPTY-d}${X-d}", "ddd"),
            ("${A:+y}${X:+y}${EMPTY:+y}${EMPTY+y}", "yy"),
            ("${X:-${A:-z}}!", "a!"),
            ("${X:-${Y:-${A}}} ${A}", "a a"),
            ("${X:-{\"k\":{}}}", "{\"k\":{}}"),
            ("costs 5$ or $1", "costs 5$ or $1"),
            ("${X:-}", ""),
            ("$A_B", ""),
        ] {
            assert_eq!(run(text, false).as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn failures() {
        for text in ["${", "${}", "${A", "${A!}", "${1}", "${A:-x\ny}"] {
            assert!(matches!(run(text, false), Err(TemplateError::Invalid(_))), "{text}");
        }
        assert_eq!(
            run("${X:?say $A}", false),
            Err(TemplateError::Required { variable: "X".to_owned(), message: "say a".to_owned() })
        );
        assert!(run(&"${X:-".repeat(100), false).is_err());
    }

    #[test]
    fn deferred_variables_have_two_readings() {
        let text = run("--port ${PORT:-80} $PORT_8080 ${PORT:+yes} $A", true).unwrap();
        assert_eq!(
            settle(&text, Reading::Instance),
            Some(Ok("--port ${PORT} ${PORT_8080} yes a".to_owned()))
        );
        assert_eq!(settle(&text, Reading::Compose), Some(Ok("--port 99  yes a".to_owned())));
        for name in INSTANCE_VARIABLES {
            let text = run(&format!("${name}"), true).unwrap();
            let placeholder = format!("${{{name}}}");
            assert_eq!(settle(&text, Reading::Instance), Some(Ok(placeholder)));
        }
        let text = run("${PORT_1:?no}", true).unwrap();
        assert_eq!(settle(&text, Reading::Instance), Some(Ok("${PORT_1}".to_owned())));
        assert!(settle(&text, Reading::Compose).unwrap().is_err());
    }
}
