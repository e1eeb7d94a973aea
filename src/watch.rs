//! What those hear who watch a tree with inotify, when it was changed by other means than their mount.
//!
//! The kernel reports what is *done* through a mount. What a hit or a commit changes beneath it is done once
//! more, for show: a helper makes the system calls, and the tree answers them without changing anything.
//! `docs/design/006-watchers.md` says why.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use crate::path::RelPathBuf;
use crate::state::FileKind;

/// More than this is not told name by name; the directories concerned are, once each.
pub const HAPPENINGS_MAX: usize = 10_000;

/// What happened at a path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Happening {
    /// Where.
    pub path: RelPathBuf,
    /// What.
    pub what: What,
}

/// What may happen at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum What {
    /// Something new is there.
    Created(FileKind),
    /// A regular file has another content.
    Written {
        /// Somebody may want to execute it, so it must not be open for writing, not even for a moment.
        executable: bool,
    },
    /// Attributes are others.
    Attributes,
    /// A directory has other names; which ones is too much to tell.
    Listing,
    /// A directory is gone, or anything else.
    Removed {
        /// Whether it was a directory.
        dir: bool,
    },
}

/// A change of the tree, of which nobody has worked out the details yet.
pub trait News: Send {
    /// Returns what is to be done for show, in this order, for those who watch the nodes with these inode
    /// numbers; and prepares the tree for it.
    fn prepare(&self, watched: &HashSet<u64>) -> Vec<Happening>;
}
