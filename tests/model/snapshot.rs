//! Whole trees as plain data.

use std::collections::{BTreeMap, HashMap};

use vout::fs::FileKind;

use crate::ops::Seen;

/// All that is visible in a tree.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Snapshot(pub(crate) BTreeMap<String, Thing>);

#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Thing {
    pub(crate) seen: Seen,
    /// Content or link target.
    pub(crate) body: Vec<u8>,
    /// The file's number in its own file system.
    pub(crate) file: u64,
    /// Extended attributes.
    pub(crate) xattrs: Vec<(std::ffi::OsString, Vec<u8>)>,
    /// First name of the same regular file.
    pub(crate) first: String,
}

impl std::fmt::Debug for Thing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let body = String::from_utf8_lossy(&self.body[..self.body.len().min(40)]);
        write!(f, "{:?} {body:?} of {:?} with {:?}", self.seen, self.first, self.xattrs)
    }
}

impl Snapshot {
    pub(crate) fn add(&mut self, path: String, thing: Thing) {
        self.0.insert(path, thing);
    }

    /// Names each file by its first name, in place of its number.
    pub(crate) fn group(&mut self) {
        let mut first_names = HashMap::new();
        for (path, thing) in &mut self.0 {
            if thing.seen.kind == FileKind::File {
                thing.first = first_names.entry(thing.file).or_insert_with(|| path.clone()).clone();
            }
            thing.file = 0;
        }
    }

    /// Returns what differs, in words.
    pub(crate) fn difference(&self, native: &Self) -> Option<String> {
        let mut paths: Vec<_> = self.0.keys().chain(native.0.keys()).collect();
        paths.sort();
        paths.dedup();
        let differs = paths.into_iter().find(|path| self.0.get(*path) != native.0.get(*path))?;
        Some(format!(
            "{differs:?}:\n  ours   {:?}\n  native {:?}",
            self.0.get(differs),
            native.0.get(differs)
        ))
    }

    /// Leaves link counts of symbolic links out.
    pub(crate) fn forget_links_of_links(&mut self) {
        for thing in self.0.values_mut().filter(|thing| thing.seen.kind == FileKind::Symlink) {
            thing.seen.nlink = 0;
        }
    }

    /// Leaves link counts out.
    pub(crate) fn without_links(mut self) -> Self {
        for thing in self.0.values_mut() {
            thing.seen.nlink = 0;
        }
        self
    }

    /// Forgets which names are one file.
    pub(crate) fn without_groups(mut self) -> Self {
        for thing in self.0.values_mut() {
            thing.first.clear();
        }
        self
    }
}
