//! Writing an entry's outputs into the base as ordinary files: a hit without a mount, and the end of one.

mod fresh;
mod meter;
mod write;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rustix::fs::AtFlags;
use rustix::io::Errno;
use uuid::Uuid;

use self::fresh::FreshDirs;
use self::meter::Meter;
use self::write::{Todo, Writer};
use super::{ProgressSink, Workspace, WorkspaceError, forgo};
use crate::archive::restore::is_temporary_name;
use crate::archive::{Archive, Record, RecordKind, write_manifest};
use crate::claim::{Claimed, claim_record, still_describes};
use crate::filter::Filter;
use crate::fs::Timestamp;
use crate::index::{Claim, TaskId};
use crate::logical::Logical;
use crate::path::{RelPath, RelPathBuf};
use crate::report::Stage;
use crate::state::{Dependency, FileKind, PathState};

/// What to write out.
pub(super) struct Target<'a> {
    pub(super) owner: TaskId,
    pub(super) task_name: &'a str,
    pub(super) entry: Uuid,
    pub(super) archive: &'a Archive,
    /// Added to recorded modification times, in nanoseconds.
    pub(super) shift_ns: i64,
    /// Which of the task's writes are outputs.
    pub(super) outputs: &'a Filter,
    /// Paths that are not the archive's any more.
    pub(super) punched: &'a (dyn Fn(&RelPath) -> Option<Option<PathState>> + Sync),
    pub(super) stage: Stage,
}

/// What was written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Restored {
    pub(super) files: u64,
    pub(super) bytes: u64,
    /// Whether anything had to be changed.
    pub(super) changed: bool,
}

/// A record with what must be done about it.
struct Planned {
    record: Record,
    mtime: Timestamp,
    in_place: bool,
    /// Whether nothing at all was there.
    missing: bool,
}

impl Planned {
    fn needs_work(&self) -> bool {
        // A directory that its owner cannot write must be opened up for what is written in it.
        let closed = matches!(self.record.kind, RecordKind::Dir) && self.record.mode & 0o700 != 0o700;
        !self.in_place || closed
    }
}

impl Workspace {
    /// Makes the base hold exactly an entry's outputs, as far as they are this task's: writes what is
    /// missing or different, removes what its earlier run left, and records the claim.
    ///
    /// The claim is set before anything is changed: after a crash the files that were written are known to
    /// be the task's own, and where it cannot be set the workspace is as it was.
    pub(super) fn restore(
        &self,
        target: &Target<'_>,
        claim: Option<&Claim>,
        claimed: Option<Arc<Claimed>>,
        progress: ProgressSink<'_>,
    ) -> Result<Restored, WorkspaceError> {
        let planned = self.plan_restore(target)?;
        let stale = match &claimed {
            Some(claimed) => self.stale_paths(claimed, Some(target.archive), target.outputs)?,
            None => Vec::new(),
        };
        let same_claim = claim.is_some_and(|claim| claim.entry == Some(target.entry));
        if same_claim && stale.is_empty() && planned.iter().all(|planned| planned.in_place) {
            return Ok(Restored::default());
        }
        let logical = Logical {
            tree: &self.tree,
            hashes: &self.hashes,
            owner: &target.owner,
            claimed: claimed.clone(),
            touched: None,
        };
        self.set_claim(target, &planned, &logical)?;
        let written = self.remove_stale(&stale).and_then(|()| self.write_planned(target, &planned, progress));
        self.touched.lose_track();
        written
    }

    fn plan_restore(&self, target: &Target<'_>) -> Result<Vec<Planned>, WorkspaceError> {
        let mut records = Vec::new();
        for record in target.archive.toc().iter() {
            let record = record?;
            if (target.punched)(&record.path).is_none() {
                records.push(record);
            }
        }
        let planned = self.tree.base().map_near(&records, |near, record| {
            let mtime = record.mtime.shifted(target.shift_ns);
            let stat = near.stat(&record.path).map_err(at(&record.path))?;
            let in_place = match (&record.kind, &stat) {
                (RecordKind::Absent, stat) => stat.is_none(),
                (RecordKind::ImpliedDir, Some(stat)) => stat.kind == FileKind::Dir,
                (RecordKind::Dir, Some(stat)) => stat.kind == FileKind::Dir && stat.mode == record.mode,
                (_, Some(stat)) => still_describes(record, mtime, stat),
                (_, None) => false,
            };
            Ok::<_, WorkspaceError>((mtime, in_place, stat.is_none()))
        })?;
        let planned = records.into_iter().zip(planned);
        let planned =
            planned.map(|(record, (mtime, in_place, missing))| Planned { record, mtime, in_place, missing });
        Ok(planned.collect())
    }

    /// Returns what the task's earlier run left of outputs and `archive` does not hold, deepest first.
    pub(super) fn stale_paths(
        &self,
        claimed: &Claimed,
        archive: Option<&Archive>,
        outputs: &Filter,
    ) -> Result<Vec<RelPathBuf>, WorkspaceError> {
        let mut stale = Vec::new();
        for record in claimed.manifest().iter() {
            let record = record?;
            if matches!(record.kind, RecordKind::ImpliedDir | RecordKind::Absent) || record.before.is_some() {
                continue;
            }
            let held = match archive {
                Some(archive) => archive.toc().find(&record.path)?.is_some(),
                None => false,
            };
            if held || !outputs.selects_output(&record.path) {
                continue;
            }
            let stat = self.tree.base().stat(&record.path).map_err(at(&record.path))?;
            if stat.is_some_and(|stat| still_describes(&record, record.mtime, &stat)) {
                stale.push(record.path);
            }
        }
        stale.sort_unstable_by(|a, b| b.cmp(a));
        Ok(stale)
    }

