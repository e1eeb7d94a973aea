//! The kernel's requests: convert, make one call, convert the answer.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use fuse_uring::{
    DirBuffer, Errno, FopenFlags, Forget, Handler, Negotiated, OpenOut, Operation, Read, Reply, Request,
    Setattr, WriteFlags,
};
use vout::fs::{Attr, FileKind, Filesystem, FsError, NewNode, NodeId, OpenFile, OpenFlags};

use super::convert::{
    MODE_BITS, attr_changes, attr_out, entry_kind, kind_of_mode, no_entry, rename_flags, statfs_out,
    xattr_mode,
};
use super::files::{Access, DirSlot, NO_HANDLE, NewFile, seek, write};
use super::{Adapter, caller_of, number_of};
use crate::session::SessionEnd;
use crate::terminal;

/// Longer than it takes from a removal until the kernel forgets what was removed.
const FORGETS_TAKE: Duration = Duration::from_millis(5);

/// Entries of every listing before the names in it.
const DOTS: u64 = 2;

/// What a listing shows for an object without a number: zero would hide the name.
const UNKNOWN_INO: u64 = 0xffff_ffff;

impl Handler for Adapter {
    fn init(&self, negotiated: &Negotiated) {
        self.state.grant(negotiated.flags);
    }

    fn handle(&self, request: &Request<'_>, reply: Reply<'_>) {
        let (req, ino, pid) = (request.unique(), request.node(), request.pid());
        let op = request.name();
        self.state.requests.add(request.opcode());
        let span = tracing::debug_span!("request", req, op, ino, pid);
        let _entered = span.enter();
        self.serve(request, reply);
    }

    fn forget(&self, forgets: &[Forget]) {
        for forget in forgets {
            self.forgotten(NodeId(forget.node), forget.lookups);
        }
    }

    fn destroy(&self, end: &SessionEnd) {
        self.ended(end);
    }
}

impl Adapter {
    fn serve(&self, request: &Request<'_>, reply: Reply<'_>) {
        let (core, node) = (self.core(request), NodeId(request.node()));
        match *request.operation() {
            Operation::Lookup { name } => self.lookup(request, name, reply),
            Operation::Getattr { .. } => self.reply_attr(reply, self.attr(request)),
            Operation::Setattr(ref set) => self.reply_attr(reply, self.set_attr(request, set)),
            Operation::Readlink => match core.read_link(node) {
                Ok(target) => reply.bytes(target.as_bytes()),
                Err(error) => reply.error(number_of(&error)),
            },
            Operation::Symlink { .. }
            | Operation::Mknod { .. }
            | Operation::Mkdir { .. }
            | Operation::Link { .. } => self.reply_entry(reply, self.hand_out(|| self.make(request))),
            Operation::Unlink { name } => reply_empty(reply, core.unlink(node, name)),
            Operation::Rmdir { name } => reply_empty(reply, core.remove_dir(node, name)),
            Operation::Rename { name, new_parent, new_name, flags } => {
                let (from, to) = ((node, name), (NodeId(new_parent), new_name));
                reply_empty(reply, rename_flags(flags).and_then(|flags| core.rename(from, to, flags)));
            }
            Operation::Open { .. } if self.opens_without_us(node) => reply.error(Errno::NOSYS),
            Operation::Open { .. } | Operation::Create { .. } | Operation::Tmpfile { .. } => {
                self.open(request, reply);
            }
            Operation::Read(read) => self.read(request, &read, reply),
            Operation::Write { handle, offset, data, write_flags, .. } => {
                self.write_to(request, (handle, offset), data, write_flags, reply);
            }
            Operation::Release(release) => {
                self.released(release.handle);
                reply.empty();
            }
            Operation::Fsync { .. } | Operation::Fsyncdir { .. } | Operation::Syncfs => {
                self.sync(request, reply);
            }
            Operation::Opendir { .. } => reply.open(&self.open_dir(request)),
            Operation::Readdir(read) | Operation::Readdirplus(read) => self.read_dir(request, &read, reply),
            Operation::Releasedir(release) => {
                self.dirs.remove(release.handle);
                reply.empty();
            }
            Operation::Statfs => match core.stats() {
                Ok(stats) => reply.statfs(&statfs_out(&stats)),
                Err(error) => reply.error(number_of(&error)),
            },
            Operation::Fallocate { .. } | Operation::Lseek { .. } | Operation::CopyFileRange { .. } => {
                self.shape(request, reply);
            }
            Operation::Setxattr { .. }
            | Operation::Getxattr { .. }
            | Operation::Listxattr { .. }
            | Operation::Removexattr { .. } => self.xattr(request, reply),
            // The rest is left to the kernel: it takes ENOSYS as an answer for good, and asks no more.
            _ => reply.error(Errno::NOSYS),
        }
    }

