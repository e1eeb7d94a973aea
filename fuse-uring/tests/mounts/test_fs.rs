//! A small file system with names that behave badly.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::thread;

use fuse_uring::{
    Attr, AttrOut, BackingId, DirBuffer, End, EntryOut, Errno, FopenFlags, Forget, Handler, OpenOut,
    Operation, ROOT_NODE, Reply, Request, Setattr, StatfsOut,
};

/// How long the kernel may believe an answer.
const TTL_SECONDS: u64 = 3600;

const DIR: u32 = 0o040_755;
const FILE: u32 = 0o100_644;
const LINK: u32 = 0o120_777;

/// Counts what happens, so that tests can wait for it.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) lookups: AtomicU32,
    pub(crate) reads: AtomicU32,
    pub(crate) forgotten: AtomicU64,
    pub(crate) interrupted: AtomicU32,
    pub(crate) destroyed: AtomicU32,
}

/// Files in one directory. Names that begin with `bad-` answer in a way of their own.
#[derive(Debug)]
pub(crate) struct TestFs {
    pub(crate) counts: Counts,
    nodes: Mutex<Nodes>,
    /// What `bad-late` waits for.
    pub(crate) gate: Gate,
    /// What the file `backed` is.
    pub(crate) backing: Option<File>,
    registered: Mutex<Option<BackingId>>,
}

#[derive(Debug, Default)]
struct Nodes {
    names: BTreeMap<OsString, u64>,
    contents: BTreeMap<u64, Content>,
}

#[derive(Debug)]
enum Content {
    File(Vec<u8>),
    Link(OsString),
    Dir,
}

/// Something that threads wait for.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    open: Mutex<bool>,
    changed: std::sync::Condvar,
}

impl Gate {
    pub(crate) fn open(&self) {
        *self.open.lock().unwrap() = true;
        self.changed.notify_all();
    }

    pub(crate) fn wait(&self) {
        drop(self.changed.wait_while(self.open.lock().unwrap(), |open| !*open).unwrap());
    }
}

impl TestFs {
    pub(crate) fn new(backing: Option<File>) -> Self {
        let mut nodes = Nodes::default();
        nodes.add("hello", Content::File(b"hello, world\n".to_vec()));
        nodes.add("big", Content::File(big()));
        nodes.add("link", Content::Link("hello".into()));
        nodes.add("late", Content::File(b"soon".to_vec()));
        nodes.add("backed", Content::File(Vec::new()));
        Self {
            counts: Counts::default(),
            nodes: Mutex::new(nodes),
            gate: Gate::default(),
            backing,
            registered: Mutex::new(None),
        }
    }

    /// Changes a file behind the kernel's back.
    pub(crate) fn set(&self, name: &str, content: &[u8]) {
        self.nodes().set(OsStr::new(name), content);
    }

    /// Removes a name behind the kernel's back.
    pub(crate) fn remove(&self, name: &str) {
        self.nodes().names.remove(OsStr::new(name));
    }

    pub(crate) fn node(&self, name: &str) -> u64 {
        self.nodes().names[OsStr::new(name)]
    }

