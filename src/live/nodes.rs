//! What the kernel knows of the live mount: nodes, their names, and who has them open.
//!
//! One entry costs about 300 bytes with its name; what only open, removed or shared files need is kept apart.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::num::NonZeroU64;
use std::sync::{Arc, OnceLock, Weak};

use super::kept::Kept;
use crate::archive::RecordKind;
use crate::base::BaseStat;
use crate::digest::Digest;
use crate::fs::{Attr, FileKind, FsError, NodeId, OpenFile, Timestamp};
use crate::node_map::NodeMap;
use crate::node_numbers::{self, NodeNumbers, UNKNOWN};
use crate::open_file::RealFile;
use crate::path::{RelPath, RelPathBuf};
use crate::tree::{Found, Listed, ListedObject, ObjectId};

/// Set in the keys of virtual objects, and in no device number.
const VIRTUAL: u64 = 1 << 63;

/// Names that the kernel knows, and the nodes they lead to.
#[derive(Debug)]
pub(super) struct Nodes {
    nodes: NodeMap<Node>,
    /// Nodes of objects that have several names, or none yet.
    shared: HashMap<Key, NodeId>,
    numbers: NodeNumbers,
    /// Inode numbers of objects whose former node is still open.
    inherited: HashMap<Key, u64>,
    /// How many operations are making virtual objects real just now.
    pub(super) materialising: u32,
}

#[derive(Debug)]
pub(super) struct Node {
    pub(super) kind: FileKind,
    /// Whether the kernel may have content of it in its cache, or have it open, without our knowledge.
    read: bool,
    /// What its attributes were when they were last told, if so.
    seen: Seen,
    /// Inode number; a node that takes the place of another keeps its number.
    pub(super) ino: u64,
    /// `None` for directories, which are what their path says.
    pub(super) object: Option<Key>,
    names: Names,
    children: Children,
    handles: Option<Box<Handles>>,
}

/// Digests of attributes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Seen {
    /// Of what the kernel compares to find out whether its cache holds: size and modification time.
    content: u32,
    /// Of the time of the last change of any kind.
    change: u32,
}

/// Names in a directory; nothing for what is none, and hardly anything for a directory nobody looked into.
type Children = Option<Box<HashMap<Arc<OsStr>, NodeId>>>;

/// Which object of the tree a node is: device and inode of the base, or a hash of archive and name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Key(NonZeroU64, u64);

/// Most objects have one name.
#[derive(Debug)]
enum Names {
    None,
    One(NodeId, Arc<OsStr>),
    Several(Vec<(NodeId, Arc<OsStr>)>),
}

/// Who has a node open, and what it was when its last name went.
#[derive(Default)]
pub(super) struct Handles {
    /// Cloned into every handle of virtual content that can follow when the file becomes real, and into those
    /// of the real file that are opened while such a handle is.
    pub(super) following: Arc<()>,
    /// Cloned into every handle of virtual content that cannot.
    pub(super) fixed: Arc<()>,
    /// Where the following handles read once the file is real.
    pub(super) real: Arc<OnceLock<File>>,
    /// Real files that are open.
    open: Vec<Weak<File>>,
    /// A handle of virtual content.
    pub(super) content: Option<Weak<dyn OpenFile>>,
    /// The object that took the place of what is open.
    successor: Option<Key>,
    /// Attributes without a name to find them by.
    pub(super) last: Option<Attr>,
    /// What was there, for those who may have it open without our knowledge.
    pub(super) kept: Option<Kept>,
}

impl std::fmt::Debug for Handles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handles").field("open", &self.open).field("last", &self.last).finish_non_exhaustive()
    }
}

