//! Making new objects in the base.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use super::kept::Kept;
use super::nodes::Nodes;
use super::{Live, OnDrop};
use crate::base::BaseStat;
use crate::change::{SET_GROUP_ID, give_name_to, give_to};
use crate::fs::{Attr, Caller, FileKind, FsError, NodeId, OpenFile};
use crate::path::{RelPath, RelPathBuf};

/// Execution by the group, without which set-group-id means something else.
const GROUP_EXECUTE: u32 = 0o010;

impl Live {
    /// Prepares for something new under a name: real ancestors, nothing stale in the way.
    pub(super) fn make_room(
        &self,
        nodes: &Nodes,
        parent: NodeId,
        name: &OsStr,
    ) -> Result<RelPathBuf, FsError> {
        let dir = nodes.path(parent)?;
        let path = dir.join(name);
        if self.tree().base().hides(&path) {
            return Err(FsError::NotPermitted);
        }
        if self.find(&path)?.is_some() {
            return Err(FsError::AlreadyExists);
        }
        let cleared = self.materialiser.dir(&dir).and_then(|()| self.materialiser.clear_way(&path));
        if cleared.is_err() {
            // A part of it may have been done.
            self.touch(&path);
        }
        cleared.map(|()| path)
    }

    /// Runs `make` on the real parent directory, gives the new object to the caller, and returns its
    /// attributes. Where that fails nothing is left of it.
    pub(super) fn make<T>(
        &self,
        nodes: &mut Nodes,
        caller: Caller,
        (parent, name): (NodeId, &OsStr),
        mode: Option<u32>,
        make: impl FnOnce(&OwnedFd, &OsStr) -> rustix::io::Result<T>,
    ) -> Result<(Attr, T), FsError> {
        let path = self.make_room(nodes, parent, name)?;
        let _touched = OnDrop(|| self.touch(&path));
        let (dir, name) = self.tree().base().open_parent(&path)?;
        let made = make(&dir, name)?;
        let entry = give(&dir, name, caller, mode)
            .map_err(FsError::from)
            .and_then(|()| self.entry(nodes, parent, name, &path));
        match entry {
            Ok(attr) => Ok((attr, made)),
            Err(error) => {
                unmake(&dir, name);
                Err(error)
            }
        }
    }

    pub(super) fn entry(
        &self,
        nodes: &mut Nodes,
        parent: NodeId,
        name: &OsStr,
        path: &RelPath,
    ) -> Result<Attr, FsError> {
        let found = self.find(path)?.ok_or(FsError::NotFound)?;
        let id = nodes.node_for(parent, name, &found);
        let node = nodes.get_mut(id)?;
        let attr = Attr { ino: node.ino, ..found.attr(id) };
        node.note(&attr);
        Ok(attr)
    }

    /// Makes and opens a file without a name in the file system of a directory.
    pub(super) fn make_unnamed(
        &self,
        nodes: &mut Nodes,
        caller: Caller,
        parent: NodeId,
        mode: u32,
    ) -> Result<(Attr, Arc<dyn OpenFile>), FsError> {
        let path = nodes.path(parent)?;
        self.materialiser.dir(&path)?;
        let dir = self.tree().base().open_dir(&path)?;
        let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&dir, ".", flags, Mode::from_bits_truncate(mode))?;
        let (gid, mode) = rights(&BaseStat::from(rustix::fs::fstat(&dir)?), caller, FileKind::File, mode);
        give_to(&file, caller.uid, gid)?;
        rustix::fs::fchmod(&file, Mode::from_bits_truncate(mode))?;
        let stat = BaseStat::from(rustix::fs::fstat(&file)?);
        let id = nodes.add_unnamed(&stat);
        let attr = Attr { ino: nodes.get(id)?.ino, ..stat.attr(id) };
        let file = self.opened(nodes, id, File::from(file))?;
        if let Some(open) = nodes.get(id)?.open_file().filter(|_| !self.told_of_opens) {
            nodes.get_mut(id)?.keep(Kept::Real(open));
        }
        Ok((attr, file))
    }
}

/// Gives a new object to whoever made it.
fn give(dir: &OwnedFd, name: &OsStr, caller: Caller, mode: Option<u32>) -> rustix::io::Result<()> {
    let parent = BaseStat::from(rustix::fs::fstat(dir)?);
    let kind = BaseStat::from(rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?).kind;
    let (gid, rights) = rights(&parent, caller, kind, mode.unwrap_or_default());
    give_name_to(dir, name, caller.uid, gid)?;
    match mode {
        Some(_) => rustix::fs::chmodat(dir, name, Mode::from_bits_truncate(rights), AtFlags::empty()),
        None => Ok(()),
    }
}

/// Returns group and mode of something new in the directory `parent`.
fn rights(parent: &BaseStat, caller: Caller, kind: FileKind, mode: u32) -> (u32, u32) {
    if parent.mode & SET_GROUP_ID == 0 {
        return (caller.gid, mode);
    }
    let runs_as_group = mode & (SET_GROUP_ID | GROUP_EXECUTE) == SET_GROUP_ID | GROUP_EXECUTE;
    let mode = match kind {
        FileKind::Dir => mode | SET_GROUP_ID,
        _ if runs_as_group && !caller.may_set_group_id(parent.gid) => mode & !SET_GROUP_ID,
        _ => mode,
    };
    (parent.gid, mode)
}

/// Removes what could not be finished.
fn unmake(dir: impl AsFd, name: &OsStr) {
    let removed = match rustix::fs::unlinkat(&dir, name, AtFlags::empty()) {
        Err(Errno::ISDIR | Errno::PERM) => rustix::fs::unlinkat(&dir, name, AtFlags::REMOVEDIR),
        removed => removed,
    };
    if let Err(error) = removed {
        tracing::warn!(?name, %error, "a half-made file is left");
    }
}
