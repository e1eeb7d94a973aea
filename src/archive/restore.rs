//! Writing archived files out, eagerly.
//!
//! Archives may come from anybody. Everything happens below one directory descriptor, no symbolic link is
//! followed on the way, and files appear under their names complete or not at all. What is replaced is
//! replaced by `rename`, so other names of it (hard links) keep what they have.
//!
//! Nothing is made durable here.

use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rayon::prelude::*;
use rustix::fs::{
    AtFlags, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, UTIME_OMIT, Uid, XattrFlags,
};
use rustix::io::Errno;
use thiserror::Error;
use uuid::Uuid;

use crate::archive::ArchiveError;
use crate::archive::reader::Archive;
use crate::archive::record::{Record, RecordKind};
use crate::fs::Timestamp;
use crate::path::{RelPath, RelPathBuf};

/// What one thread restores at a time: so many files of one directory, or fewer that have so many bytes together.
const PART_RECORDS_MAX: usize = 64;
const PART_BYTES: u64 = 4 * 1024 * 1024;
const SETUID_SETGID: u32 = 0o6000;

/// What temporary names begin and end with; a UUID is in between.
const TEMPORARY_PREFIX: &str = ".vout-";
const TEMPORARY_SUFFIX: &str = ".tmp";

/// What [`restore`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Restored {
    /// Regular files written, every name of a hard-linked one.
    pub files: u64,
    /// Their bytes, a hard-linked one counted once.
    pub bytes: u64,
    /// Names removed.
    pub removed: u64,
}

