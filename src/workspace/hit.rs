//! Putting a cached run's outputs in place.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::lookup::{Asked, Match};
use super::restore::Target;
use super::{ProgressSink, Workspace, WorkspaceError, chain, lock};
use crate::archive::{Archive, ArchiveError, RecordKind};
use crate::fs::{FsError, Timestamp};
use crate::index::{Entry, IndexError, NewLayer};
use crate::path::{RelPath, Topmost};
use crate::report::{Chunk, Difference, HitReport, MissReason, Stage};
use crate::task::MtimePolicy;
use crate::tree::Layer;
use crate::tree::layer::LayerParts;

/// Touched paths that are compared with an entry's outputs one by one; more count as a change.
const COMPARED_MAX: usize = 1_000;

impl Workspace {
    /// Puts the outputs of a matching entry in place and returns what to report and replay; `Err` says why
    /// it is a miss after all. The caller holds `committing`.
    pub(super) fn apply_hit(
        &self,
        asked: &Asked,
        found: &Match,
        progress: ProgressSink<'_>,
    ) -> Result<Result<(HitReport, Vec<Chunk>), MissReason>, WorkspaceError> {
        let entry = &found.entry;
        let bad_archive = |problem| MissReason::BadArchive {
            archive: entry.archive.map(|id| self.store.archive_path(id)).unwrap_or_default(),
            problem,
        };
        let Some(terminal) = self.index.terminal(entry.id)? else {
            return Ok(Err(bad_archive("another process removed it".into())));
        };
        let Ok(terminal) = postcard::from_bytes::<Vec<Chunk>>(&terminal) else {
            self.drop_entry(entry.id);
            return Ok(Err(bad_archive("the recorded terminal output is damaged".into())));
        };
        if let Some(path) = self.unrestorable(asked, found)? {
            return Ok(Err(MissReason::Changed(vec![Difference::Modified(path)])));
        }
        let mounted = lock(&self.mounted).is_some();
        if mounted && self.has_unfinished() {
            return Ok(Err(MissReason::Storage("the index cannot be written".into())));
        }
        let placed = match &found.archive {
            None => self.place_nothing(asked),
            Some(archive) if mounted => self.place_layer(asked, entry, archive),
            Some(archive) => self.place_files(asked, entry, archive, progress),
        };
        let in_place = match placed {
            Ok(in_place) => in_place,
            Err(error) if is_bad_archive(&error) => {
                self.drop_entry(entry.id);
                return Ok(Err(bad_archive(chain(&error))));
            }
            Err(error) => return Err(error),
        };
        self.note_in_place(asked.owner, Some(entry.id));
        self.note_hit(asked, found);
        let report = HitReport {
            entry: entry.id,
            archive: entry.archive.map(|id| self.store.archive_path(id)),
            inputs: found.inputs,
            outputs: entry.outputs,
            output_bytes: entry.output_bytes,
            recorded_ms: entry.recorded_ms,
            in_place,
            lazy: mounted && found.archive.is_some(),
        };
        Ok(Ok((report, terminal)))
    }

    /// Returns a path that the task's last run changed, that the entry does not put back, and whose
    /// content from before is nowhere to be had.
    fn unrestorable(
        &self,
        asked: &Asked,
        found: &Match,
    ) -> Result<Option<crate::path::RelPathBuf>, WorkspaceError> {
        let Some(claimed) = &asked.claimed else { return Ok(None) };
        if asked.claim.as_ref().is_some_and(|claim| claim.entry == Some(found.entry.id)) {
            return Ok(None);
        }
        for record in claimed.manifest().iter() {
            let record = record?;
            if record.before.is_none() || !asked.output.selects_output(&record.path) {
                continue;
            }
            if let Some(archive) = &found.archive
                && archive.toc().find(&record.path)?.is_some()
            {
                continue;
            }
            let still = match self.tree.base().stat(&record.path).map_err(FsError::from)? {
                Some(stat) => claimed.owned(&record.path, &stat)?.is_some(),
                None => matches!(record.kind, RecordKind::Absent),
            };
            if still && !matches!(record.kind, RecordKind::Dir) {
                return Ok(Some(record.path));
            }
        }
        Ok(None)
    }

