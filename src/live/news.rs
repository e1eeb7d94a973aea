//! Finding out what those should hear who watch the live mount.
//!
//! Nothing of this is done before somebody is known to watch, and only for what they watch: the price of a hit
//! does not depend on it.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ffi::OsString;
use std::sync::Arc;

use super::Live;
use super::announcer::{Announcer, Expected};
use super::nodes::Nodes;
use crate::archive::RecordKind;
use crate::content::ContentHashes;
use crate::digest::Digest;
use crate::fs::{FileKind, FsError, NodeId};
use crate::path::{RelPath, RelPathBuf};
use crate::tree::{Found, Layer, Perspective, Tree};
use crate::watch::{HAPPENINGS_MAX, Happening, News, What};

/// Files of the base that are larger than this are taken for changed rather than read.
const COMPARED_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// What the live mount showed before a change, as far as anybody can be watching.
#[derive(Debug)]
pub struct Before {
    /// With the layers of then.
    tree: Tree,
    /// Paths of the base that are about to change, with what they showed.
    changing: BTreeMap<RelPathBuf, Option<Found>>,
}

/// A change of the live mount's tree.
pub(super) struct Change {
    live: Arc<Live>,
    announcer: Arc<Announcer>,
    hashes: Arc<ContentHashes>,
    before: Before,
}

/// A watched node.
struct Watched {
    id: NodeId,
    path: RelPathBuf,
    kind: FileKind,
}

impl Live {
    /// Returns what shows now, before layers or the paths `changing` of the base change.
    ///
    /// Only paths in directories that the kernel knows are looked at, and not too many: nobody can watch
    /// others.
    #[must_use]
    pub fn before<'a>(&self, changing: impl IntoIterator<Item = &'a RelPath>) -> Before {
        let tree = self.tree().as_it_is();
        let changing: Vec<_> = changing.into_iter().collect();
        let watchable: Vec<_> = {
            let nodes = &mut *self.lock();
            for path in &changing {
                self.keep_below(nodes, path);
            }
            let known = |path: &&RelPath| path.parent().is_some_and(|dir| nodes.at(dir).is_some());
            changing.into_iter().filter(known).take(HAPPENINGS_MAX).map(RelPath::to_owned).collect()
        };
        let changing = watchable.into_iter().map(|path| {
            let found = tree.find(&path, Perspective::ALL).ok().flatten();
            (path, found)
        });
        let changing = changing.collect();
        Before { tree, changing }
    }
}

impl Change {
    pub(super) fn new(
        live: Arc<Live>,
        announcer: Arc<Announcer>,
        hashes: Arc<ContentHashes>,
        before: Before,
    ) -> Self {
        Self { live, announcer, hashes, before }
    }

    /// Returns those nodes among the watched that may be concerned.
    fn concerned(&self, nodes: &Nodes, watched: &HashSet<u64>) -> Vec<Watched> {
        let changed = changed_layers(&self.before.tree.layers(), &self.live.tree().layers());
        let concerns = |path: &RelPath| {
            let near = |layer: &Arc<Layer>| {
                let prefix = layer.archive().toc().prefix();
                path.starts_with(prefix) || prefix.starts_with(path)
            };
            changed.iter().any(near)
                || self.before.changing.contains_key(path)
                || self.before.changing.keys().any(|changing| changing.parent() == Some(path))
        };
        let known = nodes.iter().filter(|(id, node)| watched.contains(&node.ino) || watched.contains(&id.0));
        let placed = known.filter_map(|(id, node)| Some((id, node, nodes.path(id).ok()?)));
        placed
            .filter(|(_, _, path)| concerns(path))
            .map(|(id, node, path)| Watched { id, path, kind: node.kind })
            .collect()
    }

    fn before(&self, path: &RelPath) -> Result<Option<Found>, FsError> {
        match self.before.changing.get(path) {
            Some(found) => Ok(found.clone()),
            None => Ok(self.before.tree.find(path, Perspective::ALL)?),
        }
    }

