//! Which files are a run's outputs, and packing them.
//!
//! The output filter sees the task's writes: what this run changed, and what earlier runs of the task
//! wrote and this one left in place. It never sees what was read.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

use rayon::prelude::*;
use rustix::fs::AtFlags;
use uuid::Uuid;

use super::ahead::{Now, PackedFiles, Standing};
use super::finish::{Changed, storage};
use super::lookup::Asked;
use super::{ProgressSink, Workspace};
use crate::archive::{
    ArchivedFile, DiskFile, FileSource, Item, Meta, Packer, Record, RecordKind, Source, Toc,
};
use crate::base::{BaseStat, Identity, Nearby};
use crate::claim::still_describes;
use crate::fs::{FileKind, NodeId};
use crate::path::{RelPath, RelPathBuf};
use crate::report::{NotStored, Progress, Stage};
use crate::state::PathState;
use crate::store::{StoreError, TempFile};
use crate::tree::{Found, Layer, Perspective};
use crate::view::{self, Content, NewObject, View};

/// One output.
pub(super) struct Output<'a> {
    path: Cow<'a, RelPath>,
    what: What<'a>,
}

enum What<'a> {
    /// The run changed it.
    Changed(&'a NewObject),
    /// A run deleted it.
    Deleted,
    /// An earlier run left it in the base.
    Real(Box<BaseStat>),
    /// It is in the task's layer.
    Virtual(Arc<Layer>, Box<Record>),
}

impl Output<'_> {
    /// Returns the node of a file that the run changed.
    fn node(&self) -> Option<NodeId> {
        match &self.what {
            What::Changed(NewObject::File(file)) => Some(file.node),
            _ => None,
        }
    }
}

/// A packed archive that has no name yet.
pub(super) struct PackedArchive {
    file: TempFile,
    pub(super) archive_bytes: u64,
    pub(super) content_bytes: u64,
}

impl PackedArchive {
    /// Makes it an archive of the store and returns its id.
    pub(super) fn publish(self) -> Result<Uuid, StoreError> {
        let id = Uuid::new_v4();
        self.file.publish_archive(id)?;
        Ok(id)
    }
}

/// What tells that two outputs are names of one file.
#[derive(PartialEq, Eq, Hash)]
enum FileId {
    /// Of the view.
    Node(NodeId),
    /// Of the base: device and inode.
    Real(u64, u64),
    /// Of an archive: the first name.
    Virtual(Uuid, RelPathBuf),
}

/// Collects the outputs of a run, sorted by path.
pub(super) fn collect<'a>(
    workspace: &Workspace,
    view: &View,
    asked: &Asked,
    changed: &'a Changed,
) -> Result<Vec<Output<'a>>, NotStored> {
    let mut outputs = Vec::with_capacity(changed.changes.len());
    for (change, before) in changed.iter() {
        let what = match &change.object {
            Some(object) => What::Changed(object),
            // What was not there before the task ever ran is no deletion.
            None if *before == PathState::Absent => continue,
            None => What::Deleted,
        };
        outputs.push(Output { path: Cow::Borrowed(&*change.path), what });
    }
    // A view that hides the earlier outputs from the task does not carry them over either.
    if view.perspective().without.is_none() {
        let left = earlier(workspace, asked, changed)?;
        if !left.is_empty() {
            outputs.extend(left.into_iter().map(|(path, what)| Output { path: Cow::Owned(path), what }));
            outputs.par_sort_by(|a, b| a.path.cmp(&b.path));
        }
    }
    outputs.retain(|output| !output.path.is_root() && asked.output.selects_output(&output.path));
    for Output { path, what } in &outputs {
        if let What::Changed(NewObject::Special { kind, .. }) = what {
            let path = path.clone().into_owned();
            return Err(NotStored::Unarchivable { path, problem: special_problem(*kind).into() });
        }
    }
    Ok(outputs)
}

