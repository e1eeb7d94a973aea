//! The merged tree: the base with the layers attached to it, as the live mount and every view see it
//! before anybody's own writes.
//!
//! A path is looked up in the layers, newest first, then in the base. A layer says of a path that
//! something is there (a record), that nothing is (a deletion), or nothing at all. Directories merge.
//! Beside its records a layer may hide *stale* files of the base: outputs of an earlier run of the same
//! task that its present outputs no longer hold.

pub mod layer;

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, PoisonError, RwLock};

use thiserror::Error;

pub use self::layer::{Layer, Stale};
use crate::archive::{ArchiveError, Record, RecordKind};
use crate::base::{Base, BaseEntry, BaseStat, Nearby};
use crate::fs::{Attr, Holds, NodeId};
use crate::index::TaskId;
use crate::path::{RelPath, RelPathBuf};
use crate::state::{FileKind, PathState};

/// The base with its layers.
#[derive(Debug)]
pub struct Tree {
    base: Arc<Base>,
    /// Newest first. Replaced as a whole, so that a lookup sees all of a task's old outputs or all of
    /// its new ones. Innermost lock: nothing else is locked while it is held.
    layers: RwLock<Arc<[Arc<Layer>]>>,
}

/// Whose eyes a tree is seen with.
#[derive(Debug, Clone, Copy, Default)]
pub struct Perspective<'a> {
    /// Leave out the layer of this task, with its deletions and its hiding of stale files.
    pub without: Option<&'a TaskId>,
    /// Leave out these files of the base.
    pub stale: Option<&'a Stale>,
}

impl Perspective<'_> {
    /// Sees everything.
    pub const ALL: Self = Self { without: None, stale: None };
}

/// What the merged tree has at a path.
#[derive(Debug, Clone)]
pub enum Found {
    /// An object of the base.
    Base(BaseStat),
    /// A virtual object, served from a layer's archive.
    Virtual(Arc<Layer>, Record),
}

/// What a listing tells of a name.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Listed {
    pub(crate) kind: FileKind,
    pub(crate) object: ListedObject,
}

/// What a listing tells of which object it is.
#[derive(Debug, Clone, Copy)]
pub(crate) enum ListedObject {
    /// An object of the base; at a mount point the number is that of the directory below.
    Base { dev: u64, ino: u64 },
    /// An object of an archive, by [`virtual_number`].
    Virtual { number: u64, implied: bool },
}

/// What tells that two names are one object.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ObjectId {
    /// A file of the base.
    Base {
        /// Device number.
        dev: u64,
        /// Inode number.
        ino: u64,
    },
    /// A file of an archive.
    Virtual {
        /// The archive.
        archive: uuid::Uuid,
        /// The name that carries the content.
        first_name: RelPathBuf,
    },
}

/// Why the merged tree could not be read.
#[derive(Debug, Error)]
pub enum TreeError {
    /// The base.
    #[error("cannot examine {path:?}")]
    Base {
        /// The path.
        path: RelPathBuf,
        /// The operating system's answer.
        source: std::io::Error,
    },
    /// An archive.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
}

impl TreeError {
    /// Names the path of a failed call on the base.
    pub(crate) fn base(path: &RelPath) -> impl FnOnce(rustix::io::Errno) -> Self {
        move |errno| Self::Base { path: path.to_owned(), source: errno.into() }
    }
}

impl From<TreeError> for crate::fs::FsError {
    fn from(error: TreeError) -> Self {
        match error {
            TreeError::Base { source, .. } => source
                .raw_os_error()
                .map_or(Self::Os(source), |raw| rustix::io::Errno::from_raw_os_error(raw).into()),
            TreeError::Archive(error) => error.into(),
        }
    }
}

impl Tree {
    /// Returns a tree of the base alone.
    #[must_use]
    pub fn new(base: Arc<Base>) -> Self {
        Self { base, layers: RwLock::new(Arc::from([])) }
    }

    /// Returns a tree of the same base that keeps the layers of this moment.
    #[must_use]
    pub fn as_it_is(&self) -> Self {
        Self { base: Arc::clone(&self.base), layers: RwLock::new(self.layers()) }
    }