/// Why a record cannot be restored.
#[derive(Debug, Error)]
pub enum RestoreError {
    /// The archive cannot be read.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// A record lies below something that the archive says is no directory.
    #[error("{path:?} lies below {ancestor:?}, which is not a directory in the archive")]
    NotADirectory {
        /// The record.
        path: RelPathBuf,
        /// What it lies below.
        ancestor: RelPathBuf,
    },
    /// The operating system refused.
    #[error("{path:?} cannot be restored")]
    Io {
        /// The record.
        path: RelPathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Takes the files and bytes that were restored since it was last called.
pub type RestoreProgress<'a> = &'a (dyn Fn(u64, u64) + Sync);

/// Restores the records that `filter` selects below `root`, on all threads of the pool.
///
/// Deletions come first; a directory that is to be removed and is not empty stays. Then directories, files,
/// links, and the attributes of directories at last. `mtime` gives each modification time.
///
/// # Errors
/// [`RestoreError`]; what was restored before stays.
pub fn restore(
    archive: &Archive,
    root: &OwnedFd,
    filter: &dyn Fn(&Record) -> bool,
    mtime: impl Fn(Timestamp) -> Timestamp + Sync,
    progress: RestoreProgress<'_>,
) -> Result<Restored, RestoreError> {
    let plan = Plan::of(archive, filter)?;
    let removed = remove(root, &plan.removals)?;
    plan.dirs.iter().try_for_each(|record| make_dir(root, record))?;
    parts(&plan.files, |record| record).into_par_iter().try_for_each(|files| {
        let parent = open_parent(root, &files[0].path)?;
        for record in files {
            let (_, name) = split(record)?;
            restore_file(archive, record, parent.as_fd(), name, mtime(record.mtime))?;
            progress(1, record.size_bytes());
        }
        Ok::<_, RestoreError>(())
    })?;
    for record in &plan.symlinks {
        restore_symlink(root, record, mtime(record.mtime))?;
    }
    for (record, target) in &plan.links {
        restore_link(root, record, target)?;
        progress(1, 0);
    }
    // Deepest first: a directory may lose the permissions that its own would need.
    for record in plan.dirs.iter().rev() {
        let dir =
            open_dir(root, &record.path, OFlags::RDONLY).map_err(|error| at_path(&record.path, error))?;
        set_attributes(dir.as_fd(), record, mtime(record.mtime)).map_err(|error| at(record, error))?;
    }
    Ok(Restored {
        files: (plan.files.len() + plan.links.len()) as u64,
        bytes: plan.files.iter().map(Record::size_bytes).sum(),
        removed,
    })
}

/// Writes one file into the directory `parent` as `name`: first under a temporary name, then renamed.
///
/// # Errors
/// [`RestoreError`]; then the temporary name is gone, and what was there before is untouched.
pub fn restore_file(
    archive: &Archive,
    record: &Record,
    parent: BorrowedFd<'_>,
    name: &OsStr,
    mtime: Timestamp,
) -> Result<(), RestoreError> {
    let temporary = Temporary::new(parent);
    restore_new_file(archive, record, parent, &temporary.name, mtime)?;
    temporary.publish(name).map_err(|error| at(record, error))
}

/// Writes one file into the directory `parent`, which nobody else knows, as `name`, which nothing has.
///
/// # Errors
/// [`RestoreError`]; then the file may be there.
pub fn restore_new_file(
    archive: &Archive,
    record: &Record,
    parent: BorrowedFd<'_>,
    name: &OsStr,
    mtime: Timestamp,
) -> Result<(), RestoreError> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(parent, name, flags, first_mode(record))
        .map_err(|error| at_path(&record.path, error))?;
    let file = File::from(file);
    archive.copy_to(record, &file)?;
    set_attributes(file.as_fd(), record, mtime).map_err(|error| at(record, error))
}

/// What is to be done, in order.
#[derive(Default)]
struct Plan {
    removals: Vec<RelPathBuf>,
    dirs: Vec<Record>,
    files: Vec<Record>,
    symlinks: Vec<Record>,
    /// Links and the file that each is a link to.
    links: Vec<(Record, RelPathBuf)>,
}

impl Plan {
    /// Sorts records by what is to be done, before anything is done: an archive that makes no sense leaves
    /// no trace.
    fn of(archive: &Archive, filter: &dyn Fn(&Record) -> bool) -> Result<Self, RestoreError> {
        let mut plan = Self::default();
        let mut leaves = HashSet::new();
        // Where the name with the data is not selected, the first selected one takes its place.
        let mut carriers: HashMap<RelPathBuf, RelPathBuf> = HashMap::new();
        for record in archive.toc().iter() {
            let record = record?;
            if matches!(record.kind, RecordKind::Absent) {
                if filter(&record) {
                    plan.removals.push(record.path);
                }
                continue;
            }
            let leaf = record.path.ancestors().find(|&ancestor| leaves.contains(ancestor));
            if let Some(ancestor) = leaf.map(RelPath::to_owned) {
                return Err(RestoreError::NotADirectory { path: record.path, ancestor });
            }
            if matches!(record.kind, RecordKind::File { .. } | RecordKind::Symlink { .. }) {
                leaves.insert(record.path.clone());
            }
            if !filter(&record) {
                continue;
            }
            match &record.kind {
                RecordKind::File { link_to, .. } => {
                    let group = link_to.clone().unwrap_or_else(|| record.path.clone());
                    match carriers.get(&group) {
                        Some(carrier) => plan.links.push((record, carrier.clone())),
                        None => {
                            carriers.insert(group, record.path.clone());
                            plan.files.push(record);
                        }
                    }
                }
                RecordKind::Dir => plan.dirs.push(record),
                RecordKind::Symlink { .. } => plan.symlinks.push(record),
                // Made when something is put there.
                RecordKind::ImpliedDir | RecordKind::Absent => {}
            }
        }
        Ok(plan)
    }
}

/// Splits what is to be restored, in the order of the archive, into parts for threads: each has files of one directory
/// alone, and none is empty.
pub(crate) fn parts<T>(all: &[T], record: impl Fn(&T) -> &Record) -> Vec<&[T]> {
    let mut parts = Vec::new();
    for mut same_dir in all.chunk_by(|a, b| record(a).path.parent() == record(b).path.parent()) {
        while !same_dir.is_empty() {
            let mut bytes = 0;
            let small = same_dir.iter().take(PART_RECORDS_MAX).take_while(|one| {
                let fits = bytes < PART_BYTES;
                bytes = bytes.saturating_add(record(one).size_bytes());
                fits
            });
            let (part, rest) = same_dir.split_at(small.count());
            parts.push(part);
            same_dir = rest;
        }
    }
    parts
}

fn at(record: &Record, source: io::Error) -> RestoreError {
    RestoreError::Io { path: record.path.clone(), source }
}

fn at_path(path: &RelPath, error: Errno) -> RestoreError {
    RestoreError::Io { path: path.to_owned(), source: error.into() }
}

/// Decoding lets no root through, but its type does not say so.
fn split(record: &Record) -> Result<(&RelPath, &OsStr), RestoreError> {
    record.path.split_last().ok_or_else(|| at_path(&record.path, Errno::INVAL))
}

/// Removes names, deepest first, and returns how many there were.
fn remove(root: &OwnedFd, removals: &[RelPathBuf]) -> Result<u64, RestoreError> {
    let mut removed = 0;
    for path in removals.iter().rev() {
        let Some((parent, name)) = path.split_last() else { continue };
        let parent = match open_dir(root, parent, OFlags::PATH) {
            Ok(parent) => parent,
            // Nothing is there, or nothing that the archive means.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue,
            Err(error) => return Err(at_path(path, error)),
        };
        let result = match rustix::fs::unlinkat(&parent, name, AtFlags::empty()) {
            // Linux says the first of a directory, POSIX the second.
            Err(Errno::ISDIR | Errno::PERM) => rustix::fs::unlinkat(&parent, name, AtFlags::REMOVEDIR),
            result => result,
        };
        match result {
            Ok(()) => removed += 1,
            Err(Errno::NOENT | Errno::NOTEMPTY | Errno::EXIST) => {}
            Err(error) => return Err(at_path(path, error)),
        }
    }
    Ok(removed)
}

/// Makes a directory, or makes sure that it can be written to; its attributes come later.
fn make_dir(root: &OwnedFd, record: &Record) -> Result<(), RestoreError> {
    let (_, name) = split(record)?;
    let parent = open_parent(root, &record.path)?;
    let failed = |error| at_path(&record.path, error);
    let own = RelPath::new(name.as_bytes()).map_err(|_| failed(Errno::INVAL))?;
    match rustix::fs::mkdirat(&parent, name, Mode::RWXU) {
        Ok(()) => return Ok(()),
        Err(Errno::EXIST) => {}
        Err(error) => return Err(failed(error)),
    }
    match open_dir(&parent, own, OFlags::RDONLY) {
        Ok(dir) => {
            let present = Mode::from_raw_mode(rustix::fs::fstat(&dir).map_err(failed)?.st_mode);
            if present.contains(Mode::RWXU) {
                return Ok(());
            }
            rustix::fs::fchmod(&dir, present | Mode::RWXU).map_err(failed)
        }
        // Something else has the name. Unlinking does not follow it.
        Err(Errno::NOTDIR | Errno::LOOP) => {
            rustix::fs::unlinkat(&parent, name, AtFlags::empty()).map_err(failed)?;
            rustix::fs::mkdirat(&parent, name, Mode::RWXU).map_err(failed)
        }
        Err(error) => Err(failed(error)),
    }
}

/// Writes one file or symbolic link into the directory `parent` as `name`, like [`restore_file`].
///
/// # Errors
/// [`RestoreError`]; what is neither is refused as invalid.
pub fn restore_object(
    archive: &Archive,
    record: &Record,
    parent: BorrowedFd<'_>,
    name: &OsStr,
    mtime: Timestamp,
) -> Result<(), RestoreError> {
    match &record.kind {
        RecordKind::File { .. } => restore_file(archive, record, parent, name, mtime),
        RecordKind::Symlink { target } => put_symlink(record, target, parent, name, mtime),
        RecordKind::Dir | RecordKind::ImpliedDir | RecordKind::Absent => {
            Err(at_path(&record.path, Errno::INVAL))
        }
    }
}

/// Gives the directory `name` in `parent` the attributes of `record`.
///
/// # Errors
/// [`RestoreError`].
pub fn set_dir_attributes(
    record: &Record,
    parent: BorrowedFd<'_>,
    name: &OsStr,
    mtime: Timestamp,
) -> Result<(), RestoreError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = rustix::fs::openat(parent, name, flags, Mode::empty())
        .map_err(|error| at_path(&record.path, error))?;
    set_attributes(dir.as_fd(), record, mtime).map_err(|error| at(record, error))
}

