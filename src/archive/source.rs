//! Where the packer gets the content of files from.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags, ResolveFlags, SeekFrom};
use rustix::io::Errno;

use crate::archive::reader::Archive;
use crate::archive::record::{Extent, Record, RecordKind};
use crate::base::BaseStat;
use crate::fs::FileKind;
use crate::path::RelPathBuf;

/// A file whose content can be packed.
pub trait FileSource: Send + Sync {
    /// Returns its size, which must be that of what [`open`](Self::open) gives.
    fn size_bytes(&self) -> u64;

    /// Opens it.
    ///
    /// # Errors
    /// Those of the medium.
    fn open(&self) -> io::Result<Box<dyn FileContent>>;
}

/// The content of a [`FileSource`].
pub trait FileContent: Send {
    /// Reads at `offset`; fewer bytes than there is room for where a file ends (or a piece of it does), 0 at
    /// and behind its end.
    ///
    /// # Errors
    /// Those of the medium.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Returns the ranges that are not holes, in order; `None` where there are no holes.
    ///
    /// # Errors
    /// Those of the medium.
    fn data_extents(&self) -> io::Result<Option<Vec<Extent>>>;
}

/// A regular file below a directory.
pub struct DiskFile {
    /// The directory.
    pub dir: Arc<OwnedFd>,
    /// The file, below the directory without symbolic links in between.
    pub path: RelPathBuf,
    /// Its size.
    pub size_bytes: u64,
}

/// A file of another archive.
pub struct ArchivedFile {
    /// The archive.
    pub archive: Arc<Archive>,
    /// One of its records.
    pub record: Record,
}

impl FileSource for DiskFile {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn open(&self) -> io::Result<Box<dyn FileContent>> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NOCTTY | OFlags::NONBLOCK;
        let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let path = self.path.as_os_str();
        let file = File::from(rustix::fs::openat2(&*self.dir, path, flags, Mode::empty(), beneath)?);
        let stat = BaseStat::from(rustix::fs::fstat(&file)?);
        if stat.kind != FileKind::File {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file any more"));
        }
        Ok(Box::new(DiskContent { file, stat }))
    }
}

/// An open [`DiskFile`].
struct DiskContent {
    file: File,
    stat: BaseStat,
}

impl FileContent for DiskContent {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(buffer, offset)
    }

    fn data_extents(&self) -> io::Result<Option<Vec<Extent>>> {
        const BLOCK: u64 = 512;
        let size_bytes = self.stat.identity.size_bytes;
        if self.stat.blocks.saturating_mul(BLOCK) >= size_bytes {
            return Ok(None);
        }
        let mut extents = Vec::new();
        let mut position = 0;
        while position < size_bytes {
            let start = match rustix::fs::seek(&self.file, SeekFrom::Data(position)) {
                Ok(start) => start,
                Err(Errno::NXIO) => break,
                // The file system knows no holes.
                Err(Errno::INVAL) => return Ok(None),
                Err(error) => return Err(error.into()),
            };
            let end = rustix::fs::seek(&self.file, SeekFrom::Hole(start))?.min(size_bytes);
            if end <= start {
                break;
            }
            extents.push(Extent { offset: start, length_bytes: end - start });
            position = end;
        }
        Ok(Some(extents))
    }
}

impl FileSource for ArchivedFile {
    fn size_bytes(&self) -> u64 {
        self.record.size_bytes()
    }

    fn open(&self) -> io::Result<Box<dyn FileContent>> {
        Ok(Box::new(Self { archive: Arc::clone(&self.archive), record: self.record.clone() }))
    }
}

impl FileContent for ArchivedFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.archive.read_at(&self.record, offset, buffer).map_err(io::Error::other)
    }

    fn data_extents(&self) -> io::Result<Option<Vec<Extent>>> {
        Ok(match &self.record.kind {
            RecordKind::File { data: Some(data), .. } => data.extents.clone(),
            RecordKind::File { data: None, .. }
            | RecordKind::Dir
            | RecordKind::ImpliedDir
            | RecordKind::Symlink { .. }
            | RecordKind::Absent => None,
        })
    }
}
