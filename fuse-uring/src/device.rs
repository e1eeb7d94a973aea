//! A mounted `/dev/fuse` descriptor.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Weak};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, OFlags};
use rustix::io::Errno;
use zerocopy::IntoBytes;

use crate::abi::{NotifyCode, OutHeader};
use crate::session::StartError;
use crate::sys;

/// Device number of `/dev/fuse`, fixed by the kernel.
const FUSE_DEVICE: (u32, u32) = (10, 229);

/// How long the kernel may take to open the conversation on a mounted descriptor; it does so at once.
const HANDSHAKE_TIMEOUT: Timespec = Timespec { tv_sec: 10, tv_nsec: 0 };

/// A session's connection to the kernel. It is closed when the session is over.
#[derive(Debug)]
pub struct Device {
    fd: Arc<OwnedFd>,
}

/// A backing file that the kernel knows. Dropping this makes it forget; files opened with it go on.
#[derive(Debug)]
pub struct BackingId {
    id: u32,
    device: Weak<OwnedFd>,
}

impl Device {
    /// Refuses what would block or fail later.
    pub(crate) fn new(fd: OwnedFd) -> Result<Self, StartError> {
        let stat = rustix::fs::fstat(&fd).map_err(|_| StartError::NotFuse)?;
        let number = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
        if FileType::from_raw_mode(stat.st_mode) != FileType::CharacterDevice || number != FUSE_DEVICE {
            return Err(StartError::NotFuse);
        }
        // The kernel's first message is under way as soon as the descriptor is mounted.
        let mut polled = [PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::IN)];
        let ready = poll(&mut polled, Some(&HANDSHAKE_TIMEOUT));
        if ready.is_err() || !polled[0].revents().contains(PollFlags::IN) {
            return Err(StartError::NotMounted);
        }
        // Threads wait in their reads.
        let flags = rustix::fs::fcntl_getfl(&fd).map_err(|_| StartError::NotFuse)?;
        if flags.contains(OFlags::NONBLOCK) {
            rustix::fs::fcntl_setfl(&fd, flags - OFlags::NONBLOCK).map_err(|_| StartError::NotFuse)?;
        }
        Ok(Self { fd: Arc::new(fd) })
    }

    /// Lets the kernel read and write `file` itself, for files that are opened with
    /// [`FopenFlags::PASSTHROUGH`](crate::FopenFlags::PASSTHROUGH) and the id.
    ///
    /// # Errors
    /// `EPERM` without `CAP_SYS_ADMIN`; `ELOOP` where `file` lies on too many file systems; others as the
    /// kernel has them.
    pub fn register_backing(&self, file: BorrowedFd<'_>) -> io::Result<BackingId> {
        let id = sys::backing_open(self.fd.as_fd(), file)?;
        Ok(BackingId { id, device: Arc::downgrade(&self.fd) })
    }

    /// Returns whether the connection has not ended: nobody aborted it, and a mount of it is left.
    pub(crate) fn is_connected(&self) -> bool {
        let mut polled = [PollFd::from_borrowed_fd(self.as_fd(), PollFlags::empty())];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut polled, Some(&now)).is_ok() && !polled[0].revents().contains(PollFlags::ERR)
    }

    /// Reads a request. Blocks until there is one.
    pub(crate) fn read(&self, buffer: &mut [u8]) -> Result<usize, Errno> {
        rustix::io::read(&self.fd, buffer)
    }

    /// Answers a request. What goes wrong is logged: there is nobody else to tell.
    pub(crate) fn answer(&self, unique: u64, answer: Result<&[u8], Errno>) {
        let fd = self.fd.as_fd();
        let sent = match answer {
            Ok(body) => send(fd, 0, unique, &[body]),
            Err(errno) => send(fd, -errno.raw_os_error(), unique, &[]),
        };
        match sent {
            Ok(()) => {}
            // The caller was interrupted before the request was read, or the connection is over.
            Err(error @ (Errno::NOENT | Errno::NODEV | Errno::CONNABORTED | Errno::PERM)) => {
                tracing::debug!(unique, %error, "nobody waits for the answer");
            }
            Err(error) => {
                tracing::error!(unique, %error, "kernel refused an answer");
                if let Err(error) = send(fd, -Errno::IO.raw_os_error(), unique, &[]) {
                    tracing::debug!(unique, %error, "kernel refused an error as well");
                }
            }
        }
    }

    /// A second handle of a device that is still open.
    pub(crate) const fn of(fd: Arc<OwnedFd>) -> Self {
        Self { fd }
    }

    pub(crate) const fn shared(&self) -> &Arc<OwnedFd> {
        &self.fd
    }

    pub(crate) fn downgrade(&self) -> Weak<OwnedFd> {
        Arc::downgrade(&self.fd)
    }
}

impl AsFd for Device {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl BackingId {
    /// Returns what [`OpenOut::backing_id`](crate::OpenOut::backing_id) has to be.
    #[must_use]
    pub const fn number(&self) -> i32 {
        self.id.cast_signed()
    }
}

impl Drop for BackingId {
    fn drop(&mut self) {
        // With the connection all its ids are gone.
        let Some(device) = self.device.upgrade() else { return };
        if let Err(error) = sys::backing_close(device.as_fd(), self.id) {
            tracing::debug!(%error, id = self.id, "backing file stays registered");
        }
    }
}

/// Tells the kernel something unasked.
pub(crate) fn notify(fd: BorrowedFd<'_>, code: NotifyCode, parts: &[&[u8]]) -> Result<(), Errno> {
    send(fd, code as i32, 0, parts)
}

fn send(fd: BorrowedFd<'_>, error: i32, unique: u64, parts: &[&[u8]]) -> Result<(), Errno> {
    let size = size_of::<OutHeader>() + parts.iter().map(|part| part.len()).sum::<usize>();
    let len = u32::try_from(size).map_err(|_| Errno::INVAL)?;
    let header = OutHeader { len, error, unique };
    let mut slices = [IoSlice::new(&[]); 4];
    slices[0] = IoSlice::new(header.as_bytes());
    for (slice, part) in slices[1..].iter_mut().zip(parts) {
        *slice = IoSlice::new(part);
    }
    let used = &slices[..=parts.len()];
    // A message is taken whole or not at all, and a write does not wait.
    rustix::io::retry_on_intr(|| rustix::io::writev(fd, used)).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_that_is_not_fuse_is_refused() -> io::Result<()> {
        for path in ["/dev/null", "/proc/self/status"] {
            let file = std::fs::File::open(path)?;
            assert!(matches!(Device::new(file.into()), Err(StartError::NotFuse)), "{path}");
        }
        Ok(())
    }
}
