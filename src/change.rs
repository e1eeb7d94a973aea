//! Changing the attributes of real objects.

use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::fs::{AtFlags, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;

use crate::base::timestamps;
use crate::fs::AttrChanges;

/// Bit that makes a directory hand its group down to what is created in it.
pub(crate) const SET_GROUP_ID: u32 = 0o2000;
const SET_USER_ID: u32 = 0o4000;
/// The group may execute it; without this, set-group-id means something else.
pub(crate) const GROUP_EXECUTE: u32 = 0o010;

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

/// Returns `mode` as a write leaves it by somebody without the privilege to keep set-id bits: set-group-id
/// means something else where the group may not execute the file.
pub(crate) fn without_set_id(mode: u32) -> u32 {
    let kept = mode & !SET_USER_ID;
    if kept & GROUP_EXECUTE != 0 { kept & !SET_GROUP_ID } else { kept }
}

/// Takes set-id bits away from an open file; a descriptor opened with `O_PATH` will do.
pub(crate) fn kill_set_id(file: impl AsFd) -> rustix::io::Result<()> {
    let mode = rustix::fs::fstat(&file)?.st_mode & 0o7777;
    match without_set_id(mode) {
        killed if killed == mode => Ok(()),
        killed => chmod(file, killed),
    }
}

fn chmod(file: impl AsFd, mode: u32) -> rustix::io::Result<()> {
    let path = format!("/proc/self/fd/{}", file.as_fd().as_raw_fd());
    rustix::fs::chmodat(rustix::fs::CWD, path, Mode::from_bits_truncate(mode), AtFlags::empty())
}

/// Makes a file somebody's, with a mode; costs nothing where it is so already.
pub(crate) fn give_with_mode(file: impl AsFd, uid: u32, gid: u32, mode: u32) -> rustix::io::Result<()> {
    let stat = rustix::fs::fstat(&file)?;
    let given = (stat.st_uid, stat.st_gid) != (uid, gid);
    if given {
        give_to(&file, uid, gid)?;
    }
    // Changing the owner clears set-id bits.
    if given || stat.st_mode & 0o7777 != mode {
        rustix::fs::fchmod(file, Mode::from_bits_truncate(mode))?;
    }
    Ok(())
}

/// Opens our own file although its mode, `mode`, says that we may not; a descriptor opened with `O_PATH` will do. The file
/// has another mode for that moment, and the time of its last change is a new one.
pub(crate) fn open_in_spite_of_mode(
    object: impl AsFd,
    mode: u32,
    access: OFlags,
) -> rustix::io::Result<OwnedFd> {
    chmod(&object, mode | 0o600)?;
    let path = format!("/proc/self/fd/{}", object.as_fd().as_raw_fd());
    let opened = rustix::fs::open(path, access | OFlags::CLOEXEC, Mode::empty());
    chmod(object, mode)?;
    opened
}

/// Changes attributes of an open regular file or directory; a descriptor opened with `O_PATH` will do,
/// which needs no permission on the object.
pub(crate) fn change_attributes(object: impl AsFd, changes: &AttrChanges) -> rustix::io::Result<()> {
    change(object.as_fd(), changes, |path, size_bytes| {
        let file = rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
        rustix::fs::ftruncate(file, size_bytes)
    })
}

/// Changes attributes of an open file as [`change_attributes`] does, its size with the permission that it was
/// opened with.
pub(crate) fn change_open_file(file: impl AsFd, changes: &AttrChanges) -> rustix::io::Result<()> {
    let file = file.as_fd();
    change(file, changes, |_, size_bytes| rustix::fs::ftruncate(file, size_bytes))
}

fn change(
    object: std::os::fd::BorrowedFd<'_>,
    changes: &AttrChanges,
    truncate: impl FnOnce(&str, u64) -> rustix::io::Result<()>,
) -> rustix::io::Result<()> {
    let path = format!("/proc/self/fd/{}", object.as_raw_fd());
    if changes.uid.is_some() || changes.gid.is_some() {
        let (uid, gid) = (changes.uid.map(Uid::from_raw), changes.gid.map(Gid::from_raw));
        rustix::fs::chownat(object, "", uid, gid, AtFlags::EMPTY_PATH)?;
    }
    if changes.kill_set_id {
        kill_set_id(object)?;
    }
    // Changing the owner clears set-id bits, so the mode comes after it.
    if let Some(mode) = changes.mode {
        chmod(object, mode)?;
    }
    if let Some(size_bytes) = changes.size_bytes {
        truncate(&path, size_bytes)?;
    }
    if changes.atime.is_some() || changes.mtime.is_some() {
        let times = timestamps(changes.atime, changes.mtime);
        rustix::fs::utimensat(rustix::fs::CWD, &*path, &times, AtFlags::empty())?;
    }
    Ok(())
}
