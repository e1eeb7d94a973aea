//! Committing what a task wrote to the base.
//!
//! First everything that is not a blob yet becomes one (files that were moved, virtual content), then the
//! list of steps goes into a journal, then the steps are applied. Each step can be repeated, so after a
//! crash the journal is applied again from the start: before the journal is published the old tree stands,
//! afterwards the new one will.

#[cfg(test)]
pub(crate) mod tests;

use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::sync::Arc;

use rayon::prelude::*;
use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::archive::{Record, RecordKind};
use crate::base::{Base, BaseStat, timestamps};
use crate::change::give_name_to;
use crate::claim::real_record;
use crate::copy::copy_file;
use crate::fs::{FileKind, NodeId, SetTime, Timestamp};
use crate::index::TaskId;
use crate::path::{RelPath, RelPathBuf};
use crate::state::PathState;
use crate::tree::{Layer, Tree, TreeError, record_kind};
use crate::view::{Change, Content, Meta, NewObject};

/// Suffix of the name under which a file is put together before it is renamed into place.
const TEMP_SUFFIX: &[u8] = b".vout-new";

/// What a commit does, as its journal keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Journal {
    /// The workspace it belongs to: several may share a store.
    pub workspace: [u8; 32],
    /// In order: directories before what is in them.
    pub steps: Vec<Step>,
    /// Paths to take out of layers, with the owner's encoded state before.
    pub punches: Vec<LayerPunch>,
}

/// A path to take out of a layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerPunch {
    /// Whose layer.
    pub owner: [u8; 32],
    /// Which path.
    pub path: RelPathBuf,
    /// Encoded state before the owner's run.
    pub before: Option<Vec<u8>>,
}

/// One step of a commit. Each can be repeated.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step {
    /// Remove, with all below.
    Remove(RelPathBuf),
    /// Make a directory, or change its attributes.
    Dir(RelPathBuf, Attributes),
    /// Make a directory, or change its attributes, as `Dir` does, by moving a whole directory of blobs there: the
    /// last part is its path below the staging directory. Steps for the blobs follow, for where that cannot be.
    Moved(RelPathBuf, Attributes, RelPathBuf),
    /// Put a blob there, given by its path below the staging directory. A blob that is gone was put there before.
    Blob(RelPathBuf, RelPathBuf),
    /// Make another name for a file that a step before put in place.
    Link {
        /// The name that is there.
        first: RelPathBuf,
        /// The new name.
        path: RelPathBuf,
    },
    /// Make a symbolic link.
    Symlink(RelPathBuf, Vec<u8>, Attributes),
    /// Make a pipe, socket or device.
    Special(RelPathBuf, FileKind, u32, Attributes),
    /// Give a directory these user attributes and no others.
    Xattrs(RelPathBuf, Vec<(Vec<u8>, Vec<u8>)>),
}

/// Attributes of what is not a regular file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attributes {
    mode: u32,
    uid: u32,
    gid: u32,
    mtime: Timestamp,
}

