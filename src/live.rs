//! The live mount's tree: what users and editors see.
//!
//! Reading merges base and layers. Writing goes through to the base; touching something virtual makes it
//! real first, just that one object.

mod announcer;
mod news;
mod ops;

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

pub use self::announcer::Announcer;
pub use self::news::Before;
use crate::content::ContentHashes;
use crate::fs::{Attr, FileKind, FsError, Invalidator, NodeId, OpenFile};
use crate::materialise::Materialiser;
use crate::node_numbers::NodeNumbers;
use crate::open_file::RealFile;
use crate::path::{RelPath, RelPathBuf};
use crate::store::Store;
use crate::touched::Touched;
use crate::tree::{Found, ObjectId, Perspective, Tree};
use crate::watch::News;

/// The live mount's tree.
#[derive(Debug)]
pub struct Live {
    materialiser: Arc<Materialiser>,
    store: Arc<Store>,
    touched: Arc<Touched>,
    /// Names that the kernel knows. Taken before any lock of the tree, and held across an operation on the
    /// base, so that a name and its node change together.
    nodes: Mutex<Nodes>,
}

#[derive(Debug)]
struct Nodes {
    nodes: HashMap<NodeId, Node>,
    by_object: HashMap<ObjectId, NodeId>,
    numbers: NodeNumbers,
}

#[derive(Debug)]
struct Node {
    kind: FileKind,
    object: Option<ObjectId>,
    /// Where it is; empty once it is unlinked.
    names: Vec<(NodeId, OsString)>,
    children: HashMap<OsString, NodeId>,
    /// Cloned into every open handle.
    token: Arc<()>,
    /// Handles, which may outlive the last name.
    open: Vec<Weak<File>>,
    /// What a handle of virtual content was opened on.
    opened: Option<Attr>,
}

impl Live {
    /// Opens the tree.
    #[must_use]
    pub fn new(materialiser: Arc<Materialiser>, store: Arc<Store>, touched: Arc<Touched>) -> Self {
        Self { materialiser, store, touched, nodes: Mutex::new(Nodes::new()) }
    }

    /// Tells `invalidator` of every name and node the kernel may know whose path `concerns` says has
    /// changed.
    pub fn invalidate(&self, invalidator: &dyn Invalidator, concerns: impl Fn(&RelPath) -> bool) {
        let mut changed = Vec::new();
        {
            let nodes = self.lock();
            for (id, node) in &nodes.nodes {
                for (parent, name) in &node.names {
                    if nodes.child_path(*parent, name).is_ok_and(|path| concerns(&path)) {
                        changed.push((*id, *parent, name.clone()));
                    }
                }
            }
        }
        for (node, parent, name) in changed {
            invalidator.node_changed(node);
            invalidator.entry_changed(parent, &name);
        }
    }

    /// Returns what answers the process that tells watchers of changes.
    #[must_use]
    pub fn announcer(self: &Arc<Self>) -> Arc<Announcer> {
        Arc::new(Announcer::new(Arc::clone(self)))
    }

    /// Returns what those may want to hear who watch the mount, after something changed what showed `before`.
    #[must_use]
    pub fn news(
        self: &Arc<Self>,
        announcer: &Arc<Announcer>,
        hashes: &Arc<ContentHashes>,
        before: Before,
    ) -> Box<dyn News> {
        Box::new(news::Change::new(Arc::clone(self), Arc::clone(announcer), Arc::clone(hashes), before))
    }

    /// Forgets that `name` led to `node`, unless the kernel knows something new there. What it does not know
    /// may have been put there meanwhile.
    fn forget_removed(&self, parent: NodeId, name: &OsStr, node: NodeId) -> Result<(), FsError> {
        let nodes = &mut *self.lock();
        match nodes.child(parent, name) {
            Some(known) if known != node => return Err(FsError::Stale),
            Some(_) if self.found_is(nodes, node) => return Err(FsError::Stale),
            Some(_) | None => {}
        }
        nodes.unname(parent, name);
        Ok(())
    }

    /// Returns whether a node still is what is at its path.
    fn found_is(&self, nodes: &Nodes, node: NodeId) -> bool {
        let Ok(known) = nodes.get(node) else { return false };
        let found = nodes.path(node).and_then(|path| self.find(&path));
        found
            .ok()
            .flatten()
            .is_some_and(|found| found.kind() == known.kind && found.object_id() == known.object)
    }

    fn lock(&self) -> MutexGuard<'_, Nodes> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tree(&self) -> &Tree {
        &self.materialiser.tree
    }

    fn find(&self, path: &RelPath) -> Result<Option<Found>, FsError> {
        Ok(self.tree().find(path, Perspective::ALL)?)
    }

    fn touch(&self, path: &RelPath) {
        self.touched.touch(path, None);
    }
}

impl Nodes {
    fn new() -> Self {
        let nodes = HashMap::from([(NodeId::ROOT, Node::new(FileKind::Dir, None))]);
        Self { nodes, by_object: HashMap::new(), numbers: NodeNumbers::new() }
    }

    fn get(&self, id: NodeId) -> Result<&Node, FsError> {
        self.nodes.get(&id).ok_or(FsError::NotFound)
    }

