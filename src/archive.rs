//! Archives of task outputs: tar streams in zstd frames that can be searched and read in place.
//!
//! An [`Archive`] is an ordinary `.tar.zst` for other tools. For us it carries a table of contents
//! ([`Toc`]) that is searched without being loaded, and data frames that are decompressed one by one.
//! `docs/format.md` describes the bytes. A [`Manifest`] is the same table without data.
//!
//! This module owns the format, packing and unpacking. It does not decide what is an output, where
//! archives live, or when they go; callers do temporary names, `fsync` and `rename`.

mod ahead;
mod buffers;
mod cache;
mod codec;
mod frames;
mod layout;
mod opened;
mod pack;
mod plan;
mod reader;
mod record;
pub mod restore;
mod source;
mod tar_entry;
mod toc;
mod toc_writer;
mod volume;

use std::fmt;
use std::io;
use std::path::PathBuf;

use thiserror::Error;

pub use layout::FORMAT_VERSION;
pub use opened::Opening;
pub use pack::{AheadPacker, AheadPiece, PackError, PackProgress, Packed, PackedAhead, Packer};
pub use plan::{Item, Meta, Source};
pub use reader::Archive;
pub use record::{DataRef, Extent, Record, RecordKind};
pub use source::{ArchivedFile, DiskFile, FileContent, FileSource};
pub use toc::{Manifest, Toc, Totals};
pub use toc_writer::{ManifestError, write_manifest};
pub use volume::ReadAt;

use crate::path::RelPathBuf;

/// A part of an archive or manifest, for messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// The fixed-size end of the table of contents.
    Footer,
    /// The index of the table of contents.
    Index,
    /// A block of records, by number.
    RecordBlock(usize),
    /// A block of the frame table, by number.
    FrameBlock(usize),
    /// The data frame at this offset of the file.
    Frame(u64),
    /// The zstd seek table.
    SeekTable,
    /// The content of one file.
    Content(RelPathBuf),
}

/// Why an archive or manifest cannot be used.
#[derive(Debug, Error)]
pub enum ArchiveError {
    /// The operating system refused.
    #[error("{path:?} cannot be read")]
    Io {
        /// The archive.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is something else, or lost its end.
    #[error("{path:?} is not a complete archive: {problem}")]
    NotAnArchive {
        /// The file.
        path: PathBuf,
        /// What is missing.
        problem: String,
    },
    /// A newer version wrote it.
    #[error("{path:?} has format version {found}, and this version of vout reads up to {supported}")]
    NewerVersion {
        /// The archive.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// The newest known here.
        supported: u32,
    },
    /// Its bytes are not those that were written, or make no sense.
    #[error("{path:?} is damaged: {part}: {problem}")]
    Damaged {
        /// The archive.
        path: PathBuf,
        /// Where.
        part: Part,
        /// What is wrong.
        problem: String,
    },
    /// The record is not a file, or a manifest's.
    #[error("{record:?} has no content in {path:?}")]
    NoContent {
        /// The archive.
        path: PathBuf,
        /// The record.
        record: RelPathBuf,
    },
    /// The content cannot be written to its destination.
    #[error("{record:?} cannot be written")]
    Output {
        /// The record.
        record: RelPathBuf,
        /// Why.
        source: io::Error,
    },
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Footer => f.write_str("footer of the table of contents"),
            Self::Index => f.write_str("index of the table of contents"),
            Self::RecordBlock(number) => write!(f, "block {number} of the table of contents"),
            Self::FrameBlock(number) => write!(f, "block {number} of the frame table"),
            Self::Frame(offset) => write!(f, "frame at offset {offset}"),
            Self::SeekTable => f.write_str("seek table"),
            Self::Content(path) => write!(f, "content of {path:?}"),
        }
    }
}

#[cfg(test)]
mod tests;