/// Why a commit failed.
#[derive(Debug, Error)]
pub enum CommitError {
    /// The base.
    #[error("cannot write {path:?}")]
    Base {
        /// The path.
        path: RelPathBuf,
        /// The operating system's answer.
        source: std::io::Error,
    },
    /// The journal.
    #[error("the journal of a commit is damaged")]
    Journal(#[source] postcard::Error),
    /// Reading the journal.
    #[error("the journal of a commit cannot be used")]
    JournalFile(#[source] std::io::Error),
}

fn at(path: &RelPath) -> impl FnOnce(Errno) -> CommitError {
    move |errno| CommitError::Base { path: path.to_owned(), source: errno.into() }
}

/// Plans the steps for `changes`; `stage` makes a blob of content that is not one yet.
///
/// # Errors
/// Those of `stage`.
pub fn plan<E>(
    changes: &[Change],
    mut stage: impl FnMut(&RelPath) -> Result<RelPathBuf, E>,
) -> Result<Vec<Step>, E> {
    let mut steps = Vec::with_capacity(changes.len());
    let mut first_names: HashMap<NodeId, RelPathBuf> = HashMap::new();
    // What is deleted goes first: it may be in the way of a directory's new name.
    steps.extend(
        changes
            .iter()
            .filter(|change| change.object.is_none())
            .map(|change| Step::Remove(change.path.clone())),
    );
    for Change { path, object } in changes {
        let Some(object) = object else { continue };
        steps.push(match object {
            NewObject::Dir(meta, _) => Step::Dir(path.clone(), meta.into()),
            NewObject::Symlink { target, meta } => {
                Step::Symlink(path.clone(), target.as_bytes().to_owned(), meta.into())
            }
            NewObject::Special { kind, rdev, meta } => Step::Special(path.clone(), *kind, *rdev, meta.into()),
            NewObject::File(file) => match first_names.get(&file.node) {
                Some(first) => Step::Link { first: first.clone(), path: path.clone() },
                None => {
                    first_names.insert(file.node, path.clone());
                    let blob = match &file.content {
                        Content::Blob { path, .. } => path.clone(),
                        Content::Lower(lower) => stage(lower)?,
                    };
                    Step::Blob(path.clone(), blob)
                }
            },
        });
        if let NewObject::Dir(_, Some(xattrs)) = object {
            let bytes = |(name, value): &(OsString, Vec<u8>)| (name.as_bytes().to_owned(), value.clone());
            steps.push(Step::Xattrs(path.clone(), xattrs.iter().map(bytes).collect()));
        }
    }
    Ok(steps)
}

/// Has directories that the task made moved with all their blobs, where a directory below `staging` holds just what
/// is to be in them.
///
/// # Errors
/// Where such a directory cannot be listed.
pub fn move_whole_dirs(steps: &mut [Step], staging: &OwnedFd) -> Result<(), CommitError> {
    // For each staged directory: which directory its blobs belong into, unless they scatter, and how many.
    let mut staged: HashMap<&RelPath, (Option<&RelPath>, usize)> = HashMap::new();
    let placed = steps.iter().filter_map(|step| match step {
        Step::Blob(path, blob) => {
            let dir = blob.parent().filter(|dir| !dir.is_root())?;
            Some((dir, path.parent().filter(|_| path.name() == blob.name())))
        }
        _ => None,
    });
    let placed: Vec<_> = placed.collect();
    // Most are neighbours already.
    for blobs in placed.chunk_by(|a, b| a == b) {
        let (dir, target) = blobs[0];
        let known = staged.entry(dir).or_insert((target, 0));
        known.1 += blobs.len();
        if known.0 != target {
            known.0 = None;
        }
    }
    let whole = staged.par_iter().filter_map(|(&dir, &(target, blobs))| {
        let target = target?;
        // What is deleted but still open has a name there, too.
        match count_names(staging, dir).map_err(at(dir)) {
            Ok(names) if names == blobs => Some(Ok((target.to_owned(), dir.to_owned()))),
            Ok(_) => None,
            Err(error) => Some(Err(error)),
        }
    });
    let mut from_of: HashMap<RelPathBuf, RelPathBuf> = whole.collect::<Result<_, _>>()?;
    for step in steps {
        if let Step::Dir(path, attributes) = step
            && let Some(from) = from_of.remove(path)
        {
            *step = Step::Moved(path.clone(), *attributes, from);
        }
    }
    Ok(())
}

fn names_in(staging: &OwnedFd, dir: &RelPath) -> rustix::io::Result<HashSet<OsString>> {
    let mut names = HashSet::new();
    each_name(staging, dir, |name| {
        names.insert(OsStr::from_bytes(name).to_owned());
    })?;
    Ok(names)
}

fn count_names(staging: &OwnedFd, dir: &RelPath) -> rustix::io::Result<usize> {
    let mut count = 0;
    each_name(staging, dir, |_| count += 1)?;
    Ok(count)
}

fn each_name(staging: &OwnedFd, dir: &RelPath, mut each: impl FnMut(&[u8])) -> rustix::io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = if dir.is_root() { OsStr::new(".") } else { dir.as_os_str() };
    for entry in rustix::fs::Dir::new(rustix::fs::openat(staging, dir, flags, Mode::empty())?)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            each(name);
        }
    }
    Ok(())
}