    fn path(&self, id: NodeId) -> Result<RelPathBuf, FsError> {
        if id == NodeId::ROOT {
            return Ok(RelPathBuf::root());
        }
        let (parent, name) = self.get(id)?.names.first().ok_or(FsError::NotFound)?;
        Ok(self.path(*parent)?.join(name))
    }

    fn child_path(&self, parent: NodeId, name: &OsStr) -> Result<RelPathBuf, FsError> {
        Ok(self.path(parent)?.join(name))
    }

    fn child(&self, parent: NodeId, name: &OsStr) -> Option<NodeId> {
        self.nodes.get(&parent)?.children.get(name).copied()
    }

    /// Returns the node that `path` leads to, if the kernel knows it.
    fn at(&self, path: &RelPath) -> Option<NodeId> {
        match path.split_last() {
            None => Some(NodeId::ROOT),
            Some((dir, name)) => self.child(self.at(dir)?, name),
        }
    }

    /// Returns the directory of `path` and the name in it, if the kernel knows that directory.
    fn place_of(&self, path: &RelPath) -> Option<(NodeId, OsString)> {
        let (dir, name) = path.split_last()?;
        Some((self.at(dir)?, name.to_owned()))
    }

    /// Gives a node that nobody has open to the regular file that took the place of its own.
    fn rebind(&mut self, id: NodeId, path: &RelPath, found: &Found) {
        let object = found.object_id();
        let free = object.as_ref().is_some_and(|object| !self.by_object.contains_key(object));
        let Some(node) = self.nodes.get(&id) else { return };
        if free
            && found.kind() == FileKind::File
            && node.kind == FileKind::File
            && node.object != object
            && node.names.len() == 1
            && !node.is_open()
            && self.at(path) == Some(id)
        {
            self.reidentify(id, object);
        }
    }

    /// Returns the node of what was found under a name: the one it has, if it is still the same object.
    fn node_for(&mut self, parent: NodeId, name: &OsStr, found: &Found) -> NodeId {
        let object = found.object_id();
        let kind = found.kind();
        if let Some(&id) = self.nodes.get(&parent).and_then(|dir| dir.children.get(name)) {
            if self.nodes.get(&id).is_some_and(|node| node.kind == kind && node.object == object) {
                return id;
            }
            self.unname(parent, name);
        }
        let shared = object.as_ref().and_then(|object| self.by_object.get(object)).copied();
        let id = shared.unwrap_or_else(|| {
            let id = match found {
                Found::Base(stat) => {
                    self.numbers.of_base(stat.identity.ino, |id| self.nodes.contains_key(&id))
                }
                Found::Virtual(..) => self.numbers.fresh(),
            };
            self.nodes.insert(id, Node::new(kind, object.clone()));
            if let Some(object) = object {
                self.by_object.insert(object, id);
            }
            id
        });
        self.name(id, parent, name);
        id
    }

    fn name(&mut self, id: NodeId, parent: NodeId, name: &OsStr) {
        if let Some(node) = self.nodes.get_mut(&id) {
            node.names.push((parent, name.to_owned()));
        }
        if let Some(dir) = self.nodes.get_mut(&parent) {
            dir.children.insert(name.to_owned(), id);
        }
    }

    /// Takes a name off the node it leads to, and returns the node.
    fn unname(&mut self, parent: NodeId, name: &OsStr) -> Option<NodeId> {
        let id = self.nodes.get_mut(&parent)?.children.remove(name)?;
        let node = self.nodes.get_mut(&id)?;
        node.names.retain(|(dir, known)| (*dir, known.as_os_str()) != (parent, name));
        if node.names.is_empty()
            && let Some(object) = node.object.take()
        {
            self.by_object.remove(&object);
        }
        Some(id)
    }

    /// Notes that a node's object is another one now, under the same names.
    fn reidentify(&mut self, id: NodeId, object: Option<ObjectId>) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let old = std::mem::replace(&mut node.object, object.clone());
        if let Some(old) = old {
            self.by_object.remove(&old);
        }
        if let Some(object) = object {
            self.by_object.insert(object, id);
        }
    }

    fn forget(&mut self, id: NodeId) {
        let Some(node) = self.nodes.get(&id) else { return };
        if id == NodeId::ROOT || !node.children.is_empty() {
            return;
        }
        for (parent, name) in node.names.clone() {
            self.unname(parent, &name);
        }
        self.nodes.remove(&id);
    }

    /// Makes a handle of a real file that is open on a node.
    fn opened(&mut self, id: NodeId, file: File) -> Result<Arc<dyn OpenFile>, FsError> {
        let node = self.nodes.get_mut(&id).ok_or(FsError::NotFound)?;
        let file = Arc::new(file);
        node.open.retain(|open| open.strong_count() > 0);
        node.open.push(Arc::downgrade(&file));
        Ok(Arc::new(RealFile::new(file, Arc::clone(&node.token))))
    }
}

impl Node {
    fn new(kind: FileKind, object: Option<ObjectId>) -> Self {
        Self {
            kind,
            object,
            names: Vec::new(),
            children: HashMap::new(),
            token: Arc::new(()),
            open: Vec::new(),
            opened: None,
        }
    }

    fn is_open(&self) -> bool {
        Arc::strong_count(&self.token) > 1
    }

    /// Returns a real file that is open on the node.
    fn open_file(&self) -> Option<Arc<File>> {
        self.open.iter().find_map(Weak::upgrade)
    }
}
