//! What the adapter remembers for the protocol: lookup counts, open handles, backing ids.
//!
//! Each table has a lock of its own; no two are held at once.

use std::collections::HashMap;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use fuse_uring::BackingId;
use vout::fs::{FsError, NodeId};
use vout::node_map::NodeMap;

/// How often the kernel holds each node.
#[derive(Default)]
pub(crate) struct Lookups {
    /// Nodes with a count above zero; the root is not counted.
    counts: Mutex<NodeMap<u64>>,
    /// Shared from before the core hands a node out until it is counted, exclusive while the core forgets
    /// one: what another thread is about to answer must not be gone. Taken before `counts`.
    handing_out: RwLock<()>,
}

impl Lookups {
    /// Counts the reference that the answer of `call` hands to the kernel.
    pub(crate) fn hand_out<T>(
        &self,
        call: impl FnOnce() -> Result<T, FsError>,
        node_of: impl FnOnce(&T) -> NodeId,
    ) -> Result<T, FsError> {
        let _handing_out = self.handing_out.read().unwrap_or_else(PoisonError::into_inner);
        let handed_out = call()?;
        let node = node_of(&handed_out);
        if node != NodeId::ROOT {
            *lock(&self.counts).entry(node).or_insert(0) += 1;
        }
        Ok(handed_out)
    }

    /// Takes `count` references away, and calls `forget` if those were the last.
    pub(crate) fn take(&self, node: NodeId, count: u64, forget: impl FnOnce()) {
        if !self.lower(node, count) {
            return;
        }
        let _alone = self.handing_out.write().unwrap_or_else(PoisonError::into_inner);
        let mut counts = lock(&self.counts);
        // It may have been handed out again, or a second thread may have forgotten it.
        if counts.get(&node) == Some(&0) {
            counts.remove(&node);
            drop(counts);
            forget();
        }
    }

    /// Returns whether no reference is left.
    fn lower(&self, node: NodeId, count: u64) -> bool {
        let mut counts = lock(&self.counts);
        let Some(held) = counts.get_mut(&node) else { return false };
        *held = held.saturating_sub(count);
        *held == 0
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
    pub(crate) fn add(&self, handle: T) -> u64 {
        let mut open = lock(&self.open);
        let number = open.1;
        open.1 += 1;
        open.0.insert(number, Arc::new(handle));
        number
    }

    /// Returns the handle of a number.
    pub(crate) fn get(&self, number: u64) -> Result<Arc<T>, FsError> {
        lock(&self.open).0.get(&number).cloned().ok_or(FsError::InvalidArgument)
    }

    /// Forgets a handle and returns it, so that it is closed outside the lock.
    pub(crate) fn remove(&self, number: u64) -> Option<Arc<T>> {
        lock(&self.open).0.remove(&number)
    }
}

/// How the kernel reads and writes each open node: directly through one backing file, or through us.
///
/// The kernel refuses (`EIO`) an open that mixes the two on one node, or that brings another backing id.
#[derive(Default)]
pub(crate) struct Backings {
    /// Nodes with open handles. Held across the ioctl that registers a file: two first opens of one node
    /// must not register it twice.
    open: Mutex<NodeMap<Backing>>,
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

/// Nodes that are being executed, and by how many open handles.
///
/// The kernel refuses to open them for writing (`ETXTBSY`) before it asks us. An open for reading that cuts the file to
/// nothing it refuses only afterwards, when we would have cut it.
#[derive(Default)]
pub(crate) struct Executed(Mutex<NodeMap<u64>>);

impl Executed {
    /// Counts one handle more.
    pub(crate) fn open(&self, node: NodeId) {
        *lock(&self.0).entry(node).or_insert(0) += 1;
    }

    /// Counts one handle less.
    pub(crate) fn close(&self, node: NodeId) {
        let mut open = lock(&self.0);
        let Some(handles) = open.get_mut(&node) else { return };
        *handles -= 1;
        if *handles == 0 {
            open.remove(&node);
        }
    }

    /// Returns whether a program runs from this node.
    pub(crate) fn is_running(&self, node: NodeId) -> bool {
        lock(&self.0).contains_key(&node)
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
        let forgotten = std::cell::Cell::new(0);
        let take = |node, count| lookups.take(node, count, || forgotten.set(forgotten.get() + 1));
        for _ in 0..2 {
            assert!(lookups.hand_out(|| Ok(NodeId(7)), |node| *node).is_ok());
        }
        take(NodeId(7), 1);
        assert_eq!(forgotten.get(), 0);
        take(NodeId(7), 1);
        assert_eq!(forgotten.get(), 1);
        take(NodeId(7), 1);
        assert!(lookups.hand_out(|| Ok(NodeId::ROOT), |node| *node).is_ok());
        take(NodeId::ROOT, 1);
        assert_eq!(forgotten.get(), 1);
        assert!(lookups.hand_out(|| Err::<NodeId, _>(FsError::NotFound), |node| *node).is_err());
        assert!(lock(&lookups.counts).is_empty());
    }

    /// Goal: no node is forgotten between the core's answer and its being counted.
    /// Method: one thread hands a node out again and again, another takes each reference back; a node that
    /// was forgotten is dead until it is handed out anew.
    #[test]
    fn a_node_that_is_handed_out_meanwhile_is_not_forgotten() {
        let (lookups, alive) = (Lookups::default(), Mutex::new(false));
        let (handed, taken) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for () in taken {
                    lookups.take(NodeId(7), 1, || *lock(&alive) = false);
                }
            });
            for _ in 0..20_000 {
                let answer = lookups.hand_out(
                    || {
                        *lock(&alive) = true;
                        Ok(NodeId(7))
                    },
                    |node| *node,
                );
                assert!(answer.is_ok() && *lock(&alive), "forgotten while the kernel holds it");
                handed.send(()).unwrap();
            }
            drop(handed);
        });
        assert!(!*lock(&alive));
    }

    #[test]
    fn a_node_runs_until_its_last_handle_is_closed() {
        let executed = Executed::default();
        executed.open(NodeId(2));
        executed.open(NodeId(2));
        executed.close(NodeId(2));
        assert!(executed.is_running(NodeId(2)) && !executed.is_running(NodeId(3)));
        executed.close(NodeId(2));
        assert!(!executed.is_running(NodeId(2)));
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