    /// A hit without outputs: takes away what earlier runs left of outputs; returns whether there was none.
    fn place_nothing(&self, asked: &Asked) -> Result<bool, WorkspaceError> {
        let stale = match &asked.claimed {
            Some(claimed) => self.stale_paths(claimed, None, &asked.output)?,
            None => Vec::new(),
        };
        let before = self.before(stale.iter().map(|path| &**path));
        let removed = self.remove_stale(&stale);
        let topmost = Topmost::of(stale.iter().map(|path| &**path));
        for path in topmost.iter() {
            self.touched.touch(path, Some(&asked.owner));
        }
        removed?;
        self.invalidate(|path| topmost.covers(path));
        let freed = self.index.remove_layer(self.id, asked.owner)?;
        self.keep_shown(&self.tree.layer_of(&asked.owner).iter().collect::<Vec<_>>());
        let layer = self.tree.detach(&asked.owner);
        self.remove_archives(&freed);
        if let Some(layer) = &layer {
            self.prefetcher.note(layer);
            self.invalidate_layers(&[layer]);
        }
        let in_place = stale.is_empty() && layer.is_none();
        self.tell_watchers(before.filter(|_| !in_place));
        Ok(in_place)
    }

    /// A hit under a live mount: attaches a layer; returns whether everything was in place already.
    fn place_layer(
        &self,
        asked: &Asked,
        entry: &Entry,
        archive: &Arc<Archive>,
    ) -> Result<bool, WorkspaceError> {
        if self.is_in_place(asked, entry, archive)? {
            return Ok(true);
        }
        let Some(archive_id) = entry.archive else { return Ok(true) };
        let attached = self.index.set_layer(NewLayer {
            workspace: self.id,
            owner: asked.owner,
            task_name: asked.spec.name.clone(),
            entry: entry.id,
            archive: archive_id,
            shift_ns: self.shift(asked, entry),
        });
        let (row, freed) = match attached {
            Err(IndexError::ArchiveGone { .. }) => {
                let path = self.store.archive_path(archive_id);
                return Err(ArchiveError::NotAnArchive { path, problem: "it was removed".into() }.into());
            }
            other => other?,
        };
        let stale = asked.earlier().stale;
        let layer = Arc::new(Layer::new(LayerParts {
            owner: asked.owner,
            task_name: asked.spec.name.clone(),
            entry: entry.id,
            archive_id,
            archive: Arc::clone(archive),
            shift_ns: row.layer.shift_ns,
            stale,
            punched: BTreeMap::new(),
        }));
        let before = self.before([]);
        let replaced = self.tree.layer_of(&asked.owner);
        self.keep_shown(&replaced.iter().chain([&layer]).collect::<Vec<_>>());
        let old = self.tree.attach(Arc::clone(&layer));
        self.remove_archives(&freed);
        match old {
            Some(old) => {
                self.prefetcher.note(&old);
                self.invalidate_layers(&[&layer, &old]);
                lock(&self.retired).push(old);
            }
            None => self.invalidate_layers(&[&layer]),
        }
        self.prefetcher.prefetch(&layer);
        self.tell_watchers(before);
        Ok(false)
    }