/// Returns what earlier runs of the task wrote and this one did not change, as far as it is still there as it was.
fn earlier<'a>(
    workspace: &Workspace,
    asked: &Asked,
    changed: &Changed,
) -> Result<BTreeMap<RelPathBuf, What<'a>>, NotStored> {
    let mut written = BTreeMap::new();
    if let Some(claimed) = &asked.claimed {
        let what = |record: Record, found| match (&record.kind, found) {
            (RecordKind::Absent, None) => Some((record.path, What::Deleted)),
            (_, Some(Found::Base(stat))) if still_describes(&record, record.mtime, &stat) => {
                Some((record.path, What::Real(Box::new(stat))))
            }
            _ => None,
        };
        written.extend(earlier_of(workspace, claimed.manifest(), changed, what)?);
    }
    if let Some(layer) = workspace.tree.layer_of(&asked.owner) {
        let what = |record: Record, found| match found {
            None if matches!(record.kind, RecordKind::Absent) => Some((record.path, What::Deleted)),
            Some(Found::Virtual(top, _)) if Arc::ptr_eq(&top, &layer) => {
                Some((record.path.clone(), What::Virtual(Arc::clone(&layer), Box::new(record))))
            }
            Some(Found::Base(stat)) if still_describes(&record, layer.mtime(&record), &stat) => {
                Some((record.path, What::Real(Box::new(stat))))
            }
            _ => None,
        };
        written.extend(earlier_of(workspace, layer.archive().toc(), changed, what)?);
    }
    Ok(written)
}

/// Takes the records of paths that were not changed to what is there now, and gives what that is as an output.
fn earlier_of<'a>(
    workspace: &Workspace,
    toc: &Toc,
    changed: &Changed,
    what: impl Fn(Record, Option<Found>) -> Option<(RelPathBuf, What<'a>)> + Sync,
) -> Result<Vec<(RelPathBuf, What<'a>)>, NotStored> {
    let mut covering = changed.covering();
    let mut left = Vec::new();
    for record in toc.iter() {
        let record = record.map_err(storage)?;
        if !matches!(record.kind, RecordKind::ImpliedDir) && !covering.covers(&record.path) {
            left.push(record);
        }
    }
    let tree = &workspace.tree;
    let found = left.into_par_iter().map_init(
        || Nearby::new(tree.base()),
        |near, record| {
            let found = tree.find_near(&record.path, Perspective::ALL, near).map_err(storage)?;
            Ok(what(record, found))
        },
    );
    Ok(found.collect::<Result<Vec<_>, NotStored>>()?.into_iter().flatten().collect())
}

