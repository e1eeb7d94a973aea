//! The nodes of a view: identities, names, and where each object's content is.
//!
//! A view of a large workspace has a node for each object that was looked at, so what an untouched one takes
//! is kept small: a name is stored once, and the path below follows from the names above it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::sync::{Arc, Weak};

use super::names::{Name, Names};
use crate::fs::{FileKind, FsError, NodeId, Timestamp};
use crate::node_map::NodeMap;
use crate::node_numbers::{self, NodeNumbers, UNKNOWN};
use crate::open_file::SharedFile;
use crate::path::{RelPath, RelPathBuf};
use crate::tree::{Found, Listed, ListedObject, ObjectId};

#[derive(Debug)]
pub(super) struct Nodes {
    nodes: NodeMap<Box<Node>>,
    /// Objects of the lower side that have several names: these share one node.
    linked: HashMap<ObjectId, Linked>,
    numbers: NodeNumbers,
}

/// An object of the lower side with several names.
#[derive(Debug)]
pub(super) struct Linked {
    /// Its node, while it has one.
    pub(super) node: Option<NodeId>,
    /// How many names the lower side gives it.
    lower_links: u32,
    /// How many names it has in the view, those included that nobody looked at.
    links: u32,
}

#[derive(Debug)]
pub(super) struct Node {
    pub(super) body: Body,
    /// Where it is in the view; empty once it is unlinked.
    pub(super) names: Names,
    /// The lower object, where that has several names.
    pub(super) linked: Option<Box<ObjectId>>,
    /// What every open handle of the present content holds.
    pub(super) opened: Weak<SharedFile>,
    /// What programs see as its inode number.
    pub(super) ino: u64,
}

#[derive(Debug)]
pub(super) enum Body {
    File(FileContent),
    Dir(Box<Dir>),
    Symlink(Box<Symlink>),
    Special(Box<Special>),
    /// Open handles keep old content of a file that is another node now.
    Replaced(NodeId),
}

#[derive(Debug)]
pub(super) enum FileContent {
    /// That of a lower file. Attributes are the lower file's, too, unless they were changed.
    Lower { at: LowerAt, own: Option<Box<OwnAttr>> },
    /// A blob, which also has the attributes.
    Blob(Box<Blob>),
}

/// A file in the staging directory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Blob {
    pub(super) number: u64,
    /// When its names changed last: the blob itself knows nothing of names.
    pub(super) renamed: Timestamp,
    /// Made without a name, and not named yet: it may be, although it has no links.
    pub(super) unnamed: bool,
}

/// Where an object is on the lower side: where its name is, in the directory that is below its directory, or
/// elsewhere.
#[derive(Debug, Default)]
pub(super) struct LowerAt(Option<Box<RelPathBuf>>);

#[derive(Debug, Default)]
pub(super) struct Dir {
    /// Names that differ from the lower directory, and nodes of those that do not.
    pub(super) children: BTreeMap<Name, Child>,
    /// The lower directory that shows through.
    pub(super) lower: Option<LowerAt>,
    /// Attributes, where they are not those of the lower directory.
    pub(super) attr: Option<OwnAttr>,
    /// Whether somebody set them, rather than only adding and removing names.
    pub(super) attr_changed: bool,
    /// Extended attributes, where they are not those of the lower directory.
    pub(super) xattrs: Option<BTreeMap<OsString, Vec<u8>>>,
    /// How many subdirectories the lower directory shows, once that was asked.
    pub(super) lower_subdirs: Option<u32>,
    /// Subdirectories that were added, less those that were taken away.
    pub(super) subdirs_added: i64,
}

/// What a name stands for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Child(u64);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct OwnAttr {
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) atime: Timestamp,
    pub(super) mtime: Timestamp,
    pub(super) ctime: Timestamp,
}

#[derive(Debug)]
pub(super) struct Symlink {
    /// `None` while it is the lower side's.
    pub(super) own: Option<(OsString, OwnAttr)>,
    pub(super) lower: Option<LowerAt>,
}

#[derive(Debug)]
pub(super) struct Special {
    pub(super) kind: FileKind,
    pub(super) rdev: u32,
    /// `None` while it is the lower side's.
    pub(super) own: Option<OwnAttr>,
    pub(super) lower: Option<LowerAt>,
}

impl Nodes {
    pub(super) fn new() -> Self {
        let lower = LowerAt(Some(Box::new(RelPathBuf::root())));
        let root = Dir { lower: Some(lower), ..Dir::default() };
        let root = Box::new(Node::new(Body::Dir(Box::new(root)), NodeId::ROOT));
        Self {
            nodes: NodeMap::from_iter([(NodeId::ROOT, root)]),
            linked: HashMap::new(),
            numbers: NodeNumbers::new(),
        }
    }