    /// Returns the base.
    #[must_use]
    pub fn base(&self) -> &Arc<Base> {
        &self.base
    }

    /// Returns the layers, newest first.
    #[must_use]
    pub fn layers(&self) -> Arc<[Arc<Layer>]> {
        Arc::clone(&self.layers.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Returns the layer of `owner`.
    #[must_use]
    pub fn layer_of(&self, owner: &TaskId) -> Option<Arc<Layer>> {
        self.layers().iter().find(|layer| layer.owner() == owner).cloned()
    }

    /// Attaches `layer` on top, in place of an earlier one of the same task, which is returned.
    pub fn attach(&self, layer: Arc<Layer>) -> Option<Arc<Layer>> {
        self.replace(*layer.owner(), Some(layer))
    }

    /// Detaches the layer of `owner` and returns it.
    pub fn detach(&self, owner: &TaskId) -> Option<Arc<Layer>> {
        self.replace(*owner, None)
    }

    fn replace(&self, owner: TaskId, new: Option<Arc<Layer>>) -> Option<Arc<Layer>> {
        let mut layers = self.layers.write().unwrap_or_else(PoisonError::into_inner);
        let old = layers.iter().find(|layer| *layer.owner() == owner).cloned();
        if old.is_none() && new.is_none() {
            // The list stays the same one, by which others tell that nothing changed.
            return None;
        }
        *layers =
            new.into_iter().chain(layers.iter().filter(|layer| *layer.owner() != owner).cloned()).collect();
        old
    }

    /// Returns what is at `path`, or `None` where nothing is.
    ///
    /// # Errors
    /// [`TreeError`].
    pub fn find(&self, path: &RelPath, seen: Perspective<'_>) -> Result<Option<Found>, TreeError> {
        self.find_near(path, seen, &mut Nearby::new(&self.base))
    }

    /// Returns whether nothing but the base shows, as it is.
    #[must_use]
    pub fn is_only_base(&self, seen: Perspective<'_>) -> bool {
        seen.stale.is_none() && visible(&self.layers(), seen).next().is_none()
    }

    /// As [`find`](Self::find), for many paths of few directories.
    ///
    /// # Errors
    /// [`TreeError`].
    pub fn find_near(
        &self,
        path: &RelPath,
        seen: Perspective<'_>,
        near: &mut Nearby<'_>,
    ) -> Result<Option<Found>, TreeError> {
        if path.is_root() {
            let stat = self.base.stat(path).map_err(TreeError::base(path))?;
            return Ok(stat.map(Found::Base));
        }
        if self.base.hides(path) {
            return Ok(None);
        }
        let layers = self.layers();
        let mut implied = None;
        for layer in visible(&layers, seen) {
            match layer.find(path)? {
                None => {
                    if layer.covers(path)? {
                        return Ok(implied);
                    }
                }
                Some(Record { kind: RecordKind::Absent, .. }) => return Ok(implied),
                // Below it may be a real directory, whose attributes count.
                Some(record @ Record { kind: RecordKind::ImpliedDir, .. }) => {
                    implied.get_or_insert_with(|| Found::Virtual(Arc::clone(layer), record));
                }
                Some(record) => {
                    let found = Found::Virtual(Arc::clone(layer), record);
                    // A newer layer's output may need a directory where an older one has none.
                    return Ok(implied.filter(|_| found.kind() != FileKind::Dir).or(Some(found)));
                }
            }
        }
        let Some(stat) = near.stat(path).map_err(TreeError::base(path))? else {
            return Ok(implied);
        };
        if self.is_stale(&layers, path, &stat, seen)? {
            return Ok(implied);
        }
        Ok(match implied {
            // A layer's output needs a directory where the base has none.
            Some(_) if stat.kind != FileKind::Dir => implied,
            _ => Some(Found::Base(stat)),
        })
    }

    /// Returns sorted names and kinds in a directory. What is no directory lists as empty.
    ///
    /// # Errors
    /// [`TreeError`].
    pub fn list(
        &self,
        dir: &RelPath,
        seen: Perspective<'_>,
    ) -> Result<BTreeMap<OsString, FileKind>, TreeError> {
        let entries = self.entries(dir, seen)?;
        Ok(entries.into_iter().map(|(name, listed)| (name, listed.kind)).collect())
    }

    /// As [`list`](Self::list), with the inode numbers that the base tells with the names.
    ///
    /// # Errors
    /// [`TreeError`].
    pub(crate) fn entries(
        &self,
        dir: &RelPath,
        seen: Perspective<'_>,
    ) -> Result<BTreeMap<OsString, Listed>, TreeError> {
        let layers = self.layers();
        let mut names = BTreeMap::new();
        let any_stale = seen.stale.is_some() || visible(&layers, seen).any(|layer| layer.stale().is_some());
        for BaseEntry { name, kind, dev, ino } in self.base.entries(dir).map_err(TreeError::base(dir))? {
            if any_stale {
                let path = dir.join(&name);
                match self.base.stat(&path).map_err(TreeError::base(&path))? {
                    Some(stat) if !self.is_stale(&layers, &path, &stat, seen)? => {}
                    // Stale, or gone meanwhile.
                    _ => continue,
                }
            }
            names.insert(name, Listed { kind, object: ListedObject::Base { dev, ino } });
        }
        for layer in visible(&layers, seen).rev() {
            if layer.replaces(dir)? {
                names.clear();
            }
            for record in layer.children(dir)? {
                let Some(name) = record.path.name().map(OsStr::to_owned) else { continue };
                let implied = matches!(record.kind, RecordKind::ImpliedDir);
                match record_kind(&record.kind) {
                    None => {
                        names.remove(&name);
                    }
                    // An older directory shows, as it does in `find`.
                    Some(_) if implied && names.get(&name).is_some_and(Listed::is_dir) => {}
                    Some(kind) => {
                        let number = virtual_number(layer, &record);
                        names
                            .insert(name, Listed { kind, object: ListedObject::Virtual { number, implied } });
                    }
                }
            }
        }
        Ok(names)
    }

    /// Returns whether some layer has a deletion, or anything else but a directory, at or above `path`, so
    /// that nothing older shows there.
    ///
    /// # Errors
    /// [`TreeError`].
    pub(crate) fn replaces(&self, path: &RelPath) -> Result<bool, TreeError> {
        for layer in self.layers().iter() {
            if layer.replaces(path)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Returns whether what the base has at `path` is left by an earlier run and superseded.
    fn is_stale(
        &self,
        layers: &[Arc<Layer>],
        path: &RelPath,
        stat: &BaseStat,
        seen: Perspective<'_>,
    ) -> Result<bool, TreeError> {
        let mut stale = match seen.stale {
            Some(earlier) => earlier.created(path, stat)?,
            None => false,
        };
        for layer in visible(layers, seen) {
            if stale {
                break;
            }
            if let Some(earlier) = layer.stale() {
                stale = layer.record(path)?.is_none() && earlier.created(path, stat)?;
            }
        }
        // A directory of the earlier run goes with the last file in it.
        Ok(stale && (stat.kind != FileKind::Dir || self.list(path, seen)?.is_empty()))
    }
}

fn visible<'a>(
    layers: &'a [Arc<Layer>],
    seen: Perspective<'a>,
) -> impl DoubleEndedIterator<Item = &'a Arc<Layer>> {
    layers.iter().filter(move |layer| seen.without != Some(layer.owner()))
}

impl Listed {
    /// Returns whether it is a directory for its own sake.
    fn is_dir(&self) -> bool {
        let implied = matches!(self.object, ListedObject::Virtual { implied: true, .. });
        self.kind == FileKind::Dir && !implied
    }
}

impl From<Listed> for FileKind {
    fn from(listed: Listed) -> Self {
        listed.kind
    }
}

impl Found {
    /// Returns the kind of object.
    #[must_use]
    pub fn kind(&self) -> FileKind {
        match self {
            Self::Base(stat) => stat.kind,
            // `Tree::find` never returns a deletion.
            Self::Virtual(_, record) => record_kind(&record.kind).unwrap_or(FileKind::Dir),
        }
    }

    /// Returns the state that a probe sees.
    #[must_use]
    pub fn probe(&self) -> PathState {
        match self {
            Self::Base(stat) => stat.probe(),
            Self::Virtual(_, record) => record_probe(record),
        }
    }

    /// Returns which object it is; `None` for directories, which are what their path says.
    #[must_use]
    pub fn object_id(&self) -> Option<ObjectId> {
        match self {
            Self::Base(stat) if stat.kind == FileKind::Dir => None,
            Self::Base(stat) => Some(ObjectId::Base { dev: stat.identity.dev, ino: stat.identity.ino }),
            Self::Virtual(layer, record) => match &record.kind {
                RecordKind::File { link_to, .. } => Some(ObjectId::Virtual {
                    archive: layer.archive_id(),
                    first_name: link_to.clone().unwrap_or_else(|| record.path.clone()),
                }),
                RecordKind::Symlink { .. } => {
                    Some(ObjectId::Virtual { archive: layer.archive_id(), first_name: record.path.clone() })
                }
                RecordKind::Dir | RecordKind::ImpliedDir | RecordKind::Absent => None,
            },
        }
    }

    /// Returns the attributes under the identity `node`.
    #[must_use]
    pub fn attr(&self, node: NodeId) -> Attr {
        match self {
            Self::Base(stat) => stat.attr(node),
            Self::Virtual(layer, record) => virtual_attr(node, layer, record),
        }
    }
}

/// Returns a number that stands for a record's object as long as this process lives: names of one file have the same,
/// different objects, but for bad luck, different ones.
pub(crate) fn virtual_number(layer: &Layer, record: &Record) -> u64 {
    let first_name = match &record.kind {
        RecordKind::File { link_to: Some(first_name), .. } => first_name,
        _ => &record.path,
    };
    let mut hasher = DefaultHasher::new();
    (layer.archive_id(), first_name.as_bytes()).hash(&mut hasher);
    hasher.finish()
}

/// Returns the kind of a record's object; `None` for a deletion.
#[must_use]
pub fn record_kind(kind: &RecordKind) -> Option<FileKind> {
    match kind {
        RecordKind::File { .. } => Some(FileKind::File),
        RecordKind::Dir | RecordKind::ImpliedDir => Some(FileKind::Dir),
        RecordKind::Symlink { .. } => Some(FileKind::Symlink),
        RecordKind::Absent => None,
    }
}

/// Returns the state that a probe of a record's object sees.
#[must_use]
pub fn record_probe(record: &Record) -> PathState {
    match &record.kind {
        RecordKind::File { size_bytes, .. } => {
            PathState::File { executable: record.mode & 0o111 != 0, size_bytes: *size_bytes, content: None }
        }
        RecordKind::Dir | RecordKind::ImpliedDir => PathState::Dir { listing: None },
        RecordKind::Symlink { .. } => PathState::Symlink { target: None },
        RecordKind::Absent => PathState::Absent,
    }
}

fn virtual_attr(node: NodeId, layer: &Layer, record: &Record) -> Attr {
    let mtime = layer.mtime(record);
    let size_bytes = match &record.kind {
        RecordKind::File { size_bytes, .. } => *size_bytes,
        RecordKind::Symlink { target } => target.len() as u64,
        RecordKind::Dir | RecordKind::ImpliedDir | RecordKind::Absent => 4096,
    };
    Attr {
        node,
        ino: node.0,
        kind: record_kind(&record.kind).unwrap_or(FileKind::Dir),
        mode: record.mode,
        nlink: layer.links(record),
        uid: record.uid,
        gid: record.gid,
        rdev: 0,
        size_bytes,
        blocks: record.allocated_bytes().div_ceil(512),
        block_size_bytes: 4096,
        atime: mtime,
        mtime,
        ctime: mtime,
        // Those of a directory depend on what else is in it.
        holds: if record.is_dir() { Holds::Nothing } else { Holds::Attributes },
    }
}
