//! What the live mount answers to those who do for show what has happened already.

use std::collections::{HashMap, VecDeque};
use std::ffi::{OsStr, OsString};
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Live;
use crate::fs::{
    Attr, AttrChanges, Caller, DirEntry, FileKind, Filesystem, FsError, FsStats, NewNode, NodeId, OpenFile,
    OpenFlags, RenameFlags, SeekTo, XattrMode,
};

/// The live mount, seen by the one process that tells watchers: what it does succeeds where it has happened
/// already, and changes nothing.
#[derive(Debug)]
pub struct Announcer {
    live: Arc<Live>,
    /// What is to happen under a name, in order. Not held while `live` works.
    expected: Mutex<HashMap<(NodeId, OsString), VecDeque<Expected>>>,
}

/// What is to happen for show.
#[derive(Debug, Clone, Copy)]
pub(super) enum Expected {
    /// What is there already is made.
    Creation,
    /// What is gone already is removed; it was this.
    Removal(Attr),
}

impl Announcer {
    pub(super) fn new(live: Arc<Live>) -> Self {
        Self { live, expected: Mutex::default() }
    }

    /// Replaces what is expected.
    pub(super) fn expect(&self, all: Vec<(NodeId, OsString, Expected)>) {
        let mut by_name: HashMap<_, VecDeque<_>> = HashMap::new();
        for (dir, name, expected) in all {
            by_name.entry((dir, name)).or_default().push_back(expected);
        }
        *self.expected() = by_name;
    }

    fn expected(&self) -> MutexGuard<'_, HashMap<(NodeId, OsString), VecDeque<Expected>>> {
        self.expected.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next(&self, parent: NodeId, name: &OsStr) -> Option<Expected> {
        self.expected().get(&(parent, name.to_owned()))?.front().copied()
    }

    fn done(&self, parent: NodeId, name: &OsStr) {
        if let Some(expected) = self.expected().get_mut(&(parent, name.to_owned())) {
            expected.pop_front();
        }
    }

    /// Answers the making of what is there already.
    fn create_for_show(&self, parent: NodeId, name: &OsStr, kind: FileKind) -> Result<Attr, FsError> {
        let Some(Expected::Creation) = self.next(parent, name) else { return Err(FsError::NotPermitted) };
        self.done(parent, name);
        let attr = self.live.lookup(parent, name)?;
        if attr.kind == kind { Ok(attr) } else { Err(FsError::Stale) }
    }

    /// Answers the removal of what is gone already, unless somebody put something new there meanwhile: the
    /// kernel would take that for removed.
    fn remove_for_show(&self, parent: NodeId, name: &OsStr) -> Result<(), FsError> {
        let Some(Expected::Removal(attr)) = self.next(parent, name) else {
            return Err(FsError::NotPermitted);
        };
        self.done(parent, name);
        self.live.forget_removed(parent, name, attr.node)
    }
}

impl Filesystem for Announcer {
    fn lookup(&self, parent: NodeId, name: &OsStr) -> Result<Attr, FsError> {
        match self.next(parent, name) {
            Some(Expected::Creation) => Err(FsError::NotFound),
            Some(Expected::Removal(attr)) => Ok(attr),
            None => self.live.lookup(parent, name),
        }
    }

    fn forget(&self, node: NodeId) {
        self.live.forget(node);
    }

    fn attr(&self, node: NodeId) -> Result<Attr, FsError> {
        self.live.attr(node)
    }

    fn set_attr(
        &self,
        node: NodeId,
        _open: Option<&dyn OpenFile>,
        _changes: AttrChanges,
    ) -> Result<Attr, FsError> {
        self.live.attr(node)
    }

    fn read_link(&self, node: NodeId) -> Result<OsString, FsError> {
        self.live.read_link(node)
    }

    fn make_node(&self, _: Caller, parent: NodeId, name: &OsStr, new: NewNode) -> Result<Attr, FsError> {
        self.create_for_show(parent, name, new.kind)
    }

    fn make_dir(&self, _: Caller, parent: NodeId, name: &OsStr, _mode: u32) -> Result<Attr, FsError> {
        self.create_for_show(parent, name, FileKind::Dir)
    }

