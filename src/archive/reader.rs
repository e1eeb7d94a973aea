//! Reading files out of an archive.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use rayon::prelude::*;

use crate::archive::ahead::FramesAhead;
use crate::archive::buffers::{Buffer, Buffers};
use crate::archive::cache::Cache;
use crate::archive::codec::Decoder;
use crate::archive::frames::{Frame, FrameTable};
use crate::archive::layout::{
    SEEK_ENTRY_BYTES, SEEK_FOOTER_BYTES, SEEK_FRAME_MAGIC, SEEKABLE_MAGIC, SKIPPABLE_HEADER_BYTES,
    TOC_FRAME_MAGIC,
};
use crate::archive::opened::{Opened, Opening};
use crate::archive::record::{DataRef, Extent, Record, RecordKind};
use crate::archive::toc::Toc;
use crate::archive::volume::{ReadAt, Stored, Volume};
use crate::archive::{ArchiveError, Part};
use crate::digest::Hasher;

/// Decompressed frames that are kept.
const CACHE_BYTES: usize = 16 * 1024 * 1024;
/// What holes are hashed as.
static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];

/// An archive that is open for reading, from any number of threads.
pub struct Archive {
    volume: Volume,
    toc: Toc,
    frames: FrameTable,
    cache: Cache<Buffer>,
    buffers: Buffers,
    ahead: FramesAhead,
    opened: Opened,
}

impl Archive {
    /// Opens an archive; `path` is for messages. Reads the table of contents' end and index only.
    ///
    /// # Errors
    /// [`ArchiveError`].
    pub fn open(file: File, path: PathBuf) -> Result<Self, ArchiveError> {
        Self::open_on(Arc::new(file), path)
    }

    /// As [`open`](Self::open), on any medium.
    ///
    /// # Errors
    /// [`ArchiveError`].
    pub fn open_on(source: Arc<dyn ReadAt>, path: PathBuf) -> Result<Self, ArchiveError> {
        let volume = Volume::new(source, path);
        let seek_table = SeekTable::find(&volume)?;
        let toc = Toc::open(volume.clone(), seek_table.start)?;
        if toc.frame_blocks.is_empty() {
            return Err(volume.not_an_archive("it has no data"));
        }
        if toc.start() < SKIPPABLE_HEADER_BYTES {
            return Err(volume.damaged(Part::Footer, "the table is longer than the file"));
        }
        let frames = FrameTable::new(volume.clone(), toc.start(), toc.frame_blocks.clone());
        let (cache, buffers) = (Cache::new(CACHE_BYTES), Buffers::default());
        let (ahead, opened) = (FramesAhead::default(), Opened::default());
        Ok(Self { volume, toc, frames, cache, buffers, ahead, opened })
    }

    /// Returns whether damage was found in what was read so far, by whomever.
    #[must_use]
    pub fn is_damaged(&self) -> bool {
        self.volume.is_damaged()
    }

    /// Returns the table of contents.
    #[must_use]
    pub fn toc(&self) -> &Toc {
        &self.toc
    }

    /// Reads the content of a file of this archive at `offset`; fewer bytes than `buffer` holds only at
    /// its end.
    ///
    /// # Errors
    /// [`ArchiveError`].
    pub fn read_at(&self, record: &Record, offset: u64, buffer: &mut [u8]) -> Result<usize, ArchiveError> {
        let (size_bytes, data) = self.data(record)?;
        let left = usize::try_from(size_bytes.saturating_sub(offset)).unwrap_or(usize::MAX);
        let length = buffer.len().min(left);
        let buffer = &mut buffer[..length];
        let end = offset.saturating_add(length as u64);
        let mut filled = 0;
        for (extent, stream_offset) in stored_extents(data, size_bytes) {
            let (from, to) = (extent.offset.max(offset), extent.end().min(end));
            if from >= to {
                continue;
            }
            // Both lie in the buffer's range, whose length is a usize.
            let (start, stop) = (narrow(from - offset), narrow(to - offset));
            buffer[filled..start].fill(0);
            self.read_stream(stream_offset + (from - extent.offset), &mut buffer[start..stop])?;
            filled = stop;
        }
        buffer[filled..].fill(0);
        Ok(length)
    }

    /// Notes that somebody opens a file of this archive to read it.
    pub fn note_opened(&self, record: &Record) {
        // Whoever reads is told of damage.
        let Ok((size_bytes, data)) = self.data(record) else { return };
        if let Ok(Some(frame)) = self.frames.locate(data.stream_offset) {
            let frames = size_bytes.div_ceil(frame.raw_bytes.into()).max(1);
            self.opened.note(frame.file_offset, frames, &record.path);
        }
    }