    pub(super) fn remove_stale(&self, stale: &[RelPathBuf]) -> Result<(), WorkspaceError> {
        for path in stale {
            let Ok((parent, name)) = self.tree.base().open_parent(path) else { continue };
            match rustix::fs::unlinkat(&parent, name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(Errno::ISDIR) => match rustix::fs::unlinkat(&parent, name, AtFlags::REMOVEDIR) {
                    // Somebody else's files are in it.
                    Ok(()) | Err(Errno::NOENT | Errno::NOTEMPTY | Errno::EXIST) => {}
                    Err(errno) => return Err(at(path)(errno)),
                },
                Err(errno) => return Err(at(path)(errno)),
            }
        }
        Ok(())
    }

    /// Records that the entry's outputs are the task's, with what is there before they are written.
    fn set_claim(
        &self,
        target: &Target<'_>,
        planned: &[Planned],
        logical: &Logical<'_>,
    ) -> Result<(), WorkspaceError> {
        let mut records: BTreeMap<RelPathBuf, Record> = BTreeMap::new();
        if let Some(claimed) = &logical.claimed {
            // What was punched, and what a filter kept out of the entry, is still the earlier run's.
            claimed.add_to(&mut records)?;
        }
        let befores = self.tree.base().map_near(planned, |near, planned| match planned.record.kind {
            RecordKind::ImpliedDir => Ok(PathState::Absent),
            _ => logical.state_near(&planned.record.path, Dependency::READ | Dependency::LINK, near),
        })?;
        for (planned, before) in planned.iter().zip(befores) {
            if matches!(planned.record.kind, RecordKind::ImpliedDir) {
                continue;
            }
            let record = claim_record(&planned.record, planned.mtime, &before);
            records.insert(record.path.clone(), record);
        }
        for record in target.archive.toc().iter() {
            let record = record?;
            if let Some(before) = (target.punched)(&record.path) {
                let before = before.unwrap_or(PathState::Absent);
                let mtime = record.mtime.shifted(target.shift_ns);
                records.entry(record.path.clone()).or_insert_with(|| claim_record(&record, mtime, &before));
            }
        }
        let records = records.into_values().collect();
        self.publish_claim((target.owner, target.task_name), Some(target.entry), target.shift_ns, records)
    }

    /// Replaces a task's claim.
    pub(super) fn publish_claim(
        &self,
        (owner, task_name): (TaskId, &str),
        entry: Option<Uuid>,
        shift_ns: i64,
        records: Vec<Record>,
    ) -> Result<(), WorkspaceError> {
        let manifest = Uuid::new_v4();
        let temp = self.store.create_temp()?;
        write_manifest(temp.file(), records)?;
        temp.publish_claim(manifest)?;
        let claim =
            Claim { workspace: self.id, owner, task_name: task_name.to_owned(), manifest, shift_ns, entry };
        match self.index.set_claim(&claim) {
            Ok(old) => old.and_then(|old| forgo("remove a claim", self.store.remove_claim(old))),
            Err(error) => {
                forgo("remove a claim", self.store.remove_claim(manifest));
                return Err(error.into());
            }
        };
        Ok(())
    }

    fn write_planned(
        &self,
        target: &Target<'_>,
        planned: &[Planned],
        progress: ProgressSink<'_>,
    ) -> Result<Restored, WorkspaceError> {
        if planned.iter().all(|planned| planned.in_place) {
            return Ok(Restored { changed: true, ..Restored::default() });
        }
        let fresh = FreshDirs::of(planned);
        self.remove_leftovers(&fresh)?;
        let (base, archive, todo) = (self.tree.base(), target.archive, Todo::of(planned));
        let write = |fresh: &FreshDirs| {
            let meter = Meter::new(target.stage, todo.records(), progress);
            Writer { base, archive, fresh, meter: &meter }.write(&todo)?;
            let (files, bytes) = meter.done();
            Ok(Restored { files, bytes, changed: true })
        };
        let written = write(&fresh);
        for (_, temp) in fresh.iter() {
            // It is gone unless something went wrong.
            forgo("remove what was half restored", base.remove_all(temp).map_err(at(temp)));
        }
        match written {
            // Somebody else made a directory of that name meanwhile: what is in it stays.
            Err(WorkspaceError::Base { source, .. })
                if !fresh.is_empty() && source.kind() == std::io::ErrorKind::AlreadyExists =>
            {
                write(&FreshDirs::default())
            }
            other => other,
        }
    }

    /// Removes what restores that were cut off left beside the directories that are to be put together.
    fn remove_leftovers(&self, fresh: &FreshDirs) -> Result<(), WorkspaceError> {
        let base = self.tree.base();
        let parents: BTreeSet<_> = fresh.iter().filter_map(|(path, _)| path.parent()).collect();
        for parent in parents {
            for (name, kind) in base.list(parent).map_err(at(parent))?.unwrap_or_default() {
                if kind == FileKind::Dir && is_temporary_name(&name) {
                    let path = parent.join(&name);
                    base.remove_all(&path).map_err(at(&path))?;
                }
            }
        }
        Ok(())
    }
}

pub(super) fn at(path: &RelPath) -> impl FnOnce(Errno) -> WorkspaceError {
    move |errno| WorkspaceError::Base { path: path.to_owned(), source: errno.into() }
}
