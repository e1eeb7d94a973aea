//! A file system in memory; contents are anonymous files, so that passthrough has something to pass to.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use vout::fs::{
    Attr, AttrChanges, Caller, DirEntry, FileKind, Filesystem, FsError, FsStats, Holds, NewNode, NodeId,
    OpenFile, OpenFlags, RenameFlags, SeekTo, SetTime, Timestamp, XattrMode,
};

/// How often what was asked.
#[derive(Default)]
pub(crate) struct Counts {
    pub(crate) lookups: AtomicU64,
    pub(crate) opens: AtomicU64,
    pub(crate) reads: AtomicU64,
    pub(crate) writes: AtomicU64,
    pub(crate) listings: AtomicU64,
    pub(crate) forgets: AtomicU64,
    pub(crate) syncs: AtomicU64,
    /// While this is set, the disk does not get done with what was written.
    pub(crate) disk_is_slow: AtomicBool,
}

impl Counts {
    pub(crate) fn get(counter: &AtomicU64) -> u64 {
        counter.load(Ordering::SeqCst)
    }
}

pub(crate) struct MemoryFs {
    tree: Mutex<Tree>,
    counts: Arc<Counts>,
    /// Whether files offer themselves for passthrough.
    backing: bool,
}

struct Tree {
    nodes: HashMap<NodeId, Node>,
    next: u64,
}

struct Node {
    data: Data,
    mode: u32,
    uid: u32,
    gid: u32,
    mtime: Timestamp,
    nlink: u32,
}

enum Data {
    File(Arc<File>),
    Dir(BTreeMap<OsString, NodeId>),
    Link(OsString),
    Special(FileKind),
}

struct Open {
    file: Arc<File>,
    counts: Arc<Counts>,
    backing: bool,
}

impl MemoryFs {
    pub(crate) fn new(backing: bool) -> Self {
        let root = Node::new(Data::Dir(BTreeMap::new()), 0o755);
        let tree = Tree { nodes: HashMap::from([(NodeId::ROOT, root)]), next: 2 };
        Self { tree: Mutex::new(tree), counts: Arc::default(), backing }
    }

    pub(crate) fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Puts a file into the root.
    pub(crate) fn with_file(self, name: &str, content: &[u8]) -> Self {
        let file = super::anonymous_file().unwrap();
        file.write_all_at(content, 0).unwrap();
        let data = Data::File(Arc::new(file));
        self.tree().add(NodeId::ROOT, name.as_ref(), Node::new(data, 0o644)).unwrap();
        self
    }

    fn tree(&self) -> MutexGuard<'_, Tree> {
        self.tree.lock().unwrap()
    }

    fn open_file(&self, file: Arc<File>) -> Arc<dyn OpenFile> {
        Arc::new(Open { file, counts: Arc::clone(&self.counts), backing: self.backing })
    }
}

impl Node {
    fn new(data: Data, mode: u32) -> Self {
        Self { data, mode, uid: 0, gid: 0, mtime: Timestamp { secs: 1, nanos: 2 }, nlink: 1 }
    }
}

impl Tree {
    fn node(&mut self, node: NodeId) -> Result<&mut Node, FsError> {
        self.nodes.get_mut(&node).ok_or(FsError::NotFound)
    }

    fn dir(&mut self, node: NodeId) -> Result<&mut BTreeMap<OsString, NodeId>, FsError> {
        match &mut self.node(node)?.data {
            Data::Dir(entries) => Ok(entries),
            _ => Err(FsError::NotADirectory),
        }
    }

    fn child(&mut self, parent: NodeId, name: &OsStr) -> Result<NodeId, FsError> {
        self.dir(parent)?.get(name).copied().ok_or(FsError::NotFound)
    }

    fn add(&mut self, parent: NodeId, name: &OsStr, node: Node) -> Result<Attr, FsError> {
        if self.dir(parent)?.contains_key(name) {
            return Err(FsError::AlreadyExists);
        }
        let id = NodeId(self.next);
        self.next += 1;
        self.nodes.insert(id, node);
        self.dir(parent)?.insert(name.to_owned(), id);
        self.attr(id)
    }

    fn attr(&mut self, id: NodeId) -> Result<Attr, FsError> {
        let node: &Node = self.node(id)?;
        let (kind, size_bytes) = match &node.data {
            Data::File(file) => (FileKind::File, file.metadata()?.size()),
            Data::Dir(_) => (FileKind::Dir, 0),
            Data::Link(target) => (FileKind::Symlink, target.len() as u64),
            Data::Special(kind) => (*kind, 0),
        };
        Ok(Attr {
            node: id,
            ino: id.0,
            kind,
            mode: node.mode,
            nlink: node.nlink,
            uid: node.uid,
            gid: node.gid,
            rdev: 0,
            size_bytes,
            blocks: size_bytes.div_ceil(512),
            block_size_bytes: 4096,
            atime: node.mtime,
            mtime: node.mtime,
            ctime: node.mtime,
            holds: Holds::Nothing,
        })
    }
}

