//! User extended attributes of real files.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use rustix::fs::XattrFlags;
use rustix::io::Errno;

use crate::fs::XattrMode;

/// Namespace of the attributes that belong to users.
const USER: &[u8] = b"user.";

/// Returns a file's user attributes, sorted by name; none where the file system has no such thing.
///
/// # Errors
/// Those of `flistxattr(2)` and `fgetxattr(2)`.
pub fn user_xattrs(file: impl AsFd) -> rustix::io::Result<Vec<(OsString, Vec<u8>)>> {
    let names = match list(&file) {
        Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
        other => other?,
    };
    let mut xattrs = Vec::new();
    for name in user_names(&names) {
        match get(&file, &name) {
            Ok(value) => xattrs.push((name, value)),
            // Removed meanwhile.
            Err(Errno::NODATA) => {}
            Err(errno) => return Err(errno),
        }
    }
    xattrs.sort();
    Ok(xattrs)
}

/// Returns whether a name is in the namespace of users; the bare namespace is no name.
pub(crate) fn is_of_user(name: &OsStr) -> bool {
    name.as_bytes().starts_with(USER) && name.len() > USER.len()
}

/// Like [`user_xattrs`], of an object that is open with `O_PATH`.
pub(crate) fn user_xattrs_at(object: impl AsFd) -> rustix::io::Result<Vec<(OsString, Vec<u8>)>> {
    let names = match names_at(&object) {
        Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
        other => other?,
    };
    let mut xattrs = Vec::new();
    for name in names {
        match get_at(&object, &name) {
            Ok(value) => xattrs.push((name, value)),
            // Removed meanwhile.
            Err(Errno::NODATA) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(xattrs)
}

/// Sets an attribute of an open object, if its file system has such a thing.
pub(crate) fn set_where_supported(object: impl AsFd, name: &OsStr, value: &[u8]) -> rustix::io::Result<()> {
    match set(object, name, value, XattrMode::Set) {
        Err(Errno::OPNOTSUPP) => Ok(()),
        other => other,
    }
}

/// Returns the value of an attribute of an open file.
pub(crate) fn get(file: impl AsFd, name: &OsStr) -> rustix::io::Result<Vec<u8>> {
    grow(|buffer| rustix::fs::fgetxattr(&file, name, buffer))
}

/// Like [`get`], of an object that is open with `O_PATH`.
pub(crate) fn get_at(object: impl AsFd, name: &OsStr) -> rustix::io::Result<Vec<u8>> {
    grow(|buffer| rustix::fs::getxattr(path_of(&object), name, buffer))
}

/// Returns the names of the user attributes of an open file.
pub(crate) fn names(file: impl AsFd) -> rustix::io::Result<Vec<OsString>> {
    Ok(user_names(&list(&file)?))
}

/// Like [`names`], of an object that is open with `O_PATH`.
pub(crate) fn names_at(object: impl AsFd) -> rustix::io::Result<Vec<OsString>> {
    Ok(user_names(&grow(|buffer| rustix::fs::listxattr(path_of(&object), buffer))?))
}

/// Sets an attribute of an open object; `O_PATH` will do.
pub(crate) fn set(object: impl AsFd, name: &OsStr, value: &[u8], mode: XattrMode) -> rustix::io::Result<()> {
    let flags = match mode {
        XattrMode::Set => XattrFlags::empty(),
        XattrMode::Create => XattrFlags::CREATE,
        XattrMode::Replace => XattrFlags::REPLACE,
    };
    rustix::fs::setxattr(path_of(&object), name, value, flags)
}

/// Removes an attribute of an open object; `O_PATH` will do.
pub(crate) fn remove(object: impl AsFd, name: &OsStr) -> rustix::io::Result<()> {
    rustix::fs::removexattr(path_of(&object), name)
}

fn path_of(object: &impl AsFd) -> String {
    format!("/proc/self/fd/{}", object.as_fd().as_raw_fd())
}

fn user_names(names: &[u8]) -> Vec<OsString> {
    let names = names.split(|&byte| byte == 0).filter(|name| name.starts_with(USER));
    names.map(|name| OsString::from_vec(name.to_vec())).collect()
}

fn list(file: &impl AsFd) -> rustix::io::Result<Vec<u8>> {
    grow(|buffer| rustix::fs::flistxattr(file, buffer))
}

/// Calls `read` with buffers of growing size until the answer fits.
fn grow(read: impl Fn(&mut [u8]) -> rustix::io::Result<usize>) -> rustix::io::Result<Vec<u8>> {
    let mut buffer = vec![0; 256];
    loop {
        match read(&mut buffer) {
            Ok(length) => {
                buffer.truncate(length);
                return Ok(buffer);
            }
            // The kernel's own limit is 64 KiB.
            Err(Errno::RANGE) if buffer.len() < 1 << 17 => buffer.resize(buffer.len() * 4, 0),
            Err(errno) => return Err(errno),
        }
    }
}
