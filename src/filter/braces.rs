//! `{a,b}`: one pattern that stands for several.

use std::ops::Range;

use super::{ALTERNATIVES_MAX, FilterProblem};

/// Returns the patterns without braces that `text` stands for, in the order of the alternatives.
pub(super) fn expand(text: &str) -> Result<Vec<String>, FilterProblem> {
    let mut done = Vec::new();
    let mut pending = vec![text.to_owned()];
    while let Some(text) = pending.pop() {
        let Some(group) = first_group(&text)? else {
            done.push(text);
            continue;
        };
        if done.len() + pending.len() + group.alternatives.len() > ALTERNATIVES_MAX {
            return Err(FilterProblem::TooManyAlternatives);
        }
        let (before, after) = (&text[..group.braces.start], &text[group.braces.end..]);
        for alternative in group.alternatives.iter().rev() {
            pending.push([before, &text[alternative.clone()], after].concat());
        }
    }
    Ok(done)
}

struct Group {
    /// From `{` to behind `}`.
    braces: Range<usize>,
    alternatives: Vec<Range<usize>>,
}

fn first_group(text: &str) -> Result<Option<Group>, FilterProblem> {
    let mut open = None;
    let mut depth = 0_usize;
    let mut alternatives = Vec::new();
    let mut start = 0;
    for (at, special) in specials(text) {
        match (special, depth) {
            (b'{', _) => {
                if depth == 0 {
                    open = Some(at);
                    start = at + 1;
                }
                depth += 1;
            }
            (b'}', 0) => return Err(FilterProblem::UnopenedBrace),
            (b'}', 1) => {
                alternatives.push(start..at);
                return Ok(open.map(|open| Group { braces: open..at + 1, alternatives }));
            }
            (b'}', _) => depth -= 1,
            (b',', 1) => {
                alternatives.push(start..at);
                start = at + 1;
            }
            _ => {}
        }
    }
    if open.is_some() { Err(FilterProblem::UnclosedBrace) } else { Ok(None) }
}

/// Yields place and value of each `{`, `}`, `,` and `/` that is neither escaped nor in a class.
pub(super) fn specials(text: &str) -> impl Iterator<Item = (usize, u8)> {
    let bytes = text.as_bytes();
    let mut at = 0;
    std::iter::from_fn(move || {
        while let Some(&byte) = bytes.get(at) {
            let here = at;
            at += match byte {
                // An escaped character of several bytes: those behind its first are not special.
                b'\\' => 2,
                // Where the class has no end, the component it stands in is refused later.
                b'[' => class_bytes(&bytes[at..]).unwrap_or(1),
                _ => 1,
            };
            if matches!(byte, b'{' | b'}' | b',' | b'/') {
                return Some((here, byte));
            }
        }
        None
    })
}

/// Returns the length of the class that `bytes` start with, brackets included.
///
/// A `]` that comes first, or behind a backslash, does not end it.
pub(super) fn class_bytes(bytes: &[u8]) -> Option<usize> {
    let mut at = 1 + usize::from(matches!(bytes.get(1), Some(b'!' | b'^')));
    let first = at;
    loop {
        match bytes.get(at)? {
            b']' if at > first => return Some(at + 1),
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
}
