//! Rules of routers in Traefik's syntax (version 3) → [`Rule`].
//!
//! ``Host(`a`) && (PathPrefix(`/b`) || !Method(`POST`))``: matchers with quoted values, `&&` before `||`, `!`,
//! parentheses. What version 2 wrote differently (several values, `Headers`) is read too where it can only mean one
//! thing. Every mistake has its character. Length, depth and number of matchers are bounded.

mod matcher;
mod token;

use keel_model::Rule;

pub(crate) use matcher::{
    HEADER_HELP, PATTERN_HELP, check_host, check_pattern, is_header_name, parse_network,
};
use token::{Kind, Token, Tokens};

/// Longest rule, in characters.
const MAX_LENGTH: usize = 8192;
/// Parentheses and negations inside each other.
const MAX_DEPTH: usize = 64;

/// What the rule is asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    Http,
    Tcp,
}

/// What is wrong with a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RuleError {
    /// The character at which it goes wrong, from 0.
    pub at: usize,
    pub message: String,
    pub help: Option<String>,
}

impl RuleError {
    fn new(at: usize, message: impl Into<String>) -> Self {
        Self { at, message: message.into(), help: None }
    }

    fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}

/// Reads a rule.
pub(crate) fn parse(text: &str, protocol: Protocol) -> Result<Rule, RuleError> {
    let length = text.chars().count();
    if length > MAX_LENGTH {
        return Err(RuleError::new(
            MAX_LENGTH,
            format!("the rule has more than {MAX_LENGTH} characters"),
        ));
    }
    let mut parser = Parser { tokens: token::split(text)?, protocol, depth: 0 };
    if parser.tokens.peek().is_none() {
        return Err(RuleError::new(0, "the rule is empty")
            .help("write for example Host(`shop.example.com`)"));
    }
    let rule = parser.any()?;
    match parser.tokens.next() {
        None => Ok(rule),
        Some(Token { at, kind: Kind::Close }) => {
            Err(RuleError::new(at, "this `)` closes nothing").help("remove it"))
        }
        Some(Token { at, kind }) => {
            Err(RuleError::new(at, format!("`&&` or `||` is missing before {}", kind.describe())))
        }
    }
}

struct Parser {
    tokens: Tokens,
    protocol: Protocol,
    depth: usize,
}

impl Parser {
    fn any(&mut self) -> Result<Rule, RuleError> {
        let mut rules = vec![self.all()?];
        while self.tokens.take_if(&Kind::Or) {
            rules.push(self.all()?);
        }
        Ok(joined(rules, Rule::Any))
    }

    fn all(&mut self) -> Result<Rule, RuleError> {
        let mut rules = vec![self.one()?];
        while self.tokens.take_if(&Kind::And) {
            rules.push(self.one()?);
        }
        Ok(joined(rules, Rule::All))
    }

    fn one(&mut self) -> Result<Rule, RuleError> {
        let end = self.tokens.end;
        let Some(Token { at, kind }) = self.tokens.next() else {
            return Err(RuleError::new(end, "the rule breaks off: a matcher is missing")
                .help("write for example Host(`shop.example.com`)"));
        };
        match kind {
            Kind::Not => self.deeper(at, Self::one).map(|rule| Rule::Not(Box::new(rule))),
            Kind::Open => {
                let rule = self.deeper(at, Self::any)?;
                self.close(at)?;
                Ok(rule)
            }
            Kind::Word(name) => {
                let values = self.values(&name, at)?;
                matcher::build(&name, at, values, self.protocol)
            }
            other => Err(RuleError::new(
                at,
                format!("a matcher must stand here, not {}", other.describe()),
            )),
        }
    }

    fn deeper<T>(
        &mut self,
        at: usize,
        inner: impl FnOnce(&mut Self) -> Result<T, RuleError>,
    ) -> Result<T, RuleError> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(RuleError::new(
                at,
                format!("the rule is nested more than {MAX_DEPTH} deep"),
            ));
        }
        let result = inner(self);
        self.depth -= 1;
        result
    }

    fn close(&mut self, opened: usize) -> Result<(), RuleError> {
        let end = self.tokens.end;
        match self.tokens.next() {
            Some(Token { kind: Kind::Close, .. }) => Ok(()),
            Some(Token { at, kind }) => Err(RuleError::new(
                at,
                format!("`&&`, `||` or `)` is missing before {}", kind.describe()),
            )),
            None => Err(RuleError::new(
                end,
                format!("the `(` at character {} is never closed", opened + 1),
            )
            .help("add `)`")),
        }
    }

    /// The values of a matcher, each with its place.
    fn values(&mut self, name: &str, at: usize) -> Result<Vec<(usize, String)>, RuleError> {
        if !self.tokens.take_if(&Kind::Open) {
            return Err(RuleError::new(
                at + name.chars().count(),
                format!("`(` is missing after `{name}`"),
            ));
        }
        let mut values = Vec::new();
        loop {
            let end = self.tokens.end;
            match self.tokens.next() {
                Some(Token { at, kind: Kind::Text(value) }) => values.push((at, value)),
                Some(Token { at, kind: Kind::Close }) if values.is_empty() => {
                    return Err(RuleError::new(at, format!("`{name}` needs a value"))
                        .help(format!("write {name}(`…`)")));
                }
                Some(Token { at, kind }) => {
                    let message = format!("a value must stand here, not {}", kind.describe());
                    return Err(RuleError::new(at, message).help("put values into `backticks`"));
                }
                None => return Err(RuleError::new(end, format!("`{name}(` is never closed"))),
            }
            let end = self.tokens.end;
            match self.tokens.next() {
                Some(Token { kind: Kind::Comma, .. }) => {}
                Some(Token { kind: Kind::Close, .. }) => return Ok(values),
                Some(Token { at, kind }) => {
                    return Err(RuleError::new(
                        at,
                        format!("`)` is missing before {}", kind.describe()),
                    ));
                }
                None => {
                    return Err(
                        RuleError::new(end, format!("`{name}(` is never closed")).help("add `)`")
                    );
                }
            }
        }
    }
}

/// Several rules as one; a single one stays what it is, and what joins alike is one list.
pub(crate) fn joined(rules: Vec<Rule>, join: fn(Vec<Rule>) -> Rule) -> Rule {
    if rules.len() == 1 {
        return rules.into_iter().next().unwrap_or_default();
    }
    let outer = std::mem::discriminant(&join(Vec::new()));
    let mut flat = Vec::with_capacity(rules.len());
    for rule in rules {
        let same = std::mem::discriminant(&rule) == outer;
        match rule {
            Rule::All(inner) | Rule::Any(inner) if same => flat.extend(inner),
            other => flat.push(other),
        }
    }
    join(flat)
}

#[cfg(test)]
mod tests;