    /// Returns whether the kernel is to open this file, and every other from then on, without asking. The terminal files
    /// come first: they are opened before the task starts, and need more than that answer says.
    fn opens_without_us(&self, node: NodeId) -> bool {
        !self.options.told_of_opens && terminal::stream_of(node).is_none()
    }

    fn lookup(&self, request: &Request<'_>, name: &OsStr, reply: Reply<'_>) {
        let parent = NodeId(request.node());
        let answer = self.hand_out(|| match self.terminal_stream(parent, name) {
            Some(stream) => Ok(terminal::attr_of(stream)),
            None => self.core(request).lookup(parent, name),
        });
        match (answer, self.options.negative_ttl) {
            (Err(FsError::NotFound), Some(ttl)) => reply.entry(&no_entry(ttl)),
            (answer, _) => self.reply_entry(reply, answer),
        }
    }

    fn attr(&self, request: &Request<'_>) -> Result<Attr, FsError> {
        let node = NodeId(request.node());
        match terminal::stream_of(node) {
            Some(stream) => Ok(terminal::attr_of(stream)),
            None => self.core(request).attr(node),
        }
    }

    fn set_attr(&self, request: &Request<'_>, set: &Setattr) -> Result<Attr, FsError> {
        let node = NodeId(request.node());
        if let Some(stream) = terminal::stream_of(node) {
            // Truncating a terminal means nothing, as on a tty.
            return Ok(terminal::attr_of(stream));
        }
        let core = self.core(request);
        let open = |handle| self.core_file(core, (node, handle), Access::Write);
        let through = set.handle.filter(|handle| *handle != NO_HANDLE || set.size.is_some());
        core.set_attr(node, through.map(open).transpose()?.as_deref(), attr_changes(set))
    }

    /// Makes what has a name and is not open.
    fn make(&self, request: &Request<'_>) -> Result<Attr, FsError> {
        let (core, caller, parent) = (self.core(request), caller_of(request), NodeId(request.node()));
        match *request.operation() {
            Operation::Symlink { name, target } => core.make_symlink(caller, parent, name, target),
            Operation::Mknod { name, mode, rdev, umask } => {
                let new = NewNode { kind: kind_of_mode(mode)?, mode: mode & MODE_BITS & !umask, rdev };
                core.make_node(caller, parent, name, new)
            }
            Operation::Mkdir { name, mode, umask } => {
                core.make_dir(caller, parent, name, mode & MODE_BITS & !umask)
            }
            Operation::Link { node, name } => core.link(NodeId(node), parent, name),
            _ => Err(FsError::InvalidArgument),
        }
    }

    /// Opens what is there, or is made.
    fn open(&self, request: &Request<'_>, reply: Reply<'_>) {
        let (parent, bits) = (NodeId(request.node()), |mode, umask: u32| mode & MODE_BITS & !umask);
        let new = match *request.operation() {
            Operation::Create { name, mode, umask, flags, kill_suidgid } => NewFile {
                parent,
                name: Some(name),
                mode: bits(mode, umask),
                flags,
                kill_set_id: kill_suidgid,
            },
            Operation::Tmpfile { mode, umask, flags } => {
                NewFile { parent, name: None, mode: bits(mode, umask), flags, kill_set_id: false }
            }
            Operation::Open { flags, kill_suidgid } => {
                return match self.open_node(request, flags, kill_suidgid) {
                    Ok(opened) => reply.open(&opened),
                    Err(error) => reply.error(number_of(&error)),
                };
            }
            _ => return reply.error(Errno::INVAL),
        };
        match self.create_file(request, &new) {
            Ok((attr, opened)) => {
                reply.created(&self.entry(&attr), &opened);
            }
            Err(error) => reply.error(number_of(&error)),
        }
    }

    fn read(&self, request: &Request<'_>, read: &Read, reply: Reply<'_>) {
        let file = self.core_file(self.core(request), (NodeId(request.node()), read.handle), Access::Read);
        match file {
            Ok(file) => {
                reply.fill(|buffer| file.read_at(buffer, read.offset).map_err(|error| number_of(&error)));
            }
            Err(error) => reply.error(number_of(&error)),
        }
    }

