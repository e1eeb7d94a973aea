//! The kernel's requests, one method each: convert, make one call, convert the answer.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime};

use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, FopenFlags, Generation, INodeNo,
    IoctlFlags, KernelConfig, LockOwner, OpenFlags, PollEvents, PollFlags, PollNotifier, ReplyAttr,
    ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen,
    ReplyPoll, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use vout::fs::{Attr, AttrChanges, FileKind, FsError, NewNode};

use super::convert::{
    MODE_BITS, file_attr, file_type, kind_of_mode, no_entry, node_of, rename_flags, set_time,
};
use super::{Adapter, DirSlot, caller_of};
use crate::errno::errno_of;
use crate::terminal;

/// Node numbers are never used again for something else while a session lasts.
const GENERATION: Generation = Generation(0);

/// What a listing shows for an object without a number: zero would hide the name.
const UNKNOWN_INO: u64 = 0xffff_ffff;

thread_local! {
    /// Content on its way to the kernel.
    static READ_BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl Adapter {
    fn reply_entry(&self, reply: ReplyEntry, answer: Result<Attr, Errno>) {
        match answer {
            Ok(attr) => reply.entry_with_ttls(
                &self.options.attr_ttl,
                &self.options.entry_ttl,
                &file_attr(&attr),
                GENERATION,
            ),
            Err(errno) => reply.error(errno),
        }
    }

    /// Listings may be cached where only this mount changes the tree; every change through it makes the
    /// kernel drop them.
    fn dir_flags(&self) -> FopenFlags {
        if self.options.cache_dirs {
            FopenFlags::FOPEN_CACHE_DIR | FopenFlags::FOPEN_KEEP_CACHE
        } else {
            FopenFlags::empty()
        }
    }

    fn reply_attr(&self, reply: ReplyAttr, answer: Result<Attr, Errno>) {
        match answer {
            Ok(attr) => reply.attr(&self.attr_ttl(attr.node), &file_attr(&attr)),
            Err(errno) => reply.error(errno),
        }
    }
}

fn reply_empty(reply: ReplyEmpty, answer: Result<(), Errno>) {
    match answer {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(errno),
    }
}

// Parameters are the trait's.
impl fuser::Filesystem for Adapter {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        self.negotiate(config);
        Ok(())
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if let Some(stream) = self.terminal_stream(node_of(parent), name) {
            let attr = self.counted(terminal::attr_of(stream));
            return reply.entry(&Duration::ZERO, &file_attr(&attr), GENERATION);
        }
        let answer = self.answer(request, "lookup", parent, || {
            self.core(request).lookup(node_of(parent), name).map(|attr| self.counted(attr))
        });
        match (answer, self.options.negative_ttl) {
            (Err(errno), Some(ttl)) if errno.code() == Errno::ENOENT.code() => {
                reply.entry(&ttl, &no_entry(), GENERATION);
            }
            (answer, _) => self.reply_entry(reply, answer),
        }
    }

    fn forget(&self, _request: &Request, ino: INodeNo, count: u64) {
        self.forgotten(node_of(ino), count);
    }

    fn getattr(&self, request: &Request, ino: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        let answer = self.answer(request, "getattr", ino, || self.attr(node_of(ino)));
        self.reply_attr(reply, answer);
    }

    fn setattr(
        &self,
        request: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size_bytes: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let (mode, atime, mtime) =
            (mode.map(|mode| mode & MODE_BITS), atime.map(set_time), mtime.map(set_time));
        let changes = AttrChanges { mode, uid, gid, size_bytes, atime, mtime, kill_set_id: false };
        let answer =
            self.answer(request, "setattr", ino, || self.set_attr(self.core(request), node_of(ino), changes));
        self.reply_attr(reply, answer);
    }

    fn readlink(&self, request: &Request, ino: INodeNo, reply: ReplyData) {
        match self.answer(request, "readlink", ino, || self.core.read_link(node_of(ino))) {
            Ok(target) => reply.data(target.as_encoded_bytes()),
            Err(errno) => reply.error(errno),
        }
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let answer = self.answer(request, "mknod", parent, || {
            let new = NewNode { kind: kind_of_mode(mode)?, mode: mode & MODE_BITS & !umask, rdev };
            let attr = self.core(request).make_node(caller_of(request), node_of(parent), name, new)?;
            Ok(self.counted(attr))
        });
        self.reply_entry(reply, answer);
    }

    fn mkdir(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        let answer = self.answer(request, "mkdir", parent, || {
            let mode = mode & MODE_BITS & !umask;
            let attr = self.core(request).make_dir(caller_of(request), node_of(parent), name, mode)?;
            Ok(self.counted(attr))
        });
        self.reply_entry(reply, answer);
    }

    fn unlink(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let call = || self.core(request).unlink(node_of(parent), name);
        reply_empty(reply, self.answer(request, "unlink", parent, call));
    }

    fn rmdir(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let call = || self.core(request).remove_dir(node_of(parent), name);
        reply_empty(reply, self.answer(request, "rmdir", parent, call));
    }

    fn symlink(&self, request: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let answer = self.answer(request, "symlink", parent, || {
            let target = target.as_os_str();
            let attr = self.core(request).make_symlink(caller_of(request), node_of(parent), name, target)?;
            Ok(self.counted(attr))
        });
        self.reply_entry(reply, answer);
    }

    fn rename(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: fuser::RenameFlags,
        reply: ReplyEmpty,
    ) {
        let call = || {
            let (from, to) = ((node_of(parent), name), (node_of(new_parent), new_name));
            self.core.rename(from, to, rename_flags(flags)?)
        };
        reply_empty(reply, self.answer(request, "rename", parent, call));
    }

    fn link(
        &self,
        request: &Request,
        ino: INodeNo,
        new_parent: INodeNo,
        new_name: &OsStr,
        reply: ReplyEntry,
    ) {
        let answer = self.answer(request, "link", ino, || {
            let attr = self.core.link(node_of(ino), node_of(new_parent), new_name)?;
            Ok(self.counted(attr))
        });
        self.reply_entry(reply, answer);
    }

    fn open(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let register = |fd: std::os::fd::BorrowedFd<'_>| reply.open_backing(fd);
        match self.answer(request, "open", ino, || {
            self.open_node(self.core(request), node_of(ino), flags.0, &register)
        }) {
            Ok(opened) => match &opened.backing {
                Some(id) => reply.opened_passthrough(opened.handle, opened.flags, id),
                None => reply.opened(opened.handle, opened.flags),
            },
            Err(errno) => reply.error(errno),
        }
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let register = |fd: std::os::fd::BorrowedFd<'_>| reply.open_backing(fd);
        let answer = self.answer(request, "create", parent, || {
            let (at, mode) = ((node_of(parent), name), mode & MODE_BITS & !umask);
            self.create_file(caller_of(request), at, mode, flags, &register)
        });
        let (attr, opened) = match answer {
            Ok(created) => created,
            Err(errno) => return reply.error(errno),
        };
        let (ttl, attr) = (&self.options.entry_ttl, file_attr(&attr));
        match &opened.backing {
            Some(id) => reply.created_passthrough(ttl, &attr, GENERATION, opened.handle, opened.flags, id),
            None => reply.created(ttl, &attr, GENERATION, opened.handle, opened.flags),
        }
    }

    fn read(
        &self,
        request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        size_bytes: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        READ_BUFFER.with_borrow_mut(|buffer| {
            let size = size_bytes as usize;
            if buffer.len() < size {
                buffer.resize(size, 0);
            }
            let buffer = &mut buffer[..size];
            let call = || self.core_file(handle)?.read_at(buffer, offset);
            match self.answer(request, "read", ino, call) {
                Ok(read) => reply.data(&buffer[..read]),
                Err(errno) => reply.error(errno),
            }
        });
    }

    fn write(
        &self,
        request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        if let Some((terminal, stream)) = self.open_terminal(handle) {
            // Requests hold at most 16 MiB.
            let written = u32::try_from(data.len()).unwrap_or(u32::MAX);
            let done = move |shown: Result<(), FsError>| match shown {
                Ok(()) => reply.written(written),
                Err(error) => reply.error(errno_of(&error)),
            };
            return terminal.write(stream, data, Box::new(done));
        }
        match self.answer(request, "write", ino, || self.write(handle, data, offset)) {
            Ok(written) => reply.written(written),
            Err(errno) => reply.error(errno),
        }
    }

    fn release(
        &self,
        _request: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        // Aborted sessions close their files, too.
        self.released(handle);
        reply.ok();
    }

    fn fsync(&self, request: &Request, ino: INodeNo, handle: FileHandle, data_only: bool, reply: ReplyEmpty) {
        let call = || self.sync_file(handle, data_only);
        reply_empty(reply, self.answer(request, "fsync", ino, call));
    }

    fn opendir(&self, request: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let slot = DirSlot { node: node_of(ino), names: std::sync::Mutex::default() };
        match self.answer(request, "opendir", ino, || Ok(self.dirs.add(slot))) {
            Ok(handle) => reply.opened(handle, self.dir_flags()),
            Err(errno) => reply.error(errno),
        }
    }

    fn readdir(
        &self,
        request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let names = match self.answer(request, "readdir", ino, || self.names(handle, offset)) {
            Ok(names) => names,
            Err(errno) => return reply.error(errno),
        };
        let dots = [".", ".."].map(|name| (ino.0, FileKind::Dir, OsStr::new(name)));
        let names = names.iter().map(|entry| (entry.ino, entry.kind, entry.name.as_os_str()));
        // A position names the entry before it; positions index the snapshot.
        let skipped = usize::try_from(offset).unwrap_or(usize::MAX);
        for (position, (node, kind, name)) in (1..).zip(dots.into_iter().chain(names)).skip(skipped) {
            let node = INodeNo(if node == 0 { UNKNOWN_INO } else { node });
            if reply.add(node, position, file_type(kind), name) {
                break;
            }
        }
        reply.ok();
    }

    fn releasedir(
        &self,
        _request: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.dirs.remove(handle);
        reply.ok();
    }

    fn fsyncdir(
        &self,
        request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        _data_only: bool,
        reply: ReplyEmpty,
    ) {
        let call = || self.core.sync_dir(node_of(ino));
        reply_empty(reply, self.answer(request, "fsyncdir", ino, call));
    }

    fn statfs(&self, request: &Request, ino: INodeNo, reply: ReplyStatfs) {
        match self.answer(request, "statfs", ino, || self.core.stats()) {
            Ok(stats) => reply.statfs(
                stats.blocks,
                stats.blocks_free,
                stats.blocks_available,
                stats.files,
                stats.files_free,
                stats.block_size_bytes,
                stats.name_bytes_max,
                stats.block_size_bytes,
            ),
            Err(errno) => reply.error(errno),
        }
    }

    fn fallocate(
        &self,
        request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        length_bytes: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let call = || self.core_file(handle)?.allocate(mode.cast_unsigned(), offset, length_bytes);
        reply_empty(reply, self.answer(request, "fallocate", ino, call));
    }

    fn lseek(
        &self,
        request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        match self.answer(request, "lseek", ino, || self.seek(handle, offset, whence)) {
            Ok(found) => reply.offset(found),
            Err(errno) => reply.error(errno),
        }
    }

    // What follows is left to the kernel: it takes ENOSYS as an answer for good, and asks no more.

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn access(&self, _: &Request, _: INodeNo, _: AccessFlags, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn setxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: &[u8], _: i32, _: u32, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn getxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, reply: ReplyXattr) {
        reply.error(Errno::ENOSYS);
    }

    fn listxattr(&self, _: &Request, _: INodeNo, _: u32, reply: ReplyXattr) {
        reply.error(Errno::ENOSYS);
    }

    fn removexattr(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn ioctl(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: IoctlFlags,
        _: u32,
        _: &[u8],
        _: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn poll(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: PollNotifier,
        _: PollEvents,
        _: PollFlags,
        reply: ReplyPoll,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn copy_file_range(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: u64,
        _: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        reply.error(Errno::ENOSYS);
    }
}
