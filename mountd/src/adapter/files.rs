//! Open files and directories.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use fuse_uring::{BackingId, Device, FopenFlags, OpenOut, Request};
use rustix::io::Errno;
use vout::fs::{Attr, Caller, DirEntry, Filesystem, FsError, NodeId, OpenFile, OpenFlags, SeekTo};
use vout::report::Stream;

use super::convert::{is_exclusive, open_flags};
use super::{Adapter, caller_of};
use crate::terminal::{self, Terminal};

/// Stands for a handle where the node says all: of the terminal, and of what the kernel opened without telling us.
/// Handles start at 1.
pub(super) const NO_HANDLE: u64 = 0;

/// What a request does with a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    Read,
    Write,
}

/// An open file.
pub(super) struct FileSlot {
    node: NodeId,
    file: Arc<dyn OpenFile>,
    executed: bool,
}

/// An open directory.
pub(super) struct DirSlot {
    pub(super) node: NodeId,
    /// The names as they were when reading began; positions index them. Not held while the core reads.
    pub(super) names: Mutex<Option<Arc<[DirEntry]>>>,
}

/// What a new file is to be.
pub(super) struct NewFile<'a> {
    pub(super) parent: NodeId,
    /// None for a file without a name.
    pub(super) name: Option<&'a std::ffi::OsStr>,
    /// Permission bits with the caller's umask already applied.
    pub(super) mode: u32,
    /// Of `open`.
    pub(super) flags: u32,
    pub(super) kill_set_id: bool,
}

impl Adapter {
    pub(super) fn open_node(
        &self,
        request: &Request<'_>,
        flags: u32,
        kill_set_id: bool,
    ) -> Result<OpenOut, FsError> {
        let node = NodeId(request.node());
        if terminal::stream_of(node).is_some() {
            // A stream has no position: O_APPEND and several writers cannot disturb each other.
            let flags =
                FopenFlags::DIRECT_IO | FopenFlags::NONSEEKABLE | FopenFlags::STREAM | FopenFlags::NOFLUSH;
            return Ok(OpenOut { fh: NO_HANDLE, open_flags: flags.bits(), backing_id: 0 });
        }
        let flags = open_flags(flags, kill_set_id);
        if flags.contains(OpenFlags::TRUNCATE) && self.executed.is_running(node) {
            return Err(FsError::Os(Errno::TXTBSY.into()));
        }
        let file = self.core(request).open(node, flags)?;
        self.opened(node, file, flags, request.device())
    }

    /// Creates a file and opens it; opens the one that somebody else created in the meantime.
    pub(super) fn create_file(
        &self,
        request: &Request<'_>,
        new: &NewFile<'_>,
    ) -> Result<(Attr, OpenOut), FsError> {
        let created = self.lookups.hand_out(
            || create(self.core(request), caller_of(request), new),
            |(attr, _): &(Attr, _)| attr.node,
        );
        let (attr, file) = match (created, new.name) {
            (Err(FsError::AlreadyExists), Some(name)) if !is_exclusive(new.flags) => {
                let attr = self.hand_out(|| self.core(request).lookup(new.parent, name))?;
                let open = || self.core(request).open(attr.node, open_flags(new.flags, new.kill_set_id));
                (attr, self.or_forget(attr.node, open())?)
            }
            (created, _) => created?,
        };
        let opened =
            self.or_forget(attr.node, self.opened(attr.node, file, OpenFlags::empty(), request.device()))?;
        Ok((attr, opened))
    }

    /// Takes the reference to `node` back where the kernel gets an error instead.
    fn or_forget<T>(&self, node: NodeId, result: Result<T, FsError>) -> Result<T, FsError> {
        if result.is_err() {
            self.forgotten(node, 1);
        }
        result
    }

