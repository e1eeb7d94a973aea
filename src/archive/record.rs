//! What an archive says about one path.

use std::ffi::OsString;

use crate::digest::Digest;
use crate::fs::Timestamp;
use crate::path::{RelPath, RelPathBuf};

/// One path in a table of contents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Where it belongs, never the root.
    pub path: RelPathBuf,
    /// What is there.
    pub kind: RecordKind,
    /// Permission bits, `0o7777`.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last modification.
    pub mtime: Timestamp,
    /// Extended attributes, sorted by name.
    pub xattrs: Vec<(OsString, Vec<u8>)>,
    /// What was there before, in whatever form the caller keeps it. Only in manifests.
    pub before: Option<Vec<u8>>,
}

/// The kind of a [`Record`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RecordKind {
    /// A regular file.
    File {
        /// Size in bytes.
        size_bytes: u64,
        /// Hash of the content; always known in archives.
        content: Option<Digest>,
        /// Where the content is; always known in archives.
        data: Option<DataRef>,
        /// The file of which this is another name. Size, content and data are that record's, which comes
        /// earlier in the tar stream, but maybe not in the table of contents.
        link_to: Option<RelPathBuf>,
    },
    /// A directory.
    Dir,
    /// A directory that is no output itself but has outputs below it.
    ImpliedDir,
    /// A symbolic link.
    Symlink {
        /// What it points to, verbatim.
        target: OsString,
    },
    /// Nothing: what was there is to be removed.
    Absent,
}

/// A range of data in a file with holes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Where it starts.
    pub offset: u64,
    /// How long it is, not 0.
    pub length_bytes: u64,
}

impl Extent {
    /// Returns where it ends; decoding has made sure that it does.
    pub(super) fn end(&self) -> u64 {
        self.offset.saturating_add(self.length_bytes)
    }
}

/// Where an archive holds the content of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataRef {
    /// Of the first byte of data, in the uncompressed tar stream.
    pub(super) stream_offset: u64,
    /// Data between holes, in order and without overlap, stored one after the other. `None`: no holes.
    pub(super) extents: Option<Vec<Extent>>,
    /// Number of names that the file has in the archive.
    pub(super) links: u32,
}

impl DataRef {
    /// Returns the ranges that are data in a file with holes; `None` where there are no holes.
    #[must_use]
    pub fn extents(&self) -> Option<&[Extent]> {
        self.extents.as_deref()
    }
}

impl Record {
    /// Returns the size of a regular file, and 0 for anything else.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        match &self.kind {
            RecordKind::File { size_bytes, .. } => *size_bytes,
            RecordKind::Dir | RecordKind::ImpliedDir | RecordKind::Symlink { .. } | RecordKind::Absent => 0,
        }
    }

    /// Returns whether it is a directory, for its own sake or for what is in it.
    #[must_use]
    pub const fn is_dir(&self) -> bool {
        matches!(self.kind, RecordKind::Dir | RecordKind::ImpliedDir)
    }

    /// Returns the number of names that a regular file has in its archive, and 1 for anything else.
    #[must_use]
    pub fn links(&self) -> u32 {
        match &self.kind {
            RecordKind::File { data: Some(data), .. } => data.links,
            _ => 1,
        }
    }

    /// Returns the bytes of a regular file that are not holes, and 0 for anything else.
    #[must_use]
    pub fn allocated_bytes(&self) -> u64 {
        match &self.kind {
            RecordKind::File { data: Some(DataRef { extents: Some(extents), .. }), .. } => {
                extents.iter().map(|extent| extent.length_bytes).sum()
            }
            _ => self.size_bytes(),
        }
    }

    /// Returns whether it is a regular file.
    #[must_use]
    pub fn is_file(&self) -> bool {
        matches!(self.kind, RecordKind::File { .. })
    }

    pub(super) fn key(&self) -> Key<'_> {
        Key::of(&self.path)
    }
}

/// What records are sorted by: the directory, then the name. So the children of a directory are
/// neighbours, and every directory comes before what it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key<'a> {
    pub(super) parent: &'a [u8],
    pub(super) name: &'a [u8],
}

impl<'a> Key<'a> {
    pub(super) fn of(path: &'a RelPath) -> Self {
        match path.split_last() {
            Some((parent, name)) => Self { parent: parent.as_bytes(), name: name.as_encoded_bytes() },
            None => Self { parent: b"", name: b"" },
        }
    }

    /// The lower bound of all children of `parent`.
    pub(super) fn first_in(parent: &'a [u8]) -> Self {
        Self { parent, name: b"" }
    }
}