impl Key {
    pub(super) fn of(found: &Found) -> Option<Self> {
        let (high, low) = match found.object_id()? {
            ObjectId::Base { dev, ino } => (dev & !VIRTUAL, ino),
            ObjectId::Virtual { archive, first_name } => {
                let digest = Digest::of(&[archive.as_bytes(), first_name.as_bytes()].concat());
                let (high, low) = digest.as_bytes().split_at(8);
                let number =
                    |bytes: &[u8]| bytes[..8].iter().fold(0, |sum, &byte| sum << 8 | u64::from(byte));
                (number(high) | VIRTUAL, number(low))
            }
        };
        Some(Self::new(high, low))
    }

    fn new(high: u64, low: u64) -> Self {
        // No file system has the device number 0.
        Self(NonZeroU64::new(high).unwrap_or(NonZeroU64::MIN), low)
    }

    pub(super) fn of_base(stat: &BaseStat) -> Option<Self> {
        Self::of(&Found::Base(*stat))
    }

    pub(super) fn is_virtual(self) -> bool {
        self.0.get() & VIRTUAL != 0
    }
}

impl Nodes {
    pub(super) fn new() -> Self {
        let nodes = NodeMap::from_iter([(NodeId::ROOT, Node::new(FileKind::Dir, NodeId::ROOT.0, None))]);
        Self {
            nodes,
            shared: HashMap::new(),
            numbers: NodeNumbers::new(),
            inherited: HashMap::new(),
            materialising: 0,
        }
    }

    pub(super) fn get(&self, id: NodeId) -> Result<&Node, FsError> {
        self.nodes.get(&id).ok_or(FsError::NotFound)
    }

    pub(super) fn get_mut(&mut self, id: NodeId) -> Result<&mut Node, FsError> {
        self.nodes.get_mut(&id).ok_or(FsError::NotFound)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (NodeId, &Node)> {
        self.nodes.iter().map(|(id, node)| (*id, node))
    }

    /// Returns a number for a node that is nowhere yet.
    pub(super) fn fresh(&mut self) -> NodeId {
        self.numbers.fresh()
    }

    pub(super) fn path(&self, id: NodeId) -> Result<RelPathBuf, FsError> {
        if id == NodeId::ROOT {
            return Ok(RelPathBuf::root());
        }
        let (parent, name) = self.get(id)?.names.first().ok_or(FsError::NotFound)?;
        self.child_path(parent, name)
    }

    pub(super) fn child_path(&self, parent: NodeId, name: &OsStr) -> Result<RelPathBuf, FsError> {
        let mut names = vec![name];
        let mut dir = parent;
        while dir != NodeId::ROOT {
            let (above, name) = self.get(dir)?.names.first().ok_or(FsError::NotFound)?;
            names.push(name);
            dir = above;
        }
        Ok(RelPathBuf::of_names(names.into_iter().rev()))
    }

    /// Returns the paths of all names of a node.
    pub(super) fn paths(&self, id: NodeId) -> Vec<RelPathBuf> {
        if id == NodeId::ROOT {
            return vec![RelPathBuf::root()];
        }
        let Ok(node) = self.get(id) else { return Vec::new() };
        node.names().filter_map(|(parent, name)| self.child_path(parent, name).ok()).collect()
    }

    pub(super) fn child(&self, parent: NodeId, name: &OsStr) -> Option<NodeId> {
        self.nodes.get(&parent)?.children.as_ref()?.get(name).copied()
    }

    /// Returns the inode number that a lookup of a name would tell, as far as a listing says.
    pub(super) fn ino_of(&self, parent: NodeId, name: &OsStr, listed: Listed) -> u64 {
        let known = self.child(parent, name).and_then(|id| self.nodes.get(&id));
        if let Some(node) = known.filter(|node| node.may_be(listed)) {
            return node.ino;
        }
        let shown = match listed.object {
            ListedObject::Base { dev, ino } => {
                let key = Key::new(dev & !VIRTUAL, ino);
                let shared = self.shared.get(&key).and_then(|id| Some(self.nodes.get(id)?.ino));
                if let Some(ino) = shared.or_else(|| self.inherited.get(&key).copied()) {
                    return ino;
                }
                node_numbers::of_base(ino).filter(|id| !self.nodes.contains_key(id))
            }
            ListedObject::Virtual { number, .. } => {
                let id = node_numbers::of_virtual(number);
                // Once it is real its node is another object's.
                Some(id).filter(|id| self.nodes.get(id).is_none_or(|node| !node.is_real()))
            }
        };
        // Another object may have the number; then this one gets a new one when it is looked up.
        shown.unwrap_or(UNKNOWN).0
    }

    /// Returns all nodes below a directory, and itself.
    pub(super) fn below(&self, id: NodeId) -> Vec<NodeId> {
        let mut all = vec![id];
        let mut next = 0;
        while let Some(id) = all.get(next) {
            next += 1;
            let children = self.nodes.get(id).and_then(|node| node.children.as_ref());
            let children: Vec<_> = children.into_iter().flat_map(|names| names.values().copied()).collect();
            all.extend(children);
        }
        all
    }

    /// Returns the node that `path` leads to, if the kernel knows it.
    pub(super) fn at(&self, path: &RelPath) -> Option<NodeId> {
        match path.split_last() {
            None => Some(NodeId::ROOT),
            Some((dir, name)) => self.child(self.at(dir)?, name),
        }
    }

    /// Returns the directory of `path` and the name in it, if the kernel knows that directory.
    pub(super) fn place_of<'a>(&self, path: &'a RelPath) -> Option<(NodeId, &'a OsStr)> {
        let (dir, name) = path.split_last()?;
        Some((self.at(dir)?, name))
    }

