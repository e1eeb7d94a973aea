//! Making virtual objects real under the feet of those who have them open.

use std::fs::File;
use std::sync::Arc;

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::nodes::{Key, Nodes};
use super::{KnownName, Live, OnDrop};
use crate::archive::Record;
use crate::base::BaseStat;
use crate::change::open_in_spite_of_mode;
use crate::fs::{FileKind, FsError, NodeId, OpenFile};
use crate::open_file::{RealFile, VirtualContent, open_blob, open_frames, open_large};
use crate::path::{RelPath, RelPathBuf};
use crate::tree::{Found, Layer, Perspective};

impl Live {
    /// Returns what is at one of a node's names, having made sure it still is the node's object.
    pub(super) fn found(&self, nodes: &Nodes, id: NodeId) -> Result<(RelPathBuf, Found), FsError> {
        let node = nodes.get(id)?;
        let paths = nodes.paths(id);
        for path in paths {
            if let Some(found) = self.find(&path)?
                && found.kind() == node.kind
                && Key::of(&found) == node.object
            {
                return Ok((path, found));
            }
        }
        Err(FsError::Stale)
    }

    /// Makes a node's object real, and the directories above it, and returns where it is. The caller holds
    /// `changing`.
    ///
    /// Handles of small virtual files read the real file from then on, so that they see what is written to
    /// it. Those of large ones are the kernel's, which reads the blob behind them: they keep what they opened,
    /// and the names lead to another node.
    pub(super) fn make_real(&self, id: NodeId) -> Result<RelPathBuf, FsError> {
        let (path, found) = {
            let nodes = self.lock();
            self.found(&nodes, id)?
        };
        if let Found::Virtual(..) = found {
            self.making_real(&path, || self.materialiser.object(&path))?;
        }
        Ok(path)
    }

    /// Makes all at and below `path` real. The caller holds `changing`.
    pub(super) fn make_subtree_real(&self, path: &RelPath) -> Result<(), FsError> {
        self.making_real(path, || self.materialiser.subtree(path))
    }

    /// Lets `make` make objects at or below `path` real without keeping others from looking, and then sees
    /// to the nodes of those objects.
    fn making_real(&self, path: &RelPath, make: impl FnOnce() -> Result<(), FsError>) -> Result<(), FsError> {
        self.lock().materialising += 1;
        let made = {
            let _done = OnDrop(|| self.lock().materialising -= 1);
            make()
        };
        let mut names = Vec::new();
        let settled = {
            let nodes = &mut *self.lock();
            nodes.at(path).map_or(Ok(()), |id| self.settle(nodes, id, &mut names))
        };
        if made.is_err() {
            // It may be half done, under several names.
            self.touched.lose_track();
        }
        self.tell_real(names);
        made.and(settled)
    }

    /// Gives nodes at and below `id` whose objects became real their new identity, and their handles the
    /// real files. Adds what was virtual to `names`.
    fn settle(&self, nodes: &mut Nodes, id: NodeId, names: &mut Vec<KnownName>) -> Result<(), FsError> {
        for id in nodes.below(id) {
            let node = nodes.get(id)?;
            let open = node.has_following_handles() || node.has_fixed_handles();
            if !node.object.is_some_and(Key::is_virtual) && !open {
                continue;
            }
            let Ok(path) = nodes.path(id) else { continue };
            let Some(found @ Found::Base(_)) = self.find(&path)? else { continue };
            if found.kind() != node.kind {
                continue;
            }
            names.extend(node.names().map(|(parent, name)| (parent, id, name.to_owned())));
            nodes.reidentify(id, Key::of(&found));
            nodes.get_mut(id)?.became_real(&found.attr(id));
            nodes.share(id, &found);
            let node = nodes.get_mut(id)?;
            if node.has_following_handles() && node.handles().real.get().is_none() {
                let file = self.tree().base().open_file(&path)?;
                // Set once: nobody else does while `changing` is held.
                node.handles().real.set(file).ok();
            }
            if node.has_fixed_handles() {
                let new = nodes.split(id, found.attr(id), Key::of(&found));
                nodes.share(new, &found);
            }
        }
        Ok(())
    }

