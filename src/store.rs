//! The directory that holds archives, claims, hydrated files and work in progress.
//!
//! ```text
//! archives/<uuid>.tar.zst   outputs of cached runs
//! claims/<uuid>.toc         what of a task's outputs lies in a workspace
//! blobs/<2 hex>/<64 hex>    hydrated files by content hash; only a cache
//! blobs/boot                boot of the machine in which the blobs were written
//! staging/<uuid>/           upper layer of one view; locked by the process that uses it
//! journal/<uuid>            commit in progress of the staging directory of the same name
//! tmp/                      files without a final name yet
//! index.sqlite              the index, see [`crate::index`]
//! lock                      held shared by every open store, exclusively by a sweep
//! .gitignore, CACHEDIR.TAG  keep version control and backups out
//! ```
//!
//! A store may lie below a workspace that gets mounted over. After [`Store::open`] nothing here is opened
//! by path any more: everything is relative to descriptors taken before the mount.
//!
//! Not done here: deciding what an archive or a claim means, checking content hashes, applying journals.

mod blobs;
mod error;
mod lock;
mod staging;
mod sweep;
mod temp;
#[cfg(test)]
mod tests;
mod tree;

use std::collections::HashSet;
use std::fs::{DirBuilder, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, StatxFlags};
use rustix::io::Errno;
use uuid::Uuid;

pub use self::blobs::Trimmed;
use self::error::At as _;
pub use self::error::StoreError;
pub(crate) use self::lock::Gate;
use self::lock::StoreLock;
pub use self::staging::Leftovers;
pub use self::sweep::{SweepError, Swept};
pub use self::temp::TempFile;

/// Content of `CACHEDIR.TAG`, as <https://bford.info/cachedir/> has it.
const CACHEDIR_TAG: &[u8] = b"Signature: 8a477f597d28d172789f06886806bc55\n\
    # This directory is a cache of vout; backups may leave it out.\n";

/// Permissions of the store and of the directories in it: build outputs are nobody else's business.
const DIR_MODE: u32 = 0o700;

/// An open store.
///
/// # Guarantees
/// - While it is open, no other process sweeps the store.
/// - Its methods open nothing by path.
#[derive(Debug)]
pub struct Store {
    dirs: Arc<Dirs>,
    lock: StoreLock,
}

/// Something about the store that people should know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreNotice {
    /// There was no store yet.
    Created,
    /// Others may write to the store, and so plant outputs; its permission bits.
    WritableByOthers(u32),
    /// The machine was started anew since the hydrated files were written; they are dropped.
    BlobsDropped,
    /// Runs that were cut off left staging directories or journals behind.
    Interrupted(Leftovers),
}

/// Descriptors of the store's directories.
#[derive(Debug)]
struct Dirs {
    /// For messages only.
    path: PathBuf,
    root: OwnedFd,
    archives: OwnedFd,
    claims: OwnedFd,
    blobs: OwnedFd,
    staging: OwnedFd,
    journal: OwnedFd,
    tmp: OwnedFd,
    /// Ids of all files and directories that this store object made: a sweep takes what the index does not
    /// know for a leftover, and these may merely not be in the index yet. A leaf in the lock order.
    made: Mutex<HashSet<Uuid>>,
}

impl Store {
    /// Opens the store at the absolute `path`, creating it where it is missing.
    ///
    /// Waits while another process sweeps it.
    ///
    /// # Errors
    /// [`StoreError`] where the store cannot be used.
    pub fn open(path: &Path) -> Result<(Self, Vec<StoreNotice>), StoreError> {
        if !path.is_absolute() {
            return Err(StoreError::Relative { path: path.into() });
        }
        let mut notices = Vec::new();
        let root = open_root(path, &mut notices)?;
        let lock = StoreLock::shared(&root).at("lock", || path.join("lock"))?;

        let sub = |name: &str| open_or_create_dir(root.as_fd(), path, name);
        let (archives, claims, staging) = (sub("archives")?, sub("claims")?, sub("staging")?);
        let (journal, tmp) = (sub("journal")?, sub("tmp")?);
        let (blobs, dropped) = blobs::open_of_this_boot(root.as_fd(), tmp.as_fd(), path)?;
        if dropped {
            notices.push(StoreNotice::BlobsDropped);
        }
        let made = Mutex::default();
        let path = path.into();
        let dirs = Dirs { path, root, archives, claims, blobs, staging, journal, tmp, made };
        let store = Self { dirs: Arc::new(dirs), lock };
        store.write_marker(".gitignore", b"*\n")?;
        store.write_marker("CACHEDIR.TAG", CACHEDIR_TAG)?;

        let left = store.leftovers()?;
        if !left.is_empty() {
            notices.push(StoreNotice::Interrupted(left));
        }
        Ok((store, notices))
    }

