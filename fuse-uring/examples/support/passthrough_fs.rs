//! Shows another directory. Open files are read and written by the kernel itself where it allows that.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fuse_uring::{
    Attr, AttrOut, BackingId, Config, DirBuffer, EntryOut, Errno, FopenFlags, Forget, Handler, InitFlags,
    OpenOut, Operation, ROOT_NODE, Reply, Request, SetTime, Setattr, StatfsOut,
};
use rustix::fs::{
    AtFlags, Dir, Gid, Mode, OFlags, RenameFlags, Stat, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, Uid,
};

/// How long the kernel may believe an answer. Only the mount may change the directory meanwhile.
const TTL_SECONDS: u64 = 3600;

/// A directory, shown elsewhere.
pub(crate) struct PassthroughFs {
    nodes: Mutex<Nodes>,
    files: Mutex<HashMap<u64, Arc<OpenFile>>>,
    next_handle: AtomicU64,
}

struct Nodes {
    by_number: HashMap<u64, Node>,
    by_file: HashMap<(u64, u64), u64>,
    last: u64,
}

struct Node {
    /// Opened for its path only.
    fd: Arc<OwnedFd>,
    file: (u64, u64),
    lookups: u64,
    /// What the kernel knows while the node is open: it wants one for all its files.
    backing: Option<(BackingId, u32)>,
}

struct OpenFile {
    fd: OwnedFd,
    node: u64,
    passthrough: bool,
    /// Names of a directory, as they were when it was first read.
    names: Mutex<Vec<(u64, u8, Vec<u8>)>>,
}

