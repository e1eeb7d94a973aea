//! What goes into an archive, in which order: pure decisions before anything is read.

use std::cmp::Ordering;
use std::collections::{BTreeSet, HashMap};
use std::ffi::{OsStr, OsString};

use rayon::prelude::*;

use crate::archive::pack::PackError;
use crate::archive::record::Record;
use crate::archive::source::FileSource;
use crate::fs::{FileKind, Timestamp};
use crate::path::{RelPath, RelPathBuf};

/// Links to links are followed this far.
const LINK_CHAIN_MAX: usize = 16;

/// One path to be packed.
pub struct Item {
    /// Where it belongs, not the root.
    pub path: RelPathBuf,
    /// Its attributes; without meaning for [`Source::Absent`] and [`Source::HardLink`].
    pub meta: Meta,
    /// What is there.
    pub source: Source,
}

/// Attributes of an [`Item`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Meta {
    /// Permission bits, `0o7777`.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last modification.
    pub mtime: Timestamp,
    /// Extended attributes, in any order.
    pub xattrs: Vec<(OsString, Vec<u8>)>,
}

impl Meta {
    /// Returns whether an archive keeps it as `record` says.
    pub(crate) fn is_of(&self, record: &Record) -> bool {
        let Self { mode, uid, gid, mtime, xattrs } = self.clone().settled();
        (mode, uid, gid, mtime, &xattrs)
            == (record.mode, record.uid, record.gid, record.mtime, &record.xattrs)
    }

    /// Returns it as archives keep it.
    pub(super) fn settled(mut self) -> Self {
        self.mode &= 0o7777;
        self.xattrs.sort();
        self
    }
}

/// What an [`Item`] is.
pub enum Source {
    /// A directory.
    Dir,
    /// A directory that is no output itself. Missing ones above files are added, with mode 755.
    ImpliedDir,
    /// A symbolic link and its target.
    Symlink(OsString),
    /// Another name of another item, a file or a symbolic link.
    HardLink(RelPathBuf),
    /// Nothing: what was there is to be removed.
    Absent,
    /// A regular file.
    File(Box<dyn FileSource>),
    /// A pipe, socket or device, which is refused.
    Special(FileKind),
}

/// An item in its place.
pub(super) struct Planned {
    pub(super) path: RelPathBuf,
    pub(super) meta: Meta,
    pub(super) what: What,
}

pub(super) enum What {
    Dir,
    ImpliedDir,
    Symlink(OsString),
    HardLink(RelPathBuf),
    Absent,
    File {
        source: Box<dyn FileSource>,
        /// Number of names it has; hard links to it follow where it is more than one.
        names: u32,
    },
}

impl Planned {
    fn is_dir(&self) -> bool {
        match self.what {
            What::Dir | What::ImpliedDir => true,
            What::Symlink(_) | What::HardLink(_) | What::Absent | What::File { .. } => false,
        }
    }
}

/// Orders a tar stream: a directory, then the files in it, then its subdirectories one by one.
///
/// GNU tar sets the time of a directory when it sees a name outside it, so the order of the table of
/// contents would not do.
fn stream_order(a: (&RelPath, bool), b: (&RelPath, bool)) -> Ordering {
    let (a_dir, a_name) = stream_key(a);
    let (b_dir, b_name) = stream_key(b);
    a_dir.components().cmp(b_dir.components()).then_with(|| a_name.cmp(b_name))
}

fn stream_key((path, is_dir): (&RelPath, bool)) -> (&RelPath, &OsStr) {
    match path.split_last() {
        Some(leaf) if !is_dir => leaf,
        _ => (path, OsStr::new("")),
    }
}

/// Sorts items, adds the directories above them and above what is packed already, and gives the data of hard-linked
/// files to their first name.
pub(super) fn plan(items: Vec<Item>, packed: &[&RelPathBuf]) -> Result<Vec<Planned>, PackError> {
    let mut entries = ByPath::of(items, packed)?;
    entries.add_ancestors()?;
    let links = entries.resolve_links()?;
    let planned = entries.0.into_iter().filter_map(|Entry { path, meta, source }| {
        let what = match source? {
            Source::Dir => What::Dir,
            Source::ImpliedDir => What::ImpliedDir,
            Source::Symlink(target) => What::Symlink(target),
            Source::HardLink(target) => What::HardLink(target),
            Source::Absent => What::Absent,
            Source::File(source) => What::File { source, names: links.get(&path).copied().unwrap_or(1) },
            Source::Special(kind) => return Some(Err(PackError::Unsupported { path, kind })),
        };
        Some(Ok(Planned { path, meta, what }))
    });
    let mut planned: Vec<_> = planned.collect::<Result<_, _>>()?;
    // Stable sorting makes use of what is in order already, which most of it is.
    planned.par_sort_by(|a, b| stream_order((&a.path, a.is_dir()), (&b.path, b.is_dir())));
    Ok(planned)
}

/// A path and what is there; `None` for a file that is packed already.
struct Entry {
    path: RelPathBuf,
    meta: Meta,
    source: Option<Source>,
}

/// Entries sorted by path, each path once.
struct ByPath(Vec<Entry>);

