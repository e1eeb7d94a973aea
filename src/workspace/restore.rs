//! Writing an entry's outputs into the base as ordinary files: a hit without a mount, and the end of one.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rayon::prelude::*;
use rustix::fs::{AtFlags, Mode, RenameFlags};
use rustix::io::Errno;
use uuid::Uuid;

use super::{ProgressSink, Workspace, WorkspaceError, forgo};
use crate::archive::restore::{
    is_temporary_name, parts, restore_new_file, restore_object, set_dir_attributes, temporary_name,
};
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

/// Directories that are not there yet, none in another, and the names under which they are put together: first
/// filled, then renamed, so that not each file has to be.
#[derive(Debug, Default)]
struct FreshDirs(Vec<(RelPathBuf, RelPathBuf)>);

impl FreshDirs {
    fn of(planned: &[Planned]) -> Self {
        let missing = planned.iter().filter(|planned| planned.missing && planned.record.is_dir());
        let mut missing: Vec<_> = missing.map(|planned| &planned.record.path).collect();
        missing.sort_unstable_by(|a, b| a.components().cmp(b.components()));
        let mut fresh = Self::default();
        for path in missing {
            // In the order of components, what is in a directory follows it.
            if fresh.0.last().is_none_or(|(root, _)| !path.starts_with(root)) {
                let parent = path.parent().unwrap_or(RelPath::ROOT);
                fresh.0.push((path.clone(), parent.join(temporary_name().as_ref())));
            }
        }
        fresh
    }

    fn root_of(&self, path: &RelPath) -> Option<&(RelPathBuf, RelPathBuf)> {
        let behind = self.0.partition_point(|(root, _)| root.components().le(path.components()));
        self.0[..behind].last().filter(|(root, _)| path.starts_with(root))
    }

