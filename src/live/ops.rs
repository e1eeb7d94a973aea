//! The file-system operations of the live mount.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;

use super::nodes::{Key, Nodes};
use super::{KnownName, Live, OnDrop};
use crate::archive::RecordKind;
use crate::base::Nearby;
use crate::change::kill_set_id;
use crate::fs::{
    Attr, AttrChanges, Caller, DirEntry, FileKind, Filesystem, FsError, FsStats, Holds, Lookups, NewNode,
    NodeId, OpenFile, OpenFlags, RenameFlags, SetTime, XattrMode,
};
use crate::path::RelPath;
use crate::tree::{Found, Listed, Perspective};
use crate::xattr;

impl Live {
    /// Removes a name, whatever of it is real and whatever virtual.
    fn remove(&self, nodes: &mut Nodes, parent: NodeId, name: &OsStr, found: &Found) -> Result<(), FsError> {
        let path = nodes.child_path(parent, name)?;
        if let Some(id) = nodes.child(parent, name).filter(|_| !self.told_of_opens) {
            self.keep_as(nodes, id, path.clone(), found);
        }
        let _touched = OnDrop(|| self.touch(&path));
        self.materialiser.dir(&nodes.path(parent)?)?;
        self.materialiser.clear_way(&path)?;
        if matches!(found, Found::Virtual(..)) {
            // Nothing was removed from the real directory.
            let dir = path.parent().unwrap_or(RelPath::ROOT);
            self.tree().base().set_times(dir, None, Some(SetTime::Now))?;
        }
        // Whoever has it open must be able to tell attributes after the name is gone.
        nodes.removed(parent, name, Some(found.attr(parent)));
        Ok(())
    }

    fn open_real(
        &self,
        nodes: &mut Nodes,
        id: NodeId,
        path: &RelPath,
        flags: OpenFlags,
    ) -> Result<Arc<dyn OpenFile>, FsError> {
        let truncate = if flags.contains(OpenFlags::TRUNCATE) { OFlags::TRUNC } else { OFlags::empty() };
        let open = |access| self.open_base(path, access | truncate);
        let file = match open(OFlags::RDWR) {
            // A file that its owner may write but not read.
            Err(Errno::ACCESS) => open(OFlags::WRONLY)?,
            other => other?,
        };
        if flags.contains(OpenFlags::TRUNCATE | OpenFlags::KILL_SET_ID) {
            kill_set_id(&file)?;
        }
        self.opened(nodes, id, file)
    }

    /// Makes sure that a rename may put something of `kind` at `to`: what is there must be an empty directory
    /// or no directory.
    fn replaceable(&self, to: &RelPath, kind: FileKind, flags: RenameFlags) -> Result<(), FsError> {
        let target = self.find(to)?.map(|target| target.kind());
        match (target, kind) {
            (None, _) if flags.contains(RenameFlags::EXCHANGE) => Err(FsError::NotFound),
            (None, _) => Ok(()),
            (Some(_), _) if flags.contains(RenameFlags::EXCHANGE) => Ok(()),
            (Some(_), _) if flags.contains(RenameFlags::NO_REPLACE) => Err(FsError::AlreadyExists),
            (Some(FileKind::Dir), FileKind::Dir) if !self.is_empty_dir(to)? => {
                Err(FsError::DirectoryNotEmpty)
            }
            (Some(FileKind::Dir), FileKind::Dir) => Ok(()),
            (Some(FileKind::Dir), _) => Err(FsError::IsADirectory),
            (Some(_), FileKind::Dir) => Err(FsError::NotADirectory),
            (Some(_), _) => Ok(()),
        }
    }

    /// Renames what is real by now. Returns the names that the kernel may believe for longer than it should.
    fn rename_real(
        &self,
        (from_place, from): ((NodeId, &OsStr), &RelPath),
        (to_place, to): ((NodeId, &OsStr), &RelPath),
        source: &Found,
        exchange: bool,
    ) -> Result<Vec<KnownName>, FsError> {
        let nodes = &mut *self.lock();
        self.materialiser.dir(&nodes.path(to_place.0)?)?;
        let target = self.find(to)?;
        let replaced = nodes.child(to_place.0, to_place.1).filter(|_| !exchange && !self.told_of_opens);
        if let (Some(id), Some(target)) = (replaced, &target) {
            self.keep_as(nodes, id, to.to_owned(), target);
        }
        if exchange {
            self.tree().base().rename(from, to, rustix::fs::RenameFlags::EXCHANGE)?;
        } else {
            if source.kind() == FileKind::Dir || !matches!(target, Some(Found::Base(_))) {
                // Nothing visible is lost: what is there is an empty directory, stale, or virtual.
                self.materialiser.clear_way(to)?;
            }
            self.tree().base().rename(from, to, rustix::fs::RenameFlags::empty())?;
        }
        self.renamed(nodes, from_place, to_place, exchange, target.as_ref())?;
        if exchange || matches!(source, Found::Virtual(..)) {
            // The kernel takes along how long it believes a name.
            let places = [from_place, to_place].into_iter();
            let names =
                places.filter_map(|(dir, name)| Some((dir, nodes.child(dir, name)?, name.to_owned())));
            return Ok(names.collect());
        }
        Ok(Vec::new())
    }

