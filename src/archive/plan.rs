//! What goes into an archive, in which order: pure decisions before anything is read.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::ffi::{OsStr, OsString};

use rayon::prelude::*;

use crate::archive::pack::PackError;
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

/// Sorts items, adds the directories above them, and gives the data of hard-linked files to their first
/// name.
pub(super) fn plan(items: Vec<Item>) -> Result<Vec<Planned>, PackError> {
    let mut by_path = HashMap::with_capacity(items.len());
    for item in items {
        if item.path.is_root() {
            return Err(PackError::Root);
        }
        if let Source::Special(kind) = item.source {
            return Err(PackError::Unsupported { path: item.path, kind });
        }
        let Item { path, mut meta, source } = item;
        meta.mode &= 0o7777;
        meta.xattrs.sort();
        if by_path.insert(path.clone(), (meta, source)).is_some() {
            return Err(PackError::Twice { path });
        }
    }
    add_ancestors(&mut by_path)?;
    let links = resolve_links(&mut by_path)?;
    let mut planned: Vec<_> = by_path
        .into_iter()
        .map(|(path, (meta, source))| {
            let what = match source {
                Source::Dir => What::Dir,
                Source::ImpliedDir => What::ImpliedDir,
                Source::Symlink(target) => What::Symlink(target),
                Source::HardLink(target) => What::HardLink(target),
                Source::Absent => What::Absent,
                Source::File(source) => What::File { source, names: links.get(&path).copied().unwrap_or(1) },
                Source::Special(kind) => return Err(PackError::Unsupported { path, kind }),
            };
            Ok(Planned { path, meta, what })
        })
        .collect::<Result<_, _>>()?;
    planned.par_sort_unstable_by(|a, b| stream_order((&a.path, a.is_dir()), (&b.path, b.is_dir())));
    Ok(planned)
}

type ByPath = HashMap<RelPathBuf, (Meta, Source)>;

/// Adds implied directories above everything that is to exist. A path to be removed needs none.
fn add_ancestors(by_path: &mut ByPath) -> Result<(), PackError> {
    let mut missing: Vec<RelPathBuf> = Vec::new();
    for (path, (_, source)) in by_path.iter() {
        if matches!(source, Source::Absent) {
            continue;
        }
        for ancestor in path.ancestors().filter(|ancestor| !ancestor.is_root()) {
            match by_path.get(ancestor).map(|(_, source)| source) {
                // Whose own ancestors are looked at in its turn.
                Some(Source::Dir | Source::ImpliedDir) => break,
                Some(
                    Source::Symlink(_)
                    | Source::HardLink(_)
                    | Source::Absent
                    | Source::File(_)
                    | Source::Special(_),
                ) => {
                    let ancestor = ancestor.to_owned();
                    return Err(PackError::NotADirectory { path: path.clone(), ancestor });
                }
                None => missing.push(ancestor.to_owned()),
            }
        }
    }
    for path in missing {
        let meta = Meta { mode: 0o755, ..Meta::default() };
        by_path.entry(path).or_insert((meta, Source::ImpliedDir));
    }
    Ok(())
}

/// Makes every link point to the first of its names, which gets the data. Returns these names
/// and how many names each file has.
fn resolve_links(by_path: &mut ByPath) -> Result<HashMap<RelPathBuf, u32>, PackError> {
    let mut groups: HashMap<RelPathBuf, Vec<RelPathBuf>> = HashMap::new();
    for (path, (_, source)) in by_path.iter() {
        if let Source::HardLink(target) = source {
            groups.entry(carrier(by_path, path, target)?).or_default().push(path.clone());
        }
    }
    let mut first_names = HashMap::new();
    for (carrier, mut names) in groups {
        let Some((meta, source)) = by_path.remove(&carrier) else { continue };
        names.push(carrier);
        names.sort_unstable_by(|a, b| stream_order((a, false), (b, false)));
        let first = names[0].clone();
        for name in &names[1..] {
            let link = match &source {
                // ustar has no agreed way to link symbolic links, and nobody can tell them from copies.
                Source::Symlink(target) => Source::Symlink(target.clone()),
                _ => Source::HardLink(first.clone()),
            };
            by_path.insert(name.clone(), (meta.clone(), link));
        }
        by_path.insert(first.clone(), (meta, source));
        first_names.insert(first, u32::try_from(names.len()).unwrap_or(u32::MAX));
    }
    Ok(first_names)
}

/// Returns the item that a hard link stands for.
fn carrier(by_path: &ByPath, path: &RelPath, target: &RelPath) -> Result<RelPathBuf, PackError> {
    let mut target = target;
    for _ in 0..LINK_CHAIN_MAX {
        match by_path.get(target).map(|(_, source)| source) {
            Some(Source::HardLink(next)) => target = next,
            Some(Source::File(_) | Source::Symlink(_)) => return Ok(target.to_owned()),
            Some(Source::Dir | Source::ImpliedDir | Source::Absent | Source::Special(_)) | None => break,
        }
    }
    Err(PackError::BadLink { path: path.to_owned(), target: target.to_owned() })
}
