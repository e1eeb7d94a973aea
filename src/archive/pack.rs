//! Writing archives: files are read and compressed in parallel, and written in order.

mod ahead;
mod entry;
mod large;
mod sink;

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::sync::{Mutex, PoisonError};

use thiserror::Error;
use zstd::bulk::Compressor;

use crate::archive::layout::FRAME_BYTES_MAX;
pub use crate::archive::pack::ahead::{AheadPacker, AheadPiece, PackedAhead};
use crate::archive::pack::entry::pack_small;
use crate::archive::pack::large::pack_large;
use crate::archive::pack::sink::Sink;
use crate::archive::plan::{Item, Meta, Planned, What, plan};
use crate::archive::record::Record;
use crate::archive::tar_entry;
use crate::digest::Digest;
use crate::fs::FileKind;
use crate::path::{RelPath, RelPathBuf};

/// What an entry is taken to need beside its data and names.
const ENTRY_OVERHEAD_BYTES: usize = 1024;

/// So much is written before it is sent to the disk.
const WRITE_BEHIND_BYTES: usize = 32 << 20;

/// Writes archives.
///
/// # Guarantees
/// - The same items give the same bytes, whatever the number of threads.
/// - Memory is bounded by [`frames_in_flight_max`](Self::frames_in_flight_max) frames and the table of
///   contents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packer {
    /// Compression level of zstd.
    pub level: i32,
    /// Small files are packed together up to this many bytes.
    pub pack_bytes: usize,
    /// Larger files are split into frames of this many bytes.
    pub split_bytes: usize,
    /// How many frames are read, compressed or waiting to be written at a time.
    pub frames_in_flight_max: usize,
}

impl Default for Packer {
    fn default() -> Self {
        let frames_in_flight_max = (2 * rayon::current_num_threads() + 2).min(32);
        Self { level: 3, pack_bytes: 256 * 1024, split_bytes: 256 * 1024, frames_in_flight_max }
    }
}

/// What [`Packer::pack`] wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Packed {
    /// Size of the archive.
    pub archive_bytes: u64,
    /// Regular files, every name of a hard-linked one.
    pub files: u64,
    /// Their sizes, a hard-linked one counted once.
    pub content_bytes: u64,
    /// Records of every kind.
    pub records: u64,
}

/// Why items cannot be packed.
#[derive(Debug, Error)]
pub enum PackError {
    /// An item has the empty path.
    #[error("the root cannot be packed")]
    Root,
    /// An archive does not hold such things.
    #[error("{path:?} cannot be archived: it is a {}", kind_name(*kind))]
    Unsupported {
        /// The item.
        path: RelPathBuf,
        /// What it is.
        kind: FileKind,
    },
    /// Two items have one path.
    #[error("{path:?} is to be packed twice")]
    Twice {
        /// The path.
        path: RelPathBuf,
    },
    /// An item lies below something else than a directory.
    #[error("{path:?} cannot be archived below {ancestor:?}, which is not a directory")]
    NotADirectory {
        /// The item.
        path: RelPathBuf,
        /// What it lies below.
        ancestor: RelPathBuf,
    },
    /// A hard link to what is not packed, or is no file.
    #[error("{path:?} is a hard link to {target:?}, which is not among the files")]
    BadLink {
        /// The link.
        path: RelPathBuf,
        /// What it should be a link to.
        target: RelPathBuf,
    },
    /// A name or an attribute exceeds a limit of the format.
    #[error("{path:?} cannot be archived: {problem}")]
    TooLarge {
        /// The item.
        path: RelPathBuf,
        /// What is too large.
        problem: &'static str,
    },
    /// Somebody changed a file.
    #[error("{path:?} changed while it was packed: expected {expected_bytes} bytes, found {found_bytes}")]
    SizeChanged {
        /// The file.
        path: RelPathBuf,
        /// What it should have been.
        expected_bytes: u64,
        /// What it was; where it grew, the least it was.
        found_bytes: u64,
    },
    /// A file cannot be read.
    #[error("{path:?} cannot be read")]
    Source {
        /// The file.
        path: RelPathBuf,
        /// Why.
        source: io::Error,
    },
    /// The archive cannot be written.
    #[error("the archive cannot be written")]
    Output(#[source] io::Error),
}

fn kind_name(kind: FileKind) -> &'static str {
    match kind {
        FileKind::File => "regular file",
        FileKind::Dir => "directory",
        FileKind::Symlink => "symbolic link",
        FileKind::Fifo => "named pipe",
        FileKind::Socket => "socket",
        FileKind::CharDevice => "character device",
        FileKind::BlockDevice => "block device",
    }
}

/// Takes the files and bytes that were packed since it was last called.
pub type PackProgress<'a> = &'a (dyn Fn(u64, u64) + Sync);

