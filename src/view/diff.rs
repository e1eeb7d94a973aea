//! What a task changed: the difference between the view at its end and the merged tree below.
//!
//! Not a log of events: a temporary file that is gone at the end never existed, a directory that was
//! published by renaming it counts as all it contains.

use std::collections::{BTreeSet, HashSet};
use std::ffi::OsString;

use super::node::{Body, FileContent, OwnAttr, in_place};
use super::{State, View};
use crate::fs::{FileKind, FsError, NodeId, Timestamp};
use crate::path::{RelPath, RelPathBuf};
use crate::recording::ContentSeen;
use crate::tree::Found;

/// A path whose final state differs from the merged tree below.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The path.
    pub path: RelPathBuf,
    /// What is there now; `None` where it was deleted, with all below it.
    pub object: Option<NewObject>,
}

/// Names and values of extended attributes.
pub type Xattrs = Vec<(OsString, Vec<u8>)>;

/// What a task put at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NewObject {
    /// A directory; its contents are changes of their own. With its user attributes, where they may be others
    /// than those of a directory that is there.
    Dir(Meta, Option<Xattrs>),
    /// A regular file.
    File(NewFile),
    /// A symbolic link.
    Symlink {
        /// Where it points.
        target: OsString,
        /// Its attributes.
        meta: Meta,
    },
    /// A pipe, socket or device.
    Special {
        /// Which.
        kind: FileKind,
        /// Device number.
        rdev: u32,
        /// Its attributes.
        meta: Meta,
    },
}

impl NewObject {
    /// Returns what it is.
    #[must_use]
    pub fn kind(&self) -> FileKind {
        match self {
            Self::Dir(..) => FileKind::Dir,
            Self::File(_) => FileKind::File,
            Self::Symlink { .. } => FileKind::Symlink,
            Self::Special { kind, .. } => *kind,
        }
    }
}

/// A regular file that a task wrote, linked or moved. It has its attributes where it has its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewFile {
    /// Where the content is.
    pub content: Content,
    /// Equal for names of one file.
    pub node: NodeId,
}

/// Where the content of a [`NewFile`] is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// In a file below the staging directory.
    Blob {
        /// Where.
        path: RelPathBuf,
        /// Whether it may have extended attributes.
        xattrs: bool,
    },
    /// At a path of the merged tree below: the file was moved.
    Lower(RelPathBuf),
}

/// Attributes of an object other than a regular file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Meta {
    /// Permission bits, `0o7777`.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last modification.
    pub mtime: Timestamp,
}

impl View {
    /// Returns what the task changed, sorted by path, so that directories come before what is in them.
    ///
    /// Content of the lower side that was moved counts as read, and is recorded here.
    ///
    /// # Errors
    /// Where the lower side cannot be examined.
    pub fn changes(&self) -> Result<Vec<Change>, FsError> {
        let state = &mut *self.lock();
        self.settle(state)?;
        let mut changes = Vec::new();
        if state.nodes.dir(NodeId::ROOT)?.attr_changed {
            let dir = self.new_dir(state, NodeId::ROOT)?;
            changes.push(Change { path: RelPathBuf::root(), object: Some(dir) });
        }
        self.walk(state, NodeId::ROOT, RelPath::ROOT, &mut changes)?;
        self.add_hidden(&mut changes)?;
        changes.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        Ok(changes)
    }

    fn walk(
        &self,
        state: &mut State,
        id: NodeId,
        path: &RelPath,
        out: &mut Vec<Change>,
    ) -> Result<(), FsError> {
        let dir = state.nodes.dir(id)?;
        let children: Vec<_> =
            dir.children.iter().map(|(name, child)| ((**name).to_owned(), child.id())).collect();
        let lower = state.nodes.lower(id);
        let in_place = in_place(lower.as_ref(), path);
        let (mut names, mut deleted) = (BTreeSet::new(), BTreeSet::new());
        for (name, child) in children {
            let path = path.join(&name);
            match child {
                Some(child) => self.walk_node(state, (id, child), path, out)?,
                None if in_place => out.push(Change { path, object: None }),
                None => {
                    deleted.insert(name);
                    continue;
                }
            }
            names.insert(name);
        }
        if in_place {
            return Ok(());
        }
        if let Some(lower) = lower {
            let moved = self.tree.list(&lower, self.perspective())?;
            state.recording.list(&lower, &moved);
            for name in moved.into_keys().filter(|name| !deleted.contains(name)) {
                if names.insert(name.clone()) {
                    self.walk_moved(state, &lower.join(&name), path.join(&name), out)?;
                }
            }
        }
        self.walk_replaced(path, |name| names.contains(name), out)
    }

