//! Ending a run: splitting inputs and outputs, packing and storing the entry, committing the writes.

use std::collections::{BTreeMap, HashSet};
use std::os::fd::AsFd;
use std::sync::Arc;

use rayon::prelude::*;
use uuid::Uuid;

use super::lookup::{Asked, StoredInputs, filtered};
use super::outputs;
use super::restore::at;
use super::unfinished::Unfinished;
use super::{ProgressSink, Run, Workspace, WorkspaceError, chain, forgo, now_secs};
use crate::archive::RecordKind;
use crate::archive::restore::restore_object;
use crate::claim::{absent_record, encode_before};
use crate::commit::{Journal, LayerPunch, plan};
use crate::copy::copy_file;
use crate::fingerprint::{InputStates, PathSet, encode, path_set_digest, strong_key};
use crate::fs::{FsError, Timestamp};
use crate::index::{Claim, NewEntry};
use crate::path::{RelPath, RelPathBuf};
use crate::proto::Outcome;
use crate::recording::{ContentSeen, Observed};
use crate::report::{Chunk, FinishReport, NotStored, WhyReport};
use crate::state::{Dependency, PathState};
use crate::tree::{Found, Perspective};
use crate::view::{Change, NewObject, View, blob_name};

/// A change with the task's logical state before it.
pub(super) struct Changed {
    pub(super) change: Change,
    pub(super) before: PathState,
}

/// How a run ended, as far as the cache is concerned.
pub(super) struct Ending<'a> {
    pub(super) outcome: &'a Outcome,
    pub(super) terminal: &'a [Chunk],
    pub(super) progress: ProgressSink<'a>,
}

impl Workspace {
    pub(super) fn finish_run(
        &self,
        run: Run,
        ending: &Ending<'_>,
        fault: Option<String>,
    ) -> Result<FinishReport, WorkspaceError> {
        let mut report = FinishReport::default();
        let outcome = ending.outcome;
        let failed = outcome.exit_code != 0;
        if outcome.interrupted || fault.is_some() || (failed && run.asked.spec.discard_on_failure) {
            report.not_stored = Some(match fault {
                Some(fault) => NotStored::SessionDied(fault),
                None if outcome.interrupted => NotStored::Interrupted,
                None => NotStored::Failed,
            });
            self.abandon(run);
            return Ok(report);
        }
        let finished = self.store_and_commit(&run, ending, &mut report);
        if self.is_unfinished(run.id) {
            // What is not in the base yet is still where the run wrote it.
            self.release(&run);
        } else {
            self.end(&run);
        }
        finished.map(|()| report)
    }

    fn store_and_commit(
        &self,
        run: &Run,
        ending: &Ending<'_>,
        report: &mut FinishReport,
    ) -> Result<(), WorkspaceError> {
        // One run ends at a time: what it stores and what it commits must fit together.
        let committing = self.committing()?;
        let changed = self.with_befores(&run.asked, run.view.changes()?)?;
        let stored = match self.refusal(run, ending.outcome) {
            Some(reason) => Err(reason),
            None => self.store_run(run, ending, &changed, report),
        };
        match stored {
            Ok(entry) => report.entry = Some(entry),
            Err(reason) => report.not_stored = Some(reason),
        }
        self.commit(run, &changed, report.entry)?;
        drop(committing);
        report.committed = true;
        forgo("note the end of a run", self.note_end(run, report));
        self.save_hashes();
        Ok(())
    }

    /// Returns why the run must not be stored, as far as that is known before looking at its outputs.
    fn refusal(&self, run: &Run, outcome: &Outcome) -> Option<NotStored> {
        if !run.stores {
            return Some(NotStored::Disabled);
        }
        if outcome.exit_code != 0 {
            return Some(NotStored::Failed);
        }
        if let Some(fault) = &self.fault {
            return Some(NotStored::Storage(fault.clone()));
        }
        if !outcome.outlived.is_empty() {
            return Some(NotStored::Outlived(outcome.outlived.clone()));
        }
        if run.view.with_recording(|recording| recording.overflowed()) {
            return Some(NotStored::SessionDied("the task looked at too many paths to record".into()));
        }
        if let Some(hazard) = self.hazard(run) {
            return Some(hazard);
        }
        match self.changed_under(&run.view, &run.asked) {
            Ok(path) => path.map(NotStored::InputChanged),
            Err(error) => Some(NotStored::Storage(chain(&error))),
        }
    }