    fn make_symlink(
        &self,
        _: Caller,
        parent: NodeId,
        name: &OsStr,
        _target: &OsStr,
    ) -> Result<Attr, FsError> {
        self.create_for_show(parent, name, FileKind::Symlink)
    }

    fn link(&self, _node: NodeId, _parent: NodeId, _name: &OsStr) -> Result<Attr, FsError> {
        Err(FsError::NotPermitted)
    }

    fn unlink(&self, parent: NodeId, name: &OsStr) -> Result<(), FsError> {
        self.remove_for_show(parent, name)
    }

    fn remove_dir(&self, parent: NodeId, name: &OsStr) -> Result<(), FsError> {
        self.remove_for_show(parent, name)
    }

    fn rename(&self, _: (NodeId, &OsStr), _: (NodeId, &OsStr), _: RenameFlags) -> Result<(), FsError> {
        Err(FsError::NotPermitted)
    }

    /// Opens for writing and writes nothing: closing it is what is to be heard.
    fn open(&self, node: NodeId, _flags: OpenFlags) -> Result<Arc<dyn OpenFile>, FsError> {
        self.live.attr(node)?;
        Ok(Arc::new(ForShow))
    }

    fn create(
        &self,
        _: Caller,
        _parent: NodeId,
        _name: &OsStr,
        _mode: u32,
        _flags: OpenFlags,
    ) -> Result<(Attr, Arc<dyn OpenFile>), FsError> {
        Err(FsError::NotPermitted)
    }

    fn create_unnamed(
        &self,
        _: Caller,
        _parent: NodeId,
        _mode: u32,
        _flags: OpenFlags,
    ) -> Result<(Attr, Arc<dyn OpenFile>), FsError> {
        Err(FsError::NotPermitted)
    }

    fn has_xattrs(&self) -> bool {
        self.live.has_xattrs()
    }

    fn xattr(&self, node: NodeId, name: &OsStr) -> Result<Vec<u8>, FsError> {
        self.live.xattr(node, name)
    }

    fn xattr_names(&self, node: NodeId) -> Result<Vec<OsString>, FsError> {
        self.live.xattr_names(node)
    }

    fn set_xattr(&self, _: NodeId, _name: &OsStr, _value: &[u8], _: XattrMode) -> Result<(), FsError> {
        Err(FsError::NotPermitted)
    }

    fn remove_xattr(&self, _node: NodeId, _name: &OsStr) -> Result<(), FsError> {
        Err(FsError::NotPermitted)
    }

    fn read_dir(&self, node: NodeId) -> Result<Vec<DirEntry>, FsError> {
        self.live.read_dir(node)
    }

    fn stats(&self) -> Result<FsStats, FsError> {
        self.live.stats()
    }

    fn sync_all(&self) -> Result<(), FsError> {
        self.live.sync_all()
    }

    fn sync_dir(&self, node: NodeId) -> Result<(), FsError> {
        self.live.sync_dir(node)
    }
}

/// An open file that can be closed.
#[derive(Debug)]
struct ForShow;

impl OpenFile for ForShow {
    fn read_at(&self, _buffer: &mut [u8], _offset: u64) -> Result<usize, FsError> {
        Err(FsError::NotPermitted)
    }

    fn write_at(&self, _data: &[u8], _offset: u64) -> Result<usize, FsError> {
        Err(FsError::NotPermitted)
    }

    fn kill_set_id(&self) -> Result<(), FsError> {
        Err(FsError::NotPermitted)
    }

    fn set_attr(&self, _changes: &AttrChanges) -> Result<(), FsError> {
        Err(FsError::NotPermitted)
    }

    fn backing(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn sync(&self, _data_only: bool) -> Result<(), FsError> {
        Ok(())
    }

    fn allocate(&self, _mode: u32, _offset: u64, _length_bytes: u64) -> Result<(), FsError> {
        Err(FsError::NotPermitted)
    }

    fn seek(&self, _offset: u64, _to: SeekTo) -> Result<u64, FsError> {
        Err(FsError::NotPermitted)
    }
}