    /// Returns the node of what was found under a name: the one it has, if it is still the same object.
    pub(super) fn node_for(&mut self, parent: NodeId, name: &OsStr, found: &Found) -> NodeId {
        let object = Key::of(found);
        let known = self.child(parent, name);
        if let Some(id) = known
            && self.is_still(id, object, found)
        {
            self.share(id, found);
            return id;
        }
        if known.is_some() {
            self.unname(parent, name);
        }
        let id = object.and_then(|object| self.shared.get(&object)).copied();
        let id = id.unwrap_or_else(|| {
            let id = self.numbers.of_found(found, |id| self.nodes.contains_key(&id));
            let ino = object.and_then(|object| self.inherited.get(&object)).copied().unwrap_or(id.0);
            self.nodes.insert(id, Node::new(found.kind(), ino, object));
            id
        });
        self.share(id, found);
        self.name(id, parent, name);
        id
    }

    fn is_still(&mut self, id: NodeId, object: Option<Key>, found: &Found) -> bool {
        let Some(node) = self.nodes.get_mut(&id) else { return false };
        if node.kind != found.kind() {
            return false;
        }
        if node.object == object {
            return true;
        }
        // Just now it is being made real: whoever does that sees to its handles.
        let becomes_real = self.materialising > 0
            && node.object.is_some_and(Key::is_virtual)
            && object.is_some_and(|object| !object.is_virtual());
        if becomes_real {
            self.reidentify(id, object);
        }
        becomes_real
    }

    /// Makes an object that has several names known by all of them.
    pub(super) fn share(&mut self, id: NodeId, found: &Found) {
        let several = match found {
            Found::Base(stat) => stat.nlink > 1,
            Found::Virtual(_, record) => {
                record.links() > 1 || matches!(&record.kind, RecordKind::File { link_to: Some(_), .. })
            }
        };
        if several && let Some(object) = self.nodes.get(&id).and_then(|node| node.object) {
            self.shared.entry(object).or_insert(id);
        }
    }

    /// Makes an object known by all of its names, now that it gets another.
    pub(super) fn share_always(&mut self, id: NodeId) {
        if let Some(object) = self.nodes.get(&id).and_then(|node| node.object) {
            self.shared.insert(object, id);
        }
    }

    /// Makes a node for a file that is open and has no name.
    pub(super) fn add_unnamed(&mut self, stat: &BaseStat) -> NodeId {
        let id = self.numbers.of_base(stat.identity.ino, |id| self.nodes.contains_key(&id));
        let object = Key::of_base(stat);
        self.nodes.insert(id, Node::new(stat.kind, id.0, object));
        if let Some(object) = object {
            self.shared.insert(object, id);
        }
        id
    }

