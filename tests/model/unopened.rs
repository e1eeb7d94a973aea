//! Files as a mount serves them whose kernel does not tell of opens.

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use vout::fs::{AttrChanges, Filesystem, FsError, NodeId, OpenFile, OpenFlags, SeekTo};

/// An open file that is opened anew each time it is used: the daemon holds none for long.
pub(crate) struct Unopened {
    pub(crate) fs: Arc<dyn Filesystem>,
    pub(crate) node: NodeId,
}

impl Unopened {
    fn to_read(&self) -> Result<Arc<dyn OpenFile>, FsError> {
        self.fs.open(self.node, OpenFlags::READ)
    }

    pub(crate) fn to_write(&self) -> Result<Arc<dyn OpenFile>, FsError> {
        self.fs.writing(self.node);
        self.fs.open(self.node, OpenFlags::READ | OpenFlags::WRITE)
    }
}

impl OpenFile for Unopened {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<usize, FsError> {
        self.to_read()?.read_at(buffer, offset)
    }

    fn write_at(&self, data: &[u8], offset: u64) -> Result<usize, FsError> {
        self.to_write()?.write_at(data, offset)
    }

    fn kill_set_id(&self) -> Result<(), FsError> {
        self.to_write()?.kill_set_id()
    }

    fn set_attr(&self, changes: &AttrChanges) -> Result<(), FsError> {
        self.to_write()?.set_attr(changes)
    }

    fn backing(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn sync(&self, data_only: bool) -> Result<(), FsError> {
        self.to_read()?.sync(data_only)
    }

    fn allocate(&self, mode: u32, offset: u64, length_bytes: u64) -> Result<(), FsError> {
        self.to_write()?.allocate(mode, offset, length_bytes)
    }

    fn seek(&self, offset: u64, to: SeekTo) -> Result<u64, FsError> {
        self.to_read()?.seek(offset, to)
    }
}
