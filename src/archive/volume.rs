//! Reading checked pieces of an archive file.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::archive::buffers::Workbench;
use crate::archive::{ArchiveError, Part};
use crate::digest::Digest;

/// Bytes that can be read anywhere, from several threads at once.
pub trait ReadAt: Send + Sync {
    /// Fills `buffer` from `offset` on.
    ///
    /// # Errors
    /// [`io::ErrorKind::UnexpectedEof`] where the bytes end too early; any other error of the medium.
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;

    /// Returns the number of bytes.
    ///
    /// # Errors
    /// Those of the medium.
    fn size_bytes(&self) -> io::Result<u64>;
}

impl ReadAt for File {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        FileExt::read_exact_at(self, buffer, offset)
    }

    fn size_bytes(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }
}

/// Where something compressed lies, and what it should be.
#[derive(Clone, Copy)]
pub(super) struct Stored<'a> {
    pub(super) offset: u64,
    pub(super) length_bytes: usize,
    /// Of the stored bytes.
    pub(super) hash: &'a Digest,
    /// How many bytes it decompresses to.
    pub(super) raw_bytes: usize,
}

/// The file behind an archive or manifest, with the name it has in messages.
#[derive(Clone)]
pub(super) struct Volume {
    source: Arc<dyn ReadAt>,
    path: Arc<PathBuf>,
    /// Whether damage was found.
    damaged: Arc<AtomicBool>,
}

impl Volume {
    pub(super) fn new(source: Arc<dyn ReadAt>, path: PathBuf) -> Self {
        Self { source, path: Arc::new(path), damaged: Arc::default() }
    }

    pub(super) fn path(&self) -> &PathBuf {
        &self.path
    }

    /// Returns whether damage was found in what was read so far.
    pub(super) fn is_damaged(&self) -> bool {
        self.damaged.load(Ordering::Relaxed)
    }

    pub(super) fn size_bytes(&self) -> Result<u64, ArchiveError> {
        self.source.size_bytes().map_err(|source| ArchiveError::Io { path: self.path.to_path_buf(), source })
    }

    /// Reads `length_bytes` at `offset`. Callers have bounded the length by the size of the file or by a
    /// limit of the format.
    pub(super) fn read(&self, part: Part, offset: u64, length_bytes: usize) -> Result<Vec<u8>, ArchiveError> {
        let mut bytes = vec![0; length_bytes];
        self.read_into(&part, offset, &mut bytes)?;
        Ok(bytes)
    }

    /// Fills `bytes`, and compares their hash.
    fn read_hashed_into(
        &self,
        part: &Part,
        offset: u64,
        hash: &Digest,
        bytes: &mut [u8],
    ) -> Result<(), ArchiveError> {
        self.read_into(part, offset, bytes)?;
        if Digest::of(bytes) == *hash { Ok(()) } else { Err(self.damaged(part.clone(), "its hash is wrong")) }
    }

    fn read_into(&self, part: &Part, offset: u64, bytes: &mut [u8]) -> Result<(), ArchiveError> {
        match self.source.read_exact_at(bytes, offset) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                let length_bytes = bytes.len();
                let problem = format!("the file ends before {length_bytes} bytes at offset {offset}");
                Err(self.damaged(part.clone(), problem))
            }
            Err(source) => Err(ArchiveError::Io { path: self.path.to_path_buf(), source }),
        }
    }

    /// As [`read`](Self::read), and compares the hash.
    pub(super) fn read_hashed(
        &self,
        part: Part,
        offset: u64,
        length_bytes: usize,
        hash: &Digest,
    ) -> Result<Vec<u8>, ArchiveError> {
        let mut bytes = vec![0; length_bytes];
        self.read_hashed_into(&part, offset, hash, &mut bytes)?;
        Ok(bytes)
    }

    /// Reads something compressed, compares its hash, and decompresses it into `out`, which is empty and has room for
    /// `raw_bytes`.
    pub(super) fn read_compressed(
        &self,
        part: &Part,
        stored: Stored<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), ArchiveError> {
        Workbench::with(|bench| {
            bench.stored.resize(stored.length_bytes, 0);
            self.read_hashed_into(part, stored.offset, stored.hash, &mut bench.stored)?;
            match bench.decompress(out) {
                Ok(()) if out.len() == stored.raw_bytes => Ok(()),
                Ok(()) => {
                    let problem = format!("it holds {} bytes instead of {}", out.len(), stored.raw_bytes);
                    Err(self.damaged(part.clone(), problem))
                }
                Err(error) => Err(self.damaged(part.clone(), error.to_string())),
            }
        })
    }

    pub(super) fn damaged(&self, part: Part, problem: impl Into<String>) -> ArchiveError {
        self.damaged.store(true, Ordering::Relaxed);
        ArchiveError::Damaged { path: self.path.to_path_buf(), part, problem: problem.into() }
    }

    pub(super) fn not_an_archive(&self, problem: impl Into<String>) -> ArchiveError {
        ArchiveError::NotAnArchive { path: self.path.to_path_buf(), problem: problem.into() }
    }
}