    fn names_before(&self, dir: &RelPath) -> Result<BTreeSet<OsString>, FsError> {
        let mut names: BTreeSet<_> = self.before.tree.list(dir, Perspective::ALL)?.into_keys().collect();
        for (path, found) in &self.before.changing {
            if let (Some(parent), Some(name)) = (path.parent(), path.name())
                && parent == dir
            {
                if found.is_some() {
                    names.insert(name.to_owned());
                } else {
                    names.remove(name);
                }
            }
        }
        Ok(names)
    }

    /// Notes what happened at `path`.
    fn compare(&self, path: &RelPath, heard: &mut Heard) -> Result<(), FsError> {
        let (before, after) = (self.before(path)?, self.live.find(path)?);
        match (before, after) {
            (None, None) => {}
            (Some(before), None) => heard.removed(path, before),
            (None, Some(after)) => heard.created(path, &after),
            (Some(before), Some(after)) => match self.difference(path, &before, &after)? {
                Difference::None => {}
                Difference::Changed(what) => heard.add(path, what),
                Difference::Replaced => {
                    heard.removed(path, before);
                    heard.created(path, &after);
                }
            },
        }
        Ok(())
    }

    fn difference(&self, path: &RelPath, before: &Found, after: &Found) -> Result<Difference, FsError> {
        let same_object = before.kind() == after.kind()
            && match before.kind() {
                FileKind::File if !self.same_content(path, before, after)? => {
                    let executable = after.attr(NodeId::ROOT).mode & 0o111 != 0;
                    return Ok(Difference::Changed(What::Written { executable }));
                }
                FileKind::File | FileKind::Dir => true,
                FileKind::Symlink => self.target(path, before)? == self.target(path, after)?,
                FileKind::Fifo | FileKind::Socket | FileKind::CharDevice | FileKind::BlockDevice => {
                    before.object_id() == after.object_id()
                }
            };
        let rights = |found: &Found| {
            let attr = found.attr(NodeId::ROOT);
            (attr.mode, attr.uid, attr.gid)
        };
        Ok(match same_object {
            false => Difference::Replaced,
            true if rights(before) != rights(after) => Difference::Changed(What::Attributes),
            true => Difference::None,
        })
    }

    fn same_content(&self, path: &RelPath, before: &Found, after: &Found) -> Result<bool, FsError> {
        if let (Found::Base(before), Found::Base(after)) = (before, after) {
            return Ok(before.identity == after.identity);
        }
        let size = |found: &Found| found.attr(NodeId::ROOT).size_bytes;
        if size(before) != size(after) {
            return Ok(false);
        }
        match (self.digest(path, before)?, self.digest(path, after)?) {
            (Some(before), Some(after)) => Ok(before == after),
            _ => Ok(false),
        }
    }

    /// Returns the hash of a file's content; `None` where that is not to be had, or not cheaply.
    fn digest(&self, path: &RelPath, found: &Found) -> Result<Option<Digest>, FsError> {
        match found {
            Found::Virtual(_, record) => Ok(match &record.kind {
                RecordKind::File { content, .. } => *content,
                _ => None,
            }),
            // A file that a commit replaced is not there any more.
            Found::Base(_) if self.before.changing.contains_key(path) => Ok(None),
            Found::Base(stat) if stat.identity.size_bytes > COMPARED_BYTES_MAX => Ok(None),
            Found::Base(stat) => Ok(self.hashes.of_file(self.live.tree().base(), path, stat).ok()),
        }
    }

    fn target(&self, path: &RelPath, found: &Found) -> Result<Option<OsString>, FsError> {
        match found {
            Found::Virtual(_, record) => Ok(match &record.kind {
                RecordKind::Symlink { target } => Some(target.clone()),
                _ => None,
            }),
            Found::Base(_) if self.before.changing.contains_key(path) => Ok(None),
            Found::Base(_) => Ok(self.live.tree().base().read_link(path).ok()),
        }
    }

    /// Compares what is watched, and what is in watched directories.
    fn listen(&self, watched: &[Watched]) -> Result<Heard, FsError> {
        let mut heard = Heard::default();
        for Watched { path, kind, .. } in watched {
            self.compare(path, &mut heard)?;
            if *kind != FileKind::Dir {
                continue;
            }
            let mut names = self.names_before(path)?;
            names.extend(self.live.tree().list(path, Perspective::ALL)?.into_keys());
            for name in names {
                if heard.count >= HAPPENINGS_MAX {
                    heard.add(path, What::Listing);
                    break;
                }
                self.compare(&path.join(&name), &mut heard)?;
            }
        }
        // What is gone is reached through directories that are gone.
        let gone: Vec<_> = heard.removed.keys().cloned().collect();
        for path in gone.iter().flat_map(|path| path.ancestors().skip(1)) {
            if !heard.removed.contains_key(path)
                && self.live.find(path)?.is_none()
                && let Some(before) = self.before(path)?
            {
                heard.removed(path, before);
            }
        }
        Ok(heard)
    }

