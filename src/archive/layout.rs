//! Numbers of the format. `docs/format.md` shows them as tables.
//!
//! All integers are little-endian.

use crate::archive::codec::Decoder;
use crate::archive::toc::Totals;
use crate::digest::Digest;
use crate::fs::Timestamp;

/// Version of the table of contents that this code writes, and the newest it reads.
pub const FORMAT_VERSION: u32 = 1;

/// Last bytes of a table of contents.
pub(super) const TOC_MAGIC: [u8; 8] = *b"VOUT-TOC";
/// Size of the footer, its magic included.
pub(super) const FOOTER_BYTES: usize = 176;
/// Distance of the version from the start of the footer.
pub(super) const FOOTER_VERSION: usize = 128;
/// Bytes of the footer that its hash covers.
pub(super) const FOOTER_HASHED: usize = 136;
/// Distance of the magic from the start of the footer.
pub(super) const FOOTER_MAGIC: usize = 168;

/// Magic number of the skippable frame that holds the table of contents.
pub(super) const TOC_FRAME_MAGIC: u32 = 0x184D_2A5D;
/// Magic number of the skippable frame that holds the seek table, fixed by the seekable format.
pub(super) const SEEK_FRAME_MAGIC: u32 = 0x184D_2A5E;
/// Header of a skippable frame: magic and length of what follows.
pub(super) const SKIPPABLE_HEADER_BYTES: u64 = 8;
/// Last four bytes of an archive, fixed by the seekable format.
pub(super) const SEEKABLE_MAGIC: u32 = 0x8F92_EAB1;
/// Number of frames, descriptor byte and magic at the end of the seek table.
pub(super) const SEEK_FOOTER_BYTES: u64 = 9;
/// One entry of the seek table: compressed and decompressed size.
pub(super) const SEEK_ENTRY_BYTES: u64 = 8;

/// Records are gathered into blocks of about this size before compression.
pub(super) const BLOCK_BYTES: usize = 32 * 1024;
/// Limit of a block before compression: one record may be larger than [`BLOCK_BYTES`].
pub(super) const BLOCK_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Limit of one encoded record.
pub(super) const RECORD_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Entries of the frame table in one block.
pub(super) const FRAME_BLOCK_ENTRIES: usize = 512;
/// Size of one entry of the frame table.
pub(super) const FRAME_ENTRY_BYTES: usize = 56;
/// Limit of a data frame, both compressed and not.
pub(super) const FRAME_BYTES_MAX: usize = 16 * 1024 * 1024;

/// The footer of a table of contents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Footer {
    /// Of the index, from the start of the table of contents.
    pub(super) index_offset: u64,
    pub(super) index_bytes: u64,
    pub(super) index_hash: Digest,
    pub(super) totals: Totals,
    /// Length of the common prefix that the index starts with.
    pub(super) prefix_bytes: u32,
    pub(super) record_blocks: u32,
    pub(super) frame_blocks: u32,
    pub(super) frames: u64,
    /// Length of the uncompressed tar stream.
    pub(super) stream_bytes: u64,
    /// Length of the whole table of contents, this footer included.
    pub(super) toc_bytes: u64,
}

impl Footer {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(FOOTER_BYTES);
        out.extend_from_slice(&self.index_offset.to_le_bytes());
        out.extend_from_slice(&self.index_bytes.to_le_bytes());
        out.extend_from_slice(self.index_hash.as_bytes());
        let Totals { records, files, content_bytes, whiteouts, latest_mtime } = self.totals;
        for number in [records, files, content_bytes, whiteouts] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.extend_from_slice(&latest_mtime.secs.to_le_bytes());
        for number in [latest_mtime.nanos, self.prefix_bytes, self.record_blocks, self.frame_blocks] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        for number in [self.frames, self.stream_bytes, self.toc_bytes] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        debug_assert_eq!(out.len(), FOOTER_VERSION, "the footer's layout");
        out.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
        out.extend_from_slice(&0_u32.to_le_bytes());
        let hash = Digest::of(&out);
        out.extend_from_slice(hash.as_bytes());
        out.extend_from_slice(&TOC_MAGIC);
        out
    }

    /// Decodes a footer whose magic, version and hash have been checked.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, &'static str> {
        let mut from = Decoder::new(bytes);
        Ok(Self {
            index_offset: from.u64()?,
            index_bytes: from.u64()?,
            index_hash: from.digest()?,
            totals: Totals {
                records: from.u64()?,
                files: from.u64()?,
                content_bytes: from.u64()?,
                whiteouts: from.u64()?,
                latest_mtime: Timestamp { secs: from.i64()?, nanos: from.nanos()? },
            },
            prefix_bytes: from.u32()?,
            record_blocks: from.u32()?,
            frame_blocks: from.u32()?,
            frames: from.u64()?,
            stream_bytes: from.u64()?,
            toc_bytes: from.u64()?,
        })
    }
}