fn restore_symlink(root: &OwnedFd, record: &Record, mtime: Timestamp) -> Result<(), RestoreError> {
    let RecordKind::Symlink { target } = &record.kind else { return Ok(()) };
    let (_, name) = split(record)?;
    let parent = open_parent(root, &record.path)?;
    put_symlink(record, target, parent.as_fd(), name, mtime)
}

fn put_symlink(
    record: &Record,
    target: &OsStr,
    parent: BorrowedFd<'_>,
    name: &OsStr,
    mtime: Timestamp,
) -> Result<(), RestoreError> {
    let temporary = Temporary::new(parent);
    let make = || -> io::Result<()> {
        rustix::fs::symlinkat(target, parent, &*temporary.name)?;
        if rustix::process::geteuid().is_root() {
            let (uid, gid) = (Uid::from_raw(record.uid), Gid::from_raw(record.gid));
            tolerate_denial(rustix::fs::chownat(
                parent,
                &*temporary.name,
                Some(uid),
                Some(gid),
                AtFlags::SYMLINK_NOFOLLOW,
            ))?;
        }
        let times = timestamps(mtime);
        Ok(rustix::fs::utimensat(parent, &*temporary.name, &times, AtFlags::SYMLINK_NOFOLLOW)?)
    };
    make().map_err(|error| at(record, error))?;
    temporary.publish(name).map_err(|error| at(record, error))
}