impl Filesystem for MemoryFs {
    fn lookup(&self, parent: NodeId, name: &OsStr) -> Result<Attr, FsError> {
        self.counts.lookups.fetch_add(1, Ordering::SeqCst);
        assert_ne!(name, "panic", "a name that breaks the core");
        let mut tree = self.tree();
        let node = tree.child(parent, name)?;
        let holds = if name == "lasting" { Holds::Name } else { Holds::Nothing };
        Ok(Attr { holds, ..tree.attr(node)? })
    }

    fn forget(&self, _node: NodeId) {
        self.counts.forgets.fetch_add(1, Ordering::SeqCst);
    }

    fn attr(&self, node: NodeId) -> Result<Attr, FsError> {
        self.tree().attr(node)
    }

    fn set_attr(
        &self,
        id: NodeId,
        _open: Option<&dyn OpenFile>,
        changes: AttrChanges,
    ) -> Result<Attr, FsError> {
        let mut tree = self.tree();
        let node = tree.node(id)?;
        node.mode = changes.mode.unwrap_or(node.mode);
        node.uid = changes.uid.unwrap_or(node.uid);
        node.gid = changes.gid.unwrap_or(node.gid);
        if let (Some(size), Data::File(file)) = (changes.size_bytes, &node.data) {
            file.set_len(size)?;
        }
        if let Some(SetTime::At(time)) = changes.mtime {
            node.mtime = time;
        }
        tree.attr(id)
    }

    fn read_link(&self, node: NodeId) -> Result<OsString, FsError> {
        match &self.tree().node(node)?.data {
            Data::Link(target) => Ok(target.clone()),
            _ => Err(FsError::InvalidArgument),
        }
    }

    fn make_node(
        &self,
        _caller: Caller,
        parent: NodeId,
        name: &OsStr,
        new: NewNode,
    ) -> Result<Attr, FsError> {
        let data = match new.kind {
            FileKind::File => Data::File(Arc::new(super::anonymous_file()?)),
            kind => Data::Special(kind),
        };
        self.tree().add(parent, name, Node::new(data, new.mode))
    }

    fn make_dir(&self, _: Caller, parent: NodeId, name: &OsStr, mode: u32) -> Result<Attr, FsError> {
        self.tree().add(parent, name, Node::new(Data::Dir(BTreeMap::new()), mode))
    }

    fn make_symlink(&self, _: Caller, parent: NodeId, name: &OsStr, target: &OsStr) -> Result<Attr, FsError> {
        self.tree().add(parent, name, Node::new(Data::Link(target.to_owned()), 0o777))
    }

    fn link(&self, node: NodeId, parent: NodeId, name: &OsStr) -> Result<Attr, FsError> {
        let mut tree = self.tree();
        if tree.dir(parent)?.insert(name.to_owned(), node).is_some() {
            return Err(FsError::AlreadyExists);
        }
        tree.node(node)?.nlink += 1;
        tree.attr(node)
    }

    fn unlink(&self, parent: NodeId, name: &OsStr) -> Result<(), FsError> {
        let mut tree = self.tree();
        let node = tree.dir(parent)?.remove(name).ok_or(FsError::NotFound)?;
        tree.node(node)?.nlink -= 1;
        Ok(())
    }

    fn remove_dir(&self, parent: NodeId, name: &OsStr) -> Result<(), FsError> {
        let mut tree = self.tree();
        let node = tree.child(parent, name)?;
        if !tree.dir(node)?.is_empty() {
            return Err(FsError::DirectoryNotEmpty);
        }
        tree.dir(parent)?.remove(name);
        Ok(())
    }

    fn rename(
        &self,
        from: (NodeId, &OsStr),
        to: (NodeId, &OsStr),
        flags: RenameFlags,
    ) -> Result<(), FsError> {
        let mut tree = self.tree();
        let node = tree.child(from.0, from.1)?;
        let replaced = tree.child(to.0, to.1).ok();
        if flags.contains(RenameFlags::NO_REPLACE) && replaced.is_some() {
            return Err(FsError::AlreadyExists);
        }
        tree.dir(from.0)?.remove(from.1);
        tree.dir(to.0)?.insert(to.1.to_owned(), node);
        if let (true, Some(replaced)) = (flags.contains(RenameFlags::EXCHANGE), replaced) {
            tree.dir(from.0)?.insert(from.1.to_owned(), replaced);
        }
        Ok(())
    }

    fn open(&self, node: NodeId, flags: OpenFlags) -> Result<Arc<dyn OpenFile>, FsError> {
        self.counts.opens.fetch_add(1, Ordering::SeqCst);
        let file = match &self.tree().node(node)?.data {
            Data::File(file) => Arc::clone(file),
            _ => return Err(FsError::InvalidArgument),
        };
        if flags.contains(OpenFlags::TRUNCATE) {
            file.set_len(0)?;
        }
        Ok(self.open_file(file))
    }