    /// Returns what was opened since this was last asked, and how many frames there are in all.
    pub fn take_opened(&self) -> (Opening, u64) {
        (self.opened.take(), self.frames.frame_count())
    }

    /// Keeps what is decompressed ahead in `file`, which is empty and nobody else's.
    pub fn keep_ahead_in(&self, file: File) {
        self.ahead.keep_in(file);
    }

    /// Returns whether [`keep_ahead_in`](Self::keep_ahead_in) was called.
    #[must_use]
    pub fn keeps_ahead(&self) -> bool {
        self.ahead.has_file()
    }

    /// Returns how many bytes [`decompress_ahead`](Self::decompress_ahead) of the same file would write: none where
    /// its frame is at hand.
    ///
    /// # Errors
    /// [`ArchiveError`].
    pub fn bytes_ahead(&self, record: &Record) -> Result<u64, ArchiveError> {
        Ok(self.frame_ahead(record)?.map_or(0, |frame| frame.raw_bytes.into()))
    }

    /// Decompresses the frame in which a file begins, unless it is at hand.
    ///
    /// # Errors
    /// [`ArchiveError`].
    pub fn decompress_ahead(&self, record: &Record) -> Result<(), ArchiveError> {
        let Some(frame) = self.frame_ahead(record)? else { return Ok(()) };
        let raw = self.load(&frame)?;
        let failed = |source| ArchiveError::Output { record: record.path.clone(), source };
        self.ahead.add(frame.file_offset, &raw).map_err(failed)
    }

    /// Returns the frame in which a file begins; `None` where somebody has read it or it was decompressed ahead.
    fn frame_ahead(&self, record: &Record) -> Result<Option<Frame>, ArchiveError> {
        let (_, data) = self.data(record)?;
        let frame = self.frames.locate(data.stream_offset)?;
        let is_new = |frame: &Frame| {
            !self.opened.contains(frame.file_offset) && !self.ahead.contains(frame.file_offset)
        };
        Ok(frame.filter(is_new))
    }

    /// Writes the content of a file of this archive to `out`, an empty file, keeps its holes, and compares
    /// its hash.
    ///
    /// # Errors
    /// [`ArchiveError`]; then `out` holds something useless.
    pub fn copy_to(&self, record: &Record, out: &File) -> Result<(), ArchiveError> {
        let failed = |source| ArchiveError::Output { record: record.path.clone(), source };
        // A size that was declared by somebody hostile costs no space: it is a hole until written.
        let (size_bytes, data) = self.data(record)?;
        if data.extents.is_some() {
            out.set_len(size_bytes).map_err(failed)?;
        }
        self.each_content(record, |offset, piece| out.write_all_at(piece, offset).map_err(failed))
    }

    /// Reads everything and compares every hash.
    ///
    /// # Errors
    /// [`ArchiveError`]: the first damage found.
    pub fn verify(&self) -> Result<(), ArchiveError> {
        self.toc.verify()?;
        let mut frames = Vec::new();
        for number in 0..self.frames.block_count() {
            let block = self.frames.block(number)?;
            block.par_iter().try_for_each(|frame| self.load(frame).map(drop))?;
            frames.extend(block.iter().map(|frame| (frame.stored_bytes, frame.raw_bytes)));
        }
        SeekTable::find(&self.volume)?.verify(&self.volume, &self.toc, &frames)?;
        for record in self.toc.iter() {
            let record = record?;
            match &record.kind {
                RecordKind::File { link_to: Some(target), size_bytes, content, data } => {
                    let found = self.toc.find(target)?.map(|target| target.kind);
                    let same = matches!(
                        &found,
                        Some(RecordKind::File { size_bytes: s, content: c, data: d, link_to: None })
                            if s == size_bytes && c == content && d == data
                    );
                    if !same {
                        let problem = format!("{target:?}, which it is a link to, is another file");
                        return Err(self.volume.damaged(Part::Content(record.path), problem));
                    }
                }
                RecordKind::File { link_to: None, .. } => self.each_content(&record, |_, _| Ok(()))?,
                RecordKind::Dir
                | RecordKind::ImpliedDir
                | RecordKind::Symlink { .. }
                | RecordKind::Absent => {}
            }
        }
        Ok(())
    }

    #[cfg(test)]
    pub(super) fn frames_for_tests(&self) -> Result<Vec<Frame>, ArchiveError> {
        let blocks = (0..self.frames.block_count()).map(|number| self.frames.block(number));
        Ok(blocks.collect::<Result<Vec<_>, _>>()?.iter().flat_map(|block| block.to_vec()).collect())
    }

