//! A view: what one task run sees, and where its writes go.
//!
//! The lower side is the merged tree, never written. The upper side is an in-memory tree of nodes; the
//! contents of regular files are flat blobs in a staging directory. First accesses to the lower side are
//! recorded; what the task itself made is not.

mod attr;
mod diff;
mod node;
mod ops;

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

pub use self::diff::{Change, Content, Meta, NewFile, NewObject};
use self::node::Nodes;
use crate::fs::{FsError, NodeId};
use crate::index::TaskId;
use crate::path::RelPath;
use crate::recording::Recording;
use crate::store::Store;
use crate::tree::{Found, Perspective, Stale, Tree};

/// Longest name of a file, as everywhere in Linux.
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
#[derive(Debug)]
pub struct View {
    tree: Arc<Tree>,
    store: Arc<Store>,
    staging: Arc<OwnedFd>,
    without: Option<Earlier>,
    passthrough: bool,
    /// Nodes and recording. Taken before any lock of the tree.
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    nodes: Nodes,
    recording: Recording,
    blobs: u64,
}

impl View {
    /// Opens a view.
    #[must_use]
    pub fn new(options: ViewOptions) -> Self {
        let ViewOptions { tree, store, staging, without, passthrough } = options;
        let state = State { nodes: Nodes::new(), recording: Recording::default(), blobs: 0 };
        Self { tree, store, staging, without, passthrough, state: Mutex::new(state) }
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
    pub fn blob_xattrs(&self, blob: u64) -> rustix::io::Result<Vec<(OsString, Vec<u8>)>> {
        let name = blob_name(blob);
        if crate::xattr::surely_none(&self.staging, &name) {
            return Ok(Vec::new());
        }
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = rustix::fs::openat(&self.staging, name, flags, Mode::empty())?;
        crate::xattr::user_xattrs(file)
    }

    /// Reserves a number for a blob that the caller makes.
    pub fn next_blob(&self) -> u64 {
        let state = &mut *self.lock();
        state.blobs += 1;
        state.blobs
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

    /// Resolves a name to its node, making one for an object of the lower side on first access.
    fn resolve(&self, state: &mut State, parent: NodeId, name: &OsStr) -> Result<NodeId, FsError> {
        let dir = state.nodes.dir(parent)?;
        // Not even absent: no run can have made it, and a blob of that name could not be committed.
        if name.len() > NAME_BYTES_MAX {
            return Err(FsError::Os(Errno::NAMETOOLONG.into()));
        }
        match dir.children.get(name) {
            Some(node::Child::Node(id)) => return Ok(*id),
            Some(node::Child::Whiteout) => return Err(FsError::NotFound),
            None => {}
        }
        let Some(lower) = dir.lower.as_ref().map(|lower| lower.join(name)) else {
            return Err(FsError::NotFound);
        };
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
        Ok(state.nodes.insert_lower((parent, name), lower, found))
    }

    /// Makes sure that nothing of the lower side shows under `name` any more.
    fn hide_lower(&self, state: &mut State, parent: NodeId, name: &OsStr) -> Result<(), FsError> {
        let lower = state.nodes.dir(parent)?.lower.as_ref().map(|lower| lower.join(name));
        let shows = match lower {
            Some(lower) => self.find_lower(&lower)?.is_some(),
            None => false,
        };
        let dir = state.nodes.dir_mut(parent)?;
        if shows {
            dir.children.insert(name.to_owned(), node::Child::Whiteout);
        } else {
            dir.children.remove(name);
        }
        Ok(())
    }

    fn new_blob(&self, state: &mut State, mode: u32) -> Result<(u64, File), FsError> {
        state.blobs += 1;
        let blob = state.blobs;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = rustix::fs::openat(&self.staging, blob_name(blob), flags, Mode::RUSR | Mode::WUSR)?;
        rustix::fs::fchmod(&file, Mode::from_bits_truncate(mode))?;
        Ok((blob, file.into()))
    }
}

/// Returns the name of a blob in the staging directory.
#[must_use]
pub fn blob_name(blob: u64) -> OsString {
    blob.to_string().into()
}