    fn create(
        &self,
        _caller: Caller,
        parent: NodeId,
        name: &OsStr,
        mode: u32,
        _flags: OpenFlags,
    ) -> Result<(Attr, Arc<dyn OpenFile>), FsError> {
        let file = Arc::new(super::anonymous_file()?);
        let attr = self.tree().add(parent, name, Node::new(Data::File(Arc::clone(&file)), mode))?;
        Ok((attr, self.open_file(file)))
    }

    fn read_dir(&self, node: NodeId) -> Result<Vec<DirEntry>, FsError> {
        self.counts.listings.fetch_add(1, Ordering::SeqCst);
        let mut tree = self.tree();
        let entries = tree.dir(node)?.clone();
        let entry = |(name, node): (OsString, NodeId)| {
            Ok(DirEntry { ino: node.0, kind: tree.attr(node)?.kind, name })
        };
        entries.into_iter().map(entry).collect()
    }

    fn stats(&self) -> Result<FsStats, FsError> {
        Ok(FsStats {
            block_size_bytes: 4096,
            blocks: 1000,
            blocks_free: 500,
            blocks_available: 400,
            files: 100,
            files_free: 50,
            name_bytes_max: 255,
        })
    }

    fn sync_dir(&self, _node: NodeId) -> Result<(), FsError> {
        Ok(())
    }

    fn sync_all(&self) -> Result<(), FsError> {
        Ok(())
    }

    fn create_unnamed(
        &self,
        _caller: Caller,
        _parent: NodeId,
        mode: u32,
        _flags: OpenFlags,
    ) -> Result<(Attr, Arc<dyn OpenFile>), FsError> {
        let file = Arc::new(super::anonymous_file()?);
        let mut tree = self.tree();
        let id = NodeId(tree.next);
        tree.next += 1;
        let node = Node { nlink: 0, ..Node::new(Data::File(Arc::clone(&file)), mode) };
        tree.nodes.insert(id, node);
        Ok((tree.attr(id)?, self.open_file(file)))
    }

    fn has_xattrs(&self) -> bool {
        false
    }

    fn xattr(&self, _node: NodeId, _name: &OsStr) -> Result<Vec<u8>, FsError> {
        Err(FsError::NotSupported)
    }

    fn xattr_names(&self, _node: NodeId) -> Result<Vec<OsString>, FsError> {
        Err(FsError::NotSupported)
    }

    fn set_xattr(&self, _: NodeId, _name: &OsStr, _value: &[u8], _: XattrMode) -> Result<(), FsError> {
        Err(FsError::NotSupported)
    }

    fn remove_xattr(&self, _node: NodeId, _name: &OsStr) -> Result<(), FsError> {
        Err(FsError::NotSupported)
    }
}

impl OpenFile for Open {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<usize, FsError> {
        self.counts.reads.fetch_add(1, Ordering::SeqCst);
        Ok(self.file.read_at(buffer, offset)?)
    }

    fn write_at(&self, data: &[u8], offset: u64) -> Result<usize, FsError> {
        self.counts.writes.fetch_add(1, Ordering::SeqCst);
        Ok(self.file.write_at(data, offset)?)
    }

    fn backing(&self) -> Option<BorrowedFd<'_>> {
        self.backing.then(|| self.file.as_fd())
    }

    fn kill_set_id(&self) -> Result<(), FsError> {
        // Modes are the tree's.
        Ok(())
    }

    fn set_attr(&self, changes: &AttrChanges) -> Result<(), FsError> {
        if let Some(size) = changes.size_bytes {
            self.file.set_len(size)?;
        }
        Ok(())
    }

    fn sync(&self, _data_only: bool) -> Result<(), FsError> {
        self.counts.syncs.fetch_add(1, Ordering::SeqCst);
        let begun = Instant::now();
        while self.counts.disk_is_slow.load(Ordering::SeqCst) {
            if begun.elapsed() > super::PATIENCE {
                return Err(FsError::Os(std::io::ErrorKind::TimedOut.into()));
            }
            std::thread::yield_now();
        }
        Ok(self.file.sync_all()?)
    }

    fn allocate(&self, mode: u32, offset: u64, length_bytes: u64) -> Result<(), FsError> {
        let flags = rustix::fs::FallocateFlags::from_bits_retain(mode);
        Ok(rustix::fs::fallocate(&*self.file, flags, offset, length_bytes)?)
    }

    fn seek(&self, offset: u64, to: SeekTo) -> Result<u64, FsError> {
        let from = match to {
            SeekTo::Data => rustix::fs::SeekFrom::Data(offset),
            SeekTo::Hole => rustix::fs::SeekFrom::Hole(offset),
        };
        Ok(rustix::fs::seek(&*self.file, from)?)
    }
}
