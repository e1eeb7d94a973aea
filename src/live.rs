//! The live mount's tree: what users and editors see.
//!
//! Reading merges base and layers. Writing goes through to the base; touching something virtual makes it
//! real first, just that one object.

mod announcer;
mod attributes;
mod kept;
mod making;
mod news;
mod nodes;
mod ops;
mod real;

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use self::announcer::Announcer;
pub use self::news::Before;
use self::nodes::{Key, Node, Nodes};
use crate::base::BaseStat;
use crate::content::ContentHashes;
use crate::fs::{FileKind, FsError, Invalidator, NodeId, OpenFile};
use crate::materialise::Materialiser;
use crate::path::RelPath;
use crate::store::Store;
use crate::touched::Touched;
use crate::tree::{Found, Perspective, Tree};
use crate::watch::News;

/// A name: directory, the node that it leads to, and itself.
type KnownName = (NodeId, NodeId, OsString);

/// The live mount's tree.
pub struct Live {
    materialiser: Arc<Materialiser>,
    store: Arc<Store>,
    touched: Arc<Touched>,
    /// Whether extended attributes are served.
    xattrs: bool,
    /// Whether the kernel tells when a file is opened. Where it does not, anything may be open.
    told_of_opens: bool,
    /// Who is told of changes that attributes do not show.
    invalidator: Option<Arc<dyn Invalidator>>,
    /// Held for as long as something is changed through the mount. What may take long, such as decompressing a
    /// large file, is done under this lock alone, so that nobody who only reads has to wait.
    changing: Mutex<()>,
    /// Names that the kernel knows. Taken after `changing` and before any lock of the tree, and held across
    /// the short operations on the base, so that a name and its node change together.
    nodes: Mutex<Nodes>,
}

impl Live {
    /// Opens the tree.
    #[must_use]
    pub fn new(materialiser: Arc<Materialiser>, store: Arc<Store>, touched: Arc<Touched>) -> Self {
        let (changing, nodes) = (Mutex::default(), Mutex::new(Nodes::new()));
        let (xattrs, told_of_opens, invalidator) = (false, true, None);
        Self { materialiser, store, touched, xattrs, told_of_opens, invalidator, changing, nodes }
    }

    /// Serves extended attributes of the `user.` namespace, or not.
    #[must_use]
    pub fn with_xattrs(self, xattrs: bool) -> Self {
        Self { xattrs, ..self }
    }

    /// Tells `invalidator` of what the kernel cannot know when somebody uses the mount. Without one nothing holds for
    /// longer than it would anyway.
    #[must_use]
    pub fn with_invalidator(self, invalidator: Arc<dyn Invalidator>) -> Self {
        Self { invalidator: Some(invalidator), ..self }
    }

    /// Serves files of which the kernel opens whichever it likes without telling, or not.
    #[must_use]
    pub fn with_opens(self, told_of_opens: bool) -> Self {
        Self { told_of_opens, ..self }
    }

    /// Tells `invalidator` of every name and node the kernel may know whose path `concerns` says has
    /// changed.
    pub fn invalidate(&self, invalidator: &dyn Invalidator, concerns: impl Fn(&RelPath) -> bool) {
        let mut changed = Vec::new();
        {
            let nodes = self.lock();
            for (id, node) in nodes.iter() {
                for (parent, name) in node.names() {
                    if nodes.child_path(parent, name).is_ok_and(|path| concerns(&path)) {
                        changed.push((id, parent, name.to_owned()));
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
        let attr = nodes.get(node).ok().and_then(Node::last);
        nodes.removed(parent, name, attr);
        Ok(())
    }

    /// Returns whether a node still is what is at its path.
    fn found_is(&self, nodes: &Nodes, node: NodeId) -> bool {
        let Ok(known) = nodes.get(node) else { return false };
        let found = nodes.path(node).and_then(|path| self.find(&path));
        found
            .ok()
            .flatten()
            .is_some_and(|found| found.kind() == known.kind && Key::of(&found) == known.object)
    }

    /// Tells that the content of a node is to be read again.
    fn tell_changed(&self, id: NodeId) {
        if let Some(invalidator) = &self.invalidator {
            invalidator.content_changed(id);
        }
    }

    /// Tells that names which led to something virtual lead to something real now.
    fn tell_real(&self, names: Vec<KnownName>) {
        let Some(invalidator) = &self.invalidator else { return };
        for (parent, node, name) in names {
            invalidator.name_expires(parent, &name);
            invalidator.attributes_changed(node);
        }
    }

    /// Makes other changes wait.
    fn changing(&self) -> MutexGuard<'_, ()> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
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

    /// Notes that the object of a node changed: touches its names, and makes those look at everything who follow what is
    /// touched where it may have other names.
    fn changed(&self, id: NodeId, through: Option<&dyn OpenFile>) {
        if !self.touched.is_followed() {
            return;
        }
        let (paths, known) = {
            let nodes = self.lock();
            (nodes.paths(id), self.has_known_names(&nodes, id, through))
        };
        for path in &paths {
            self.touch(path);
        }
        if !known {
            self.touched.lose_track();
        }
    }

    /// Returns whether what was changed has no names but those that the node has. What was opened once may have been
    /// moved by a commit, and something else be in its place.
    fn has_known_names(&self, nodes: &Nodes, id: NodeId, through: Option<&dyn OpenFile>) -> bool {
        let stat_of = |fd: BorrowedFd<'_>| rustix::fs::fstat(fd).ok().map(BaseStat::from);
        let found = match self.found(nodes, id) {
            Ok((_, Found::Base(stat))) => Some(stat),
            Ok((_, Found::Virtual(..))) | Err(_) => None,
        };
        let has_one = |stat: &BaseStat| stat.kind == FileKind::Dir || stat.nlink == 1;
        let changed = match (through, found) {
            (Some(file), _) => file.backing().and_then(stat_of),
            (None, Some(found)) => return has_one(&found),
            (None, None) => {
                nodes.get(id).ok().and_then(Node::open_file).and_then(|file| stat_of((*file).as_fd()))
            }
        };
        changed.is_some_and(|changed| {
            let is_there = |found| Key::of_base(&changed) == Key::of_base(&found) && has_one(&found);
            changed.nlink == 0 || found.is_some_and(is_there)
        })
    }
}

impl std::fmt::Debug for Live {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Live").field("told_of_opens", &self.told_of_opens).finish_non_exhaustive()
    }
}

/// Does something however a block is left.
struct OnDrop<F: FnMut()>(F);

impl<F: FnMut()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}