impl Workspace {
    /// Packs outputs into a new archive; `None` where there are none.
    pub(super) fn pack(
        &self,
        outputs: &[Output<'_>],
        view: &View,
        ahead: Option<PackedFiles>,
        progress: ProgressSink<'_>,
    ) -> Result<Option<PackedArchive>, NotStored> {
        if outputs.is_empty() {
            return Ok(None);
        }
        let (items, standing) = self.items(outputs, view, ahead.as_ref())?;
        let begun = ahead.map(|PackedFiles { temp, archive, .. }| (temp, archive));
        let files_total = outputs.len() as u64;
        let bytes_total = standing.bytes + items.iter().map(item_bytes).sum::<u64>();
        tracing::debug!(files = files_total, ahead = outputs.len() - items.len(), "outputs are packed");
        let done = Mutex::new((0, 0));
        let tell = |files: u64, bytes: u64| {
            let (files_done, bytes_done) = {
                let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
                *done = (done.0 + files, done.1 + bytes);
                *done
            };
            let stage = Stage::Packing;
            progress(Progress { stage, files_done, files_total, bytes_done, bytes_total });
        };
        let (temp, packed) = match begun {
            Some((temp, archive)) => {
                let keep = |unit: usize| standing.units[unit];
                let packed = Packer::default().pack_after(temp.file(), (archive, &keep), items, &tell);
                (temp, packed)
            }
            None => {
                let temp = self.store.create_temp().map_err(storage)?;
                let packed = Packer::default().pack(temp.file(), items, &tell);
                (temp, packed)
            }
        };
        let packed = packed.map_err(storage)?;
        let (archive_bytes, content_bytes) = (packed.archive_bytes, packed.content_bytes);
        Ok(Some(PackedArchive { file: temp, archive_bytes, content_bytes }))
    }

    /// Returns what is still to be packed, and what of `ahead` is good.
    fn items<'a>(
        &self,
        outputs: &[Output<'a>],
        view: &View,
        ahead: Option<&PackedFiles>,
    ) -> Result<(Vec<Item>, Standing), NotStored> {
        let unopened = view.take_finished();
        let examine = |output: &Output<'a>| Examined::of(output, view, ahead, &unopened);
        let examined: Vec<_> = outputs.par_iter().map(examine).collect::<Result<_, _>>()?;
        let compared = examined.iter().filter_map(Examined::compared);
        let standing = ahead.map(|ahead| ahead.standing(compared)).unwrap_or_default();
        let mut names = FirstNames::default();
        let mut items = Vec::new();
        for (output, examined) in outputs.iter().zip(examined) {
            let staged = match examined {
                Examined::AsPacked { unit } if standing.units[unit] => continue,
                // It is packed again because of another file.
                Examined::AsPacked { .. } => Staged::of(output, view)?,
                Examined::Changed { staged, .. } | Examined::Staged(staged) => Some(*staged),
                Examined::Elsewhere => None,
            };
            items.push(self.item(output, staged, view, &mut names)?);
        }
        Ok((items, standing))
    }

    fn item(
        &self,
        output: &Output<'_>,
        staged: Option<Staged<'_>>,
        view: &View,
        names: &mut FirstNames,
    ) -> Result<Item, NotStored> {
        let path = &output.path;
        let (meta, source) = match &output.what {
            What::Deleted => (Meta::default(), Source::Absent),
            What::Changed(NewObject::Dir(meta, xattrs)) => {
                (Meta { xattrs: xattrs.clone().unwrap_or_default(), ..plain_meta(meta) }, Source::Dir)
            }
            What::Changed(NewObject::Symlink { target, meta }) => {
                (plain_meta(meta), Source::Symlink(target.clone()))
            }
            What::Changed(NewObject::Special { kind, .. }) => (Meta::default(), Source::Special(*kind)),
            What::Changed(NewObject::File(file)) => {
                let id = FileId::Node(file.node);
                match (&file.content, staged) {
                    (_, Some(staged)) => staged.item(view, names.first(id, path)),
                    (Content::Blob { .. }, None) => {
                        return Err(NotStored::InputChanged(path.clone().into_owned()));
                    }
                    (Content::Lower(lower), None) => {
                        let found = self.tree.find(lower, view.perspective()).map_err(storage)?;
                        self.found_item(lower, found, names.first(id, path))?
                    }
                }
            }
            What::Real(stat) => {
                let id = FileId::Real(stat.identity.dev, stat.identity.ino);
                self.found_item(path, Some(Found::Base(**stat)), names.first(id, path))?
            }
            What::Virtual(layer, record) => {
                let first_name = match &record.kind {
                    RecordKind::File { link_to: Some(first), .. } => first.clone(),
                    _ => path.clone().into_owned(),
                };
                let id = FileId::Virtual(layer.archive_id(), first_name);
                let found = Some(Found::Virtual(Arc::clone(layer), (**record).clone()));
                self.found_item(path, found, names.first(id, path))?
            }
        };
        Ok(Item { path: path.clone().into_owned(), meta, source })
    }

    /// Makes an item of an object of the merged tree; `linked` is an item that is the same file.
    fn found_item(
        &self,
        path: &RelPath,
        found: Option<Found>,
        linked: Option<RelPathBuf>,
    ) -> Result<(Meta, Source), NotStored> {
        let base = self.tree.base();
        match found {
            Some(Found::Base(stat)) => {
                let mut meta = stat_meta(&stat);
                let source = match stat.kind {
                    FileKind::Dir => Source::Dir,
                    FileKind::Symlink => Source::Symlink(base.read_link(path).map_err(storage)?),
                    FileKind::File => {
                        let file = base.open_file(path).map_err(storage)?;
                        meta.xattrs = crate::xattr::user_xattrs(&file).map_err(storage)?;
                        let size_bytes = stat.identity.size_bytes;
                        let dir = Arc::clone(base.root_descriptor());
                        let open = || DiskFile { dir, path: path.to_owned(), size_bytes };
                        file_source(linked, || Box::new(open()))
                    }
                    kind => Source::Special(kind),
                };
                Ok((meta, source))
            }
            Some(Found::Virtual(layer, record)) => {
                let meta = Meta {
                    mode: record.mode,
                    uid: record.uid,
                    gid: record.gid,
                    mtime: layer.mtime(&record),
                    xattrs: record.xattrs.clone(),
                };
                let source = match &record.kind {
                    RecordKind::Dir | RecordKind::ImpliedDir => Source::Dir,
                    RecordKind::Symlink { target } => Source::Symlink(target.clone()),
                    RecordKind::Absent => Source::Absent,
                    RecordKind::File { .. } => {
                        let archive = Arc::clone(layer.archive());
                        file_source(linked, || Box::new(ArchivedFile { archive, record: record.clone() }))
                    }
                };
                Ok((meta, source))
            }
            None => Err(NotStored::InputChanged(path.to_owned())),
        }
    }
}

/// Remembers which path stands first for each file, so that the others become hard links to it.
#[derive(Default)]
struct FirstNames(HashMap<FileId, RelPathBuf>);

impl FirstNames {
    /// Returns the path that already stands for the file, or notes that `path` does from now on.
    fn first(&mut self, id: FileId, path: &RelPath) -> Option<RelPathBuf> {
        if let Some(first) = self.0.get(&id) {
            return Some(first.clone());
        }
        self.0.insert(id, path.to_owned());
        None
    }
}

fn file_source(linked: Option<RelPathBuf>, open: impl FnOnce() -> Box<dyn FileSource>) -> Source {
    linked.map_or_else(|| Source::File(open()), Source::HardLink)
}

/// What an output is now, as far as it is a blob.
enum Examined<'a> {
    /// As it was packed ahead.
    AsPacked { unit: usize },
    /// Not as it was packed ahead.
    Changed { unit: usize, staged: Box<Staged<'a>> },
    /// Not packed yet.
    Staged(Box<Staged<'a>>),
    /// No blob.
    Elsewhere,
}

impl<'a> Examined<'a> {
    fn of(
        output: &Output<'a>,
        view: &View,
        ahead: Option<&PackedFiles>,
        unopened: &HashSet<NodeId>,
    ) -> Result<Self, NotStored> {
        let (Some(staged), Some(node)) = (Staged::of(output, view)?, output.node()) else {
            return Ok(Self::Elsewhere);
        };
        let now = Now { path: &output.path, identity: &staged.identity, meta: &staged.meta };
        Ok(match ahead.and_then(|ahead| ahead.compare(unopened, node, &now)) {
            Some((unit, true)) => Self::AsPacked { unit },
            Some((unit, false)) => Self::Changed { unit, staged: Box::new(staged) },
            None => Self::Staged(Box::new(staged)),
        })
    }

    /// Returns the unit of a file that was packed ahead, and whether it is as it was then.
    fn compared(&self) -> Option<(usize, bool)> {
        match self {
            Self::AsPacked { unit } => Some((*unit, true)),
            Self::Changed { unit, .. } => Some((*unit, false)),
            Self::Staged(_) | Self::Elsewhere => None,
        }
    }
}

/// A blob of the staging directory.
struct Staged<'a> {
    name: &'a RelPath,
    meta: Meta,
    identity: Identity,
}

impl<'a> Staged<'a> {
    /// Examines the blob of an output that is one.
    fn of(output: &Output<'a>, view: &View) -> Result<Option<Self>, NotStored> {
        let What::Changed(NewObject::File(file)) = &output.what else { return Ok(None) };
        let Content::Blob { path, xattrs } = &file.content else { return Ok(None) };
        let stat = rustix::fs::statat(view.staging(), path.as_os_str(), AtFlags::SYMLINK_NOFOLLOW);
        let stat = BaseStat::from(stat.map_err(storage)?);
        let mut meta = stat_meta(&stat);
        if *xattrs {
            meta.xattrs = view.blob_xattrs(path).map_err(storage)?;
        }
        Ok(Some(Self { name: path, meta, identity: stat.identity }))
    }

