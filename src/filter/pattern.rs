//! A glob without braces: a sequence of components, matched as a small state machine.

use std::os::unix::ffi::OsStrExt;

use super::braces::specials;
use super::component::Component;
use super::{COMPONENTS_MAX, FilterProblem};
use crate::path::{RelPath, RelPathBuf};

/// A glob without braces.
///
/// - No two `**` are neighbours.
/// - A pattern that names a directory ends in `**`: `dist`, `dist/` and `dist/**` are the same.
#[derive(Debug, Clone)]
pub(super) struct Pattern {
    text: String,
    components: Vec<Component>,
}

/// The set of numbers of components that can have matched what was seen so far.
type States = u64;

const _: () = assert!(COMPONENTS_MAX + 2 < States::BITS as usize);

impl Pattern {
    pub(super) fn parse(text: String) -> Result<Self, FilterProblem> {
        if text.is_empty() {
            return Err(FilterProblem::Empty);
        }
        if text.starts_with('/') {
            return Err(FilterProblem::Absolute);
        }
        let names_dir = specials(&text).last() == Some((text.len() - 1, b'/'));
        let mut components: Vec<Component> = Vec::new();
        for part in split(&text[..text.len() - usize::from(names_dir)]) {
            let component = Component::parse(part)?;
            if component != Component::AnyDepth || components.last() != Some(&Component::AnyDepth) {
                components.push(component);
            }
        }
        if components.len() > COMPONENTS_MAX {
            return Err(FilterProblem::TooDeep);
        }
        match components.last() {
            Some(Component::Literal(_)) => components.push(Component::AnyDepth),
            Some(Component::Wild(_)) if names_dir => components.push(Component::AnyDepth),
            Some(Component::Wild(_) | Component::AnyDepth) | None => {}
        }
        Ok(Self { text, components })
    }

    pub(super) fn text(&self) -> &str {
        &self.text
    }

    pub(super) fn matches(&self, path: &RelPath) -> bool {
        self.after(path) & self.state(self.components.len()) != 0
    }

    /// Returns whether a path strictly below `dir` can match.
    pub(super) fn may_match_below(&self, dir: &RelPath) -> bool {
        self.after(dir) & !self.state(self.components.len()) != 0
    }

    /// Returns whether all paths below `dir` match.
    pub(super) fn matches_all_below(&self, dir: &RelPath) -> bool {
        self.components.last() == Some(&Component::AnyDepth)
            && self.after(dir) & self.state(self.components.len() - 1) != 0
    }

    /// Returns the path that the leading components without wildcards name.
    pub(super) fn literal_prefix(&self) -> RelPathBuf {
        let names: Vec<&[u8]> = self
            .components
            .iter()
            .map_while(|component| match component {
                Component::Literal(name) => Some(name.as_slice()),
                Component::AnyDepth | Component::Wild(_) => None,
            })
            .collect();
        RelPathBuf::new(names.join(&b'/')).expect("literals are single names other than '.' and '..'")
    }

    fn state(&self, components: usize) -> States {
        1 << components
    }

    /// Returns the states in which the names of `path` leave the pattern.
    fn after(&self, path: &RelPath) -> States {
        let mut states = self.skip_any_depth(self.state(0));
        for name in path.components() {
            let mut next = 0;
            for (i, component) in self.components.iter().enumerate() {
                if states & self.state(i) != 0 && component.matches(name.as_bytes()) {
                    let stays = *component == Component::AnyDepth;
                    next |= self.state(if stays { i } else { i + 1 });
                }
            }
            states = self.skip_any_depth(next);
            if states == 0 {
                break;
            }
        }
        states
    }

    /// Adds the states that are reached by letting a `**` match nothing (more).
    fn skip_any_depth(&self, mut states: States) -> States {
        for (i, component) in self.components.iter().enumerate() {
            if *component == Component::AnyDepth && states & self.state(i) != 0 {
                states |= self.state(i + 1);
            }
        }
        states
    }
}

/// Splits at slashes that are neither escaped nor in a class, where they are refused.
fn split(text: &str) -> impl Iterator<Item = &str> {
    let slashes = specials(text).filter(|&(_, byte)| byte == b'/').map(|(at, _)| at);
    let mut start = 0;
    slashes.chain([text.len()]).map(move |end| {
        let part = &text[start..end];
        start = end + 1;
        part
    })
}