    pub(super) fn get(&self, id: NodeId) -> Result<&Node, FsError> {
        self.nodes.get(&id).map(|node| &**node).ok_or(FsError::NotFound)
    }

    pub(super) fn get_mut(&mut self, id: NodeId) -> Result<&mut Node, FsError> {
        self.nodes.get_mut(&id).map(|node| &mut **node).ok_or(FsError::NotFound)
    }

    /// Returns the node that stands for the object now.
    pub(super) fn current(&self, id: NodeId) -> NodeId {
        match self.nodes.get(&id).map(|node| &node.body) {
            Some(Body::Replaced(by)) => self.current(*by),
            _ => id,
        }
    }

    pub(super) fn dir(&self, id: NodeId) -> Result<&Dir, FsError> {
        match &self.get(id)?.body {
            Body::Dir(dir) => Ok(dir),
            _ => Err(FsError::NotADirectory),
        }
    }

    pub(super) fn dir_mut(&mut self, id: NodeId) -> Result<&mut Dir, FsError> {
        match &mut self.get_mut(id)?.body {
            Body::Dir(dir) => Ok(dir),
            _ => Err(FsError::NotADirectory),
        }
    }

    pub(super) fn ids(&self) -> Vec<NodeId> {
        self.nodes.keys().copied().collect()
    }

    /// Returns where a node's object is on the lower side, as far as it still is what is there.
    pub(super) fn lower(&self, id: NodeId) -> Option<RelPathBuf> {
        let node = self.nodes.get(&id)?;
        match node.body.lower()? {
            LowerAt(Some(path)) => Some((**path).clone()),
            LowerAt(None) => {
                let (parent, name) = node.names.found()?;
                Some(self.lower(parent)?.join(name))
            }
        }
    }

    /// Returns where a name would be on the lower side, if its directory shows one.
    pub(super) fn lower_child(
        &self,
        (parent, name): (NodeId, &OsStr),
    ) -> Result<Option<RelPathBuf>, FsError> {
        self.dir(parent)?;
        Ok(self.lower(parent).map(|lower| lower.join(name)))
    }

    /// Makes a node without a name.
    pub(super) fn insert(&mut self, body: Body) -> NodeId {
        let id = self.numbers.fresh();
        self.nodes.insert(id, Box::new(Node::new(body, id)));
        id
    }

    /// Returns whether a file has a node already, under another name.
    pub(super) fn is_known(&self, found: &Found) -> bool {
        found.kind() == FileKind::File
            && found
                .object_id()
                .and_then(|object| self.linked.get(&object))
                .is_some_and(|linked| linked.node.is_some())
    }

    /// Returns the inode number that a lookup of a name would tell that has no node, as far as a listing says.
    pub(super) fn ino_of_listed(&self, listed: Listed) -> u64 {
        match listed.object {
            ListedObject::Base { dev, ino } => {
                let shared = self.linked.get(&ObjectId::Base { dev, ino }).and_then(|linked| linked.node);
                if let Some(node) = shared.and_then(|id| self.nodes.get(&id)) {
                    return node.ino;
                }
                // Another object may have the number; then this one gets a new one when it is looked up.
                let free = node_numbers::of_base(ino).filter(|id| !self.nodes.contains_key(id));
                free.unwrap_or(UNKNOWN).0
            }
            ListedObject::Virtual { number, .. } => node_numbers::of_virtual(number).0,
        }
    }

    /// Makes or finds the node of a lower object and gives it the name `at`, under which it was found.
    pub(super) fn insert_lower(&mut self, at: (NodeId, &OsStr), found: &Found) -> NodeId {
        let lower_links = found.attr(NodeId::ROOT).nlink;
        let object = found.object_id().filter(|_| lower_links > 1);
        let shared = object.as_ref().and_then(|object| self.linked.get(object)?.node);
        let id = shared.unwrap_or_else(|| {
            let id = self.numbers.of_found(found, |id| self.nodes.contains_key(&id));
            let mut node = Node::new(Body::of_lower(found), id);
            if let Some(object) = object {
                let new = Linked { node: None, lower_links, links: lower_links };
                self.linked.entry(object.clone()).or_insert(new).node = Some(id);
                node.linked = Some(Box::new(object));
            }
            self.nodes.insert(id, Box::new(node));
            id
        });
        self.attach(id, at, true);
        id
    }

