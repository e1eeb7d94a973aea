//! Frames and records on their way into the file.

use std::collections::HashMap;
use std::io;

use rayon::prelude::*;

use crate::archive::frames::Frame;
use crate::archive::layout::{FRAME_BYTES_MAX, SKIPPABLE_HEADER_BYTES, TOC_FRAME_MAGIC};
use crate::archive::pack::{PackError, PackProgress, Packed, Piece, Stored, WriteBehind};
use crate::archive::reader::{encode_seek_table, skippable_header};
use crate::archive::record::{Record, RecordKind};
use crate::archive::toc_writer::TocWriter;
use crate::path::RelPathBuf;

/// Writes pieces in order and gives their records the final offsets.
pub(super) struct Sink<'a> {
    out: WriteBehind<'a>,
    progress: PackProgress<'a>,
    toc: TocWriter,
    /// In the order of the stream, which is not that of the table of contents.
    records: Vec<Record>,
    /// Compressed and uncompressed sizes, for the seek table.
    frames: Vec<(u32, u32)>,
    file_offset: u64,
    stream_offset: u64,
    base: u64,
    /// Files that hard links refer to, and what their records say.
    carriers: HashMap<RelPathBuf, Option<RecordKind>>,
    packed: Packed,
}

impl<'a> Sink<'a> {
    pub(super) fn new(out: WriteBehind<'a>, progress: PackProgress<'a>) -> Self {
        Self {
            out,
            progress,
            toc: TocWriter::default(),
            records: Vec::new(),
            frames: Vec::new(),
            file_offset: 0,
            stream_offset: 0,
            base: 0,
            carriers: HashMap::new(),
            packed: Packed::default(),
        }
    }

    pub(super) fn write(&mut self, piece: Piece) -> Result<(), PackError> {
        if piece.is_base {
            self.base = self.stream_offset;
        }
        if let Some(Stored { bytes: stored, raw_bytes, hash }) = piece.frame {
            let size = |bytes: usize| {
                let fits = u32::try_from(bytes).ok().filter(|_| bytes <= FRAME_BYTES_MAX);
                fits.ok_or_else(|| PackError::Output(io::Error::other("a frame is too large")))
            };
            let (stored_bytes, raw_bytes) = (size(stored.len())?, size(raw_bytes)?);
            self.out.write_all_at(&stored, self.file_offset).map_err(PackError::Output)?;
            self.toc.push_frame(Frame {
                stream_offset: self.stream_offset,
                file_offset: self.file_offset,
                raw_bytes,
                stored_bytes,
                hash,
            });
            self.frames.push((stored_bytes, raw_bytes));
            self.file_offset += u64::from(stored_bytes);
            self.stream_offset += u64::from(raw_bytes);
        }
        for path in piece.linked {
            self.carriers.insert(path, None);
        }
        for record in piece.records {
            self.push(record);
        }
        (self.progress)(piece.files, piece.bytes);
        Ok(())
    }

    fn push(&mut self, mut record: Record) {
        self.packed.records += 1;
        if let RecordKind::File { size_bytes, content, data, link_to } = &mut record.kind {
            self.packed.files += 1;
            if let Some(target) = link_to {
                if let Some(Some(RecordKind::File { size_bytes: size, content: hash, data: place, .. })) =
                    self.carriers.get(target)
                {
                    (*size_bytes, *content, *data) = (*size, *hash, place.clone());
                }
            } else {
                self.packed.content_bytes += *size_bytes;
                if let Some(data) = data {
                    data.stream_offset += self.base;
                }
            }
        }
        if let Some(carrier) = self.carriers.get_mut(&record.path) {
            *carrier = Some(record.kind.clone());
        }
        self.records.push(record);
    }

    pub(super) fn finish(mut self) -> Result<Packed, PackError> {
        self.records.par_sort_unstable_by(|a, b| a.key().cmp(&b.key()));
        for record in &self.records {
            self.toc
                .push(record)
                .map_err(|problem| PackError::TooLarge { path: record.path.clone(), problem })?;
        }
        let toc = std::mem::take(&mut self.toc).finish().map_err(PackError::Output)?;
        let toc_bytes = toc.len() as u64;
        if toc_bytes + SKIPPABLE_HEADER_BYTES > u32::MAX.into() {
            return Err(PackError::Output(io::Error::other("the table of contents exceeds 4 GiB")));
        }
        let tail =
            [skippable_header(TOC_FRAME_MAGIC, toc_bytes), toc, encode_seek_table(&self.frames, toc_bytes)]
                .concat();
        self.out.write_all_at(&tail, self.file_offset).map_err(PackError::Output)?;
        self.packed.archive_bytes = self.file_offset + tail.len() as u64;
        Ok(self.packed)
    }
}