    pub(super) fn name(&mut self, id: NodeId, parent: NodeId, name: &OsStr) {
        let name: Arc<OsStr> = name.into();
        if let Some(node) = self.nodes.get_mut(&id) {
            node.names.add(parent, Arc::clone(&name));
        }
        if let Some(dir) = self.nodes.get_mut(&parent) {
            dir.children.get_or_insert_default().insert(name, id);
        }
    }

    /// Takes a name off the node it leads to, and returns the node.
    pub(super) fn unname(&mut self, parent: NodeId, name: &OsStr) -> Option<NodeId> {
        let dir = self.nodes.get_mut(&parent)?;
        let id = dir.children.as_mut()?.remove(name)?;
        if dir.children.as_ref().is_some_and(|children| children.is_empty()) {
            dir.children = None;
        }
        let node = self.nodes.get_mut(&id)?;
        node.names.remove(parent, name);
        if node.names.first().is_none()
            && let Some(object) = node.object.take()
        {
            self.unshare(object, id);
        }
        Some(id)
    }

    /// Like [`unname`](Self::unname), of an object that is removed: whoever has it still sees `attr`.
    pub(super) fn removed(&mut self, parent: NodeId, name: &OsStr, attr: Option<Attr>) {
        let Some(id) = self.unname(parent, name) else { return };
        if let Some(node) = self.nodes.get_mut(&id)
            && node.names.first().is_none()
            && let Some(mut attr) = attr
        {
            attr.nlink = if attr.kind == FileKind::Dir { 0 } else { attr.nlink.saturating_sub(1) };
            attr.ino = node.ino;
            attr.node = id;
            node.handles().last = Some(attr);
        }
    }

    fn unshare(&mut self, object: Key, id: NodeId) {
        if self.shared.get(&object) == Some(&id) {
            self.shared.remove(&object);
        }
    }

    /// Notes that a node's object is another one now, under the same names.
    pub(super) fn reidentify(&mut self, id: NodeId, object: Option<Key>) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let old = std::mem::replace(&mut node.object, object);
        let several = matches!(&node.names, Names::Several(_));
        if let Some(old) = old {
            self.unshare(old, id);
        }
        if let Some(object) = object.filter(|_| several) {
            self.shared.insert(object, id);
        }
    }

    /// Gives a node that nobody is known to have open to the regular file that took the place of its own; returns
    /// whether that could be.
    pub(super) fn rebind(&mut self, id: NodeId, path: &RelPath, found: &Found) -> bool {
        let object = Key::of(found);
        let free = object.as_ref().is_some_and(|object| !self.shared.contains_key(object));
        let Some(node) = self.nodes.get(&id) else { return false };
        let can_be = free
            && found.kind() == FileKind::File
            && node.kind == FileKind::File
            && node.object != object
            && matches!(&node.names, Names::One(..))
            && (node.read || !node.is_open())
            && self.at(path) == Some(id);
        if can_be {
            self.reidentify(id, object);
            if let Some(node) = self.nodes.get_mut(&id) {
                // Where nobody knows whether it is open, it is as if it had been written to.
                node.handles = None;
                node.note(&found.attr(id));
            }
        }
        can_be
    }

    /// Gives all names of a node to a new one with the same inode number: the old one's handles cannot follow
    /// to the object that is there from now on.
    pub(super) fn split(&mut self, id: NodeId, attr: Attr, object: Option<Key>) -> NodeId {
        let Some(node) = self.nodes.get_mut(&id) else { return id };
        let (kind, ino) = (node.kind, node.ino);
        let names: Vec<_> = node.names().map(|(parent, name)| (parent, name.to_owned())).collect();
        let handles = node.handles();
        (handles.last, handles.successor) = (Some(attr), object);
        if let Some(object) = object {
            self.inherited.insert(object, ino);
        }
        let new = self.numbers.fresh();
        self.nodes.insert(new, Node::new(kind, ino, object));
        for (parent, name) in &names {
            self.unname(*parent, name);
            self.name(new, *parent, name);
        }
        if let Some(object) = object.filter(|_| names.len() > 1) {
            self.shared.insert(object, new);
        }
        new
    }

    pub(super) fn forget(&mut self, id: NodeId) {
        let Some(node) = self.nodes.get(&id) else { return };
        if id == NodeId::ROOT || node.children.is_some() {
            return;
        }
        let names: Vec<_> = node.names().map(|(parent, name)| (parent, name.to_owned())).collect();
        let object = node.object;
        if let Some(successor) = node.handles.as_ref().and_then(|handles| handles.successor) {
            self.inherited.remove(&successor);
        }
        for (parent, name) in names {
            self.unname(parent, &name);
        }
        if let Some(object) = object {
            self.unshare(object, id);
        }
        self.nodes.remove(&id);
    }

    /// Makes a handle of a real file that is open on a node.
    pub(super) fn opened(&mut self, id: NodeId, file: File) -> Result<Arc<dyn OpenFile>, FsError> {
        let file = Arc::new(file);
        let node = self.get_mut(id)?;
        // All handles of one node are the kernel's, or none is.
        let unbacked = node.has_following_handles();
        let handles = node.handles();
        handles.open.retain(|open| open.strong_count() > 0);
        handles.open.push(Arc::downgrade(&file));
        Ok(Arc::new(match unbacked {
            true => RealFile::unbacked(file, Arc::clone(&handles.following)),
            false => RealFile::new(file, Arc::new(())),
        }))
    }
}