fn restore_link(root: &OwnedFd, record: &Record, target: &RelPath) -> Result<(), RestoreError> {
    let (_, name) = split(record)?;
    let failed = |error| at_path(&record.path, error);
    let (target_dir, target_name) = target.split_last().ok_or_else(|| failed(Errno::INVAL))?;
    let target_dir = open_dir(root, target_dir, OFlags::PATH).map_err(failed)?;
    let parent = open_parent(root, &record.path)?;
    let temporary = Temporary::new(parent.as_fd());
    rustix::fs::linkat(&target_dir, target_name, &parent, &*temporary.name, AtFlags::empty())
        .map_err(failed)?;
    let left = temporary.name.clone();
    temporary.publish(name).map_err(|error| at(record, error))?;
    // Renaming one name of a file onto another does nothing, says POSIX.
    match rustix::fs::unlinkat(&parent, &*left, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(failed(error)),
    }
}

/// Opens the directory that a path lies in, and makes it where it is missing.
fn open_parent(root: &OwnedFd, path: &RelPath) -> Result<OwnedFd, RestoreError> {
    let parent = path.parent().unwrap_or(RelPath::ROOT);
    match open_dir(root, parent, OFlags::PATH) {
        Err(Errno::NOENT) if !parent.is_root() => {}
        result => return result.map_err(|error| at_path(path, error)),
    }
    let above = open_parent(root, parent)?;
    let name = parent.name().unwrap_or_default();
    // The mask of the process applies. Another thread may be faster.
    match rustix::fs::mkdirat(&above, name, Mode::RWXU | Mode::RWXG | Mode::RWXO) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(at_path(parent, error)),
    }
    open_dir(root, parent, OFlags::PATH).map_err(|error| at_path(path, error))
}

/// Opens a directory below `root` without following symbolic links.
fn open_dir(root: &OwnedFd, path: &RelPath, access: OFlags) -> Result<OwnedFd, Errno> {
    let flags = access | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let path = if path.is_root() { OsStr::new(".") } else { path.as_os_str() };
    let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    loop {
        // EAGAIN: something was renamed meanwhile, see openat2(2).
        match rustix::fs::openat2(root, path, flags, Mode::empty(), beneath) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            result => return result,
        }
    }
}