/// Returns the records that have nothing to say any more once `changes` are committed to the base, with
/// their layers, each once.
///
/// # Errors
/// Where the base or an archive cannot be read.
pub fn superseded(tree: &Tree, changes: &[Change]) -> Result<Vec<(Arc<Layer>, Record)>, TreeError> {
    let layers = tree.layers();
    if layers.is_empty() {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    let mut seen = HashSet::new();
    for Change { path, object } in changes {
        let is_dir = matches!(object, Some(NewObject::Dir(..)));
        for (number, layer) in layers.iter().enumerate() {
            let toc = layer.archive().toc();
            let records: Vec<_> = match is_dir {
                true => toc.find(path)?.into_iter().collect(),
                // A directory of the layer may have been in its place.
                false => toc.subtree(path).collect::<Result<_, _>>()?,
            };
            found.extend(records.into_iter().map(|record| (number, record)));
        }
        let dirs = is_dir.then_some(&**path).into_iter().chain(path.ancestors());
        for dir in dirs.take_while(|dir| !dir.is_root()) {
            if seen.insert(dir) && tree.replaces(dir)? {
                hidden_at(&layers, dir, &mut found)?;
            }
        }
    }
    let mut taken = HashSet::new();
    found.retain(|(number, record)| {
        !layers[*number].is_punched(&record.path) && taken.insert((*number, record.path.clone()))
    });
    Ok(found.into_iter().map(|(number, record)| (Arc::clone(&layers[number]), record)).collect())
}

/// Adds what does not show at and below the directory `dir`, which a newer layer, or the change itself, has
/// put in the place of something else. The base has the last word on it now, so it would show again.
fn hidden_at(
    layers: &[Arc<Layer>],
    dir: &RelPath,
    found: &mut Vec<(usize, Record)>,
) -> Result<(), TreeError> {
    for (number, layer) in layers.iter().enumerate() {
        for record in layer.archive().toc().subtree(dir) {
            let record = record?;
            let mut hidden = &*record.path == dir && record_kind(&record.kind) != Some(FileKind::Dir);
            for newer in &layers[..number] {
                hidden = hidden || newer.replaces(&record.path)?;
            }
            if hidden {
                found.push((number, record));
            }
        }
    }
    Ok(())
}

impl Journal {
    /// Reads a journal.
    ///
    /// # Errors
    /// [`CommitError`].
    pub fn read(mut file: impl Read) -> Result<Self, CommitError> {
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(CommitError::JournalFile)?;
        postcard::from_bytes(&bytes).map_err(CommitError::Journal)
    }

    /// Writes the journal; the caller makes it durable.
    ///
    /// # Errors
    /// [`CommitError`].
    pub fn write(&self, mut file: impl Write) -> Result<(), CommitError> {
        file.write_all(&crate::fingerprint::encode(self)).map_err(CommitError::JournalFile)
    }

    /// Returns the records of what the steps put in place, as a claim keeps them, without what was before.
    ///
    /// # Errors
    /// [`CommitError`] where a blob cannot be examined.
    pub fn records(&self, staging: &OwnedFd) -> Result<Vec<Record>, CommitError> {
        let linked: HashSet<&RelPath> = self
            .steps
            .iter()
            .filter_map(|step| if let Step::Link { first, .. } = step { Some(&**first) } else { None })
            .collect();
        let stats: Vec<_> = self.steps.par_iter().map(|step| step.blob_stat(staging)).collect();
        let mut files: HashMap<&RelPath, Record> = HashMap::new();
        let mut records = Vec::with_capacity(self.steps.len());
        for (step, stat) in self.steps.iter().zip(stats) {
            let record = match step {
                Step::Remove(_) | Step::Special(..) | Step::Xattrs(..) => continue,
                Step::Dir(path, _) if path.is_root() => continue,
                Step::Dir(path, attributes) | Step::Moved(path, attributes, _) => {
                    attributes.record(path, RecordKind::Dir)
                }
                Step::Symlink(path, target, attributes) => {
                    let target = OsStr::from_bytes(target).to_owned();
                    attributes.record(path, RecordKind::Symlink { target })
                }
                Step::Blob(path, _) => {
                    let Some(stat) = stat.map_err(at(path))? else { continue };
                    let Some(record) = real_record(path.clone(), &stat, &PathState::Absent) else { continue };
                    if linked.contains(&**path) {
                        files.insert(path, record.clone());
                    }
                    record
                }
                Step::Link { first, path } => match files.get(&**first) {
                    Some(record) => Record { path: path.clone(), ..record.clone() },
                    None => continue,
                },
            };
            records.push(record);
        }
        Ok(records)
    }

    /// Applies all steps, taking blobs from `staging`.
    ///
    /// # Errors
    /// [`CommitError`] at the first step that fails; the ones before it stay.
    pub fn apply(&self, base: &Base, staging: &OwnedFd) -> Result<(), CommitError> {
        self.apply_first(2 * self.steps.len(), base, staging)?;
        self.drop_second_names(staging).map_err(at(RelPath::ROOT))
    }

    /// Removes blobs that were put in place and are still here: renaming a file over another name of the same
    /// file does nothing. They count as links, and dropping them later would look like a change.
    fn drop_second_names(&self, staging: &OwnedFd) -> rustix::io::Result<()> {
        let left = names_in(staging, RelPath::ROOT)?;
        for step in &self.steps {
            let Step::Blob(_, blob) = step else { continue };
            // Others are no second names of anything.
            if blob.parent() == Some(RelPath::ROOT) && left.contains(blob.as_os_str()) {
                rustix::fs::unlinkat(staging, blob.as_os_str(), AtFlags::empty())?;
            }
        }
        Ok(())
    }

    /// Stops after so many moves: a step at a time, then the attributes of a directory at a time.
    pub(crate) fn apply_first(
        &self,
        moves: usize,
        base: &Base,
        staging: &OwnedFd,
    ) -> Result<(), CommitError> {
        let mut parents = Parents { base, last: None, moved: HashSet::new() };
        for step in self.steps.iter().take(moves) {
            step.apply(base, staging, &mut parents).map_err(at(step.path()))?;
        }
        // Filling a directory changes its time, and may need permissions that it does not keep.
        for step in self.steps.iter().rev().take(moves.saturating_sub(self.steps.len())) {
            step.settle_dir(base).map_err(at(step.path()))?;
        }
        Ok(())
    }
}

impl Step {
    fn path(&self) -> &RelPath {
        match self {
            Self::Remove(path)
            | Self::Dir(path, _)
            | Self::Moved(path, ..)
            | Self::Blob(path, _)
            | Self::Link { path, .. }
            | Self::Symlink(path, ..)
            | Self::Special(path, ..)
            | Self::Xattrs(path, _) => path,
        }
    }

    fn apply<'a>(
        &'a self,
        base: &Base,
        staging: &OwnedFd,
        parents: &mut Parents<'a>,
    ) -> rustix::io::Result<()> {
        if !matches!(self, Self::Blob(..)) {
            parents.last = None;
        }
        match self {
            Self::Remove(path) => base.remove_all(path),
            Self::Dir(path, _) => make_dir(base, path),
            Self::Moved(path, _, from) => {
                if move_dir(base, staging, path, from)? {
                    parents.moved.insert(from);
                }
                Ok(())
            }
            Self::Blob(path, blob) => put_blob(parents, staging, path, blob),
            Self::Link { first, path } => link(base, first, path),
            Self::Symlink(path, target, attributes) => {
                put_symlink(base, path, OsStr::from_bytes(target), attributes)
            }
            Self::Special(path, kind, rdev, attributes) => put_special(base, path, *kind, *rdev, attributes),
            Self::Xattrs(path, xattrs) => set_xattrs(base, path, xattrs),
        }
    }

    /// Examines the blob that is to be put in place.
    fn blob_stat(&self, staging: &OwnedFd) -> rustix::io::Result<Option<BaseStat>> {
        let Self::Blob(_, blob) = self else { return Ok(None) };
        let stat = rustix::fs::statat(staging, blob.as_os_str(), AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(Some(BaseStat::from(stat)))
    }

    /// Gives a directory its final attributes.
    fn settle_dir(&self, base: &Base) -> rustix::io::Result<()> {
        let (Self::Dir(path, attributes) | Self::Moved(path, attributes, _)) = self else { return Ok(()) };
        if path.is_root() {
            set_attributes(base.root(), OsStr::new("."), attributes)?;
        } else {
            let (dir, name) = base.open_parent(path)?;
            set_attributes(dir.as_fd(), name, attributes)?;
        }
        base.set_times(path, None, Some(SetTime::At(attributes.mtime)))
    }
}

impl LayerPunch {
    /// Returns whose layer it concerns.
    #[must_use]
    pub fn owner(&self) -> TaskId {
        TaskId(crate::digest::Digest::from_bytes(self.owner))
    }
}

impl Attributes {
    fn record(&self, path: &RelPath, kind: RecordKind) -> Record {
        Record {
            path: path.to_owned(),
            kind,
            mode: self.mode,
            uid: self.uid,
            gid: self.gid,
            mtime: self.mtime,
            xattrs: Vec::new(),
            before: None,
        }
    }
}

impl From<&Meta> for Attributes {
    fn from(meta: &Meta) -> Self {
        Self { mode: meta.mode, uid: meta.uid, gid: meta.gid, mtime: meta.mtime }
    }
}

/// Opens the directory that holds `path`, making missing directories above it.
fn parent<'a>(base: &Base, path: &'a RelPath) -> rustix::io::Result<(OwnedFd, &'a OsStr)> {
    match base.open_parent(path) {
        // Where a layer has a directory, the base may have none, or something else.
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) if !base.hides(path) => {
            for ancestor in path.ancestors().collect::<Vec<_>>().into_iter().rev() {
                match base.stat(ancestor)?.map(|stat| stat.kind) {
                    Some(FileKind::Dir) => continue,
                    Some(_) => base.remove_all(ancestor)?,
                    None => {}
                }
                let (dir, name) = base.open_parent(ancestor)?;
                rustix::fs::mkdirat(dir, name, Mode::from_bits_truncate(0o755))?;
            }
            base.open_parent(path)
        }
        other => other,
    }
}

