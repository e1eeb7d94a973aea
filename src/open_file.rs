//! Open files: of the base, of an upper layer, or virtual.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;

use rustix::fs::{FallocateFlags, SeekFrom};
use rustix::io::Errno;

use crate::archive::{Archive, Record, RecordKind};
use crate::change::{change_open_file, kill_set_id};
use crate::copy::copy_some;
use crate::digest::Digest;
use crate::fs::{AttrChanges, FsError, OpenFile, SeekTo};
use crate::store::Store;

/// Virtual files up to this size are served from decompressed frames; larger ones are hydrated, so that
/// the kernel can read and map them directly.
const SERVED_FROM_FRAMES_BYTES_MAX: u64 = 128 * 1024;

/// Where the kernel does not read blobs itself, a large file is hydrated once so much of it was read. A program that
/// starts reads less of itself, and what decompresses the rest is ahead of those who read on.
const HYDRATED_AFTER_BYTES: u64 = 2 * 1024 * 1024;

/// Bytes copied at a time where the kernel cannot do it.
const COPY_BUFFER_BYTES: usize = 256 * 1024;

/// What all open handles of a file share, so that each sees what is written through another even after the
/// content went to another place.
pub(crate) struct SharedFile {
    first: Arc<dyn OpenFile>,
    /// A content moves at most once: from below into a blob.
    moved: OnceLock<Arc<dyn OpenFile>>,
}

impl SharedFile {
    pub(crate) fn new(file: Arc<dyn OpenFile>) -> Self {
        Self { first: file, moved: OnceLock::new() }
    }

    /// Lets all handles use `file` from now on.
    pub(crate) fn move_to(&self, file: Arc<dyn OpenFile>) {
        // The one that came first stands.
        self.moved.set(file).ok();
    }

    fn file(&self) -> &dyn OpenFile {
        &**self.moved.get().unwrap_or(&self.first)
    }
}

impl std::fmt::Debug for SharedFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SharedFile").field("moved", &self.moved.get().is_some()).finish_non_exhaustive()
    }
}

impl OpenFile for SharedFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<usize, FsError> {
        self.file().read_at(buffer, offset)
    }

    fn write_at(&self, data: &[u8], offset: u64) -> Result<usize, FsError> {
        self.file().write_at(data, offset)
    }

    fn kill_set_id(&self) -> Result<(), FsError> {
        self.file().kill_set_id()
    }

    fn set_attr(&self, changes: &AttrChanges) -> Result<(), FsError> {
        self.file().set_attr(changes)
    }

    fn backing(&self) -> Option<BorrowedFd<'_>> {
        self.file().backing()
    }

    fn sync(&self, data_only: bool) -> Result<(), FsError> {
        self.file().sync(data_only)
    }

    fn allocate(&self, mode: u32, offset: u64, length_bytes: u64) -> Result<(), FsError> {
        self.file().allocate(mode, offset, length_bytes)
    }

    fn seek(&self, offset: u64, to: SeekTo) -> Result<u64, FsError> {
        self.file().seek(offset, to)
    }
}

/// A real file.
#[derive(Debug)]
pub struct RealFile {
    file: Arc<File>,
    /// Whether the kernel may use it directly.
    backed: bool,
    /// Keeps a count of who has the node's present content open.
    _token: Arc<()>,
}

impl RealFile {
    /// Takes an open file; `token` lives as long as it.
    #[must_use]
    pub fn new(file: impl Into<Arc<File>>, token: Arc<()>) -> Self {
        Self { file: file.into(), backed: true, _token: token }
    }

    /// Takes an open file that the kernel must not use directly, because it has the same node open otherwise.
    pub(crate) fn unbacked(file: Arc<File>, token: Arc<()>) -> Self {
        Self { file, backed: false, _token: token }
    }
}

