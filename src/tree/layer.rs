//! A layer: the outputs of one cached run, attached to the tree and backed by its archive.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, PoisonError, RwLock};

use uuid::Uuid;

use crate::archive::{Archive, ArchiveError, Record, RecordKind};
use crate::base::BaseStat;
use crate::claim::Claimed;
use crate::filter::Filter;
use crate::fs::Timestamp;
use crate::index::TaskId;
use crate::path::{RelPath, RelPathBuf};
use crate::state::PathState;

/// The outputs of one cached run.
///
/// Paths that somebody wrote or removed since are *punched*: the base has the truth about them.
#[derive(Debug)]
pub struct Layer {
    owner: TaskId,
    task_name: String,
    entry: Uuid,
    archive_id: Uuid,
    archive: Arc<Archive>,
    /// Added to recorded modification times, in nanoseconds.
    shift_ns: i64,
    stale: Option<Stale>,
    /// With the state that the owner's run had found there. Innermost lock.
    punched: RwLock<BTreeMap<RelPathBuf, Option<PathState>>>,
    /// How many names of files with several are punched, by the first name. Innermost lock.
    unlinked: RwLock<HashMap<RelPathBuf, u32>>,
}

/// Outputs of an earlier run that lie in the base and that the layer's own outputs supersede.
#[derive(Debug)]
pub struct Stale {
    /// What the earlier run left.
    pub claimed: Arc<Claimed>,
    /// Which of it are outputs.
    pub outputs: Filter,
}

/// What a [`Layer`] is made of.
#[derive(Debug)]
pub struct LayerParts {
    /// Task whose outputs they are.
    pub owner: TaskId,
    /// Its name.
    pub task_name: String,
    /// Entry they belong to.
    pub entry: Uuid,
    /// Id of the archive.
    pub archive_id: Uuid,
    /// The archive.
    pub archive: Arc<Archive>,
    /// Added to recorded modification times, in nanoseconds.
    pub shift_ns: i64,
    /// What it hides of the base.
    pub stale: Option<Stale>,
    /// Paths that are punched already, with the state that the owner's run had found there.
    pub punched: BTreeMap<RelPathBuf, Option<PathState>>,
}

impl Layer {
    /// Puts a layer together.
    #[must_use]
    pub fn new(parts: LayerParts) -> Self {
        let LayerParts { owner, task_name, entry, archive_id, archive, shift_ns, stale, punched } = parts;
        let names: Vec<_> = punched.keys().cloned().collect();
        let (punched, unlinked) = (RwLock::new(punched), RwLock::default());
        let layer = Self { owner, task_name, entry, archive_id, archive, shift_ns, stale, punched, unlinked };
        for path in names {
            layer.unlink(&path);
        }
        layer
    }

    /// Returns the task whose outputs these are.
    #[must_use]
    pub fn owner(&self) -> &TaskId {
        &self.owner
    }

    /// Returns the task's name.
    #[must_use]
    pub fn task_name(&self) -> &str {
        &self.task_name
    }

    /// Returns the entry.
    #[must_use]
    pub fn entry(&self) -> Uuid {
        self.entry
    }

    /// Returns the archive's id.
    #[must_use]
    pub fn archive_id(&self) -> Uuid {
        self.archive_id
    }

    /// Returns the archive.
    #[must_use]
    pub fn archive(&self) -> &Arc<Archive> {
        &self.archive
    }

    /// Returns what is added to recorded modification times, in nanoseconds.
    #[must_use]
    pub fn shift_ns(&self) -> i64 {
        self.shift_ns
    }

    /// Returns what the layer hides of the base.
    #[must_use]
    pub fn stale(&self) -> Option<&Stale> {
        self.stale.as_ref()
    }

    /// Returns the modification time that a record's object shows.
    #[must_use]
    pub fn mtime(&self, record: &Record) -> Timestamp {
        record.mtime.shifted(self.shift_ns)
    }

    /// Takes `path` out of the layer; `before` is the state that the owner's run had found there.
    pub fn punch(&self, path: &RelPath, before: Option<PathState>) {
        let mut punched = self.punched.write().unwrap_or_else(PoisonError::into_inner);
        let is_new = punched.insert(path.to_owned(), before).is_none();
        drop(punched);
        if is_new {
            self.unlink(path);
        }
    }

    /// Counts a name less of a file with several.
    fn unlink(&self, path: &RelPath) {
        // A damaged archive is told of where it is read.
        let Ok(Some(record)) = self.record(path) else { return };
        if let Some(first) = first_name(&record) {
            let mut unlinked = self.unlinked.write().unwrap_or_else(PoisonError::into_inner);
            *unlinked.entry(first.to_owned()).or_default() += 1;
        }
    }

