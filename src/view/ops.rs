//! The file-system operations of a view.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::fs::{AtFlags, Mode, OFlags};

use super::node::{Body, Child, Dir, FileContent, OwnAttr, Special, Symlink};
use super::{State, View, blob_name};
use crate::base::{BaseStat, timestamps};
use crate::change::{SET_GROUP_ID, give_to};
use crate::copy::copy_contents;
use crate::fs::{
    Attr, AttrChanges, Caller, DirEntry, FileKind, Filesystem, FsError, FsStats, NewNode, NodeId, OpenFile,
    OpenFlags, RenameFlags, SetTime, XattrMode,
};
use crate::node_numbers::UNKNOWN;
use crate::open_file::{RealFile, open_virtual};
use crate::path::{RelPath, RelPathBuf};
use crate::recording::ContentSeen;
use crate::tree::Found;

impl View {
    pub(super) fn lower_target(&self, lower: &RelPath) -> Result<OsString, FsError> {
        match self.find_lower(lower)?.ok_or(FsError::NotFound)? {
            Found::Base(_) => Ok(self.tree.base().read_link(lower)?),
            Found::Virtual(_, record) => match record.kind {
                crate::archive::RecordKind::Symlink { target } => Ok(target),
                _ => Err(FsError::InvalidArgument),
            },
        }
    }

    /// Opens a lower file and records that its content was read.
    fn open_lower(
        &self,
        state: &mut State,
        lower: &RelPath,
        token: Arc<()>,
    ) -> Result<Arc<dyn OpenFile>, FsError> {
        match self.find_lower(lower)?.ok_or(FsError::NotFound)? {
            Found::Base(_) => {
                let file = self.tree.base().open_file(lower)?;
                let stat = BaseStat::from(rustix::fs::fstat(&file)?);
                state.recording.read(lower, stat.probe(), ContentSeen::Real(stat.identity));
                Ok(Arc::new(RealFile::new(file, token)))
            }
            found @ Found::Virtual(..) => {
                let probe = found.probe();
                let Found::Virtual(layer, record) = found else { return Err(FsError::NotFound) };
                let crate::archive::RecordKind::File { content: Some(content), .. } = record.kind else {
                    return Err(FsError::InvalidArgument);
                };
                let file = open_virtual(&self.store, layer.archive(), &record, token)?;
                state.recording.read(lower, probe, ContentSeen::Virtual(content));
                Ok(file)
            }
        }
    }

    /// Turns a lower file into a blob with the same content and attributes; with `keep_content` false the
    /// content is left out, and not recorded as read.
    ///
    /// Fails with [`FsError::Stale`] where open handles keep the lower content: the names now lead to a
    /// new node.
    fn copy_up(&self, state: &mut State, id: NodeId, keep_content: bool) -> Result<(), FsError> {
        let node = state.nodes.get(id)?;
        let FileContent::Lower(lower) = (match &node.body {
            Body::File(content) => content.clone(),
            Body::Dir(_) => return Err(FsError::IsADirectory),
            Body::Symlink(_) | Body::Special(_) => return Err(FsError::InvalidArgument),
        }) else {
            return Ok(());
        };
        let attr = self.attr_of(state, id)?;
        let names = u32::try_from(node.names.len()).unwrap_or(u32::MAX);
        let splits = self.passthrough && node.is_open();
        let (blob, file) = self.new_blob(state, attr.mode)?;
        if keep_content {
            self.copy_content_up(state, &lower, &file)?;
        }
        give_to(&file, attr.uid, attr.gid)?;
        rustix::fs::fchmod(&file, Mode::from_bits_truncate(attr.mode))?;
        rustix::fs::futimens(
            &file,
            &timestamps(Some(SetTime::At(attr.atime)), Some(SetTime::At(attr.mtime))),
        )?;
        let content = FileContent::Blob { blob, lower_links: attr.nlink.saturating_sub(names) };
        if splits {
            state.nodes.split(id, content)?;
            return Err(FsError::Stale);
        }
        let node = state.nodes.get_mut(id)?;
        node.body = Body::File(content);
        // Handles of the lower content, where they are allowed to stay, no longer count as open.
        node.token = Arc::new(());
        Ok(())
    }

