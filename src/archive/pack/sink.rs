//! Frames and records on their way into the file.

use std::collections::HashMap;
use std::io;

use rayon::prelude::*;

use crate::archive::frames::Frame;
use crate::archive::layout::{SKIPPABLE_HEADER_BYTES, TOC_FRAME_MAGIC};
use crate::archive::pack::ahead::{PlacedFrame, Unit};
use crate::archive::pack::{PackError, PackProgress, Packed, Piece, Stored, WriteBehind, frame_bytes};
use crate::archive::reader::{encode_seek_table, skippable_header};
use crate::archive::record::{Record, RecordKind};
use crate::archive::toc_writer::TocWriter;
use crate::path::RelPathBuf;

/// Writes pieces in order and gives their records the final offsets.
pub(super) struct Sink<'a> {
    out: WriteBehind,
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
    pub(super) fn new(out: WriteBehind, progress: PackProgress<'a>) -> Self {
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
            let size = |bytes| frame_bytes(bytes).map_err(PackError::Output);
            let frame = PlacedFrame { stored_bytes: size(stored.len())?, raw_bytes: size(raw_bytes)?, hash };
            self.out.write_all_at(&stored, self.file_offset).map_err(PackError::Output)?;
            self.place(&frame);
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

    /// Makes room for what is known to come.
    pub(super) fn reserve(&mut self, records: usize) {
        self.records.reserve(records);
    }

    /// Takes what is in the file already, behind all that was written so far.
    pub(super) fn adopt(&mut self, unit: Unit) {
        debug_assert_eq!(unit.start, self.file_offset, "units follow each other");
        self.base = self.stream_offset;
        unit.frames.iter().for_each(|frame| self.place(frame));
        unit.records.into_iter().for_each(|record| self.push(record));
        (self.progress)(unit.files, unit.bytes);
    }

    /// Notes a frame that is at the end of the file.
    fn place(&mut self, frame: &PlacedFrame) {
        let PlacedFrame { stored_bytes, raw_bytes, hash } = *frame;
        let (stream_offset, file_offset) = (self.stream_offset, self.file_offset);
        self.toc.push_frame(Frame { stream_offset, file_offset, raw_bytes, stored_bytes, hash });
        self.frames.push((stored_bytes, raw_bytes));
        self.file_offset += u64::from(stored_bytes);
        self.stream_offset += u64::from(raw_bytes);
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
        self.toc
            .extend(&self.records)
            .map_err(|(path, problem)| PackError::TooLarge { path: path.to_owned(), problem })?;
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
