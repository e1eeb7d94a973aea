//! Ending a run: splitting inputs and outputs, packing and storing the entry, committing the writes.

use std::collections::HashSet;
use std::os::fd::AsFd;
use std::sync::Arc;

use rayon::prelude::*;
use uuid::Uuid;

use super::ahead::Ahead;
use super::lookup::{Asked, StoredInputs, filtered};
use super::outputs::{self, PackedArchive};
use super::restore::at;
use super::unfinished::Unfinished;
use super::{ProgressSink, Run, Workspace, WorkspaceError, chain, forgo, now_secs};
use crate::archive::restore::restore_object;
use crate::archive::{Record, RecordKind};
use crate::base::Nearby;
use crate::claim::{absent_record, encode_before};
use crate::commit::{Journal, LayerPunch, move_whole_dirs, plan, superseded};
use crate::copy::copy_file;
use crate::fingerprint::{InputStates, PathSet, encode, path_set_digest, strong_key};
use crate::fs::{FsError, Timestamp};
use crate::index::{Claim, NewEntry};
use crate::path::{RelPath, RelPathBuf};
use crate::proto::Outcome;
use crate::recording::{ContentSeen, Observed};
use crate::report::{Chunk, FinishReport, NotStored, TERMINAL_BYTES_MAX, WhyReport};
use crate::state::{Dependency, PathState};
use crate::tree::{Found, Layer, Perspective};
use crate::view::{Change, NewObject, View};

/// What a task changed, sorted by path, with its logical states before.
pub(super) struct Changed {
    pub(super) changes: Vec<Change>,
    pub(super) befores: Vec<PathState>,
}

impl Changed {
    pub(super) fn iter(&self) -> impl Iterator<Item = (&Change, &PathState)> {
        self.changes.iter().zip(&self.befores)
    }

    fn before(&self, path: &RelPath) -> Option<&PathState> {
        self.befores.get(self.find(path)?)
    }

    fn find(&self, path: &RelPath) -> Option<usize> {
        self.changes.binary_search_by(|change| (*change.path).cmp(path)).ok()
    }

    /// Returns what tells which paths are changed, asked for in about the order of the changes.
    pub(super) fn covering(&self) -> Covering<'_> {
        Covering { changed: self, last: 0, dir: None }
    }
}

/// Tells what changes leave nothing of.
pub(super) struct Covering<'a> {
    changed: &'a Changed,
    /// The change that was found last: the next path is often that of the next one.
    last: usize,
    /// The directory of the last path, and whether it lies in something that is no directory any more.
    dir: Option<(RelPathBuf, bool)>,
}

impl Covering<'_> {
    /// Returns whether a path was changed itself, or lies in what was removed or is no directory any more.
    pub(super) fn covers(&mut self, path: &RelPath) -> bool {
        let changes = &self.changed.changes;
        if changes.get(self.last + 1).is_some_and(|next| *next.path == *path) {
            self.last += 1;
            return true;
        }
        if let Some(found) = self.changed.find(path) {
            self.last = found;
            return true;
        }
        let dir = path.parent().unwrap_or(RelPath::ROOT);
        match &self.dir {
            Some((known, covered)) if **known == *dir => *covered,
            Some(_) | None => {
                let is_gone = |dir: &RelPath| {
                    let found = self.changed.find(dir).map(|found| &changes[found].object);
                    found.is_some_and(|object| !matches!(object, Some(NewObject::Dir(..))))
                };
                let covered = path.ancestors().any(is_gone);
                self.dir = Some((dir.to_owned(), covered));
                covered
            }
        }
    }
}