    fn copy_content_up(&self, state: &mut State, lower: &RelPath, to: &File) -> Result<(), FsError> {
        let from = self.open_lower(state, lower, Arc::new(()))?;
        match from.backing() {
            Some(from) => copy_contents(from, to.as_fd())?,
            None => {
                let mut buffer = vec![0; 128 * 1024];
                let mut offset = 0;
                loop {
                    let n = from.read_at(&mut buffer, offset)?;
                    if n == 0 {
                        break;
                    }
                    std::os::unix::fs::FileExt::write_all_at(to, &buffer[..n], offset)?;
                    offset += n as u64;
                }
            }
        }
        Ok(())
    }

    fn open_blob(&self, blob: u64, token: Arc<()>) -> Result<Arc<dyn OpenFile>, FsError> {
        let open = |flags: OFlags| {
            let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            rustix::fs::openat(&self.staging, blob_name(blob), flags, Mode::empty())
        };
        let file = match open(OFlags::RDWR) {
            // An ordinary user's read-only file: the kernel has checked that it is only read.
            Err(rustix::io::Errno::ACCESS) => open(OFlags::RDONLY)?,
            other => other?,
        };
        Ok(Arc::new(RealFile::new(File::from(file), token)))
    }

    fn add(
        &self,
        state: &mut State,
        parent: NodeId,
        name: &OsStr,
        make: impl FnOnce(&Self, &mut State) -> Result<Body, FsError>,
    ) -> Result<NodeId, FsError> {
        match self.resolve(state, parent, name) {
            Ok(_) => return Err(FsError::AlreadyExists),
            Err(FsError::NotFound) => {}
            Err(error) => return Err(error),
        }
        self.refuse_hidden(state, parent, name)?;
        let body = make(self, state)?;
        let id = state.nodes.insert(body);
        state.nodes.name(id, (parent, name));
        self.touch_dir(state, parent)?;
        Ok(id)
    }

    /// Keeps tasks from making what a commit could not put in place.
    fn refuse_hidden(&self, state: &State, parent: NodeId, name: &OsStr) -> Result<(), FsError> {
        match &state.nodes.dir(parent)?.lower {
            Some(lower) if self.tree.base().hides(&lower.join(name)) => Err(FsError::NotPermitted),
            _ => Ok(()),
        }
    }

    fn add_file(
        &self,
        state: &mut State,
        caller: Caller,
        (parent, name): (NodeId, &OsStr),
        mode: u32,
    ) -> Result<(NodeId, File), FsError> {
        let mut created = None;
        let id = self.add(state, parent, name, |view, state| {
            let attr = view.new_attr(state, caller, parent, mode)?;
            let (blob, file) = view.new_blob(state, mode)?;
            give_to(&file, attr.uid, attr.gid)?;
            // Changing the owner clears set-id bits.
            rustix::fs::fchmod(&file, Mode::from_bits_truncate(mode))?;
            created = Some(file);
            Ok(Body::File(FileContent::Blob { blob, lower_links: 0 }))
        })?;
        Ok((id, created.ok_or(FsError::NotFound)?))
    }

    /// Takes `name` away from the node it leads to.
    fn remove_name(
        &self,
        state: &mut State,
        id: NodeId,
        parent: NodeId,
        name: &OsStr,
    ) -> Result<(), FsError> {
        self.hide_lower(state, parent, name)?;
        state.nodes.unname(id, (parent, name));
        self.touch_dir(state, parent)
    }

    /// Refuses to move a directory that holds the store: a commit could not.
    fn refuse_to_move_hidden(&self, state: &State, id: NodeId) -> Result<(), FsError> {
        match state.nodes.dir(id).ok().and_then(|dir| dir.lower.as_ref()) {
            Some(lower) if self.tree.base().holds_hidden(lower) => Err(FsError::NotPermitted),
            _ => Ok(()),
        }
    }

    fn is_empty(&self, state: &mut State, id: NodeId) -> Result<bool, FsError> {
        let holds_hidden = |lower: &RelPathBuf| self.tree.base().holds_hidden(lower);
        if state.nodes.dir(id)?.lower.as_ref().is_some_and(holds_hidden) {
            return Ok(false);
        }
        Ok(self.names(state, id)?.is_empty())
    }

