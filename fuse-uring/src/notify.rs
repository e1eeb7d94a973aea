//! What the server tells the kernel unasked.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::Weak;

use rustix::io::Errno;
use zerocopy::IntoBytes;

use crate::abi::{InvalEntryOut, InvalInodeOut, NotifyCode, NotifyDeleteOut, NotifyPollOut, NotifyStoreOut};
use crate::device::notify;

/// Tells a session's kernel that what it has cached is out of date.
///
/// What the kernel has not cached needs no telling; that is no error. After the session's end everything is
/// refused with `ENODEV`.
///
/// # Limitations
/// The kernel answers only once it holds the directory or the pages concerned, and whoever holds those may be
/// waiting for the session. So never notify from a thread that answers requests, nor under a lock that such
/// a thread may want.
#[derive(Debug, Clone)]
pub struct Notifier {
    device: Weak<OwnedFd>,
}

impl Notifier {
    pub(crate) const fn new(device: Weak<OwnedFd>) -> Self {
        Self { device }
    }

    /// Makes the kernel drop a name, and what it is mounted on.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn inval_entry(&self, parent: u64, name: &OsStr) -> io::Result<()> {
        self.entry(parent, name, 0)
    }

    /// Makes the kernel ask for a name again, without dropping it. Needs `HAS_EXPIRE_ONLY`.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn expire_entry(&self, parent: u64, name: &OsStr) -> io::Result<()> {
        self.entry(parent, name, InvalEntryOut::EXPIRE_ONLY)
    }

    /// Makes the kernel drop a node's attributes, and its content from `offset` on: `length` bytes, or all
    /// where that is zero. A negative offset leaves the content.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn inval_inode(&self, node: u64, offset: i64, length: i64) -> io::Result<()> {
        let out = InvalInodeOut { ino: node, off: offset, len: length };
        self.send(NotifyCode::InvalInode, &[out.as_bytes()])
    }

    /// Tells that the name of `child` is gone: watchers learn of it, and a directory counts as removed.
    ///
    /// # Errors
    /// What the kernel says: `ENOTEMPTY` and `EBUSY` leave the name.
    pub fn delete(&self, parent: u64, child: u64, name: &OsStr) -> io::Result<()> {
        let out = NotifyDeleteOut { parent, child, namelen: name_len(name)?, padding: 0 };
        self.send(NotifyCode::Delete, &[out.as_bytes(), name.as_bytes(), &[0]])
    }

    /// Puts content into the kernel's cache.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn store(&self, node: u64, offset: u64, data: &[u8]) -> io::Result<()> {
        let size = u32::try_from(data.len()).map_err(|_| Errno::INVAL)?;
        let out = NotifyStoreOut { nodeid: node, offset, size, padding: 0 };
        self.send(NotifyCode::Store, &[out.as_bytes(), data])
    }

    /// Wakes up who polls; `kernel_handle` is what the request said.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn poll(&self, kernel_handle: u64) -> io::Result<()> {
        self.send(NotifyCode::Poll, &[NotifyPollOut { kh: kernel_handle }.as_bytes()])
    }

    /// Makes the kernel send again what is not answered yet. Needs `HAS_RESEND`.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn resend(&self) -> io::Result<()> {
        self.send(NotifyCode::Resend, &[])
    }

    /// Makes the kernel ask for every name again. Needs protocol 7.44.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn increment_epoch(&self) -> io::Result<()> {
        self.send(NotifyCode::IncEpoch, &[])
    }

    fn entry(&self, parent: u64, name: &OsStr, flags: u32) -> io::Result<()> {
        let out = InvalEntryOut { parent, namelen: name_len(name)?, flags };
        self.send(NotifyCode::InvalEntry, &[out.as_bytes(), name.as_bytes(), &[0]])
    }

    fn send(&self, code: NotifyCode, parts: &[&[u8]]) -> io::Result<()> {
        let device = self.device.upgrade().ok_or(Errno::NODEV)?;
        match notify(device.as_fd(), code, parts) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

fn name_len(name: &OsStr) -> io::Result<u32> {
    u32::try_from(name.len()).map_err(|_| Errno::NAMETOOLONG.into())
}
