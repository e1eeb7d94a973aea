//! Patterns relative to a directory of the workspace, rewritten to be relative to its root.

use std::ffi::OsStr;

use super::braces::specials;
use super::{FilterError, FilterProblem};
use crate::path::RelPath;

/// Returns `pattern`, which is relative to the directory `base`, as one relative to the workspace root.
///
/// A leading `.` or `..`, and one behind a plain name, is resolved. The result is as good a pattern as
/// the given one: whether it is a glob at all is for [`super::Filter::compile`] to say.
///
/// # Errors
/// [`FilterError`] where the pattern is empty, absolute, or leads out of the workspace.
pub fn join(base: &RelPath, pattern: &str) -> Result<String, FilterError> {
    let error = |problem| FilterError { pattern: pattern.to_owned(), problem };
    if pattern.is_empty() {
        return Err(error(FilterProblem::Empty));
    }
    if pattern.starts_with('/') {
        return Err(error(FilterProblem::Absolute));
    }
    let escaped = |name: &OsStr| escape(&RelPath::ROOT.join(name));
    // Each with whether it is one name, which a `..` behind it takes back.
    let mut parts: Vec<(String, bool)> = base.components().map(|name| (escaped(name), true)).collect();
    let mut rest = split_outside_braces(pattern).into_iter().peekable();
    while let Some(part) = rest.next() {
        match part {
            "" if rest.peek().is_some() => return Err(error(FilterProblem::EmptyComponent)),
            "." => {}
            ".." => match parts.pop() {
                None => return Err(error(FilterProblem::LeavesWorkspace)),
                Some((_, false)) => return Err(error(FilterProblem::Dots)),
                Some((_, true)) => {}
            },
            _ => parts.push((part.to_owned(), !part.contains(['*', '?', '[', '{', '\\']))),
        }
    }
    // `.` in the root, or `src/..`: all of the workspace. A trailing slash left an empty last part.
    if parts.iter().all(|(part, _)| part.is_empty()) {
        return Ok("**".to_owned());
    }
    Ok(parts.into_iter().map(|(part, _)| part).collect::<Vec<_>>().join("/"))
}

/// Returns a pattern that matches `path`: characters with a meaning in globs are escaped, and a byte that
/// is not part of a character becomes `?`.
#[must_use]
pub fn escape(path: &RelPath) -> String {
    let mut pattern = String::new();
    for chunk in path.as_bytes().utf8_chunks() {
        for c in chunk.valid().chars() {
            if matches!(c, '*' | '?' | '[' | ']' | '{' | '}' | ',' | '\\' | '!') {
                pattern.push('\\');
            }
            pattern.push(c);
        }
        pattern.extend(chunk.invalid().iter().map(|_| '?'));
    }
    pattern
}

fn split_outside_braces(pattern: &str) -> Vec<&str> {
    let mut depth = 0_usize;
    let mut parts = Vec::new();
    let mut start = 0;
    for (at, special) in specials(pattern) {
        match special {
            b'{' => depth += 1,
            b'}' => depth = depth.saturating_sub(1),
            b'/' if depth == 0 => {
                parts.push(&pattern[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&pattern[start..]);
    parts
}