impl Packer {
    /// Writes an archive of `items` to `out`, an empty file that the caller makes durable and renames.
    ///
    /// # Errors
    /// [`PackError`]; then `out` holds something useless.
    pub fn pack(
        &self,
        out: &File,
        items: Vec<Item>,
        progress: PackProgress<'_>,
    ) -> Result<Packed, PackError> {
        let sink = Sink::new(WriteBehind::new(out).map_err(PackError::Output)?, progress);
        self.pack_into(sink, plan(items, &[])?)
    }

    /// As [`pack`](Self::pack), but the archive begins with those units of `ahead` that `keep` names by number.
    ///
    /// They are no items any more. Their order is that in which they were packed, so the bytes depend on it.
    ///
    /// # Errors
    /// [`PackError`]; then `out`, which is the file that `ahead` was made of, holds something useless.
    pub fn pack_after(
        &self,
        out: &File,
        (ahead, keep): (PackedAhead, &dyn Fn(usize) -> bool),
        items: Vec<Item>,
        progress: PackProgress<'_>,
    ) -> Result<Packed, PackError> {
        let units = ahead.settle(keep).map_err(PackError::Output)?;
        let records = || units.iter().flat_map(|unit| &unit.records);
        let planned = plan(items, &records().map(|record| &record.path).collect::<Vec<_>>())?;
        let mut sink = Sink::new(WriteBehind::new(out).map_err(PackError::Output)?, progress);
        sink.reserve(planned.len() + records().count());
        units.into_iter().for_each(|unit| sink.adopt(unit));
        self.pack_into(sink, planned)
    }

    fn pack_into(&self, mut sink: Sink<'_>, planned: Vec<Planned>) -> Result<Packed, PackError> {
        let packer = self.bounded();
        let compressors = Compressors::new(packer.level);
        rayon::in_place_scope(|scope| {
            let mut pipeline = Pipeline {
                packer: &packer,
                scope,
                compressors: &compressors,
                waiting: VecDeque::new(),
                sink: &mut sink,
            };
            pipeline.run(planned)
        })?;
        sink.finish()
    }

    /// Returns these settings as far as the format allows them.
    fn bounded(&self) -> Self {
        Self {
            pack_bytes: self.pack_bytes.clamp(1, FRAME_BYTES_MAX / 8),
            split_bytes: self.split_bytes.clamp(64 * 1024, FRAME_BYTES_MAX / 8),
            frames_in_flight_max: self.frames_in_flight_max.max(1),
            level: self.level,
        }
    }
}

/// A file that goes to the disk while more is written, so that whoever makes it durable in the end does not wait for
/// all of it.
struct WriteBehind {
    out: File,
    unsynced_bytes: usize,
    /// Tells the thread that waits for the disk.
    written: Option<SyncSender<()>>,
}

impl WriteBehind {
    fn new(out: &File) -> io::Result<Self> {
        Ok(Self { out: out.try_clone()?, unsynced_bytes: 0, written: None })
    }

    fn write_all_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.out.write_all_at(bytes, offset)?;
        self.unsynced_bytes += bytes.len();
        if self.unsynced_bytes < WRITE_BEHIND_BYTES {
            return Ok(());
        }
        self.unsynced_bytes = 0;
        let written = match &self.written {
            Some(written) => written,
            None => {
                let out = self.out.try_clone()?;
                let (sender, receiver) = sync_channel(1);
                // Whoever relies on the file syncs the whole, and learns then what is wrong.
                std::thread::spawn(move || receiver.into_iter().for_each(|()| drop(out.sync_data())));
                self.written.insert(sender)
            }
        };
        // It is at it already, or will be.
        let _busy = written.try_send(());
        Ok(())
    }
}

/// Hands work to the threads of the pool and takes results back in order.
struct Pipeline<'a, 'scope, 'sink> {
    packer: &'a Packer,
    scope: &'a rayon::Scope<'scope>,
    compressors: &'scope Compressors,
    waiting: VecDeque<Receiver<Result<Piece, PackError>>>,
    sink: &'a mut Sink<'sink>,
}

/// A piece of the archive, ready to be written.
#[derive(Default)]
struct Piece {
    /// A compressed frame; nothing where there are only records.
    frame: Option<Stored>,
    /// Whether data offsets in records, up to the next such piece, count from the start of this frame.
    is_base: bool,
    /// What ends in this piece.
    records: Vec<Record>,
    /// Which of them hard links refer to.
    linked: Vec<RelPathBuf>,
    /// Progress: files and bytes.
    files: u64,
    bytes: u64,
}

/// A compressed frame.
struct Stored {
    bytes: Vec<u8>,
    raw_bytes: usize,
    hash: Digest,
}

