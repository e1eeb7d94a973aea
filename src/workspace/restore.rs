//! Writing an entry's outputs into the base as ordinary files: a hit without a mount, and the end of one.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rayon::prelude::*;
use rustix::fs::{AtFlags, Mode};
use rustix::io::Errno;
use uuid::Uuid;

use super::{ProgressSink, Workspace, WorkspaceError, forgo};
use crate::archive::restore::{restore_object, set_dir_attributes};
use crate::archive::{Archive, Record, RecordKind, write_manifest};
use crate::claim::{Claimed, claim_record, still_describes};
use crate::filter::Filter;
use crate::fs::{FsError, SetTime, Timestamp};
use crate::index::{Claim, TaskId};
use crate::logical::Logical;
use crate::path::{RelPath, RelPathBuf};
use crate::report::{Progress, Stage};
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
        let mut planned = self.plan_restore(target)?;
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
        self.set_claim(target, &mut planned, &logical)?;
        self.remove_stale(&stale)?;
        self.write_planned(target, &planned, progress)
    }

    fn plan_restore(&self, target: &Target<'_>) -> Result<Vec<Planned>, WorkspaceError> {
        let mut records = Vec::new();
        for record in target.archive.toc().iter() {
            let record = record?;
            if (target.punched)(&record.path).is_none() {
                records.push(record);
            }
        }
        records
            .into_par_iter()
            .map(|record| {
                let mtime = record.mtime.shifted(target.shift_ns);
                let stat = self.tree.base().stat(&record.path).map_err(at(&record.path))?;
                let in_place = match (&record.kind, &stat) {
                    (RecordKind::Absent, stat) => stat.is_none(),
                    (RecordKind::ImpliedDir, Some(stat)) => stat.kind == FileKind::Dir,
                    (RecordKind::Dir, Some(stat)) => stat.kind == FileKind::Dir && stat.mode == record.mode,
                    (_, Some(stat)) => still_describes(&record, mtime, stat),
                    (_, None) => false,
                };
                Ok(Planned { record, mtime, in_place })
            })
            .collect()
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
        planned: &mut [Planned],
        logical: &Logical<'_>,
    ) -> Result<(), WorkspaceError> {
        let mut records: BTreeMap<RelPathBuf, Record> = BTreeMap::new();
        if let Some(claimed) = &logical.claimed {
            // What was punched, and what a filter kept out of the entry, is still the earlier run's.
            claimed.add_to(&mut records)?;
        }
        let befores: Vec<_> = planned
            .par_iter()
            .map(|planned| match planned.record.kind {
                RecordKind::ImpliedDir => Ok(PathState::Absent),
                _ => logical.state(&planned.record.path, Dependency::READ | Dependency::LINK),
            })
            .collect::<Result<_, FsError>>()?;
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
        let todo: Vec<_> = planned.iter().filter(|planned| planned.needs_work()).collect();
        let is_dir =
            |planned: &&&Planned| matches!(planned.record.kind, RecordKind::Dir | RecordKind::ImpliedDir);
        let (mut dirs, others): (Vec<_>, Vec<_>) = todo.into_iter().partition(|planned| is_dir(&planned));
        dirs.sort_unstable_by(|a, b| a.record.path.cmp(&b.record.path));
        for planned in &dirs {
            self.restore_dir(planned)?;
        }
        let is_link =
            |planned: &&Planned| matches!(planned.record.kind, RecordKind::File { link_to: Some(_), .. });
        let (links, others): (Vec<_>, Vec<_>) = others.into_iter().partition(is_link);
        let meter = Meter::new(target.stage, others.iter().map(|planned| &planned.record), progress);
        others.par_iter().try_for_each(|planned| {
            self.restore_one(target.archive, planned)?;
            meter.advance(&planned.record);
            Ok::<_, WorkspaceError>(())
        })?;
        for planned in &links {
            self.restore_link(target.archive, planned)?;
        }
        // Deepest first: making something in a directory changes its time, and may need permissions that it
        // does not keep.
        let mut times: Vec<_> =
            planned.iter().filter(|planned| matches!(planned.record.kind, RecordKind::Dir)).collect();
        times.sort_unstable_by(|a, b| b.record.path.cmp(&a.record.path));
        for planned in times {
            self.settle_dir(planned)?;
        }
        let (files, bytes) = meter.done();
        Ok(Restored { files, bytes, changed: true })
    }

    /// Makes a directory that can be filled.
    fn restore_dir(&self, planned: &Planned) -> Result<(), WorkspaceError> {
        let record = &planned.record;
        let base = self.tree.base();
        if base.stat(&record.path).map_err(at(&record.path))?.is_some_and(|stat| stat.kind != FileKind::Dir) {
            base.remove_all(&record.path).map_err(at(&record.path))?;
        }
        let (parent, name) = base.open_parent(&record.path).map_err(at(&record.path))?;
        let mode = Mode::from_bits_truncate(record.mode) | Mode::RWXU;
        match rustix::fs::mkdirat(&parent, name, mode) {
            Ok(()) => Ok(()),
            // Only an output's attributes are the task's business.
            Err(Errno::EXIST) if matches!(record.kind, RecordKind::ImpliedDir) => Ok(()),
            Err(Errno::EXIST) => {
                rustix::fs::chmodat(&parent, name, mode, AtFlags::empty()).map_err(at(&record.path))
            }
            Err(errno) => Err(at(&record.path)(errno)),
        }
    }

    /// Gives a directory that was filled its final attributes.
    fn settle_dir(&self, planned: &Planned) -> Result<(), WorkspaceError> {
        let Planned { record, mtime, .. } = planned;
        let base = self.tree.base();
        if planned.needs_work() {
            let (parent, name) = base.open_parent(&record.path).map_err(at(&record.path))?;
            return Ok(set_dir_attributes(record, parent.as_fd(), name, *mtime)?);
        }
        base.set_times(&record.path, None, Some(SetTime::At(*mtime))).map_err(at(&record.path))
    }

    fn restore_one(&self, archive: &Archive, planned: &Planned) -> Result<(), WorkspaceError> {
        let Planned { record, mtime, .. } = planned;
        let base = self.tree.base();
        if matches!(record.kind, RecordKind::Absent) {
            return base.remove_all(&record.path).map_err(at(&record.path));
        }
        if base.stat(&record.path).map_err(at(&record.path))?.is_some_and(|stat| stat.kind == FileKind::Dir) {
            base.remove_all(&record.path).map_err(at(&record.path))?;
        }
        let (parent, name) = base.open_parent(&record.path).map_err(at(&record.path))?;
        Ok(restore_object(archive, record, parent.as_fd(), name, *mtime)?)
    }

    /// Makes a hard link to a file that is in place already; where the link cannot be made, a copy.
    fn restore_link(&self, archive: &Archive, planned: &Planned) -> Result<(), WorkspaceError> {
        let RecordKind::File { link_to: Some(first), .. } = &planned.record.kind else { return Ok(()) };
        let base = self.tree.base();
        let path = &planned.record.path;
        let (from, from_name) = base.open_parent(first).map_err(at(first))?;
        let (to, to_name) = base.open_parent(path).map_err(at(path))?;
        base.remove_all(path).map_err(at(path))?;
        match rustix::fs::linkat(from, from_name, to, to_name, AtFlags::empty()) {
            Ok(()) => Ok(()),
            Err(Errno::XDEV | Errno::PERM | Errno::MLINK | Errno::NOENT) => {
                self.restore_one(archive, planned)
            }
            Err(errno) => Err(at(path)(errno)),
        }
    }
}