impl Node {
    fn new(kind: FileKind, ino: u64, object: Option<Key>) -> Self {
        let (read, seen) = (false, Seen::default());
        Self { kind, read, seen, ino, object, names: Names::None, children: None, handles: None }
    }

    /// Notes that the kernel may have the content in its cache from now on, and the file open, without our knowledge.
    pub(super) fn set_read(&mut self) {
        self.read = true;
    }

    /// Returns whether somebody may have it open, as far as we know.
    pub(super) fn may_be_open(&self) -> bool {
        self.read || self.is_open()
    }

    /// Notes attributes after a change that the kernel knows of.
    pub(super) fn note(&mut self, attr: &Attr) {
        self.seen = Seen::of(attr);
    }

    /// Notes attributes that are about to be told, and returns whether the content may have changed although they do
    /// not say so.
    pub(super) fn sees(&mut self, attr: &Attr) -> bool {
        let (before, now) = (self.seen, Seen::of(attr));
        self.seen = now;
        self.read && before.content == now.content && before.change != now.change
    }

    pub(super) fn handles(&mut self) -> &mut Handles {
        self.handles.get_or_insert_default()
    }

    pub(super) fn names(&self) -> impl Iterator<Item = (NodeId, &OsStr)> {
        let (one, several) = match &self.names {
            Names::None => (None, &[][..]),
            Names::One(parent, name) => (Some((*parent, &**name)), &[][..]),
            Names::Several(names) => (None, &names[..]),
        };
        one.into_iter().chain(several.iter().map(|(parent, name)| (*parent, &**name)))
    }

    fn is_real(&self) -> bool {
        self.object.is_some_and(|object| !object.is_virtual())
    }

    /// Returns whether what a listing tells fits; directories are what their path says.
    fn may_be(&self, listed: Listed) -> bool {
        match (self.object, listed.object) {
            _ if self.kind != listed.kind => false,
            (None, _) => true,
            (Some(object), ListedObject::Base { ino, .. }) => !object.is_virtual() && object.1 == ino,
            (Some(object), ListedObject::Virtual { .. }) => object.is_virtual(),
        }
    }

    pub(super) fn has_names(&self) -> bool {
        self.names.first().is_some()
    }