/// The outputs of a run, ready to be stored.
struct Prepared {
    outputs: u64,
    packed: Option<PackedArchive>,
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
        mut run: Run,
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
        let finished = self.store_and_commit(&mut run, ending, &mut report);
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
        run: &mut Run,
        ending: &Ending<'_>,
        report: &mut FinishReport,
    ) -> Result<(), WorkspaceError> {
        let seen = self.commits.next();
        let mut changed = self.changed(run)?;
        let prepared = match self.refusal(run, ending) {
            Some(reason) => Err(reason),
            None => self.prepare(run, &changed, ending.progress),
        };
        // One run is stored and committed at a time: both must fit together, and to what is there.
        let committing = self.committing()?;
        if self.commits.next() != seen {
            if let Some(claim) = forgo("read a claim", self.index.claim(self.id, run.asked.owner)) {
                run.asked.claimed = self.open_claim(claim.as_ref());
                run.asked.claim = claim;
            }
            changed = self.changed(run)?;
        }
        let stored = prepared.and_then(|prepared| match self.late_refusal(run) {
            Some(reason) => Err(reason),
            None => self.store_run(run, ending, prepared, report),
        });
        match stored {
            Ok(entry) => report.entry = Some(entry),
            Err(reason) => report.not_stored = Some(reason),
        }
        self.commit(run, changed, report.entry)?;
        drop(committing);
        report.committed = true;
        forgo("note the end of a run", self.note_end(run, report));
        self.save_hashes();
        Ok(())
    }

    /// Returns the run's changes with the states before them.
    fn changed(&self, run: &Run) -> Result<Changed, WorkspaceError> {
        let mut changes = run.view.changes()?;
        if run.asked.spec.clean {
            self.add_hidden(run, &mut changes)?;
        }
        self.with_befores(&run.asked, changes)
    }

    /// Returns why the run must not be stored, as far as that is known before looking at its outputs.
    fn refusal(&self, run: &Run, ending: &Ending<'_>) -> Option<NotStored> {
        let outcome = ending.outcome;
        let terminal_bytes = ending.terminal.iter().map(|chunk| chunk.bytes.len() as u64).sum::<u64>();
        if !run.stores {
            Some(NotStored::Disabled)
        } else if outcome.exit_code != 0 {
            Some(NotStored::Failed)
        } else if let Some(fault) = &self.fault {
            Some(NotStored::Storage(fault.clone()))
        } else if !outcome.outlived.is_empty() {
            Some(NotStored::Outlived(outcome.outlived.clone()))
        } else if terminal_bytes > TERMINAL_BYTES_MAX {
            Some(NotStored::TerminalTooLarge(terminal_bytes))
        } else if run.view.with_recording(|recording| recording.overflowed()) {
            Some(NotStored::Incomplete("the task looked at too many paths to record".into()))
        } else {
            None
        }
    }

    /// Returns why the run must not be stored after all: somebody changed what it looked at.
    fn late_refusal(&self, run: &Run) -> Option<NotStored> {
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
        let Some(commits) = run.meanwhile.commits() else {
            let problem = "other tasks wrote too many paths meanwhile to compare them";
            return Some(NotStored::Incomplete(problem.into()));
        };
        commits.into_iter().find_map(|commit| {
            let path = run.view.with_recording(|recording| {
                let looked_at = |path: &&RelPathBuf| !filter.excludes(path) && recording.depends_on(path);
                commit.paths.iter().find(looked_at).cloned()
            })?;
            Some(NotStored::Hazard { other: commit.task_name.clone(), path })
        })
    }

    /// Returns a recorded path that no longer is what the task saw first.
    fn changed_under(&self, view: &View, asked: &Asked) -> Result<Option<RelPathBuf>, FsError> {
        let near = || Nearby::new(self.tree.base());
        view.with_recording(|recording| {
            let paths = recording.iter().map(|(path, _)| path);
            let paths: Vec<_> = paths.filter(|path| !asked.input.excludes(path)).collect();
            paths
                .par_iter()
                .map_init(near, |near, path| {
                    let Some(observed) = recording.get(path) else { return Ok(None) };
                    let same = self.still_as_seen((path, &observed), view.perspective(), asked, near)?;
                    Ok((!same).then(|| (*path).to_owned()))
                })
                .find_any(|checked: &Result<Option<RelPathBuf>, FsError>| !matches!(checked, Ok(None)))
                .unwrap_or(Ok(None))
        })
    }

    fn still_as_seen(
        &self,
        (path, seen): (&RelPath, &Observed<'_>),
        perspective: Perspective<'_>,
        asked: &Asked,
        near: &mut Nearby<'_>,
    ) -> Result<bool, FsError> {
        let found = self.tree.find_near(path, perspective, near)?;
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
                kept(listing.names()) == kept(now)
            }
        };
        Ok(same_content && same_listing)
    }

    /// Adds the removal of earlier outputs that a clean run did not see and did not make again.
    fn add_hidden(&self, run: &Run, changes: &mut Vec<Change>) -> Result<(), WorkspaceError> {
        let made: HashSet<_> = changes.iter().map(|change| change.path.clone()).collect();
        let mut hidden = |path: RelPathBuf| -> Result<(), WorkspaceError> {
            let seen = self.tree.find(&path, run.view.perspective()).map_err(FsError::from)?;
            let there = self.tree.find(&path, Perspective::ALL).map_err(FsError::from)?;
            if !made.contains(&path) && seen.is_none() && there.is_some() {
                changes.push(Change { path, object: None });
            }
            Ok(())
        };
        if let Some(claimed) = &run.asked.claimed {
            for record in claimed.manifest().iter() {
                hidden(record?.path)?;
            }
        }
        if let Some(layer) = self.tree.layer_of(&run.asked.owner) {
            for record in layer.records() {
                hidden(record?.path)?;
            }
        }
        changes.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        changes.dedup_by(|a, b| a.path == b.path);
        Ok(())
    }

    fn with_befores(&self, asked: &Asked, changes: Vec<Change>) -> Result<Changed, WorkspaceError> {
        let logical = self.logical(asked);
        let near = || Nearby::new(self.tree.base());
        let before = |near: &mut Nearby<'_>, change: &Change| {
            logical.state_near(&change.path, Dependency::READ | Dependency::LINK, near)
        };
        let befores = changes.par_iter().map_init(near, before).collect::<Result<_, FsError>>()?;
        Ok(Changed { changes, befores })
    }

    /// Splits the outputs off and packs them.
    fn prepare(
        &self,
        run: &Run,
        changed: &Changed,
        progress: ProgressSink<'_>,
    ) -> Result<Prepared, NotStored> {
        let outputs = outputs::collect(self, &run.view, &run.asked, changed)?;
        let ahead = run.ahead.as_ref().and_then(Ahead::take);
        let packed = self.pack(&outputs, &run.view, ahead, progress)?;
        Ok(Prepared { outputs: outputs.len() as u64, packed })
    }

    /// Stores the entry; returns its id, or why there is none.
    fn store_run(
        &self,
        run: &Run,
        ending: &Ending<'_>,
        prepared: Prepared,
        report: &mut FinishReport,
    ) -> Result<Uuid, NotStored> {
        let asked = &run.asked;
        let (set, states) = self.inputs(run)?;
        let Prepared { outputs, packed } = prepared;
        report.inputs = (set.len() + states.globbed.len()) as u64;
        report.outputs = outputs;
        let (mut archive, mut archive_bytes) = (None, 0);
        if let Some(packed) = packed {
            report.output_bytes = packed.content_bytes;
            archive_bytes = packed.archive_bytes;
            archive = Some(packed.publish().map_err(storage)?);
        }
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
            archive_bytes,
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
        let near = || Nearby::new(self.tree.base());
        let states = set.par_iter().map_init(near, |near, (path, dependency)| {
            Ok(filtered(logical.state_near(path, *dependency, near)?, path, &asked.input))
        });
        let recorded = states.collect::<Result<_, FsError>>().map_err(storage)?;
        Ok((set, InputStates { recorded, globbed: asked.globbed.clone() }))
    }

    /// Applies the task's writes to the base, takes them out of layers, and records the claim. A claim
    /// that cannot be recorded is only the cache's loss.
    fn commit(&self, run: &Run, changed: Changed, entry: Option<Uuid>) -> Result<(), WorkspaceError> {
        let asked = &run.asked;
        let changes = &changed.changes;
        let mut claimed = Some(());
        let before =
            if changes.is_empty() { None } else { self.before(changes.iter().map(|change| &*change.path)) };
        if !changes.is_empty() {
            let mut steps = plan(changes, |lower| self.stage(&run.view, lower))?;
            move_whole_dirs(&mut steps, run.view.staging())?;
            let punches = self.punches_for(asked, &changed)?;
            let journal = Journal { workspace: *self.id.0.as_bytes(), steps, punches };
            let (area, staging) = (Arc::clone(self.store.work()), Arc::clone(run.view.staging()));
            let commit = Unfinished { area, id: run.id, journal, staging };
            commit.publish()?;
            // Before anything is written: after a crash the files must be known to be the task's own.
            claimed = forgo("record the claim", self.set_claim_of_run(run, &commit.journal, &changed, entry));
            self.carry_out(commit)?;
        } else if let (Some(claim), Some(_)) = (&asked.claim, entry) {
            let claim = Claim { entry, shift_ns: 0, ..claim.clone() };
            claimed = forgo("record the claim", self.index.set_claim(&claim)).map(drop);
        }
        self.note_commit(asked, changed.changes.into_iter().map(|change| change.path).collect());
        self.tell_watchers(before);
        match claimed {
            Some(()) => self.note_in_place(asked.owner, entry),
            // Without a claim the outputs are nobody's, as if a user had made them: a miss, later.
            None => self.forget_in_place(&asked.owner),
        }
        Ok(())
    }

    /// Makes a blob of content of the lower side that was moved, and returns its path below the staging directory.
    pub(super) fn stage(&self, view: &View, lower: &RelPath) -> Result<RelPathBuf, WorkspaceError> {
        let blob = view.next_blob();
        let name = blob.as_os_str();
        match self.tree.find(lower, view.perspective()).map_err(FsError::from)? {
            Some(Found::Base(_)) => {
                let from = self.tree.base().open_parent(lower).map_err(FsError::from)?;
                let none = rustix::fs::AtFlags::empty();
                if rustix::fs::linkat(&from.0, from.1, view.staging(), name, none).is_err() {
                    copy_file((&from.0, from.1), (view.staging(), name)).map_err(at(lower))?;
                }
            }
            Some(Found::Virtual(layer, record)) => {
                let mtime = layer.mtime(&record);
                restore_object(layer.archive(), &record, view.staging().as_fd(), name, mtime)?;
            }
            None => return Err(FsError::NotFound.into()),
        }
        Ok(blob)
    }

    /// Returns what the commit takes out of layers.
    fn punches_for(&self, asked: &Asked, changed: &Changed) -> Result<Vec<LayerPunch>, WorkspaceError> {
        let superseded = superseded(&self.tree, &changed.changes).map_err(FsError::from)?;
        let punch = |(layer, record): (Arc<Layer>, Record)| {
            let own = *layer.owner() == asked.owner;
            let before = changed.before(&record.path).filter(|_| own).and_then(encode_before);
            LayerPunch { owner: *layer.owner().0.as_bytes(), path: record.path, before }
        };
        Ok(superseded.into_iter().map(punch).collect())
    }

    /// Replaces the task's claim: what this run changed, and what earlier ones did and it left alone.
    fn set_claim_of_run(
        &self,
        run: &Run,
        journal: &Journal,
        changed: &Changed,
        entry: Option<Uuid>,
    ) -> Result<(), WorkspaceError> {
        let asked = &run.asked;
        let mut records = Vec::new();
        if let Some(claimed) = &asked.claimed {
            let mut covering = changed.covering();
            for record in claimed.manifest().iter() {
                let record = record?;
                if !matches!(record.kind, RecordKind::ImpliedDir) && !covering.covers(&record.path) {
                    records.push(record);
                }
            }
        }
        let gone = |(change, before): (&Change, &PathState)| {
            let is_deletion = change.object.is_none() && *before != PathState::Absent;
            is_deletion.then(|| absent_record(change.path.clone(), before))
        };
        records.extend(changed.iter().filter_map(gone));
        let mut made = journal.records(run.view.staging())?;
        made.par_iter_mut().for_each(|record| {
            record.before = changed.before(&record.path).and_then(encode_before);
        });
        records.append(&mut made);
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
