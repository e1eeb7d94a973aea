//! Commits that stopped half-way: after a crash, or because the workspace's disk was full.
//!
//! Once the journal of a commit is published, the new tree is what counts, and nothing else may look at
//! the workspace or change it before the journal was carried out.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::OwnedFd;
use std::sync::{Arc, MutexGuard};

use uuid::Uuid;

use super::{Workspace, WorkspaceError, chain, forgo, lock};
use crate::claim::decode_before;
use crate::commit::Journal;
use crate::index::{IndexError, Punch};
use crate::store::{StoreError, WorkArea};

/// A commit whose journal is published.
pub(super) struct Unfinished {
    pub(super) area: Arc<WorkArea>,
    pub(super) id: Uuid,
    pub(super) journal: Journal,
    pub(super) staging: Arc<OwnedFd>,
}

impl Workspace {
    /// Waits until nothing is being stored and committed, and finishes commits that stopped half-way.
    ///
    /// # Errors
    /// [`WorkspaceError::Unfinished`] where such a commit still cannot be finished.
    pub(super) fn committing(&self) -> Result<MutexGuard<'_, ()>, WorkspaceError> {
        let committing = lock(&self.committing);
        let mut todo = VecDeque::from(std::mem::take(&mut *lock(&self.unfinished)));
        while let Some(commit) = todo.pop_front() {
            let (area, id) = (Arc::clone(&commit.area), commit.id);
            let carried_out = self.carry_out(commit);
            self.touched.lose_track();
            if carried_out.is_err() {
                lock(&self.unfinished).extend(todo.drain(..));
            }
            if carried_out? {
                forgo("remove a staging directory", area.remove_staging(id));
            }
        }
        Ok(committing)
    }

    /// Returns whether the index, or the base, lacks something of a commit.
    pub(super) fn has_unfinished(&self) -> bool {
        !lock(&self.unfinished).is_empty()
    }

    /// Returns whether the commit `id` is one of those.
    pub(super) fn is_unfinished(&self, id: Uuid) -> bool {
        lock(&self.unfinished).iter().any(|commit| commit.id == id)
    }

    /// Carries a published journal out; returns whether that is all. Where it is not, the rest is done
    /// before the next commit or at the next start.
    ///
    /// # Errors
    /// [`WorkspaceError::Unfinished`] where the base holds only a part of the new tree.
    pub(super) fn carry_out(&self, mut commit: Unfinished) -> Result<bool, WorkspaceError> {
        if let Err(source) = commit.journal.apply(self.tree.base(), &commit.staging) {
            let journal = commit.area.path().join("journal").join(commit.id.to_string());
            lock(&self.unfinished).push(commit);
            self.touched.lose_track();
            return Err(WorkspaceError::Unfinished { journal, source });
        }
        if let Err(error) = self.punch(&commit.journal) {
            tracing::warn!(error = chain(&error), "the index lacks what a commit took out of layers");
            // Nobody's later changes may be undone by steps that are done.
            commit.journal.steps.clear();
            forgo("shorten a journal", commit.publish());
            lock(&self.unfinished).push(commit);
            return Ok(false);
        }
        if forgo("remove a journal", commit.area.remove_journal(commit.id)).is_none() {
            commit.journal = Journal { workspace: commit.journal.workspace, ..Journal::default() };
            lock(&self.unfinished).push(commit);
            return Ok(false);
        }
        Ok(true)
    }

    /// Takes what a commit replaced out of layers: first out of those that are attached, then in the index.
    fn punch(&self, journal: &Journal) -> Result<(), IndexError> {
        let mut by_owner: BTreeMap<_, Vec<Punch>> = BTreeMap::new();
        for punch in &journal.punches {
            if let Some(layer) = self.tree.layer_of(&punch.owner()) {
                layer.punch(&punch.path, punch.before.as_deref().and_then(decode_before));
            }
            let row = Punch { path: punch.path.clone(), before: punch.before.clone() };
            by_owner.entry(punch.owner()).or_default().push(row);
        }
        for (owner, punches) in by_owner {
            self.index.add_punches(self.id, owner, &punches)?;
        }
        Ok(())
    }

    /// Finishes the commits of this workspace that were cut off and left their journals in `area`.
    pub(super) fn recover_commits(&self, area: &Arc<WorkArea>) -> Result<(), StoreError> {
        for id in area.leftovers()?.journals {
            // Somebody else who shares the store may be at it.
            let Ok(staging) = area.staging(id) else { continue };
            let journal = match area.open_journal(id).map(Journal::read) {
                Ok(Ok(journal)) => journal,
                Ok(Err(error)) => {
                    // It may be another workspace's, or a newer version's.
                    tracing::error!(%id, error = chain(&error), "the journal of a commit cannot be read");
                    continue;
                }
                Err(_) => continue,
            };
            if journal.workspace != *self.id.0.as_bytes() {
                continue;
            }
            tracing::warn!(%id, "a commit was cut off and is finished now");
            let commit = Unfinished { area: Arc::clone(area), id, journal, staging: Arc::new(staging) };
            match self.carry_out(commit) {
                Ok(true) => {
                    area.remove_staging(id)?;
                }
                Ok(false) => {}
                // It is tried again before the next run; until then people can still ask what is wrong.
                Err(error) => tracing::error!(%id, error = chain(&error), "a commit is still unfinished"),
            }
        }
        Ok(())
    }
}

impl Unfinished {
    /// Makes the journal durable, in place of the one that may be there.
    pub(super) fn publish(&self) -> Result<(), WorkspaceError> {
        self.area.publish_journal(self.id, |file| Ok(self.journal.write(file)?))
    }
}
