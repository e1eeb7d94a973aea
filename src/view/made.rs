//! Files that a task made and may have finished, while it still runs: what may be packed before its end.

use std::collections::HashSet;

use super::node::{Body, FileContent};
use super::{State, View};
use crate::fs::{NodeId, OpenFlags};
use crate::path::RelPathBuf;

/// Files that are looked up while the lock is held.
const COUNTED_AT_A_TIME: usize = 256;

/// What a view remembers of the files that its task makes.
#[derive(Debug)]
pub(super) struct Made {
    /// Those that nobody asked for yet, in the order in which they were made.
    new: Vec<NodeId>,
    /// Those that were told to be finished, and not touched since.
    finished: HashSet<NodeId>,
    /// Those that a program may have mapped so that it can write to them.
    mappable: HashSet<NodeId>,
}

/// What [`View::finished_file`] says of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finished {
    /// It is gone, has several names, or may be written to without anybody being told.
    Never,
    /// It is still open.
    NotYet,
    /// It has just this place.
    File {
        /// Where in the view.
        path: RelPathBuf,
        /// Below the staging directory.
        blob: RelPathBuf,
        /// Whether it may have extended attributes.
        xattrs: bool,
    },
}

impl Made {
    pub(super) fn new() -> Self {
        Self { new: Vec::new(), finished: HashSet::new(), mappable: HashSet::new() }
    }
}

impl View {
    /// Notes that a file got content of its own.
    pub(super) fn note_made(state: &mut State, id: NodeId) {
        if let Some(made) = &mut state.made {
            made.new.push(id);
        }
    }

    /// Notes that somebody opens a file of the upper side, or changes it.
    pub(super) fn note_use(&self, state: &mut State, id: NodeId, flags: OpenFlags) {
        let Some(made) = &mut state.made else { return };
        if flags.intersects(OpenFlags::WRITE | OpenFlags::TRUNCATE) {
            made.finished.remove(&id);
        }
        // A mapping of a file that the kernel writes to directly outlasts the handle, and changes nothing that we
        // see. Otherwise mapped pages come to us as writes.
        if self.passthrough && flags.contains(OpenFlags::READ | OpenFlags::WRITE) {
            made.mappable.insert(id);
        }
    }

    /// Returns the files that got content of their own since this was last called.
    pub fn take_made(&self) -> Vec<NodeId> {
        self.lock().made.as_mut().map(|made| std::mem::take(&mut made.new)).unwrap_or_default()
    }

    /// Returns whether a file may be finished. What is told of one that is counts until it is opened for writing;
    /// that nothing else was changed is for the caller to compare.
    pub fn finished_file(&self, id: NodeId) -> Finished {
        let state = &mut *self.lock();
        let Some((place, blob, is_open)) = Self::place_of_file(state, id) else { return Finished::Never };
        let blob_path = state.blob_path(blob);
        let xattrs = state.with_xattrs.contains(&blob);
        match &mut state.made {
            Some(made) if !made.mappable.contains(&id) => {
                if is_open {
                    return Finished::NotYet;
                }
                made.finished.insert(id);
                Finished::File { path: place, blob: blob_path, xattrs }
            }
            Some(_) | None => Finished::Never,
        }
    }

    /// Returns how many of these files are still there, and were not opened for writing since they were told to be
    /// finished.
    pub fn count_finished(&self, files: &[NodeId]) -> usize {
        // Some at a time: a task may wait for the lock.
        files.chunks(COUNTED_AT_A_TIME).map(|files| self.count_some(files)).sum()
    }

    fn count_some(&self, files: &[NodeId]) -> usize {
        let state = self.lock();
        let Some(made) = &state.made else { return 0 };
        let is_there = |id: NodeId| state.nodes.get(id).is_ok_and(|node| state.nodes.links(node) > 0);
        files.iter().filter(|&id| made.finished.contains(id) && is_there(*id)).count()
    }

    /// Returns the files that were told to be finished, and that nobody opened for writing since.
    pub fn take_finished(&self) -> HashSet<NodeId> {
        self.lock().made.take().map(|made| made.finished).unwrap_or_default()
    }

    /// Returns the path and the blob of a file that has just one name, and whether it is open.
    fn place_of_file(state: &State, id: NodeId) -> Option<(RelPathBuf, u64, bool)> {
        let node = state.nodes.get(id).ok()?;
        let Body::File(FileContent::Blob(blob)) = &node.body else { return None };
        if node.names.len() != 1 || state.nodes.links(node) != 1 {
            return None;
        }
        let mut components = Vec::new();
        let mut at = id;
        while at != NodeId::ROOT {
            let (parent, name) = state.nodes.get(at).ok()?.names.iter().next()?;
            components.push(name);
            at = parent;
        }
        let mut path = RelPathBuf::root();
        for name in components.into_iter().rev() {
            path = path.join(name);
        }
        Some((path, blob.number, node.is_open()))
    }
}
