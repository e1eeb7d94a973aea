//! Logical states: what a path looks like to a task, its own outputs taken away.
//!
//! For a path that the task's run created, changed or deleted, and that nobody touched since, the task
//! sees the state before that run. All other paths, and all paths to other tasks, are what they are.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::sync::Arc;

use serde_bytes::ByteBuf;

use crate::archive::{Record, RecordKind};
use crate::base::{BaseStat, Nearby};
use crate::claim::{Claimed, Owned, still_describes};
use crate::content::ContentHashes;
use crate::fs::FsError;
use crate::index::TaskId;
use crate::path::RelPath;
use crate::report::Difference;
use crate::state::{Dependency, FileKind, PathState};
use crate::touched::TouchedSince;
use crate::tree::{Found, Layer, Perspective, Tree};

/// Files of others that are named in a directory of the task's own.
const FOREIGN_MAX: usize = 10;

/// The merged tree as one task sees it.
#[derive(Debug)]
pub struct Logical<'a> {
    /// The merged tree.
    pub tree: &'a Tree,
    /// Content hashes of the base.
    pub hashes: &'a ContentHashes,
    /// The task.
    pub owner: &'a TaskId,
    /// What its runs left in the base.
    pub claimed: Option<Arc<Claimed>>,
    /// What others touched since those outputs were all in place, where that is known.
    pub touched: Option<TouchedSince<'a>>,
}

