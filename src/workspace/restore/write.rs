//! Writing what is planned.

use std::os::fd::AsFd;

use rayon::prelude::*;
use rustix::fs::{AtFlags, Mode, RenameFlags};
use rustix::io::Errno;

use super::fresh::FreshDirs;
use super::meter::Meter;
use super::{Planned, WorkspaceError, at};
use crate::archive::restore::{parts, restore_new_file, restore_object, set_dir_attributes};
use crate::archive::{Archive, Record, RecordKind};
use crate::base::Base;
use crate::fs::SetTime;
use crate::path::RelPath;
use crate::state::FileKind;

/// What is to be written.
pub(super) struct Todo<'a> {
    /// Directories to make, each before what it holds.
    made: Vec<&'a Planned>,
    /// What goes into directories, but for hard links.
    objects: Vec<&'a Planned>,
    links: Vec<&'a Planned>,
    /// Directories that get their attributes at the end, deepest first. Also those that are as they should be: making
    /// something in a directory changes its time, and may need permissions that it does not keep.
    settled: Vec<&'a Planned>,
}

impl<'a> Todo<'a> {
    pub(super) fn of(planned: &'a [Planned]) -> Self {
        let todo = planned.iter().filter(|planned| planned.needs_work());
        let (mut made, others): (Vec<&Planned>, Vec<_>) = todo.partition(|planned| planned.record.is_dir());
        made.sort_unstable_by(|a, b| a.record.path.cmp(&b.record.path));
        let is_link =
            |planned: &&Planned| matches!(planned.record.kind, RecordKind::File { link_to: Some(_), .. });
        let (links, objects) = others.into_iter().partition(is_link);
        let is_dir = |planned: &&Planned| matches!(planned.record.kind, RecordKind::Dir);
        let mut settled: Vec<_> = planned.iter().filter(is_dir).collect();
        settled.sort_unstable_by(|a, b| b.record.path.cmp(&a.record.path));
        Self { made, objects, links, settled }
    }

    /// Returns the records of what will be counted.
    pub(super) fn records(&self) -> impl Iterator<Item = &Record> {
        self.objects.iter().map(|planned| &planned.record)
    }
}

/// Writes objects of an archive into the base.
pub(super) struct Writer<'a> {
    pub(super) base: &'a Base,
    pub(super) archive: &'a Archive,
    /// Directories that are put together beside their places.
    pub(super) fresh: &'a FreshDirs,
    pub(super) meter: &'a Meter<'a>,
}

impl Writer<'_> {
    /// Makes directories and what is in them, gives them their attributes, and moves those that are fresh to their places.
    pub(super) fn write(&self, todo: &Todo<'_>) -> Result<(), WorkspaceError> {
        for planned in &todo.made {
            self.dir(&planned.record, &self.fresh.place(&planned.record.path))?;
        }
        parts(&todo.objects, |planned| &planned.record)
            .into_par_iter()
            .try_for_each(|some| self.part(some))?;
        for planned in &todo.links {
            self.link(planned)?;
        }
        let (new, old): (Vec<&Planned>, Vec<_>) =
            todo.settled.iter().partition(|planned| self.fresh.holds(&planned.record.path));
        for planned in new {
            self.settle_dir(planned, &self.fresh.place(&planned.record.path))?;
        }
        for (path, temp) in self.fresh.iter() {
            self.base.rename(temp, path, RenameFlags::NOREPLACE).map_err(at(path))?;
        }
        for planned in old {
            self.settle_dir(planned, &planned.record.path)?;
        }
        Ok(())
    }

    /// Restores files and symbolic links of one directory.
    fn part(&self, some: &[&Planned]) -> Result<(), WorkspaceError> {
        let Some(first) = some.first().map(|planned| &planned.record.path) else { return Ok(()) };
        if !self.fresh.holds(first) {
            for planned in some {
                self.one(planned)?;
                self.meter.advance(&planned.record);
            }
            return Ok(());
        }
        // Nobody sees it before the directory has its name.
        let place = self.fresh.place(first);
        let (dir, _) = self.base.open_parent(&place).map_err(at(first))?;
        for Planned { record, mtime, .. } in some {
            let name = record.path.name().unwrap_or_default();
            match record.kind {
                RecordKind::File { .. } => restore_new_file(self.archive, record, dir.as_fd(), name, *mtime)?,
                _ => restore_object(self.archive, record, dir.as_fd(), name, *mtime)?,
            }
            self.meter.advance(record);
        }
        Ok(())
    }

    /// Makes a directory that can be filled.
    fn dir(&self, record: &Record, path: &RelPath) -> Result<(), WorkspaceError> {
        let base = self.base;
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
        let base = self.base;
        if planned.needs_work() {
            let (parent, name) = base.open_parent(path).map_err(at(path))?;
            return Ok(set_dir_attributes(record, parent.as_fd(), name, *mtime)?);
        }
        base.set_times(path, None, Some(SetTime::At(*mtime))).map_err(at(path))
    }

    fn one(&self, planned: &Planned) -> Result<(), WorkspaceError> {
        let Planned { record, mtime, .. } = planned;
        let base = self.base;
        if matches!(record.kind, RecordKind::Absent) {
            return base.remove_all(&record.path).map_err(at(&record.path));
        }
        if base.stat(&record.path).map_err(at(&record.path))?.is_some_and(|stat| stat.kind == FileKind::Dir) {
            base.remove_all(&record.path).map_err(at(&record.path))?;
        }
        let (parent, name) = base.open_parent(&record.path).map_err(at(&record.path))?;
        Ok(restore_object(self.archive, record, parent.as_fd(), name, *mtime)?)
    }

    /// Makes a hard link to a file that is in place already; where the link cannot be made, a copy.
    fn link(&self, planned: &Planned) -> Result<(), WorkspaceError> {
        let Planned { record, mtime, .. } = planned;
        let RecordKind::File { link_to: Some(first), .. } = &record.kind else { return Ok(()) };
        let base = self.base;
        let (first, path) = (&*self.fresh.place(first), &*self.fresh.place(&record.path));
        let (from, from_name) = base.open_parent(first).map_err(at(first))?;
        let (to, to_name) = base.open_parent(path).map_err(at(path))?;
        base.remove_all(path).map_err(at(path))?;
        match rustix::fs::linkat(from, from_name, &to, to_name, AtFlags::empty()) {
            Ok(()) => Ok(()),
            Err(Errno::XDEV | Errno::PERM | Errno::MLINK | Errno::NOENT) => {
                Ok(restore_object(self.archive, record, to.as_fd(), to_name, *mtime)?)
            }
            Err(errno) => Err(at(path)(errno)),
        }
    }
}