impl ByPath {
    fn of(items: Vec<Item>, packed: &[&RelPathBuf]) -> Result<Self, PackError> {
        let mut entries = Vec::with_capacity(items.len() + packed.len());
        for Item { path, meta, source } in items {
            if path.is_root() {
                return Err(PackError::Root);
            }
            if let Source::Special(kind) = source {
                return Err(PackError::Unsupported { path, kind });
            }
            entries.push(Entry { path, meta: meta.settled(), source: Some(source) });
        }
        let packed = packed.iter().map(|&path| (path.clone(), Meta::default(), None));
        entries.extend(packed.map(|(path, meta, source)| Entry { path, meta, source }));
        entries.par_sort_by(|a, b| a.path.cmp(&b.path));
        match entries.windows(2).find(|pair| pair[0].path == pair[1].path) {
            Some(twice) => Err(PackError::Twice { path: twice[0].path.clone() }),
            None => Ok(Self(entries)),
        }
    }

    fn find(&self, path: &RelPath) -> Option<&Entry> {
        let place = self.0.binary_search_by(|entry| (*entry.path).cmp(path)).ok()?;
        self.0.get(place)
    }

    fn find_mut(&mut self, path: &RelPath) -> Option<&mut Entry> {
        let place = self.0.binary_search_by(|entry| (*entry.path).cmp(path)).ok()?;
        self.0.get_mut(place)
    }

    /// Adds implied directories above everything that is to exist. A path to be removed needs none.
    fn add_ancestors(&mut self) -> Result<(), PackError> {
        let mut missing: BTreeSet<&RelPath> = BTreeSet::new();
        // Neighbours mostly lie in one directory.
        let mut looked_at = None;
        for Entry { path, source, .. } in &self.0 {
            if matches!(source, Some(Source::Absent)) || looked_at == path.parent() {
                continue;
            }
            looked_at = path.parent();
            for ancestor in path.ancestors().filter(|ancestor| !ancestor.is_root()) {
                match self.find(ancestor).map(|entry| &entry.source) {
                    // Whose own ancestors are looked at in its turn.
                    Some(Some(Source::Dir | Source::ImpliedDir)) => break,
                    Some(_) => {
                        let ancestor = ancestor.to_owned();
                        return Err(PackError::NotADirectory { path: path.clone(), ancestor });
                    }
                    None if !missing.insert(ancestor) => break,
                    None => {}
                }
            }
        }
        let meta = Meta { mode: 0o755, ..Meta::default() };
        let implied = |path: &RelPath| {
            let source = Some(Source::ImpliedDir);
            Entry { path: path.to_owned(), meta: meta.clone(), source }
        };
        let missing: Vec<_> = missing.into_iter().map(implied).collect();
        if !missing.is_empty() {
            self.0.extend(missing);
            self.0.par_sort_by(|a, b| a.path.cmp(&b.path));
        }
        Ok(())
    }

    /// Makes every link point to the first of its names, which gets the data. Returns these names
    /// and how many names each file has.
    fn resolve_links(&mut self) -> Result<HashMap<RelPathBuf, u32>, PackError> {
        let mut groups: HashMap<RelPathBuf, Vec<RelPathBuf>> = HashMap::new();
        for Entry { path, source, .. } in &self.0 {
            if let Some(Source::HardLink(target)) = source {
                groups.entry(self.carrier(path, target)?).or_default().push(path.clone());
            }
        }
        let mut first_names = HashMap::new();
        for (carrier, mut names) in groups {
            let Some(entry) = self.find_mut(&carrier) else { continue };
            let (meta, source) = (entry.meta.clone(), entry.source.take());
            names.push(carrier);
            names.sort_unstable_by(|a, b| stream_order((a, false), (b, false)));
            let first = names[0].clone();
            for name in &names[1..] {
                let link = match &source {
                    // ustar has no agreed way to link symbolic links, and nobody can tell them from copies.
                    Some(Source::Symlink(target)) => Source::Symlink(target.clone()),
                    _ => Source::HardLink(first.clone()),
                };
                self.set(name, meta.clone(), Some(link));
            }
            self.set(&first, meta, source);
            first_names.insert(first, u32::try_from(names.len()).unwrap_or(u32::MAX));
        }
        Ok(first_names)
    }

    fn set(&mut self, path: &RelPath, meta: Meta, source: Option<Source>) {
        if let Some(entry) = self.find_mut(path) {
            (entry.meta, entry.source) = (meta, source);
        }
    }

    /// Returns the item that a hard link stands for.
    fn carrier(&self, path: &RelPath, target: &RelPath) -> Result<RelPathBuf, PackError> {
        let mut target = target;
        for _ in 0..LINK_CHAIN_MAX {
            match self.find(target).map(|entry| &entry.source) {
                Some(Some(Source::HardLink(next))) => target = next,
                Some(Some(Source::File(_) | Source::Symlink(_))) => return Ok(target.to_owned()),
                // What is packed already was packed as a file with one name.
                Some(_) | None => break,
            }
        }
        Err(PackError::BadLink { path: path.to_owned(), target: target.to_owned() })
    }
}
