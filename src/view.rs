//! A view: what one task run sees, and where its writes go.
//!
//! The lower side is the merged tree, never written. The upper side is an in-memory tree of nodes; the
//! contents of regular files are blobs in a staging directory: those in directories that the task made under
//! their own names, in one directory each, so that a commit can move it. First accesses to the lower side are
//! recorded; what the task itself made is not.

mod attr;
mod content;
mod diff;
mod made;
mod names;
mod node;
mod ops;
mod other_names;
mod xattrs;

use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use rustix::fs::{Mode, OFlags};

pub use self::diff::{Change, Content, Meta, NewFile, NewObject, Xattrs};
pub use self::made::Finished;
use self::made::Made;
use self::node::Nodes;
use crate::fs::{FsError, Invalidator, NodeId, Timestamp};
use crate::index::TaskId;
use crate::path::{RelPath, RelPathBuf};
use crate::recording::Recording;
use crate::store::Store;
use crate::tree::{Found, Perspective, Stale, Tree};

/// Longest name, as in ext4.
const NAME_BYTES_MAX: usize = 255;

/// What a view is made of.
#[derive(Debug)]
pub struct ViewOptions {
    /// The merged tree below.
    pub tree: Arc<Tree>,
    /// Store for hydrated files.
    pub store: Arc<Store>,
    /// Where the upper layer's blobs go: an empty directory.
    pub staging: Arc<OwnedFd>,
    /// Earlier outputs that the view leaves out (`clean = true`).
    pub without: Option<Earlier>,
    /// Whether the kernel gets the descriptors of open files, so that all handles of a node must share one.
    pub passthrough: bool,
    /// Whether extended attributes of the `user.` namespace are served.
    pub xattrs: bool,
    /// Whether somebody will ask which files are finished while the task runs.
    pub tells_made: bool,
}

/// Outputs of a task's earlier runs.
#[derive(Debug)]
pub struct Earlier {
    /// The task.
    pub owner: TaskId,
    /// What of them lies in the base.
    pub stale: Option<Stale>,
}

/// What one task run sees.
pub struct View {
    tree: Arc<Tree>,
    store: Arc<Store>,
    staging: Arc<OwnedFd>,
    without: Option<Earlier>,
    passthrough: bool,
    xattrs: bool,
    /// Who tells the kernel of names that lead to another node.
    invalidator: OnceLock<Arc<dyn Invalidator>>,
    /// Nodes and recording. Taken before any lock of the tree.
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    nodes: Nodes,
    recording: Recording,
    blobs: u64,
    /// Blobs that lie in the staged directory of the view's directory, instead of having a number for a name.
    placed: HashMap<u64, RelPathBuf>,
    /// Directories of the view that have such a staged directory.
    staged_dirs: HashSet<NodeId>,
    /// Blobs that may have extended attributes: copies, and those that were given some.
    with_xattrs: HashSet<u64>,
    /// Blobs whose mode had to be changed for opening them: their `ctime` since, and the one to show for it.
    reopened: HashMap<u64, (Timestamp, Timestamp)>,
    /// What the kernel has to be told of.
    splits: Vec<Split>,
    /// `None` where nobody asks.
    made: Option<Made>,
}

impl State {
    /// Returns the path of a blob below the staging directory.
    fn blob_path(&self, blob: u64) -> RelPathBuf {
        self.placed.get(&blob).cloned().unwrap_or_else(|| numbered(blob))
    }

    /// Returns what to show for the `ctime` of a blob.
    fn shown_ctime(&self, blob: u64, ctime: Timestamp) -> Timestamp {
        match self.reopened.get(&blob) {
            Some((since, shown)) if *since == ctime => *shown,
            Some(_) | None => ctime,
        }
    }
}

/// A node whose names lead to another one now.
#[derive(Debug)]
struct Split {
    node: NodeId,
    names: Vec<(NodeId, OsString)>,
}

impl View {
    /// Opens a view.
    #[must_use]
    pub fn new(options: ViewOptions) -> Self {
        let ViewOptions { tree, store, staging, without, passthrough, xattrs, tells_made } = options;
        let state = State {
            nodes: Nodes::new(),
            recording: Recording::default(),
            blobs: 0,
            placed: HashMap::new(),
            staged_dirs: HashSet::new(),
            with_xattrs: HashSet::new(),
            reopened: HashMap::new(),
            splits: Vec::new(),
            made: tells_made.then(Made::new),
        };
        let (invalidator, state) = (OnceLock::new(), Mutex::new(state));
        Self { tree, store, staging, without, passthrough, xattrs, invalidator, state }
    }

    /// Sets who tells the kernel where names that it knows lead to another node: a file that one process
    /// reads directly, and another wants to write. The first one stays.
    pub fn set_invalidator(&self, invalidator: Arc<dyn Invalidator>) {
        self.invalidator.set(invalidator).ok();
    }