    /// Returns whether the live mount shows just this entry's outputs, without looking at each.
    fn is_in_place(&self, asked: &Asked, entry: &Entry, archive: &Archive) -> Result<bool, WorkspaceError> {
        if self
            .tree
            .layers()
            .first()
            .is_some_and(|top| *top.owner() == asked.owner && top.entry() == entry.id && !top.has_punches())
        {
            return Ok(true);
        }
        let known =
            lock(&self.in_place).get(&asked.owner).is_some_and(|in_place| in_place.entry == Some(entry.id));
        let Some(touched) = self.touched_since_in_place(&asked.owner).filter(|_| known) else {
            return Ok(false);
        };
        let Some(paths) = touched.paths(COMPARED_MAX) else { return Ok(false) };
        for path in paths {
            if archive.toc().find(&path)?.is_some() {
                return Ok(false);
            }
            for ancestor in path.ancestors().filter(|ancestor| !ancestor.is_root()) {
                if archive.toc().find(ancestor)?.is_some_and(|record| !record.is_dir()) {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// A hit without a mount: writes the outputs out; returns whether everything was in place already.
    fn place_files(
        &self,
        asked: &Asked,
        entry: &Entry,
        archive: &Archive,
        progress: ProgressSink<'_>,
    ) -> Result<bool, WorkspaceError> {
        let target = Target {
            owner: asked.owner,
            task_name: &asked.spec.name,
            entry: entry.id,
            archive,
            shift_ns: self.shift(asked, entry),
            outputs: &asked.output,
            punched: &|_: &RelPath| None,
            stage: Stage::Restoring,
        };
        let restored = self.restore(&target, asked.claim.as_ref(), asked.claimed.clone(), progress)?;
        Ok(!restored.changed)
    }

    /// Returns what to add to recorded modification times: what was added the last time if the same
    /// entry's outputs are there already, else what makes them look as if the task had run now.
    fn shift(&self, asked: &Asked, entry: &Entry) -> i64 {
        if asked.spec.mtime == MtimePolicy::Preserve {
            return 0;
        }
        if let Some(layer) = self.tree.layer_of(&asked.owner).filter(|layer| layer.entry() == entry.id) {
            return layer.shift_ns();
        }
        match &asked.claim {
            Some(claim) if claim.entry == Some(entry.id) => claim.shift_ns,
            _ => Timestamp::from(std::time::SystemTime::now()).ns_since(entry.finished),
        }
    }

    /// Tells the kernel about everything it knows at or below the outputs of `layers`.
    pub(super) fn invalidate_layers(&self, layers: &[&Arc<Layer>]) {
        self.invalidate(|path| concern(layers, path));
    }

    /// Lets those keep what they have open whom `layers` are about to show something else.
    fn keep_shown(&self, layers: &[&Arc<Layer>]) {
        let live = lock(&self.mounted).as_ref().map(|mounted| Arc::clone(&mounted.live));
        if let Some(live) = live {
            live.keep_where(|path| concern(layers, path));
        }
    }

    pub(super) fn invalidate(&self, concerns: impl Fn(&RelPath) -> bool) {
        let mounted = lock(&self.mounted);
        let Some((live, invalidator)) =
            mounted.as_ref().map(|mounted| (Arc::clone(&mounted.live), Arc::clone(&mounted.invalidator)))
        else {
            return;
        };
        drop(mounted);
        live.invalidate(&*invalidator, concerns);
    }
}

/// Returns whether a path lies at, below or above the outputs of `layers`.
fn concern(layers: &[&Arc<Layer>], path: &RelPath) -> bool {
    layers.iter().any(|layer| {
        // A directory above outputs has other names now, and is harmless to look up again.
        path.starts_with(layer.archive().toc().prefix()) || layer.archive().toc().prefix().starts_with(path)
    })
}

fn is_bad_archive(error: &WorkspaceError) -> bool {
    use crate::archive::restore::RestoreError;
    let damaged = |error: &ArchiveError| {
        matches!(
            error,
            ArchiveError::Damaged { .. }
                | ArchiveError::NotAnArchive { .. }
                | ArchiveError::NewerVersion { .. }
        )
    };
    match error {
        WorkspaceError::Archive(error) => damaged(error),
        WorkspaceError::Restore(RestoreError::Archive(error)) => damaged(error),
        _ => false,
    }
}
