//! All unsafe code: system calls that have no safe wrapper elsewhere.

mod ring;
mod slot;

use std::ffi::c_void;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::{Errno, Result};
use rustix::ioctl::{self, Ioctl, IoctlOutput, Opcode};

pub(crate) use self::ring::{Completion, Ring};
pub(crate) use self::slot::Slot;

/// The device's group of ioctl numbers.
const FUSE_DEV_IOC: u8 = 229;

/// The kernel's `struct fuse_backing_map`.
#[repr(C)]
struct BackingMap {
    fd: i32,
    flags: u32,
    padding: u64,
}

/// An ioctl that reads a `T` and returns a number.
struct Command<T> {
    opcode: Opcode,
    argument: T,
}

// SAFETY: `opcode` is made by `ioctl::opcode::write::<T>` where values of this type are (both below), so the
// kernel reads `size_of::<T>()` bytes from the pointer, which points at a live `T`, and writes nothing.
unsafe impl<T> Ioctl for Command<T> {
    type Output = u32;

    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        self.opcode
    }

    fn as_ptr(&mut self) -> *mut c_void {
        (&raw mut self.argument).cast()
    }

    unsafe fn output_from_ptr(output: IoctlOutput, _: *mut c_void) -> Result<u32> {
        u32::try_from(output).map_err(|_| Errno::INVAL)
    }
}

/// Registers a backing file, and returns its number.
pub(crate) fn backing_open(device: BorrowedFd<'_>, file: BorrowedFd<'_>) -> Result<u32> {
    let argument = BackingMap { fd: file.as_raw_fd(), flags: 0, padding: 0 };
    let command = Command { opcode: ioctl::opcode::write::<BackingMap>(FUSE_DEV_IOC, 1), argument };
    // SAFETY: the command is as its `Ioctl` implementation promises. Whatever `device` is, a number of the
    // group 229 with this size is FUSE_DEV_IOC_BACKING_OPEN or refused with ENOTTY.
    unsafe { ioctl::ioctl(device, command) }
}

/// A scheduling policy of a thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Policy {
    /// `SCHED_OTHER`.
    Normal,
    /// `SCHED_IDLE`.
    Idle,
}

/// Gives the calling thread a policy.
pub(crate) fn set_policy(policy: Policy) -> Result<()> {
    let policy = match policy {
        Policy::Normal => libc::SCHED_OTHER,
        Policy::Idle => libc::SCHED_IDLE,
    };
    let parameters = libc::sched_param { sched_priority: 0 };
    // SAFETY: the pointer is to a live structure of the type that the call reads; it writes nothing.
    let set = unsafe { libc::sched_setscheduler(0, policy, &raw const parameters) };
    if set == 0 {
        Ok(())
    } else {
        Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::INVAL))
    }
}

/// Takes back the number of a backing file.
pub(crate) fn backing_close(device: BorrowedFd<'_>, id: u32) -> Result<()> {
    let command = Command { opcode: ioctl::opcode::write::<u32>(FUSE_DEV_IOC, 2), argument: id };
    // SAFETY: as above; this one is FUSE_DEV_IOC_BACKING_CLOSE.
    unsafe { ioctl::ioctl(device, command) }.map(|_| ())
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_device_that_is_not_mounted_knows_no_backing_files() -> io::Result<()> {
        let null = std::fs::File::open("/dev/null")?;
        assert_eq!(backing_open(null.as_fd(), null.as_fd()), Err(Errno::NOTTY));
        assert_eq!(backing_close(null.as_fd(), 1), Err(Errno::NOTTY));
        Ok(())
    }
}