    /// Returns where to put what belongs at `path`.
    fn place(&self, path: &RelPath) -> RelPathBuf {
        match self.root_of(path) {
            Some((root, temp)) => {
                let below = path.components().skip(root.components().count());
                below.fold(temp.clone(), |place, name| place.join(name))
            }
            None => path.to_owned(),
        }
    }
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
                Ok(Planned { record, mtime, in_place, missing: stat.is_none() })
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
        let fresh = FreshDirs::of(planned);
        self.remove_leftovers(&fresh)?;
        let result = self.write_into(target, planned, &fresh, progress);
        for (_, temp) in &fresh.0 {
            // It is gone unless something went wrong.
            forgo("remove what was half restored", self.tree.base().remove_all(temp).map_err(at(temp)));
        }
        match result {
            // Somebody else made a directory of that name meanwhile: what is in it stays.
            Err(WorkspaceError::Base { source, .. })
                if !fresh.0.is_empty() && source.kind() == std::io::ErrorKind::AlreadyExists =>
            {
                self.write_into(target, planned, &FreshDirs::default(), progress)
            }
            other => other,
        }
    }

    /// Removes what restores that were cut off left beside the directories that are to be put together.
    fn remove_leftovers(&self, fresh: &FreshDirs) -> Result<(), WorkspaceError> {
        let base = self.tree.base();
        let parents: BTreeSet<_> = fresh.0.iter().filter_map(|(path, _)| path.parent()).collect();
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

    fn write_into(
        &self,
        target: &Target<'_>,
        planned: &[Planned],
        fresh: &FreshDirs,
        progress: ProgressSink<'_>,
    ) -> Result<Restored, WorkspaceError> {
        let todo: Vec<_> = planned.iter().filter(|planned| planned.needs_work()).collect();
        let (mut dirs, others): (Vec<_>, Vec<_>) =
            todo.into_iter().partition(|planned| planned.record.is_dir());
        dirs.sort_unstable_by(|a, b| a.record.path.cmp(&b.record.path));
        for planned in &dirs {
            self.restore_dir(&planned.record, &fresh.place(&planned.record.path))?;
        }
        let is_link =
            |planned: &&Planned| matches!(planned.record.kind, RecordKind::File { link_to: Some(_), .. });
        let (links, others): (Vec<_>, Vec<_>) = others.into_iter().partition(is_link);
        let meter = Meter::new(target.stage, others.iter().map(|planned| &planned.record), progress);
        parts(&others, |planned| &planned.record)
            .into_par_iter()
            .try_for_each(|some| self.restore_some(target.archive, some, fresh, &meter))?;
        for planned in &links {
            self.restore_link(target.archive, planned, fresh)?;
        }
        // Deepest first: making something in a directory changes its time, and may need permissions that it
        // does not keep.
        let mut times: Vec<_> =
            planned.iter().filter(|planned| matches!(planned.record.kind, RecordKind::Dir)).collect();
        times.sort_unstable_by(|a, b| b.record.path.cmp(&a.record.path));
        let (new, old): (Vec<_>, Vec<_>) =
            times.into_iter().partition(|planned| fresh.root_of(&planned.record.path).is_some());
        for planned in new {
            self.settle_dir(planned, &fresh.place(&planned.record.path))?;
        }
        for (path, temp) in &fresh.0 {
            self.tree.base().rename(temp, path, RenameFlags::NOREPLACE).map_err(at(path))?;
        }
        for planned in old {
            self.settle_dir(planned, &planned.record.path)?;
        }
        let (files, bytes) = meter.done();
        Ok(Restored { files, bytes, changed: true })
    }

    /// Restores files and symbolic links of one directory.
    fn restore_some(
        &self,
        archive: &Archive,
        some: &[&Planned],
        fresh: &FreshDirs,
        meter: &Meter<'_>,
    ) -> Result<(), WorkspaceError> {
        let Some(first) = some.first().map(|planned| &planned.record.path) else { return Ok(()) };
        if fresh.root_of(first).is_none() {
            for planned in some {
                self.restore_one(archive, planned)?;
                meter.advance(&planned.record);
            }
            return Ok(());
        }
        // Nobody sees it before the directory has its name.
        let place = fresh.place(first);
        let (dir, _) = self.tree.base().open_parent(&place).map_err(at(first))?;
        for Planned { record, mtime, .. } in some {
            let name = record.path.name().unwrap_or_default();
            match record.kind {
                RecordKind::File { .. } => restore_new_file(archive, record, dir.as_fd(), name, *mtime)?,
                _ => restore_object(archive, record, dir.as_fd(), name, *mtime)?,
            }
            meter.advance(record);
        }
        Ok(())
    }

    /// Makes a directory that can be filled.
    fn restore_dir(&self, record: &Record, path: &RelPath) -> Result<(), WorkspaceError> {
        let base = self.tree.base();
        if base.stat(path).map_err(at(path))?.is_some_and(|stat| stat.kind != FileKind::Dir) {
            base.remove_all(path).map_err(at(path))?;
        }
        let (parent, name) = base.open_parent(path).map_err(at(path))?;
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
    fn settle_dir(&self, planned: &Planned, path: &RelPath) -> Result<(), WorkspaceError> {
        let Planned { record, mtime, .. } = planned;
        let base = self.tree.base();
        if planned.needs_work() {
            let (parent, name) = base.open_parent(path).map_err(at(path))?;
            return Ok(set_dir_attributes(record, parent.as_fd(), name, *mtime)?);
        }
        base.set_times(path, None, Some(SetTime::At(*mtime))).map_err(at(path))
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
    fn restore_link(
        &self,
        archive: &Archive,
        planned: &Planned,
        fresh: &FreshDirs,
    ) -> Result<(), WorkspaceError> {
        let Planned { record, mtime, .. } = planned;
        let RecordKind::File { link_to: Some(first), .. } = &record.kind else { return Ok(()) };
        let base = self.tree.base();
        let (first, path) = (&*fresh.place(first), &*fresh.place(&record.path));
        let (from, from_name) = base.open_parent(first).map_err(at(first))?;
        let (to, to_name) = base.open_parent(path).map_err(at(path))?;
        base.remove_all(path).map_err(at(path))?;
        match rustix::fs::linkat(from, from_name, &to, to_name, AtFlags::empty()) {
            Ok(()) => Ok(()),
            Err(Errno::XDEV | Errno::PERM | Errno::MLINK | Errno::NOENT) => {
                Ok(restore_object(archive, record, to.as_fd(), to_name, *mtime)?)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> &RelPath {
        RelPath::new(text).unwrap()
    }

    fn planned(text: &str, kind: RecordKind, missing: bool) -> Planned {
        let record = crate::claim::absent_record(path(text).to_owned(), &PathState::Absent);
        Planned { record: Record { kind, ..record }, mtime: Timestamp::default(), in_place: false, missing }
    }

    #[test]
    fn what_lies_in_a_missing_directory_is_put_together_beside_it() {
        let dir = |text, missing| planned(text, RecordKind::Dir, missing);
        let file = planned("e/file", RecordKind::Symlink { target: "x".into() }, true);
        let fresh = FreshDirs::of(&[
            dir("a/b", true),
            dir("a", true),
            dir("a-b", true),
            dir("a/b/c", true),
            dir("e", false),
            dir("e/f", true),
            file,
        ]);
        let roots: Vec<_> = fresh.0.iter().map(|(root, _)| root.as_os_str().to_str().unwrap()).collect();
        assert_eq!(roots, ["a", "a-b", "e/f"]);
        for (of, root, below) in [("a/b/c/d", 0, "b/c/d"), ("a-b/x", 1, "x"), ("e/f", 2, "")] {
            let temp = &fresh.0[root].1;
            assert!(is_temporary_name(temp.name().unwrap()));
            assert_eq!(temp.parent(), fresh.0[root].0.parent());
            assert_eq!(fresh.place(path(of)), temp.join_path(path(below)), "{of}");
        }
        for elsewhere in ["e", "e/file", "ab", "e/ff", "0", ""] {
            assert_eq!(&*fresh.place(path(elsewhere)), path(elsewhere));
        }
    }
}
