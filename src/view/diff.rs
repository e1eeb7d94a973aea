//! What a task changed: the difference between the view at its end and the merged tree below.
//!
//! Not a log of events: a temporary file that is gone at the end never existed, a directory that was
//! published by renaming it counts as all it contains.

use std::collections::BTreeSet;
use std::ffi::OsString;

use super::node::{Body, Child, FileContent, OwnAttr};
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

/// What a task put at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NewObject {
    /// A directory; its contents are changes of their own.
    Dir(Meta),
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
    /// In a blob of the staging directory.
    Blob(u64),
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
        let mut changes = Vec::new();
        self.walk(state, NodeId::ROOT, RelPath::ROOT, &mut changes)?;
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
        let lower = dir.lower.clone();
        let children: Vec<_> = dir.children.iter().map(|(name, child)| (name.clone(), *child)).collect();
        let in_place = lower.as_deref() == Some(path);
        let mut names = BTreeSet::new();
        for (name, child) in children {
            let path = path.join(&name);
            match child {
                Child::Node(id) => self.walk_node(state, id, path, out)?,
                Child::Whiteout if in_place => out.push(Change { path, object: None }),
                Child::Whiteout => {}
            }
            names.insert(name);
        }
        if in_place {
            return Ok(());
        }
        if let Some(lower) = lower {
            let moved = self.tree.list(&lower, self.perspective())?;
            state.recording.list(&lower, &moved);
            for name in moved.keys().filter(|name| !names.contains(*name)) {
                self.walk_moved(state, &lower.join(name), path.join(name), out)?;
            }
            names.extend(moved.into_keys());
        }
        for replaced in self.tree.list(path, self.perspective())?.into_keys() {
            if !names.contains(&replaced) {
                out.push(Change { path: path.join(&replaced), object: None });
            }
        }
        Ok(())
    }

    fn walk_node(
        &self,
        state: &mut State,
        id: NodeId,
        path: RelPathBuf,
        out: &mut Vec<Change>,
    ) -> Result<(), FsError> {
        let attr = || self.attr_of(state, id).map(|attr| Meta::from(OwnAttr::of(&attr)));
        let body = &state.nodes.get(id)?.body;
        let in_place = body.lower() == Some(&path);
        let object = match body {
            Body::Dir(dir) => {
                if !in_place || dir.attr_changed {
                    let object = Some(NewObject::Dir(attr()?));
                    out.push(Change { path: path.clone(), object });
                }
                return self.walk(state, id, &path, out);
            }
            _ if in_place => return Ok(()),
            Body::File(FileContent::Blob { blob, .. }) => {
                NewObject::File(NewFile { content: Content::Blob(*blob), node: id })
            }
            Body::File(FileContent::Lower(lower)) => {
                let lower = lower.clone();
                return self.walk_moved(state, &lower, path, out);
            }
            Body::Symlink(symlink) => match (&symlink.own, symlink.lower.clone()) {
                (Some((target, own)), _) => {
                    NewObject::Symlink { target: target.clone(), meta: (*own).into() }
                }
                (None, Some(lower)) => return self.walk_moved(state, &lower, path, out),
                (None, None) => return Err(FsError::NotFound),
            },
            Body::Special(special) => {
                NewObject::Special { kind: special.kind, rdev: special.rdev, meta: attr()? }
            }
        };
        out.push(Change { path, object: Some(object) });
        Ok(())
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
                out.push(Change { path: path.clone(), object: Some(NewObject::Dir(meta)) });
                let names = self.tree.list(lower, self.perspective())?;
                state.recording.list(lower, &names);
                for name in names.keys() {
                    self.walk_moved(state, &lower.join(name), path.join(name), out)?;
                }
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
    fn record_content(&self, state: &mut State, lower: &RelPath, found: &Found) -> NodeId {
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
