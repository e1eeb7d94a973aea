//! A run: a task that executes in a view.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use uuid::Uuid;

use super::ahead::Ahead;
use super::commits::Following;
use super::lookup::{Asked, Lookup};
use super::{Begun, InPlace, ProgressSink, RunOptions, Workspace, WorkspaceError, chain, lock};
use crate::fs::{Filesystem, FsError, Invalidator};
use crate::index::TaskId;
use crate::path::{RelPath, RelPathBuf, Topmost};
use crate::proto::CacheMode;
use crate::report::{Chunk, HitReport, Left, MissReason, RecordedPath, Seen};
use crate::serving::Serving;
use crate::state::FileKind;
use crate::task::TaskSpec;
use crate::touched::TouchedSince;
use crate::view::{Change, View, ViewOptions};

/// A task that is running in a view.
#[must_use = "a run that is neither finished nor abandoned keeps its task from being looked up"]
pub struct Run {
    pub(super) id: Uuid,
    pub(super) asked: Asked,
    pub(super) view: Arc<View>,
    /// Packs what is finished before the task is. `None` where nothing is stored.
    pub(super) ahead: Option<Ahead>,
    /// Whether its result goes into the cache.
    pub(super) stores: bool,
    /// What is committed meanwhile, which may be a hazard.
    pub(super) meanwhile: Following,
}

impl Run {
    /// Returns what the task sees. It stays usable after the run's end, for processes that outlive it.
    #[must_use]
    pub fn filesystem(&self) -> Arc<dyn Filesystem> {
        Arc::clone(&self.view) as Arc<dyn Filesystem>
    }

    /// Sets who tells the kernel where names in the view lead to another node.
    pub fn set_invalidator(&self, invalidator: Arc<dyn Invalidator>) {
        self.view.set_invalidator(invalidator);
    }

    /// Returns all that the view saw and all that the task changed so far, in the order of the paths. No filter
    /// has been applied.
    ///
    /// # Errors
    /// Where what lies below the view cannot be examined.
    pub fn recorded(&self) -> Result<Vec<RecordedPath>, FsError> {
        // First: what was moved counts as read, and is recorded here.
        let changes = self.view.changes()?;
        let mut paths: BTreeMap<_, _> = changes
            .into_iter()
            .map(|Change { path, object }| {
                let left = object.map_or(Left::Nothing, |object| Left::Object(object.kind()));
                (path, (None, Some(left)))
            })
            .collect();
        self.view.with_recording(|recording| {
            for (path, observed) in recording.iter() {
                let seen = Seen { dependency: observed.dependency, kind: observed.probe.kind() };
                paths.entry(path.to_owned()).or_insert((None, None)).0 = Some(seen);
            }
        });
        let told = paths.into_iter().map(|(path, (seen, change))| RecordedPath { path, seen, change });
        Ok(told.collect())
    }

    /// Returns the task's name.
    #[must_use]
    pub fn task_name(&self) -> &str {
        &self.asked.spec.name
    }
}

impl Workspace {
    pub(super) fn begin_run(
        &self,
        spec: TaskSpec,
        options: RunOptions,
        progress: ProgressSink<'_>,
    ) -> Result<Begun, WorkspaceError> {
        if self.has_unfinished() {
            drop(self.committing()?);
        }
        self.settle_layers(progress)?;
        let stores = spec.cache && options.cache != CacheMode::Off;
        let owner = crate::fingerprint::task_id(&spec);
        if stores {
            self.wait_for_turn(owner);
        }
        self.lookups.fetch_add(1, Ordering::Relaxed);
        let begun = self.begin_in_turn(spec, stores, options, progress);
        self.lookups.fetch_sub(1, Ordering::Relaxed);
        if stores && !matches!(begun, Ok(Begun::Miss { .. })) {
            self.end_turn(owner);
        }
        begun
    }

    fn begin_in_turn(
        &self,
        spec: TaskSpec,
        stores: bool,
        options: RunOptions,
        progress: ProgressSink<'_>,
    ) -> Result<Begun, WorkspaceError> {
        let started = Instant::now();
        let since_start = || started.elapsed().as_micros();
        let asked = self.ask(spec)?;
        tracing::debug!(us = since_start(), task = asked.spec.name, "asked");
        let reason = match (stores, options.cache) {
            (false, _) | (true, CacheMode::Off) => MissReason::NotCached,
            (true, CacheMode::Refresh) => {
                let forced = Lookup::Miss { reason: MissReason::Forced, closest: None, inputs: 0 };
                self.note_lookup(&asked, &forced);
                MissReason::Forced
            }
            (true, CacheMode::ReadWrite) => match self.look_up_and_apply(&asked, progress)? {
                Ok((report, terminal)) => {
                    self.save_hashes();
                    tracing::debug!(us = since_start(), "in place");
                    return Ok(Begun::Hit { report, terminal });
                }
                Err(reason) => reason,
            },
        };
        self.save_hashes();
        let run = self.open_run(asked, stores, options.serving)?;
        Ok(Begun::Miss { run, reason })
    }