    fn data<'a>(&self, record: &'a Record) -> Result<(u64, &'a DataRef), ArchiveError> {
        match &record.kind {
            RecordKind::File { size_bytes, data: Some(data), .. } => Ok((*size_bytes, data)),
            RecordKind::File { data: None, .. }
            | RecordKind::Dir
            | RecordKind::ImpliedDir
            | RecordKind::Symlink { .. }
            | RecordKind::Absent => {
                Err(ArchiveError::NoContent { path: self.volume.path().clone(), record: record.path.clone() })
            }
        }
    }

    /// Hands out all data of a file with its offsets, in order, and compares the hash at the end.
    fn each_content(
        &self,
        record: &Record,
        mut each: impl FnMut(u64, &[u8]) -> Result<(), ArchiveError>,
    ) -> Result<(), ArchiveError> {
        let (size_bytes, data) = self.data(record)?;
        let mut hasher = Hasher::default();
        let mut position = 0;
        for (extent, stream_offset) in stored_extents(data, size_bytes) {
            hash_hole(&mut hasher, extent.offset - position);
            position = extent.offset;
            self.each_piece(stream_offset, extent.length_bytes, |piece| {
                hasher.update(piece);
                each(position, piece)?;
                position += piece.len() as u64;
                Ok(())
            })?;
        }
        hash_hole(&mut hasher, size_bytes - position);
        let RecordKind::File { content, .. } = &record.kind else { return Ok(()) };
        if *content == Some(hasher.finish()) {
            return Ok(());
        }
        Err(self.volume.damaged(Part::Content(record.path.clone()), "its hash is wrong"))
    }

    /// Fills `buffer` from the tar stream.
    fn read_stream(&self, stream_offset: u64, buffer: &mut [u8]) -> Result<(), ArchiveError> {
        if self.ahead.has_file()
            && let Some(frame) = self.frames.locate(stream_offset)?
            && stream_offset + buffer.len() as u64 <= frame.stream_end()
            && self.ahead.read(frame.file_offset, stream_offset - frame.stream_offset, buffer)
        {
            return Ok(());
        }
        let mut at = 0;
        self.each_piece(stream_offset, buffer.len() as u64, |piece| {
            buffer[at..at + piece.len()].copy_from_slice(piece);
            at += piece.len();
            Ok(())
        })
    }

    /// Hands out a range of the tar stream in pieces.
    fn each_piece(
        &self,
        mut stream_offset: u64,
        mut length_bytes: u64,
        mut each: impl FnMut(&[u8]) -> Result<(), ArchiveError>,
    ) -> Result<(), ArchiveError> {
        while length_bytes > 0 {
            let frame = self.frames.locate(stream_offset)?.ok_or_else(|| {
                let problem = format!("a record refers to offset {stream_offset}, which no frame has");
                self.volume.damaged(Part::Index, problem)
            })?;
            let raw = self.cache.get(frame.file_offset, || {
                let raw = self.load(&frame)?;
                let cost_bytes = raw.len();
                Ok((raw, cost_bytes))
            })?;
            let from = narrow(stream_offset - frame.stream_offset);
            // `locate` has found the offset inside the frame, so this is never empty. Two entries of a
            // hostile table may disagree on one frame's size: no index is trusted.
            let piece = raw.get(from..).unwrap_or_default();
            let piece = &piece[..piece.len().min(narrow(length_bytes))];
            if piece.is_empty() {
                let part = Part::Frame(frame.file_offset);
                return Err(self.volume.damaged(part, "it is shorter than the frame table says"));
            }
            each(piece)?;
            stream_offset += piece.len() as u64;
            length_bytes -= piece.len() as u64;
        }
        Ok(())
    }

    fn load(&self, frame: &Frame) -> Result<Buffer, ArchiveError> {
        let raw_bytes = frame.raw_bytes as usize;
        let stored = Stored {
            offset: frame.file_offset,
            length_bytes: frame.stored_bytes as usize,
            hash: &frame.hash,
            raw_bytes,
        };
        let mut raw = self.buffers.take(raw_bytes);
        self.volume.read_compressed(&Part::Frame(frame.file_offset), stored, raw.bytes_mut())?;
        Ok(raw)
    }
}

