//! Files that programs may have open without our knowledge.
//!
//! Where the kernel does not tell us of opens, it asks for content by node. As long as a node's object is at its path,
//! that is where it is opened. What is about to lose its name, or its place to something else, is kept until the kernel
//! forgets the node, which it does once nobody has it open.

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};

use super::Live;
use super::nodes::{Key, Node, Nodes};
use crate::archive::{Record, restore};
use crate::fs::{Attr, FileKind, FsError, NodeId, OpenFile, OpenFlags};
use crate::open_file::RealFile;
use crate::path::{RelPath, RelPathBuf};
use crate::tree::{Found, Layer};

/// What was at a node's path.
#[derive(Debug)]
pub(super) enum Kept {
    /// A file of the base.
    Real(Arc<File>),
    /// A virtual file; its record is searched for when somebody asks.
    Virtual {
        /// Where it can be found, newest first.
        layers: Arc<[Arc<Layer>]>,
        /// Where it was.
        path: RelPathBuf,
        /// Which object it was.
        object: Key,
    },
}

impl Live {
    /// Keeps what `id` is, if it is a file: it is about to be taken away, and may be open.
    pub(super) fn keep(&self, nodes: &mut Nodes, id: NodeId) {
        if let Ok((path, found)) = self.found(nodes, id) {
            self.keep_as(nodes, id, path, &found);
        }
    }

    /// As [`keep`](Self::keep), of what was found at one of its paths.
    pub(super) fn keep_as(&self, nodes: &mut Nodes, id: NodeId, path: RelPathBuf, found: &Found) {
        let Ok(node) = nodes.get_mut(id) else { return };
        let (FileKind::File, Some(object)) = (node.kind, node.object) else { return };
        if Key::of(found) != Some(object) {
            return;
        }
        let ino = node.ino;
        node.handles().last = Some(Attr { ino, ..found.attr(id) });
        if self.told_of_opens {
            return;
        }
        let kept = match found {
            Found::Virtual(..) => Kept::Virtual { layers: self.tree().layers(), path, object },
            Found::Base(_) => {
                let open =
                    |access| self.tree().base().open(&path, access | OFlags::NONBLOCK | OFlags::NOFOLLOW, 0);
                match open(OFlags::RDWR).or_else(|_| open(OFlags::RDONLY)) {
                    Ok(file) => Kept::Real(Arc::new(File::from(file))),
                    Err(error) => {
                        tracing::debug!(?path, %error, "whoever has it open loses it");
                        return;
                    }
                }
            }
        };
        node.keep(kept);
    }

    /// Keeps what may be open at and below a path that is about to change.
    pub(super) fn keep_below(&self, nodes: &mut Nodes, path: &RelPath) {
        let Some(id) = nodes.at(path) else { return };
        for id in nodes.below(id) {
            if nodes.get(id).is_ok_and(Node::may_be_open) {
                self.keep(nodes, id);
            }
        }
    }

    /// Keeps what may be open at paths that `concerns` says are about to change.
    pub fn keep_where(&self, concerns: impl Fn(&RelPath) -> bool) {
        let nodes = &mut *self.lock();
        let concerned = |nodes: &Nodes, id| nodes.paths(id).iter().any(|path| concerns(path));
        let open: Vec<_> = nodes.iter().filter(|(_, node)| node.may_be_open()).map(|(id, _)| id).collect();
        for id in open {
            if concerned(nodes, id) {
                self.keep(nodes, id);
            }
        }
    }

    /// Opens what was kept of a node, unless it still is where it was.
    pub(super) fn open_kept(
        &self,
        id: NodeId,
        flags: OpenFlags,
    ) -> Result<Option<Arc<dyn OpenFile>>, FsError> {
        if self.told_of_opens {
            return Ok(None);
        }
        let (layer, record) = {
            let nodes = &mut *self.lock();
            let node = nodes.get(id)?;
            if node.kept().is_none() || (node.has_names() && self.found(nodes, id).is_ok()) {
                return Ok(None);
            }
            match node.kept() {
                None => return Ok(None),
                Some(Kept::Real(file)) => return Ok(Some(opened(file))),
                Some(Kept::Virtual { layers, path, object }) => kept_record(layers, path, *object)?,
            }
        };
        if flags.intersects(OpenFlags::WRITE | OpenFlags::TRUNCATE) {
            return self.make_kept_real(id, &layer, &record).map(Some);
        }
        let file = self.open_virtual(id, &layer, record)?;
        Ok(Some(file))
    }

    /// Makes a file without a name of a virtual one that has none any more, so that it can be written.
    fn make_kept_real(
        &self,
        id: NodeId,
        layer: &Layer,
        record: &Record,
    ) -> Result<Arc<dyn OpenFile>, FsError> {
        let _changing = self.changing();
        if let Some(Kept::Real(file)) = self.lock().get(id)?.kept() {
            // Somebody was faster.
            return Ok(opened(file));
        }
        let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
        let file = rustix::fs::openat(self.tree().base().root(), ".", flags, Mode::RUSR | Mode::WUSR)?;
        let file = Arc::new(File::from(file));
        layer.archive().copy_to(record, &file)?;
        restore::set_attributes(file.as_fd(), record, layer.mtime(record))?;
        let nodes = &mut *self.lock();
        let node = nodes.get_mut(id)?;
        if let Some(last) = node.last() {
            rustix::fs::fchmod(&*file, Mode::from_bits_truncate(last.mode))?;
        }
        // Nobody else sets it while `changing` is held.
        node.handles().real.set(file.try_clone()?).ok();
        node.keep(Kept::Real(Arc::clone(&file)));
        Ok(opened(&file))
    }
}

fn opened(file: &Arc<File>) -> Arc<dyn OpenFile> {
    Arc::new(RealFile::new(Arc::clone(file), Arc::default()))
}

fn kept_record(layers: &[Arc<Layer>], path: &RelPath, object: Key) -> Result<(Arc<Layer>, Record), FsError> {
    for layer in layers {
        if let Some(record) = layer.record(path)? {
            let found = Found::Virtual(Arc::clone(layer), record);
            if Key::of(&found) == Some(object)
                && let Found::Virtual(layer, record) = found
            {
                return Ok((layer, record));
            }
        }
    }
    Err(FsError::Stale)
}