    /// Adds the deletion of what the lower side has in a directory that another one stands for now.
    fn walk_replaced(
        &self,
        path: &RelPath,
        stays: impl Fn(&OsString) -> bool,
        out: &mut Vec<Change>,
    ) -> Result<(), FsError> {
        let mut replaced: BTreeSet<_> = self.tree.list(path, self.perspective())?.into_keys().collect();
        if self.find_lower(path)?.is_none_or(|found| found.kind() != FileKind::Dir) {
            // The base may have a directory there that does not show: its contents must not show again.
            let hidden = self.tree.base().list(path)?.unwrap_or_default();
            replaced.extend(hidden.into_iter().map(|(name, _)| name));
        }
        let gone = replaced.into_iter().filter(|name| !stays(name));
        out.extend(gone.map(|name| Change { path: path.join(&name), object: None }));
        Ok(())
    }

    /// Adds the deletion of what the base has in a changed directory although a layer hides it: once the
    /// base has the last word on the directory, it would show again.
    fn add_hidden(&self, out: &mut Vec<Change>) -> Result<(), FsError> {
        if self.tree.layers().is_empty() {
            return Ok(());
        }
        let mut seen = HashSet::new();
        let mut hiding = Vec::new();
        for Change { path, object } in &*out {
            let itself = matches!(object, Some(NewObject::Dir(..))).then_some(&**path);
            for dir in itself.into_iter().chain(path.ancestors()) {
                if !seen.insert(dir) {
                    continue;
                }
                let is_dir = self.find_lower(dir)?.is_some_and(|found| found.kind() == FileKind::Dir);
                if is_dir && self.tree.replaces(dir)? {
                    hiding.push(dir.to_owned());
                }
            }
        }
        let mut known: HashSet<_> = out.iter().map(|change| change.path.clone()).collect();
        for dir in hiding {
            if known.insert(dir.clone()) {
                out.push(self.dir_as_it_shows(&dir)?);
            }
            self.add_hidden_below(&dir, &mut known, out)?;
        }
        Ok(())
    }

    fn dir_as_it_shows(&self, path: &RelPath) -> Result<Change, FsError> {
        let found = self.find_lower(path)?.ok_or(FsError::NotFound)?;
        let meta = OwnAttr::of(&found.attr(NodeId::ROOT)).into();
        Ok(Change {
            path: path.to_owned(),
            object: Some(NewObject::Dir(meta, self.some_lower_xattrs(path)?)),
        })
    }

    fn add_hidden_below(
        &self,
        dir: &RelPath,
        known: &mut HashSet<RelPathBuf>,
        out: &mut Vec<Change>,
    ) -> Result<(), FsError> {
        let shown = self.tree.list(dir, self.perspective())?;
        for (name, kind) in self.tree.base().list(dir)?.unwrap_or_default() {
            let path = dir.join(&name);
            let change = match shown.get(&name) {
                None => Change { path, object: None },
                Some(FileKind::Dir) if kind == FileKind::Dir => {
                    self.add_hidden_below(&path, known, out)?;
                    self.dir_as_it_shows(&path)?
                }
                // A layer's record hides it, and stays.
                Some(_) => continue,
            };
            if known.insert(change.path.clone()) {
                out.push(change);
            }
        }
        Ok(())
    }