    /// Returns the descriptor of the store's directory.
    #[must_use]
    pub fn dir(&self) -> BorrowedFd<'_> {
        self.dirs.root.as_fd()
    }

    /// Returns the path the store was opened by, for display.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.dirs.path
    }

    /// Returns the path of an archive, for display.
    #[must_use]
    pub fn archive_path(&self, id: Uuid) -> PathBuf {
        self.dirs.path.join("archives").join(archive_name(id))
    }

    /// Opens an archive for reading.
    ///
    /// # Errors
    /// Those of `openat2(2)`; `NotFound` where there is no such archive.
    pub fn open_archive(&self, id: Uuid) -> io::Result<File> {
        open_file(self.dirs.archives.as_fd(), &archive_name(id))
    }

    /// Opens a claim's table of contents for reading.
    ///
    /// # Errors
    /// Those of `openat2(2)`; `NotFound` where there is no such claim.
    pub fn open_claim(&self, id: Uuid) -> io::Result<File> {
        open_file(self.dirs.claims.as_fd(), &claim_name(id))
    }

    /// Opens a journal for reading.
    ///
    /// # Errors
    /// Those of `openat2(2)`; `NotFound` where there is no such journal.
    pub fn open_journal(&self, id: Uuid) -> io::Result<File> {
        open_file(self.dirs.journal.as_fd(), &id.to_string())
    }

    /// Removes an archive and returns whether there was one. Open descriptors of it stay good.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn remove_archive(&self, id: Uuid) -> Result<bool, StoreError> {
        self.remove(self.dirs.archives.as_fd(), "archives", id, &archive_name(id))
    }

    /// Removes a claim and returns whether there was one.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn remove_claim(&self, id: Uuid) -> Result<bool, StoreError> {
        self.remove(self.dirs.claims.as_fd(), "claims", id, &claim_name(id))
    }

    /// Removes a journal and returns whether there was one, and makes that last: a commit whose journal
    /// came back after a crash would be applied again.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn remove_journal(&self, id: Uuid) -> Result<bool, StoreError> {
        let removed = self.remove(self.dirs.journal.as_fd(), "journal", id, &id.to_string())?;
        rustix::fs::fsync(&self.dirs.journal).at("sync", || self.dirs.path.join("journal"))?;
        Ok(removed)
    }

    /// Returns the bytes of all archives.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn archive_bytes(&self) -> Result<u64, StoreError> {
        tree::file_bytes(self.dirs.archives.as_fd()).at("list", || self.dirs.path.join("archives"))
    }

    /// Returns whether a file of the store can be renamed into the directory `other`: same file system
    /// and same mount.
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

    fn remove(&self, dir: BorrowedFd<'_>, dir_name: &str, id: Uuid, name: &str) -> Result<bool, StoreError> {
        let removed = match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
            Ok(()) => true,
            Err(Errno::NOENT) => false,
            other => {
                other.at("remove", || self.dirs.path.join(dir_name).join(name))?;
                true
            }
        };
        self.dirs.made().remove(&id);
        Ok(removed)
    }

    /// Writes one of the files that only others read, if it is missing.
    fn write_marker(&self, name: &str, content: &[u8]) -> Result<(), StoreError> {
        let at = || self.dirs.path.join(name);
        match rustix::fs::statat(self.dir(), name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => return Ok(()),
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(StoreError::of("examine", at(), errno.into())),
        }
        let temp = self.create_temp()?;
        io::Write::write_all(&mut temp.file(), content).at("write", at)?;
        temp.publish_marker(name)
    }
}

impl Dirs {
    fn made(&self) -> MutexGuard<'_, HashSet<Uuid>> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn archive_name(id: Uuid) -> String {
    format!("{id}.tar.zst")
}

fn claim_name(id: Uuid) -> String {
    format!("{id}.toc")
}

/// Opens the store's directory by path, the only time that happens.
fn open_root(path: &Path, notices: &mut Vec<StoreNotice>) -> Result<OwnedFd, StoreError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = match rustix::fs::open(path, flags, Mode::empty()) {
        Err(Errno::NOENT) => {
            let created = DirBuilder::new().recursive(true).mode(DIR_MODE).create(path);
            created.at("create", || path.into())?;
            notices.push(StoreNotice::Created);
            rustix::fs::open(path, flags, Mode::empty())
        }
        opened => opened,
    }
    .at("open", || path.into())?;

    let stat = rustix::fs::fstat(&root).at("examine", || path.into())?;
    let user = rustix::process::geteuid().as_raw();
    if stat.st_uid != user {
        return Err(StoreError::ForeignOwner { path: path.into(), owner: stat.st_uid, user });
    }
    if stat.st_mode & 0o022 != 0 {
        notices.push(StoreNotice::WritableByOthers(stat.st_mode & 0o7777));
    }
    Ok(root)
}

/// Opens the directory `name` of the store at `path`.
fn open_or_create_dir(root: BorrowedFd<'_>, path: &Path, name: &str) -> Result<OwnedFd, StoreError> {
    match rustix::fs::mkdirat(root, name, Mode::from(DIR_MODE)) {
        Ok(()) | Err(Errno::EXIST) => {}
        // A read-only store says so whether or not the directory is there.
        Err(errno) => return Err(StoreError::of("create", path.join(name), errno.into())),
    }
    open_dir(root, name).at("open", || path.join(name))
}

/// Opens the directory `name`, which must not be a symbolic link.
fn open_dir(dir: BorrowedFd<'_>, name: &str) -> Result<OwnedFd, Errno> {
    open_beneath(dir, name, OFlags::RDONLY | OFlags::DIRECTORY)
}

/// Opens the file `name` for reading.
fn open_file(dir: BorrowedFd<'_>, name: &str) -> io::Result<File> {
    // NONBLOCK: a pipe in place of the file must not hold us up.
    let file = File::from(open_beneath(dir, name, OFlags::RDONLY | OFlags::NONBLOCK)?);
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    Ok(file)
}

fn open_beneath(dir: BorrowedFd<'_>, name: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    // The kernel answers EAGAIN where a rename elsewhere kept it from being sure that `..` stays below; our
    // names have no `..`, but the manual page asks callers to try again all the same.
    loop {
        match rustix::fs::openat2(dir, name, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
            Err(Errno::INTR | Errno::AGAIN) => {}
            opened => return opened,
        }
    }
}
