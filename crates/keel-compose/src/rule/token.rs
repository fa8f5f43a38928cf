//! The words of a rule, each with its place.

use super::RuleError;

/// One word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Token {
    /// Its first character, from 0.
    pub at: usize,
    pub kind: Kind,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Word(String),
    Text(String),
    Open,
    Close,
    Comma,
    And,
    Or,
    Not,
}

impl Kind {
    pub fn describe(&self) -> String {
        match self {
            Self::Word(word) => format!("`{word}`"),
            Self::Text(text) => format!("the value `{text}`"),
            Self::Open => "`(`".to_owned(),
            Self::Close => "`)`".to_owned(),
            Self::Comma => "`,`".to_owned(),
            Self::And => "`&&`".to_owned(),
            Self::Or => "`||`".to_owned(),
            Self::Not => "`!`".to_owned(),
        }
    }
}

/// Words that are read one after the other.
pub(super) struct Tokens {
    words: std::iter::Peekable<std::vec::IntoIter<Token>>,
    /// One behind the last character.
    pub end: usize,
}

impl Tokens {
    pub fn peek(&mut self) -> Option<&Token> {
        self.words.peek()
    }

    pub fn next(&mut self) -> Option<Token> {
        self.words.next()
    }

    pub fn take_if(&mut self, kind: &Kind) -> bool {
        self.words.next_if(|token| token.kind == *kind).is_some()
    }
}

/// Splits a rule into words.
pub(super) fn split(text: &str) -> Result<Tokens, RuleError> {
    let mut characters = text.chars().enumerate().peekable();
    let mut words = Vec::new();
    while let Some((at, character)) = characters.next() {
        let mut doubled = |kind: Kind| match characters.next_if(|(_, next)| *next == character) {
            Some(_) => Ok(kind),
            None => Err(RuleError::new(
                at,
                format!("write `{character}{character}`, not `{character}`"),
            )),
        };
        let kind = match character {
            c if c.is_whitespace() => continue,
            '(' => Kind::Open,
            ')' => Kind::Close,
            ',' => Kind::Comma,
            '!' => Kind::Not,
            '&' => doubled(Kind::And)?,
            '|' => doubled(Kind::Or)?,
            '`' | '"' => Kind::Text(quoted(&mut characters, character, at)?),
            '\'' => {
                return Err(RuleError::new(at, "single quotes do not hold a value")
                    .help("put it into `backticks`"));
            }
            c if is_word(c) => {
                let mut word = String::from(c);
                while let Some((_, c)) = characters.next_if(|(_, c)| is_word(*c)) {
                    word.push(c);
                }
                Kind::Word(word)
            }
            other => {
                return Err(RuleError::new(at, format!("`{other}` has no meaning here"))
                    .help("values stand in `backticks`"));
            }
        };
        words.push(Token { at, kind });
    }
    Ok(Tokens { words: words.into_iter().peekable(), end: text.chars().count() })
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

/// The rest of a value: as it is between backticks; with `\"` and `\\` between double quotes, as in Go.
fn quoted(
    characters: &mut impl Iterator<Item = (usize, char)>,
    quote: char,
    opened: usize,
) -> Result<String, RuleError> {
    let mut value = String::new();
    while let Some((at, character)) = characters.next() {
        match character {
            c if c == quote => return Ok(value),
            '\\' if quote == '"' => match characters.next() {
                Some((_, c @ ('"' | '\\'))) => value.push(c),
                _ => {
                    return Err(RuleError::new(
                        at,
                        "only `\\\"` and `\\\\` are read between double quotes",
                    )
                    .help("put the value into `backticks`"));
                }
            },
            c => value.push(c),
        }
    }
    Err(RuleError::new(opened, format!("the {quote} that begins this value is never closed")))
}