    /// Returns what another task committed during the run although this one had looked at it.
    fn hazard(&self, run: &Run) -> Option<NotStored> {
        let filter = &run.asked.input;
        self.commits_since(run.started, run.asked.owner).into_iter().find_map(|commit| {
            let path = run.view.with_recording(|recording| {
                let looked_at = |path: &&RelPathBuf| !filter.excludes(path) && recording.depends_on(path);
                commit.paths.iter().find(looked_at).cloned()
            })?;
            Some(NotStored::Hazard { other: commit.task_name.clone(), path })
        })
    }

    /// Returns a recorded path that no longer is what the task saw first.
    fn changed_under(&self, view: &View, asked: &Asked) -> Result<Option<RelPathBuf>, FsError> {
        view.with_recording(|recording| {
            let seen: Vec<_> = recording.iter().filter(|(path, _)| !asked.input.excludes(path)).collect();
            seen.par_iter()
                .map(|(path, observed)| {
                    let same = self.still_as_seen(path, observed, view.perspective(), asked)?;
                    Ok((!same).then(|| (*path).to_owned()))
                })
                .find_any(|checked: &Result<Option<RelPathBuf>, FsError>| !matches!(checked, Ok(None)))
                .unwrap_or(Ok(None))
        })
    }

    fn still_as_seen(
        &self,
        path: &RelPath,
        seen: &Observed,
        perspective: Perspective<'_>,
        asked: &Asked,
    ) -> Result<bool, FsError> {
        let found = self.tree.find(path, perspective)?;
        let probe = found.as_ref().map_or(PathState::Absent, Found::probe);
        if probe != seen.probe {
            return Ok(false);
        }
        let same_content = match (&seen.content, &found) {
            (None, _) => true,
            (Some(ContentSeen::Real(identity)), Some(Found::Base(stat))) => *identity == stat.identity,
            (Some(ContentSeen::Virtual(digest)), Some(Found::Virtual(_, record))) => {
                matches!(&record.kind, RecordKind::File { content, .. } if content.as_ref() == Some(digest))
            }
            (Some(ContentSeen::Virtual(digest)), Some(Found::Base(stat))) => {
                self.hashes.of_file(self.tree.base(), path, stat)? == *digest
            }
            (Some(ContentSeen::Real(_)), _) | (Some(ContentSeen::Virtual(_)), None) => false,
        };
        let same_listing = match &seen.listing {
            None => true,
            Some(listing) => {
                let now = crate::recording::listing(&self.tree.list(path, perspective)?);
                let kept = |names| filtered(PathState::Dir { listing: Some(names) }, path, &asked.input);
                kept(listing.clone()) == kept(now)
            }
        };
        Ok(same_content && same_listing)
    }

    fn with_befores(&self, asked: &Asked, changes: Vec<Change>) -> Result<Vec<Changed>, WorkspaceError> {
        let logical = self.logical(asked);
        let changed = changes.into_par_iter().map(|change| {
            let before = logical.state(&change.path, Dependency::READ | Dependency::LINK)?;
            Ok(Changed { change, before })
        });
        Ok(changed.collect::<Result<_, FsError>>()?)
    }

