//! Attributes of a view's nodes.

use std::time::SystemTime;

use rustix::fs::{AtFlags, Mode, OFlags};

use super::node::{Body, Child, FileContent, OwnAttr, Special};
use super::{State, View, blob_name};
use crate::base::BaseStat;
use crate::change::{SET_GROUP_ID, change_attributes};
use crate::fs::{Attr, AttrChanges, Caller, FileKind, FsError, NodeId, SetTime, Timestamp};
use crate::path::RelPath;

impl View {
    /// Returns attributes; answers for a lower object whose file has vanished with `NotFound`.
    pub(super) fn attr_of(&self, state: &State, id: NodeId) -> Result<Attr, FsError> {
        let node = state.nodes.get(id)?;
        let names = u32::try_from(node.names.len()).unwrap_or(u32::MAX);
        match &node.body {
            Body::File(FileContent::Lower(lower)) => self.lower_attr(id, lower),
            Body::File(FileContent::Blob { blob, lower_links }) => {
                let stat = rustix::fs::statat(&self.staging, blob_name(*blob), AtFlags::SYMLINK_NOFOLLOW)?;
                Ok(Attr { nlink: names.saturating_add(*lower_links), ..BaseStat::from(stat).attr(id) })
            }
            Body::Dir(dir) => match (&dir.attr, &dir.lower) {
                (Some(own), _) => {
                    let subdirs = dir
                        .children
                        .values()
                        .filter(|child| matches!(child, Child::Node(id) if state.nodes.dir(*id).is_ok()))
                        .count();
                    // Where the lower directory shows through, its share is unknown; 1 says so to `find`.
                    let nlink = if dir.lower.is_some() { 1 } else { u32::try_from(subdirs + 2).unwrap_or(1) };
                    Ok(Attr { nlink, ..own.attr(id, FileKind::Dir, 4096) })
                }
                (None, Some(lower)) => self.lower_attr(id, lower),
                (None, None) => Err(FsError::NotFound),
            },
            Body::Symlink(symlink) => match (&symlink.own, &symlink.lower) {
                (Some((target, own)), _) => {
                    Ok(Attr { nlink: names, ..own.attr(id, FileKind::Symlink, target.len() as u64) })
                }
                (None, Some(lower)) => self.lower_attr(id, lower),
                (None, None) => Err(FsError::NotFound),
            },
            Body::Special(Special { kind, rdev, own, lower }) => match (own, lower) {
                (Some(own), _) => Ok(Attr { rdev: *rdev, nlink: names, ..own.attr(id, *kind, 0) }),
                (None, Some(lower)) => self.lower_attr(id, lower),
                (None, None) => Err(FsError::NotFound),
            },
        }
    }

    fn lower_attr(&self, id: NodeId, lower: &RelPath) -> Result<Attr, FsError> {
        Ok(self.find_lower(lower)?.ok_or(FsError::NotFound)?.attr(id))
    }

    /// Returns attributes for something new that `caller` makes in `parent`.
    pub(super) fn new_attr(
        &self,
        state: &State,
        caller: Caller,
        parent: NodeId,
        mode: u32,
    ) -> Result<OwnAttr, FsError> {
        let dir = self.attr_of(state, parent)?;
        let now = Timestamp::from(SystemTime::now());
        let inherits = dir.mode & SET_GROUP_ID != 0;
        Ok(OwnAttr {
            mode,
            uid: caller.uid,
            gid: if inherits { dir.gid } else { caller.gid },
            atime: now,
            mtime: now,
            ctime: now,
        })
    }

    /// Marks a directory's contents as changed now.
    pub(super) fn touch_dir(&self, state: &mut State, id: NodeId) -> Result<(), FsError> {
        let now = Timestamp::from(SystemTime::now());
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

    /// Changes attributes of a node, which for a regular file is already a blob.
    pub(super) fn change_attr(
        &self,
        state: &mut State,
        id: NodeId,
        changes: AttrChanges,
    ) -> Result<(), FsError> {
        let attr = self.attr_of(state, id)?;
        match &mut state.nodes.get_mut(id)?.body {
            Body::File(FileContent::Lower(_)) => Err(FsError::Stale),
            Body::File(FileContent::Blob { blob, .. }) => {
                let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let file = rustix::fs::openat(&self.staging, blob_name(*blob), flags, Mode::empty())?;
                Ok(change_attributes(file, &changes)?)
            }
            Body::Dir(_) => {
                let own = self.own_dir_attr(state, id)?;
                own.change(changes);
                state.nodes.dir_mut(id)?.attr_changed = true;
                Ok(())
            }
            Body::Symlink(symlink) => {
                if symlink.own.is_none() {
                    let lower = symlink.lower.clone().ok_or(FsError::NotFound)?;
                    let target = self.lower_target(&lower)?;
                    // The link that becomes the task's own points where the lower one does.
                    state.recording.link(&lower, target.clone());
                    symlink.own = Some((target, OwnAttr::of(&attr)));
                }
                if let Some((_, own)) = &mut symlink.own {
                    own.change(changes);
                }
                Ok(())
            }
            Body::Special(special) => {
                special.own.get_or_insert_with(|| OwnAttr::of(&attr)).change(changes);
                Ok(())
            }
        }
    }
}

impl OwnAttr {
    pub(super) fn of(attr: &Attr) -> Self {
        let Attr { mode, uid, gid, atime, mtime, ctime, .. } = *attr;
        Self { mode, uid, gid, atime, mtime, ctime }
    }

    fn attr(&self, node: NodeId, kind: FileKind, size_bytes: u64) -> Attr {
        Attr {
            node,
            ino: node.0,
            kind,
            mode: self.mode,
            nlink: 1,
            uid: self.uid,
            gid: self.gid,
            rdev: 0,
            size_bytes,
            blocks: size_bytes.div_ceil(512),
            block_size_bytes: 4096,
            atime: self.atime,
            mtime: self.mtime,
            ctime: self.ctime,
        }
    }

    fn change(&mut self, changes: AttrChanges) {
        let now = Timestamp::from(SystemTime::now());
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
}
