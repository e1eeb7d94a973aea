//! The file-system interface between the core and whatever transports requests to it.
//!
//! [`Filesystem`] is what a mount serves: the live mount and every view implement it here, and `mountd`
//! adapts it to FUSE. It is written so that tests need no mount. The implementor owns node identity and
//! contents; the adapter owns what belongs to the protocol: lookup counts, handle numbers, backing ids,
//! cache lifetimes.

use std::ffi::OsStr;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use bitflags::bitflags;
use thiserror::Error;

use crate::archive::ArchiveError;
use crate::archive::restore::RestoreError;
pub use crate::state::FileKind;
use crate::store::StoreError;
pub use crate::time::Timestamp;
use crate::watch::News;

/// The identity of a file-system object while the session lasts.
///
/// Numbers with the highest bit set are the adapter's, for files of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub u64);

impl NodeId {
    /// The root directory.
    pub const ROOT: Self = Self(1);
}

/// Attributes, as `stat(2)` gives them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attr {
    /// Identity in requests.
    pub node: NodeId,
    /// Inode number, `st_ino`: it stays where an object gets another node.
    pub ino: u64,
    /// Kind of object.
    pub kind: FileKind,
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
    /// Size in bytes.
    pub size_bytes: u64,
    /// Allocated 512-byte blocks.
    pub blocks: u64,
    /// Preferred I/O size in bytes.
    pub block_size_bytes: u32,
    /// Last access.
    pub atime: Timestamp,
    /// Last modification of the content.
    pub mtime: Timestamp,
    /// Last change of content or attributes.
    pub ctime: Timestamp,
    /// What of this holds until the [`Invalidator`] is told, or somebody changes it through the mount.
    pub holds: Holds,
}

/// What holds until it is known to have changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Holds {
    /// Nothing: it may change beneath the mount.
    #[default]
    Nothing,
    /// The attributes.
    Attributes,
    /// The attributes, and that the name looked up leads to this node.
    Name,
}

/// Who makes a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller {
    /// Effective user.
    pub uid: u32,
    /// Effective group.
    pub gid: u32,
    /// The group of the directory that is changed, where the caller is in it besides: the kernel names no
    /// other of the caller's supplementary groups.
    pub group_of_dir: Option<u32>,
}

impl Caller {
    /// Returns a caller without supplementary groups.
    #[must_use]
    pub const fn new(uid: u32, gid: u32) -> Self {
        Self { uid, gid, group_of_dir: None }
    }

    /// Returns whether the caller may make files with set-group-id for `gid`: its own group, or the
    /// superuser.
    #[must_use]
    pub fn may_set_group_id(&self, gid: u32) -> bool {
        self.uid == 0 || self.gid == gid || self.group_of_dir == Some(gid)
    }
}

/// A new time for [`AttrChanges`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetTime {
    /// The present time.
    Now,
    /// The given time.
    At(Timestamp),
}

/// Attributes to change; `None` leaves one as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AttrChanges {
    /// Permission bits, `0o7777`.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Size in bytes.
    pub size_bytes: Option<u64>,
    /// Access time.
    pub atime: Option<SetTime>,
    /// Modification time.
    pub mtime: Option<SetTime>,
    /// Whether the change takes set-user-id and set-group-id away from a file, because its size is changed
    /// by somebody without the privilege to leave them. A change of owner always does.
    pub kill_set_id: bool,
}

/// What [`Filesystem::make_node`] creates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewNode {
    /// Kind: a regular file, pipe, socket or device.
    pub kind: FileKind,
    /// Permission bits with the caller's umask already applied.
    pub mode: u32,
    /// Device number of a device node.
    pub rdev: u32,
}

