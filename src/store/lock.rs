//! Who uses a store: `flock(2)` on its `lock` file, and a gate in front of rare single-handed work.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::{Errno, retry_on_intr};

/// The store's `lock` file, held shared.
///
/// `flock` is tied to the open file, not to the process: two stores in one process exclude each other's
/// sweeps as two processes do.
#[derive(Debug)]
pub(super) struct StoreLock(OwnedFd);

impl StoreLock {
    /// Takes the lock of the store `root`, shared; waits for a running sweep.
    pub(super) fn shared(root: &OwnedFd) -> Result<Self, Errno> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = rustix::fs::openat(root, "lock", flags, Mode::from(0o600))?;
        retry_on_intr(|| rustix::fs::flock(&file, FlockOperation::LockShared))?;
        Ok(Self(file))
    }

    /// Runs `work` if nobody else has the store open; `None` if somebody has.
    pub(super) fn exclusively<T>(
        &self,
        root: BorrowedFd<'_>,
        work: impl FnOnce() -> T,
    ) -> Result<Option<T>, Errno> {
        // Linux gives up the shared lock before it tries the exclusive one. The gate keeps a second sweeper
        // from slipping in just then: whoever wants the lock exclusively must hold the gate.
        let Some(_gate) = Gate::try_enter(root)? else { return Ok(None) };
        let exclusive = rustix::fs::flock(&self.0, FlockOperation::NonBlockingLockExclusive);
        let _back_to_shared = Shared(&self.0);
        match exclusive {
            Ok(()) => Ok(Some(work())),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(errno) => Err(errno),
        }
    }
}

/// Takes the lock shared again when dropped, also if a sweep panics.
struct Shared<'a>(&'a OwnedFd);

impl Drop for Shared<'_> {
    fn drop(&mut self) {
        // Never waits: only a holder of the gate could have it exclusively, and that is us.
        if let Err(errno) = retry_on_intr(|| rustix::fs::flock(self.0, FlockOperation::LockShared)) {
            tracing::error!(%errno, "the lock of the store is lost");
        }
    }
}

/// Lets one process at a time set the index up, replace the blobs of an earlier boot, or try to sweep.
///
/// It is a lock on the store's directory itself. Lock order: the shared store lock, then the gate; never
/// wait for the store lock while holding the gate.
pub(crate) struct Gate(#[expect(dead_code, reason = "closing it releases the lock")] OwnedFd);

impl Gate {
    /// Waits until nobody else is inside.
    pub(crate) fn enter(root: BorrowedFd<'_>) -> Result<Self, Errno> {
        let dir = Self::open(root)?;
        retry_on_intr(|| rustix::fs::flock(&dir, FlockOperation::LockExclusive))?;
        Ok(Self(dir))
    }

    fn try_enter(root: BorrowedFd<'_>) -> Result<Option<Self>, Errno> {
        let dir = Self::open(root)?;
        match rustix::fs::flock(&dir, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Self(dir))),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// Opens the directory anew: a lock belongs to an open file, and this one's end is to release it.
    fn open(root: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::openat(root.as_fd(), ".", flags, Mode::empty())
    }
}
