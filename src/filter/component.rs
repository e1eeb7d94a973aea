//! One component of a pattern, and the names it matches.

use super::FilterProblem;
use super::braces::class_bytes;

/// What stands between two slashes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Component {
    /// `**`: any number of names, also none.
    AnyDepth,
    /// A name.
    Literal(Vec<u8>),
    /// A name with wildcards.
    Wild(Vec<Token>),
}

/// A piece of a component with wildcards.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Token {
    /// A character.
    Literal(char),
    /// `?`: one character, or one byte that is part of none.
    AnyOne,
    /// `*`: any number of them.
    AnyRun,
    /// `[a-z]`, `[!a-z]`.
    Class {
        /// Whether it matches what the ranges do not hold.
        negated: bool,
        /// Ranges, both ends included.
        ranges: Vec<(char, char)>,
    },
}

impl Component {
    pub(super) fn parse(text: &str) -> Result<Self, FilterProblem> {
        match text {
            "" => return Err(FilterProblem::EmptyComponent),
            "**" => return Ok(Self::AnyDepth),
            _ => {}
        }
        let mut tokens = Vec::new();
        let mut rest = text;
        while let Some(c) = rest.chars().next() {
            let (token, length) = match c {
                '*' => (Token::AnyRun, 1),
                '?' => (Token::AnyOne, 1),
                '[' => {
                    let length = class_bytes(rest.as_bytes()).ok_or(FilterProblem::UnclosedClass)?;
                    (parse_class(&rest[1..length - 1])?, length)
                }
                '\\' => {
                    let escaped = rest[1..].chars().next().ok_or(FilterProblem::DanglingEscape)?;
                    (literal(escaped)?, 1 + escaped.len_utf8())
                }
                _ => (literal(c)?, c.len_utf8()),
            };
            if token == Token::AnyRun && tokens.last() == Some(&Token::AnyRun) {
                return Err(FilterProblem::DoubleStar);
            }
            tokens.push(token);
            rest = &rest[length..];
        }
        Self::from_tokens(tokens)
    }

    fn from_tokens(tokens: Vec<Token>) -> Result<Self, FilterProblem> {
        let literal: Option<String> = tokens
            .iter()
            .map(|token| match token {
                Token::Literal(c) => Some(*c),
                Token::AnyOne | Token::AnyRun | Token::Class { .. } => None,
            })
            .collect();
        match literal.as_deref() {
            Some("." | "..") => Err(FilterProblem::Dots),
            Some(name) => Ok(Self::Literal(name.as_bytes().to_vec())),
            None => Ok(Self::Wild(tokens)),
        }
    }

    /// Returns whether this component matches the single name `name`.
    pub(super) fn matches(&self, name: &[u8]) -> bool {
        match self {
            Self::AnyDepth => true,
            Self::Literal(literal) => literal == name,
            Self::Wild(tokens) => matches_tokens(tokens, name),
        }
    }
}

fn literal(c: char) -> Result<Token, FilterProblem> {
    match c {
        '/' => Err(FilterProblem::HiddenSlash),
        '\0' => Err(FilterProblem::Nul),
        _ => Ok(Token::Literal(c)),
    }
}

fn parse_class(inner: &str) -> Result<Token, FilterProblem> {
    let (negated, inner) = match inner.strip_prefix(['!', '^']) {
        Some(rest) => (true, rest),
        None => (false, inner),
    };
    // Whether a character was escaped matters for `-` alone: `[a\-z]` is three characters.
    let mut members = Vec::new();
    let mut chars = inner.chars();
    while let Some(c) = chars.next() {
        let member = if c == '\\' { chars.next().map(|c| (c, true)) } else { Some((c, false)) };
        let (c, escaped) = member.ok_or(FilterProblem::UnclosedClass)?;
        literal(c)?;
        members.push((c, escaped));
    }
    let mut ranges = Vec::new();
    let mut rest = members.as_slice();
    while let [(from, _), tail @ ..] = rest {
        if let [('-', false), (to, _), tail @ ..] = tail {
            if to < from {
                return Err(FilterProblem::BackwardRange);
            }
            ranges.push((*from, *to));
            rest = tail;
        } else {
            ranges.push((*from, *from));
            rest = tail;
        }
    }
    Ok(Token::Class { negated, ranges })
}

impl Token {
    /// Returns whether this matches one character, or (`None`) one byte that belongs to none.
    fn accepts(&self, unit: Option<char>) -> bool {
        match self {
            Self::Literal(c) => unit == Some(*c),
            Self::AnyOne | Self::AnyRun => true,
            Self::Class { negated, ranges } => {
                unit.is_some_and(|c| ranges.iter().any(|(from, to)| (*from..=*to).contains(&c))) != *negated
            }
        }
    }
}

/// Matches with at most one place to go back to: where an earlier `*` could have taken more, the latest can.
fn matches_tokens(tokens: &[Token], name: &[u8]) -> bool {
    let (mut token, mut at) = (0, 0);
    let mut retry = None;
    while at < name.len() {
        let (unit, length) = first_unit(&name[at..]);
        match tokens.get(token) {
            Some(Token::AnyRun) => {
                token += 1;
                retry = Some((token, at));
            }
            Some(one) if one.accepts(unit) => {
                token += 1;
                at += length;
            }
            Some(_) | None => {
                let Some((after_star, taken)) = retry else { return false };
                let (_, length) = first_unit(&name[taken..]);
                (token, at) = (after_star, taken + length);
                retry = Some((token, at));
            }
        }
    }
    tokens[token..].iter().all(|token| *token == Token::AnyRun)
}

/// Returns the character that `bytes` (not empty) start with, or `None` for a byte of none, and its length.
fn first_unit(bytes: &[u8]) -> (Option<char>, usize) {
    let length = match bytes[0] {
        0..0x80 => 1,
        0x80..0xe0 => 2,
        0xe0..0xf0 => 3,
        0xf0.. => 4,
    };
    let character = bytes.get(..length).and_then(|bytes| str::from_utf8(bytes).ok());
    match character.and_then(|text| text.chars().next()) {
        Some(c) => (Some(c), length),
        None => (None, 1),
    }
}