bitflags! {
    /// How a file is opened. Creation and exclusiveness are operations of their own.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct OpenFlags: u32 {
        /// For reading.
        const READ = 1;
        /// For writing.
        const WRITE = 2;
        /// Cut to length zero first.
        const TRUNCATE = 4;
        /// Every write goes to the end.
        const APPEND = 8;
        /// To be executed.
        const EXEC = 16;
        /// Cutting takes set-user-id and set-group-id away: who opens lacks the privilege to leave them.
        const KILL_SET_ID = 32;
    }

    /// Variants of [`Filesystem::rename`].
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct RenameFlags: u32 {
        /// Fail where the new name exists (`RENAME_NOREPLACE`).
        const NO_REPLACE = 1;
        /// Exchange both names (`RENAME_EXCHANGE`).
        const EXCHANGE = 2;
    }
}

/// An open regular file.
///
/// Handles stay usable after their name is gone; dropping one closes it.
pub trait OpenFile: Send + Sync {
    /// Reads at `offset`; fewer bytes than `buffer` holds only at the end of the file.
    ///
    /// # Errors
    /// Any [`FsError`].
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<usize, FsError>;

    /// Writes `data` at `offset`, and returns how many bytes: fewer only where there is no room for the rest.
    ///
    /// # Errors
    /// Any [`FsError`].
    fn write_at(&self, data: &[u8], offset: u64) -> Result<usize, FsError>;

    /// Takes set-user-id and set-group-id away, as a write does by somebody without the privilege to leave
    /// them.
    ///
    /// # Errors
    /// Any [`FsError`].
    fn kill_set_id(&self) -> Result<(), FsError>;

    /// Changes attributes of the open file itself, with the permissions of the descriptor.
    ///
    /// # Errors
    /// Any [`FsError`].
    fn set_attr(&self, changes: &AttrChanges) -> Result<(), FsError>;

    /// Returns the descriptor of a real file with just this content and these permissions to write, if
    /// there is one: the adapter may let the kernel read, write and map it directly.
    fn backing(&self) -> Option<BorrowedFd<'_>>;

    /// Makes the content durable.
    ///
    /// # Errors
    /// Any [`FsError`].
    fn sync(&self, data_only: bool) -> Result<(), FsError>;

    /// Changes the allocation, as `fallocate(2)` with `mode` does.
    ///
    /// # Errors
    /// Any [`FsError`].
    fn allocate(&self, mode: u32, offset: u64, length_bytes: u64) -> Result<(), FsError>;

    /// Finds data or a hole from `offset` on (`SEEK_DATA`, `SEEK_HOLE`).
    ///
    /// # Errors
    /// Any [`FsError`]; `ENXIO` where there is none.
    fn seek(&self, offset: u64, to: SeekTo) -> Result<u64, FsError>;
}

/// What [`Filesystem::set_xattr`] expects of the attribute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum XattrMode {
    /// It may exist.
    Set,
    /// It must not exist (`XATTR_CREATE`).
    Create,
    /// It must exist (`XATTR_REPLACE`).
    Replace,
}

/// What [`OpenFile::seek`] looks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SeekTo {
    /// The next byte of data.
    Data,
    /// The next hole.
    Hole,
}

/// One name in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirEntry {
    /// Inode number, `d_ino`.
    pub ino: u64,
    /// Kind of object.
    pub kind: FileKind,
    /// Its name.
    pub name: std::ffi::OsString,
}

/// Sizes of the file system, as `statfs(2)` gives them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FsStats {
    /// Block size in bytes.
    pub block_size_bytes: u32,
    /// Total blocks.
    pub blocks: u64,
    /// Free blocks.
    pub blocks_free: u64,
    /// Blocks free for ordinary users.
    pub blocks_available: u64,
    /// Total inodes.
    pub files: u64,
    /// Free inodes.
    pub files_free: u64,
    /// Longest name in bytes.
    pub name_bytes_max: u32,
}

/// Looks up names in one directory.
pub type Lookups<'a> = Box<dyn FnMut(&OsStr) -> Result<Attr, FsError> + 'a>;

/// A tree of files that a mount serves.
///
/// All methods may be called from several threads at once.
pub trait Filesystem: Send + Sync {
    /// Returns the attributes of `name` in `parent`. Counts as one reference for
    /// [`forget`](Self::forget).
    ///
    /// # Errors
    /// [`FsError::NotFound`] where there is no such name; any other [`FsError`].
    fn lookup(&self, parent: NodeId, name: &OsStr) -> Result<Attr, FsError>;