/// Makes a directory that can be filled; its own attributes come last.
fn make_dir(base: &Base, path: &RelPath) -> rustix::io::Result<()> {
    if path.is_root() {
        return Ok(());
    }
    let there = base.stat(path)?;
    if there.is_some_and(|stat| stat.kind != FileKind::Dir) {
        base.remove_all(path)?;
    }
    let (dir, name) = parent(base, path)?;
    match rustix::fs::mkdirat(&dir, name, Mode::RWXU) {
        Ok(()) => Ok(()),
        Err(Errno::EXIST) => match there {
            Some(stat) if stat.mode & 0o700 != 0o700 => {
                let mode = Mode::from_bits_truncate(stat.mode | 0o700);
                rustix::fs::chmodat(&dir, name, mode, AtFlags::empty())
            }
            _ => Ok(()),
        },
        Err(errno) => Err(errno),
    }
}

/// Moves a directory of blobs into place; where it cannot go there as it is, makes a directory for the blobs.
/// Returns whether everything in it is in place.
fn move_dir(base: &Base, staging: &OwnedFd, path: &RelPath, from: &RelPath) -> rustix::io::Result<bool> {
    if base.stat(path)?.is_none() && !base.hides(path) {
        let (dir, name) = parent(base, path)?;
        match rustix::fs::renameat(staging, from.as_os_str(), dir, name) {
            Ok(()) => return Ok(true),
            // It was moved before, or is to go to another file system, or somebody was faster.
            Err(Errno::NOENT | Errno::XDEV | Errno::EXIST | Errno::NOTEMPTY | Errno::NOTDIR) => {}
            Err(errno) => return Err(errno),
        }
    }
    make_dir(base, path)?;
    Ok(false)
}

