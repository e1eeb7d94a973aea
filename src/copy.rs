//! Copying file contents the cheapest way there is: shared extents, in-kernel copy, holes kept.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, SeekFrom};
use rustix::io::Errno;

use crate::base::{BaseStat, timestamps};
use crate::change::give_to;
use crate::fs::SetTime;

/// Bytes asked of the kernel at a time.
const COPY_BYTES: usize = 1 << 30;

/// Copies all of `from` into the empty file `to`.
///
/// # Errors
/// Those of the system calls.
pub fn copy_contents(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> rustix::io::Result<()> {
    if rustix::fs::ioctl_ficlone(to, from).is_ok() {
        return Ok(());
    }
    let size_bytes = u64::try_from(rustix::fs::fstat(from)?.st_size).unwrap_or(0);
    let mut offset = 0;
    while offset < size_bytes {
        let data = match rustix::fs::seek(from, SeekFrom::Data(offset)) {
            Ok(data) => data,
            Err(Errno::NXIO) => break,
            Err(Errno::INVAL) => offset,
            Err(errno) => return Err(errno),
        };
        let end = rustix::fs::seek(from, SeekFrom::Hole(data)).unwrap_or(size_bytes);
        copy_range(from, to, data, end)?;
        offset = end;
    }
    rustix::fs::ftruncate(to, size_bytes)
}

/// Copies a regular file with its attributes to a new name.
///
/// # Errors
/// Those of the system calls.
pub fn copy_file(
    (from_dir, from_name): (&OwnedFd, &OsStr),
    (to_dir, to_name): (&OwnedFd, &OsStr),
) -> rustix::io::Result<()> {
    let flags = OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let from = rustix::fs::openat(from_dir, from_name, OFlags::RDONLY | flags, Mode::empty())?;
    let create = OFlags::RDWR | OFlags::CREATE | OFlags::TRUNC | flags;
    let to = rustix::fs::openat(to_dir, to_name, create, Mode::RUSR | Mode::WUSR)?;
    copy_contents(from.as_fd(), to.as_fd())?;
    let stat = BaseStat::from(rustix::fs::fstat(&from)?);
    give_to(&to, stat.uid, stat.gid)?;
    rustix::fs::fchmod(&to, Mode::from_bits_truncate(stat.mode))?;
    let times = timestamps(Some(SetTime::At(stat.atime)), Some(SetTime::At(stat.identity.mtime)));
    rustix::fs::futimens(&to, &times)
}

/// Copies at most `length_bytes` within or between files, and returns how many: fewer at the end of `from`.
///
/// # Errors
/// Those of the system calls.
pub(crate) fn copy_some(
    (from, mut read_at): (BorrowedFd<'_>, u64),
    (to, mut write_at): (BorrowedFd<'_>, u64),
    length_bytes: u64,
) -> rustix::io::Result<u64> {
    let (start, end) = (read_at, read_at.saturating_add(length_bytes));
    while read_at < end {
        let wanted = usize::try_from(end - read_at).unwrap_or(COPY_BYTES).min(COPY_BYTES);
        match rustix::fs::copy_file_range(from, Some(&mut read_at), to, Some(&mut write_at), wanted) {
            Ok(0) => break,
            Ok(_) | Err(Errno::INTR) => {}
            Err(Errno::XDEV | Errno::NOSYS | Errno::OPNOTSUPP) => {
                return Ok(read_at - start + copy_by_hand((from, read_at), (to, write_at), end - read_at)?);
            }
            // What was copied before an error counts.
            Err(_) if read_at > start => break,
            Err(errno) => return Err(errno),
        }
    }
    Ok(read_at - start)
}

fn copy_range(from: BorrowedFd<'_>, to: BorrowedFd<'_>, start: u64, end: u64) -> rustix::io::Result<()> {
    let (mut read_at, mut write_at) = (start, start);
    while read_at < end {
        let wanted = usize::try_from(end - read_at).unwrap_or(COPY_BYTES).min(COPY_BYTES);
        match rustix::fs::copy_file_range(from, Some(&mut read_at), to, Some(&mut write_at), wanted) {
            Ok(0) => break,
            Ok(_) | Err(Errno::INTR) => {}
            Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                return copy_by_hand((from, read_at), (to, write_at), end - read_at).map(drop);
            }
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

fn copy_by_hand(
    (from, read_at): (BorrowedFd<'_>, u64),
    (to, write_at): (BorrowedFd<'_>, u64),
    length_bytes: u64,
) -> rustix::io::Result<u64> {
    let mut buffer = vec![0; 256 * 1024];
    let mut done = 0;
    while done < length_bytes {
        let wanted = buffer.len().min(usize::try_from(length_bytes - done).unwrap_or(usize::MAX));
        let n = rustix::io::pread(from, &mut buffer[..wanted], read_at + done)?;
        if n == 0 {
            break;
        }
        let mut written = 0;
        while written < n {
            written += rustix::io::pwrite(to, &buffer[written..n], write_at + done + written as u64)?;
        }
        done += n as u64;
    }
    Ok(done)
}