    /// Returns what looks up names in `parent` one after the other, each as [`lookup`](Self::lookup) does.
    ///
    /// # Limitations
    /// A directory that is renamed meanwhile may be looked into where it went: not to be kept for long.
    fn lookups(&self, parent: NodeId) -> Lookups<'_> {
        Box::new(move |name| self.lookup(parent, name))
    }

    /// Tells that nobody refers to `node` any more: as often as it was handed out by `lookup` or a
    /// method that creates, it has been forgotten.
    fn forget(&self, node: NodeId);

    /// Returns the attributes of `node`.
    ///
    /// # Errors
    /// Any [`FsError`].
    fn attr(&self, node: NodeId) -> Result<Attr, FsError>;

    /// Changes attributes and returns the new ones; `open` is the handle through which they are changed,
    /// where there is one: its permissions count then, not those of the path, which may be gone.
    ///
    /// # Errors
    /// Any [`FsError`].
    fn set_attr(
        &self,
        node: NodeId,
        open: Option<&dyn OpenFile>,
        changes: AttrChanges,
    ) -> Result<Attr, FsError>;

    /// Returns the target of a symbolic link.
    ///
    /// # Errors
    /// Any [`FsError`].
    fn read_link(&self, node: NodeId) -> Result<std::ffi::OsString, FsError>;

    /// Creates an empty file, pipe, socket or device.
    ///
    /// # Errors
    /// Any [`FsError`].
    fn make_node(&self, caller: Caller, parent: NodeId, name: &OsStr, new: NewNode) -> Result<Attr, FsError>;

    /// Creates a directory; `mode` has the caller's umask already applied.
    ///
    /// # Errors
    /// Any [`FsError`].
    fn make_dir(&self, caller: Caller, parent: NodeId, name: &OsStr, mode: u32) -> Result<Attr, FsError>;

    /// Creates a symbolic link.
    ///
    /// # Errors
    /// Any [`FsError`].
    fn make_symlink(
        &self,
        caller: Caller,
        parent: NodeId,
        name: &OsStr,
        target: &OsStr,
    ) -> Result<Attr, FsError>;

    /// Gives `node` another name.
    ///
    /// # Errors
    /// Any [`FsError`].
    fn link(&self, node: NodeId, parent: NodeId, name: &OsStr) -> Result<Attr, FsError>;

    /// Removes a name that is not a directory.
    ///
    /// # Errors
    /// Any [`FsError`].
    fn unlink(&self, parent: NodeId, name: &OsStr) -> Result<(), FsError>;

    /// Removes an empty directory.
    ///
    /// # Errors
    /// Any [`FsError`].
    fn remove_dir(&self, parent: NodeId, name: &OsStr) -> Result<(), FsError>;

    /// Renames, replacing what the new name held.
    ///
    /// # Errors
    /// Any [`FsError`].
    fn rename(&self, from: (NodeId, &OsStr), to: (NodeId, &OsStr), flags: RenameFlags)
    -> Result<(), FsError>;

    /// Opens a regular file.
    ///
    /// All handles of one node that are open at the same time share one backing, or none has any: the
    /// kernel forbids mixing them. Where an open would need another backing (a copy-up under open
    /// readers), the name gets a new node and the open fails with [`FsError::Stale`].
    ///
    /// # Errors
    /// Any [`FsError`].
    fn open(&self, node: NodeId, flags: OpenFlags) -> Result<Arc<dyn OpenFile>, FsError>;

    /// Creates a regular file that did not exist and opens it.
    ///
    /// # Errors
    /// [`FsError::AlreadyExists`] where the name exists; any other [`FsError`].
    fn create(
        &self,
        caller: Caller,
        parent: NodeId,
        name: &OsStr,
        mode: u32,
        flags: OpenFlags,
    ) -> Result<(Attr, Arc<dyn OpenFile>), FsError>;

    /// Creates a regular file without a name (`O_TMPFILE`) on the file system of `parent` and opens it;
    /// [`link`](Self::link) may name it.
    ///
    /// # Errors
    /// Any [`FsError`].
    fn create_unnamed(
        &self,
        caller: Caller,
        parent: NodeId,
        mode: u32,
        flags: OpenFlags,
    ) -> Result<(Attr, Arc<dyn OpenFile>), FsError>;

    /// Copies at most `length_bytes` from one open file to another, sharing extents where that is possible,
    /// and returns how many: fewer only at the end of `from`.
    ///
    /// # Errors
    /// Any [`FsError`].
    fn copy_range(
        &self,
        from: (&dyn OpenFile, u64),
        to: (&dyn OpenFile, u64),
        length_bytes: u64,
    ) -> Result<u64, FsError> {
        crate::open_file::copy_range(from, to, length_bytes)
    }

    /// Tells that the content of `node` is about to be changed through a file that was opened before, by whoever serves
    /// opens without asking for each.
    fn writing(&self, _node: NodeId) {}

    /// Tells that the content of `node` was changed through `file`, or may have been, before whoever did it hears of it.
    fn written(&self, _node: NodeId, _file: &dyn OpenFile) {}

    /// Returns whether extended attributes are served at all. It does not change while the session lasts, so
    /// that the kernel need not ask again.
    fn has_xattrs(&self) -> bool;

    /// Returns the value of an extended attribute.
    ///
    /// # Errors
    /// `ENODATA` where there is none of that name; [`FsError::NotSupported`] outside the namespace `user.`.
    fn xattr(&self, node: NodeId, name: &OsStr) -> Result<Vec<u8>, FsError>;

    /// Returns the names of all extended attributes.
    ///
    /// # Errors
    /// Any [`FsError`].
    fn xattr_names(&self, node: NodeId) -> Result<Vec<std::ffi::OsString>, FsError>;

    /// Sets an extended attribute.
    ///
    /// # Errors
    /// As `setxattr(2)`; [`FsError::NotSupported`] outside the namespace `user.`.
    fn set_xattr(&self, node: NodeId, name: &OsStr, value: &[u8], mode: XattrMode) -> Result<(), FsError>;

    /// Removes an extended attribute.
    ///
    /// # Errors
    /// As [`xattr`](Self::xattr).
    fn remove_xattr(&self, node: NodeId, name: &OsStr) -> Result<(), FsError>;

    /// Returns all names in a directory but `.` and `..`, in a stable order.
    ///
    /// The whole directory at once: the adapter keeps the answer while the directory is open, which makes
    /// positions stable (`seekdir`) and shows each name once whatever changes meanwhile. A merged directory
    /// has no order of its own that a position could stand for, so a stream would keep the names as well.
    ///
    /// # Errors
    /// Any [`FsError`].
    fn read_dir(&self, node: NodeId) -> Result<Vec<DirEntry>, FsError>;

    /// Returns the directory that a directory is in, which its listing shows as `..`; itself where that is not known.
    fn parent(&self, dir: NodeId) -> NodeId {
        dir
    }

    /// Returns sizes of the file system.
    ///
    /// # Errors
    /// Any [`FsError`].
    fn stats(&self) -> Result<FsStats, FsError>;

    /// Makes a directory durable.
    ///
    /// # Errors
    /// Any [`FsError`].
    fn sync_dir(&self, node: NodeId) -> Result<(), FsError>;

    /// Makes everything durable (`syncfs`).
    ///
    /// # Errors
    /// Any [`FsError`].
    fn sync_all(&self) -> Result<(), FsError>;
}

