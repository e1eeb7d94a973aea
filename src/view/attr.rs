//! Attributes of a view's nodes.

use rustix::fs::AtFlags;

use super::node::{Body, Dir, FileContent, OwnAttr};
use super::{State, View};
use crate::base::BaseStat;
use crate::change::{GROUP_EXECUTE, SET_GROUP_ID, change_attributes, without_set_id};
use crate::fs::{Attr, AttrChanges, Caller, FileKind, FsError, Holds, NodeId, OpenFile, SetTime, Timestamp};
use crate::path::RelPath;
use crate::tree::Found;

impl View {
    /// Returns attributes; answers for a lower object whose file has vanished with `NotFound`.
    pub(super) fn attr_of(&self, state: &mut State, id: NodeId) -> Result<Attr, FsError> {
        self.attr_of_found(state, id, None)
    }

    /// As [`attr_of`](Self::attr_of), for a node of which somebody just found the lower object.
    pub(super) fn attr_of_found(
        &self,
        state: &mut State,
        id: NodeId,
        found: Option<Found>,
    ) -> Result<Attr, FsError> {
        let current = state.nodes.current(id);
        if state.nodes.dir(current).is_ok() {
            return self.dir_attr(state, current, found);
        }
        let node = state.nodes.get(current)?;
        let (ino, nlink) = (node.ino, state.nodes.links(node));
        let attr = match &node.body {
            Body::File(FileContent::Lower { own: None, .. }) => self.lower_attr(state, current, found)?,
            Body::File(FileContent::Lower { own: Some(own), .. }) => {
                own.over(&self.lower_attr(state, current, found)?)
            }
            Body::File(FileContent::Blob(blob)) => {
                let opened = node.opened.upgrade();
                let stat = match opened.as_ref().and_then(|file| file.backing()) {
                    Some(file) => rustix::fs::fstat(file)?,
                    None => {
                        let path = state.blob_path(blob.number);
                        rustix::fs::statat(&self.staging, path.as_os_str(), AtFlags::SYMLINK_NOFOLLOW)?
                    }
                };
                let attr = BaseStat::from(stat).attr(id);
                Attr { ctime: state.shown_ctime(blob.number, attr.ctime).max(blob.renamed), ..attr }
            }
            Body::Symlink(symlink) => match &symlink.own {
                Some((target, own)) => own.attr(FileKind::Symlink, target.len() as u64),
                None => self.lower_attr(state, current, found)?,
            },
            Body::Special(special) => match &special.own {
                Some(own) => Attr { rdev: special.rdev, ..own.attr(special.kind, 0) },
                None => self.lower_attr(state, current, found)?,
            },
            // Handled above.
            Body::Dir(_) | Body::Replaced(_) => return Err(FsError::NotFound),
        };
        Ok(Attr { node: id, ino, nlink, ..attr })
    }

    fn dir_attr(&self, state: &mut State, id: NodeId, found: Option<Found>) -> Result<Attr, FsError> {
        let dir = state.nodes.dir(id)?;
        let needs_lower = dir.attr.is_none() || dir.lower_subdirs.is_none();
        let lower = if needs_lower { state.nodes.lower(id) } else { None };
        let found = match (&lower, found) {
            (Some(lower), None) => Some(self.find_lower(lower)?.ok_or(FsError::NotFound)?),
            (_, found) => found,
        };
        let below = match (state.nodes.dir(id)?.lower_subdirs, &lower, &found) {
            (Some(known), ..) => Some(known),
            (None, Some(lower), Some(found)) => self.count_subdirs(lower, found)?,
            (None, ..) => Some(0),
        };
        let ino = state.nodes.get(id)?.ino;
        let dir = state.nodes.dir_mut(id)?;
        dir.lower_subdirs = below;
        // 1 says that subdirectories are not counted, as on btrfs.
        let nlink = below.map_or(1, |below| links_of_dir(dir, below));
        let attr = match (&dir.attr, found) {
            (Some(own), _) => own.attr(FileKind::Dir, 4096),
            (None, Some(found)) => found.attr(id),
            (None, None) => return Err(FsError::NotFound),
        };
        let gone = id != NodeId::ROOT && state.nodes.get(id)?.names.len() == 0;
        Ok(Attr { node: id, ino, nlink: if gone { 0 } else { nlink }, ..attr })
    }