    fn opened(
        &self,
        node: NodeId,
        file: Arc<dyn OpenFile>,
        flags: OpenFlags,
        device: &Device,
    ) -> Result<OpenOut, FsError> {
        if !self.options.told_of_opens {
            // It was made just now; no word will come of its end.
            self.unopened.hold(node, file, true);
            let open_flags = (FopenFlags::NOFLUSH | FopenFlags::KEEP_CACHE).bits();
            return Ok(OpenOut { fh: NO_HANDLE, open_flags, backing_id: 0 });
        }
        let offered = if self.state.granted.load(Ordering::Relaxed) { file.backing() } else { None };
        let backing = self.backings.open(node, offered, |fd| self.register(fd, device))?;
        let executed = flags.contains(OpenFlags::EXEC);
        if executed {
            self.executed.open(node);
        }
        let fh = self.files.add(FileSlot { node, file, executed });
        // Without a writeback cache nothing is pending at close but mapped pages, and the kernel writes
        // those when the mapping goes.
        let mut flags = FopenFlags::NOFLUSH;
        flags.insert(if backing.is_some() { FopenFlags::PASSTHROUGH } else { FopenFlags::KEEP_CACHE });
        let backing_id = backing.map_or(0, |id| id.number());
        Ok(OpenOut { fh, open_flags: flags.bits(), backing_id })
    }

    /// Registers a backing file; without the privilege never tries again.
    fn register(&self, fd: BorrowedFd<'_>, device: &Device) -> io::Result<BackingId> {
        if self.state.refused.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let registered = device.register_backing(fd);
        if let Err(error) = &registered
            && error.kind() == io::ErrorKind::PermissionDenied
        {
            tracing::info!("no privilege for passthrough");
            self.state.refused.store(true, Ordering::Relaxed);
        }
        registered
    }

    pub(super) fn released(&self, handle: u64) {
        let Some(slot) = self.files.remove(handle) else { return };
        if slot.executed {
            self.executed.close(slot.node);
        }
        self.backings.close(slot.node);
    }

    /// Returns the terminal behind a node, if it is one.
    pub(super) fn terminal_of(&self, node: NodeId) -> Option<(Arc<Terminal>, Stream)> {
        let stream = terminal::stream_of(node)?;
        Some((Arc::clone(self.terminal.as_ref()?), stream))
    }

    /// Returns the file that is open as `handle`, or that of `node` where the kernel knows no handle.
    pub(super) fn core_file(
        &self,
        core: &dyn Filesystem,
        (node, handle): (NodeId, u64),
        access: Access,
    ) -> Result<Arc<dyn OpenFile>, FsError> {
        if terminal::stream_of(node).is_some() {
            return Err(FsError::InvalidArgument);
        }
        if handle != NO_HANDLE {
            return Ok(Arc::clone(&self.files.get(handle)?.file));
        }
        let (to_write, flags) = match access {
            Access::Read => (false, OpenFlags::READ),
            // One file serves both from then on.
            Access::Write => (true, OpenFlags::READ | OpenFlags::WRITE),
        };
        if to_write {
            core.writing(node);
        }
        self.unopened.get(node, to_write, || core.open(node, flags))
    }

    /// Returns the names of an open directory: as they were when it was first read, or read again from
    /// the start.
    pub(super) fn names(
        &self,
        core: &dyn Filesystem,
        handle: u64,
        offset: u64,
    ) -> Result<Arc<[DirEntry]>, FsError> {
        let dir = self.dirs.get(handle)?;
        let held = dir.names.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if offset > 0
            && let Some(names) = held
        {
            return Ok(names);
        }
        let names: Arc<[DirEntry]> = core.read_dir(dir.node)?.into();
        *dir.names.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&names));
        Ok(names)
    }
}

pub(super) fn write(
    file: &dyn OpenFile,
    data: &[u8],
    offset: u64,
    kill_set_id: bool,
) -> Result<u32, FsError> {
    if kill_set_id {
        file.kill_set_id()?;
    }
    u32::try_from(file.write_at(data, offset)?).map_err(|_| FsError::InvalidArgument)
}

pub(super) fn seek(file: &dyn OpenFile, offset: u64, whence: u32) -> Result<u64, FsError> {
    // The kernel asks for these two only; the values are those of lseek(2).
    let to = match whence {
        3 => SeekTo::Data,
        4 => SeekTo::Hole,
        _ => return Err(FsError::InvalidArgument),
    };
    file.seek(offset, to)
}

fn create(
    core: &dyn Filesystem,
    caller: Caller,
    new: &NewFile<'_>,
) -> Result<(Attr, Arc<dyn OpenFile>), FsError> {
    let flags = open_flags(new.flags, new.kill_set_id);
    match new.name {
        Some(name) => core.create(caller, new.parent, name, new.mode, flags),
        None => core.create_unnamed(caller, new.parent, new.mode, flags),
    }
}