    fn write_to(
        &self,
        request: &Request<'_>,
        (handle, offset): (u64, u64),
        data: &[u8],
        flags: WriteFlags,
        reply: Reply<'_>,
    ) {
        let node = NodeId(request.node());
        if let Some((terminal, stream)) = self.terminal_of(node) {
            // Requests hold at most 16 MiB.
            let (written, reply) = (u32::try_from(data.len()).unwrap_or(u32::MAX), reply.defer());
            let done = move |shown: Result<(), FsError>| {
                reply.answer(|reply| match shown {
                    Ok(()) => reply.written(written),
                    Err(error) => reply.error(number_of(&error)),
                });
            };
            return terminal.write(stream, data, Box::new(done));
        }
        let kill_set_id = flags.contains(WriteFlags::KILL_SUIDGID);
        let file = self.core_file(self.core(request), (node, handle), Access::Write);
        match changing(self.core(request), node, file, |file| write(file, data, offset, kill_set_id)) {
            Ok(written) => reply.written(written),
            Err(FsError::Os(error)) if is_full(&error) && !self.options.told_of_opens => {
                self.write_once_more(node, (data.to_vec(), offset, kill_set_id), reply);
            }
            Err(error) => reply.error(number_of(&error)),
        }
    }

    /// Writes to a full disk: where the kernel does not tell that nobody has a file open, what was removed takes its room
    /// until the kernel has forgotten it, of which we are about to hear.
    fn write_once_more(
        &self,
        node: NodeId,
        (data, offset, kill_set_id): (Vec<u8>, u64, bool),
        reply: Reply<'_>,
    ) {
        let (core, unopened) = (Arc::clone(&self.core), Arc::clone(&self.unopened));
        let work = move || {
            #[expect(clippy::disallowed_methods, reason = "forgets come by themselves")]
            thread::sleep(FORGETS_TAKE);
            let file = unopened.get(node, true, || core.open(node, OpenFlags::READ | OpenFlags::WRITE));
            changing(&*core, node, file, |file| write(file, &data, offset, kill_set_id))
        };
        aside(reply, work, |reply, written| reply.written(written));
    }

    /// Listings may be cached where only this mount changes the tree; every change through it makes the
    /// kernel drop them.
    fn open_dir(&self, request: &Request<'_>) -> OpenOut {
        let flags = if self.options.cache_dirs {
            FopenFlags::CACHE_DIR | FopenFlags::KEEP_CACHE
        } else {
            FopenFlags::empty()
        };
        let slot = DirSlot { node: NodeId(request.node()), names: Mutex::default() };
        OpenOut { fh: self.dirs.add(slot), open_flags: flags.bits(), backing_id: 0 }
    }

    fn read_dir(&self, request: &Request<'_>, read: &Read, reply: Reply<'_>) {
        let core = self.core(request);
        let names = match self.names(core, read.handle, read.offset) {
            Ok(names) => names,
            Err(error) => return reply.error(number_of(&error)),
        };
        let dir = NodeId(request.node());
        let dots = [(dir, "."), (core.parent(dir), "..")]
            .map(|(node, name)| (node.0, FileKind::Dir, OsStr::new(name)));
        let names = names.iter().map(|entry| (entry.ino, entry.kind, &*entry.name));
        // A position names the entry before it; positions index the snapshot.
        let skipped = usize::try_from(read.offset).unwrap_or(usize::MAX);
        reply.directory(|buffer| {
            let mut look_up = buffer.wants_attributes().then(|| core.lookups(dir));
            for (position, (ino, kind, name)) in (1..).zip(dots.into_iter().chain(names)).skip(skipped) {
                let ino = if ino == 0 { UNKNOWN_INO } else { ino };
                // The kernel knows the directory and the one above it.
                let look_up = look_up.as_mut().filter(|_| position > DOTS);
                let is_full = match look_up.map(|look_up| self.hand_out(|| look_up(name))) {
                    Some(Ok(attr)) => self.list(buffer, &attr, position, name),
                    // It went meanwhile, or cannot be looked up: whoever needs it will hear of that.
                    Some(Err(_)) | None => buffer.add(ino, position, entry_kind(kind), name),
                };
                if is_full {
                    break;
                }
            }
        });
    }

    /// Adds a name that was looked up to a listing, and tells whether there was no room for it.
    fn list(&self, buffer: &mut DirBuffer<'_>, attr: &Attr, position: u64, name: &OsStr) -> bool {
        let is_full = buffer.add_plus(&self.entry(attr), position, entry_kind(attr.kind), name);
        if is_full {
            self.forgotten(attr.node, 1);
        }
        is_full
    }

    /// Makes something durable. That waits for a disk, and the serving thread must not wait with it.
    fn sync(&self, request: &Request<'_>, reply: Reply<'_>) {
        // Nothing is made durable for show.
        let (core, node) = (Arc::clone(&self.core), NodeId(request.node()));
        let done = |reply: Reply<'_>, ()| reply.empty();
        match *request.operation() {
            Operation::Fsync { handle, data_only } => {
                if terminal::stream_of(node).is_some() {
                    return reply.empty();
                }
                match self.core_file(&*core, (node, handle), Access::Read) {
                    Ok(file) => aside(reply, move || file.sync(data_only), done),
                    Err(error) => reply.error(number_of(&error)),
                }
            }
            Operation::Fsyncdir { .. } => aside(reply, move || core.sync_dir(node), done),
            Operation::Syncfs => aside(reply, move || core.sync_all(), done),
            _ => reply.error(Errno::NOSYS),
        }
    }

