//! Listing and removing directory trees by descriptor.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

/// Returns the names in a directory, without `.` and `..`.
pub(super) fn names(dir: BorrowedFd<'_>) -> Result<Vec<CString>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            names.push(entry.file_name().to_owned());
        }
    }
    Ok(names)
}

/// Returns the status of `name` itself; `None` where it has gone meanwhile.
pub(super) fn stat(dir: BorrowedFd<'_>, name: &CStr) -> Result<Option<Stat>, Errno> {
    match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// Returns the bytes of the files in `dir`, without its subdirectories.
pub(super) fn file_bytes(dir: BorrowedFd<'_>) -> Result<u64, Errno> {
    let mut bytes = 0;
    for name in names(dir)? {
        if let Some(stat) = stat(dir, &name)? {
            bytes += file_size(&stat).unwrap_or(0);
        }
    }
    Ok(bytes)
}

/// Returns the size of a regular file, `None` for anything else.
pub(super) fn file_size(stat: &Stat) -> Option<u64> {
    let is_file = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
    is_file.then(|| u64::try_from(stat.st_size).unwrap_or(0))
}

/// Removes `name` and all below it, following no symbolic link; returns whether it was there.
pub(super) fn remove(parent: BorrowedFd<'_>, name: &CStr) -> Result<bool, Errno> {
    let unlinked = rustix::fs::unlinkat(parent, name, AtFlags::empty());
    match unlinked {
        Ok(()) => return Ok(true),
        Err(Errno::NOENT) => return Ok(false),
        // Linux says EISDIR for a directory, POSIX EPERM.
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(errno) => return Err(errno),
    }
    let dir = open_for_removal(parent, name)?;
    for child in names(dir.as_fd())? {
        remove(dir.as_fd(), &child)?;
    }
    match rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(true),
        Err(errno) => Err(errno),
    }
}

/// Opens a directory of ours that may have lost its permission bits.
fn open_for_removal(parent: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let open = || rustix::fs::openat(parent, name, flags, Mode::empty());
    match open() {
        Err(Errno::ACCESS) => {
            rustix::fs::chmodat(parent, name, Mode::RWXU, AtFlags::empty())?;
            open()
        }
        Ok(dir) => {
            let mode = rustix::fs::fstat(&dir)?.st_mode;
            if mode & 0o300 != 0o300 {
                rustix::fs::fchmod(&dir, Mode::RWXU)?;
            }
            Ok(dir)
        }
        Err(errno) => Err(errno),
    }
}