/// Why a file-system request failed. The adapter turns each into one `errno`.
#[derive(Debug, Error)]
pub enum FsError {
    /// No such name, or the node is gone.
    #[error("not found")]
    NotFound,
    /// The name exists.
    #[error("already exists")]
    AlreadyExists,
    /// A directory was needed.
    #[error("not a directory")]
    NotADirectory,
    /// Anything but a directory was needed.
    #[error("is a directory")]
    IsADirectory,
    /// The directory has entries.
    #[error("directory not empty")]
    DirectoryNotEmpty,
    /// The request makes no sense.
    #[error("invalid argument")]
    InvalidArgument,
    /// The kind of object does not allow it.
    #[error("operation not permitted")]
    NotPermitted,
    /// This file system does not do that.
    #[error("not supported")]
    NotSupported,
    /// The node was replaced while the request was under way: look it up and try again.
    #[error("stale node")]
    Stale,
    /// Stored data is damaged; the message says which.
    #[error("damaged data: {0}")]
    Corrupt(String),
    /// The operating system refused.
    #[error(transparent)]
    Os(io::Error),
}

impl From<io::Error> for FsError {
    fn from(error: io::Error) -> Self {
        Self::Os(error)
    }
}

impl From<ArchiveError> for FsError {
    fn from(error: ArchiveError) -> Self {
        match error {
            ArchiveError::Io { source, .. } | ArchiveError::Output { source, .. } => Self::Os(source),
            error => Self::Corrupt(error.to_string()),
        }
    }
}

