//! Pictures of a directory tree, to be compared.

use std::collections::BTreeMap;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// What a tree looked like: everything by path, relative to its root.
pub(crate) type Tree = BTreeMap<PathBuf, Node>;

/// One file, directory or link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Node {
    /// What it is.
    pub(crate) kind: Kind,
    /// Permission bits.
    pub(crate) mode: u32,
    /// When it was modified, in nanoseconds since the epoch.
    pub(crate) mtime_ns: i128,
    /// The first path, in their order, of those that are hard links of this file.
    pub(crate) same_as: PathBuf,
}

/// What a [`Node`] is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A regular file with its size in bytes and a hash of its content.
    File(u64, u64),
    /// A directory.
    Dir,
    /// A symbolic link and its target.
    Symlink(PathBuf),
    /// Anything else.
    Special,
}

/// Takes a picture of everything below `root` except `.vout` and `.git`.
pub(crate) fn snapshot(root: &Path) -> io::Result<Tree> {
    let mut tree = Tree::new();
    let mut links = BTreeMap::new();
    for path in walk(root)? {
        let full = root.join(&path);
        let meta = full.symlink_metadata()?;
        let same_as = if meta.is_dir() || meta.nlink() < 2 {
            path.clone()
        } else {
            links.entry((meta.dev(), meta.ino())).or_insert_with(|| path.clone()).clone()
        };
        let node = Node {
            kind: kind(&full, &meta)?,
            mode: meta.mode() & 0o7777,
            mtime_ns: i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec()),
            same_as,
        };
        tree.insert(path, node);
    }
    Ok(tree)
}

fn kind(path: &Path, meta: &fs::Metadata) -> io::Result<Kind> {
    let file_type = meta.file_type();
    if file_type.is_dir() {
        Ok(Kind::Dir)
    } else if file_type.is_symlink() {
        Ok(Kind::Symlink(fs::read_link(path)?))
    } else if file_type.is_fifo() || file_type.is_socket() {
        Ok(Kind::Special)
    } else {
        let mut hasher = DefaultHasher::new();
        fs::read(path)?.hash(&mut hasher);
        Ok(Kind::File(meta.len(), hasher.finish()))
    }
}

/// Returns every path below `root`, parents first, sorted.
fn walk(root: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut pending = vec![PathBuf::new()];
    while let Some(dir) = pending.pop() {
        for entry in fs::read_dir(root.join(&dir))? {
            let entry = entry?;
            let path = dir.join(entry.file_name());
            if path == Path::new(".vout") || path == Path::new(".git") {
                continue;
            }
            if entry.file_type()?.is_dir() {
                pending.push(path.clone());
            }
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Returns the files below `root` whose name passes `wanted`; none where `root` is missing.
pub(crate) fn files_below(root: &Path, wanted: impl Fn(&str) -> bool) -> io::Result<Vec<PathBuf>> {
    if !root.exists() {
        return Ok(Vec::new());
    }
    let paths = walk(root)?.into_iter().map(|path| root.join(path)).filter(|path| path.is_file());
    Ok(paths.filter(|path| path.file_name().is_some_and(|name| wanted(&name.to_string_lossy()))).collect())
}

/// Leaves modification times out, of everything.
pub(crate) fn without_times(mut tree: Tree) -> Tree {
    for node in tree.values_mut() {
        node.mtime_ns = 0;
    }
    tree
}

/// Keeps what matches, for looking at a part.
pub(crate) fn below(tree: Tree, dir: &str) -> Tree {
    tree.into_iter().filter(|(path, _)| path.starts_with(dir)).collect()
}

/// Expects that everything but directories is the same, with all modification times shifted by one constant.
///
/// A directory's time says when its names last changed, which restoring does.
#[track_caller]
pub(crate) fn assert_same_but_shifted(before: &Tree, after: &Tree) {
    assert_eq!(without_times(before.clone()), without_times(after.clone()));
    let shifts: Vec<(i128, &PathBuf)> = before
        .iter()
        .filter(|(_, node)| matches!(node.kind, Kind::File(..)))
        .map(|(path, node)| (after[path].mtime_ns - node.mtime_ns, path))
        .collect();
    for (shift, path) in &shifts {
        assert_eq!(*shift, shifts[0].0, "{path:?} is shifted by another amount than {:?}", shifts[0].1);
    }
}
