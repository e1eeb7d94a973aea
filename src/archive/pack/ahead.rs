//! Packing files before all that is to be packed is known.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::archive::pack::entry::pack_small;
use crate::archive::pack::large::pack_large;
use crate::archive::pack::{Compressors, PackError, Packer, Piece, Stored, WriteBehind};
use crate::archive::plan::{Meta, Planned, What};
use crate::archive::record::Record;
use crate::archive::source::FileSource;
use crate::digest::Digest;
use crate::path::{RelPath, RelPathBuf};

/// What is copied at a time where something before it is left out.
const MOVE_BYTES: usize = 1 << 20;

/// Compresses files one after the other, on the thread that asks for it.
pub struct AheadPacker {
    packer: Packer,
    compressors: Compressors,
}

/// A compressed piece of an archive, to be given to [`PackedAhead::append`].
pub struct AheadPiece(Piece);

/// The start of an archive that is not complete yet: units of frames that stay or go as a whole.
///
/// # Guarantees
/// - Memory is that of the records of what is packed.
pub struct PackedAhead {
    out: File,
    behind: WriteBehind,
    units: Vec<Unit>,
    /// What was appended since the last unit was closed.
    open: Unit,
}

/// Frames that hold whole files, one after the other in the archive.
#[derive(Default)]
pub(super) struct Unit {
    /// Of its first frame, in the file.
    pub(super) start: u64,
    pub(super) frames: Vec<PlacedFrame>,
    /// Their data offsets count from the unit's start in the tar stream.
    pub(super) records: Vec<Record>,
    pub(super) files: u64,
    pub(super) bytes: u64,
}

pub(super) struct PlacedFrame {
    pub(super) stored_bytes: u32,
    pub(super) raw_bytes: u32,
    pub(super) hash: Digest,
}

impl AheadPacker {
    /// Makes a packer that compresses as `packer` does.
    #[must_use]
    pub fn new(packer: &Packer) -> Self {
        let packer = packer.bounded();
        Self { compressors: Compressors::new(packer.level), packer }
    }

    /// Returns whether a file makes a unit of its own.
    #[must_use]
    pub fn is_large(&self, size_bytes: u64) -> bool {
        usize::try_from(size_bytes).map_or(true, |size| size > self.packer.split_bytes)
    }

    /// Returns up to how many bytes small files are packed together, each counted with what
    /// [`entry_bytes`](Self::entry_bytes) says.
    #[must_use]
    pub fn pack_bytes(&self) -> usize {
        self.packer.pack_bytes
    }

    /// Returns how much a small file takes of [`pack_bytes`](Self::pack_bytes).
    #[must_use]
    pub fn entry_bytes(path: &RelPath, meta: &Meta, size_bytes: u64) -> usize {
        super::overhead_bytes(path, meta, 0).saturating_add(usize::try_from(size_bytes).unwrap_or(usize::MAX))
    }

    /// Packs files into one unit, whose pieces `append` takes: several small ones, or a large one.
    ///
    /// # Errors
    /// [`PackError`], and those of `append`; what was appended is to be discarded then.
    pub fn pack(
        &mut self,
        files: Vec<(RelPathBuf, Meta, Box<dyn FileSource>)>,
        mut append: impl FnMut(AheadPiece) -> io::Result<()>,
    ) -> Result<(), PackError> {
        let compressors = &self.compressors;
        let mut submit = |raw: Vec<u8>, piece: Piece| {
            append(AheadPiece(compressors.compress(&raw, piece)?)).map_err(PackError::Output)
        };
        let mut raw = Vec::new();
        let mut piece = Piece { is_base: true, ..Piece::default() };
        for (path, meta, source) in files {
            let large = self.is_large(source.size_bytes());
            let entry = Planned { path, meta: meta.settled(), what: What::File { source, names: 1 } };
            if large {
                pack_large(&entry, self.packer.split_bytes, &mut submit)?;
            } else {
                pack_small(entry, &mut raw, &mut piece)?;
            }
        }
        if raw.is_empty() { Ok(()) } else { submit(raw, piece) }
    }
}

impl PackedAhead {
    /// Begins an archive in `out`, an empty file.
    ///
    /// # Errors
    /// Those of `dup(2)`.
    pub fn new(out: &File) -> io::Result<Self> {
        Ok(Self {
            out: out.try_clone()?,
            behind: WriteBehind::new(out)?,
            units: Vec::new(),
            open: Unit::default(),
        })
    }

    /// Returns how many bytes are packed.
    #[must_use]
    pub fn packed_bytes(&self) -> u64 {
        self.open.end()
    }

    /// Writes a piece of the next unit.
    ///
    /// # Errors
    /// Those of writing.
    pub fn append(&mut self, piece: AheadPiece) -> io::Result<()> {
        let AheadPiece(Piece { frame, records, files, bytes, .. }) = piece;
        if let Some(Stored { bytes: stored, raw_bytes, hash }) = frame {
            let (stored_bytes, raw_bytes) =
                (super::frame_bytes(stored.len())?, super::frame_bytes(raw_bytes)?);
            self.behind.write_all_at(&stored, self.open.end())?;
            self.open.frames.push(PlacedFrame { stored_bytes, raw_bytes, hash });
        }
        self.open.records.extend(records);
        self.open.files += files;
        self.open.bytes += bytes;
        Ok(())
    }

    /// Ends a unit and returns its number.
    pub fn close_unit(&mut self) -> usize {
        let next = Unit { start: self.open.end(), ..Unit::default() };
        self.units.push(std::mem::replace(&mut self.open, next));
        self.units.len() - 1
    }

    /// Returns the record of a file of a closed unit, by the order in which they were packed.
    pub(crate) fn record(&self, unit: usize, place: usize) -> Option<&Record> {
        self.units.get(unit)?.records.get(place)
    }

    /// Forgets what was appended since the last unit was closed.
    pub fn discard_open_unit(&mut self) {
        self.open = Unit { start: self.open.start, ..Unit::default() };
    }

    /// Leaves out the units that `keep` does not name by number, closes the gaps, and cuts off what is behind.
    pub(super) fn settle(mut self, keep: &dyn Fn(usize) -> bool) -> io::Result<Vec<Unit>> {
        let mut end = 0;
        let mut kept = Vec::with_capacity(self.units.len());
        for (number, mut unit) in std::mem::take(&mut self.units).into_iter().enumerate() {
            if !keep(number) {
                continue;
            }
            self.move_down(unit.start, end, unit.end() - unit.start)?;
            unit.start = end;
            end = unit.end();
            kept.push(unit);
        }
        self.out.set_len(end)?;
        Ok(kept)
    }

    fn move_down(&self, mut from: u64, mut to: u64, length_bytes: u64) -> io::Result<()> {
        if from == to {
            return Ok(());
        }
        let mut buffer = vec![0; MOVE_BYTES];
        let end = from + length_bytes;
        while from < end {
            let length = buffer.len().min(usize::try_from(end - from).unwrap_or(usize::MAX));
            self.out.read_exact_at(&mut buffer[..length], from)?;
            self.out.write_all_at(&buffer[..length], to)?;
            (from, to) = (from + length as u64, to + length as u64);
        }
        Ok(())
    }
}

impl Unit {
    fn end(&self) -> u64 {
        self.start + self.frames.iter().map(|frame| u64::from(frame.stored_bytes)).sum::<u64>()
    }
}