    /// Returns how many names a record's object has in this layer.
    #[must_use]
    pub fn links(&self, record: &Record) -> u32 {
        let Some(first) = first_name(record) else { return record.links() };
        let unlinked = self.unlinked.read().unwrap_or_else(PoisonError::into_inner);
        let gone = unlinked.get(first).copied().unwrap_or_default();
        record.links().saturating_sub(gone).max(1)
    }

    /// Returns the state before the owner's run of a path that was taken out.
    #[must_use]
    pub fn punched_before(&self, path: &RelPath) -> Option<Option<PathState>> {
        self.punched.read().unwrap_or_else(PoisonError::into_inner).get(path).cloned()
    }

    /// Returns whether `path` was taken out.
    #[must_use]
    pub fn is_punched(&self, path: &RelPath) -> bool {
        self.punched.read().unwrap_or_else(PoisonError::into_inner).contains_key(path)
    }

    /// Returns whether anything was taken out.
    #[must_use]
    pub fn has_punches(&self) -> bool {
        !self.punched.read().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// Returns the record of `path`, punched or not.
    ///
    /// # Errors
    /// Where the archive is damaged.
    pub fn record(&self, path: &RelPath) -> Result<Option<Record>, ArchiveError> {
        self.archive.toc().find(path)
    }

    /// Returns the record of `path`, unless it is punched.
    ///
    /// # Errors
    /// Where the archive is damaged.
    pub fn find(&self, path: &RelPath) -> Result<Option<Record>, ArchiveError> {
        if self.is_punched(path) {
            return Ok(None);
        }
        self.record(path)
    }

    /// Returns the records of a directory's children that are not punched.
    ///
    /// # Errors
    /// Where the archive is damaged.
    pub fn children(&self, dir: &RelPath) -> Result<Vec<Record>, ArchiveError> {
        let mut records = self.archive.toc().children(dir)?;
        if self.has_punches() {
            records.retain(|record| !self.is_punched(&record.path));
        }
        Ok(records)
    }

    /// Returns all records that are not punched.
    pub fn records(&self) -> impl Iterator<Item = Result<Record, ArchiveError>> + '_ {
        self.archive
            .toc()
            .iter()
            .filter(|record| !record.as_ref().is_ok_and(|record| self.is_punched(&record.path)))
    }

    /// Returns whether the layer holds or hides anything at or below `path`.
    pub(crate) fn speaks_below(&self, path: &RelPath) -> Result<bool, ArchiveError> {
        for record in self.archive.toc().subtree(path) {
            if !self.is_punched(&record?.path) {
                return Ok(true);
            }
        }
        let hidden = self.stale.as_ref().and_then(|stale| stale.claimed.manifest().subtree(path).next());
        Ok(hidden.transpose()?.is_some())
    }

    /// Returns whether nothing of what is older shows at and below `path`, unless it is a directory that
    /// the layer makes anew there.
    pub(crate) fn replaces(&self, path: &RelPath) -> Result<bool, ArchiveError> {
        match self.find(path)? {
            Some(record) => Ok(!record.is_dir()),
            None => self.covers(path),
        }
    }

    /// Returns whether the layer has a deletion, or anything else but a directory, above `path`.
    pub(super) fn covers(&self, path: &RelPath) -> Result<bool, ArchiveError> {
        let toc = self.archive.toc();
        if !path.starts_with(toc.prefix()) {
            return Ok(false);
        }
        let mut ancestors: Vec<_> = path.ancestors().filter(|ancestor| !ancestor.is_root()).collect();
        if toc.totals().whiteouts == 0 {
            // Only a deletion lacks records of the directories above it.
            ancestors.reverse();
            for ancestor in ancestors {
                match self.record(ancestor)? {
                    None => return Ok(false),
                    Some(record) if record.is_dir() || self.is_punched(ancestor) => {}
                    Some(_) => return Ok(true),
                }
            }
            return Ok(false);
        }
        for ancestor in ancestors {
            if let Some(record) = self.find(ancestor)? {
                return Ok(!record.is_dir());
            }
        }
        Ok(false)
    }
}

/// Returns the first name of a file that has several.
fn first_name(record: &Record) -> Option<&RelPath> {
    match &record.kind {
        RecordKind::File { link_to: Some(first), .. } => Some(first),
        RecordKind::File { .. } if record.links() > 1 => Some(&record.path),
        _ => None,
    }
}

impl Stale {
    /// Returns whether the earlier run created what the base has at `path`, and nobody changed it since.
    pub(crate) fn created(&self, path: &RelPath, stat: &BaseStat) -> Result<bool, ArchiveError> {
        Ok(self.outputs.selects_output(path)
            && self.claimed.owned(path, stat)?.is_some_and(|owned| owned.before.is_none()))
    }
}
