//! The frame table: where each piece of the tar stream is.

use std::sync::Arc;

use crate::archive::cache::Cache;
use crate::archive::codec::Decoder;
use crate::archive::layout::{FRAME_BLOCK_ENTRIES, FRAME_BYTES_MAX, FRAME_ENTRY_BYTES};
use crate::archive::volume::Volume;
use crate::archive::{ArchiveError, Part};
use crate::digest::Digest;

/// Decoded blocks of the table that are kept: 512 frames each.
const CACHE_BYTES: usize = 512 * 1024;

/// One zstd frame of the tar stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Frame {
    /// Of its first byte in the uncompressed tar stream.
    pub(super) stream_offset: u64,
    /// In the file.
    pub(super) file_offset: u64,
    pub(super) raw_bytes: u32,
    pub(super) stored_bytes: u32,
    /// Of the stored bytes.
    pub(super) hash: Digest,
}

impl Frame {
    pub(super) fn stream_end(&self) -> u64 {
        self.stream_offset.saturating_add(self.raw_bytes.into())
    }

    pub(super) fn file_end(&self) -> u64 {
        self.file_offset.saturating_add(self.stored_bytes.into())
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.stream_offset.to_le_bytes());
        out.extend_from_slice(&self.file_offset.to_le_bytes());
        out.extend_from_slice(&self.raw_bytes.to_le_bytes());
        out.extend_from_slice(&self.stored_bytes.to_le_bytes());
        out.extend_from_slice(self.hash.as_bytes());
    }

    fn decode(from: &mut Decoder<'_>) -> Result<Self, &'static str> {
        Ok(Self {
            stream_offset: from.u64()?,
            file_offset: from.u64()?,
            raw_bytes: from.u32()?,
            stored_bytes: from.u32()?,
            hash: from.digest()?,
        })
    }
}

/// Index entry of one block of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FrameBlock {
    /// In the table of contents.
    pub(super) offset: u64,
    pub(super) frames: u32,
    pub(super) first_stream_offset: u64,
    pub(super) hash: Digest,
}

impl FrameBlock {
    pub(super) fn decode(from: &mut Decoder<'_>) -> Result<Self, &'static str> {
        let block = Self {
            offset: from.u64()?,
            frames: from.u32()?,
            first_stream_offset: from.u64()?,
            hash: from.digest()?,
        };
        if block.frames == 0 || block.frames as usize > FRAME_BLOCK_ENTRIES {
            return Err("a block of the frame table has an invalid length");
        }
        Ok(block)
    }
}

/// The frame table of an archive, read block by block when needed.
pub(super) struct FrameTable {
    volume: Volume,
    /// Of the table of contents in the file; frames end before it.
    toc_start: u64,
    blocks: Vec<FrameBlock>,
    cache: Cache<Vec<Frame>>,
}

impl FrameTable {
    pub(super) fn new(volume: Volume, toc_start: u64, blocks: Vec<FrameBlock>) -> Self {
        Self { volume, toc_start, blocks, cache: Cache::new(CACHE_BYTES) }
    }

    pub(super) fn block_count(&self) -> usize {
        self.blocks.len()
    }

    pub(super) fn frame_count(&self) -> u64 {
        self.blocks.iter().map(|block| u64::from(block.frames)).sum()
    }

    /// Returns the frame that holds a byte of the tar stream, or `None` behind its end.
    pub(super) fn locate(&self, stream_offset: u64) -> Result<Option<Frame>, ArchiveError> {
        let behind = self.blocks.partition_point(|block| block.first_stream_offset <= stream_offset);
        let Some(number) = behind.checked_sub(1) else { return Ok(None) };
        let frames = self.block(number)?;
        let behind = frames.partition_point(|frame| frame.stream_offset <= stream_offset);
        let frame = behind.checked_sub(1).and_then(|i| frames.get(i));
        Ok(frame.filter(|frame| stream_offset < frame.stream_end()).copied())
    }

    /// Returns one block of the table, checked.
    pub(super) fn block(&self, number: usize) -> Result<Arc<Vec<Frame>>, ArchiveError> {
        self.cache.get(number as u64, || {
            let frames = self.load(number)?;
            let cost_bytes = frames.len() * size_of::<Frame>();
            Ok((frames, cost_bytes))
        })
    }

    fn load(&self, number: usize) -> Result<Vec<Frame>, ArchiveError> {
        let part = Part::FrameBlock(number);
        let block = &self.blocks[number];
        let offset = self.toc_start.saturating_add(block.offset);
        let length_bytes = block.frames as usize * FRAME_ENTRY_BYTES;
        let bytes = self.volume.read_hashed(part.clone(), offset, length_bytes, &block.hash)?;
        let mut from = Decoder::new(&bytes);
        let mut frames: Vec<Frame> = Vec::with_capacity(block.frames as usize);
        let mut stream_offset = block.first_stream_offset;
        while !from.is_empty() {
            let frame =
                Frame::decode(&mut from).map_err(|problem| self.volume.damaged(part.clone(), problem))?;
            let sane = frame.stream_offset == stream_offset
                && (1..=FRAME_BYTES_MAX).contains(&(frame.raw_bytes as usize))
                && (1..=FRAME_BYTES_MAX).contains(&(frame.stored_bytes as usize))
                && frame.file_end() <= self.toc_start;
            if !sane {
                let problem = format!("the entry of the frame at offset {} is invalid", frame.file_offset);
                return Err(self.volume.damaged(part, problem));
            }
            stream_offset = frame.stream_end();
            frames.push(frame);
        }
        Ok(frames)
    }
}