fn set_attributes(dir: std::os::fd::BorrowedFd<'_>, name: &OsStr, to: &Attributes) -> rustix::io::Result<()> {
    give_name_to(dir, name, to.uid, to.gid)?;
    rustix::fs::chmodat(dir, name, Mode::from_bits_truncate(to.mode), AtFlags::empty())
}

/// A file system without such attributes goes without.
fn set_xattrs(base: &Base, path: &RelPath, xattrs: &[(Vec<u8>, Vec<u8>)]) -> rustix::io::Result<()> {
    let object = base.open(path, OFlags::PATH | OFlags::NOFOLLOW, 0)?;
    for (name, _) in crate::xattr::user_xattrs_at(&object)? {
        if !xattrs.iter().any(|(kept, _)| kept.as_slice() == name.as_bytes()) {
            crate::xattr::remove(&object, &name)?;
        }
    }
    for (name, value) in xattrs {
        crate::xattr::set_where_supported(&object, OsStr::from_bytes(name), value)?;
    }
    Ok(())
}

/// The directory that the last blob was put into, as long as nothing but blobs is put anywhere.
struct Parents<'a> {
    base: &'a Base,
    last: Option<(RelPathBuf, OwnedFd)>,
    /// Staged directories that were moved into place with their blobs.
    moved: HashSet<&'a RelPath>,
}

