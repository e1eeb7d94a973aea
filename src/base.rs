//! The base: the workspace's real files, reached through a directory descriptor.
//!
//! The descriptor is taken before anything is mounted over the workspace, and nothing below it is ever
//! reached by an absolute path, so a process that serves the mount never waits on the mount. Resolution
//! stays beneath the descriptor and follows no symbolic link (`openat2(2)`).

mod nearby;

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::sync::Arc;

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, RenameFlags, ResolveFlags, Stat, StatVfs, Timespec, Timestamps,
};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

pub use self::nearby::Nearby;

use crate::fs::{Attr, Holds, NodeId, SetTime, Timestamp};
use crate::path::{RelPath, RelPathBuf};
use crate::state::{FileKind, PathState};

/// Name of the store's directory in a workspace; never visible in a view or a live mount.
pub const STORE_NAME: &str = ".vout";

/// Longest path in one system call, without the byte that ends it.
const PATH_BYTES_MAX: usize = 4095;

/// The workspace's real files.
#[derive(Debug)]
pub struct Base {
    root: Arc<OwnedFd>,
    hidden: Vec<RelPathBuf>,
}

/// What a directory of the base says of a name; of a mount point that is what it covers.
#[derive(Debug)]
pub(crate) struct BaseEntry {
    pub(crate) name: OsString,
    pub(crate) kind: FileKind,
    pub(crate) dev: u64,
    pub(crate) ino: u64,
}

/// What is at a path of the base.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BaseStat {
    /// Kind of object.
    pub kind: FileKind,
    /// Which object, and which version of it.
    pub identity: Identity,
    /// Permission bits, `0o7777`.
    pub mode: u32,
    /// Number of hard links.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of a device node.
    pub rdev: u32,
    /// Allocated 512-byte blocks.
    pub blocks: u64,
    /// Preferred I/O size in bytes.
    pub block_size_bytes: u32,
    /// Last access.
    pub atime: Timestamp,
}

/// A version of a real file: if none of this changed, neither did the content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Identity {
    /// Device number.
    pub dev: u64,
    /// Inode number.
    pub ino: u64,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Last modification.
    pub mtime: Timestamp,
    /// Last change of content or attributes.
    pub ctime: Timestamp,
}

impl Base {
    /// Takes the workspace's directory; `hidden` paths are treated as if they were not there.
    ///
    /// # Errors
    /// Where it is no directory, or cannot be examined.
    pub fn new(root: OwnedFd, hidden: Vec<RelPathBuf>) -> io::Result<Self> {
        if FileType::from_raw_mode(rustix::fs::fstat(&root)?.st_mode) != FileType::Directory {
            return Err(Errno::NOTDIR.into());
        }
        let mut hidden = hidden;
        if let Ok(store) = RelPathBuf::new(STORE_NAME) {
            hidden.push(store);
        }
        Ok(Self { root: Arc::new(root), hidden })
    }

    /// Returns the workspace's directory.
    #[must_use]
    pub fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Returns the workspace's directory to be kept.
    #[must_use]
    pub fn root_descriptor(&self) -> &Arc<OwnedFd> {
        &self.root
    }

    /// Returns whether `path` is hidden: the store, or below it.
    #[must_use]
    pub fn hides(&self, path: &RelPath) -> bool {
        self.hidden.iter().any(|hidden| path.starts_with(hidden))
    }

    /// Returns whether something hidden lies below the directory `path`, so that it cannot go or move.
    #[must_use]
    pub fn holds_hidden(&self, path: &RelPath) -> bool {
        self.hidden.iter().any(|hidden| hidden.starts_with(path) && &**hidden != path)
    }

    /// Opens `path` with `flags`.
    ///
    /// # Errors
    /// Those of `openat2(2)`; `ENOENT` for a hidden path.
    pub fn open(&self, path: &RelPath, flags: OFlags, mode: u32) -> rustix::io::Result<OwnedFd> {
        if self.hides(path) {
            return Err(Errno::NOENT);
        }
        let mode = Mode::from_bits_truncate(mode);
        let mut rest = if path.is_root() { &b"."[..] } else { path.as_bytes() };
        let mut dir = None;
        // Programs get deeper than one path can be by going there step by step.
        while rest.len() > PATH_BYTES_MAX {
            let step = rest[..PATH_BYTES_MAX].iter().rposition(|&byte| byte == b'/');
            let (step, left) = rest.split_at(step.ok_or(Errno::NAMETOOLONG)?);
            let steps = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW;
            dir = Some(open_beneath(dir.as_ref().unwrap_or(&self.root), step, steps, Mode::empty())?);
            rest = &left[1..];
        }
        open_beneath(dir.as_ref().unwrap_or(&self.root), rest, flags, mode)
    }