    /// Notes that the node's virtual object is a real one now, with the same content.
    pub(super) fn became_real(&mut self, attr: &Attr) {
        self.note(attr);
        if let Some(handles) = &mut self.handles {
            handles.kept = None;
        }
    }

    /// Keeps what was there until the node is forgotten.
    pub(super) fn keep(&mut self, kept: Kept) {
        let handles = self.handles();
        if let Kept::Real(file) = &kept {
            handles.open.push(Arc::downgrade(file));
        }
        handles.kept = Some(kept);
    }

    /// Returns what was there, for those who may have it open without our knowledge.
    pub(super) fn kept(&self) -> Option<&Kept> {
        self.handles.as_ref()?.kept.as_ref()
    }

    /// Returns what the node was when it lost its last name, or its place.
    pub(super) fn last(&self) -> Option<Attr> {
        self.handles.as_ref()?.last
    }

    pub(super) fn is_open(&self) -> bool {
        self.has_fixed_handles() || self.has_following_handles() || self.open_file().is_some()
    }

    /// Returns whether handles of virtual content are open that stay with it.
    pub(super) fn has_fixed_handles(&self) -> bool {
        self.handles.as_ref().is_some_and(|handles| Arc::strong_count(&handles.fixed) > 1)
    }

    /// Returns whether handles of virtual content are open that follow it when it becomes real.
    pub(super) fn has_following_handles(&self) -> bool {
        self.handles.as_ref().is_some_and(|handles| Arc::strong_count(&handles.following) > 1)
    }

    /// Returns a handle of virtual content.
    pub(super) fn content(&self) -> Option<Arc<dyn OpenFile>> {
        self.handles.as_ref()?.content.as_ref()?.upgrade()
    }

    /// Returns the real file that handles of virtual content follow.
    pub(super) fn real_file(&self) -> Option<&File> {
        self.handles.as_ref()?.real.get()
    }

    /// Returns a real file that is open on the node.
    pub(super) fn open_file(&self) -> Option<Arc<File>> {
        self.handles.as_ref()?.open.iter().find_map(Weak::upgrade)
    }
}

impl Seen {
    fn of(attr: &Attr) -> Self {
        let digest = |parts: &[u64]| {
            let mut hasher = DefaultHasher::new();
            parts.hash(&mut hasher);
            u32::try_from(hasher.finish() >> 32).unwrap_or(u32::MAX)
        };
        let time = |time: Timestamp| [time.secs.cast_unsigned(), u64::from(time.nanos)];
        let ([seconds, nanoseconds], [changed, changed_ns]) = (time(attr.mtime), time(attr.ctime));
        Self {
            content: digest(&[attr.size_bytes, seconds, nanoseconds]),
            change: digest(&[changed, changed_ns]),
        }
    }
}

impl Names {
    fn first(&self) -> Option<(NodeId, &OsStr)> {
        match self {
            Self::None => None,
            Self::One(parent, name) => Some((*parent, name)),
            Self::Several(names) => names.first().map(|(parent, name)| (*parent, &**name)),
        }
    }

    fn add(&mut self, parent: NodeId, name: Arc<OsStr>) {
        *self = match std::mem::replace(self, Self::None) {
            Self::None => Self::One(parent, name),
            Self::One(first_parent, first) => Self::Several(vec![(first_parent, first), (parent, name)]),
            Self::Several(mut names) => {
                names.push((parent, name));
                Self::Several(names)
            }
        };
    }

    fn remove(&mut self, parent: NodeId, name: &OsStr) {
        let is_it = |at: NodeId, known: &OsStr| (at, known) == (parent, name);
        match self {
            Self::None => {}
            Self::One(at, known) => {
                if is_it(*at, known) {
                    *self = Self::None;
                }
            }
            Self::Several(names) => {
                names.retain(|(at, known)| !is_it(*at, known));
                if let [(at, known)] = &names[..] {
                    *self = Self::One(*at, Arc::clone(known));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_small() {
        assert!(size_of::<Node>() <= 96, "{}", size_of::<Node>());
    }
}