    /// Packs the outputs and stores the entry; returns its id, or why there is none.
    fn store_run(
        &self,
        run: &Run,
        ending: &Ending<'_>,
        changed: &[Changed],
        report: &mut FinishReport,
    ) -> Result<Uuid, NotStored> {
        let asked = &run.asked;
        let (set, states) = self.inputs(run)?;
        let outputs = outputs::collect(self, &run.view, asked, changed)?;
        let packed = self.pack(&outputs, &run.view, ending.progress)?;
        let archive = packed.as_ref().map(|packed| packed.id);
        report.inputs = (set.len() + states.globbed.len()) as u64;
        report.outputs = outputs.len() as u64;
        report.output_bytes = packed.as_ref().map_or(0, |packed| packed.content_bytes);
        report.archive = archive.map(|id| self.store.archive_path(id));
        let path_set = path_set_digest(&set);
        let entry = NewEntry {
            id: Uuid::new_v4(),
            task: asked.owner,
            task_name: asked.spec.name.clone(),
            weak: asked.weak,
            path_set,
            path_set_blob: encode(&set),
            strong: strong_key(asked.weak, path_set, &states),
            states: encode(&StoredInputs { set, states }),
            facets: encode(&asked.facets),
            archive,
            archive_bytes: packed.as_ref().map_or(0, |packed| packed.archive_bytes),
            inputs: report.inputs,
            outputs: report.outputs,
            output_bytes: report.output_bytes,
            recorded_ms: ending.outcome.duration_ms,
            finished: Timestamp::from(std::time::SystemTime::now()),
            terminal: encode(&ending.terminal),
        };
        match self.index.store(&entry, &self.limits, now_secs()) {
            Ok(superseded) => self.remove_archives(&superseded),
            Err(error) => {
                // Nothing refers to it, and it may be what fills the store.
                self.remove_archives(archive.as_slice());
                report.archive = None;
                return Err(storage(error));
            }
        }
        Ok(entry.id)
    }

    /// Splits the inputs off the recording, with their states before the run.
    fn inputs(&self, run: &Run) -> Result<(PathSet, InputStates), NotStored> {
        let asked = &run.asked;
        let set = run.view.with_recording(|recording| {
            recording.path_set(|path| asked.input.auto() && !asked.input.excludes(path))
        });
        let logical = self.logical(asked);
        let states = set
            .par_iter()
            .map(|(path, dependency)| Ok(filtered(logical.state(path, *dependency)?, path, &asked.input)));
        let recorded = states.collect::<Result<_, FsError>>().map_err(storage)?;
        Ok((set, InputStates { recorded, globbed: asked.globbed.clone() }))
    }

    /// Applies the task's writes to the base, takes them out of layers, and records the claim. A claim
    /// that cannot be recorded is only the cache's loss.
    fn commit(&self, run: &Run, changed: &[Changed], entry: Option<Uuid>) -> Result<(), WorkspaceError> {
        let asked = &run.asked;
        let changes: Vec<_> = changed.iter().map(|changed| changed.change.clone()).collect();
        let mut claimed = Some(());
        if !changes.is_empty() {
            let steps = plan(&changes, |lower| self.stage(&run.view, lower))?;
            let punches = self.punches_for(asked, changed)?;
            let journal = Journal { workspace: *self.id.0.as_bytes(), steps, punches };
            let (area, staging) = (Arc::clone(self.store.work()), Arc::clone(run.view.staging()));
            let commit = Unfinished { area, id: run.id, journal, staging };
            commit.publish()?;
            // Before anything is written: after a crash the files must be known to be the task's own.
            claimed = forgo("record the claim", self.set_claim_of_run(run, &commit.journal, changed, entry));
            self.carry_out(commit)?;
        } else if let (Some(claim), Some(_)) = (&asked.claim, entry) {
            let claim = Claim { entry, shift_ns: 0, ..claim.clone() };
            claimed = forgo("record the claim", self.index.set_claim(&claim)).map(drop);
        }
        self.note_commit(asked, changes.into_iter().map(|change| change.path).collect());
        match claimed {
            Some(()) => self.note_in_place(asked.owner, entry),
            // Without a claim the outputs are nobody's, as if a user had made them: a miss, later.
            None => self.forget_in_place(&asked.owner),
        }
        Ok(())
    }

