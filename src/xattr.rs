//! User extended attributes of real files.

use std::ffi::OsString;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;

use rustix::io::Errno;

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
    for name in names.split(|&byte| byte == 0).filter(|name| name.starts_with(USER)) {
        let name = OsString::from_vec(name.to_vec());
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

fn list(file: &impl AsFd) -> rustix::io::Result<Vec<u8>> {
    grow(|buffer| rustix::fs::flistxattr(file, buffer))
}

fn get(file: &impl AsFd, name: &OsString) -> rustix::io::Result<Vec<u8>> {
    grow(|buffer| rustix::fs::fgetxattr(file, name, buffer))
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