    fn nodes(&self) -> MutexGuard<'_, Nodes> {
        self.nodes.lock().unwrap()
    }

    fn lookup(&'static self, name: &OsStr, reply: Reply<'_>) {
        self.counts.lookups.fetch_add(1, Ordering::Relaxed);
        match name.as_bytes() {
            b"bad-panic" => panic!("as the test wants"),
            b"bad-silent" => drop(reply),
            b"bad-lost" => drop(reply.defer()),
            b"bad-kind" => reply.empty(),
            b"bad-late" => {
                let late = reply.defer();
                thread::spawn(move || {
                    self.gate.wait();
                    late.answer(|reply| self.entry("hello", reply));
                });
            }
            _ => self.entry(name, reply),
        }
    }

    fn entry(&self, name: impl AsRef<OsStr>, reply: Reply<'_>) {
        let nodes = self.nodes();
        match nodes.names.get(name.as_ref()).and_then(|node| nodes.attr(*node)) {
            Some(attr) => reply.entry(&entry_of(attr)),
            None => reply.error(Errno::NOENT),
        }
    }

    fn attr(&self, node: u64, reply: Reply<'_>) {
        let attr = self.nodes().attr(node);
        match attr {
            Some(attr) => reply.attr(&AttrOut { attr_valid: TTL_SECONDS, attr, ..AttrOut::default() }),
            None => reply.error(Errno::NOENT),
        }
    }

    fn setattr(&self, node: u64, change: &Setattr, reply: Reply<'_>) {
        if let (Some(size), Some(Content::File(content))) =
            (change.size, self.nodes().contents.get_mut(&node))
        {
            content.resize(usize::try_from(size).unwrap(), 0);
        }
        self.attr(node, reply);
    }

    fn open(&self, request: &Request<'_>, reply: Reply<'_>) {
        let mut open = OpenOut { fh: request.node(), ..OpenOut::default() };
        if request.node() == self.node("late") {
            open.open_flags = FopenFlags::DIRECT_IO.bits();
        }
        let Some(file) = self.backing.as_ref().filter(|_| request.node() == self.node("backed")) else {
            return reply.open(&open);
        };
        match request.device().register_backing(file.as_fd()) {
            Ok(id) => {
                let open_flags = FopenFlags::PASSTHROUGH.bits();
                reply.open(&OpenOut { backing_id: id.number(), open_flags, ..open });
                *self.registered.lock().unwrap() = Some(id);
            }
            Err(error) => reply.error(Errno::from_io_error(&error).unwrap_or(Errno::IO)),
        }
    }

    fn read(&'static self, node: u64, offset: u64, reply: Reply<'_>) {
        self.counts.reads.fetch_add(1, Ordering::Relaxed);
        let nodes = self.nodes();
        let Some(Content::File(content)) = nodes.contents.get(&node) else {
            return reply.error(Errno::INVAL);
        };
        if node == nodes.names[OsStr::new("late")] {
            let (late, fs) = (reply.defer(), self);
            thread::spawn(move || {
                fs.gate.wait();
                late.answer(|reply| reply.bytes(b"late"));
            });
            return;
        }
        let rest = content.get(usize::try_from(offset).unwrap()..).unwrap_or(&[]);
        reply.fill(|buffer| {
            let size = rest.len().min(buffer.len());
            buffer[..size].copy_from_slice(&rest[..size]);
            Ok(size)
        });
    }

    fn write(&self, node: u64, offset: u64, data: &[u8], reply: Reply<'_>) {
        let mut nodes = self.nodes();
        let Some(Content::File(content)) = nodes.contents.get_mut(&node) else {
            return reply.error(Errno::INVAL);
        };
        let start = usize::try_from(offset).unwrap();
        let end = start + data.len();
        content.resize(content.len().max(end), 0);
        content[start..end].copy_from_slice(data);
        reply.written(u32::try_from(data.len()).unwrap());
    }

    fn list(&self, offset: u64, buffer: &mut DirBuffer<'_>) {
        let nodes = self.nodes();
        let start = usize::try_from(offset).unwrap();
        for (position, (name, node)) in nodes.names.iter().enumerate().skip(start) {
            let attr = nodes.attr(*node).unwrap();
            if buffer.add_plus(&entry_of(attr), position as u64 + 1, attr.mode >> 12, name) {
                return;
            }
        }
    }

    fn make(&self, name: &OsStr, content: Content, reply: Reply<'_>) {
        let mut nodes = self.nodes();
        let node = nodes.add(name, content);
        let attr = nodes.attr(node).unwrap();
        reply.entry(&entry_of(attr));
    }
}

impl Nodes {
    fn add(&mut self, name: impl AsRef<OsStr>, content: Content) -> u64 {
        let node = self.contents.last_key_value().map_or(ROOT_NODE + 1, |(last, _)| last + 1);
        self.contents.insert(node, content);
        self.names.insert(name.as_ref().to_owned(), node);
        node
    }

    fn set(&mut self, name: &OsStr, content: &[u8]) {
        let node = self.names[name];
        self.contents.insert(node, Content::File(content.to_vec()));
    }