    /// Opens the directory `path` as a starting point for names in it.
    ///
    /// # Errors
    /// Those of `openat2(2)`.
    pub fn open_dir(&self, path: &RelPath) -> rustix::io::Result<OwnedFd> {
        self.open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW, 0)
    }

    /// Opens the directory that holds `path`, and returns the name in it.
    ///
    /// # Errors
    /// Those of `openat2(2)`; `EBUSY` for the root, as the kernel answers for a mount point.
    pub fn open_parent<'a>(&self, path: &'a RelPath) -> rustix::io::Result<(OwnedFd, &'a OsStr)> {
        if self.hides(path) {
            return Err(Errno::NOENT);
        }
        let (parent, name) = path.split_last().ok_or(Errno::BUSY)?;
        Ok((self.open_dir(parent)?, name))
    }

    /// Returns what is at `path`, or `None` where nothing is.
    ///
    /// # Errors
    /// Those of `openat2(2)` and `fstat(2)`.
    pub fn stat(&self, path: &RelPath) -> rustix::io::Result<Option<BaseStat>> {
        match self.open(path, OFlags::PATH | OFlags::NOFOLLOW, 0) {
            Ok(object) => Ok(Some(BaseStat::from(rustix::fs::fstat(object)?))),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// Opens a regular file for reading.
    ///
    /// # Errors
    /// Those of `openat2(2)`.
    pub fn open_file(&self, path: &RelPath) -> rustix::io::Result<File> {
        self.open(path, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK, 0).map(File::from)
    }

    /// Returns the target of a symbolic link.
    ///
    /// # Errors
    /// Those of `openat2(2)` and `readlinkat(2)`.
    pub fn read_link(&self, path: &RelPath) -> rustix::io::Result<OsString> {
        let link = self.open(path, OFlags::PATH | OFlags::NOFOLLOW, 0)?;
        let target = rustix::fs::readlinkat(link, "", Vec::new())?;
        Ok(OsString::from_vec(target.into_bytes()))
    }

    /// Returns names and kinds in a directory, in no particular order, or `None` where it is none.
    ///
    /// # Errors
    /// Those of `openat2(2)` and `getdents64(2)`.
    pub fn list(&self, path: &RelPath) -> rustix::io::Result<Option<Vec<(OsString, FileKind)>>> {
        let mut names = Vec::new();
        let is_dir = self.walk_names(path, |name, kind, _| names.push((name.to_owned(), kind)))?;
        Ok(is_dir.then_some(names))
    }

    /// Returns what is in a directory. What is no directory has nothing in it.
    ///
    /// # Errors
    /// Those of `openat2(2)` and `getdents64(2)`.
    pub(crate) fn entries(&self, path: &RelPath) -> rustix::io::Result<Vec<BaseEntry>> {
        let mut entries = Vec::new();
        self.walk_names(path, |name, kind, (dev, ino)| {
            entries.push(BaseEntry { name: name.to_owned(), kind, dev, ino });
        })?;
        Ok(entries)
    }

    /// Calls `each` with name, kind, and device and inode number of what is in a directory; returns whether it is one.
    fn walk_names(
        &self,
        path: &RelPath,
        mut each: impl FnMut(&OsStr, FileKind, (u64, u64)),
    ) -> rustix::io::Result<bool> {
        let dir = match self.open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW, 0) {
            Ok(dir) => dir,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(false),
            Err(errno) => return Err(errno),
        };
        let dev = rustix::fs::fstat(&dir)?.st_dev;
        for entry in rustix::fs::Dir::new(dir)? {
            let entry = entry?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name == "." || name == ".." || (self.hidden_parent(path) && self.hides(&path.join(name))) {
                continue;
            }
            let kind = match kind_of(entry.file_type()) {
                Some(kind) => kind,
                // Some file systems leave the type out of the directory.
                None => match self.stat(&path.join(name))? {
                    Some(stat) => stat.kind,
                    None => continue,
                },
            };
            each(name, kind, (dev, entry.ino()));
        }
        Ok(true)
    }

    /// Adds all names of some files, given as device and inode number, to `paths`. Lists every directory.
    ///
    /// # Errors
    /// Those of `openat2(2)` and `getdents64(2)`.
    pub(crate) fn names_of(
        &self,
        files: &HashSet<(u64, u64)>,
        paths: &mut Vec<RelPathBuf>,
    ) -> rustix::io::Result<()> {
        let numbers: HashSet<u64> = files.iter().map(|(_, ino)| *ino).collect();
        let mut dirs = vec![RelPathBuf::root()];
        while let Some(dir) = dirs.pop() {
            let mut found = Vec::new();
            let listed = self.walk_names(&dir, |name, kind, (_, ino)| match kind {
                FileKind::Dir => dirs.push(dir.join(name)),
                _ if numbers.contains(&ino) => found.push(dir.join(name)),
                _ => {}
            });
            match listed {
                // What may not be listed has no names that could be replaced.
                Err(Errno::ACCESS) => continue,
                other => other?,
            };
            for path in found {
                let stat = self.stat(&path)?;
                if stat.is_some_and(|stat| files.contains(&(stat.identity.dev, stat.identity.ino))) {
                    paths.push(path);
                }
            }
        }
        Ok(())
    }

    fn hidden_parent(&self, path: &RelPath) -> bool {
        self.hidden.iter().any(|hidden| hidden.parent() == Some(path))
    }

    /// Sets times of `path` without following a link.
    ///
    /// # Errors
    /// Those of `utimensat(2)`.
    pub fn set_times(
        &self,
        path: &RelPath,
        atime: Option<SetTime>,
        mtime: Option<SetTime>,
    ) -> rustix::io::Result<()> {
        let times = timestamps(atime, mtime);
        if path.is_root() {
            return rustix::fs::utimensat(&*self.root, ".", &times, AtFlags::SYMLINK_NOFOLLOW);
        }
        let (parent, name) = self.open_parent(path)?;
        rustix::fs::utimensat(parent, name, &times, AtFlags::SYMLINK_NOFOLLOW)
    }

    /// Renames within the base.
    ///
    /// # Errors
    /// Those of `renameat2(2)`.
    pub fn rename(&self, from: &RelPath, to: &RelPath, flags: RenameFlags) -> rustix::io::Result<()> {
        let (from_dir, from_name) = self.open_parent(from)?;
        let (to_dir, to_name) = self.open_parent(to)?;
        rustix::fs::renameat_with(from_dir, from_name, to_dir, to_name, flags)
    }

    /// Removes whatever is at `path`, with all below it; nothing there is success.
    ///
    /// # Errors
    /// Those of `unlinkat(2)`.
    pub fn remove_all(&self, path: &RelPath) -> rustix::io::Result<()> {
        let (parent, name) = match self.open_parent(path) {
            Ok(found) => found,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(()),
            Err(errno) => return Err(errno),
        };
        match rustix::fs::unlinkat(&parent, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(Errno::ISDIR) => {}
            Err(errno) => return Err(errno),
        }
        for (child, _) in self.list(path)?.unwrap_or_default() {
            self.remove_all(&path.join(&child))?;
        }
        match rustix::fs::unlinkat(&parent, name, AtFlags::REMOVEDIR) {
            Err(Errno::NOENT) => Ok(()),
            other => other,
        }
    }

    /// Returns sizes of the file system.
    ///
    /// # Errors
    /// Those of `fstatvfs(3)`.
    pub fn stats(&self) -> rustix::io::Result<StatVfs> {
        rustix::fs::fstatvfs(&*self.root)
    }
}

