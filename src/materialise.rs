//! Turning what is virtual into ordinary files of the base, one path at a time.
//!
//! Once a path is real, its layer is *punched* there: from then on the base has the truth. The base is
//! changed first and the punch recorded second, so that a crash in between leaves the path as it looked.

use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::fs::Mode;
use rustix::io::Errno;

use crate::archive::restore;
use crate::archive::{Record, RecordKind};
use crate::claim::encode_before;
use crate::content::ContentHashes;
use crate::fs::{FsError, SetTime};
use crate::index::{Index, Punch, WorkspaceId};
use crate::logical::Logical;
use crate::path::RelPath;
use crate::state::{Dependency, PathState};
use crate::tree::{Found, Layer, Perspective, Tree};

/// Makes virtual paths real.
#[derive(Debug)]
pub struct Materialiser {
    /// The merged tree.
    pub tree: Arc<Tree>,
    /// Where punches are kept.
    pub index: Arc<Index>,
    /// Which workspace they belong to.
    pub workspace: WorkspaceId,
    /// Content hashes of the base.
    pub hashes: Arc<ContentHashes>,
}

impl Materialiser {
    /// Makes sure that `path` and all above it are real directories, if they are directories at all.
    ///
    /// # Errors
    /// Where the base refuses.
    pub fn dir(&self, path: &RelPath) -> Result<(), FsError> {
        let Some(Found::Virtual(layer, record)) = self.tree.find(path, Perspective::ALL)? else {
            return Ok(());
        };
        if !matches!(record.kind, RecordKind::Dir | RecordKind::ImpliedDir) {
            return Err(FsError::NotADirectory);
        }
        let (parent, name) = self.real_parent(path)?;
        match rustix::fs::mkdirat(&parent, name, Mode::from_bits_truncate(record.mode)) {
            Ok(()) => restore::set_dir_attributes(&record, parent.as_fd(), name, layer.mtime(&record))?,
            Err(Errno::EXIST) => {
                if self.tree.base().list(path)?.is_none() {
                    self.tree.base().remove_all(path)?;
                    return self.dir(path);
                }
            }
            Err(errno) => return Err(errno.into()),
        }
        self.punch(&layer, path, &record)
    }

    /// Makes `path` real, if something virtual is there; a directory without what is in it.
    ///
    /// # Errors
    /// Where the base refuses or the archive is damaged.
    pub fn object(&self, path: &RelPath) -> Result<(), FsError> {
        let Some(Found::Virtual(layer, record)) = self.tree.find(path, Perspective::ALL)? else {
            return Ok(());
        };
        match &record.kind {
            RecordKind::Dir | RecordKind::ImpliedDir => return self.dir(path),
            RecordKind::File { .. } | RecordKind::Symlink { .. } => {
                let before = self.before(&layer, path)?;
                let (parent, name) = self.real_parent(path)?;
                restore::restore_object(
                    layer.archive(),
                    &record,
                    parent.as_fd(),
                    name,
                    layer.mtime(&record),
                )?;
                self.punch_with(&layer, path, before)?;
            }
            RecordKind::Absent => {}
        }
        Ok(())
    }

    /// Makes `path` and all below it real.
    ///
    /// # Errors
    /// Where the base refuses or an archive is damaged.
    pub fn subtree(&self, path: &RelPath) -> Result<(), FsError> {
        self.object(path)?;
        for name in self.tree.list(path, Perspective::ALL)?.into_keys() {
            self.subtree(&path.join(&name))?;
        }
        Ok(())
    }

    /// Removes what the base has at `path` although the merged tree shows nothing there, and the layers'
    /// word on it, so that something new can be put there.
    ///
    /// # Errors
    /// Where the base refuses.
    pub fn clear_way(&self, path: &RelPath) -> Result<(), FsError> {
        self.tree.base().remove_all(path)?;
        self.punch_all(path)
    }

    /// Takes `path` out of every layer that has a word on it.
    ///
    /// # Errors
    /// Where the index or an archive cannot be used.
    pub fn punch_all(&self, path: &RelPath) -> Result<(), FsError> {
        for layer in self.tree.layers().iter() {
            if let Some(record) = layer.find(path)? {
                self.punch(layer, path, &record)?;
            }
        }
        Ok(())
    }

    fn real_parent<'a>(
        &self,
        path: &'a RelPath,
    ) -> Result<(std::os::fd::OwnedFd, &'a std::ffi::OsStr), FsError> {
        if let Some(parent) = path.parent() {
            self.dir(parent)?;
        }
        let opened = self.tree.base().open_parent(path)?;
        Ok(opened)
    }

    fn punch(&self, layer: &Layer, path: &RelPath, record: &Record) -> Result<(), FsError> {
        let before = match record.kind {
            RecordKind::ImpliedDir => PathState::Absent,
            _ => self.before(layer, path)?,
        };
        self.punch_with(layer, path, before)
    }

    fn punch_with(&self, layer: &Layer, path: &RelPath, before: PathState) -> Result<(), FsError> {
        let punch = Punch { path: path.to_owned(), before: encode_before(&before) };
        self.index
            .add_punches(self.workspace, *layer.owner(), &[punch])
            .map_err(|error| FsError::Os(std::io::Error::other(error)))?;
        layer.punch(path, Some(before).filter(|before| *before != PathState::Absent));
        Ok(())
    }

    /// Returns the state that the layer's owner found at `path`, its own earlier outputs taken away.
    fn before(&self, layer: &Layer, path: &RelPath) -> Result<PathState, FsError> {
        let claimed = layer.stale().map(|stale| Arc::clone(&stale.claimed));
        let logical =
            Logical { tree: &self.tree, hashes: &self.hashes, owner: layer.owner(), claimed, touched: None };
        logical.state(path, Dependency::READ | Dependency::LINK)
    }
}

/// Sets times of a path of the base; used after a directory's contents were made real.
///
/// # Errors
/// Where the base refuses.
pub fn set_dir_time(tree: &Tree, path: &RelPath, mtime: crate::fs::Timestamp) -> Result<(), FsError> {
    Ok(tree.base().set_times(path, None, Some(SetTime::At(mtime)))?)
}