    /// Serves what is about the content of open files as a whole.
    fn shape(&self, request: &Request<'_>, reply: Reply<'_>) {
        let (core, node) = (self.core(request), NodeId(request.node()));
        match *request.operation() {
            Operation::Fallocate { handle, offset, length, mode } => {
                let file = self.core_file(core, (node, handle), Access::Write);
                reply_empty(reply, changing(core, node, file, |file| file.allocate(mode, offset, length)));
            }
            Operation::Lseek { handle, offset, whence } => {
                let file = self.core_file(core, (node, handle), Access::Read);
                match file.and_then(|file| seek(&*file, offset, whence)) {
                    Ok(found) => reply.lseek(found),
                    Err(error) => reply.error(number_of(&error)),
                }
            }
            Operation::CopyFileRange { handle, offset, to_node, to_handle, to_offset, length, .. } => {
                let from = self.core_file(core, (node, handle), Access::Read);
                let to_node = NodeId(to_node);
                let copied = from.and_then(|from| {
                    let to = self.core_file(core, (to_node, to_handle), Access::Write);
                    changing(core, to_node, to, |to| {
                        core.copy_range((&*from, offset), (to, to_offset), length)
                    })
                });
                match copied {
                    Ok(copied) => reply.copied(copied),
                    Err(error) => reply.error(number_of(&error)),
                }
            }
            _ => reply.error(Errno::NOSYS),
        }
    }

    fn xattr(&self, request: &Request<'_>, reply: Reply<'_>) {
        let (core, node) = (self.core(request), NodeId(request.node()));
        if !core.has_xattrs() {
            return reply.error(Errno::NOSYS);
        }
        let bytes = match *request.operation() {
            Operation::Getxattr { name, .. } => core.xattr(node, name),
            Operation::Listxattr { .. } => core.xattr_names(node).map(|names| {
                let terminated = |name: std::ffi::OsString| [name.as_bytes(), &[0]].concat();
                names.into_iter().flat_map(terminated).collect()
            }),
            Operation::Setxattr { name, value, flags, .. } => {
                let set = xattr_mode(flags).and_then(|mode| core.set_xattr(node, name, value, mode));
                return reply_empty(reply, set);
            }
            Operation::Removexattr { name } => return reply_empty(reply, core.remove_xattr(node, name)),
            _ => return reply.error(Errno::NOSYS),
        };
        match bytes {
            Ok(bytes) => reply.bytes(&bytes),
            Err(error) => reply.error(number_of(&error)),
        }
    }

    fn reply_entry(&self, reply: Reply<'_>, answer: Result<Attr, FsError>) {
        match answer {
            Ok(attr) => {
                reply.entry(&self.entry(&attr));
            }
            Err(error) => reply.error(number_of(&error)),
        }
    }

    fn reply_attr(&self, reply: Reply<'_>, answer: Result<Attr, FsError>) {
        match answer {
            Ok(attr) => reply.attr(&attr_out(&attr, self.attr_ttl(&attr))),
            Err(error) => reply.error(number_of(&error)),
        }
    }
}

/// Changes the content of a node through an open file, and tells the core whatever came of it.
fn changing<T>(
    core: &dyn Filesystem,
    node: NodeId,
    file: Result<Arc<dyn OpenFile>, FsError>,
    change: impl FnOnce(&dyn OpenFile) -> Result<T, FsError>,
) -> Result<T, FsError> {
    let file = file?;
    let changed = change(&*file);
    core.written(node, &*file);
    changed
}

/// Does on another thread what takes its time, and answers with what comes of it.
fn aside<T>(
    reply: Reply<'_>,
    work: impl FnOnce() -> Result<T, FsError> + Send + 'static,
    answer: impl FnOnce(Reply<'_>, T) + Send + 'static,
) {
    let reply = reply.defer();
    let run = move || {
        let done = work();
        reply.answer(|reply| match done {
            Ok(done) => answer(reply, done),
            Err(error) => reply.error(number_of(&error)),
        });
    };
    blocking::unblock(run).detach();
}

fn reply_empty(reply: Reply<'_>, answer: Result<(), FsError>) {
    match answer {
        Ok(()) => reply.empty(),
        Err(error) => reply.error(number_of(&error)),
    }
}

fn is_full(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded)
}