    /// Runs `inspect` on the recording made so far.
    pub fn with_recording<T>(&self, inspect: impl FnOnce(&Recording) -> T) -> T {
        inspect(&self.lock().recording)
    }

    /// Returns the merged tree below.
    #[must_use]
    pub fn tree(&self) -> &Arc<Tree> {
        &self.tree
    }

    /// Returns the directory that holds the blobs.
    #[must_use]
    pub fn staging(&self) -> &Arc<OwnedFd> {
        &self.staging
    }

    /// Returns the user attributes of a blob.
    ///
    /// # Errors
    /// Where the blob cannot be read.
    pub fn blob_xattrs(&self, blob: &RelPath) -> rustix::io::Result<Vec<(OsString, Vec<u8>)>> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = rustix::fs::openat(&self.staging, blob.as_os_str(), flags, Mode::empty())?;
        crate::xattr::user_xattrs(file)
    }

    /// Reserves a place in the staging directory for a blob that the caller makes.
    pub fn next_blob(&self) -> RelPathBuf {
        let state = &mut *self.lock();
        state.blobs += 1;
        numbered(state.blobs)
    }

    /// Returns how the view sees the merged tree.
    #[must_use]
    pub fn perspective(&self) -> Perspective<'_> {
        match &self.without {
            Some(earlier) => Perspective { without: Some(&earlier.owner), stale: earlier.stale.as_ref() },
            None => Perspective::ALL,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find_lower(&self, path: &RelPath) -> Result<Option<Found>, FsError> {
        Ok(self.tree.find(path, self.perspective())?)
    }

    /// Tells the kernel what has changed. Called without the lock.
    fn tell(&self) {
        let splits = std::mem::take(&mut self.lock().splits);
        let Some(invalidator) = self.invalidator.get() else { return };
        for Split { node, names } in splits {
            invalidator.node_changed(node);
            for (parent, name) in names {
                invalidator.entry_changed(parent, &name);
            }
        }
    }

    /// Resolves a name to its node, making one for an object of the lower side on first access.
    fn resolve(&self, state: &mut State, parent: NodeId, name: &OsStr) -> Result<NodeId, FsError> {
        Ok(self.resolve_found(state, parent, name)?.0)
    }

    /// As [`resolve`](Self::resolve); a first access also returns what was found.
    fn resolve_found(
        &self,
        state: &mut State,
        parent: NodeId,
        name: &OsStr,
    ) -> Result<(NodeId, Option<Found>), FsError> {
        if name.len() > NAME_BYTES_MAX {
            return Err(rustix::io::Errno::NAMETOOLONG.into());
        }
        match state.nodes.dir(parent)?.children.get(name).map(|child| child.id()) {
            Some(Some(id)) => return Ok((id, None)),
            Some(None) => return Err(FsError::NotFound),
            None => {}
        }
        let lower = state.nodes.lower_child((parent, name))?.ok_or(FsError::NotFound)?;
        let Some(found) = self.find_lower(&lower)? else {
            state.recording.probe(&lower, crate::state::PathState::Absent);
            return Err(FsError::NotFound);
        };
        state.recording.probe(&lower, found.probe());
        if state.nodes.is_known(&found) {
            // Another name of a file: what was or will be read or written through one shows in both, which
            // holds only as long as both have the same content.
            self.record_content(state, &lower, &found);
        }
        let id = state.nodes.insert_lower((parent, name), &found);
        Ok((id, Some(found)))
    }

    /// Makes sure that nothing of the lower side shows under `name` any more; `found` says that something
    /// does.
    fn hide_lower(
        &self,
        state: &mut State,
        (parent, name): (NodeId, &OsStr),
        found: bool,
    ) -> Result<(), FsError> {
        let shows = found
            || match state.nodes.lower_child((parent, name))? {
                Some(lower) => self.find_lower(&lower)?.is_some(),
                None => false,
            };
        let dir = state.nodes.dir_mut(parent)?;
        if shows {
            dir.children.insert(name.into(), node::Child::WHITEOUT);
        } else {
            dir.children.remove(name);
        }
        Ok(())
    }
}

impl std::fmt::Debug for View {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("View").field("without", &self.without).finish_non_exhaustive()
    }
}

/// Returns the path of a blob below the staging directory that has a number for a name.
fn numbered(blob: u64) -> RelPathBuf {
    RelPathBuf::new(blob.to_string().into_bytes()).unwrap_or_default()
}

/// Returns the name of the staged directory of a directory of the view. No blob's number looks like it.
fn staged_dir_name(dir: NodeId) -> String {
    format!("d{}", dir.0)
}