    /// Makes a blob of content of the lower side that was moved, and returns its number.
    pub(super) fn stage(&self, view: &View, lower: &RelPath) -> Result<u64, WorkspaceError> {
        let blob = view.next_blob();
        let name = blob_name(blob);
        match self.tree.find(lower, view.perspective()).map_err(FsError::from)? {
            Some(Found::Base(_)) => {
                let from = self.tree.base().open_parent(lower).map_err(FsError::from)?;
                let none = rustix::fs::AtFlags::empty();
                if rustix::fs::linkat(&from.0, from.1, view.staging(), &name, none).is_err() {
                    copy_file((&from.0, from.1), (view.staging(), &name)).map_err(at(lower))?;
                }
            }
            Some(Found::Virtual(layer, record)) => {
                let mtime = layer.mtime(&record);
                restore_object(layer.archive(), &record, view.staging().as_fd(), &name, mtime)?;
            }
            None => return Err(FsError::NotFound.into()),
        }
        Ok(blob)
    }

    /// Returns what the commit takes out of layers.
    fn punches_for(&self, asked: &Asked, changed: &[Changed]) -> Result<Vec<LayerPunch>, WorkspaceError> {
        let mut punches = Vec::new();
        for layer in self.tree.layers().iter() {
            let owner = *layer.owner();
            let mut seen = HashSet::new();
            for Changed { change, before } in changed {
                let records: Vec<_> = match change.object {
                    Some(NewObject::Dir(_)) => layer.record(&change.path)?.into_iter().collect(),
                    // A directory of the layer may have been in its place.
                    _ => layer.archive().toc().subtree(&change.path).collect::<Result<_, _>>()?,
                };
                for record in records {
                    if layer.is_punched(&record.path) || !seen.insert(record.path.clone()) {
                        continue;
                    }
                    let own = owner == asked.owner && record.path == change.path;
                    let before = if own { encode_before(before) } else { None };
                    punches.push(LayerPunch { owner: *owner.0.as_bytes(), path: record.path, before });
                }
            }
        }
        Ok(punches)
    }

    /// Replaces the task's claim: what this run changed, and what earlier ones did and it left alone.
    fn set_claim_of_run(
        &self,
        run: &Run,
        journal: &Journal,
        changed: &[Changed],
        entry: Option<Uuid>,
    ) -> Result<(), WorkspaceError> {
        let asked = &run.asked;
        let mut records = BTreeMap::new();
        if let Some(claimed) = &asked.claimed {
            claimed.add_to(&mut records)?;
        }
        let mut befores = BTreeMap::new();
        for Changed { change, before } in changed {
            let path = &change.path;
            records.remove(path);
            if !matches!(change.object, Some(NewObject::Dir(_))) {
                outputs::remove_below(&mut records, path);
            }
            if change.object.is_none() && *before != PathState::Absent {
                records.insert(path.clone(), absent_record(path.clone(), before));
            }
            befores.insert(path, before);
        }
        for mut record in journal.records(run.view.staging())? {
            let before = befores.get(&record.path).copied().unwrap_or(&PathState::Absent);
            record.before = encode_before(before);
            records.insert(record.path.clone(), record);
        }
        let records = records.into_values().collect();
        self.publish_claim((asked.owner, &asked.spec.name), entry, 0, records)
    }

    /// Adds the end of the run to what `vout why` tells.
    fn note_end(&self, run: &Run, report: &FinishReport) -> Result<(), WorkspaceError> {
        let name = &run.asked.spec.name;
        let known = self.index.lookup(self.id, name)?;
        if let Some(mut why) = known.and_then(|bytes| postcard::from_bytes::<WhyReport>(&bytes).ok()) {
            why.not_stored.clone_from(&report.not_stored);
            self.index.set_lookup(self.id, name, &encode(&why))?;
        }
        Ok(())
    }
}

/// Puts an error into words for a report.
pub(super) fn storage(error: impl std::error::Error) -> NotStored {
    NotStored::Storage(chain(&error))
}