impl Parents<'_> {
    fn knows(&self, path: &RelPath) -> bool {
        self.last.as_ref().is_some_and(|(dir, _)| path.parent() == Some(dir))
    }

    /// Opens the directory that holds `path`, making missing directories above it.
    fn of<'p>(&mut self, path: &'p RelPath) -> rustix::io::Result<(&OwnedFd, &'p OsStr)> {
        let (dir, name) = path.split_last().ok_or(Errno::BUSY)?;
        let opened = match self.last.take() {
            Some((known, opened)) if *known == *dir && !self.base.hides(path) => opened,
            _ => parent(self.base, path)?.0,
        };
        let (_, opened) = self.last.insert((dir.to_owned(), opened));
        Ok((opened, name))
    }
}

fn put_blob(
    parents: &mut Parents<'_>,
    staging: &OwnedFd,
    path: &RelPath,
    blob: &RelPath,
) -> rustix::io::Result<()> {
    if blob.parent().is_some_and(|dir| parents.moved.contains(dir)) {
        return Ok(());
    }
    let blob = blob.as_os_str();
    // What was put there before may be gone since, with its directory, which then is not made again.
    if !parents.knows(path) && is_gone(staging, blob)? {
        return Ok(());
    }
    let base = parents.base;
    let (dir, name) = parents.of(path)?;
    match rustix::fs::renameat(staging, blob, dir, name) {
        Err(Errno::NOENT) if is_gone(staging, blob)? => Ok(()),
        Err(Errno::ISDIR) => {
            base.remove_all(path)?;
            move_blob((staging, blob), (dir, name))
        }
        Err(Errno::XDEV) => {
            remove_dir_in_the_way(base, path)?;
            move_blob((staging, blob), (dir, name))
        }
        other => other,
    }
}

