//! Attributes of objects with and without names, and extended ones.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::SystemTime;

use rustix::fs::{AtFlags, Gid, OFlags, Uid};
use rustix::io::Errno;

use super::Live;
use super::nodes::Nodes;
use crate::base::BaseStat;
use crate::change::{change_attributes, without_set_id};
use crate::fs::{Attr, AttrChanges, FileKind, FsError, NodeId, OpenFile, SetTime, Timestamp};
use crate::path::RelPath;
use crate::tree::Found;
use crate::xattr;

impl Live {
    pub(super) fn attr_of(&self, nodes: &Nodes, id: NodeId) -> Result<Attr, FsError> {
        let node = nodes.get(id)?;
        let numbered = |attr: Attr| Ok(Attr { node: id, ino: node.ino, ..attr });
        if let Some(file) = node.open_file() {
            return numbered(BaseStat::from(rustix::fs::fstat(&*file)?).attr(id));
        }
        match self.found(nodes, id) {
            Ok((_, found)) => numbered(found.attr(id)),
            // A file that was unlinked and whose handles follow it.
            Err(error) => match (node.real_file(), node.last()) {
                (Some(file), _) => numbered(BaseStat::from(rustix::fs::fstat(file)?).attr(id)),
                (None, Some(last)) => numbered(last),
                (None, None) => Err(error),
            },
        }
    }

    pub(super) fn set_attr_of(
        &self,
        id: NodeId,
        open: Option<&dyn OpenFile>,
        changes: &AttrChanges,
    ) -> Result<Attr, FsError> {
        let _changing = self.changing();
        let path = if self.lock().get(id)?.has_names() { Some(self.make_real(id)?) } else { None };
        let nodes = &mut *self.lock();
        let file = nodes.get(id)?.open_file();
        let Some(path) = path else {
            match (open, &file) {
                (Some(open), Some(_)) => open.set_attr(changes)?,
                (None, Some(file)) => change_attributes(file, changes)?,
                (_, None) => return set_last(nodes, id, changes),
            }
            return self.attr_of(nodes, id);
        };
        let moved = nodes.at(&path) != Some(id);
        if moved && changes.size_bytes.is_some() {
            // The kernel must not take the new size for that of what is still open.
            return Err(FsError::Stale);
        }
        match (open, file) {
            // The handle has the permissions that the path may have lost.
            (Some(open), Some(_)) => open.set_attr(changes)?,
            _ => self.change(&path, changes)?,
        }
        self.touch(&path);
        if moved { set_last(nodes, id, changes) } else { self.attr_of(nodes, id) }
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
}

/// The namespace of the extended attributes that are served.
fn is_user(name: &OsStr) -> Result<(), FsError> {
    if name.as_encoded_bytes().starts_with(b"user.") { Ok(()) } else { Err(FsError::NotSupported) }
}

/// Extended attributes.
impl Live {
    pub(super) fn xattr_of(&self, id: NodeId, name: &OsStr) -> Result<Vec<u8>, FsError> {
        is_user(name)?;
        let nodes = self.lock();
        let found = match nodes.get(id)?.open_file() {
            Some(file) => return Ok(xattr::get(&*file, name)?),
            None => self.found(&nodes, id)?,
        };
        match found {
            (path, Found::Base(_)) => Ok(xattr::get_at(self.object(&path)?, name)?),
            (_, Found::Virtual(_, record)) => {
                let value = record.xattrs.into_iter().find(|(known, _)| known == name);
                value.map(|(_, value)| value).ok_or_else(|| Errno::NODATA.into())
            }
        }
    }

    pub(super) fn xattr_names_of(&self, id: NodeId) -> Result<Vec<OsString>, FsError> {
        let nodes = self.lock();
        let found = match nodes.get(id)?.open_file() {
            Some(file) => return Ok(xattr::names(&*file)?),
            None => self.found(&nodes, id)?,
        };
        match found {
            (path, Found::Base(_)) => Ok(xattr::names_at(self.object(&path)?)?),
            (_, Found::Virtual(_, record)) => Ok(record.xattrs.into_iter().map(|(name, _)| name).collect()),
        }
    }

    /// Changes the extended attribute `name` of the real object that `change` is given.
    pub(super) fn change_xattr(
        &self,
        id: NodeId,
        name: &OsStr,
        change: impl FnOnce(BorrowedFd<'_>) -> rustix::io::Result<()>,
    ) -> Result<(), FsError> {
        is_user(name)?;
        let _changing = self.changing();
        let open = self.lock().get(id)?.open_file();
        let path = match open {
            Some(file) => {
                change(file.as_fd())?;
                self.lock().path(id).ok()
            }
            None => {
                let path = self.make_real(id)?;
                change(self.object(&path)?.as_fd())?;
                Some(path)
            }
        };
        if let Some(path) = path {
            self.touch(&path);
        }
        Ok(())
    }

    fn object(&self, path: &RelPath) -> Result<OwnedFd, FsError> {
        Ok(self.tree().base().open(path, OFlags::PATH | OFlags::NOFOLLOW, 0)?)
    }
}

/// Changes what those see who have an object that is gone and of which no real file is left.
fn set_last(nodes: &mut Nodes, id: NodeId, changes: &AttrChanges) -> Result<Attr, FsError> {
    let node = nodes.get_mut(id)?;
    let mut attr = node.last().ok_or(FsError::Stale)?;
    if changes.size_bytes.is_some() {
        // Nobody has it open for writing.
        return Err(FsError::InvalidArgument);
    }
    let now = Timestamp::from(SystemTime::now());
    let at = |time| match time {
        SetTime::Now => now,
        SetTime::At(at) => at,
    };
    if changes.kill_set_id || changes.uid.is_some() || changes.gid.is_some() {
        attr.mode = without_set_id(attr.mode);
    }
    attr.mode = changes.mode.unwrap_or(attr.mode);
    attr.uid = changes.uid.unwrap_or(attr.uid);
    attr.gid = changes.gid.unwrap_or(attr.gid);
    attr.atime = changes.atime.map_or(attr.atime, at);
    attr.mtime = changes.mtime.map_or(attr.mtime, at);
    attr.ctime = now;
    node.handles().last = Some(attr);
    Ok(attr)
}
