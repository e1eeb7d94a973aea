//! Turning what is virtual into ordinary files of the base, one path at a time.
//!
//! Once a path is real, its layer is *punched* there: from then on the base has the truth. The base is
//! changed first and the punch recorded second, so that a crash in between leaves the path as it looked.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;

use rustix::fs::{AtFlags, Mode};
use rustix::io::Errno;

use crate::archive::restore;
use crate::archive::{Record, RecordKind};
use crate::base::{BaseStat, timestamps};
use crate::claim::encode_before;
use crate::content::ContentHashes;
use crate::fs::{FsError, SetTime, Timestamp};
use crate::index::{Index, Punch, WorkspaceId};
use crate::logical::Logical;
use crate::path::{RelPath, RelPathBuf};
use crate::state::{Dependency, FileKind, PathState};
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
        if !record.is_dir() {
            return Err(FsError::NotADirectory);
        }
        let (parent, name) = self.real_parent(path)?;
        // Between this directory and an older one a layer has something else: the old contents must not
        // show again.
        if self.tree.replaces(path)? {
            self.tree.base().remove_all(path)?;
            self.drop_hidden(path)?;
        }
        let punches = self.punches_at(path)?;
        let _times = KeptTimes::of(&parent)?;
        let attributes = || restore::set_dir_attributes(&record, parent.as_fd(), name, layer.mtime(&record));
        match rustix::fs::mkdirat(&parent, name, Mode::from_bits_truncate(record.mode)) {
            Ok(()) => attributes()?,
            Err(Errno::EXIST) => {
                if self.tree.base().list(path)?.is_none() {
                    self.tree.base().remove_all(path)?;
                    return self.dir(path);
                }
                // What the base has does not show, or this would not be virtual.
                attributes()?;
            }
            Err(errno) => return Err(errno.into()),
        }
        self.punch(punches)
    }

    /// Makes `path` real, if something virtual is there; a directory without what is in it, a file with
    /// all its names.
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
                let names = self.other_names(&layer, &record)?;
                let mut punches = self.punches_below(path)?;
                let (parent, name) = self.real_parent(path)?;
                let _times = KeptTimes::of(&parent)?;
                self.remove_dir_in_the_way(path)?;
                restore::restore_object(
                    layer.archive(),
                    &record,
                    parent.as_fd(),
                    name,
                    layer.mtime(&record),
                )?;
                for other in names {
                    punches.extend(self.punches_below(&other)?);
                    let (other_parent, other_name) = self.real_parent(&other)?;
                    let _times = KeptTimes::of(&other_parent)?;
                    self.tree.base().remove_all(&other)?;
                    rustix::fs::linkat(&parent, name, &other_parent, other_name, AtFlags::empty())?;
                }
                self.punch(punches)?;
            }
            RecordKind::Absent => {}
        }
        Ok(())
    }

    /// Makes `path` and all below it real, and the base the only one to say what is there.
    ///
    /// # Errors
    /// Where the base refuses or an archive is damaged.
    pub fn subtree(&self, path: &RelPath) -> Result<(), FsError> {
        if !self.is_layered(path)? {
            return Ok(());
        }
        self.objects(path)?;
        self.drop_hidden(path)?;
        self.punch(self.punches_below(path)?)
    }

    /// Returns whether any layer has a word on what is at or below `path`: else the base alone is what shows,
    /// and however much it is, nothing has to be done.
    fn is_layered(&self, path: &RelPath) -> Result<bool, FsError> {
        for layer in self.tree.layers().iter() {
            if layer.speaks_below(path)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn objects(&self, path: &RelPath) -> Result<(), FsError> {
        self.object(path)?;
        for name in self.tree.list(path, Perspective::ALL)?.into_keys() {
            self.objects(&path.join(&name))?;
        }
        Ok(())
    }

    /// Removes what the base has at `path` although the merged tree shows nothing there, and the layers'
    /// word on it and on all below, so that something new can be put there.
    ///
    /// # Errors
    /// Where the base refuses.
    pub fn clear_way(&self, path: &RelPath) -> Result<(), FsError> {
        let punches = self.punches_below(path)?;
        self.tree.base().remove_all(path)?;
        self.punch(punches)
    }

    /// Removes what does not show below the directory `path`, from the base and from the layers.
    fn drop_hidden(&self, path: &RelPath) -> Result<(), FsError> {
        let shown = self.tree.list(path, Perspective::ALL)?;
        let mut hidden = BTreeSet::new();
        for (name, _) in self.tree.base().list(path)?.unwrap_or_default() {
            hidden.insert(name);
        }
        for layer in self.tree.layers().iter() {
            let records = layer.children(path)?;
            hidden.extend(records.iter().filter_map(|record| record.path.name().map(OsString::from)));
        }
        for name in hidden.iter().filter(|name| !shown.contains_key(*name)) {
            self.clear_way(&path.join(name))?;
        }
        for (name, kind) in shown {
            if kind == FileKind::Dir {
                self.drop_hidden(&path.join(&name))?;
            }
        }
        Ok(())
    }

    /// Returns the other names of a virtual file that show.
    fn other_names(&self, layer: &Arc<Layer>, record: &Record) -> Result<Vec<RelPathBuf>, FsError> {
        let first_of = |record: &Record| match &record.kind {
            RecordKind::File { link_to, .. } => Some(link_to.as_ref().unwrap_or(&record.path).clone()),
            _ => None,
        };
        let mut names = Vec::new();
        if !record.is_file() || record.links() < 2 {
            return Ok(names);
        }
        for other in layer.records() {
            let other = other?;
            if other.path != record.path
                && first_of(&other) == first_of(record)
                && matches!(self.tree.find(&other.path, Perspective::ALL)?,
                    Some(Found::Virtual(owner, _)) if Arc::ptr_eq(&owner, layer))
            {
                names.push(other.path);
            }
        }
        Ok(names)
    }

    fn remove_dir_in_the_way(&self, path: &RelPath) -> Result<(), FsError> {
        if self.tree.base().stat(path)?.is_some_and(|stat| stat.kind == FileKind::Dir) {
            self.tree.base().remove_all(path)?;
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

    /// Returns what takes `path` out of every layer that has a word on it. Made before the base changes,
    /// whose state before the owner's run it notes.
    fn punches_at(&self, path: &RelPath) -> Result<Vec<LayerPunch>, FsError> {
        let mut punches = Vec::new();
        for layer in self.tree.layers().iter() {
            if let Some(record) = layer.find(path)? {
                punches.push(self.punch_of(layer, &record)?);
            }
        }
        Ok(punches)
    }

    /// Like [`punches_at`](Self::punches_at), with all below.
    fn punches_below(&self, path: &RelPath) -> Result<Vec<LayerPunch>, FsError> {
        let mut punches = Vec::new();
        for layer in self.tree.layers().iter() {
            for record in layer.archive().toc().subtree(path) {
                let record = record?;
                if !layer.is_punched(&record.path) {
                    punches.push(self.punch_of(layer, &record)?);
                }
            }
        }
        Ok(punches)
    }

    fn punch_of(&self, layer: &Arc<Layer>, record: &Record) -> Result<LayerPunch, FsError> {
        let before = match record.kind {
            RecordKind::ImpliedDir => PathState::Absent,
            _ => self.before(layer, &record.path)?,
        };
        Ok(LayerPunch { layer: Arc::clone(layer), path: record.path.clone(), before })
    }

    fn punch(&self, punches: Vec<LayerPunch>) -> Result<(), FsError> {
        for LayerPunch { layer, path, before } in punches {
            let row = Punch { path: path.clone(), before: encode_before(&before) };
            self.index
                .add_punches(self.workspace, *layer.owner(), &[row])
                .map_err(|error| FsError::Os(std::io::Error::other(error)))?;
            layer.punch(&path, Some(before).filter(|before| *before != PathState::Absent));
        }
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

/// A path to be taken out of a layer.
struct LayerPunch {
    layer: Arc<Layer>,
    path: RelPathBuf,
    /// What the layer's owner found there.
    before: PathState,
}

/// A directory whose modification time is put back: what is made real was there all the time.
struct KeptTimes {
    dir: String,
    mtime: Timestamp,
}

impl KeptTimes {
    fn of(dir: impl AsFd) -> Result<Self, FsError> {
        let mtime = BaseStat::from(rustix::fs::fstat(&dir)?).identity.mtime;
        Ok(Self { dir: format!("/proc/self/fd/{}", dir.as_fd().as_raw_fd()), mtime })
    }
}

impl Drop for KeptTimes {
    fn drop(&mut self) {
        let times = timestamps(None, Some(SetTime::At(self.mtime)));
        // Where somebody else owns the directory it stays as it is.
        rustix::fs::utimensat(rustix::fs::CWD, &*self.dir, &times, AtFlags::empty()).ok();
    }
}