/// Sets what a record says beside content and name.
///
/// # Errors
/// Those of the file system.
pub(crate) fn set_attributes(file: BorrowedFd<'_>, record: &Record, mtime: Timestamp) -> io::Result<()> {
    // First, as changing attributes needs permission to write.
    for (name, value) in &record.xattrs {
        if !name.as_bytes().starts_with(b"user.") {
            continue;
        }
        match rustix::fs::fsetxattr(file, name.as_os_str(), value, XattrFlags::empty()) {
            // The file system has no attributes: the content is worth more than they are.
            Ok(()) | Err(Errno::OPNOTSUPP) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let mut found = rustix::fs::fstat(file)?;
    let owner = (record.uid, record.gid);
    let given = (found.st_uid, found.st_gid) != owner && rustix::process::geteuid().is_root();
    if given {
        let (uid, gid) = (Uid::from_raw(record.uid), Gid::from_raw(record.gid));
        tolerate_denial(rustix::fs::fchown(file, Some(uid), Some(gid)))?;
        found = rustix::fs::fstat(file)?;
    }
    let mut mode = record.mode & 0o7777;
    if mode & SETUID_SETGID != 0 && (found.st_uid, found.st_gid) != owner {
        // They would give somebody else's rights away.
        mode &= !SETUID_SETGID;
    }
    // Each change is a transaction of the file system, so what is right already is left alone.
    if found.st_mode & 0o7777 != mode {
        rustix::fs::fchmod(file, Mode::from_raw_mode(mode))?;
    }
    Ok(rustix::fs::futimens(file, &timestamps(mtime))?)
}

/// Returns the mode to create a file with: its own where nobody may do more with it before it has everything else.
fn first_mode(record: &Record) -> Mode {
    let ours = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    if (record.uid, record.gid) == ours && record.xattrs.is_empty() {
        Mode::from_raw_mode(record.mode & 0o777)
    } else {
        Mode::RUSR | Mode::WUSR
    }
}

/// In a user namespace, root may not give files to those whom the namespace does not know.
fn tolerate_denial(result: Result<(), Errno>) -> Result<(), Errno> {
    match result {
        Err(Errno::PERM | Errno::INVAL) => Ok(()),
        result => result,
    }
}

fn timestamps(mtime: Timestamp) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: mtime.secs, tv_nsec: mtime.nanos.into() },
    }
}

/// Returns a name for what is put together before it gets its own; nobody else has it.
pub(crate) fn temporary_name() -> String {
    format!("{TEMPORARY_PREFIX}{}{TEMPORARY_SUFFIX}", Uuid::new_v4().simple())
}

/// Returns whether a name is one that [`temporary_name`] makes.
pub(crate) fn is_temporary_name(name: &OsStr) -> bool {
    let id = name.to_str();
    let id = id.and_then(|name| name.strip_prefix(TEMPORARY_PREFIX)?.strip_suffix(TEMPORARY_SUFFIX));
    id.is_some_and(|id| Uuid::try_parse(id).is_ok())
}

/// A temporary name in a directory.
#[must_use = "dropping it removes the temporary name"]
struct Temporary<'a> {
    parent: BorrowedFd<'a>,
    name: OsString,
    published: bool,
}

impl<'a> Temporary<'a> {
    fn new(parent: BorrowedFd<'a>) -> Self {
        Self { parent, name: temporary_name().into(), published: false }
    }

    /// Gives the file its name, in place of what has it; an empty directory gives way as well.
    fn publish(mut self, name: &OsStr) -> io::Result<()> {
        let rename = || rustix::fs::renameat(self.parent, &*self.name, self.parent, name);
        match rename() {
            Err(Errno::ISDIR) => {
                rustix::fs::unlinkat(self.parent, name, AtFlags::REMOVEDIR)?;
                rename()?;
            }
            result => result?,
        }
        self.published = true;
        Ok(())
    }
}

impl Drop for Temporary<'_> {
    fn drop(&mut self) {
        if !self.published {
            // Nothing more can be done about it.
            let _ignored = rustix::fs::unlinkat(self.parent, &*self.name, AtFlags::empty());
        }
    }
}