impl Logical<'_> {
    fn seen(&self) -> Perspective<'_> {
        Perspective { without: Some(self.owner), stale: None }
    }

    /// Returns the state of `path`, as far as `dependency` asks for it.
    ///
    /// # Errors
    /// Where the tree cannot be read.
    pub fn state(&self, path: &RelPath, dependency: Dependency) -> Result<PathState, FsError> {
        self.state_near(path, dependency, &mut Nearby::new(self.tree.base()))
    }

    /// As [`state`](Self::state), for many paths of few directories.
    ///
    /// # Errors
    /// Where the tree cannot be read.
    pub fn state_near(
        &self,
        path: &RelPath,
        dependency: Dependency,
        near: &mut Nearby<'_>,
    ) -> Result<PathState, FsError> {
        let found = self.tree.find_near(path, self.seen(), near)?;
        if let Some(owned) = self.owned(path, found.as_ref())? {
            let is_dir = found.as_ref().is_some_and(|found| found.kind() == FileKind::Dir);
            match owned.before {
                None if is_dir && !self.is_all_own(path)? => {}
                None => return Ok(PathState::Absent),
                // The listing below is taken logically anyway.
                Some(PathState::Dir { .. }) if is_dir => {}
                Some(before) => return Ok(restrict(before, dependency)),
            }
        }
        match found {
            None => Ok(PathState::Absent),
            Some(found) => self.real_state(path, &found, dependency),
        }
    }

    fn real_state(
        &self,
        path: &RelPath,
        found: &Found,
        dependency: Dependency,
    ) -> Result<PathState, FsError> {
        let mut state = found.probe();
        match (&mut state, found) {
            (PathState::File { content, .. }, Found::Base(stat)) if dependency.contains(Dependency::READ) => {
                *content = Some(self.hashes.of_file(self.tree.base(), path, stat)?);
            }
            (
                PathState::File { content, .. },
                Found::Virtual(_, Record { kind: RecordKind::File { content: recorded, .. }, .. }),
            ) if dependency.contains(Dependency::READ) => *content = *recorded,
            (PathState::Symlink { target }, found) if dependency.contains(Dependency::LINK) => {
                let bytes = match found {
                    Found::Virtual(_, Record { kind: RecordKind::Symlink { target }, .. }) => target.clone(),
                    Found::Virtual(..) | Found::Base(_) => self.tree.base().read_link(path)?,
                };
                *target = Some(ByteBuf::from(bytes.into_vec()));
            }
            (PathState::Dir { listing }, _) if dependency.contains(Dependency::LIST) => {
                *listing = Some(self.listing(path)?);
            }
            _ => {}
        }
        Ok(state)
    }

    /// Returns names and kinds in a directory.
    fn listing(&self, dir: &RelPath) -> Result<Vec<(ByteBuf, FileKind)>, FsError> {
        let mut names: BTreeMap<OsString, FileKind> = self.tree.list(dir, self.seen())?;
        for name in self.own_names(dir)? {
            match self.state(&dir.join(&name), Dependency::PROBE)?.kind() {
                Some(kind) => names.insert(name, kind),
                None => names.remove(&name),
            };
        }
        Ok(crate::recording::listing(&names))
    }

    /// Names what made a directory of the task's own appear: what somebody else put into it.
    ///
    /// # Errors
    /// Where the tree cannot be read.
    pub fn named(&self, difference: Difference) -> Result<Vec<Difference>, FsError> {
        let appeared = match &difference {
            Difference::AddedIn { name, dir } => dir.join(OsStr::from_bytes(name)),
            Difference::Appeared(path) => path.clone(),
            _ => return Ok(vec![difference]),
        };
        let mut foreign = Vec::new();
        self.foreign(&appeared, &mut foreign)?;
        Ok(if foreign.is_empty() { vec![difference] } else { foreign })
    }

    fn foreign(&self, dir: &RelPath, named: &mut Vec<Difference>) -> Result<(), FsError> {
        let found = self.tree.find(dir, self.seen())?;
        let own = self.owned(dir, found.as_ref())?.is_some_and(|owned| owned.before.is_none());
        if !own || found.is_none_or(|found| found.kind() != FileKind::Dir) {
            return Ok(());
        }
        for name in self.tree.list(dir, self.seen())?.into_keys() {
            let path = dir.join(&name);
            if named.len() >= FOREIGN_MAX || self.state(&path, Dependency::PROBE)? == PathState::Absent {
                continue;
            }
            let before = named.len();
            self.foreign(&path, named)?;
            if named.len() == before {
                let name = ByteBuf::from(name.into_vec());
                named.push(Difference::AddedIn { name, dir: dir.to_owned() });
            }
        }
        Ok(())
    }

    /// Returns the names in a directory that the task's runs had to do with.
    fn own_names(&self, dir: &RelPath) -> Result<Vec<OsString>, FsError> {
        let mut names = Vec::new();
        if let Some(claimed) = &self.claimed {
            let records = claimed.manifest().children(dir)?;
            names.extend(records.iter().filter_map(|record| record.path.name().map(OsString::from)));
        }
        if let Some(layer) = self.tree.layer_of(self.owner)
            && layer.has_punches()
        {
            let records = layer.archive().toc().children(dir)?;
            let punched = records.iter().filter(|record| layer.is_punched(&record.path));
            names.extend(punched.filter_map(|record| record.path.name().map(OsString::from)));
        }
        Ok(names)
    }

    /// Returns whether everything in a directory that the task made is still as the task left it.
    fn is_all_own(&self, dir: &RelPath) -> Result<bool, FsError> {
        if let Some(touched) = &self.touched {
            return Ok(!touched.below(dir));
        }
        for name in self.tree.list(dir, self.seen())?.into_keys() {
            if self.state(&dir.join(&name), Dependency::PROBE)? != PathState::Absent {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn owned(&self, path: &RelPath, found: Option<&Found>) -> Result<Option<Owned>, FsError> {
        match found {
            Some(Found::Virtual(..)) => Ok(None),
            Some(Found::Base(stat)) => match self.punched(path, stat)? {
                Some(owned) => Ok(Some(owned)),
                None => match &self.claimed {
                    Some(claimed) => Ok(claimed.owned(path, stat)?),
                    None => Ok(None),
                },
            },
            None => match &self.claimed {
                Some(claimed) => Ok(claimed.deleted(path)?),
                None => Ok(None),
            },
        }
    }

    /// Returns what the task's layer says of a path that was taken out of it but not changed.
    fn punched(&self, path: &RelPath, stat: &BaseStat) -> Result<Option<Owned>, FsError> {
        let Some(layer) = self.tree.layer_of(self.owner) else { return Ok(None) };
        let Some(before) = layer.punched_before(path) else { return Ok(None) };
        let record = layer.record(path)?;
        let unchanged = record.is_some_and(|record| describes_shifted(&layer, &record, stat));
        Ok(unchanged.then_some(Owned { before }))
    }
}

fn describes_shifted(layer: &Layer, record: &Record, stat: &BaseStat) -> bool {
    still_describes(record, layer.mtime(record), stat)
}

/// Leaves out what `dependency` does not ask for.
fn restrict(state: PathState, dependency: Dependency) -> PathState {
    match state {
        PathState::File { executable, size_bytes, content } => PathState::File {
            executable,
            size_bytes,
            content: content.filter(|_| dependency.contains(Dependency::READ)),
        },
        PathState::Symlink { target } => {
            PathState::Symlink { target: target.filter(|_| dependency.contains(Dependency::LINK)) }
        }
        PathState::Dir { listing } => {
            PathState::Dir { listing: listing.filter(|_| dependency.contains(Dependency::LIST)) }
        }
        state @ (PathState::Absent | PathState::Special(_)) => state,
    }
}

#[cfg(test)]
mod tests;