impl<'scope> Pipeline<'_, 'scope, '_> {
    fn run(&mut self, planned: Vec<Planned>) -> Result<(), PackError> {
        let mut batch = Vec::new();
        let mut batch_bytes = 0;
        for entry in planned {
            let (data_bytes, link_bytes) = match &entry.what {
                What::File { source, .. } => (usize::try_from(source.size_bytes()).unwrap_or(usize::MAX), 0),
                What::Symlink(target) => (0, target.len()),
                What::HardLink(target) => (0, target.as_bytes().len()),
                What::Dir | What::ImpliedDir | What::Absent => (0, 0),
            };
            let is_large = data_bytes > self.packer.split_bytes;
            let entry_bytes = data_bytes.saturating_add(overhead_bytes(&entry.path, &entry.meta, link_bytes));
            if !batch.is_empty() && (is_large || batch_bytes + entry_bytes > self.packer.pack_bytes) {
                self.submit_batch(std::mem::take(&mut batch))?;
                batch_bytes = 0;
            }
            if is_large {
                // Read and hashed here, and compressed on all threads.
                pack_large(&entry, self.packer.split_bytes, |raw, piece| {
                    self.submit(move |compressors| compressors.compress(&raw, piece))
                })?;
            } else {
                batch_bytes += entry_bytes;
                batch.push(entry);
            }
        }
        self.submit_batch(batch)?;
        let end = Piece { is_base: true, ..Piece::default() };
        self.submit(move |compressors| compressors.compress(&tar_entry::END, end))?;
        while let Some(piece) = self.waiting.pop_front() {
            self.sink.write(take(&piece)?)?;
        }
        Ok(())
    }

    fn submit_batch(&mut self, batch: Vec<Planned>) -> Result<(), PackError> {
        if batch.is_empty() {
            return Ok(());
        }
        let expected_bytes = self.packer.pack_bytes;
        self.submit(move |compressors| {
            let mut raw = Vec::with_capacity(expected_bytes);
            let mut piece = Piece { is_base: true, ..Piece::default() };
            for entry in batch {
                pack_small(entry, &mut raw, &mut piece)?;
            }
            compressors.compress(&raw, piece)
        })
    }

    fn submit(
        &mut self,
        work: impl FnOnce(&Compressors) -> Result<Piece, PackError> + Send + 'scope,
    ) -> Result<(), PackError> {
        while self.waiting.len() >= self.packer.frames_in_flight_max {
            let Some(piece) = self.waiting.pop_front() else { break };
            self.sink.write(take(&piece)?)?;
        }
        let (sender, receiver) = sync_channel(1);
        let compressors = self.compressors;
        self.scope.spawn(move |_| {
            // Nobody listens any more once an earlier piece has failed.
            let _unheard = sender.send(work(compressors));
        });
        self.waiting.push_back(receiver);
        Ok(())
    }
}

/// Waits for a piece. On a thread of the pool, which may be the only one, it works meanwhile.
fn take(piece: &Receiver<Result<Piece, PackError>>) -> Result<Piece, PackError> {
    loop {
        let received = match piece.try_recv() {
            Ok(result) => return result,
            Err(TryRecvError::Empty) => match rayon::yield_now() {
                None => piece.recv().ok(),
                Some(rayon::Yield::Executed) => continue,
                Some(rayon::Yield::Idle) => {
                    std::thread::yield_now();
                    continue;
                }
            },
            Err(TryRecvError::Disconnected) => None,
        };
        // The sender is only lost to a panic, which the scope passes on.
        let lost = || Err(PackError::Output(io::Error::other("a packing thread is gone")));
        return received.unwrap_or_else(lost);
    }
}

/// Returns what an entry takes in a frame beside its data.
fn overhead_bytes(path: &RelPath, meta: &Meta, link_bytes: usize) -> usize {
    let xattrs_bytes: usize = meta.xattrs.iter().map(|(name, value)| name.len() + value.len()).sum();
    ENTRY_OVERHEAD_BYTES + path.as_bytes().len() + link_bytes + xattrs_bytes
}

/// Returns the size of a frame as the format holds it.
fn frame_bytes(bytes: usize) -> io::Result<u32> {
    let fits = u32::try_from(bytes).ok().filter(|_| bytes <= FRAME_BYTES_MAX);
    fits.ok_or_else(|| io::Error::other("a frame is too large"))
}

/// Contexts of zstd, which are dear to make.
struct Compressors {
    level: i32,
    idle: Mutex<Vec<Compressor<'static>>>,
}

impl Compressors {
    fn new(level: i32) -> Self {
        Self { level, idle: Mutex::default() }
    }

    fn compress(&self, raw: &[u8], mut piece: Piece) -> Result<Piece, PackError> {
        if raw.is_empty() {
            return Ok(piece);
        }
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut compressor =
            idle.map_or_else(|| Compressor::new(self.level), Ok).map_err(PackError::Output)?;
        let stored = compressor.compress(raw).map_err(PackError::Output)?;
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(compressor);
        let hash = Digest::of(&stored);
        piece.frame = Some(Stored { bytes: stored, raw_bytes: raw.len(), hash });
        Ok(piece)
    }
}