/// The data of a file with where each range starts in the tar stream.
fn stored_extents(data: &DataRef, size_bytes: u64) -> impl Iterator<Item = (Extent, u64)> {
    let dense =
        (data.extents.is_none() && size_bytes > 0).then_some(Extent { offset: 0, length_bytes: size_bytes });
    let mut stream_offset = data.stream_offset;
    data.extents.iter().flatten().copied().chain(dense).map(move |extent| {
        let start = stream_offset;
        stream_offset = stream_offset.saturating_add(extent.length_bytes);
        (extent, start)
    })
}

/// Hashes the zeros that a hole reads as.
pub(super) fn hash_hole(hasher: &mut Hasher, mut length_bytes: u64) {
    while length_bytes > 0 {
        let piece = &ZEROS[..ZEROS.len().min(narrow(length_bytes))];
        hasher.update(piece);
        length_bytes -= piece.len() as u64;
    }
}

/// Narrows where a larger number is as good as the largest.
fn narrow(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

/// Where the seek table at the end of the file is.
struct SeekTable {
    /// Of its skippable frame, which is the end of the table of contents.
    start: u64,
    frames: u32,
}

impl SeekTable {
    fn find(volume: &Volume) -> Result<Self, ArchiveError> {
        let size_bytes = volume.size_bytes()?;
        let footer_start = size_bytes
            .checked_sub(SEEK_FOOTER_BYTES)
            .ok_or_else(|| volume.not_an_archive("it is too short for a seek table"))?;
        let footer = volume.read(Part::SeekTable, footer_start, narrow(SEEK_FOOTER_BYTES))?;
        let mut from = Decoder::new(&footer);
        let (frames, descriptor, magic) = (from.u32(), from.u8(), from.u32());
        if magic != Ok(SEEKABLE_MAGIC) {
            return Err(volume.not_an_archive("it does not end with a seek table"));
        }
        let (Ok(frames), Ok(0)) = (frames, descriptor) else {
            return Err(volume.damaged(Part::SeekTable, "it has entries of an unknown form"));
        };
        let entries = u64::from(frames) * SEEK_ENTRY_BYTES;
        let start = footer_start
            .checked_sub(entries + SKIPPABLE_HEADER_BYTES)
            .ok_or_else(|| volume.damaged(Part::SeekTable, format!("it cannot have {frames} entries")))?;
        Ok(Self { start, frames })
    }

    /// Compares the table, which only other tools use, with what it should be.
    fn verify(&self, volume: &Volume, toc: &Toc, frames: &[(u32, u32)]) -> Result<(), ArchiveError> {
        let toc_bytes = toc.footer().toc_bytes;
        let toc_header = volume.read(
            Part::Footer,
            toc.start() - SKIPPABLE_HEADER_BYTES,
            narrow(SKIPPABLE_HEADER_BYTES),
        )?;
        if toc_header != skippable_header(TOC_FRAME_MAGIC, toc_bytes) {
            return Err(volume.damaged(Part::Footer, "its frame has a wrong header"));
        }
        let expected = encode_seek_table(frames, toc_bytes);
        let length = narrow(volume.size_bytes()?.saturating_sub(self.start));
        if self.frames as usize != frames.len() + 1
            || volume.read(Part::SeekTable, self.start, length)? != expected
        {
            return Err(volume.damaged(Part::SeekTable, "it does not match the frames"));
        }
        Ok(())
    }
}

/// Returns the seek table of data frames (compressed and decompressed size) and the table of contents.
pub(super) fn encode_seek_table(frames: &[(u32, u32)], toc_bytes: u64) -> Vec<u8> {
    let entries = frames.len() + 1;
    let body = entries as u64 * SEEK_ENTRY_BYTES + SEEK_FOOTER_BYTES;
    let mut out = skippable_header(SEEK_FRAME_MAGIC, body);
    // A packer refuses what would not fit these.
    let saturate = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
    let toc = (saturate(toc_bytes + SKIPPABLE_HEADER_BYTES), 0);
    for (stored_bytes, raw_bytes) in frames.iter().chain([&toc]) {
        out.extend_from_slice(&stored_bytes.to_le_bytes());
        out.extend_from_slice(&raw_bytes.to_le_bytes());
    }
    out.extend_from_slice(&saturate(entries as u64).to_le_bytes());
    out.push(0);
    out.extend_from_slice(&SEEKABLE_MAGIC.to_le_bytes());
    out
}

/// Returns the header of a skippable frame.
pub(super) fn skippable_header(magic: u32, length_bytes: u64) -> Vec<u8> {
    let length = u32::try_from(length_bytes).unwrap_or(u32::MAX);
    [magic.to_le_bytes(), length.to_le_bytes()].concat()
}

impl std::fmt::Debug for Archive {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Archive").finish_non_exhaustive()
    }
}
