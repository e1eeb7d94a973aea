//! A recording: what a view saw of the merged tree.
//!
//! Each path keeps the state of its first access. Nothing is filtered here: filters are applied to the
//! finished recording, to reads and writes apart.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use serde_bytes::ByteBuf;

use crate::base::Identity;
use crate::digest::Digest;
use crate::path::{RelPath, RelPathBuf};
use crate::state::{Dependency, FileKind, PathState};

/// More recorded paths than this make a recording incomplete.
const PATHS_MAX: usize = 4_000_000;

/// What a view saw.
#[derive(Debug, Default)]
pub struct Recording {
    paths: HashMap<RelPathBuf, Observed>,
    overflowed: bool,
}

/// What was seen of one path, each part at its first access.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    /// What was looked at.
    pub dependency: Dependency,
    /// Existence, kind, size and executable bit.
    pub probe: PathState,
    /// Which content was opened, if any was.
    pub content: Option<ContentSeen>,
    /// Names and kinds, if it was listed.
    pub listing: Option<Vec<(ByteBuf, FileKind)>>,
    /// Target, if it was read as a link.
    pub target: Option<ByteBuf>,
}

/// Which content of a file was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContentSeen {
    /// This version of a real file.
    Real(Identity),
    /// A virtual file's content.
    Virtual(Digest),
}

impl Recording {
    /// Records a probe of `path`.
    pub fn probe(&mut self, path: &RelPath, state: PathState) {
        self.observe(path, Dependency::PROBE, state);
    }

    /// Records that content was opened for reading.
    pub fn read(&mut self, path: &RelPath, state: PathState, content: ContentSeen) {
        if let Some(observed) = self.observe(path, Dependency::READ, state) {
            observed.content.get_or_insert(content);
        }
    }

    /// Records that a link was read.
    pub fn link(&mut self, path: &RelPath, target: OsString) {
        if let Some(observed) = self.observe(path, Dependency::LINK, PathState::Symlink { target: None }) {
            observed.target.get_or_insert_with(|| ByteBuf::from(target.into_vec()));
        }
    }

    /// Records that a directory was listed.
    pub fn list(&mut self, path: &RelPath, names: &BTreeMap<OsString, FileKind>) {
        if let Some(observed) = self.observe(path, Dependency::LIST, PathState::Dir { listing: None }) {
            observed.listing.get_or_insert_with(|| listing(names));
        }
    }

    fn observe(&mut self, path: &RelPath, dependency: Dependency, state: PathState) -> Option<&mut Observed> {
        if !self.paths.contains_key(path) {
            if self.paths.len() >= PATHS_MAX {
                self.overflowed = true;
                return None;
            }
            let observed = Observed { dependency, probe: state, content: None, listing: None, target: None };
            self.paths.insert(path.to_owned(), observed);
        }
        let observed = self.paths.get_mut(path)?;
        observed.dependency |= dependency;
        Some(observed)
    }

    /// Returns whether something could not be recorded.
    #[must_use]
    pub fn overflowed(&self) -> bool {
        self.overflowed
    }

    /// Returns what was seen, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = (&RelPath, &Observed)> {
        self.paths.iter().map(|(path, observed)| (&**path, observed))
    }

    /// Returns what was seen of `path`.
    #[must_use]
    pub fn get(&self, path: &RelPath) -> Option<&Observed> {
        self.paths.get(path)
    }

    /// Returns whether the recording depends on `path`: looked at it, or listed its directory.
    #[must_use]
    pub fn depends_on(&self, path: &RelPath) -> bool {
        self.paths.contains_key(path)
            || path.parent().and_then(|dir| self.paths.get(dir)).is_some_and(|seen| seen.listing.is_some())
    }

    /// Reduces the recording to a sorted path set without what another member implies: nothing below a
    /// missing path needs a word, nor does a missing name of a listed directory.
    #[must_use]
    pub fn path_set(&self, keep: impl Fn(&RelPath) -> bool) -> Vec<(RelPathBuf, Dependency)> {
        let absent = |path: &RelPath| {
            self.paths.get(path).is_some_and(|seen| seen.probe == PathState::Absent && keep(path))
        };
        let listed =
            |path: &RelPath| self.paths.get(path).is_some_and(|seen| seen.listing.is_some() && keep(path));
        let mut set: Vec<_> = self
            .iter()
            .filter(|(path, seen)| {
                keep(path)
                    && !path.ancestors().any(absent)
                    && !(seen.probe == PathState::Absent && path.parent().is_some_and(listed))
            })
            .map(|(path, seen)| (path.to_owned(), seen.dependency))
            .collect();
        set.sort_unstable();
        set
    }
}

/// Turns names and kinds into what a [`PathState`] holds.
#[must_use]
pub fn listing(names: &BTreeMap<OsString, FileKind>) -> Vec<(ByteBuf, FileKind)> {
    names.iter().map(|(name, kind)| (ByteBuf::from(name.clone().into_vec()), *kind)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> &RelPath {
        RelPath::new(text).unwrap()
    }

    #[test]
    fn first_access_decides() {
        let mut recording = Recording::default();
        recording.probe(path("a"), PathState::Absent);
        recording.probe(path("a"), PathState::Dir { listing: None });
        assert_eq!(recording.get(path("a")).unwrap().probe, PathState::Absent);
    }

    #[test]
    fn path_set_leaves_out_what_is_implied() {
        let mut recording = Recording::default();
        let names = BTreeMap::from([("x".into(), FileKind::File)]);
        recording.list(path("src"), &names);
        for absent in ["src/missing", "dist", "dist/deep", "other"] {
            recording.probe(path(absent), PathState::Absent);
        }
        let set = recording.path_set(|path| path.as_bytes() != b"other");
        assert_eq!(
            set,
            [(path("dist").to_owned(), Dependency::PROBE), (path("src").to_owned(), Dependency::LIST)]
        );
    }

    #[test]
    fn listing_a_directory_depends_on_its_names() {
        let mut recording = Recording::default();
        recording.list(path("src"), &BTreeMap::new());
        assert!(recording.depends_on(path("src/new")));
        assert!(!recording.depends_on(path("src/sub/new")));
    }
}
