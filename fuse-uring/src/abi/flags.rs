//! Sets of bits.

use bitflags::bitflags;

bitflags! {
    /// What kernel and server can agree on at the start of a session.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    pub struct InitFlags: u64 {
        /// Several reads of one file at once.
        const ASYNC_READ = 1 << 0;
        /// `fcntl` locks are asked for, instead of kept by the kernel alone.
        const POSIX_LOCKS = 1 << 1;
        /// `O_TRUNC` reaches open, instead of a truncation before it.
        const ATOMIC_O_TRUNC = 1 << 3;
        /// `.` and `..` may be looked up: the file system can be exported.
        const EXPORT_SUPPORT = 1 << 4;
        /// Writes of more than a page.
        const BIG_WRITES = 1 << 5;
        /// The server applies the umask.
        const DONT_MASK = 1 << 6;
        /// `flock` locks are asked for.
        const FLOCK_LOCKS = 1 << 10;
        /// `ioctl` on directories.
        const HAS_IOCTL_DIR = 1 << 11;
        /// Cached pages are dropped where size or time changed.
        const AUTO_INVAL_DATA = 1 << 12;
        /// Listings may come with attributes.
        const DO_READDIRPLUS = 1 << 13;
        /// ... where the kernel expects to need them.
        const READDIRPLUS_AUTO = 1 << 14;
        /// Asynchronous direct input and output.
        const ASYNC_DIO = 1 << 15;
        /// The kernel collects writes.
        const WRITEBACK_CACHE = 1 << 16;
        /// `ENOSYS` to open: files need none.
        const NO_OPEN_SUPPORT = 1 << 17;
        /// Lookups and listings in one directory at once.
        const PARALLEL_DIROPS = 1 << 18;
        /// The server takes away set-id bits.
        const HANDLE_KILLPRIV = 1 << 19;
        /// The kernel checks POSIX access control lists.
        const POSIX_ACL = 1 << 20;
        /// A reader of an aborted connection is told `ECONNABORTED`, of an unmounted one `ENODEV`.
        const ABORT_ERROR = 1 << 21;
        /// The server says how many pages a request may have.
        const MAX_PAGES = 1 << 22;
        /// Targets of links may be cached.
        const CACHE_SYMLINKS = 1 << 23;
        /// `ENOSYS` to opendir: directories need none.
        const NO_OPENDIR_SUPPORT = 1 << 24;
        /// Cached pages are dropped only on demand.
        const EXPLICIT_INVAL_DATA = 1 << 25;
        /// Mappings have to be aligned.
        const MAP_ALIGNMENT = 1 << 26;
        /// Directories may be mounts of their own.
        const SUBMOUNTS = 1 << 27;
        /// As `HANDLE_KILLPRIV`, told when by the requests.
        const HANDLE_KILLPRIV_V2 = 1 << 28;
        /// Setting an extended attribute comes with flags.
        const SETXATTR_EXT = 1 << 29;
        /// There are more than 32 of these flags.
        const INIT_EXT = 1 << 30;
        /// Security contexts of new files.
        const SECURITY_CTX = 1 << 32;
        /// Direct access to memory, by file.
        const HAS_INODE_DAX = 1 << 33;
        /// Requests that create name a group that the file may take.
        const CREATE_SUPP_GROUP = 1 << 34;
        /// Names can be told to expire, without being dropped.
        const HAS_EXPIRE_ONLY = 1 << 35;
        /// Files of direct input and output may be mapped shared.
        const DIRECT_IO_ALLOW_MMAP = 1 << 36;
        /// The kernel reads and writes backing files itself.
        const PASSTHROUGH = 1 << 37;
        /// The file system cannot be exported.
        const NO_EXPORT_SUPPORT = 1 << 38;
        /// Unanswered requests can be asked for again.
        const HAS_RESEND = 1 << 39;
        /// The mount may map user ids.
        const ALLOW_IDMAP = 1 << 40;
        /// Requests may come over io_uring.
        const OVER_IO_URING = 1 << 41;
        /// Requests may have to be answered within a time.
        const REQUEST_TIMEOUT = 1 << 42;
    }
}

bitflags! {
    /// How the kernel treats an open file or directory.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    pub struct FopenFlags: u32 {
        /// Past the page cache.
        const DIRECT_IO = 1 << 0;
        /// What is cached stays.
        const KEEP_CACHE = 1 << 1;
        /// No `lseek`.
        const NONSEEKABLE = 1 << 2;
        /// The listing may be cached.
        const CACHE_DIR = 1 << 3;
        /// No position at all.
        const STREAM = 1 << 4;
        /// No flush at each close.
        const NOFLUSH = 1 << 5;
        /// Direct writes of one file at once.
        const PARALLEL_DIRECT_WRITES = 1 << 6;
        /// Reads and writes go to the backing file.
        const PASSTHROUGH = 1 << 7;
    }
}

bitflags! {
    /// Further properties of a file.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    pub struct AttrFlags: u32 {
        /// The root of another file system.
        const SUBMOUNT = 1 << 0;
        /// Direct access to memory.
        const DAX = 1 << 1;
    }
}

bitflags! {
    /// Where a write comes from, and what it does besides.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    pub struct WriteFlags: u32 {
        /// From the page cache, later; the handle is a guess.
        const CACHE = 1 << 0;
        /// The owner of locks is known.
        const LOCKOWNER = 1 << 1;
        /// Set-id bits are to go.
        const KILL_SUIDGID = 1 << 2;
    }
}

bitflags! {
    /// What a release does besides.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    pub struct ReleaseFlags: u32 {
        /// As a flush.
        const FLUSH = 1 << 0;
        /// The `flock` lock goes.
        const FLOCK_UNLOCK = 1 << 1;
    }
}

bitflags! {
    /// Which attributes change.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub(crate) struct SetattrValid: u32 {
        const MODE = 1 << 0;
        const UID = 1 << 1;
        const GID = 1 << 2;
        const SIZE = 1 << 3;
        const ATIME = 1 << 4;
        const MTIME = 1 << 5;
        const FH = 1 << 6;
        const ATIME_NOW = 1 << 7;
        const MTIME_NOW = 1 << 8;
        const LOCKOWNER = 1 << 9;
        const CTIME = 1 << 10;
        const KILL_SUIDGID = 1 << 11;
    }
}

/// Returns the flags of two words. The second counts only where the first says so.
pub(crate) fn decode_flags(low: u32, high: u32) -> InitFlags {
    let low = InitFlags::from_bits_truncate(u64::from(low));
    if low.contains(InitFlags::INIT_EXT) {
        low | InitFlags::from_bits_truncate(u64::from(high) << 32)
    } else {
        low
    }
}

/// Returns the two words of flags.
pub(crate) fn encode_flags(flags: InitFlags) -> (u32, u32) {
    let word = |bits: u64| u32::try_from(bits & u64::from(u32::MAX)).unwrap_or(u32::MAX);
    (word(flags.bits()), word(flags.bits() >> 32))
}
