//! What no safe interface does: taking a descriptor away from whoever owns it.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

/// Makes the number `of` mean what `with` is.
pub(crate) fn replace(of: RawFd, with: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: `dup2` touches no memory. The owner of `of`, a thread of the server, keeps a valid descriptor, if of another
    // file, which is what it is to be tested against.
    match unsafe { libc::dup2(with.as_raw_fd(), of) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}
