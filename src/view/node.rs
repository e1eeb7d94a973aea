//! The nodes of a view: identities, names, and where each object's content is.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::sync::Arc;

use crate::fs::{FileKind, FsError, NodeId, Timestamp};
use crate::node_numbers::NodeNumbers;
use crate::path::RelPathBuf;
use crate::tree::{Found, ObjectId};

#[derive(Debug)]
pub(super) struct Nodes {
    nodes: HashMap<NodeId, Node>,
    /// Objects of the lower side that have several names share one node.
    by_lower: HashMap<ObjectId, NodeId>,
    numbers: NodeNumbers,
}

#[derive(Debug)]
pub(super) struct Node {
    pub(super) body: Body,
    /// Where it is in the view; empty once it is unlinked.
    pub(super) names: Vec<(NodeId, OsString)>,
    lower_id: Option<ObjectId>,
    /// Cloned into every open handle of the present content.
    pub(super) token: Arc<()>,
}

#[derive(Debug)]
pub(super) enum Body {
    File(FileContent),
    Dir(Dir),
    Symlink(Symlink),
    Special(Special),
}

#[derive(Debug, Clone)]
pub(super) enum FileContent {
    /// That of a lower file, which also has the attributes.
    Lower(RelPathBuf),
    /// A blob, which also has the attributes. `lower_links` counts names that only the lower side knows.
    Blob { blob: u64, lower_links: u32 },
}

#[derive(Debug, Default)]
pub(super) struct Dir {
    /// Names that differ from the lower directory, and nodes of those that do not.
    pub(super) children: BTreeMap<OsString, Child>,
    /// The lower directory that shows through.
    pub(super) lower: Option<RelPathBuf>,
    /// Attributes, where they are not those of the lower directory.
    pub(super) attr: Option<OwnAttr>,
    /// Whether somebody set them, rather than only adding and removing names.
    pub(super) attr_changed: bool,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Child {
    Node(NodeId),
    /// The lower side has the name, the view does not.
    Whiteout,
}

#[derive(Debug, Clone, Copy)]
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
    pub(super) lower: Option<RelPathBuf>,
}

#[derive(Debug)]
pub(super) struct Special {
    pub(super) kind: FileKind,
    pub(super) rdev: u32,
    /// `None` while it is the lower side's.
    pub(super) own: Option<OwnAttr>,
    pub(super) lower: Option<RelPathBuf>,
}

impl Nodes {
    pub(super) fn new() -> Self {
        let root = Node::new(Body::Dir(Dir { lower: Some(RelPathBuf::root()), ..Dir::default() }));
        Self {
            nodes: HashMap::from([(NodeId::ROOT, root)]),
            by_lower: HashMap::new(),
            numbers: NodeNumbers::new(),
        }
    }

    pub(super) fn get(&self, id: NodeId) -> Result<&Node, FsError> {
        self.nodes.get(&id).ok_or(FsError::NotFound)
    }

