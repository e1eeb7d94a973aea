//! The file-system operations of the live mount.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::sync::Arc;

use rustix::fs::{AtFlags, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;

use super::{Live, Nodes};
use crate::base::BaseStat;
use crate::change::{SET_GROUP_ID, change_attributes, give_name_to};
use crate::fs::{
    Attr, AttrChanges, Caller, DirEntry, FileKind, Filesystem, FsError, FsStats, NewNode, NodeId, OpenFile,
    OpenFlags, RenameFlags, XattrMode,
};
use crate::node_numbers::UNKNOWN;
use crate::open_file::open_virtual;
use crate::path::{RelPath, RelPathBuf};
use crate::tree::{Found, Perspective};

impl Live {
    /// Returns what is at a node's path, having made sure it still is the node's object.
    fn found(&self, nodes: &Nodes, id: NodeId) -> Result<(RelPathBuf, Found), FsError> {
        let path = nodes.path(id)?;
        let found = self.find(&path)?.ok_or(FsError::Stale)?;
        let node = nodes.get(id)?;
        if found.kind() != node.kind || found.object_id() != node.object {
            return Err(FsError::Stale);
        }
        Ok((path, found))
    }

    /// Makes a node's object real, and its ancestors.
    ///
    /// Where handles of the virtual object are open its names lead to a new node from then on, since all
    /// handles of one node must share their backing; the caller is told to look it up again.
    fn make_real(&self, nodes: &mut Nodes, id: NodeId) -> Result<RelPathBuf, FsError> {
        let (path, found) = self.found(nodes, id)?;
        if let Found::Base(_) = found {
            return Ok(path);
        }
        self.materialiser.object(&path)?;
        let real = self.find(&path)?.ok_or(FsError::Stale)?;
        split(nodes, id)?;
        nodes.reidentify(id, real.object_id());
        Ok(path)
    }

    /// After what was `found` under a name was made real: gives the name a new node where handles of the
    /// virtual object are open.
    fn split_made_real(
        &self,
        nodes: &mut Nodes,
        (parent, name): (NodeId, &OsStr),
        found: &Found,
    ) -> Result<(), FsError> {
        match nodes.get(parent)?.children.get(name) {
            Some(&id) if matches!(found, Found::Virtual(..)) => split(nodes, id),
            _ => Ok(()),
        }
    }

    /// Prepares for something new under a name: real ancestors, nothing stale in the way.
    fn make_room(&self, nodes: &Nodes, parent: NodeId, name: &OsStr) -> Result<RelPathBuf, FsError> {
        let dir = nodes.path(parent)?;
        let path = dir.join(name);
        if self.tree().base().hides(&path) {
            return Err(FsError::NotPermitted);
        }
        if self.find(&path)?.is_some() {
            return Err(FsError::AlreadyExists);
        }
        self.materialiser.dir(&dir)?;
        self.materialiser.clear_way(&path)?;
        Ok(path)
    }

    /// Runs `make` on the real parent directory, gives the new object to the caller, and returns its
    /// attributes.
    fn make<T>(
        &self,
        nodes: &mut Nodes,
        caller: Caller,
        (parent, name): (NodeId, &OsStr),
        mode: Option<u32>,
        make: impl FnOnce(&std::os::fd::OwnedFd, &OsStr) -> rustix::io::Result<T>,
    ) -> Result<(Attr, T), FsError> {
        let path = self.make_room(nodes, parent, name)?;
        let (dir, name) = self.tree().base().open_parent(&path)?;
        let made = make(&dir, name)?;
        let parent_stat = BaseStat::from(rustix::fs::fstat(&dir)?);
        let gid = if parent_stat.mode & SET_GROUP_ID != 0 { parent_stat.gid } else { caller.gid };
        give_name_to(&dir, name, caller.uid, gid)?;
        if let Some(mode) = mode {
            let inherited = match self.find(&path)? {
                Some(Found::Base(stat)) if stat.kind == FileKind::Dir => parent_stat.mode & SET_GROUP_ID,
                _ => 0,
            };
            let mode = Mode::from_bits_truncate(mode | inherited);
            rustix::fs::chmodat(&dir, name, mode, AtFlags::empty())?;
        }
        self.touch(&path);
        Ok((self.entry(nodes, parent, name, &path)?, made))
    }

    fn entry(
        &self,
        nodes: &mut Nodes,
        parent: NodeId,
        name: &OsStr,
        path: &RelPath,
    ) -> Result<Attr, FsError> {
        let found = self.find(path)?.ok_or(FsError::NotFound)?;
        let id = nodes.node_for(parent, name, &found);
        Ok(found.attr(id))
    }

    /// Removes a name, whatever of it is real and whatever virtual.
    fn remove(&self, nodes: &mut Nodes, parent: NodeId, name: &OsStr) -> Result<(), FsError> {
        let path = nodes.child_path(parent, name)?;
        self.materialiser.dir(&nodes.path(parent)?)?;
        self.materialiser.clear_way(&path)?;
        self.touch(&path);
        nodes.unname(parent, name);
        Ok(())
    }

    fn change(&self, path: &RelPath, changes: &AttrChanges) -> Result<(), FsError> {
        let base = self.tree().base();
        let object = base.open(path, OFlags::PATH | OFlags::NOFOLLOW, 0)?;
        if BaseStat::from(rustix::fs::fstat(&object)?).kind != FileKind::Symlink {
            return Ok(change_attributes(object, changes)?);
        }
        if changes.uid.is_some() || changes.gid.is_some() {
            let (uid, gid) = (changes.uid.map(Uid::from_raw), changes.gid.map(Gid::from_raw));
            rustix::fs::chownat(&object, "", uid, gid, AtFlags::EMPTY_PATH)?;
        }
        Ok(base.set_times(path, changes.atime, changes.mtime)?)
    }

    fn open_real(
        &self,
        nodes: &mut Nodes,
        id: NodeId,
        path: &RelPath,
        flags: OpenFlags,
    ) -> Result<Arc<dyn OpenFile>, FsError> {
        let access = if flags.intersects(OpenFlags::WRITE | OpenFlags::TRUNCATE) {
            OFlags::RDWR
        } else {
            OFlags::RDONLY
        };
        let truncate = if flags.contains(OpenFlags::TRUNCATE) { OFlags::TRUNC } else { OFlags::empty() };
        let open = |access| {
            self.tree().base().open(path, access | truncate | OFlags::NOFOLLOW | OFlags::NONBLOCK, 0)
        };
        let file = match open(access) {
            // A file that its owner may write but not read.
            Err(Errno::ACCESS) if access == OFlags::RDWR => open(OFlags::WRONLY)?,
            other => other?,
        };
        nodes.opened(id, File::from(file))
    }

    /// Makes a name free for a rename: what is there must be an empty directory or no directory.
    fn replaceable(&self, to: &RelPath, source_kind: FileKind) -> Result<(), FsError> {
        let Some(target) = self.find(to)? else { return Ok(()) };
        match (source_kind == FileKind::Dir, target.kind() == FileKind::Dir) {
            (true, false) => Err(FsError::NotADirectory),
            (false, true) => Err(FsError::IsADirectory),
            (true, true) if !self.tree().list(to, Perspective::ALL)?.is_empty() => {
                Err(FsError::DirectoryNotEmpty)
            }
            _ => Ok(()),
        }
    }
}

impl Filesystem for Live {
    fn lookup(&self, parent: NodeId, name: &OsStr) -> Result<Attr, FsError> {
        let nodes = &mut *self.lock();
        let path = nodes.child_path(parent, name)?;
        match self.find(&path)? {
            Some(found) => {
                let id = nodes.node_for(parent, name, &found);
                Ok(found.attr(id))
            }
            None => {
                nodes.unname(parent, name);
                Err(FsError::NotFound)
            }
        }
    }

    fn forget(&self, node: NodeId) {
        self.lock().forget(node);
    }

    fn attr(&self, node: NodeId) -> Result<Attr, FsError> {
        let nodes = &*self.lock();
        let known = nodes.get(node)?;
        if known.names.is_empty()
            && let Some(file) = known.open_file()
        {
            return Ok(BaseStat::from(rustix::fs::fstat(&*file)?).attr(node));
        }
        match self.found(nodes, node) {
            Ok((_, found)) => Ok(found.attr(node)),
            Err(error) => known.opened.filter(|_| known.is_open()).ok_or(error),
        }
    }

    fn set_attr(
        &self,
        node: NodeId,
        _open: Option<&dyn OpenFile>,
        changes: AttrChanges,
    ) -> Result<Attr, FsError> {
        let nodes = &mut *self.lock();
        if nodes.get(node)?.names.is_empty()
            && let Some(file) = nodes.get(node)?.open_file()
        {
            change_attributes(&*file, &changes)?;
            return Ok(BaseStat::from(rustix::fs::fstat(&*file)?).attr(node));
        }
        let path = self.make_real(nodes, node)?;
        self.change(&path, &changes)?;
        self.touch(&path);
        Ok(self.find(&path)?.ok_or(FsError::Stale)?.attr(node))
    }

    fn read_link(&self, node: NodeId) -> Result<OsString, FsError> {
        let nodes = &*self.lock();
        let (path, found) = self.found(nodes, node)?;
        match found {
            Found::Base(_) => Ok(self.tree().base().read_link(&path)?),
            Found::Virtual(_, record) => match record.kind {
                crate::archive::RecordKind::Symlink { target } => Ok(target),
                _ => Err(FsError::InvalidArgument),
            },
        }
    }

    fn make_node(&self, caller: Caller, parent: NodeId, name: &OsStr, new: NewNode) -> Result<Attr, FsError> {
        let nodes = &mut *self.lock();
        let made = self.make(nodes, caller, (parent, name), Some(new.mode), |dir, name| {
            let kind = match new.kind {
                FileKind::File => rustix::fs::FileType::RegularFile,
                FileKind::Fifo => rustix::fs::FileType::Fifo,
                FileKind::Socket => rustix::fs::FileType::Socket,
                FileKind::CharDevice => rustix::fs::FileType::CharacterDevice,
                FileKind::BlockDevice => rustix::fs::FileType::BlockDevice,
                FileKind::Dir | FileKind::Symlink => return Err(Errno::INVAL),
            };
            rustix::fs::mknodat(dir, name, kind, Mode::from_bits_truncate(new.mode), u64::from(new.rdev))
        })?;
        Ok(made.0)
    }

    fn make_dir(&self, caller: Caller, parent: NodeId, name: &OsStr, mode: u32) -> Result<Attr, FsError> {
        let nodes = &mut *self.lock();
        let made = self.make(nodes, caller, (parent, name), Some(mode), |dir, name| {
            rustix::fs::mkdirat(dir, name, Mode::from_bits_truncate(mode))
        })?;
        Ok(made.0)
    }

    fn make_symlink(
        &self,
        caller: Caller,
        parent: NodeId,
        name: &OsStr,
        target: &OsStr,
    ) -> Result<Attr, FsError> {
        let nodes = &mut *self.lock();
        let made = self.make(nodes, caller, (parent, name), None, |dir, name| {
            rustix::fs::symlinkat(target, dir, name)
        })?;
        Ok(made.0)
    }

    fn link(&self, node: NodeId, parent: NodeId, name: &OsStr) -> Result<Attr, FsError> {
        let nodes = &mut *self.lock();
        let from = self.make_real(nodes, node)?;
        let to = self.make_room(nodes, parent, name)?;
        let (from_dir, from_name) = self.tree().base().open_parent(&from)?;
        let (to_dir, to_name) = self.tree().base().open_parent(&to)?;
        rustix::fs::linkat(from_dir, from_name, to_dir, to_name, AtFlags::empty())?;
        self.touch(&from);
        self.touch(&to);
        self.entry(nodes, parent, name, &to)
    }

    fn unlink(&self, parent: NodeId, name: &OsStr) -> Result<(), FsError> {
        let nodes = &mut *self.lock();
        let path = nodes.child_path(parent, name)?;
        match self.find(&path)?.map(|found| found.kind()) {
            None => return Err(FsError::NotFound),
            Some(FileKind::Dir) => return Err(FsError::IsADirectory),
            Some(_) => {}
        }
        // An open handle must be able to tell attributes after the name is gone.
        self.remove(nodes, parent, name)
    }

    fn remove_dir(&self, parent: NodeId, name: &OsStr) -> Result<(), FsError> {
        let nodes = &mut *self.lock();
        let path = nodes.child_path(parent, name)?;
        match self.find(&path)?.map(|found| found.kind()) {
            None => return Err(FsError::NotFound),
            Some(FileKind::Dir) => {}
            Some(_) => return Err(FsError::NotADirectory),
        }
        if !self.tree().list(&path, Perspective::ALL)?.is_empty() {
            return Err(FsError::DirectoryNotEmpty);
        }
        self.remove(nodes, parent, name)
    }

    fn rename(
        &self,
        (from_dir, from_name): (NodeId, &OsStr),
        (to_dir, to_name): (NodeId, &OsStr),
        flags: RenameFlags,
    ) -> Result<(), FsError> {
        let nodes = &mut *self.lock();
        let from = nodes.child_path(from_dir, from_name)?;
        let to = nodes.child_path(to_dir, to_name)?;
        if self.tree().base().hides(&to) {
            return Err(FsError::NotPermitted);
        }
        let source = self.find(&from)?.ok_or(FsError::NotFound)?;
        self.materialiser.subtree(&from)?;
        self.split_made_real(nodes, (from_dir, from_name), &source)?;
        self.materialiser.dir(&nodes.path(to_dir)?)?;
        if flags.contains(RenameFlags::EXCHANGE) {
            let target = self.find(&to)?.ok_or(FsError::NotFound)?;
            self.materialiser.subtree(&to)?;
            self.split_made_real(nodes, (to_dir, to_name), &target)?;
            self.tree().base().rename(&from, &to, rustix::fs::RenameFlags::EXCHANGE)?;
        } else {
            if flags.contains(RenameFlags::NO_REPLACE) && self.find(&to)?.is_some() {
                return Err(FsError::AlreadyExists);
            }
            self.replaceable(&to, source.kind())?;
            if source.kind() == FileKind::Dir || !matches!(self.find(&to)?, Some(Found::Base(_))) {
                // Nothing visible is lost: what is there is an empty directory, stale, or virtual.
                self.materialiser.clear_way(&to)?;
            }
            self.tree().base().rename(&from, &to, rustix::fs::RenameFlags::empty())?;
        }
        self.touch(&from);
        self.touch(&to);
        let moved = nodes.unname(from_dir, from_name);
        let replaced = nodes.unname(to_dir, to_name);
        if let Some(moved) = moved {
            nodes.name(moved, to_dir, to_name);
        }
        if let (true, Some(replaced)) = (flags.contains(RenameFlags::EXCHANGE), replaced) {
            nodes.name(replaced, from_dir, from_name);
        }
        // What was virtual until now is another object.
        for (dir, name, path) in [(to_dir, to_name, &to), (from_dir, from_name, &from)] {
            if let (Some(&id), Some(found)) = (nodes.get(dir)?.children.get(name), self.find(path)?) {
                nodes.reidentify(id, found.object_id());
            }
        }
        Ok(())
    }

    fn open(&self, node: NodeId, flags: OpenFlags) -> Result<Arc<dyn OpenFile>, FsError> {
        let nodes = &mut *self.lock();
        if nodes.get(node)?.kind != FileKind::File {
            return Err(FsError::InvalidArgument);
        }
        if flags.intersects(OpenFlags::WRITE | OpenFlags::TRUNCATE) {
            let path = self.make_real(nodes, node)?;
            self.touch(&path);
            return self.open_real(nodes, node, &path, flags);
        }
        let (path, found) = self.found(nodes, node)?;
        match found {
            Found::Base(_) => self.open_real(nodes, node, &path, flags),
            Found::Virtual(ref layer, ref record) => {
                let opened = nodes.nodes.get_mut(&node).ok_or(FsError::NotFound)?;
                let file = open_virtual(&self.store, layer.archive(), record, Arc::clone(&opened.token))?;
                opened.opened = Some(found.attr(node));
                Ok(file)
            }
        }
    }

    fn create(
        &self,
        caller: Caller,
        parent: NodeId,
        name: &OsStr,
        mode: u32,
        _flags: OpenFlags,
    ) -> Result<(Attr, Arc<dyn OpenFile>), FsError> {
        let nodes = &mut *self.lock();
        // The handle that makes it may write even where the mode says that nobody may.
        let (attr, file) = self.make(nodes, caller, (parent, name), Some(mode), |dir, name| {
            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            rustix::fs::openat(dir, name, flags, Mode::from_bits_truncate(mode))
        })?;
        Ok((attr, nodes.opened(attr.node, File::from(file))?))
    }

    fn create_unnamed(
        &self,
        _caller: Caller,
        _parent: NodeId,
        _mode: u32,
        _flags: OpenFlags,
    ) -> Result<(Attr, Arc<dyn OpenFile>), FsError> {
        Err(FsError::NotSupported)
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

    fn read_dir(&self, node: NodeId) -> Result<Vec<DirEntry>, FsError> {
        let nodes = &*self.lock();
        let path = nodes.path(node)?;
        let known = &nodes.get(node)?.children;
        let names = self.tree().list(&path, Perspective::ALL)?;
        Ok(names
            .into_iter()
            .map(|(name, kind)| {
                let node = known.get(&name).copied().unwrap_or(UNKNOWN);
                DirEntry { ino: node.0, kind, name }
            })
            .collect())
    }

    fn stats(&self) -> Result<FsStats, FsError> {
        Ok(FsStats::of(&self.tree().base().stats()?))
    }

    fn sync_all(&self) -> Result<(), FsError> {
        Ok(rustix::fs::syncfs(self.tree().base().root())?)
    }

    fn sync_dir(&self, node: NodeId) -> Result<(), FsError> {
        let path = self.lock().path(node)?;
        match self.tree().base().open(&path, OFlags::RDONLY | OFlags::DIRECTORY, 0) {
            Ok(dir) => Ok(rustix::fs::fsync(dir)?),
            // Virtual: its archive is durable.
            Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

/// Takes all names off a node that has handles of virtual content open, which is real from now on.
fn split(nodes: &mut Nodes, id: NodeId) -> Result<(), FsError> {
    let node = nodes.get(id)?;
    if !node.is_open() {
        return Ok(());
    }
    for (parent, name) in node.names.clone() {
        nodes.unname(parent, &name);
    }
    Err(FsError::Stale)
}