    /// Returns the merged names of a directory, and records the listing of its lower side.
    fn names(&self, state: &mut State, id: NodeId) -> Result<Vec<DirEntry>, FsError> {
        let mut names = std::collections::BTreeMap::new();
        if let Some(lower) = state.nodes.dir(id)?.lower.clone() {
            let lower_names = self.tree.list(&lower, self.perspective())?;
            state.recording.list(&lower, &lower_names);
            names.extend(lower_names.into_iter().map(|(name, kind)| (name, (UNKNOWN, kind))));
        }
        for (name, child) in &state.nodes.dir(id)?.children {
            match child {
                Child::Whiteout => {
                    names.remove(name);
                }
                Child::Node(id) => {
                    names.insert(name.clone(), (*id, kind_of(&state.nodes.get(*id)?.body)));
                }
            }
        }
        Ok(names.into_iter().map(|(name, (node, kind))| DirEntry { ino: node.0, kind, name }).collect())
    }
}

fn kind_of(body: &Body) -> FileKind {
    match body {
        Body::File(_) => FileKind::File,
        Body::Dir(_) => FileKind::Dir,
        Body::Symlink(_) => FileKind::Symlink,
        Body::Special(special) => special.kind,
    }
}

impl Filesystem for View {
    fn lookup(&self, parent: NodeId, name: &OsStr) -> Result<Attr, FsError> {
        let state = &mut *self.lock();
        let id = self.resolve(state, parent, name)?;
        self.attr_of(state, id)
    }

    fn forget(&self, node: NodeId) {
        let blob = self.lock().nodes.forget(node);
        if let Some(blob) = blob {
            // It goes with the staging directory at the latest.
            rustix::fs::unlinkat(&self.staging, blob_name(blob), AtFlags::empty()).ok();
        }
    }

    fn attr(&self, node: NodeId) -> Result<Attr, FsError> {
        self.attr_of(&self.lock(), node)
    }

    fn set_attr(
        &self,
        node: NodeId,
        _open: Option<&dyn OpenFile>,
        changes: AttrChanges,
    ) -> Result<Attr, FsError> {
        let state = &mut *self.lock();
        if matches!(state.nodes.get(node)?.body, Body::File(FileContent::Lower(_))) {
            self.copy_up(state, node, changes.size_bytes != Some(0))?;
        }
        self.change_attr(state, node, changes)?;
        self.attr_of(state, node)
    }