    pub(super) fn get_mut(&mut self, id: NodeId) -> Result<&mut Node, FsError> {
        self.nodes.get_mut(&id).ok_or(FsError::NotFound)
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

    /// Makes a node without a name.
    pub(super) fn insert(&mut self, body: Body) -> NodeId {
        let id = self.numbers.fresh();
        self.nodes.insert(id, Node::new(body));
        id
    }

    /// Returns whether a file has a node already, under another name.
    pub(super) fn is_known(&self, found: &Found) -> bool {
        found.kind() == FileKind::File
            && found.object_id().is_some_and(|lower_id| self.by_lower.contains_key(&lower_id))
    }

    /// Makes or finds the node of a lower object and gives it the name `at`.
    pub(super) fn insert_lower(&mut self, at: (NodeId, &OsStr), lower: RelPathBuf, found: Found) -> NodeId {
        let lower_id = found.object_id();
        let shared = lower_id.as_ref().and_then(|lower_id| self.by_lower.get(lower_id)).copied();
        let id = shared.unwrap_or_else(|| {
            let id = match &found {
                Found::Base(stat) => {
                    self.numbers.of_base(stat.identity.ino, |id| self.nodes.contains_key(&id))
                }
                Found::Virtual(..) => self.numbers.fresh(),
            };
            let mut node = Node::new(Body::of_lower(lower, &found));
            node.lower_id.clone_from(&lower_id);
            self.nodes.insert(id, node);
            if let Some(lower_id) = lower_id {
                self.by_lower.insert(lower_id, id);
            }
            id
        });
        if shared.is_some()
            && let Some(node) = self.nodes.get_mut(&id)
        {
            // A name that only the lower side knew becomes one of the view.
            if let Body::File(FileContent::Blob { lower_links, .. }) = &mut node.body {
                *lower_links = lower_links.saturating_sub(1);
            }
        }
        self.name(id, at);
        id
    }

    /// Gives a node a name, in place of whatever the name stood for.
    pub(super) fn name(&mut self, id: NodeId, (parent, name): (NodeId, &OsStr)) {
        if let Some(node) = self.nodes.get_mut(&id) {
            node.names.push((parent, name.to_owned()));
        }
        if let Ok(dir) = self.dir_mut(parent) {
            dir.children.insert(name.to_owned(), Child::Node(id));
        }
    }

    /// Takes a name off a node; the directory's entry is the caller's to replace.
    pub(super) fn unname(&mut self, id: NodeId, (parent, name): (NodeId, &OsStr)) {
        if let Some(node) = self.nodes.get_mut(&id) {
            node.names.retain(|(dir, known)| (*dir, known.as_os_str()) != (parent, name));
        }
    }

    /// Drops a node that nobody refers to, unless it carries a change. Returns its blob if it had one
    /// that no name leads to.
    pub(super) fn forget(&mut self, id: NodeId) -> Option<u64> {
        let node = self.nodes.get(&id)?;
        let (droppable, blob) = match &node.body {
            Body::File(FileContent::Lower(_)) => (true, None),
            Body::File(FileContent::Blob { blob, .. }) => (node.names.is_empty(), Some(*blob)),
            Body::Dir(dir) => {
                let untouched = dir.children.is_empty() && dir.attr.is_none() && dir.lower.is_some();
                (node.names.is_empty() || untouched, None)
            }
            Body::Symlink(symlink) => (symlink.own.is_none() || node.names.is_empty(), None),
            Body::Special(special) => (special.own.is_none() || node.names.is_empty(), None),
        };
        if id == NodeId::ROOT || !droppable || self.is_moved(node) {
            return None;
        }
        let node = self.nodes.remove(&id)?;
        if let Some(lower_id) = &node.lower_id {
            self.by_lower.remove(lower_id);
        }
        for (parent, name) in &node.names {
            if let Ok(dir) = self.dir_mut(*parent) {
                dir.children.remove(name);
            }
        }
        blob
    }

    /// Returns whether a lower object has a name in the view other than its own.
    fn is_moved(&self, node: &Node) -> bool {
        let Some(lower) = node.body.lower() else { return false };
        node.names.iter().any(|(parent, name)| {
            let own_place =
                self.dir(*parent).ok().and_then(|dir| dir.lower.as_ref()).map(|dir| dir.join(name));
            own_place.as_ref() != Some(lower)
        })
    }

    /// Splits a file's names off to a new node, so that open handles of the old one keep its content.
    pub(super) fn split(&mut self, id: NodeId, content: FileContent) -> Result<NodeId, FsError> {
        let new = self.insert(Body::File(content));
        let old = self.get_mut(id)?;
        let names = std::mem::take(&mut old.names);
        let lower_id = old.lower_id.take();
        for (parent, name) in &names {
            self.dir_mut(*parent)?.children.insert(name.clone(), Child::Node(new));
        }
        if let Some(lower_id) = &lower_id {
            self.by_lower.insert(lower_id.clone(), new);
        }
        let node = self.get_mut(new)?;
        node.names = names;
        node.lower_id = lower_id;
        Ok(new)
    }

    /// Returns a number that no node has.
    pub(super) fn fresh_number(&mut self) -> NodeId {
        self.numbers.fresh()
    }
}

impl Node {
    fn new(body: Body) -> Self {
        Self { body, names: Vec::new(), lower_id: None, token: Arc::new(()) }
    }

    /// Returns whether a handle of the present content is open.
    pub(super) fn is_open(&self) -> bool {
        Arc::strong_count(&self.token) > 1
    }
}

impl Body {
    fn of_lower(lower: RelPathBuf, found: &Found) -> Self {
        match found.kind() {
            FileKind::File => Self::File(FileContent::Lower(lower)),
            FileKind::Dir => Self::Dir(Dir { lower: Some(lower), ..Dir::default() }),
            FileKind::Symlink => Self::Symlink(Symlink { own: None, lower: Some(lower) }),
            kind => Self::Special(Special { kind, rdev: 0, own: None, lower: Some(lower) }),
        }
    }

    /// Returns the path of the lower object that it still is.
    pub(super) fn lower(&self) -> Option<&RelPathBuf> {
        match self {
            Self::File(FileContent::Lower(lower)) => Some(lower),
            Self::File(FileContent::Blob { .. }) => None,
            Self::Dir(dir) => dir.lower.as_ref(),
            Self::Symlink(symlink) => symlink.lower.as_ref().filter(|_| symlink.own.is_none()),
            Self::Special(special) => special.lower.as_ref().filter(|_| special.own.is_none()),
        }
    }
}