    fn item(self, view: &View, linked: Option<RelPathBuf>) -> (Meta, Source) {
        let Self { name, meta, identity } = self;
        let path = name.to_owned();
        let size_bytes = identity.size_bytes;
        let dir: &Arc<OwnedFd> = view.staging();
        let source = file_source(linked, || Box::new(DiskFile { dir: Arc::clone(dir), path, size_bytes }));
        (meta, source)
    }
}

pub(super) fn stat_meta(stat: &BaseStat) -> Meta {
    let mtime = stat.identity.mtime;
    Meta { mode: stat.mode, uid: stat.uid, gid: stat.gid, mtime, xattrs: Vec::new() }
}

fn plain_meta(meta: &view::Meta) -> Meta {
    Meta { mode: meta.mode, uid: meta.uid, gid: meta.gid, mtime: meta.mtime, xattrs: Vec::new() }
}

fn item_bytes(item: &Item) -> u64 {
    match &item.source {
        Source::File(file) => file.size_bytes(),
        _ => 0,
    }
}

fn special_problem(kind: FileKind) -> &'static str {
    match kind {
        FileKind::Fifo => "it is a named pipe",
        FileKind::Socket => "it is a socket",
        FileKind::CharDevice | FileKind::BlockDevice => "it is a device",
        FileKind::File | FileKind::Dir | FileKind::Symlink => "it is no regular file",
    }
}
