//! What the kernel asks.

mod args;
mod decode;
mod extensions;

use std::ffi::OsStr;

use crate::abi::{FileLock, ReleaseFlags, WriteFlags};

pub(crate) use self::args::Args;
pub use self::decode::DecodeError;
pub(crate) use self::decode::{Message, decode, decode_init};

/// What a request asks for. Names and data are borrowed from the request.
///
/// `handle` is what [`OpenOut::fh`](crate::OpenOut::fh) said. Flags are those of the system calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Operation<'a> {
    /// A name's node. Answer: an entry, which counts until it is forgotten.
    Lookup {
        /// In the request's node.
        name: &'a OsStr,
    },
    /// Attributes. Answer: attributes.
    Getattr {
        /// Where an open file is asked about.
        handle: Option<u64>,
    },
    /// Changes of attributes. Answer: attributes.
    Setattr(Setattr),
    /// A link's target. Answer: bytes.
    Readlink,
    /// A new symbolic link. Answer: an entry.
    Symlink {
        /// In the request's node.
        name: &'a OsStr,
        /// Where it leads.
        target: &'a OsStr,
    },
    /// A new file, FIFO, socket or device. Answer: an entry.
    Mknod {
        /// In the request's node.
        name: &'a OsStr,
        /// Kind and permissions.
        mode: u32,
        /// Which device.
        rdev: u32,
        /// The caller's mask.
        umask: u32,
    },
    /// A new directory. Answer: an entry.
    Mkdir {
        /// In the request's node.
        name: &'a OsStr,
        /// Permissions.
        mode: u32,
        /// The caller's mask.
        umask: u32,
    },
    /// A name goes. Answer: empty.
    Unlink {
        /// In the request's node.
        name: &'a OsStr,
    },
    /// An empty directory goes. Answer: empty.
    Rmdir {
        /// In the request's node.
        name: &'a OsStr,
    },
    /// A name moves. Answer: empty.
    Rename {
        /// In the request's node.
        name: &'a OsStr,
        /// The directory it moves to.
        new_parent: u64,
        /// What it is called there.
        new_name: &'a OsStr,
        /// Of `renameat2`.
        flags: u32,
    },
    /// Another name for a node. Answer: an entry.
    Link {
        /// What gets the name.
        node: u64,
        /// In the request's node.
        name: &'a OsStr,
    },
    /// A file is opened. Answer: an open file.
    Open {
        /// Of `open`.
        flags: u32,
        /// Set-id bits are to go, as the file is truncated.
        kill_suidgid: bool,
    },
    /// Answer: bytes; fewer than asked for only at the end.
    Read(Read),
    /// Answer: how many were written.
    Write {
        /// The open file.
        handle: u64,
        /// Where to.
        offset: u64,
        /// What.
        data: &'a [u8],
        /// Where from.
        write_flags: WriteFlags,
        /// For mandatory locks.
        lock_owner: Option<u64>,
        /// Of the open file.
        flags: u32,
    },
    /// The file system's size. Answer: the same.
    Statfs,
    /// An open file's last descriptor is gone. Answer: empty, and nobody waits for it.
    Release(Release),
    /// Answer: empty.
    Fsync {
        /// The open file.
        handle: u64,
        /// As `fdatasync`.
        data_only: bool,
    },
    /// Answer: empty.
    Setxattr {
        /// The attribute.
        name: &'a OsStr,
        /// Its value.
        value: &'a [u8],
        /// Of `setxattr`.
        flags: u32,
        /// The set-group-id bit is to go, as the value is an access control list.
        kill_sgid: bool,
    },
    /// Answer: bytes, or their number where `size` is zero.
    Getxattr {
        /// The attribute.
        name: &'a OsStr,
        /// Room for the value.
        size: u32,
    },
    /// Answer: names, each followed by a zero byte, or their size where `size` is zero.
    Listxattr {
        /// Room for the names.
        size: u32,
    },
    /// Answer: empty.
    Removexattr {
        /// The attribute.
        name: &'a OsStr,
    },
    /// One of an open file's descriptors is closed. Answer: empty.
    Flush {
        /// The open file.
        handle: u64,
        /// Whose locks go.
        lock_owner: u64,
    },
    /// Answer: an open directory.
    Opendir {
        /// Of `open`.
        flags: u32,
    },
    /// Answer: a directory's entries.
    Readdir(Read),
    /// Answer: a directory's entries with attributes. Each but `.` and `..` counts as looked up.
    Readdirplus(Read),
    /// Answer: empty, and nobody waits for it.
    Releasedir(Release),
    /// Answer: empty.
    Fsyncdir {
        /// The open directory.
        handle: u64,
        /// As `fdatasync`.
        data_only: bool,
    },
    /// Who stands in the way of a lock. Answer: a lock.
    Getlk(Lock),
    /// Answer: empty.
    Setlk {
        /// Which.
        lock: Lock,
        /// Wait for it: answer later, with [`Reply::defer`](crate::Reply::defer).
        wait: bool,
    },
    /// Answer: empty.
    Access {
        /// Of `access`.
        mask: u32,
    },
    /// A new file is opened. Answer: entry and open file.
    Create {
        /// In the request's node.
        name: &'a OsStr,
        /// Kind and permissions.
        mode: u32,
        /// The caller's mask.
        umask: u32,
        /// Of `open`.
        flags: u32,
        /// Set-id bits are to go.
        kill_suidgid: bool,
    },
    /// Answer: as [`Reply::ioctl`](crate::Reply::ioctl).
    Ioctl {
        /// The open file.
        handle: u64,
        /// `FUSE_IOCTL_` bits.
        flags: u32,
        /// The request number.
        command: u32,
        /// The caller's argument.
        argument: u64,
        /// What it points at.
        data: &'a [u8],
        /// Room for an answer.
        out_size: u32,
    },
    /// Answer: what is ready.
    Poll {
        /// The open file.
        handle: u64,
        /// For [`Notifier::poll`](crate::Notifier::poll).
        kernel_handle: u64,
        /// Whether the kernel wants to be notified.
        notify: bool,
        /// Of `poll`.
        events: u32,
    },
    /// Answer: empty.
    Fallocate {
        /// The open file.
        handle: u64,
        /// Where.
        offset: u64,
        /// How much.
        length: u64,
        /// Of `fallocate`.
        mode: u32,
    },
    /// `SEEK_DATA` or `SEEK_HOLE`. Answer: an offset.
    Lseek {
        /// The open file.
        handle: u64,
        /// From where.
        offset: u64,
        /// Which.
        whence: u32,
    },
    /// Answer: how many bytes were copied.
    CopyFileRange {
        /// The open file that is read; of the request's node.
        handle: u64,
        /// From where.
        offset: u64,
        /// The node that is written.
        to_node: u64,
        /// Its open file.
        to_handle: u64,
        /// To where.
        to_offset: u64,
        /// How much.
        length: u64,
        /// Of `copy_file_range`.
        flags: u64,
    },
    /// Answer: empty.
    Syncfs,
    /// A new file without a name. Answer: entry and open file.
    Tmpfile {
        /// Kind and permissions.
        mode: u32,
        /// The caller's mask.
        umask: u32,
        /// Of `open`.
        flags: u32,
    },
    /// Answer: attributes as of `statx`.
    Statx {
        /// Where an open file is asked about.
        handle: Option<u64>,
        /// Of `statx`.
        flags: u32,
        /// What is wanted.
        mask: u32,
    },
    /// Where a block of a file is on its device. Answer: the same.
    Bmap {
        /// Which.
        block: u64,
        /// How large blocks are.
        block_size: u32,
    },
    /// A window into a file, for direct access. Answer: empty.
    SetupMapping {
        /// The open file.
        handle: u64,
        /// Where in the file.
        offset: u64,
        /// How much.
        length: u64,
        /// For reading, for writing.
        flags: u64,
        /// Where in the window.
        window_offset: u64,
    },
    /// Such windows go. Answer: empty.
    RemoveMapping {
        /// Which.
        ranges: MappingRanges<'a>,
    },
}