    /// Gives the names of a rename their new nodes.
    fn renamed(
        &self,
        nodes: &mut Nodes,
        (from_dir, from_name): (NodeId, &OsStr),
        (to_dir, to_name): (NodeId, &OsStr),
        exchange: bool,
        replaced: Option<&Found>,
    ) -> Result<(), FsError> {
        let moved = nodes.child(from_dir, from_name);
        let target = nodes.child(to_dir, to_name);
        nodes.unname(from_dir, from_name);
        if exchange {
            nodes.unname(to_dir, to_name);
        } else {
            nodes.removed(to_dir, to_name, replaced.map(|found| found.attr(to_dir)));
        }
        let target = target.filter(|_| exchange).map(|id| (id, from_dir, from_name));
        for (id, dir, name) in moved.map(|id| (id, to_dir, to_name)).into_iter().chain(target) {
            nodes.name(id, dir, name);
            let found = self.find(&nodes.child_path(dir, name)?)?;
            nodes.reidentify(id, found.as_ref().and_then(Key::of));
            if let Some(found) = found {
                nodes.get_mut(id)?.note(&found.attr(id));
                // Without a name it was nobody's other name for a moment.
                nodes.share(id, &found);
            }
        }
        Ok(())
    }

    /// Returns what is in `parent` under `name`, and counts the reference.
    fn look_up(&self, parent: NodeId, name: &OsStr, near: &mut Nearby<'_>) -> Result<Attr, FsError> {
        let (attr, changed) = {
            let nodes = &mut *self.lock();
            let path = nodes.child_path(parent, name)?;
            let Some(found) = self.tree().find_near(&path, Perspective::ALL, near)? else {
                nodes.unname(parent, name);
                return Err(FsError::NotFound);
            };
            let known = nodes.child(parent, name);
            let id = nodes.node_for(parent, name, &found);
            let node = nodes.get_mut(id)?;
            let mut attr = Attr { ino: node.ino, ..found.attr(id) };
            attr.holds = match attr.holds {
                Holds::Nothing => Holds::Nothing,
                _ if self.invalidator.is_none() => Holds::Nothing,
                // The kernel may know the name already. Then what it is told of changes does not wait for this answer,
                // which could come after that.
                _ if known == Some(id) => Holds::Attributes,
                _ => Holds::Name,
            };
            (attr, node.sees(&attr))
        };
        if changed {
            self.tell_changed(attr.node);
        }
        Ok(attr)
    }
}

impl Filesystem for Live {
    fn lookup(&self, parent: NodeId, name: &OsStr) -> Result<Attr, FsError> {
        self.look_up(parent, name, &mut Nearby::new(self.tree().base()))
    }