impl PassthroughFs {
    /// Shows `source`.
    pub(crate) fn new(source: &Path) -> io::Result<Self> {
        let fd = rustix::fs::open(source, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let stat = rustix::fs::fstat(&fd)?;
        let file = (stat.st_dev, stat.st_ino);
        let root = Node { fd: Arc::new(fd), file, lookups: 1, backing: None };
        let nodes = Nodes {
            by_number: HashMap::from([(ROOT_NODE, root)]),
            by_file: HashMap::from([(file, ROOT_NODE)]),
            last: ROOT_NODE,
        };
        Ok(Self { nodes: Mutex::new(nodes), files: Mutex::default(), next_handle: AtomicU64::new(1) })
    }

    /// Returns what to ask of the kernel.
    pub(crate) fn config() -> Config {
        let flags = InitFlags::ASYNC_READ
            | InitFlags::PARALLEL_DIROPS
            | InitFlags::ATOMIC_O_TRUNC
            | InitFlags::HANDLE_KILLPRIV_V2
            | InitFlags::PASSTHROUGH
            | InitFlags::CACHE_SYMLINKS;
        Config { flags, max_stack_depth: 1, ..Config::default() }
    }

    fn nodes(&self) -> MutexGuard<'_, Nodes> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn files(&self) -> MutexGuard<'_, HashMap<u64, Arc<OpenFile>>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fd(&self, node: u64) -> Result<Arc<OwnedFd>, Errno> {
        self.nodes().by_number.get(&node).map(|node| Arc::clone(&node.fd)).ok_or(Errno::STALE)
    }

    fn file(&self, handle: u64) -> Result<Arc<OpenFile>, Errno> {
        self.files().get(&handle).map(Arc::clone).ok_or(Errno::BADF)
    }

    fn lookup(&self, parent: u64, name: &OsStr) -> Result<EntryOut, Errno> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&*self.fd(parent)?, name, flags, Mode::empty())?;
        let stat = rustix::fs::fstat(&fd)?;
        let file = (stat.st_dev, stat.st_ino);
        let mut nodes = self.nodes();
        let number = match nodes.by_file.get(&file) {
            Some(number) => *number,
            None => {
                nodes.last += 1;
                let number = nodes.last;
                nodes.by_file.insert(file, number);
                nodes.by_number.insert(number, Node { fd: Arc::new(fd), file, lookups: 0, backing: None });
                number
            }
        };
        if let Some(node) = nodes.by_number.get_mut(&number) {
            node.lookups += 1;
        }
        let attr = attr_of(&stat);
        Ok(EntryOut {
            nodeid: number,
            entry_valid: TTL_SECONDS,
            attr_valid: TTL_SECONDS,
            attr,
            ..EntryOut::default()
        })
    }

    fn attr(&self, node: u64) -> Result<AttrOut, Errno> {
        let stat = rustix::fs::fstat(&*self.fd(node)?)?;
        Ok(AttrOut { attr_valid: TTL_SECONDS, attr: attr_of(&stat), ..AttrOut::default() })
    }

    fn setattr(&self, node: u64, change: &Setattr) -> Result<AttrOut, Errno> {
        let fd = self.fd(node)?;
        if let Some(mode) = change.mode {
            rustix::fs::chmod(link_of(&fd), Mode::from_raw_mode(mode))?;
        }
        if change.uid.is_some() || change.gid.is_some() {
            let (uid, gid) = (change.uid.map(Uid::from_raw), change.gid.map(Gid::from_raw));
            rustix::fs::chownat(&*fd, "", uid, gid, AtFlags::EMPTY_PATH)?;
        }
        if let Some(size) = change.size {
            let file = rustix::fs::open(link_of(&fd), OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
            rustix::fs::ftruncate(file, size)?;
        }
        if change.atime.is_some() || change.mtime.is_some() {
            let times =
                Timestamps { last_access: timespec(change.atime), last_modification: timespec(change.mtime) };
            rustix::fs::utimensat(rustix::fs::CWD, link_of(&fd), &times, AtFlags::empty())?;
        }
        self.attr(node)
    }

    fn open(&self, request: &Request<'_>, node: u64, flags: OFlags) -> Result<OpenOut, Errno> {
        let fd = rustix::fs::open(link_of(&*self.fd(node)?), flags | OFlags::CLOEXEC, Mode::empty())?;
        self.opened(request, node, fd)
    }

    fn opened(&self, request: &Request<'_>, node: u64, fd: OwnedFd) -> Result<OpenOut, Errno> {
        let mut nodes = self.nodes();
        let known = nodes.by_number.get_mut(&node).ok_or(Errno::STALE)?;
        let backing_id = match &mut known.backing {
            Some((id, users)) => {
                *users += 1;
                id.number()
            }
            // Without the privilege, requests bring the content.
            none => match request.device().register_backing(fd.as_fd()) {
                Ok(id) => none.insert((id, 1)).0.number(),
                Err(_) => 0,
            },
        };
        drop(nodes);
        let passthrough = backing_id != 0;
        let open_flags =
            if passthrough { FopenFlags::PASSTHROUGH | FopenFlags::NOFLUSH } else { FopenFlags::NOFLUSH };
        let fh = self.keep(OpenFile { fd, node, passthrough, names: Mutex::default() });
        Ok(OpenOut { fh, open_flags: open_flags.bits(), backing_id })
    }

    fn keep(&self, file: OpenFile) -> u64 {
        let handle = self.next_handle.fetch_add(1, Ordering::Relaxed);
        self.files().insert(handle, Arc::new(file));
        handle
    }

    fn create(
        &self,
        request: &Request<'_>,
        name: &OsStr,
        mode: u32,
        flags: u32,
    ) -> Result<(EntryOut, OpenOut), Errno> {
        let parent = self.fd(request.node())?;
        let flags = open_flags(flags) | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let fd = rustix::fs::openat(&*parent, name, flags, Mode::from_raw_mode(mode))?;
        let entry = self.lookup(request.node(), name)?;
        Ok((entry, self.opened(request, entry.nodeid, fd)?))
    }

    fn release(&self, handle: u64) {
        let Some(file) = self.files().remove(&handle) else { return };
        let mut nodes = self.nodes();
        if file.passthrough
            && let Some(node) = nodes.by_number.get_mut(&file.node)
            && let Some((_, users)) = &mut node.backing
        {
            *users -= 1;
            if *users == 0 {
                node.backing = None;
            }
        }
    }

    fn opendir(&self, node: u64) -> Result<OpenOut, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(link_of(&*self.fd(node)?), flags, Mode::empty())?;
        let names = Dir::read_from(&fd)?.filter_map(Result::ok).map(|entry| {
            // The kinds that directories have are those of modes, without the permissions.
            let kind = u8::try_from(entry.file_type().as_raw_mode() >> 12).unwrap_or(0);
            (entry.ino(), kind, entry.file_name().to_bytes().to_vec())
        });
        let names = names.collect();
        let fh = self.keep(OpenFile { fd, node, passthrough: false, names: Mutex::new(names) });
        Ok(OpenOut { fh, open_flags: FopenFlags::CACHE_DIR.bits(), backing_id: 0 })
    }

    fn list(&self, handle: u64, offset: u64, buffer: &mut DirBuffer<'_>) {
        let Ok(dir) = self.file(handle) else { return };
        let names = dir.names.lock().unwrap_or_else(PoisonError::into_inner);
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        for (position, (ino, kind, name)) in (1..).zip(names.iter()).skip(start) {
            if buffer.add(*ino, position, u32::from(*kind), OsStr::from_bytes(name)) {
                return;
            }
        }
    }
}

