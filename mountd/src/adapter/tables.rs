//! What the adapter remembers for the protocol: lookup counts, open handles, backing ids.
//!
//! Each table has a lock of its own; no two are held at once.

use std::collections::HashMap;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fuser::{BackingId, FileHandle};
use vout::fs::{FsError, NodeId};

/// How often the kernel holds each node.
#[derive(Default)]
pub(crate) struct Lookups {
    /// Nodes with a count above zero; the root is not counted.
    counts: Mutex<HashMap<NodeId, u64>>,
}

impl Lookups {
    /// Counts one reference more.
    pub(crate) fn add(&self, node: NodeId) {
        if node != NodeId::ROOT {
            *lock(&self.counts).entry(node).or_insert(0) += 1;
        }
    }

    /// Takes `count` references away; returns whether those were the last.
    pub(crate) fn take(&self, node: NodeId, count: u64) -> bool {
        let mut counts = lock(&self.counts);
        let Some(held) = counts.get_mut(&node) else { return false };
        *held = held.saturating_sub(count);
        let last = *held == 0;
        if last {
            counts.remove(&node);
        }
        last
    }
}

/// Open handles by number.
pub(crate) struct Handles<T> {
    /// The handles, and the number of the next.
    open: Mutex<(HashMap<u64, Arc<T>>, u64)>,
}

impl<T> Default for Handles<T> {
    fn default() -> Self {
        Self { open: Mutex::new((HashMap::new(), 1)) }
    }
}

impl<T> Handles<T> {
    /// Keeps `handle` and returns its number.
    pub(crate) fn add(&self, handle: T) -> FileHandle {
        let mut open = lock(&self.open);
        let number = open.1;
        open.1 += 1;
        open.0.insert(number, Arc::new(handle));
        FileHandle(number)
    }

    /// Returns the handle of a number.
    pub(crate) fn get(&self, number: FileHandle) -> Result<Arc<T>, FsError> {
        lock(&self.open).0.get(&number.0).cloned().ok_or(FsError::InvalidArgument)
    }

    /// Forgets a handle and returns it, so that it is closed outside the lock.
    pub(crate) fn remove(&self, number: FileHandle) -> Option<Arc<T>> {
        lock(&self.open).0.remove(&number.0)
    }
}

/// How the kernel reads and writes each open node: directly through one backing file, or through us.
///
/// The kernel refuses (`EIO`) an open that mixes the two on one node, or that brings another backing id.
#[derive(Default)]
pub(crate) struct Backings {
    /// Nodes with open handles. Held across the ioctl that registers a file: two first opens of one node
    /// must not register it twice.
    open: Mutex<HashMap<NodeId, Backing>>,
}

struct Backing {
    id: Option<Arc<BackingId>>,
    handles: u64,
}

impl Backings {
    /// Counts one handle more of `node`. The first decides how it is served: with a backing id if
    /// `register` gives one.
    pub(crate) fn open(
        &self,
        node: NodeId,
        file: Option<BorrowedFd<'_>>,
        register: impl FnOnce(BorrowedFd<'_>) -> io::Result<BackingId>,
    ) -> Result<Option<Arc<BackingId>>, FsError> {
        let mut open = lock(&self.open);
        if let Some(backing) = open.get_mut(&node) {
            if backing.id.is_some() && file.is_none() {
                // The core broke its promise; looking the name up again gives it another node.
                return Err(FsError::Stale);
            }
            backing.handles += 1;
            return Ok(backing.id.clone());
        }
        let id = match file.map(register) {
            Some(Ok(id)) => Some(Arc::new(id)),
            Some(Err(error)) => {
                tracing::debug!(%error, ino = node.0, "no passthrough for this file");
                None
            }
            None => None,
        };
        open.insert(node, Backing { id: id.clone(), handles: 1 });
        Ok(id)
    }

    /// Counts one handle less.
    pub(crate) fn close(&self, node: NodeId) {
        let mut open = lock(&self.open);
        let Some(backing) = open.get_mut(&node) else { return };
        backing.handles -= 1;
        let closed = if backing.handles == 0 { open.remove(&node) } else { None };
        drop(open);
        drop(closed);
    }
}

/// Locks a table; none is left half changed by a panic.
fn lock<T>(table: &Mutex<T>) -> MutexGuard<'_, T> {
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_forgotten_with_its_last_reference() {
        let lookups = Lookups::default();
        lookups.add(NodeId(7));
        lookups.add(NodeId(7));
        assert!(!lookups.take(NodeId(7), 1));
        assert!(lookups.take(NodeId(7), 1));
        assert!(!lookups.take(NodeId(7), 1));
        lookups.add(NodeId::ROOT);
        assert!(!lookups.take(NodeId::ROOT, 1));
    }

    #[test]
    fn a_node_opened_without_backing_stays_so_while_it_is_open() -> io::Result<()> {
        use std::os::fd::AsFd;
        let file = std::fs::File::open("/dev/null")?;
        let refuse = |_: BorrowedFd<'_>| Err(io::ErrorKind::PermissionDenied.into());
        let backings = Backings::default();
        assert!(backings.open(NodeId(2), Some(file.as_fd()), refuse).is_ok_and(|id| id.is_none()));
        let never = |_: BorrowedFd<'_>| -> io::Result<BackingId> { panic!("registered a second time") };
        assert!(backings.open(NodeId(2), Some(file.as_fd()), never).is_ok_and(|id| id.is_none()));
        backings.close(NodeId(2));
        backings.close(NodeId(2));
        assert!(lock(&backings.open).is_empty());
        Ok(())
    }
}