    fn read_link(&self, node: NodeId) -> Result<OsString, FsError> {
        let state = &mut *self.lock();
        let Body::Symlink(symlink) = &state.nodes.get(node)?.body else {
            return Err(FsError::InvalidArgument);
        };
        match (&symlink.own, &symlink.lower) {
            (Some((target, _)), None) => Ok(target.clone()),
            (_, Some(lower)) => {
                let target = self.lower_target(lower)?;
                state.recording.link(lower, target.clone());
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
            kind => self.add(state, parent, name, |view, state| {
                let own = Some(view.new_attr(state, caller, parent, new.mode)?);
                Ok(Body::Special(Special { kind, rdev: new.rdev, own, lower: None }))
            })?,
        };
        self.attr_of(state, id)
    }

    fn make_dir(&self, caller: Caller, parent: NodeId, name: &OsStr, mode: u32) -> Result<Attr, FsError> {
        let state = &mut *self.lock();
        let id = self.add(state, parent, name, |view, state| {
            let own = view.new_attr(state, caller, parent, mode)?;
            let inherited = view.attr_of(state, parent)?.mode & SET_GROUP_ID;
            let attr = Some(OwnAttr { mode: mode | inherited, ..own });
            Ok(Body::Dir(Dir { attr, attr_changed: true, ..Dir::default() }))
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
        let id = self.add(state, parent, name, |view, state| {
            let own = view.new_attr(state, caller, parent, 0o777)?;
            Ok(Body::Symlink(Symlink { own: Some((target.to_owned(), own)), lower: None }))
        })?;
        self.attr_of(state, id)
    }

    fn link(&self, node: NodeId, parent: NodeId, name: &OsStr) -> Result<Attr, FsError> {
        let state = &mut *self.lock();
        match self.resolve(state, parent, name) {
            Ok(_) => return Err(FsError::AlreadyExists),
            Err(FsError::NotFound) => {}
            Err(error) => return Err(error),
        }
        self.refuse_hidden(state, parent, name)?;
        if !matches!(state.nodes.get(node)?.body, Body::Symlink(_) | Body::Special(_)) {
            // Both names must lead to one blob, so that a write through either shows in both.
            self.copy_up(state, node, true)?;
        }
        state.nodes.name(node, (parent, name));
        self.touch_dir(state, parent)?;
        self.attr_of(state, node)
    }

    fn unlink(&self, parent: NodeId, name: &OsStr) -> Result<(), FsError> {
        let state = &mut *self.lock();
        let id = self.resolve(state, parent, name)?;
        if state.nodes.dir(id).is_ok() {
            return Err(FsError::IsADirectory);
        }
        self.remove_name(state, id, parent, name)
    }

    fn remove_dir(&self, parent: NodeId, name: &OsStr) -> Result<(), FsError> {
        let state = &mut *self.lock();
        let id = self.resolve(state, parent, name)?;
        if !self.is_empty(state, id)? {
            return Err(FsError::DirectoryNotEmpty);
        }
        self.remove_name(state, id, parent, name)
    }

    fn rename(
        &self,
        (from, from_name): (NodeId, &OsStr),
        (to, to_name): (NodeId, &OsStr),
        flags: RenameFlags,
    ) -> Result<(), FsError> {
        let state = &mut *self.lock();
        let source = self.resolve(state, from, from_name)?;
        self.refuse_hidden(state, to, to_name)?;
        self.refuse_to_move_hidden(state, source)?;
        let target = match self.resolve(state, to, to_name) {
            Ok(id) => Some(id),
            Err(FsError::NotFound) => None,
            Err(error) => return Err(error),
        };
        if flags.contains(RenameFlags::EXCHANGE) {
            let target = target.ok_or(FsError::NotFound)?;
            self.refuse_to_move_hidden(state, target)?;
            state.nodes.unname(source, (from, from_name));
            state.nodes.unname(target, (to, to_name));
            state.nodes.name(target, (from, from_name));
            state.nodes.name(source, (to, to_name));
            self.touch_dir(state, from)?;
            return self.touch_dir(state, to);
        }
        if let Some(target) = target {
            if flags.contains(RenameFlags::NO_REPLACE) {
                return Err(FsError::AlreadyExists);
            }
            if source == target {
                // Two names of one file: rename(2) does nothing.
                return Ok(());
            }
            match (state.nodes.dir(source).is_ok(), state.nodes.dir(target).is_ok()) {
                (true, false) => return Err(FsError::NotADirectory),
                (false, true) => return Err(FsError::IsADirectory),
                (true, true) if !self.is_empty(state, target)? => return Err(FsError::DirectoryNotEmpty),
                _ => {}
            }
            state.nodes.unname(target, (to, to_name));
        }
        self.remove_name(state, source, from, from_name)?;
        state.nodes.name(source, (to, to_name));
        self.touch_dir(state, to)
    }

    fn open(&self, node: NodeId, flags: OpenFlags) -> Result<Arc<dyn OpenFile>, FsError> {
        let state = &mut *self.lock();
        if flags.intersects(OpenFlags::WRITE | OpenFlags::TRUNCATE) {
            self.copy_up(state, node, !flags.contains(OpenFlags::TRUNCATE))?;
        }
        let opened = state.nodes.get(node)?;
        let token = Arc::clone(&opened.token);
        let content = match &opened.body {
            Body::File(content) => content.clone(),
            Body::Dir(_) => return Err(FsError::IsADirectory),
            Body::Symlink(_) | Body::Special(_) => return Err(FsError::InvalidArgument),
        };
        match content {
            FileContent::Lower(lower) => self.open_lower(state, &lower, token),
            FileContent::Blob { blob, .. } => {
                if flags.contains(OpenFlags::TRUNCATE) {
                    let truncated = AttrChanges { size_bytes: Some(0), ..AttrChanges::default() };
                    self.change_attr(state, node, truncated)?;
                }
                self.open_blob(blob, token)
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
        let state = &mut *self.lock();
        // The handle that made it may write even where the mode says that nobody may.
        let (id, file) = self.add_file(state, caller, (parent, name), mode)?;
        let attr = self.attr_of(state, id)?;
        let token = Arc::clone(&state.nodes.get(id)?.token);
        Ok((attr, Arc::new(RealFile::new(file, token))))
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