impl Handler for PassthroughFs {
    fn handle(&self, request: &Request<'_>, reply: Reply<'_>) {
        let node = request.node();
        match *request.operation() {
            Operation::Lookup { name } => entry(reply, self.lookup(node, name)),
            Operation::Getattr { .. } => attr(reply, self.attr(node)),
            Operation::Setattr(change) => attr(reply, self.setattr(node, &change)),
            Operation::Open { flags, .. } => open(reply, self.open(request, node, open_flags(flags))),
            Operation::Create { name, mode, flags, .. } => match self.create(request, name, mode, flags) {
                Ok((entry, open)) => reply.created(&entry, &open),
                Err(errno) => reply.error(errno),
            },
            Operation::Read(read) => match self.file(read.handle) {
                Ok(file) => reply.fill(|buffer| rustix::io::pread(&file.fd, buffer, read.offset)),
                Err(errno) => reply.error(errno),
            },
            Operation::Write { handle, offset, data, .. } => {
                let written = self.file(handle).and_then(|file| rustix::io::pwrite(&file.fd, data, offset));
                match written {
                    Ok(size) => reply.written(u32::try_from(size).unwrap_or(u32::MAX)),
                    Err(errno) => reply.error(errno),
                }
            }
            Operation::Opendir { .. } => open(reply, self.opendir(node)),
            Operation::Readdir(read) => {
                reply.directory(|buffer| self.list(read.handle, read.offset, buffer));
            }
            Operation::Release(release) | Operation::Releasedir(release) => {
                self.release(release.handle);
                reply.empty();
            }
            Operation::Statfs => match self.fd(node).and_then(|fd| rustix::fs::fstatfs(&*fd)) {
                Ok(found) => reply.statfs(&StatfsOut {
                    blocks: found.f_blocks,
                    bfree: found.f_bfree,
                    bavail: found.f_bavail,
                    files: found.f_files,
                    ffree: found.f_ffree,
                    bsize: u32::try_from(found.f_bsize).unwrap_or(4096),
                    namelen: 255,
                    frsize: u32::try_from(found.f_frsize).unwrap_or(4096),
                    ..StatfsOut::default()
                }),
                Err(errno) => reply.error(errno),
            },
            ref operation => self.handle_names(node, operation, reply),
        }
    }

    fn forget(&self, forgets: &[Forget]) {
        let mut nodes = self.nodes();
        for forget in forgets {
            let Some(node) = nodes.by_number.get_mut(&forget.node) else { continue };
            node.lookups = node.lookups.saturating_sub(forget.lookups);
            if node.lookups == 0 && forget.node != ROOT_NODE {
                let file = node.file;
                nodes.by_number.remove(&forget.node);
                nodes.by_file.remove(&file);
            }
        }
    }
}