    /// Adds what the name `path` of a node in a directory stands for, if that is a change.
    fn walk_node(
        &self,
        state: &mut State,
        (dir, id): (NodeId, NodeId),
        path: RelPathBuf,
        out: &mut Vec<Change>,
    ) -> Result<(), FsError> {
        let node = state.nodes.get(id)?;
        if let Body::File(FileContent::Blob(blob)) = &node.body {
            let xattrs = state.with_xattrs.contains(&blob.number);
            let content = Content::Blob { path: state.blob_path(blob.number), xattrs };
            out.push(Change { path, object: Some(NewObject::File(NewFile { content, node: id })) });
            return Ok(());
        }
        let is_lower = node.body.is_lower();
        // Each name of a file has a place of its own below.
        let lower = match path.name() {
            Some(name) if node.names.is_found(dir, name) => state.nodes.lower_child((dir, name))?,
            _ => state.nodes.lower(id),
        };
        let in_place = in_place(lower.as_ref(), &path);
        if state.nodes.dir(id).is_ok() {
            if !in_place || !is_lower {
                let dir = self.new_dir(state, id)?;
                out.push(Change { path: path.clone(), object: Some(dir) });
            }
            return self.walk(state, id, &path, out);
        }
        if is_lower || matches!(&node.body, Body::File(FileContent::Lower { .. })) {
            return match lower {
                Some(_) if in_place => Ok(()),
                Some(lower) => self.walk_moved(state, &lower, path, out),
                None => Err(FsError::NotFound),
            };
        }
        let own = OwnAttr::of(&self.attr_of(state, id)?);
        if in_place && own.commits_as(&self.lower_attr(state, id, None)?) {
            // Only another name of it was changed.
            return Ok(());
        }
        let meta = Meta::from(own);
        let object = match &state.nodes.get(id)?.body {
            Body::Symlink(symlink) => match &symlink.own {
                Some((target, _)) => NewObject::Symlink { target: target.clone(), meta },
                None => return Err(FsError::NotFound),
            },
            Body::Special(special) => NewObject::Special { kind: special.kind, rdev: special.rdev, meta },
            Body::File(_) | Body::Dir(_) | Body::Replaced(_) => return Err(FsError::NotFound),
        };
        out.push(Change { path, object: Some(object) });
        Ok(())
    }

    fn new_dir(&self, state: &mut State, id: NodeId) -> Result<NewObject, FsError> {
        let meta = OwnAttr::of(&self.attr_of(state, id)?).into();
        let xattrs = match (&state.nodes.dir(id)?.xattrs, state.nodes.lower(id)) {
            (Some(own), _) => Some(own.clone().into_iter().collect()),
            (None, Some(lower)) => self.some_lower_xattrs(&lower)?,
            (None, None) => None,
        };
        Ok(NewObject::Dir(meta, xattrs))
    }

    fn some_lower_xattrs(&self, lower: &RelPath) -> Result<Option<Xattrs>, FsError> {
        let xattrs = self.lower_xattrs(lower)?;
        Ok((!xattrs.is_empty()).then(|| xattrs.into_iter().collect()))
    }

    /// Adds an object of the lower side that now stands at `path`, with all below it.
    fn walk_moved(
        &self,
        state: &mut State,
        lower: &RelPath,
        path: RelPathBuf,
        out: &mut Vec<Change>,
    ) -> Result<(), FsError> {
        let Some(found) = self.find_lower(lower)? else { return Ok(()) };
        let attr = found.attr(NodeId::ROOT);
        let meta = Meta::from(OwnAttr::of(&attr));
        match found.kind() {
            FileKind::Dir => {
                let xattrs = self.some_lower_xattrs(lower)?;
                out.push(Change { path: path.clone(), object: Some(NewObject::Dir(meta, xattrs)) });
                let names = self.tree.list(lower, self.perspective())?;
                state.recording.list(lower, &names);
                for name in names.keys() {
                    self.walk_moved(state, &lower.join(name), path.join(name), out)?;
                }
                self.walk_replaced(&path, |name| names.contains_key(name), out)?;
            }
            FileKind::File => {
                let node = self.record_content(state, lower, &found);
                let file = NewFile { content: Content::Lower(lower.to_owned()), node };
                out.push(Change { path, object: Some(NewObject::File(file)) });
            }
            FileKind::Symlink => {
                let target = self.lower_target(lower)?;
                state.recording.link(lower, target.clone());
                out.push(Change { path, object: Some(NewObject::Symlink { target, meta }) });
            }
            kind => {
                state.recording.probe(lower, found.probe());
                let object = Some(NewObject::Special { kind, rdev: attr.rdev, meta });
                out.push(Change { path, object });
            }
        }
        Ok(())
    }

    /// Records that the content of a lower file counts, and returns what its names have in common.
    pub(super) fn record_content(&self, state: &mut State, lower: &RelPath, found: &Found) -> NodeId {
        let (content, node) = match found {
            Found::Base(stat) => (Some(ContentSeen::Real(stat.identity)), NodeId(stat.identity.ino)),
            Found::Virtual(_, record) => {
                let content = match &record.kind {
                    crate::archive::RecordKind::File { content, .. } => content.map(ContentSeen::Virtual),
                    _ => None,
                };
                (content, state.nodes.fresh_number())
            }
        };
        if let Some(content) = content {
            state.recording.read(lower, found.probe(), content);
        }
        node
    }
}

impl From<OwnAttr> for Meta {
    fn from(attr: OwnAttr) -> Self {
        Self { mode: attr.mode, uid: attr.uid, gid: attr.gid, mtime: attr.mtime }
    }
}