    /// Counts subdirectories of a lower directory: from its link count where the base alone has it, which
    /// costs nothing, else by listing it once. `None` where the file system below does not count them.
    fn count_subdirs(&self, lower: &RelPath, found: &Found) -> Result<Option<u32>, FsError> {
        let base = self.tree.base().stat(lower)?.filter(|stat| stat.kind == FileKind::Dir);
        let base_links = base.map(|stat| stat.nlink);
        if base_links == Some(1) {
            return Ok(None);
        }
        if let (Found::Base(_), Some(links @ 2..)) = (found, base_links)
            && self.without.is_none()
            && !self.tree.base().holds_hidden(lower)
            && self.tree.layers().is_empty()
        {
            return Ok(Some(links - 2));
        }
        let names = self.tree.list(lower, self.perspective())?;
        let dirs = names.values().filter(|kind| **kind == FileKind::Dir).count();
        Ok(Some(u32::try_from(dirs).unwrap_or(u32::MAX)))
    }

    pub(super) fn lower_attr(
        &self,
        state: &State,
        id: NodeId,
        found: Option<Found>,
    ) -> Result<Attr, FsError> {
        if let Some(found) = found {
            return Ok(found.attr(id));
        }
        let lower = state.nodes.lower(id).ok_or(FsError::NotFound)?;
        Ok(self.find_lower(&lower)?.ok_or(FsError::NotFound)?.attr(id))
    }

    /// Returns attributes for something new that `caller` makes in `parent`, with the mode that a file gets.
    pub(super) fn new_attr(
        &self,
        state: &mut State,
        caller: Caller,
        parent: NodeId,
        mode: u32,
    ) -> Result<OwnAttr, FsError> {
        let dir = self.attr_of(state, parent)?;
        let now = Timestamp::now();
        let inherits = dir.mode & SET_GROUP_ID != 0;
        let gid = if inherits { dir.gid } else { caller.gid };
        let for_group = mode & SET_GROUP_ID != 0 && mode & GROUP_EXECUTE != 0;
        // A program that runs with the group's rights is only made by its members.
        let mode = match inherits && for_group && !caller.may_set_group_id(gid) {
            true => mode & !SET_GROUP_ID,
            false => mode,
        };
        Ok(OwnAttr { mode, uid: caller.uid, gid, atime: now, mtime: now, ctime: now })
    }

    /// Marks a directory's contents as changed now.
    pub(super) fn touch_dir(&self, state: &mut State, id: NodeId) -> Result<(), FsError> {
        let now = Timestamp::now();
        let own = self.own_dir_attr(state, id)?;
        (own.mtime, own.ctime) = (now, now);
        Ok(())
    }

