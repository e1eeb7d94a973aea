//! The file-system operations of a view.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::sync::Arc;

use rustix::io::Errno;

use super::node::{Body, Dir, FileContent, OwnAttr, Special, Symlink};
use super::{State, View};
use crate::change::SET_GROUP_ID;
use crate::fs::{
    Attr, AttrChanges, Caller, DirEntry, FileKind, Filesystem, FsError, FsStats, NewNode, NodeId, OpenFile,
    OpenFlags, RenameFlags, XattrMode,
};
use crate::open_file::RealFile;
use crate::tree::Found;

/// A directory with a name in it.
type Place<'a> = (NodeId, &'a OsStr);

impl View {
    /// Makes sure that `name` is free for something new.
    fn check_free(&self, state: &mut State, (parent, name): Place<'_>) -> Result<(), FsError> {
        match self.resolve(state, parent, name) {
            Ok(_) => return Err(FsError::AlreadyExists),
            Err(FsError::NotFound) => {}
            Err(error) => return Err(error),
        }
        self.refuse_in_removed(state, parent)?;
        self.refuse_hidden(state, parent, name)
    }

    fn add(
        &self,
        state: &mut State,
        at: Place<'_>,
        make: impl FnOnce(&Self, &mut State) -> Result<Body, FsError>,
    ) -> Result<NodeId, FsError> {
        self.check_free(state, at)?;
        let body = make(self, state)?;
        let id = state.nodes.insert(body);
        state.nodes.link(id, at);
        self.touch_dir(state, at.0)?;
        Ok(id)
    }

    /// A directory that is gone but still open takes no new names.
    fn refuse_in_removed(&self, state: &State, dir: NodeId) -> Result<(), FsError> {
        match dir == NodeId::ROOT || state.nodes.get(dir)?.names.len() > 0 {
            true => Ok(()),
            false => Err(FsError::NotFound),
        }
    }

    /// Keeps tasks from making what a commit could not put in place.
    fn refuse_hidden(&self, state: &State, parent: NodeId, name: &OsStr) -> Result<(), FsError> {
        match state.nodes.lower_child((parent, name))? {
            Some(lower) if self.tree.base().hides(&lower) => Err(FsError::NotPermitted),
            _ => Ok(()),
        }
    }

    fn add_file(
        &self,
        state: &mut State,
        caller: Caller,
        at: Place<'_>,
        mode: u32,
    ) -> Result<(NodeId, File), FsError> {
        let mut created = None;
        let id = self.add(state, at, |view, state| {
            let own = view.new_attr(state, caller, at.0, mode)?;
            let (body, file) = view.make_blob(state, &own, Some(at))?;
            created = Some(file);
            Ok(body)
        })?;
        Self::note_made(state, id);
        Ok((id, created.ok_or(FsError::NotFound)?))
    }

    /// Hands out what was created, open: its handle may write even where the mode says that nobody may.
    fn created(
        &self,
        state: &mut State,
        id: NodeId,
        file: File,
    ) -> Result<(Attr, Arc<dyn OpenFile>), FsError> {
        let file = Self::share(state, id, Arc::new(RealFile::new(file, Arc::new(()))))?;
        Ok((self.attr_of(state, id)?, file))
    }

    /// Takes `name` away from the node it leads to.
    fn remove_name(&self, state: &mut State, id: NodeId, at: Place<'_>) -> Result<(), FsError> {
        let found = state.nodes.get(id)?.names.is_found(at.0, at.1);
        state.nodes.unlink(id, at);
        self.hide_lower(state, at, found)?;
        self.touch_names(state, id)?;
        self.touch_dir(state, at.0)
    }

    /// Refuses to move a directory that holds the store: a commit could not.
    fn refuse_to_move_hidden(&self, state: &State, id: NodeId) -> Result<(), FsError> {
        let lower = state.nodes.dir(id).ok().and_then(|_| state.nodes.lower(id));
        match lower {
            Some(lower) if self.tree.base().holds_hidden(&lower) => Err(FsError::NotPermitted),
            _ => Ok(()),
        }
    }

    fn is_empty(&self, state: &mut State, id: NodeId) -> Result<bool, FsError> {
        state.nodes.dir(id)?;
        if state.nodes.lower(id).is_some_and(|lower| self.tree.base().holds_hidden(&lower)) {
            return Ok(false);
        }
        Ok(self.names(state, id)?.is_empty())
    }

