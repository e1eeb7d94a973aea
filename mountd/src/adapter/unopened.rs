//! Files that the kernel reads and writes without telling us that it opened them.
//!
//! Without passthrough an answer to `OPEN` says nothing that the kernel needs, so a view gives none: an open and a
//! close then cost no request, and what is read once is in the kernel's cache for good. Requests name the node alone.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vout::fs::{FsError, NodeId, OpenFile};
use vout::node_map::NodeMap;

/// Files held open at most, in each of two generations.
const GENERATION_FILES_MAX: usize = 32;

/// Open files of the core by node, those used last: a large file is read in several requests, and the kernel
/// does not say which is the last.
#[derive(Default)]
pub(crate) struct UnopenedFiles {
    /// A leaf; not held while a file is opened or closed.
    recent: Mutex<Recent>,
}

/// Two generations: what is opened or used again is young; where there are too many of those, they become the
/// old ones, and the old ones go.
#[derive(Default)]
struct Recent {
    young: Generation,
    old: Generation,
}

type Generation = NodeMap<Held>;

#[derive(Clone)]
struct Held {
    file: Arc<dyn OpenFile>,
    writable: bool,
}

impl UnopenedFiles {
    /// Returns the file of `node`, opened by `open` where none is held, or one that cannot be written as
    /// is wanted now.
    pub(super) fn get(
        &self,
        node: NodeId,
        to_write: bool,
        open: impl FnOnce() -> Result<Arc<dyn OpenFile>, FsError>,
    ) -> Result<Arc<dyn OpenFile>, FsError> {
        let held = self.lock().find(node);
        match held {
            Some((held, gone)) if held.writable || !to_write => {
                drop(gone);
                Ok(held.file)
            }
            _ => {
                let file = open()?;
                self.hold(node, Arc::clone(&file), to_write);
                Ok(file)
            }
        }
    }

    /// Holds a file that was just opened.
    pub(super) fn hold(&self, node: NodeId, file: Arc<dyn OpenFile>, writable: bool) {
        let gone = self.lock().insert(node, Held { file, writable });
        drop(gone);
    }

    /// Closes the file of a node that the kernel has forgotten, or that is another one now.
    pub(crate) fn forget(&self, node: NodeId) {
        let mut recent = self.lock();
        let gone = (recent.young.remove(&node), recent.old.remove(&node));
        drop(recent);
        drop(gone);
    }

    fn lock(&self) -> MutexGuard<'_, Recent> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Recent {
    /// Returns the file of a node, which is young from now on, and what is to be closed instead.
    fn find(&mut self, node: NodeId) -> Option<(Held, Generation)> {
        if let Some(held) = self.young.get(&node) {
            return Some((held.clone(), Generation::default()));
        }
        let held = self.old.remove(&node)?;
        Some((held.clone(), self.insert(node, held)))
    }

    /// Adds a young file, and returns what is to be closed.
    #[must_use = "files are closed without the lock"]
    fn insert(&mut self, node: NodeId, held: Held) -> Generation {
        let mut gone = Generation::default();
        if self.young.len() >= GENERATION_FILES_MAX && !self.young.contains_key(&node) {
            gone = std::mem::replace(&mut self.old, std::mem::take(&mut self.young));
        }
        let before = self.young.insert(node, held).or_else(|| self.old.remove(&node));
        gone.extend(before.map(|before| (node, before)));
        gone
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::fs::File;

    use vout::open_file::RealFile;

    use super::*;

    fn real() -> Result<Arc<dyn OpenFile>, FsError> {
        Ok(Arc::new(RealFile::new(File::open("/dev/null")?, Arc::default())))
    }

    #[test]
    fn a_file_stays_open_while_it_is_used() -> Result<(), FsError> {
        let (files, opened) = (UnopenedFiles::default(), Cell::new(0));
        let open = || {
            opened.set(opened.get() + 1);
            real()
        };
        for other in 100..300 {
            files.get(NodeId(2), false, open)?;
            files.get(NodeId(other), false, real)?;
        }
        assert_eq!(opened.get(), 1);
        for other in 100..300 {
            files.get(NodeId(other), false, real)?;
        }
        files.get(NodeId(2), false, open)?;
        assert_eq!(opened.get(), 2, "what is not used is closed");
        let recent = files.lock();
        assert!(recent.young.len() + recent.old.len() <= 2 * GENERATION_FILES_MAX);
        Ok(())
    }

    #[test]
    fn a_file_is_opened_anew_to_be_written() -> Result<(), FsError> {
        let files = UnopenedFiles::default();
        let read = files.get(NodeId(2), false, real)?;
        let written = files.get(NodeId(2), true, real)?;
        assert!(!Arc::ptr_eq(&read, &written));
        let again = files.get(NodeId(2), false, || panic!("the written one is there"))?;
        assert!(Arc::ptr_eq(&again, &written));
        files.forget(NodeId(2));
        assert!(!Arc::ptr_eq(&files.get(NodeId(2), false, real)?, &written));
        Ok(())
    }
}
