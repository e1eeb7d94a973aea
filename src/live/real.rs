//! Making virtual objects real under the feet of those who have them open.

use std::sync::Arc;

use super::nodes::{Key, Nodes};
use super::{Live, OnDrop};
use crate::fs::{FsError, NodeId, OpenFile};
use crate::open_file::{RealFile, VirtualContent, open_frames};
use crate::path::{RelPath, RelPathBuf};
use crate::tree::{Found, Perspective};

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
        let nodes = &mut *self.lock();
        let settled = nodes.at(path).map_or(Ok(()), |id| self.settle(nodes, id));
        made.and(settled)
    }

    /// Gives nodes at and below `id` whose objects became real their new identity, and their handles the
    /// real files.
    fn settle(&self, nodes: &mut Nodes, id: NodeId) -> Result<(), FsError> {
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
            nodes.reidentify(id, Key::of(&found));
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
                    (_, Found::Virtual(layer, record)) => (layer, record),
                }
            };
            // Decompressing may take long.
            let content = VirtualContent::of(&self.store, layer.archive(), &record)?;
            let nodes = &mut *self.lock();
            match self.found(nodes, id)? {
                // Somebody made it real meanwhile.
                (_, Found::Base(_)) => {}
                (_, Found::Virtual(..)) => {
                    let handles = nodes.get_mut(id)?.handles();
                    let file: Arc<dyn OpenFile> = match content {
                        VirtualContent::Frames => {
                            let (real, token) = (Arc::clone(&handles.real), Arc::clone(&handles.following));
                            open_frames(layer.archive(), &record, Some(real), token)
                        }
                        VirtualContent::Blob(blob) => {
                            Arc::new(RealFile::new(blob, Arc::clone(&handles.fixed)))
                        }
                    };
                    handles.content = Some(Arc::downgrade(&file));
                    return Ok(file);
                }
            }
        }
    }

    fn open_read_only(
        &self,
        nodes: &mut Nodes,
        id: NodeId,
        path: &RelPath,
    ) -> Result<Arc<dyn OpenFile>, FsError> {
        nodes.opened(id, self.tree().base().open_file(path)?)
    }

    /// Returns whether the directory `path` shows no names.
    pub(super) fn is_empty_dir(&self, path: &RelPath) -> Result<bool, FsError> {
        Ok(self.tree().list(path, Perspective::ALL)?.is_empty())
    }
}