    /// Returns the merged names of a directory, and records the listing of its lower side.
    fn names(&self, state: &mut State, id: NodeId) -> Result<Vec<DirEntry>, FsError> {
        let mut names = BTreeMap::new();
        state.nodes.dir(id)?;
        if let Some(lower) = state.nodes.lower(id) {
            let lower_names = self.tree.entries(&lower, self.perspective())?;
            state.recording.list(&lower, &lower_names);
            let ino = |listed| state.nodes.ino_of_listed(listed);
            names.extend(lower_names.into_iter().map(|(name, listed)| (name, (ino(listed), listed.kind))));
        }
        for (name, child) in &state.nodes.dir(id)?.children {
            match child.id() {
                None => {
                    names.remove(&**name);
                }
                Some(id) => {
                    let node = state.nodes.get(id)?;
                    names.insert((**name).to_owned(), (node.ino, node.body.kind()));
                }
            }
        }
        Ok(names.into_iter().map(|(name, (ino, kind))| DirEntry { ino, kind, name }).collect())
    }

    fn exchange(
        &self,
        state: &mut State,
        (source, from): (NodeId, Place<'_>),
        (target, to): (NodeId, Place<'_>),
    ) -> Result<(), FsError> {
        self.refuse_to_move_hidden(state, target)?;
        if source == target {
            return Ok(());
        }
        state.nodes.detach(source, from);
        state.nodes.detach(target, to);
        state.nodes.attach(target, from, false);
        state.nodes.attach(source, to, false);
        self.touch_names(state, source)?;
        self.touch_names(state, target)?;
        self.touch_dir(state, from.0)?;
        self.touch_dir(state, to.0)
    }

    /// Makes sure that `source` may take the place of `target`.
    fn check_replaceable(&self, state: &mut State, source: NodeId, target: NodeId) -> Result<(), FsError> {
        match (state.nodes.dir(source).is_ok(), state.nodes.dir(target).is_ok()) {
            (true, false) => Err(FsError::NotADirectory),
            (false, true) => Err(FsError::IsADirectory),
            (true, true) if !self.is_empty(state, target)? => Err(FsError::DirectoryNotEmpty),
            _ => Ok(()),
        }
    }

    fn set_attr_of(&self, state: &mut State, node: NodeId, changes: AttrChanges) -> Result<Attr, FsError> {
        let mut id = state.nodes.current(node);
        if let (Some(size_bytes), Body::File(FileContent::Lower { .. })) =
            (changes.size_bytes, &state.nodes.get(id)?.body)
        {
            id = self.copy_up(state, id, size_bytes != 0)?;
        }
        self.change_attr(state, id, changes)?;
        self.note_use(state, id, OpenFlags::WRITE);
        self.attr_of(state, node)
    }

    fn link_node(&self, state: &mut State, node: NodeId, at: Place<'_>) -> Result<Attr, FsError> {
        let mut id = state.nodes.current(node);
        self.check_free(state, at)?;
        let linked = state.nodes.get(id)?;
        let unnamed = matches!(&linked.body, Body::File(FileContent::Blob(blob)) if blob.unnamed);
        match &linked.body {
            Body::Dir(_) => return Err(FsError::NotPermitted),
            _ if state.nodes.links(linked) == 0 && !unnamed => return Err(FsError::NotFound),
            Body::File(FileContent::Lower { .. }) => {
                let lower = state.nodes.lower(id).ok_or(FsError::NotFound)?;
                if matches!(self.find_lower(&lower)?, Some(Found::Virtual(..))) {
                    // A name in the base cannot lead to a file in an archive.
                    id = self.copy_up(state, id, true)?;
                }
            }
            _ => {}
        }
        state.nodes.link(id, at);
        if let Body::File(FileContent::Blob(blob)) = &mut state.nodes.get_mut(id)?.body {
            blob.unnamed = false;
        }
        self.touch_names(state, id)?;
        self.touch_dir(state, at.0)?;
        self.attr_of(state, id)
    }
}

impl Filesystem for View {
    fn lookup(&self, parent: NodeId, name: &OsStr) -> Result<Attr, FsError> {
        let state = &mut *self.lock();
        let (id, found) = self.resolve_found(state, parent, name)?;
        self.attr_of_found(state, id, found)
    }

    fn forget(&self, node: NodeId) {
        let state = &mut *self.lock();
        if let Some(blob) = state.nodes.forget(node) {
            self.drop_blob(state, blob);
        }
    }

    fn attr(&self, node: NodeId) -> Result<Attr, FsError> {
        self.attr_of(&mut self.lock(), node)
    }

    fn set_attr(
        &self,
        node: NodeId,
        // All handles of a node share one file, which is used here, too, where there is one.
        _open: Option<&dyn OpenFile>,
        changes: AttrChanges,
    ) -> Result<Attr, FsError> {
        let changed = {
            let state = &mut *self.lock();
            self.set_attr_of(state, node, changes)
        };
        self.tell();
        changed
    }

    fn read_link(&self, node: NodeId) -> Result<OsString, FsError> {
        let state = &mut *self.lock();
        let Body::Symlink(symlink) = &state.nodes.get(node)?.body else {
            return Err(FsError::InvalidArgument);
        };
        match (&symlink.own, state.nodes.lower(node)) {
            (Some((target, _)), None) => Ok(target.clone()),
            (_, Some(lower)) => {
                let target = self.lower_target(&lower)?;
                state.recording.link(&lower, target.clone());
                Ok(target)
            }
            (None, None) => Err(FsError::NotFound),
        }
    }

    fn make_node(&self, caller: Caller, parent: NodeId, name: &OsStr, new: NewNode) -> Result<Attr, FsError> {
        let state = &mut *self.lock();
        let id = match new.kind {
            FileKind::File => self.add_file(state, caller, (parent, name), new.mode)?.0,
            FileKind::Dir | FileKind::Symlink => return Err(FsError::InvalidArgument),
            kind => self.add(state, (parent, name), |view, state| {
                let own = Some(view.new_attr(state, caller, parent, new.mode)?);
                Ok(Body::Special(Box::new(Special { kind, rdev: new.rdev, own, lower: None })))
            })?,
        };
        self.attr_of(state, id)
    }

    fn make_dir(&self, caller: Caller, parent: NodeId, name: &OsStr, mode: u32) -> Result<Attr, FsError> {
        let state = &mut *self.lock();
        let id = self.add(state, (parent, name), |view, state| {
            let own = view.new_attr(state, caller, parent, mode)?;
            let inherited = view.attr_of(state, parent)?.mode & SET_GROUP_ID;
            let attr = Some(OwnAttr { mode: mode | inherited, ..own });
            Ok(Body::Dir(Box::new(Dir { attr, attr_changed: true, ..Dir::default() })))
        })?;
        self.attr_of(state, id)
    }

    fn make_symlink(
        &self,
        caller: Caller,
        parent: NodeId,
        name: &OsStr,
        target: &OsStr,
    ) -> Result<Attr, FsError> {
        let state = &mut *self.lock();
        let id = self.add(state, (parent, name), |view, state| {
            let own = view.new_attr(state, caller, parent, 0o777)?;
            Ok(Body::Symlink(Box::new(Symlink { own: Some((target.to_owned(), own)), lower: None })))
        })?;
        self.attr_of(state, id)
    }

    fn link(&self, node: NodeId, parent: NodeId, name: &OsStr) -> Result<Attr, FsError> {
        let linked = {
            let state = &mut *self.lock();
            self.link_node(state, node, (parent, name))
        };
        self.tell();
        linked
    }

    fn unlink(&self, parent: NodeId, name: &OsStr) -> Result<(), FsError> {
        let state = &mut *self.lock();
        let id = self.resolve(state, parent, name)?;
        if state.nodes.dir(id).is_ok() {
            return Err(FsError::IsADirectory);
        }
        self.remove_name(state, id, (parent, name))
    }

    fn remove_dir(&self, parent: NodeId, name: &OsStr) -> Result<(), FsError> {
        let state = &mut *self.lock();
        let id = self.resolve(state, parent, name)?;
        if !self.is_empty(state, id)? {
            return Err(FsError::DirectoryNotEmpty);
        }
        self.remove_name(state, id, (parent, name))
    }

    fn rename(&self, from: Place<'_>, to: Place<'_>, flags: RenameFlags) -> Result<(), FsError> {
        let state = &mut *self.lock();
        let source = self.resolve(state, from.0, from.1)?;
        self.refuse_in_removed(state, to.0)?;
        self.refuse_hidden(state, to.0, to.1)?;
        self.refuse_to_move_hidden(state, source)?;
        let target = match self.resolve(state, to.0, to.1) {
            Ok(id) => Some(id),
            Err(FsError::NotFound) => None,
            Err(error) => return Err(error),
        };
        if flags.contains(RenameFlags::EXCHANGE) {
            let target = target.ok_or(FsError::NotFound)?;
            return self.exchange(state, (source, from), (target, to));
        }
        if let Some(target) = target {
            if flags.contains(RenameFlags::NO_REPLACE) {
                return Err(FsError::AlreadyExists);
            }
            if source == target {
                // Two names of one file: rename(2) does nothing.
                return Ok(());
            }
            self.check_replaceable(state, source, target)?;
            state.nodes.unlink(target, to);
            self.touch_names(state, target)?;
        }
        let found = state.nodes.get(source)?.names.is_found(from.0, from.1);
        state.nodes.detach(source, from);
        self.hide_lower(state, from, found)?;
        state.nodes.attach(source, to, false);
        self.touch_names(state, source)?;
        self.touch_dir(state, from.0)?;
        self.touch_dir(state, to.0)
    }

    fn open(&self, node: NodeId, flags: OpenFlags) -> Result<Arc<dyn OpenFile>, FsError> {
        let opened = {
            let state = &mut *self.lock();
            self.open_node(state, node, flags)
        };
        if flags.intersects(OpenFlags::WRITE | OpenFlags::TRUNCATE) {
            self.tell();
        }
        opened
    }

    fn create(
        &self,
        caller: Caller,
        parent: NodeId,
        name: &OsStr,
        mode: u32,
        flags: OpenFlags,
    ) -> Result<(Attr, Arc<dyn OpenFile>), FsError> {
        let state = &mut *self.lock();
        let (id, file) = self.add_file(state, caller, (parent, name), mode)?;
        self.note_use(state, id, flags);
        self.created(state, id, file)
    }

    fn create_unnamed(
        &self,
        caller: Caller,
        parent: NodeId,
        mode: u32,
        _flags: OpenFlags,
    ) -> Result<(Attr, Arc<dyn OpenFile>), FsError> {
        let state = &mut *self.lock();
        state.nodes.dir(parent)?;
        let own = self.new_attr(state, caller, parent, mode)?;
        let (body, file) = self.make_blob(state, &own, None)?;
        let id = state.nodes.insert(body);
        self.created(state, id, file)
    }

    fn has_xattrs(&self) -> bool {
        self.xattrs
    }

    fn xattr(&self, node: NodeId, name: &OsStr) -> Result<Vec<u8>, FsError> {
        self.check_xattr(name)?;
        let mut xattrs = self.xattrs_of(&self.lock(), node)?;
        xattrs.remove(name).ok_or(Errno::NODATA.into())
    }

    fn xattr_names(&self, node: NodeId) -> Result<Vec<OsString>, FsError> {
        Ok(self.xattrs_of(&self.lock(), node)?.into_keys().collect())
    }

    fn set_xattr(&self, node: NodeId, name: &OsStr, value: &[u8], mode: XattrMode) -> Result<(), FsError> {
        let set = self.change_xattr(&mut self.lock(), node, (name, Some(value)), mode);
        self.tell();
        set
    }

    fn remove_xattr(&self, node: NodeId, name: &OsStr) -> Result<(), FsError> {
        let removed = self.change_xattr(&mut self.lock(), node, (name, None), XattrMode::Replace);
        self.tell();
        removed
    }

    fn parent(&self, dir: NodeId) -> NodeId {
        let state = self.lock();
        let names = state.nodes.get(dir).map(|node| &node.names);
        names.ok().and_then(|names| Some(names.iter().next()?.0)).unwrap_or(dir)
    }

    fn read_dir(&self, node: NodeId) -> Result<Vec<DirEntry>, FsError> {
        self.names(&mut self.lock(), node)
    }

    fn stats(&self) -> Result<FsStats, FsError> {
        Ok(FsStats::of(&rustix::fs::fstatvfs(&self.staging)?))
    }

    fn sync_all(&self) -> Result<(), FsError> {
        Ok(rustix::fs::syncfs(&self.staging)?)
    }

    fn sync_dir(&self, _node: NodeId) -> Result<(), FsError> {
        // Nothing of a view is durable before it is committed.
        Ok(())
    }
}