    /// Lets those who watch a file by itself keep it, as if somebody had written to it.
    fn rebind(&self, watched: &[Watched]) {
        for watched in watched.iter().filter(|watched| watched.kind == FileKind::File) {
            let rebound = {
                let nodes = &mut *self.live.lock();
                let found = self.live.find(&watched.path).ok().flatten();
                found.is_some_and(|found| nodes.rebind(watched.id, &watched.path, &found))
            };
            if rebound && let Some(invalidator) = &self.live.invalidator {
                invalidator.node_changed(watched.id);
            }
        }
    }

    /// Prepares the tree for what is going to be done for show.
    fn expect(&self, heard: Heard) -> Vec<Happening> {
        let (mut happenings, mut expected) = (Vec::new(), Vec::new());
        let nodes = &mut *self.live.lock();
        // Deepest first, as a directory goes last.
        for (path, before) in heard.removed.iter().rev() {
            let Some((dir, name)) = nodes.place_of(path) else { continue };
            let known = nodes.child(dir, name);
            let node = known.unwrap_or_else(|| nodes.fresh());
            expected.push((dir, name.to_owned(), Expected::Removal(before.attr(node))));
            let what = What::Removed { dir: before.kind() == FileKind::Dir };
            happenings.push(Happening { path: path.clone(), what });
        }
        for (path, whats) in heard.changed {
            for what in whats {
                if let What::Created(_) = what {
                    let Some((dir, name)) = nodes.place_of(&path) else { continue };
                    expected.push((dir, name.to_owned(), Expected::Creation));
                }
                happenings.push(Happening { path: path.clone(), what });
            }
        }
        self.announcer.expect(expected);
        happenings
    }
}

impl News for Change {
    fn prepare(&self, watched: &HashSet<u64>) -> Vec<Happening> {
        let watched = self.concerned(&self.live.lock(), watched);
        match self.listen(&watched) {
            Ok(heard) => {
                self.rebind(&watched);
                self.expect(heard)
            }
            Err(error) => {
                tracing::warn!(%error, "watchers of the live mount are not told");
                Vec::new()
            }
        }
    }
}

enum Difference {
    None,
    Changed(What),
    /// By something else of that name.
    Replaced,
}

/// What is to be heard.
#[derive(Default)]
struct Heard {
    removed: BTreeMap<RelPathBuf, Found>,
    changed: BTreeMap<RelPathBuf, Vec<What>>,
    count: usize,
}

impl Heard {
    fn removed(&mut self, path: &RelPath, before: Found) {
        self.count += 1;
        self.removed.insert(path.to_owned(), before);
    }

    fn created(&mut self, path: &RelPath, after: &Found) {
        self.add(path, What::Created(after.kind()));
        if after.kind() == FileKind::File {
            // Whoever makes a file writes it, too.
            let executable = after.attr(NodeId::ROOT).mode & 0o111 != 0;
            self.add(path, What::Written { executable });
        }
    }

    fn add(&mut self, path: &RelPath, what: What) {
        let whats = self.changed.entry(path.to_owned()).or_default();
        // A watched file in a watched directory is looked at twice.
        if !whats.contains(&what) {
            self.count += 1;
            whats.push(what);
        }
    }
}

/// Returns the layers that only one of both trees has.
fn changed_layers(before: &[Arc<Layer>], after: &[Arc<Layer>]) -> Vec<Arc<Layer>> {
    let among =
        |layer: &Arc<Layer>, layers: &[Arc<Layer>]| layers.iter().any(|other| Arc::ptr_eq(layer, other));
    let gone = before.iter().filter(|layer| !among(layer, after));
    gone.chain(after.iter().filter(|layer| !among(layer, before))).cloned().collect()
}