    /// Gives a node another name, as `link(2)` does.
    pub(super) fn link(&mut self, id: NodeId, at: (NodeId, &OsStr)) {
        self.count_links(id, 1);
        self.attach(id, at, false);
    }

    /// Takes a name off a node, as `unlink(2)` does; the directory's entry is the caller's to replace.
    pub(super) fn unlink(&mut self, id: NodeId, at: (NodeId, &OsStr)) {
        self.count_links(id, -1);
        self.detach(id, at);
    }

    /// Gives a node a name in place of whatever the name stood for; `found` says that the lower side has it
    /// there.
    pub(super) fn attach(&mut self, id: NodeId, (parent, name): (NodeId, &OsStr), found: bool) {
        let name: Name = name.into();
        if let Some(node) = self.nodes.get_mut(&id) {
            node.names.add(parent, Arc::clone(&name), found);
        }
        let is_dir = self.dir(id).is_ok();
        if let Ok(dir) = self.dir_mut(parent) {
            dir.subdirs_added += i64::from(is_dir && !found);
            // The entry's name is the one that the node has, too.
            dir.children.remove(&*name);
            dir.children.insert(name, Child::node(id));
        }
    }

    /// Takes a name off a node that will get another; the directory's entry is the caller's to replace.
    pub(super) fn detach(&mut self, id: NodeId, (parent, name): (NodeId, &OsStr)) {
        // The path below may follow from this name.
        let lower = self.lower(id);
        if self.dir(id).is_ok()
            && let Ok(dir) = self.dir_mut(parent)
        {
            dir.subdirs_added -= 1;
        }
        if let Some(node) = self.nodes.get_mut(&id) {
            node.names.remove(parent, name);
            if let (Some(lower), Some(at)) = (lower, node.body.lower_mut()) {
                at.0 = Some(Box::new(lower));
            }
        }
    }

    fn count_links(&mut self, id: NodeId, by: i32) {
        let object = self.nodes.get(&id).and_then(|node| node.linked.as_deref());
        if let Some(linked) = object.and_then(|object| self.linked.get_mut(object)) {
            linked.links = linked.links.saturating_add_signed(by);
        }
    }

    /// Returns how many names an object that is no directory has.
    pub(super) fn links(&self, node: &Node) -> u32 {
        match node.linked.as_deref().and_then(|object| self.linked.get(object)) {
            Some(linked) => linked.links,
            None => u32::try_from(node.names.len()).unwrap_or(u32::MAX),
        }
    }

    /// Returns the lower objects with several names whose node says `wanted` and has names that nobody
    /// looked at.
    pub(super) fn with_unknown_names(&self, wanted: impl Fn(&Node) -> bool) -> HashSet<ObjectId> {
        let unknown = |linked: &Linked| {
            linked
                .node
                .and_then(|id| self.nodes.get(&id))
                .is_some_and(|node| node.names.len() < linked.links as usize && wanted(node))
        };
        self.linked.iter().filter(|(_, linked)| unknown(linked)).map(|(object, _)| object.clone()).collect()
    }

    /// Drops a node that nobody refers to, unless it carries a change. Returns its blob if it had one
    /// that no name leads to.
    pub(super) fn forget(&mut self, id: NodeId) -> Option<u64> {
        let node = self.nodes.get(&id)?;
        if id == NodeId::ROOT || !self.is_droppable(node) {
            return None;
        }
        let node = self.nodes.remove(&id)?;
        if let Some(object) = &node.linked
            && let Some(linked) = self.linked.get_mut(&**object)
            && linked.node == Some(id)
        {
            linked.node = None;
            if linked.links == linked.lower_links {
                self.linked.remove(&**object);
            }
        }
        for (parent, name) in node.names.iter() {
            if let Ok(dir) = self.dir_mut(parent) {
                dir.children.remove(name);
            }
        }
        match &node.body {
            Body::File(FileContent::Blob(blob)) => Some(blob.number),
            _ => None,
        }
    }

    fn is_droppable(&self, node: &Node) -> bool {
        if self.links(node) == 0 {
            return true;
        }
        let untouched = match &node.body {
            Body::File(FileContent::Lower { own, .. }) => own.is_none(),
            Body::File(FileContent::Blob(_)) => false,
            Body::Dir(dir) => {
                dir.children.is_empty() && dir.attr.is_none() && dir.xattrs.is_none() && dir.lower.is_some()
            }
            Body::Symlink(symlink) => symlink.own.is_none(),
            Body::Special(special) => special.own.is_none(),
            Body::Replaced(_) => true,
        };
        untouched && node.names.all_found()
    }