    fn attr(&self, node: u64) -> Option<Attr> {
        let (mode, size) = match self.contents.get(&node) {
            None if node == ROOT_NODE => (DIR, 0),
            None => return None,
            Some(Content::Dir) => (DIR, 0),
            Some(Content::File(content)) => (FILE, content.len() as u64),
            Some(Content::Link(target)) => (LINK, target.len() as u64),
        };
        Some(Attr { ino: node, mode, size, nlink: 1, blksize: 4096, ..Attr::default() })
    }
}

/// Three mebibytes that differ everywhere.
pub(crate) fn big() -> Vec<u8> {
    (0..3 * 1024 * 1024_u32).map(|position| (position.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

fn entry_of(attr: Attr) -> EntryOut {
    let nodeid = attr.ino;
    EntryOut { nodeid, entry_valid: TTL_SECONDS, attr_valid: TTL_SECONDS, attr, ..EntryOut::default() }
}

/// Lets a test hold the file system that is served.
pub(crate) struct Served(pub(crate) &'static TestFs);

impl Handler for Served {
    fn handle(&self, request: &Request<'_>, reply: Reply<'_>) {
        let fs = self.0;
        let node = request.node();
        match *request.operation() {
            Operation::Lookup { name } => fs.lookup(name, reply),
            Operation::Getattr { .. } => fs.attr(node, reply),
            Operation::Setattr(change) => fs.setattr(node, &change, reply),
            Operation::Readlink => match fs.nodes().contents.get(&node) {
                Some(Content::Link(target)) => reply.bytes(target.as_bytes()),
                _ => reply.error(Errno::INVAL),
            },
            Operation::Symlink { name, target } => fs.make(name, Content::Link(target.to_owned()), reply),
            Operation::Mkdir { name, .. } => fs.make(name, Content::Dir, reply),
            Operation::Unlink { name } | Operation::Rmdir { name } => {
                fs.nodes().names.remove(name);
                reply.empty();
            }
            Operation::Rename { name, new_name, .. } => {
                let mut nodes = fs.nodes();
                let moved = nodes.names.remove(name).unwrap();
                nodes.names.insert(new_name.to_owned(), moved);
                reply.empty();
            }
            Operation::Create { name, .. } => {
                let mut nodes = fs.nodes();
                let node = nodes.add(name, Content::File(Vec::new()));
                let attr = nodes.attr(node).unwrap();
                reply.created(&entry_of(attr), &OpenOut { fh: node, ..OpenOut::default() });
            }
            Operation::Open { .. } => fs.open(request, reply),
            Operation::Read(read) => fs.read(node, read.offset, reply),
            Operation::Write { offset, data, .. } => fs.write(node, offset, data, reply),
            Operation::Opendir { .. } => reply.open(&OpenOut::default()),
            Operation::Readdir(read) | Operation::Readdirplus(read) => {
                reply.directory(|buffer| fs.list(read.offset, buffer));
            }
            Operation::Getxattr { name, .. } if name == "user.a" => reply.bytes(b"value"),
            Operation::Getxattr { .. } => reply.error(Errno::NODATA),
            Operation::Listxattr { .. } => reply.bytes(b"user.a\0"),
            Operation::Statfs => {
                reply.statfs(&StatfsOut { blocks: 77, namelen: 255, ..StatfsOut::default() });
            }
            Operation::Flush { .. } | Operation::Release(_) | Operation::Releasedir(_) => reply.empty(),
            _ => reply.error(Errno::NOSYS),
        }
    }

    fn forget(&self, forgets: &[Forget]) {
        let lookups = forgets.iter().map(|forget| forget.lookups).sum();
        self.0.counts.forgotten.fetch_add(lookups, Ordering::Relaxed);
    }

    fn interrupted(&self, _: u64) {
        self.0.counts.interrupted.fetch_add(1, Ordering::Relaxed);
        self.0.gate.open();
    }

    fn destroy(&self, _: &End) {
        self.0.counts.destroyed.fetch_add(1, Ordering::Relaxed);
    }
}
