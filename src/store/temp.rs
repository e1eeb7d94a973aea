//! Files without a final name yet, and how they get one.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::sync::Arc;

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use uuid::Uuid;

use super::error::{At as _, StoreError};
use super::{Dirs, Store, WorkArea, archive_name, blobs, claim_name, open_file};
use crate::digest::Digest;

/// A file in `tmp/`, open for reading and writing.
#[derive(Debug)]
#[must_use = "dropping a temporary file removes it"]
pub struct TempFile {
    file: File,
    name: TempName,
    dirs: Arc<Dirs>,
}

/// Whether a file must outlast a crash of the machine once it has its final name.
enum Durability {
    Lasting,
    /// Nobody waits for the disk: whoever reads it after such a crash finds out, and does without.
    Expendable,
}

/// The name of a temporary file; dropping it removes the file.
#[derive(Debug)]
struct TempName {
    area: Arc<WorkArea>,
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
        let (file, name) = create(&self.dirs.own)?;
        Ok(TempFile { file, name, dirs: Arc::clone(&self.dirs) })
    }
}

impl WorkArea {
    /// Makes the journal `id` of what `write` writes; the id is that of the staging directory it is about.
    /// A journal of this id that is there already is replaced.
    ///
    /// # Errors
    /// [`StoreError`] and those of `write`; there is no new journal then.
    ///
    /// # Durability
    /// Content and name outlast a crash of the machine once this returns.
    pub fn publish_journal<E: From<StoreError>>(
        self: &Arc<Self>,
        id: Uuid,
        write: impl FnOnce(&File) -> Result<(), E>,
    ) -> Result<(), E> {
        let (file, name) = create(self)?;
        write(&file)?;
        self.made().insert(id);
        let shown = || self.path().join("journal").join(id.to_string());
        name.settle(&file, self.journal(), &id.to_string(), shown, Durability::Lasting)?;
        Ok(())
    }

    /// Writes one of the files that only others read, if it is missing.
    pub(super) fn write_marker(self: &Arc<Self>, name: &str, content: &[u8]) -> Result<(), StoreError> {
        let at = || self.path().join(name);
        match rustix::fs::statat(self.dir(), name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => return Ok(()),
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(StoreError::of("examine", at(), errno.into())),
        }
        let (mut file, temp) = create(self)?;
        file.write_all(content).at("write", at)?;
        temp.settle(&file, self.dir(), name, at, Durability::Lasting)
    }
}

fn create(area: &Arc<WorkArea>) -> Result<(File, TempName), StoreError> {
    let name = TempName { area: Arc::clone(area), id: Uuid::new_v4(), settled: false };
    area.made().insert(name.id);
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(area.tmp(), name.id.to_string(), flags, Mode::from(0o600))
        .at("create", || name.path())?;
    Ok((fd.into(), name))
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
        let Self { file, name, dirs } = self;
        dirs.own.made().insert(id);
        let below = archive_name(id);
        let shown = || dirs.path.join("archives").join(&below);
        name.settle(&file, dirs.archives.as_fd(), &below, shown, Durability::Lasting)
    }

    /// Makes this the table of contents of the claim `id`.
    ///
    /// # Errors
    /// [`StoreError`]; the file is gone then.
    ///
    /// # Durability
    /// None: a claim that is missing, or whose hashes are wrong, counts as none, and costs a miss.
    pub fn publish_claim(self, id: Uuid) -> Result<(), StoreError> {
        let Self { file, name, dirs } = self;
        dirs.own.made().insert(id);
        let below = claim_name(id);
        let shown = || dirs.path.join("claims").join(&below);
        name.settle(&file, dirs.claims.as_fd(), &below, shown, Durability::Expendable)
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
        let Self { file, name, dirs } = self;
        let path = blobs::blob_path(digest);
        let shown = || dirs.path.join("blobs").join(&path);
        let parent = &path[..2];
        match rustix::fs::mkdirat(&dirs.blobs, parent, Mode::from(super::DIR_MODE)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => {
                return Err(StoreError::of("create", dirs.path.join("blobs").join(parent), errno.into()));
            }
        }
        name.settle(&file, dirs.blobs.as_fd(), &path, shown, Durability::Expendable)?;
        open_file(dirs.blobs.as_fd(), &path).at("open", shown)
    }
}

impl TempName {
    fn path(&self) -> PathBuf {
        self.area.path().join("tmp").join(self.id.to_string())
    }

    /// Renames `file`, which has this name, to `name` in `dir`: the only way to a final name.
    fn settle(
        mut self,
        file: &File,
        dir: BorrowedFd<'_>,
        name: &str,
        shown: impl Fn() -> PathBuf,
        durability: Durability,
    ) -> Result<(), StoreError> {
        if let Durability::Lasting = durability {
            rustix::fs::fsync(file).at("sync", &shown)?;
        }
        rustix::fs::renameat(self.area.tmp(), self.id.to_string(), dir, name)
            .at("rename a file to", &shown)?;
        self.settled = true;
        if let Durability::Lasting = durability {
            rustix::fs::fsync(dir).at("sync the directory of", &shown)?;
        }
        Ok(())
    }
}

impl Drop for TempName {
    fn drop(&mut self) {
        if !self.settled {
            let name = self.id.to_string();
            match rustix::fs::unlinkat(self.area.tmp(), name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                // The next sweep takes it.
                Err(errno) => tracing::debug!(path = ?self.path(), %errno, "temporary file stays"),
            }
        }
        self.area.made().remove(&self.id);
    }
}