/// Reads of files and of directories.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Read {
    /// What is open.
    pub handle: u64,
    /// In a file: where from. In a directory: what the last entry said.
    pub offset: u64,
    /// Room for an answer.
    pub size: u32,
    /// For mandatory locks.
    pub lock_owner: Option<u64>,
    /// Of the open file.
    pub flags: u32,
}

/// The end of an open file or directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Release {
    /// What was open.
    pub handle: u64,
    /// Of the open file.
    pub flags: u32,
    /// What else is to be done.
    pub release_flags: ReleaseFlags,
    /// Whose locks go.
    pub lock_owner: u64,
}

/// A lock that is asked for or about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lock {
    /// The open file.
    pub handle: u64,
    /// Who wants it.
    pub owner: u64,
    /// What for.
    pub lock: FileLock,
    /// Of `flock`, and on the whole file.
    pub flock: bool,
}

/// Which attributes change, and to what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Setattr {
    /// Permissions.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Bytes.
    pub size: Option<u64>,
    /// Last access.
    pub atime: Option<SetTime>,
    /// Last change of content.
    pub mtime: Option<SetTime>,
    /// Last change; with a writeback cache only.
    pub ctime: Option<SetTime>,
    /// Where an open file is changed.
    pub handle: Option<u64>,
    /// For mandatory locks.
    pub lock_owner: Option<u64>,
    /// Set-id bits are to go.
    pub kill_suidgid: bool,
}

/// A time to be set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetTime {
    /// When the server does it.
    Now,
    /// This one.
    At {
        /// Since 1970.
        seconds: i64,
        /// Beyond.
        nanos: u32,
    },
}

/// Ranges of a window, one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MappingRanges<'a> {
    bytes: &'a [u8],
}

/// A file's node is not referred to any more, so and so often.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forget {
    /// The node.
    pub node: u64,
    /// How many lookups are taken back.
    pub lookups: u64,
}