pub(super) fn at(path: &RelPath) -> impl FnOnce(Errno) -> WorkspaceError {
    move |errno| WorkspaceError::Base { path: path.to_owned(), source: errno.into() }
}

/// Counts what is done and tells now and then.
pub(super) struct Meter<'a> {
    stage: Stage,
    files_total: u64,
    bytes_total: u64,
    files: AtomicU64,
    bytes: AtomicU64,
    told: AtomicU64,
    sink: ProgressSink<'a>,
}

/// Files between two reports of progress.
const TELL_EVERY: u64 = 256;

/// Bytes that are told at once however few files they are.
const TELL_BYTES: u64 = 8 << 20;

impl<'a> Meter<'a> {
    pub(super) fn new<'r>(
        stage: Stage,
        records: impl Iterator<Item = &'r Record>,
        sink: ProgressSink<'a>,
    ) -> Self {
        let (files_total, bytes_total) =
            records.fold((0, 0), |(files, bytes), record| (files + 1, bytes + record.size_bytes()));
        let zero = AtomicU64::default;
        let meter =
            Self { stage, files_total, bytes_total, files: zero(), bytes: zero(), told: zero(), sink };
        if files_total > 0 {
            meter.tell();
        }
        meter
    }

    fn advance(&self, record: &Record) {
        let files = self.files.fetch_add(1, Ordering::Relaxed) + 1;
        let bytes = self.bytes.fetch_add(record.size_bytes(), Ordering::Relaxed) + record.size_bytes();
        let told = self.told.load(Ordering::Relaxed);
        if files.is_multiple_of(TELL_EVERY) || bytes >= told + TELL_BYTES {
            self.told.store(bytes, Ordering::Relaxed);
            self.tell();
        }
    }

    fn done(&self) -> (u64, u64) {
        if self.files_total > 0 {
            self.tell();
        }
        (self.files.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed))
    }

    fn tell(&self) {
        (self.sink)(Progress {
            stage: self.stage,
            files_done: self.files.load(Ordering::Relaxed),
            files_total: self.files_total,
            bytes_done: self.bytes.load(Ordering::Relaxed),
            bytes_total: self.bytes_total,
        });
    }
}
