//! Changing the attributes of real objects.

use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd};

use rustix::fs::{AtFlags, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;

use crate::base::timestamps;
use crate::fs::AttrChanges;

/// Bit that makes a directory hand its group down to what is created in it.
pub(crate) const SET_GROUP_ID: u32 = 0o2000;

/// Gives an open file to a user and a group, where the process may: an ordinary user cannot give files away,
/// and they stay the user's own.
pub(crate) fn give_to(file: impl AsFd, uid: u32, gid: u32) -> rustix::io::Result<()> {
    where_allowed(rustix::fs::fchown(file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid))))
}

/// Gives a name in a directory to a user and a group without following a link, like [`give_to`].
pub(crate) fn give_name_to(dir: impl AsFd, name: &OsStr, uid: u32, gid: u32) -> rustix::io::Result<()> {
    let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
    where_allowed(rustix::fs::chownat(dir, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW))
}

fn where_allowed(result: rustix::io::Result<()>) -> rustix::io::Result<()> {
    match result {
        Err(Errno::PERM) => Ok(()),
        result => result,
    }
}

/// Changes attributes of an open regular file or directory; a descriptor opened with `O_PATH` will do,
/// which needs no permission on the object.
pub(crate) fn change_attributes(object: impl AsFd, changes: &AttrChanges) -> rustix::io::Result<()> {
    let object = object.as_fd();
    let path = format!("/proc/self/fd/{}", object.as_raw_fd());
    if changes.uid.is_some() || changes.gid.is_some() {
        let (uid, gid) = (changes.uid.map(Uid::from_raw), changes.gid.map(Gid::from_raw));
        rustix::fs::chownat(object, "", uid, gid, AtFlags::EMPTY_PATH)?;
    }
    // Changing the owner clears set-id bits, so the mode comes after it.
    if let Some(mode) = changes.mode {
        let mode = Mode::from_bits_truncate(mode);
        rustix::fs::chmodat(rustix::fs::CWD, &*path, mode, AtFlags::empty())?;
    }
    if let Some(size_bytes) = changes.size_bytes {
        let file = rustix::fs::open(&*path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
        rustix::fs::ftruncate(file, size_bytes)?;
    }
    if changes.atime.is_some() || changes.mtime.is_some() {
        let times = timestamps(changes.atime, changes.mtime);
        rustix::fs::utimensat(rustix::fs::CWD, &*path, &times, AtFlags::empty())?;
    }
    Ok(())
}
