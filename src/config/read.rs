//! Typed access to TOML values that remembers where they stand.

use std::ops::Range;
use std::path::Path;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::{ConfigError, ConfigProblem};
use super::nearest::nearest;

/// The text being read and what to call it.
#[derive(Clone, Copy)]
pub(super) struct Source<'a> {
    pub(super) text: &'a str,
    pub(super) path: &'a Path,
}

/// A value, the key it belongs to, and its place.
#[derive(Clone, Copy)]
pub(super) struct Value<'a> {
    pub(super) source: Source<'a>,
    pub(super) key: &'a str,
    key_start: usize,
    value: &'a Spanned<DeValue<'a>>,
}

impl<'a> Source<'a> {
    pub(super) fn error(self, at: usize, problem: ConfigProblem) -> ConfigError {
        let before = self.text.get(..at).unwrap_or(self.text);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        ConfigError {
            path: self.path.to_owned(),
            line: before.bytes().filter(|&b| b == b'\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
            problem: Box::new(problem),
            hint: None,
        }
    }

    /// Reports a TOML syntax error.
    pub(super) fn syntax_error(self, error: &toml::de::Error) -> ConfigError {
        let at = error.span().map_or(0, |span| span.start);
        self.error(at, ConfigProblem::Syntax(error.message().to_owned()))
    }

    /// Returns the entries of `table` in file order.
    pub(super) fn entries(self, table: &'a DeTable<'a>) -> Vec<Value<'a>> {
        let mut entries: Vec<_> = table
            .iter()
            .map(|(key, value)| Value {
                source: self,
                key: key.get_ref(),
                key_start: key.span().start,
                value,
            })
            .collect();
        entries.sort_by_key(|entry| entry.key_start);
        entries
    }
}

impl<'a> Value<'a> {
    /// Reports a problem with the value.
    pub(super) fn error(self, problem: ConfigProblem) -> ConfigError {
        self.source.error(self.span().start, problem)
    }

    /// Reports a problem with the key.
    pub(super) fn key_error(self, problem: ConfigProblem) -> ConfigError {
        self.source.error(self.key_start, problem)
    }

    pub(super) fn span(self) -> Range<usize> {
        self.value.span()
    }

    /// Reports the key as one that `place` does not have.
    pub(super) fn unknown_key(self, place: &str, keys: &[&str]) -> ConfigError {
        let problem = ConfigProblem::UnknownKey { key: self.key.to_owned(), place: place.to_owned() };
        ConfigError {
            hint: Some(match nearest(self.key, keys.iter().copied()) {
                Some(near) => format!("did you mean {near:?}?"),
                None => format!("the keys are {}", keys.join(", ")),
            }),
            ..self.key_error(problem)
        }
    }

    pub(super) fn wrong_type(self, expected: &'static str) -> ConfigError {
        let found = match self.value.get_ref() {
            DeValue::String(_) => "a string",
            DeValue::Integer(_) => "an integer",
            DeValue::Float(_) => "a float",
            DeValue::Boolean(_) => "a boolean",
            DeValue::Datetime(_) => "a date",
            DeValue::Array(_) => "an array",
            DeValue::Table(_) => "a table",
        };
        self.error(ConfigProblem::WrongType { key: self.key.to_owned(), expected, found })
    }

    pub(super) fn bad_value(self, value: &str, problem: &'static str) -> ConfigError {
        let (key, value) = (self.key.to_owned(), value.to_owned());
        self.error(ConfigProblem::BadValue { key, value, problem })
    }

    pub(super) fn as_str(self) -> Option<&'a str> {
        self.value.get_ref().as_str()
    }

    pub(super) fn string(self) -> Result<&'a str, ConfigError> {
        self.as_str().ok_or_else(|| self.wrong_type("a string"))
    }

    pub(super) fn boolean(self) -> Result<bool, ConfigError> {
        self.value.get_ref().as_bool().ok_or_else(|| self.wrong_type("true or false"))
    }

    /// Reads an integer of at least 1.
    pub(super) fn count(self) -> Result<u32, ConfigError> {
        let DeValue::Integer(integer) = self.value.get_ref() else {
            return Err(self.wrong_type("an integer"));
        };
        match u32::from_str_radix(integer.as_str(), integer.radix()) {
            Ok(count) if count > 0 => Ok(count),
            Ok(_) | Err(_) => Err(self.bad_value(integer.as_str(), "it must be between 1 and 4294967295")),
        }
    }

    pub(super) fn as_array(self) -> Option<Vec<Self>> {
        let items = self.value.get_ref().as_array()?;
        Some(items.iter().map(|value| Value { value, ..self }).collect())
    }

    pub(super) fn array(self, expected: &'static str) -> Result<Vec<Self>, ConfigError> {
        self.as_array().ok_or_else(|| self.wrong_type(expected))
    }

    /// Returns the entries of a table in file order.
    pub(super) fn as_table(self) -> Option<Vec<Self>> {
        Some(self.source.entries(self.value.get_ref().as_table()?))
    }

    pub(super) fn table(self) -> Result<Vec<Self>, ConfigError> {
        self.as_table().ok_or_else(|| self.wrong_type("a table"))
    }

    /// Reads one of some words.
    pub(super) fn choice<T: Copy>(self, choices: &[(&'static str, T)]) -> Result<T, ConfigError> {
        let word = self.string()?;
        if let Some((_, choice)) = choices.iter().find(|(name, _)| *name == word) {
            return Ok(*choice);
        }
        let names = || choices.iter().map(|(name, _)| *name);
        let hint = match nearest(word, names()) {
            Some(near) => format!("did you mean {near:?}?"),
            None => format!(
                "it can be {}",
                names().map(|name| format!("{name:?}")).collect::<Vec<_>>().join(" or ")
            ),
        };
        Err(ConfigError { hint: Some(hint), ..self.bad_value(word, "there is no such choice") })
    }
}
