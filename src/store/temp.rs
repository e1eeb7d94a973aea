//! Files without a final name yet, and how they get one.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::sync::Arc;

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use uuid::Uuid;

use super::error::{At as _, StoreError};
use super::{Dirs, Store, archive_name, blobs, claim_name, open_file};
use crate::digest::Digest;

/// A file in `tmp/`, open for reading and writing.
#[derive(Debug)]
#[must_use = "dropping a temporary file removes it"]
pub struct TempFile {
    file: File,
    name: TempName,
}

/// Whether a file must outlast a crash of the machine once it has its final name.
enum Durability {
    Lasting,
    UntilReboot,
}

/// The name of a temporary file; dropping it removes the file.
#[derive(Debug)]
struct TempName {
    dirs: Arc<Dirs>,
    id: Uuid,
    /// Whether the file has moved away.
    settled: bool,
}

impl Store {
    /// Creates an empty temporary file with mode 0600.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn create_temp(&self) -> Result<TempFile, StoreError> {
        let name = TempName { dirs: Arc::clone(&self.dirs), id: Uuid::new_v4(), settled: false };
        self.dirs.made().insert(name.id);
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&self.dirs.tmp, name.id.to_string(), flags, Mode::from(0o600))
            .at("create", || name.path())?;
        Ok(TempFile { file: fd.into(), name })
    }
}

impl TempFile {
    /// Returns the open file; `&File` reads, writes and seeks.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Returns the path, for display.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.name.path()
    }

    /// Makes this the archive `id`.
    ///
    /// # Errors
    /// [`StoreError`]; the file is gone then.
    ///
    /// # Durability
    /// Content and name outlast a crash of the machine once this returns.
    pub fn publish_archive(self, id: Uuid) -> Result<(), StoreError> {
        let dirs = self.adopt(id);
        self.settle(dirs.archives.as_fd(), &format!("archives/{}", archive_name(id)), Durability::Lasting)
    }

    /// Makes this the table of contents of the claim `id`.
    ///
    /// # Errors
    /// [`StoreError`]; the file is gone then.
    ///
    /// # Durability
    /// As [`publish_archive`](Self::publish_archive).
    pub fn publish_claim(self, id: Uuid) -> Result<(), StoreError> {
        let dirs = self.adopt(id);
        self.settle(dirs.claims.as_fd(), &format!("claims/{}", claim_name(id)), Durability::Lasting)
    }

    /// Makes this the journal `id`; the id is that of the staging directory it is about.
    ///
    /// # Errors
    /// [`StoreError`]; the file is gone then.
    ///
    /// # Durability
    /// As [`publish_archive`](Self::publish_archive).
    pub fn publish_journal(self, id: Uuid) -> Result<(), StoreError> {
        let dirs = self.adopt(id);
        self.settle(dirs.journal.as_fd(), &format!("journal/{id}"), Durability::Lasting)
    }

    /// Makes this the hydrated file with content hash `digest`, and opens that for reading.
    ///
    /// That the content has this hash is the caller's promise. A file that is there already is replaced by
    /// its equal, and open descriptors of the old one stay good.
    ///
    /// # Errors
    /// [`StoreError`]; the file is gone then.
    ///
    /// # Durability
    /// None: blobs of an earlier boot of the machine are never used, so nothing waits for the disk here.
    pub fn publish_blob(self, digest: Digest) -> Result<File, StoreError> {
        let dirs = Arc::clone(&self.name.dirs);
        let path = blobs::blob_path(digest);
        let parent = &path[..2];
        match rustix::fs::mkdirat(&dirs.blobs, parent, Mode::from(super::DIR_MODE)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => {
                return Err(StoreError::of("create", dirs.path.join("blobs").join(parent), errno.into()));
            }
        }
        self.settle(dirs.blobs.as_fd(), &format!("blobs/{path}"), Durability::UntilReboot)?;
        open_file(dirs.blobs.as_fd(), &path).at("open", || dirs.path.join("blobs").join(&path))
    }

    /// Gives the file a final name in the store's own directory.
    pub(super) fn publish_marker(self, name: &str) -> Result<(), StoreError> {
        let dirs = Arc::clone(&self.name.dirs);
        self.settle(dirs.root.as_fd(), name, Durability::Lasting)
    }

    /// Notes that `id` is of our making before it has its name, so that no sweep of ours takes it.
    fn adopt(&self, id: Uuid) -> Arc<Dirs> {
        self.name.dirs.made().insert(id);
        Arc::clone(&self.name.dirs)
    }

    /// Renames to `name` (relative to the store, shown in errors) in `dir`: the only way to a final name.
    fn settle(self, dir: BorrowedFd<'_>, name: &str, durability: Durability) -> Result<(), StoreError> {
        let Self { file, name: mut temp } = self;
        let dirs = Arc::clone(&temp.dirs);
        let shown = || dirs.path.join(name);
        // Blobs have one more directory level below the descriptor than the rest.
        let below = match name.split_once('/') {
            Some((_, below)) => below,
            None => name,
        };
        if let Durability::Lasting = durability {
            rustix::fs::fsync(&file).at("sync", shown)?;
        }
        rustix::fs::renameat(&dirs.tmp, temp.id.to_string(), dir, below).at("rename a file to", shown)?;
        temp.settled = true;
        if let Durability::Lasting = durability {
            rustix::fs::fsync(dir).at("sync the directory of", shown)?;
        }
        Ok(())
    }
}

impl TempName {
    fn path(&self) -> PathBuf {
        self.dirs.path.join("tmp").join(self.id.to_string())
    }
}

impl Drop for TempName {
    fn drop(&mut self) {
        if !self.settled {
            let name = self.id.to_string();
            match rustix::fs::unlinkat(&self.dirs.tmp, name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                // The next sweep takes it.
                Err(errno) => tracing::debug!(path = ?self.path(), %errno, "temporary file stays"),
            }
        }
        self.dirs.made().remove(&self.id);
    }
}