impl From<RestoreError> for FsError {
    fn from(error: RestoreError) -> Self {
        match error {
            RestoreError::Archive(error) => error.into(),
            RestoreError::Io { source, .. } => Self::Os(source),
            error @ RestoreError::NotADirectory { .. } => Self::Corrupt(error.to_string()),
        }
    }
}

impl From<StoreError> for FsError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Full { source, .. }
            | StoreError::ReadOnly { source, .. }
            | StoreError::NotADirectory { source, .. }
            | StoreError::Io { source, .. } => Self::Os(source),
            error @ (StoreError::Relative { .. } | StoreError::ForeignOwner { .. }) => {
                Self::Os(io::Error::other(error))
            }
        }
    }
}

impl From<rustix::io::Errno> for FsError {
    fn from(errno: rustix::io::Errno) -> Self {
        use rustix::io::Errno;
        match errno {
            Errno::NOENT => Self::NotFound,
            Errno::EXIST => Self::AlreadyExists,
            Errno::NOTDIR => Self::NotADirectory,
            Errno::ISDIR => Self::IsADirectory,
            Errno::NOTEMPTY => Self::DirectoryNotEmpty,
            Errno::INVAL => Self::InvalidArgument,
            Errno::PERM => Self::NotPermitted,
            Errno::OPNOTSUPP => Self::NotSupported,
            Errno::STALE => Self::Stale,
            other => Self::Os(other.into()),
        }
    }
}

/// Tells the kernel, or whoever caches answers of a [`Filesystem`], that they are out of date.
///
/// Called after all locks are dropped.
pub trait Invalidator: Send + Sync {
    /// The name may now mean something else, or nothing.
    fn entry_changed(&self, parent: NodeId, name: &OsStr);

    /// The node may be another object now. Whoever holds it open opens it anew.
    fn node_changed(&self, node: NodeId);

    /// Attributes and content of the node may be different now. Whoever holds it open has what changed.
    fn content_changed(&self, node: NodeId);

    /// The name may come to mean something else without anybody being told from now on; it does not yet.
    fn name_expires(&self, parent: NodeId, name: &OsStr);

    /// Attributes of the node may be different now; its content is not.
    fn attributes_changed(&self, node: NodeId);

    /// Something changed of which those may want to hear who watch the tree. Comes after what is told of
    /// names and nodes.
    fn news(&self, news: Box<dyn News>);
}

impl FsStats {
    /// Takes what `fstatvfs(3)` says.
    #[must_use]
    pub fn of(stats: &rustix::fs::StatVfs) -> Self {
        Self {
            block_size_bytes: u32::try_from(stats.f_bsize).unwrap_or(4096),
            blocks: stats.f_blocks,
            blocks_free: stats.f_bfree,
            blocks_available: stats.f_bavail,
            files: stats.f_files,
            files_free: stats.f_ffree,
            name_bytes_max: u32::try_from(stats.f_namemax).unwrap_or(255),
        }
    }
}