    /// Moves a file's names to a new node, so that open handles of the old one keep its content.
    pub(super) fn split(&mut self, id: NodeId, content: FileContent) -> Result<NodeId, FsError> {
        let new = self.insert(Body::File(content));
        let old = self.get_mut(id)?;
        let (names, linked, ino) = (std::mem::take(&mut old.names), old.linked.take(), old.ino);
        old.body = Body::Replaced(new);
        for (parent, name) in names.iter() {
            if let Some(child) = self.dir_mut(parent)?.children.get_mut(name) {
                *child = Child::node(new);
            }
        }
        if let Some(linked) = linked.as_deref().and_then(|object| self.linked.get_mut(object)) {
            linked.node = Some(new);
        }
        let node = self.get_mut(new)?;
        (node.names, node.linked, node.ino) = (names, linked, ino);
        Ok(new)
    }

    /// Returns a number that no node has.
    pub(super) fn fresh_number(&mut self) -> NodeId {
        self.numbers.fresh()
    }
}

impl Node {
    fn new(body: Body, id: NodeId) -> Self {
        Self { body, names: Names::default(), linked: None, opened: Weak::new(), ino: id.0 }
    }

    /// Returns whether a handle of the present content is open.
    pub(super) fn is_open(&self) -> bool {
        self.opened.strong_count() > 0
    }
}

impl Child {
    /// The lower side has the name, the view does not. No node has this number.
    pub(super) const WHITEOUT: Self = Self(0);

    pub(super) fn node(id: NodeId) -> Self {
        Self(id.0)
    }

    /// Returns the node; `None` for a whiteout.
    pub(super) fn id(self) -> Option<NodeId> {
        (self.0 != Self::WHITEOUT.0).then_some(NodeId(self.0))
    }
}

impl Body {
    fn of_lower(found: &Found) -> Self {
        let lower = Some(LowerAt::default());
        match found.kind() {
            FileKind::File => Self::File(FileContent::Lower { at: LowerAt::default(), own: None }),
            FileKind::Dir => Self::Dir(Box::new(Dir { lower, ..Dir::default() })),
            FileKind::Symlink => Self::Symlink(Box::new(Symlink { own: None, lower })),
            kind => {
                let rdev = found.attr(NodeId::ROOT).rdev;
                Self::Special(Box::new(Special { kind, rdev, own: None, lower }))
            }
        }
    }

    pub(super) fn kind(&self) -> FileKind {
        match self {
            Self::File(_) | Self::Replaced(_) => FileKind::File,
            Self::Dir(_) => FileKind::Dir,
            Self::Symlink(_) => FileKind::Symlink,
            Self::Special(special) => special.kind,
        }
    }

    fn lower(&self) -> Option<&LowerAt> {
        match self {
            Self::File(FileContent::Lower { at, .. }) => Some(at),
            Self::File(FileContent::Blob(_)) | Self::Replaced(_) => None,
            Self::Dir(dir) => dir.lower.as_ref(),
            Self::Symlink(symlink) => symlink.lower.as_ref(),
            Self::Special(special) => special.lower.as_ref(),
        }
    }

    fn lower_mut(&mut self) -> Option<&mut LowerAt> {
        match self {
            Self::File(FileContent::Lower { at, .. }) => Some(at),
            Self::File(FileContent::Blob(_)) | Self::Replaced(_) => None,
            Self::Dir(dir) => dir.lower.as_mut(),
            Self::Symlink(symlink) => symlink.lower.as_mut(),
            Self::Special(special) => special.lower.as_mut(),
        }
    }

    /// Returns whether it still is just what the lower side has.
    pub(super) fn is_lower(&self) -> bool {
        match self {
            Self::File(FileContent::Lower { own, .. }) => own.is_none(),
            Self::File(FileContent::Blob(_)) | Self::Replaced(_) => false,
            Self::Dir(dir) => dir.lower.is_some() && !dir.attr_changed,
            Self::Symlink(symlink) => symlink.own.is_none(),
            Self::Special(special) => special.own.is_none(),
        }
    }
}

impl From<RelPathBuf> for LowerAt {
    fn from(path: RelPathBuf) -> Self {
        Self(Some(Box::new(path)))
    }
}

/// Returns whether a path is one of the lower side's at the same place.
pub(super) fn in_place(lower: Option<&RelPathBuf>, path: &RelPath) -> bool {
    lower.is_some_and(|lower| **lower == *path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_untouched_file_takes_little() {
        assert!(size_of::<Node>() <= 72, "{}", size_of::<Node>());
        assert!(size_of::<(Name, Child)>() <= 24);
    }
}