    fn own_dir_attr<'a>(&self, state: &'a mut State, id: NodeId) -> Result<&'a mut OwnAttr, FsError> {
        if state.nodes.dir(id)?.attr.is_none() {
            let attr = self.attr_of(state, id)?;
            state.nodes.dir_mut(id)?.attr = Some(OwnAttr::of(&attr));
        }
        state.nodes.dir_mut(id)?.attr.as_mut().ok_or(FsError::NotFound)
    }

    /// Notes that the names of an object have changed, which changes its `ctime`.
    pub(super) fn touch_names(&self, state: &mut State, id: NodeId) -> Result<(), FsError> {
        let now = Timestamp::now();
        if let Body::File(FileContent::Blob(blob)) = &mut state.nodes.get_mut(id)?.body {
            blob.renamed = now;
            return Ok(());
        }
        let node = state.nodes.get(id)?;
        // Without passthrough we are not told who has it open.
        if state.nodes.links(node) == 0 && self.passthrough && !node.is_open() {
            return Ok(());
        }
        match &node.body {
            Body::Dir(_) => self.own_dir_attr(state, id)?.ctime = now,
            _ => self.with_own(state, id, |own| own.ctime = now)?,
        }
        Ok(())
    }

    /// Changes attributes of a node through its own copy of them, which is made if there is none.
    fn with_own(
        &self,
        state: &mut State,
        id: NodeId,
        change: impl FnOnce(&mut OwnAttr),
    ) -> Result<(), FsError> {
        let attr = OwnAttr::of(&self.attr_of(state, id)?);
        let target = match &state.nodes.get(id)?.body {
            Body::Symlink(symlink) if symlink.own.is_none() => {
                let lower = state.nodes.lower(id).ok_or(FsError::NotFound)?;
                let target = self.lower_target(&lower)?;
                // The link that becomes the task's own points where the lower one does.
                state.recording.link(&lower, target.clone());
                target
            }
            _ => std::ffi::OsString::new(),
        };
        match &mut state.nodes.get_mut(id)?.body {
            Body::File(FileContent::Lower { own, .. }) => {
                change(own.get_or_insert_with(|| Box::new(attr)));
            }
            Body::Symlink(symlink) => change(&mut symlink.own.get_or_insert((target, attr)).1),
            Body::Special(special) => change(special.own.get_or_insert(attr)),
            Body::Dir(_) | Body::File(FileContent::Blob(_)) | Body::Replaced(_) => {
                return Err(FsError::NotFound);
            }
        }
        Ok(())
    }

    /// Changes attributes of a node; a regular file whose size changes is already a blob.
    pub(super) fn change_attr(
        &self,
        state: &mut State,
        id: NodeId,
        changes: AttrChanges,
    ) -> Result<(), FsError> {
        let node = state.nodes.get(id)?;
        match &node.body {
            Body::File(FileContent::Blob(blob)) => match node.opened.upgrade() {
                Some(shared) => shared.set_attr(&changes),
                None => Ok(change_attributes(self.blob_object(state, blob.number)?, &changes)?),
            },
            Body::File(FileContent::Lower { .. }) => self.with_own(state, id, |own| {
                // A change of owner takes the right to run as the owner away.
                if changes.uid.is_some() || changes.gid.is_some() || changes.kill_set_id {
                    own.mode = without_set_id(own.mode);
                }
                own.change(changes);
            }),
            Body::Dir(_) => {
                self.own_dir_attr(state, id)?.change(changes);
                state.nodes.dir_mut(id)?.attr_changed = true;
                Ok(())
            }
            Body::Symlink(_) | Body::Special(_) => self.with_own(state, id, |own| own.change(changes)),
            Body::Replaced(_) => Err(FsError::Stale),
        }
    }
}

fn links_of_dir(dir: &Dir, below: u32) -> u32 {
    u32::try_from(i64::from(below) + dir.subdirs_added + 2).unwrap_or(2)
}

impl OwnAttr {
    pub(super) fn of(attr: &Attr) -> Self {
        let Attr { mode, uid, gid, atime, mtime, ctime, .. } = *attr;
        Self { mode, uid, gid, atime, mtime, ctime }
    }

    fn over(&self, lower: &Attr) -> Attr {
        let Self { mode, uid, gid, atime, mtime, ctime } = *self;
        Attr { mode, uid, gid, atime, mtime, ctime, ..*lower }
    }

    fn attr(&self, kind: FileKind, size_bytes: u64) -> Attr {
        Attr {
            node: NodeId::ROOT,
            ino: 0,
            kind,
            mode: self.mode,
            nlink: 1,
            uid: self.uid,
            gid: self.gid,
            rdev: 0,
            size_bytes,
            // A short link target is kept in the inode, as ext4 does it.
            blocks: if kind == FileKind::Symlink && size_bytes < 60 {
                0
            } else {
                size_bytes.div_ceil(4096) * 8
            },
            block_size_bytes: 4096,
            atime: self.atime,
            mtime: self.mtime,
            ctime: self.ctime,
            holds: Holds::Nothing,
        }
    }

    fn change(&mut self, changes: AttrChanges) {
        let now = Timestamp::now();
        let time = |set| match set {
            SetTime::Now => now,
            SetTime::At(at) => at,
        };
        self.ctime = now;
        if let Some(mode) = changes.mode {
            self.mode = mode;
        }
        if let Some(uid) = changes.uid {
            self.uid = uid;
        }
        if let Some(gid) = changes.gid {
            self.gid = gid;
        }
        if let Some(atime) = changes.atime {
            self.atime = time(atime);
        }
        if let Some(mtime) = changes.mtime {
            self.mtime = time(mtime);
        }
    }

    /// Returns whether a commit would leave the same attributes as `lower` has.
    pub(super) fn commits_as(&self, lower: &Attr) -> bool {
        (self.mode, self.uid, self.gid, self.mtime) == (lower.mode, lower.uid, lower.gid, lower.mtime)
    }
}
