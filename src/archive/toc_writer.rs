//! Writing a table of contents, for an archive or alone.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rayon::prelude::*;
use thiserror::Error;
use zstd::bulk::Compressor;

use crate::archive::codec;
use crate::archive::frames::Frame;
use crate::archive::layout::{BLOCK_BYTES, FOOTER_BYTES, FRAME_BLOCK_ENTRIES, FRAME_ENTRY_BYTES, Footer};
use crate::archive::record::{Key, Record, RecordKind};
use crate::archive::toc::Totals;
use crate::digest::Digest;
use crate::path::{RelPath, RelPathBuf};

/// Compression level of record blocks: they are small and read often.
const BLOCK_LEVEL: i32 = 3;

/// Why a manifest cannot be written.
#[derive(Debug, Error)]
pub enum ManifestError {
    /// The operating system refused.
    #[error("the manifest cannot be written")]
    Io(#[from] io::Error),
    /// A record cannot be held.
    #[error("{path:?} cannot be held in a manifest: {problem}")]
    Record {
        /// The record.
        path: RelPathBuf,
        /// Why not.
        problem: &'static str,
    },
}

/// Writes `records` to the start of `file`, an empty file, and returns the number of bytes.
///
/// # Errors
/// [`ManifestError`]; two records of one path are one.
pub fn write_manifest(file: &File, records: impl IntoIterator<Item = Record>) -> Result<u64, ManifestError> {
    let mut records: Vec<_> = records.into_iter().collect();
    records.par_sort_by(|a, b| a.key().cmp(&b.key()));
    let mut writer = TocWriter::default();
    writer
        .extend(&records)
        .map_err(|(path, problem)| ManifestError::Record { path: path.to_owned(), problem })?;
    let bytes = writer.finish()?;
    file.write_all_at(&bytes, 0)?;
    Ok(bytes.len() as u64)
}

/// Records that are encoded on all threads at a time.
const ENCODED_AT_A_TIME: usize = 8192;

/// Blocks that are compressed on all threads at a time.
const BLOCKS_AT_A_TIME: usize = 64;

/// Collects records and frames into the bytes of a table of contents.
#[derive(Default)]
pub(super) struct TocWriter {
    /// Compressed blocks, one after the other.
    out: Vec<u8>,
    block: OpenBlock,
    /// Blocks that are full and not compressed yet.
    full: Vec<FullBlock>,
    /// Index entries of the finished record blocks, encoded.
    index: Vec<u8>,
    record_blocks: u32,
    frames: Vec<Frame>,
    totals: Totals,
    /// What all records so far have in common; `None` before the first.
    prefix: Option<RelPathBuf>,
    last: Option<RelPathBuf>,
}

struct FullBlock {
    first: RelPathBuf,
    raw: Vec<u8>,
}

/// Encoded records that do not make a block yet.
#[derive(Default)]
struct OpenBlock {
    first: Option<RelPathBuf>,
    starts: Vec<u32>,
    records: Vec<u8>,
}

impl TocWriter {
    /// Adds records in the order of their keys, or says which cannot be held.
    pub(super) fn extend<'r>(&mut self, records: &'r [Record]) -> Result<(), (&'r RelPath, &'static str)> {
        for records in records.chunks(ENCODED_AT_A_TIME) {
            let encoded: Vec<_> = records.par_iter().map(codec::encode).collect();
            for (record, encoded) in records.iter().zip(encoded) {
                let pushed = encoded.and_then(|encoded| self.push(record, &encoded));
                pushed.map_err(|problem| (&*record.path, problem))?;
            }
        }
        Ok(())
    }

