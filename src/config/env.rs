//! Names of environment variables, and patterns of them.

use std::collections::BTreeSet;

use super::error::{ConfigError, ConfigProblem};
use super::read::Value;

/// Reads an array of names.
pub(super) fn read(value: Value<'_>) -> Result<Vec<String>, ConfigError> {
    let mut names = Vec::new();
    for item in value.array("an array of names")? {
        let name = item.string()?;
        if let Some(problem) = problem_with(name) {
            return Err(item.bad_value(name, problem));
        }
        if !names.iter().any(|known| known == name) {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

/// Refuses a name that is in both lists: it cannot be both in the key and not.
pub(super) fn check_disjoint(
    tracked: &[String],
    untracked: &[String],
    place: Value<'_>,
) -> Result<(), ConfigError> {
    match untracked.iter().find(|name| tracked.contains(name)) {
        Some(name) => Err(place.error(ConfigProblem::EnvTwice { name: name.clone() })),
        None => Ok(()),
    }
}

fn problem_with(name: &str) -> Option<&'static str> {
    if name.is_empty() {
        Some("a name cannot be empty")
    } else if name.contains('=') {
        Some("only the name is given here; the value comes from the environment")
    } else if name.contains(|c: char| c.is_control()) {
        Some("a name has no control characters")
    } else {
        None
    }
}

/// Returns the variables that `names` stand for, sorted: a plain name whether it is set or not, and one
/// with `*` (any characters) for each of the variables in `present` that it matches.
///
/// ```
/// use vout::config::select_env;
///
/// let names = ["CC".to_owned(), "VITE_*".to_owned()];
/// assert_eq!(select_env(&names, ["HOME", "VITE_B", "VITE_A"]), ["CC", "VITE_A", "VITE_B"]);
/// ```
#[must_use]
pub fn select_env<'a>(names: &[String], present: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let (patterns, plain): (Vec<_>, Vec<_>) = names.iter().partition(|name| name.contains('*'));
    let mut selected: BTreeSet<String> = plain.into_iter().cloned().collect();
    let matching = present.into_iter().filter(|name| patterns.iter().any(|pattern| matches(pattern, name)));
    selected.extend(matching.map(str::to_owned));
    selected.into_iter().collect()
}

fn matches(pattern: &str, name: &str) -> bool {
    let mut pieces = pattern.split('*');
    let first = pieces.next().unwrap_or_default();
    let last = pieces.next_back().unwrap_or_default();
    let middle = name.strip_prefix(first).and_then(|rest| rest.strip_suffix(last));
    let Some(mut rest) = middle else { return false };
    // Taking each piece where it first appears leaves the most room for those behind it.
    pieces.all(|piece| match rest.find(piece) {
        Some(at) => {
            rest = &rest[at + piece.len()..];
            true
        }
        None => false,
    })
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn star_stands_for_any_characters() {
        for (pattern, name, expected) in [
            ("VITE_*", "VITE_X", true),
            ("VITE_*", "VITE_", true),
            ("VITE_*", "XVITE_", false),
            ("*_TOKEN", "A_TOKEN", true),
            ("A*A", "A", false),
            ("A*B*C", "AxBxBC", true),
            ("A*B*C", "AxC", false),
            ("*", "", true),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }
}