    /// Opens a node's virtual content for reading.
    pub(super) fn open_content(&self, id: NodeId) -> Result<Arc<dyn OpenFile>, FsError> {
        loop {
            let (layer, record) = {
                let nodes = &mut *self.lock();
                match self.found(nodes, id)? {
                    (path, Found::Base(_)) => return self.open_read_only(nodes, id, &path),
                    (_, Found::Virtual(layer, record)) => {
                        let content = VirtualContent::at_hand(&self.store, &record)?;
                        if content.is_some() || !self.told_of_opens {
                            return self.opened_virtual(nodes, id, &layer, record, content);
                        }
                        (layer, record)
                    }
                }
            };
            // Decompressing may take long.
            let content = Some(VirtualContent::of(&self.store, layer.archive(), &record)?);
            let nodes = &mut *self.lock();
            match self.found(nodes, id)? {
                // Somebody made it real meanwhile.
                (_, Found::Base(_)) => {}
                (_, Found::Virtual(..)) => return self.opened_virtual(nodes, id, &layer, record, content),
            }
        }
    }

    /// Opens a virtual file that a node was for reading, in a mount whose opens nobody tells.
    pub(super) fn open_virtual(
        &self,
        id: NodeId,
        layer: &Layer,
        record: Record,
    ) -> Result<Arc<dyn OpenFile>, FsError> {
        let content = VirtualContent::at_hand(&self.store, &record)?;
        self.opened_virtual(&mut self.lock(), id, layer, record, content)
    }

    /// Opens a virtual file where its content is; `None`: it is large, and read out of its frames all the same.
    fn opened_virtual(
        &self,
        nodes: &mut Nodes,
        id: NodeId,
        layer: &Layer,
        record: Record,
        content: Option<VirtualContent>,
    ) -> Result<Arc<dyn OpenFile>, FsError> {
        layer.archive().note_opened(&record);
        let node = nodes.get_mut(id)?;
        if !self.told_of_opens {
            node.set_read();
        }
        let handles = node.handles();
        let following = || (Arc::clone(&handles.real), Arc::clone(&handles.following));
        let file: Arc<dyn OpenFile> = match content {
            Some(VirtualContent::Frames) => {
                let (real, token) = following();
                open_frames(layer.archive(), record, Some(real), token)
            }
            // The kernel may read the blob itself, and would not follow.
            Some(VirtualContent::Blob(blob)) if self.told_of_opens => {
                Arc::new(RealFile::new(blob, Arc::clone(&handles.fixed)))
            }
            Some(VirtualContent::Blob(blob)) => {
                let (real, token) = following();
                open_blob(blob, &record, real, token)
            }
            None => {
                let (real, token) = following();
                open_large(&self.store, layer.archive(), record, real, token)
            }
        };
        handles.content = Some(Arc::downgrade(&file));
        Ok(file)
    }

    fn open_read_only(
        &self,
        nodes: &mut Nodes,
        id: NodeId,
        path: &RelPath,
    ) -> Result<Arc<dyn OpenFile>, FsError> {
        let file = self.open_base(path, OFlags::RDONLY)?;
        self.opened(nodes, id, file)
    }

    /// Opens a real file of a node.
    pub(super) fn opened(
        &self,
        nodes: &mut Nodes,
        id: NodeId,
        file: File,
    ) -> Result<Arc<dyn OpenFile>, FsError> {
        if !self.told_of_opens {
            let attr = BaseStat::from(rustix::fs::fstat(&file)?).attr(id);
            let node = nodes.get_mut(id)?;
            node.set_read();
            node.note(&attr);
        }
        nodes.opened(id, file)
    }

    /// Opens a file of the base.
    pub(super) fn open_base(&self, path: &RelPath, access: OFlags) -> rustix::io::Result<File> {
        let base = self.tree().base();
        match base.open(path, access | OFlags::NOFOLLOW | OFlags::NONBLOCK, 0) {
            // The kernel has opened it already, when its mode still said that it could be.
            Err(Errno::ACCESS) if !self.told_of_opens => {
                let object = base.open(path, OFlags::PATH | OFlags::NOFOLLOW, 0)?;
                let stat = BaseStat::from(rustix::fs::fstat(&object)?);
                if stat.kind != FileKind::File || stat.uid != rustix::process::geteuid().as_raw() {
                    return Err(Errno::ACCESS);
                }
                open_in_spite_of_mode(&object, stat.mode, access).map(File::from)
            }
            opened => opened.map(File::from),
        }
    }

    /// Returns whether the directory `path` shows no names.
    pub(super) fn is_empty_dir(&self, path: &RelPath) -> Result<bool, FsError> {
        Ok(self.tree().list(path, Perspective::ALL)?.is_empty())
    }
}
