//! The directory that holds archives, claims, hydrated files and work in progress.
//!
//! ```text
//! archives/<uuid>.tar.zst   outputs of cached runs
//! claims/<uuid>.toc         what of a task's outputs lies in a workspace
//! blobs/<2 hex>/<64 hex>    hydrated files by content hash; only a cache
//! blobs/boot                boot of the machine in which the blobs were written
//! index.sqlite              the index, see [`crate::index`]
//! CACHEDIR.TAG              keeps backups out
//! ```
//!
//! and those of a work area, see [`WorkArea`]. The work area in use is another one, in the workspace, where
//! files of the store could not be renamed into the workspace.
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
mod work;

use std::fs::{DirBuilder, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use uuid::Uuid;

pub use self::blobs::Trimmed;
use self::error::At as _;
pub use self::error::StoreError;
pub(crate) use self::lock::Gate;
pub use self::staging::Leftovers;
pub use self::sweep::{SweepError, Swept};
pub use self::temp::TempFile;
pub use self::work::WorkArea;

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
    /// Where runs work: the store's own area, or one in the workspace.
    work: Arc<WorkArea>,
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
}

/// Descriptors of the store's directories.
#[derive(Debug)]
struct Dirs {
    /// For messages only.
    path: PathBuf,
    archives: OwnedFd,
    claims: OwnedFd,
    blobs: OwnedFd,
    /// The area in the store's own directory: the store's lock and its temporary files.
    own: Arc<WorkArea>,
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
        Self::in_dir(path, root, notices)
    }

    /// Makes a store that nobody will find again, for the time when the real one cannot be used. The next
    /// sweep of `area` removes it.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn throw_away(area: &Arc<WorkArea>) -> Result<Self, StoreError> {
        let (path, root) = area.make_temp_dir()?;
        let (store, _) = Self::in_dir(&path, root, Vec::new())?;
        Ok(store.with_work_area(Arc::clone(area)))
    }

    /// Has runs work in `area` instead of in the store's own directory.
    #[must_use]
    pub fn with_work_area(self, area: Arc<WorkArea>) -> Self {
        Self { work: area, ..self }
    }

    fn in_dir(
        path: &Path,
        root: OwnedFd,
        mut notices: Vec<StoreNotice>,
    ) -> Result<(Self, Vec<StoreNotice>), StoreError> {
        let own = WorkArea::of_dir(path.into(), root)?;
        let sub = |name: &str| open_or_create_dir(own.dir(), path, name);
        let (archives, claims) = (sub("archives")?, sub("claims")?);
        let (blobs, dropped) = blobs::open_of_this_boot(own.dir(), own.tmp(), path)?;
        if dropped {
            notices.push(StoreNotice::BlobsDropped);
        }
        own.write_marker("CACHEDIR.TAG", CACHEDIR_TAG)?;
        let work = Arc::clone(&own);
        let dirs = Dirs { path: path.into(), archives, claims, blobs, own };
        Ok((Self { dirs: Arc::new(dirs), work }, notices))
    }

    /// Returns the area in which runs work.
    #[must_use]
    pub fn work(&self) -> &Arc<WorkArea> {
        &self.work
    }

    /// Returns the areas in which cut off runs may have left something: the one in which runs work, and
    /// the store's own if that is another.
    pub fn work_areas(&self) -> impl Iterator<Item = &Arc<WorkArea>> {
        let own = &self.dirs.own;
        std::iter::once(&self.work).chain((!Arc::ptr_eq(own, &self.work)).then_some(own))
    }

    /// Returns the descriptor of the store's directory.
    #[must_use]
    pub fn dir(&self) -> BorrowedFd<'_> {
        self.dirs.own.dir()
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

    /// Returns the bytes of all archives.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn archive_bytes(&self) -> Result<u64, StoreError> {
        tree::file_bytes(self.dirs.archives.as_fd()).at("list", || self.dirs.path.join("archives"))
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
        self.dirs.own.made().remove(&id);
        Ok(removed)
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

    let mode = check_owner(path, &root)?;
    if mode & 0o022 != 0 {
        notices.push(StoreNotice::WritableByOthers(mode & 0o7777));
    }
    Ok(root)
}

/// Refuses a directory of another user; returns its mode.
fn check_owner(path: &Path, dir: &OwnedFd) -> Result<u32, StoreError> {
    let stat = rustix::fs::fstat(dir).at("examine", || path.into())?;
    let user = rustix::process::geteuid().as_raw();
    if stat.st_uid != user {
        return Err(StoreError::ForeignOwner { path: path.into(), owner: stat.st_uid, user });
    }
    Ok(stat.st_mode)
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