impl PassthroughFs {
    /// Makes, moves and removes names.
    fn handle_names(&self, node: u64, operation: &Operation<'_>, reply: Reply<'_>) {
        let parent = match self.fd(node) {
            Ok(fd) => fd,
            Err(errno) => return reply.error(errno),
        };
        match *operation {
            Operation::Readlink => match rustix::fs::readlinkat(&*parent, "", Vec::new()) {
                Ok(target) => reply.bytes(target.as_bytes()),
                Err(errno) => reply.error(errno),
            },
            Operation::Symlink { name, target } => {
                let made = rustix::fs::symlinkat(target, &*parent, name);
                entry(reply, made.and_then(|()| self.lookup(node, name)));
            }
            Operation::Mkdir { name, mode, .. } => {
                let made = rustix::fs::mkdirat(&*parent, name, Mode::from_raw_mode(mode));
                entry(reply, made.and_then(|()| self.lookup(node, name)));
            }
            Operation::Link { node: old, name } => {
                let made = self.fd(old).and_then(|old| {
                    rustix::fs::linkat(
                        rustix::fs::CWD,
                        link_of(&*old),
                        &*parent,
                        name,
                        AtFlags::SYMLINK_FOLLOW,
                    )
                });
                entry(reply, made.and_then(|()| self.lookup(node, name)));
            }
            Operation::Unlink { name } => {
                empty(reply, rustix::fs::unlinkat(&*parent, name, AtFlags::empty()));
            }
            Operation::Rmdir { name } => {
                empty(reply, rustix::fs::unlinkat(&*parent, name, AtFlags::REMOVEDIR));
            }
            Operation::Rename { name, new_parent, new_name, flags } => {
                let flags = RenameFlags::from_bits_retain(flags);
                let moved = self.fd(new_parent).and_then(|new_parent| {
                    rustix::fs::renameat_with(&*parent, name, &*new_parent, new_name, flags)
                });
                empty(reply, moved);
            }
            _ => reply.error(Errno::NOSYS),
        }
    }
}

fn entry(reply: Reply<'_>, answer: Result<EntryOut, Errno>) {
    match answer {
        Ok(entry) => reply.entry(&entry),
        Err(errno) => reply.error(errno),
    }
}

fn attr(reply: Reply<'_>, answer: Result<AttrOut, Errno>) {
    match answer {
        Ok(attr) => reply.attr(&attr),
        Err(errno) => reply.error(errno),
    }
}

fn open(reply: Reply<'_>, answer: Result<OpenOut, Errno>) {
    match answer {
        Ok(opened) => reply.open(&opened),
        Err(errno) => reply.error(errno),
    }
}

fn empty(reply: Reply<'_>, answer: Result<(), Errno>) {
    match answer {
        Ok(()) => reply.empty(),
        Err(errno) => reply.error(errno),
    }
}

/// Returns a path that leads to what a descriptor was opened for.
fn link_of(fd: &impl AsRawFd) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

/// Flags that mean here what they mean to the caller. Appending is the kernel's business.
fn open_flags(flags: u32) -> OFlags {
    OFlags::from_bits_retain(flags) - OFlags::APPEND - OFlags::NOFOLLOW - OFlags::EXCL
}

fn timespec(time: Option<SetTime>) -> Timespec {
    match time {
        None => Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        Some(SetTime::Now) => Timespec { tv_sec: 0, tv_nsec: UTIME_NOW },
        Some(SetTime::At { seconds, nanos }) => Timespec { tv_sec: seconds, tv_nsec: nanos.into() },
    }
}

fn attr_of(stat: &Stat) -> Attr {
    let nanos = |nanos| u32::try_from(nanos).unwrap_or(0);
    Attr {
        ino: stat.st_ino,
        size: stat.st_size.cast_unsigned(),
        blocks: stat.st_blocks.cast_unsigned(),
        atime: stat.st_atime.cast_unsigned(),
        mtime: stat.st_mtime.cast_unsigned(),
        ctime: stat.st_ctime.cast_unsigned(),
        atimensec: nanos(stat.st_atime_nsec),
        mtimensec: nanos(stat.st_mtime_nsec),
        ctimensec: nanos(stat.st_ctime_nsec),
        mode: stat.st_mode,
        nlink: u32::try_from(stat.st_nlink).unwrap_or(u32::MAX),
        uid: stat.st_uid,
        gid: stat.st_gid,
        rdev: u32::try_from(stat.st_rdev).unwrap_or(0),
        blksize: u32::try_from(stat.st_blksize).unwrap_or(4096),
        flags: 0,
    }
}