impl BaseStat {
    /// Returns the attributes under the identity `node`.
    #[must_use]
    pub fn attr(&self, node: NodeId) -> Attr {
        Attr {
            node,
            ino: node.0,
            kind: self.kind,
            mode: self.mode,
            nlink: self.nlink,
            uid: self.uid,
            gid: self.gid,
            rdev: self.rdev,
            size_bytes: self.identity.size_bytes,
            blocks: self.blocks,
            block_size_bytes: self.block_size_bytes,
            atime: self.atime,
            mtime: self.identity.mtime,
            ctime: self.identity.ctime,
            holds: Holds::Nothing,
        }
    }

    /// Returns the state that a probe sees.
    #[must_use]
    pub fn probe(&self) -> PathState {
        match self.kind {
            FileKind::File => PathState::File {
                executable: self.mode & 0o111 != 0,
                size_bytes: self.identity.size_bytes,
                content: None,
            },
            FileKind::Dir => PathState::Dir { listing: None },
            FileKind::Symlink => PathState::Symlink { target: None },
            kind @ (FileKind::Fifo | FileKind::Socket | FileKind::CharDevice | FileKind::BlockDevice) => {
                PathState::Special(kind)
            }
        }
    }
}

#[expect(clippy::cast_sign_loss, clippy::cast_possible_truncation, reason = "the C structure's own types")]
impl From<Stat> for BaseStat {
    fn from(stat: Stat) -> Self {
        let time = |secs: i64, nanos: u64| Timestamp { secs, nanos: nanos as u32 };
        Self {
            kind: kind_of(FileType::from_raw_mode(stat.st_mode)).unwrap_or(FileKind::File),
            identity: Identity {
                dev: stat.st_dev,
                ino: stat.st_ino,
                size_bytes: stat.st_size as u64,
                mtime: time(stat.st_mtime, stat.st_mtime_nsec),
                ctime: time(stat.st_ctime, stat.st_ctime_nsec),
            },
            mode: stat.st_mode & 0o7777,
            nlink: u32::try_from(stat.st_nlink).unwrap_or(u32::MAX),
            uid: stat.st_uid,
            gid: stat.st_gid,
            rdev: stat.st_rdev as u32,
            blocks: stat.st_blocks as u64,
            block_size_bytes: stat.st_blksize as u32,
            atime: time(stat.st_atime, stat.st_atime_nsec),
        }
    }
}

