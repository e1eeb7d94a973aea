//! Work areas: where runs that are going on keep what they write.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{AtFlags, Mode, StatxFlags};
use rustix::io::Errno;
use uuid::Uuid;

use super::error::{At as _, StoreError};
use super::lock::StoreLock;
use super::{DIR_MODE, check_owner, open_dir, open_file, open_or_create_dir};

/// A directory for work in progress.
///
/// ```text
/// staging/<uuid>/  upper layer of one view; locked by the process that uses it
/// journal/<uuid>   commit in progress of the staging directory of the same name
/// tmp/             files without a final name yet
/// lock             held shared by everyone who has the area open, exclusively by a sweep
/// .gitignore       keeps version control out
/// ```
///
/// Every store's directory is one, and `.vout` of a workspace that lies elsewhere than its store is another:
/// files must get from a staging directory to the workspace by renaming.
///
/// # Guarantees
/// - While it is open, no other process sweeps it.
/// - Its methods open nothing by path.
#[derive(Debug)]
pub struct WorkArea {
    /// For messages only.
    path: PathBuf,
    root: OwnedFd,
    staging: OwnedFd,
    journal: OwnedFd,
    tmp: OwnedFd,
    lock: StoreLock,
    /// Ids of all files and directories made here: a sweep takes what the index does not know for a
    /// leftover, and these may merely not be in the index yet. A leaf in the lock order.
    made: Mutex<HashSet<Uuid>>,
}

impl WorkArea {
    /// Opens the work area `name` in the directory `parent`, which is shown as `path`, creating it where it
    /// is missing.
    ///
    /// # Errors
    /// [`StoreError`] where it cannot be used.
    pub fn open(parent: BorrowedFd<'_>, name: &str, path: &Path) -> Result<Arc<Self>, StoreError> {
        let root = open_or_create_dir(parent, path, name)?;
        Self::of_dir(path.join(name), root)
    }

    /// Opens the work area `name` in `parent` if it is there.
    ///
    /// # Errors
    /// [`StoreError`] where it cannot be used.
    pub fn open_existing(
        parent: BorrowedFd<'_>,
        name: &str,
        path: &Path,
    ) -> Result<Option<Arc<Self>>, StoreError> {
        match open_dir(parent, name) {
            Ok(root) => Self::of_dir(path.join(name), root).map(Some),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(StoreError::of("open", path.join(name), errno.into())),
        }
    }

    /// Makes a work area of the directory `root`, which is shown as `path`.
    pub(super) fn of_dir(path: PathBuf, root: OwnedFd) -> Result<Arc<Self>, StoreError> {
        check_owner(&path, &root)?;
        let lock = StoreLock::shared(&root).at("lock", || path.join("lock"))?;
        let sub = |name: &str| open_or_create_dir(root.as_fd(), &path, name);
        let (staging, journal, tmp) = (sub("staging")?, sub("journal")?, sub("tmp")?);
        let made = Mutex::default();
        let area = Arc::new(Self { path, root, staging, journal, tmp, lock, made });
        area.write_marker(".gitignore", b"*\n")?;
        Ok(area)
    }

    /// Returns the descriptor of the area's directory.
    #[must_use]
    pub fn dir(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Returns the path, for display.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns whether a file of the area can be renamed into the directory `other`: same file system and
    /// same mount.
    ///
    /// # Errors
    /// Those of `statx(2)`.
    pub fn same_device_as(&self, other: BorrowedFd<'_>) -> io::Result<bool> {
        let place = |fd: BorrowedFd<'_>| {
            let stat = rustix::fs::statx(fd, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)?;
            Ok::<_, Errno>((stat.stx_dev_major, stat.stx_dev_minor, stat.stx_mnt_id))
        };
        Ok(place(self.dir())? == place(other)?)
    }

    /// Opens a journal for reading.
    ///
    /// # Errors
    /// Those of `openat2(2)`; `NotFound` where there is no such journal.
    pub fn open_journal(&self, id: Uuid) -> io::Result<File> {
        open_file(self.journal(), &id.to_string())
    }

    /// Removes a journal and returns whether there was one, and makes that last: a commit whose journal
    /// came back after a crash would be applied again.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn remove_journal(&self, id: Uuid) -> Result<bool, StoreError> {
        let at = || self.path.join("journal").join(id.to_string());
        let removed = match rustix::fs::unlinkat(&self.journal, id.to_string(), AtFlags::empty()) {
            Err(Errno::NOENT) => false,
            other => {
                other.at("remove", at)?;
                true
            }
        };
        rustix::fs::fsync(&self.journal).at("sync", || self.path.join("journal"))?;
        Ok(removed)
    }

    pub(super) fn journal(&self) -> BorrowedFd<'_> {
        self.journal.as_fd()
    }

    pub(super) fn staging_dir(&self) -> BorrowedFd<'_> {
        self.staging.as_fd()
    }

    pub(super) fn tmp(&self) -> BorrowedFd<'_> {
        self.tmp.as_fd()
    }

    pub(super) fn made(&self) -> MutexGuard<'_, HashSet<Uuid>> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a directory among the temporary files and returns its path and descriptor.
    pub(super) fn make_temp_dir(&self) -> Result<(PathBuf, OwnedFd), StoreError> {
        let id = Uuid::new_v4();
        let path = self.path.join("tmp").join(id.to_string());
        self.made().insert(id);
        let made = rustix::fs::mkdirat(&self.tmp, id.to_string(), Mode::from(DIR_MODE));
        made.at("create", || path.clone())?;
        let dir = open_dir(self.tmp(), &id.to_string()).at("open", || path.clone())?;
        Ok((path, dir))
    }

    /// Runs `work` if nobody else has the area open; `None` if somebody has.
    pub(super) fn exclusively<T>(&self, work: impl FnOnce() -> T) -> Result<Option<T>, StoreError> {
        self.lock.exclusively(self.dir(), work).at("lock", || self.path.join("lock"))
    }
}