    fn push(&mut self, record: &Record, encoded: &[u8]) -> Result<(), &'static str> {
        if record.path.is_root() {
            return Err("the root cannot be a record");
        }
        if self.last.as_ref().is_some_and(|last| key_order(last, &record.path).is_ge()) {
            return Err("it is there twice");
        }
        if !self.block.records.is_empty() && self.block.records.len() + encoded.len() > BLOCK_BYTES {
            self.finish_block()?;
        }
        let start = u32::try_from(self.block.records.len()).map_err(|_| "a block is too large")?;
        self.block.starts.push(start);
        self.block.records.extend_from_slice(encoded);
        self.block.first.get_or_insert_with(|| record.path.clone());
        self.count(record);
        self.last = Some(record.path.clone());
        Ok(())
    }

    pub(super) fn push_frame(&mut self, frame: Frame) {
        self.frames.push(frame);
    }

    fn count(&mut self, record: &Record) {
        self.totals.records += 1;
        match &record.kind {
            RecordKind::File { size_bytes, link_to, .. } => {
                self.totals.files += 1;
                if link_to.is_none() {
                    self.totals.content_bytes = self.totals.content_bytes.saturating_add(*size_bytes);
                }
            }
            RecordKind::Absent => self.totals.whiteouts += 1,
            RecordKind::Dir | RecordKind::ImpliedDir | RecordKind::Symlink { .. } => {}
        }
        let dir = match record.kind {
            RecordKind::ImpliedDir => return,
            RecordKind::Dir => &record.path,
            RecordKind::File { .. } | RecordKind::Symlink { .. } | RecordKind::Absent => {
                record.path.parent().unwrap_or(RelPath::ROOT)
            }
        };
        self.prefix = Some(match &self.prefix {
            Some(prefix) => common_ancestor(prefix, dir).to_owned(),
            None => dir.to_owned(),
        });
        if !matches!(record.kind, RecordKind::Absent) {
            self.totals.latest_mtime = self.totals.latest_mtime.max(record.mtime);
        }
    }

    fn finish_block(&mut self) -> Result<(), &'static str> {
        let block = std::mem::take(&mut self.block);
        let Some(first) = block.first else { return Ok(()) };
        let too_large = |_| "a block is too large";
        let header = 4 + 4 * block.starts.len();
        let mut raw = Vec::with_capacity(header + block.records.len());
        raw.extend_from_slice(&u32::try_from(block.starts.len()).map_err(too_large)?.to_le_bytes());
        for start in block.starts {
            raw.extend_from_slice(&(start + u32::try_from(header).map_err(too_large)?).to_le_bytes());
        }
        raw.extend_from_slice(&block.records);
        self.full.push(FullBlock { first, raw });
        if self.full.len() < BLOCKS_AT_A_TIME { Ok(()) } else { self.compress_blocks() }
    }

    fn compress_blocks(&mut self) -> Result<(), &'static str> {
        let blocks = std::mem::take(&mut self.full);
        let failed = |_| "a block cannot be compressed";
        // Making a compressor takes longer than a block does.
        let new = || Compressor::new(BLOCK_LEVEL).map_err(failed);
        let compress = |compressor: &mut Result<Compressor<'static>, _>, block: FullBlock| {
            let stored = compressor.as_mut().map_err(|error| *error)?.compress(&block.raw).map_err(failed)?;
            let hash = Digest::of(&stored);
            Ok::<_, &'static str>((block, stored, hash))
        };
        let compressed: Vec<_> =
            blocks.into_par_iter().with_min_len(8).map_init(new, compress).collect::<Result<_, _>>()?;
        for (FullBlock { first, raw }, stored, hash) in compressed {
            self.index.extend_from_slice(&(self.out.len() as u64).to_le_bytes());
            for length in [stored.len(), raw.len()] {
                let length = u32::try_from(length).map_err(|_| "a block is too large")?;
                self.index.extend_from_slice(&length.to_le_bytes());
            }
            self.index.extend_from_slice(hash.as_bytes());
            codec::put_key(&mut self.index, Key::of(&first))?;
            self.out.extend_from_slice(&stored);
            self.record_blocks += 1;
        }
        Ok(())
    }

    /// Returns the table: blocks, index, footer.
    pub(super) fn finish(mut self) -> io::Result<Vec<u8>> {
        self.finish_block().and_then(|()| self.compress_blocks()).map_err(io::Error::other)?;
        let prefix = self.prefix.take().unwrap_or_default();
        let mut index = prefix.as_bytes().to_vec();
        let prefix_bytes = narrow(index.len())?;
        index.append(&mut self.index);
        let mut frame_blocks = 0;
        for frames in self.frames.chunks(FRAME_BLOCK_ENTRIES) {
            let mut block = Vec::with_capacity(frames.len() * FRAME_ENTRY_BYTES);
            frames.iter().for_each(|frame| frame.encode(&mut block));
            index.extend_from_slice(&(self.out.len() as u64).to_le_bytes());
            index.extend_from_slice(&narrow(frames.len())?.to_le_bytes());
            index.extend_from_slice(&frames[0].stream_offset.to_le_bytes());
            index.extend_from_slice(Digest::of(&block).as_bytes());
            self.out.extend_from_slice(&block);
            frame_blocks += 1;
        }
        let footer = Footer {
            index_offset: self.out.len() as u64,
            index_bytes: index.len() as u64,
            index_hash: Digest::of(&index),
            totals: self.totals,
            prefix_bytes,
            record_blocks: self.record_blocks,
            frame_blocks,
            frames: self.frames.len() as u64,
            stream_bytes: self.frames.last().map_or(0, Frame::stream_end),
            toc_bytes: (self.out.len() + index.len() + FOOTER_BYTES) as u64,
        };
        self.out.append(&mut index);
        self.out.extend_from_slice(&footer.encode());
        Ok(self.out)
    }
}

fn key_order(a: &RelPath, b: &RelPath) -> std::cmp::Ordering {
    Key::of(a).cmp(&Key::of(b))
}

fn narrow(length: usize) -> io::Result<u32> {
    u32::try_from(length).map_err(|_| io::Error::other("the table of contents is too large"))
}

fn common_ancestor<'a>(a: &'a RelPath, b: &RelPath) -> &'a RelPath {
    if b.starts_with(a) {
        return a;
    }
    a.ancestors().find(|ancestor| b.starts_with(ancestor)).unwrap_or(RelPath::ROOT)
}
