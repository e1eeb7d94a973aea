//! Changing the attributes of real objects.

use std::os::fd::{AsFd, AsRawFd};

use rustix::fs::{AtFlags, Gid, Mode, OFlags, Uid};

use crate::base::timestamps;
use crate::fs::AttrChanges;

/// Bit that makes a directory hand its group down to what is created in it.
pub(crate) const SET_GROUP_ID: u32 = 0o2000;

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