    fn lookups(&self, parent: NodeId) -> Lookups<'_> {
        let mut near = Nearby::new(self.tree().base());
        Box::new(move |name| self.look_up(parent, name, &mut near))
    }

    fn forget(&self, node: NodeId) {
        self.lock().forget(node);
    }

    fn attr(&self, node: NodeId) -> Result<Attr, FsError> {
        let (attr, changed) = {
            let nodes = &mut *self.lock();
            let attr = self.attr_of(nodes, node)?;
            (attr, nodes.get_mut(node)?.sees(&attr))
        };
        if changed {
            self.tell_changed(node);
        }
        Ok(attr)
    }

    fn set_attr(
        &self,
        node: NodeId,
        open: Option<&dyn OpenFile>,
        changes: AttrChanges,
    ) -> Result<Attr, FsError> {
        if changes.size_bytes.is_some() && open.is_none() {
            // What is virtual and has no name any more must be real to be cut.
            self.open_kept(node, OpenFlags::WRITE)?;
        }
        let attr = self.set_attr_of(node, open, &changes);
        // Also where only a part of it could be done.
        self.changed(node, open);
        let attr = attr?;
        self.lock().get_mut(node)?.note(&attr);
        Ok(attr)
    }

    fn read_link(&self, node: NodeId) -> Result<OsString, FsError> {
        let nodes = &*self.lock();
        let (path, found) = self.found(nodes, node)?;
        match found {
            Found::Base(_) => Ok(self.tree().base().read_link(&path)?),
            Found::Virtual(_, record) => match record.kind {
                RecordKind::Symlink { target } => Ok(target),
                _ => Err(FsError::InvalidArgument),
            },
        }
    }

    fn make_node(&self, caller: Caller, parent: NodeId, name: &OsStr, new: NewNode) -> Result<Attr, FsError> {
        let _changing = self.changing();
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
        let _changing = self.changing();
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
        let _changing = self.changing();
        let nodes = &mut *self.lock();
        let made = self.make(nodes, caller, (parent, name), None, |dir, name| {
            rustix::fs::symlinkat(target, dir, name)
        })?;
        Ok(made.0)
    }

    fn link(&self, node: NodeId, parent: NodeId, name: &OsStr) -> Result<Attr, FsError> {
        let _changing = self.changing();
        let from = if self.lock().get(node)?.has_names() { Some(self.make_real(node)?) } else { None };
        let nodes = &mut *self.lock();
        let to = self.make_room(nodes, parent, name)?;
        let _touched = OnDrop(|| self.touch(&to));
        let (to_dir, to_name) = self.tree().base().open_parent(&to)?;
        match &from {
            Some(from) => {
                let (from_dir, from_name) = self.tree().base().open_parent(from)?;
                rustix::fs::linkat(from_dir, from_name, to_dir, to_name, AtFlags::empty())?;
                self.touch(from);
            }
            None => {
                // Made without a name.
                let file = nodes.get(node)?.open_file().ok_or(FsError::NotFound)?;
                let file = format!("/proc/self/fd/{}", file.as_raw_fd());
                rustix::fs::linkat(CWD, file, to_dir, to_name, AtFlags::SYMLINK_FOLLOW)?;
            }
        }
        let linked = match &from {
            Some(from) => nodes.at(from),
            None => Some(node),
        };
        if let Some(linked) = linked {
            nodes.share_always(linked);
        }
        self.entry(nodes, parent, name, &to)
    }

    fn unlink(&self, parent: NodeId, name: &OsStr) -> Result<(), FsError> {
        let _changing = self.changing();
        let nodes = &mut *self.lock();
        let found = self.find(&nodes.child_path(parent, name)?)?.ok_or(FsError::NotFound)?;
        match found.kind() {
            FileKind::Dir => Err(FsError::IsADirectory),
            _ => self.remove(nodes, parent, name, &found),
        }
    }

    fn remove_dir(&self, parent: NodeId, name: &OsStr) -> Result<(), FsError> {
        let _changing = self.changing();
        let nodes = &mut *self.lock();
        let path = nodes.child_path(parent, name)?;
        let found = self.find(&path)?.ok_or(FsError::NotFound)?;
        match found.kind() {
            FileKind::Dir if !self.is_empty_dir(&path)? => Err(FsError::DirectoryNotEmpty),
            FileKind::Dir => self.remove(nodes, parent, name, &found),
            _ => Err(FsError::NotADirectory),
        }
    }

    fn rename(
        &self,
        from_place: (NodeId, &OsStr),
        to_place: (NodeId, &OsStr),
        flags: RenameFlags,
    ) -> Result<(), FsError> {
        let _changing = self.changing();
        let exchange = flags.contains(RenameFlags::EXCHANGE);
        let (from, to, source) = {
            let nodes = self.lock();
            let from = nodes.child_path(from_place.0, from_place.1)?;
            let to = nodes.child_path(to_place.0, to_place.1)?;
            if self.tree().base().hides(&to) {
                return Err(FsError::NotPermitted);
            }
            let source = self.find(&from)?.ok_or(FsError::NotFound)?;
            self.replaceable(&to, source.kind(), flags)?;
            (from, to, source)
        };
        let _touched = OnDrop(|| {
            self.touch(&from);
            self.touch(&to);
        });
        self.make_subtree_real(&from)?;
        if exchange {
            self.make_subtree_real(&to)?;
        }
        let names = self.rename_real((from_place, &from), (to_place, &to), &source, exchange)?;
        self.tell_real(names);
        Ok(())
    }

    fn open(&self, node: NodeId, flags: OpenFlags) -> Result<Arc<dyn OpenFile>, FsError> {
        if let Some(file) = self.open_kept(node, flags)? {
            return Ok(file);
        }
        {
            let nodes = &mut *self.lock();
            let known = nodes.get(node)?;
            if known.kind != FileKind::File {
                return Err(FsError::InvalidArgument);
            }
            if !known.has_names() {
                if let Some(file) = known.open_file() {
                    return open_again(nodes, node, &file, flags);
                }
                if let (false, Some(file)) = (flags.contains(OpenFlags::WRITE), known.content()) {
                    return Ok(file);
                }
            }
        }
        if !flags.intersects(OpenFlags::WRITE | OpenFlags::TRUNCATE) {
            return self.open_content(node);
        }
        let _changing = self.changing();
        let path = self.make_real(node)?;
        let nodes = &mut *self.lock();
        if nodes.at(&path) != Some(node) {
            // Handles that cannot follow keep the old node: the name has to be looked up again.
            return Err(FsError::Stale);
        }
        let _touched = OnDrop(|| self.touch(&path));
        self.open_real(nodes, node, &path, flags)
    }

    fn create(
        &self,
        caller: Caller,
        parent: NodeId,
        name: &OsStr,
        mode: u32,
        _flags: OpenFlags,
    ) -> Result<(Attr, Arc<dyn OpenFile>), FsError> {
        let _changing = self.changing();
        let nodes = &mut *self.lock();
        // The handle that makes it may write even where the mode says that nobody may.
        let (attr, file) = self.make(nodes, caller, (parent, name), Some(mode), |dir, name| {
            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            rustix::fs::openat(dir, name, flags, Mode::from_bits_truncate(mode))
        })?;
        Ok((attr, self.opened(nodes, attr.node, File::from(file))?))
    }

    fn create_unnamed(
        &self,
        caller: Caller,
        parent: NodeId,
        mode: u32,
        _flags: OpenFlags,
    ) -> Result<(Attr, Arc<dyn OpenFile>), FsError> {
        let _changing = self.changing();
        self.make_unnamed(&mut self.lock(), caller, parent, mode)
    }

    fn writing(&self, node: NodeId) {
        let paths = self.lock().paths(node);
        for path in &paths {
            self.touch(path);
        }
    }

    fn written(&self, node: NodeId, file: &dyn OpenFile) {
        self.changed(node, Some(file));
    }

    fn has_xattrs(&self) -> bool {
        self.xattrs
    }

    fn xattr(&self, node: NodeId, name: &OsStr) -> Result<Vec<u8>, FsError> {
        self.xattr_of(node, name)
    }

    fn xattr_names(&self, node: NodeId) -> Result<Vec<OsString>, FsError> {
        self.xattr_names_of(node)
    }

    fn set_xattr(&self, node: NodeId, name: &OsStr, value: &[u8], mode: XattrMode) -> Result<(), FsError> {
        self.change_xattr(node, name, |object| xattr::set(object, name, value, mode))
    }

    fn remove_xattr(&self, node: NodeId, name: &OsStr) -> Result<(), FsError> {
        self.change_xattr(node, name, |object| xattr::remove(object, name))
    }

    fn parent(&self, dir: NodeId) -> NodeId {
        let nodes = self.lock();
        nodes.get(dir).ok().and_then(|node| Some(node.names().next()?.0)).unwrap_or(dir)
    }

    fn read_dir(&self, node: NodeId) -> Result<Vec<DirEntry>, FsError> {
        let nodes = &*self.lock();
        let path = nodes.path(node)?;
        let names = self.tree().entries(&path, Perspective::ALL)?;
        let entry = |(name, listed): (OsString, Listed)| DirEntry {
            ino: nodes.ino_of(node, &name, listed),
            kind: listed.kind,
            name,
        };
        Ok(names.into_iter().map(entry).collect())
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

/// Opens a file that is open and has no name, as through `/proc/self/fd`.
fn open_again(
    nodes: &mut Nodes,
    id: NodeId,
    file: &File,
    flags: OpenFlags,
) -> Result<Arc<dyn OpenFile>, FsError> {
    let mut access = match flags.intersects(OpenFlags::WRITE | OpenFlags::TRUNCATE) {
        true => OFlags::RDWR,
        false => OFlags::RDONLY,
    };
    access.set(OFlags::TRUNC, flags.contains(OpenFlags::TRUNCATE));
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let again = rustix::fs::open(path, access | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::empty())?;
    if flags.contains(OpenFlags::TRUNCATE | OpenFlags::KILL_SET_ID) {
        kill_set_id(&again)?;
    }
    nodes.opened(id, File::from(again))
}
