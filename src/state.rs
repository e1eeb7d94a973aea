//! What a task can depend on at a path, and the state it found there.

use bitflags::bitflags;
use serde::{Deserialize, Serialize};

use crate::digest::Digest;

bitflags! {
    /// What of a path a task looked at.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
    #[serde(transparent)]
    pub struct Dependency: u8 {
        /// Whether it exists, its kind, and a regular file's size and executable bit.
        const PROBE = 1;
        /// A regular file's content and executable bit.
        const READ = 2;
        /// A symbolic link's target.
        const LINK = 4;
        /// A directory's names and kinds.
        const LIST = 8;
    }
}

/// The kind of a file-system object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum FileKind {
    /// Regular file.
    File,
    /// Directory.
    Dir,
    /// Symbolic link.
    Symlink,
    /// Named pipe.
    Fifo,
    /// Unix domain socket.
    Socket,
    /// Character device.
    CharDevice,
    /// Block device.
    BlockDevice,
}

/// The state of a path, as far as a [`Dependency`] set asks for it.
///
/// Fields nobody asked for are `None`, so equal states are equal values.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum PathState {
    /// Nothing is there.
    Absent,
    /// A regular file.
    File {
        /// Whether anybody may execute it.
        executable: bool,
        /// Size in bytes.
        size_bytes: u64,
        /// Hash of the content, where it was read.
        content: Option<Digest>,
    },
    /// A directory.
    Dir {
        /// Sorted names and kinds, where it was listed.
        listing: Option<Vec<(serde_bytes::ByteBuf, FileKind)>>,
    },
    /// A symbolic link.
    Symlink {
        /// Its target, where it was asked for.
        target: Option<serde_bytes::ByteBuf>,
    },
    /// A pipe, socket or device.
    Special(FileKind),
}

impl PathState {
    /// Returns the kind, or `None` where nothing is there.
    #[must_use]
    pub fn kind(&self) -> Option<FileKind> {
        match self {
            Self::Absent => None,
            Self::File { .. } => Some(FileKind::File),
            Self::Dir { .. } => Some(FileKind::Dir),
            Self::Symlink { .. } => Some(FileKind::Symlink),
            Self::Special(kind) => Some(*kind),
        }
    }
}