fn is_gone(staging: &OwnedFd, blob: &OsStr) -> rustix::io::Result<bool> {
    match rustix::fs::statat(staging, blob, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(_) => Ok(false),
        Err(Errno::NOENT) => Ok(true),
        Err(errno) => Err(errno),
    }
}

/// Moves a blob to a name that no directory has, from another file system where need be.
fn move_blob((staging, blob): (&OwnedFd, &OsStr), (dir, name): (&OwnedFd, &OsStr)) -> rustix::io::Result<()> {
    match rustix::fs::renameat(staging, blob, dir, name) {
        Err(Errno::XDEV) => {
            let temp = temp_name(name);
            copy_file((staging, blob), (dir, &temp))?;
            rustix::fs::renameat(dir, &temp, dir, name)?;
            rustix::fs::unlinkat(staging, blob, AtFlags::empty())
        }
        other => other,
    }
}

fn link(base: &Base, first: &RelPath, path: &RelPath) -> rustix::io::Result<()> {
    let Some(first_stat) = base.stat(first)? else { return Err(Errno::NOENT) };
    if base.stat(path)?.is_some_and(|stat| {
        (stat.identity.dev, stat.identity.ino) == (first_stat.identity.dev, first_stat.identity.ino)
    }) {
        return Ok(());
    }
    remove_dir_in_the_way(base, path)?;
    let (from_dir, from_name) = base.open_parent(first)?;
    let (dir, name) = parent(base, path)?;
    let temp = temp_name(name);
    remove_temp(&dir, &temp)?;
    rustix::fs::linkat(from_dir, from_name, &dir, &temp, AtFlags::empty())?;
    rustix::fs::renameat(&dir, &temp, &dir, name)
}

fn put_symlink(
    base: &Base,
    path: &RelPath,
    target: &OsStr,
    attributes: &Attributes,
) -> rustix::io::Result<()> {
    remove_dir_in_the_way(base, path)?;
    let (dir, name) = parent(base, path)?;
    let temp = temp_name(name);
    remove_temp(&dir, &temp)?;
    rustix::fs::symlinkat(target, &dir, &temp)?;
    give_name_to(&dir, &temp, attributes.uid, attributes.gid)?;
    let times = timestamps(None, Some(SetTime::At(attributes.mtime)));
    rustix::fs::utimensat(&dir, &temp, &times, AtFlags::SYMLINK_NOFOLLOW)?;
    rustix::fs::renameat(&dir, &temp, &dir, name)
}

fn put_special(
    base: &Base,
    path: &RelPath,
    kind: FileKind,
    rdev: u32,
    attributes: &Attributes,
) -> rustix::io::Result<()> {
    let file_type = match kind {
        FileKind::Fifo => FileType::Fifo,
        FileKind::Socket => FileType::Socket,
        FileKind::CharDevice => FileType::CharacterDevice,
        FileKind::BlockDevice => FileType::BlockDevice,
        FileKind::File | FileKind::Dir | FileKind::Symlink => return Err(Errno::INVAL),
    };
    base.remove_all(path)?;
    let (dir, name) = parent(base, path)?;
    rustix::fs::mknodat(&dir, name, file_type, Mode::from_bits_truncate(attributes.mode), u64::from(rdev))?;
    set_attributes(dir.as_fd(), name, attributes)
}

fn remove_dir_in_the_way(base: &Base, path: &RelPath) -> rustix::io::Result<()> {
    if base.stat(path)?.is_some_and(|stat| stat.kind == FileKind::Dir) {
        base.remove_all(path)?;
    }
    Ok(())
}

fn remove_temp(dir: &OwnedFd, temp: &OsStr) -> rustix::io::Result<()> {
    match rustix::fs::unlinkat(dir, temp, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// Returns a name beside `name`; a long one is shortened to stay within 255 bytes.
fn temp_name(name: &OsStr) -> OsString {
    let kept = name.len().min(255 - TEMP_SUFFIX.len());
    OsString::from_vec([&name.as_bytes()[..kept], TEMP_SUFFIX].concat())
}