    /// Looks a task up and puts the outputs of a hit in place; `Err` says why it must run.
    fn look_up_and_apply(
        &self,
        asked: &Asked,
        progress: ProgressSink<'_>,
    ) -> Result<Result<(HitReport, Vec<Chunk>), MissReason>, WorkspaceError> {
        loop {
            let seen = self.commits.next();
            let lookup = self.lookup(asked)?;
            let committing = self.committing()?;
            // What somebody committed meanwhile may be an input.
            if matches!(lookup, Lookup::Hit(_)) && self.commits.next() != seen {
                continue;
            }
            tracing::debug!(task = asked.spec.name, inputs = lookup.inputs(), "looked up");
            let answer = match &lookup {
                Lookup::Miss { reason, .. } => Err(reason.clone()),
                Lookup::Hit(found) => match self.apply_hit(asked, found, progress) {
                    // The index is written before anything else is changed.
                    Err(error) if error.is_of_cache() => Err(MissReason::Storage(chain(&error))),
                    other => other?,
                },
            };
            if answer.is_err() {
                self.note_lookup(asked, &lookup);
            }
            drop(committing);
            return Ok(answer);
        }
    }

    fn open_run(&self, asked: Asked, stores: bool, serving: Serving) -> Result<Run, WorkspaceError> {
        let id = Uuid::new_v4();
        let staging = Arc::new(self.store.work().staging(id)?);
        let view = Arc::new(View::new(ViewOptions {
            tree: Arc::clone(&self.tree),
            store: Arc::clone(&self.store),
            staging,
            without: asked.spec.clean.then(|| asked.earlier()),
            passthrough: serving.passthrough,
            xattrs: serving.xattrs,
            tells_made: stores,
        }));
        let ahead = if stores { Ahead::start(&view, &self.store, asked.output.clone()) } else { None };
        Ok(Run { id, asked, view, ahead, stores, meanwhile: self.commits.follow() })
    }

    /// Discards a run and all it wrote.
    pub fn abandon(&self, run: Run) {
        self.end(&run);
    }

    /// Drops what a run no longer needs.
    pub(super) fn end(&self, run: &Run) {
        self.release(run);
        // Processes that outlived the task keep their open files; new ones they make go nowhere.
        if let Err(error) = self.store.work().remove_staging(run.id) {
            tracing::warn!(%error, "a staging directory is left for the next start to sweep");
        }
    }

    /// Lets the run's task be looked up again.
    pub(super) fn release(&self, run: &Run) {
        if run.stores {
            self.end_turn(run.asked.owner);
        }
    }

    fn wait_for_turn(&self, owner: TaskId) {
        let mut running = lock(&self.running);
        while !running.insert(owner) {
            running = self.idle.wait(running).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn end_turn(&self, owner: TaskId) {
        lock(&self.running).remove(&owner);
        self.idle.notify_all();
    }

    /// Notes what a task committed, for hazards and for what is still in place.
    pub(super) fn note_commit(&self, asked: &Asked, paths: Vec<RelPathBuf>) {
        let topmost = Topmost::of(paths.iter().map(|path| &**path));
        for path in topmost.iter() {
            self.touched.touch(path, Some(&asked.owner));
        }
        if self.touched.is_followed() && paths.iter().any(|path| self.has_other_names(path)) {
            self.touched.lose_track();
        }
        self.invalidate(|path| topmost.covers(path));
        self.commits.note(asked.spec.name.clone(), paths);
    }

    /// Returns whether what a commit left at `path` may be seen under names that it did not name.
    fn has_other_names(&self, path: &RelPath) -> bool {
        match self.tree.base().stat(path) {
            Ok(Some(stat)) => stat.kind != FileKind::Dir && stat.nlink > 1,
            Ok(None) => false,
            Err(_) => true,
        }
    }

    /// Notes that a task's outputs are all in place now.
    pub(super) fn note_in_place(&self, owner: TaskId, entry: Option<Uuid>) {
        let since = self.touched.now();
        lock(&self.in_place).insert(owner, InPlace { entry, since });
    }

    /// Notes that it is not known any more whether a task's outputs are in place.
    pub(super) fn forget_in_place(&self, owner: &TaskId) {
        lock(&self.in_place).remove(owner);
    }

    /// Returns what others touched since the task's outputs were in place, where every way to touch them
    /// is seen: only under a live mount that covers the base.
    pub(super) fn touched_since_in_place<'a>(&'a self, owner: &'a TaskId) -> Option<TouchedSince<'a>> {
        if !lock(&self.mounted).as_ref().is_some_and(|mounted| mounted.covers_base) {
            return None;
        }
        let in_place = *lock(&self.in_place).get(owner)?;
        self.touched.since(in_place.since, owner)
    }
}