impl OpenFile for RealFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<usize, FsError> {
        read_at(&self.file, buffer, offset)
    }

    fn write_at(&self, data: &[u8], offset: u64) -> Result<usize, FsError> {
        Ok(rustix::io::retry_on_intr(|| rustix::io::pwrite(&self.file, data, offset))?)
    }

    fn kill_set_id(&self) -> Result<(), FsError> {
        Ok(kill_set_id(&self.file)?)
    }

    fn set_attr(&self, changes: &AttrChanges) -> Result<(), FsError> {
        Ok(change_open_file(&self.file, changes)?)
    }

    fn backing(&self) -> Option<BorrowedFd<'_>> {
        self.backed.then(|| self.file.as_fd())
    }

    fn sync(&self, data_only: bool) -> Result<(), FsError> {
        let synced = if data_only { self.file.sync_data() } else { self.file.sync_all() };
        Ok(synced?)
    }

    fn allocate(&self, mode: u32, offset: u64, length_bytes: u64) -> Result<(), FsError> {
        let flags = FallocateFlags::from_bits(mode).ok_or(FsError::NotSupported)?;
        Ok(rustix::fs::fallocate(&self.file, flags, offset, length_bytes)?)
    }

    fn seek(&self, offset: u64, to: SeekTo) -> Result<u64, FsError> {
        seek(&self.file, offset, to)
    }
}

fn seek(file: &File, offset: u64, to: SeekTo) -> Result<u64, FsError> {
    let to = match to {
        SeekTo::Data => SeekFrom::Data(offset),
        SeekTo::Hole => SeekFrom::Hole(offset),
    };
    Ok(rustix::fs::seek(file, to)?)
}

fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> Result<usize, FsError> {
    let mut done = 0;
    while done < buffer.len() {
        match file.read_at(&mut buffer[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(done)
}

/// A virtual file that is read through us.
#[derive(Debug)]
pub struct VirtualFile {
    content: Served,
    size_bytes: u64,
    /// For a file that is too large to be read out of frames again and again.
    hydration: Option<Arc<Hydration>>,
    /// Set once the file is an ordinary one; it is read from there from then on.
    real: Option<Arc<OnceLock<File>>>,
    _token: Arc<()>,
}

/// Where the content of a [`VirtualFile`] is.
#[derive(Debug)]
enum Served {
    Frames(Arc<Archive>, Box<Record>),
    Blob(File),
}

impl VirtualFile {
    /// Returns the file that it is read from, if there is one.
    fn file(&self) -> Option<&File> {
        let hydrated = || self.hydration.as_ref()?.blob.get();
        match (self.real.as_ref().and_then(|real| real.get()), &self.content) {
            (Some(file), _) | (None, Served::Blob(file)) => Some(file),
            (None, Served::Frames(..)) => hydrated(),
        }
    }
}

impl OpenFile for VirtualFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<usize, FsError> {
        match (self.file(), &self.content) {
            (Some(file), _) | (None, Served::Blob(file)) => read_at(file, buffer, offset),
            (None, Served::Frames(archive, record)) => {
                let read = archive.read_at(record, offset, buffer)?;
                if let Some(hydration) = &self.hydration {
                    hydration.has_read(read as u64);
                }
                Ok(read)
            }
        }
    }

    fn write_at(&self, _data: &[u8], _offset: u64) -> Result<usize, FsError> {
        Err(FsError::Os(Errno::BADF.into()))
    }

    fn kill_set_id(&self) -> Result<(), FsError> {
        Err(FsError::Os(Errno::BADF.into()))
    }

    fn set_attr(&self, _changes: &AttrChanges) -> Result<(), FsError> {
        Err(FsError::Os(Errno::BADF.into()))
    }

    fn backing(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn sync(&self, _data_only: bool) -> Result<(), FsError> {
        Ok(())
    }

    fn allocate(&self, _mode: u32, _offset: u64, _length_bytes: u64) -> Result<(), FsError> {
        Err(FsError::Os(Errno::BADF.into()))
    }

    fn seek(&self, offset: u64, to: SeekTo) -> Result<u64, FsError> {
        if let Some(file) = self.file() {
            return seek(file, offset, to);
        }
        match to {
            _ if offset >= self.size_bytes => Err(FsError::Os(Errno::NXIO.into())),
            SeekTo::Data => Ok(offset),
            SeekTo::Hole => Ok(self.size_bytes),
        }
    }
}

/// Where the content of a virtual file is read.
#[derive(Debug)]
pub(crate) enum VirtualContent {
    /// In the frames of its archive: it is small, or cannot be hydrated.
    Frames,
    /// In the blob store.
    Blob(File),
}

impl VirtualContent {
    /// As [`of`](Self::of), but decompresses nothing; `None` for a large file that nobody has decompressed.
    pub(crate) fn at_hand(store: &Store, record: &Record) -> Result<Option<Self>, FsError> {
        let RecordKind::File { size_bytes, content, .. } = &record.kind else {
            return Err(FsError::InvalidArgument);
        };
        if *size_bytes <= SERVED_FROM_FRAMES_BYTES_MAX {
            return Ok(Some(Self::Frames));
        }
        let blob = content.map(|digest| store.blob(digest)).transpose()?.flatten();
        Ok(blob.map(Self::Blob))
    }

    /// Decides where a virtual file is read, and decompresses it into the blob store if that is where.
    pub(crate) fn of(store: &Store, archive: &Archive, record: &Record) -> Result<Self, FsError> {
        if let Some(content) = Self::at_hand(store, record)? {
            return Ok(content);
        }
        let RecordKind::File { content: Some(digest), .. } = record.kind else {
            return Err(FsError::Corrupt(format!("{:?} has no content hash", record.path)));
        };
        match hydrate(store, archive, record, digest) {
            Ok(blob) => Ok(Self::Blob(blob)),
            // Slower, but a full disk is no reason not to read.
            Err(FsError::Os(error)) if cannot_be_written(&error) => Ok(Self::Frames),
            Err(error) => Err(error),
        }
    }
}

/// Opens a virtual file for reading from its archive; `real` is where it reads once that is set.
pub(crate) fn open_frames(
    archive: &Arc<Archive>,
    record: Record,
    real: Option<Arc<OnceLock<File>>>,
    token: Arc<()>,
) -> Arc<dyn OpenFile> {
    let size_bytes = record.size_bytes();
    let content = Served::Frames(Arc::clone(archive), Box::new(record));
    Arc::new(VirtualFile { content, size_bytes, hydration: None, real, _token: token })
}

/// Opens a virtual file for reading from its blob, but not for the kernel to read directly; `real` is where it reads
/// once that is set.
pub(crate) fn open_blob(
    blob: File,
    record: &Record,
    real: Arc<OnceLock<File>>,
    token: Arc<()>,
) -> Arc<dyn OpenFile> {
    let size_bytes = record.size_bytes();
    let content = Served::Blob(blob);
    Arc::new(VirtualFile { content, size_bytes, hydration: None, real: Some(real), _token: token })
}

/// Opens a large virtual file for reading from its frames, until enough of it was read for it to be worth a blob.
pub(crate) fn open_large(
    store: &Arc<Store>,
    archive: &Arc<Archive>,
    record: Record,
    real: Arc<OnceLock<File>>,
    token: Arc<()>,
) -> Arc<dyn OpenFile> {
    let size_bytes = record.size_bytes();
    let hydration = Hydration {
        store: Arc::clone(store),
        archive: Arc::clone(archive),
        record: record.clone(),
        read_bytes: AtomicU64::new(0),
        blob: OnceLock::new(),
    };
    Arc::new(VirtualFile {
        content: Served::Frames(Arc::clone(archive), Box::new(record)),
        size_bytes,
        hydration: Some(Arc::new(hydration)),
        real: Some(real),
        _token: token,
    })
}

/// The way of a large virtual file into the blob store, behind the back of those who read it.
#[derive(Debug)]
struct Hydration {
    store: Arc<Store>,
    archive: Arc<Archive>,
    record: Record,
    /// What was read out of frames.
    read_bytes: AtomicU64,
    blob: OnceLock<File>,
}

impl Hydration {
    /// Notes that so much was read out of frames, and begins where that is enough.
    fn has_read(self: &Arc<Self>, bytes: u64) {
        let before = self.read_bytes.fetch_add(bytes, Ordering::Relaxed);
        let begins = before < HYDRATED_AFTER_BYTES && before.saturating_add(bytes) >= HYDRATED_AFTER_BYTES;
        if begins {
            let hydration = Arc::clone(self);
            // Without a thread, as without room on the disk, it goes on as it is.
            let run = move || hydration.run();
            thread::Builder::new().name("hydrate".into()).spawn(run).ok();
        }
    }

    fn run(&self) {
        let RecordKind::File { content: Some(digest), .. } = &self.record.kind else { return };
        match hydrate(&self.store, &self.archive, &self.record, *digest) {
            // Nobody else sets it.
            Ok(blob) => drop(self.blob.set(blob)),
            Err(error) => tracing::debug!(path = ?self.record.path, %error, "not hydrated"),
        }
    }
}

/// Opens a virtual file for reading: from the frames where it is small, else hydrated into the blob store.
///
/// # Errors
/// [`FsError::Corrupt`] where the archive is damaged; [`FsError::Os`] where the store cannot be used.
pub fn open_virtual(
    store: &Store,
    archive: &Arc<Archive>,
    record: &Record,
    token: Arc<()>,
) -> Result<Arc<dyn OpenFile>, FsError> {
    archive.note_opened(record);
    Ok(match VirtualContent::of(store, archive, record)? {
        VirtualContent::Frames => open_frames(archive, record.clone(), None, token),
        VirtualContent::Blob(blob) => Arc::new(RealFile::new(blob, token)),
    })
}

/// Copies at most `length_bytes` from one open file to another, see [`crate::fs::Filesystem::copy_range`].
///
/// # Errors
/// Any [`FsError`].
pub fn copy_range(
    (from, from_offset): (&dyn OpenFile, u64),
    (to, to_offset): (&dyn OpenFile, u64),
    length_bytes: u64,
) -> Result<u64, FsError> {
    if let (Some(from), Some(to)) = (from.backing(), to.backing()) {
        return Ok(copy_some((from, from_offset), (to, to_offset), length_bytes)?);
    }
    let mut buffer = vec![0; COPY_BUFFER_BYTES];
    let mut done = 0;
    while done < length_bytes {
        let wanted = buffer.len().min(usize::try_from(length_bytes - done).unwrap_or(usize::MAX));
        let read = from.read_at(&mut buffer[..wanted], from_offset + done)?;
        if read == 0 {
            break;
        }
        match to.write_at(&buffer[..read], to_offset + done) {
            Ok(written) => done += written as u64,
            // What was copied counts; whoever goes on is told then.
            Err(_) if done > 0 => break,
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

/// Returns how many bytes must be decompressed before `record` can be read: none where that was done, or it has no content.
///
/// # Errors
/// [`FsError::Corrupt`] where the archive is damaged; [`FsError::Os`] where the store cannot be used.
pub(crate) fn missing_bytes(store: &Store, archive: &Archive, record: &Record) -> Result<u64, FsError> {
    if !matches!(record.kind, RecordKind::File { data: Some(_), .. }) {
        return Ok(0);
    }
    Ok(match VirtualContent::at_hand(store, record)? {
        None => record.size_bytes(),
        Some(VirtualContent::Frames) => archive.bytes_ahead(record)?,
        Some(VirtualContent::Blob(_)) => 0,
    })
}

/// Makes a virtual file ready to be read before anybody does, unless it is.
///
/// # Errors
/// [`FsError::Corrupt`] where the archive is damaged; [`FsError::Os`] where the store cannot be used.
pub(crate) fn make_ready(store: &Store, archive: &Archive, record: &Record) -> Result<(), FsError> {
    match VirtualContent::of(store, archive, record)? {
        VirtualContent::Frames => {
            if !archive.keeps_ahead() {
                // The name goes at once, and the room with the archive.
                let temp = store.create_temp()?;
                archive.keep_ahead_in(temp.file().try_clone()?);
            }
            Ok(archive.decompress_ahead(record)?)
        }
        VirtualContent::Blob(_) => Ok(()),
    }
}

/// Returns a virtual file's blob, decompressing it if that was not done yet.
fn hydrate(store: &Store, archive: &Archive, record: &Record, digest: Digest) -> Result<File, FsError> {
    if let Some(blob) = store.blob(digest)? {
        return Ok(blob);
    }
    let temp = store.create_temp()?;
    archive.copy_to(record, temp.file())?;
    Ok(temp.publish_blob(digest)?)
}

fn cannot_be_written(error: &std::io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::NOSPC | Errno::DQUOT | Errno::ROFS))
}

/// Returns whether a virtual file was decompressed into the blob store.
#[must_use]
pub fn is_hydrated(store: &Store, size_bytes: u64, content: Option<Digest>) -> bool {
    size_bytes > SERVED_FROM_FRAMES_BYTES_MAX
        && content.is_some_and(|digest| matches!(store.blob(digest), Ok(Some(_))))
}