fn open_beneath(dir: &OwnedFd, path: &[u8], flags: OFlags, mode: Mode) -> rustix::io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    loop {
        match rustix::fs::openat2(dir, path, flags | OFlags::CLOEXEC, mode, resolve) {
            // The kernel gives up where the tree is renamed during resolution.
            Err(Errno::AGAIN | Errno::INTR) => {}
            other => return other,
        }
    }
}

/// Translates a file type; `None` where it is unknown.
#[must_use]
pub fn kind_of(file_type: FileType) -> Option<FileKind> {
    match file_type {
        FileType::RegularFile => Some(FileKind::File),
        FileType::Directory => Some(FileKind::Dir),
        FileType::Symlink => Some(FileKind::Symlink),
        FileType::Fifo => Some(FileKind::Fifo),
        FileType::Socket => Some(FileKind::Socket),
        FileType::CharacterDevice => Some(FileKind::CharDevice),
        FileType::BlockDevice => Some(FileKind::BlockDevice),
        FileType::Unknown => None,
    }
}

/// Translates times to set; `None` leaves one as it is.
#[must_use]
pub fn timestamps(atime: Option<SetTime>, mtime: Option<SetTime>) -> Timestamps {
    let one = |time| match time {
        None => Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT },
        Some(SetTime::Now) => Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW },
        Some(SetTime::At(at)) => Timespec { tv_sec: at.secs, tv_nsec: i64::from(at.nanos) },
    };
    Timestamps { last_access: one(atime), last_modification: one(mtime) }
}

#[cfg(test)]
pub(super) mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    pub(super) fn base() -> (tempfile::TempDir, Base) {
        let dir = tempfile::tempdir().unwrap();
        let base = Base::new(File::open(dir.path()).unwrap().into(), Vec::new()).unwrap();
        (dir, base)
    }

    pub(super) fn path(text: &str) -> &RelPath {
        RelPath::new(text).unwrap()
    }

    #[test]
    fn follows_no_link_out_of_the_workspace() {
        let (dir, base) = base();
        symlink("/etc", dir.path().join("out")).unwrap();
        assert_eq!(base.stat(path("out")).unwrap().unwrap().kind, FileKind::Symlink);
        assert_eq!(base.stat(path("out/passwd")).unwrap(), None);
        assert_eq!(base.read_link(path("out")).unwrap(), "/etc");
    }

    #[test]
    fn hides_the_store_in_lookups_and_listings() {
        let (dir, base) = base();
        std::fs::create_dir_all(dir.path().join(".vout/archives")).unwrap();
        std::fs::write(dir.path().join("a"), "a").unwrap();
        assert_eq!(base.stat(path(".vout/archives")).unwrap(), None);
        assert_eq!(base.list(RelPath::ROOT).unwrap().unwrap(), [("a".into(), FileKind::File)]);
    }

    #[test]
    fn removes_trees_and_forgives_what_is_not_there() {
        let (dir, base) = base();
        std::fs::create_dir_all(dir.path().join("d/e")).unwrap();
        std::fs::write(dir.path().join("d/e/f"), "").unwrap();
        symlink("d", dir.path().join("link")).unwrap();
        base.remove_all(path("link")).unwrap();
        assert!(dir.path().join("d/e/f").exists());
        base.remove_all(path("d")).unwrap();
        base.remove_all(path("d/e")).unwrap();
        assert!(!dir.path().join("d").exists());
    }
}
