//! What follows an answer's header.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

macro_rules! replies {
    ($($(#[$attribute:meta])* $visible:vis struct $name:ident {
        $($(#[$field_attribute:meta])* $field:ident: $type:ty,)*
    })*) => {
        $(
            $(#[$attribute])*
            #[repr(C)]
            #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
            $visible struct $name {
                $($(#[$field_attribute])* $visible $field: $type,)*
            }
        )*
    };
}

replies! {
    /// A file's attributes.
    pub struct Attr {
        /// The number that `stat` shows.
        ino: u64,
        /// Bytes.
        size: u64,
        /// Blocks of 512 bytes.
        blocks: u64,
        /// Seconds since 1970 of the last access; negative ones as two's complement, as in all times.
        atime: u64,
        /// Of the last change of content.
        mtime: u64,
        /// Of the last change.
        ctime: u64,
        /// Nanoseconds of `atime`.
        atimensec: u32,
        /// Of `mtime`.
        mtimensec: u32,
        /// Of `ctime`.
        ctimensec: u32,
        /// Kind and permissions, as in `stat`.
        mode: u32,
        /// Links.
        nlink: u32,
        /// Owner.
        uid: u32,
        /// Group.
        gid: u32,
        /// Which device it is, if one.
        rdev: u32,
        /// Bytes that are good to read at once.
        blksize: u32,
        /// [`AttrFlags`](crate::AttrFlags).
        flags: u32,
    }

    /// A name's node, and how long the kernel may believe it.
    pub struct EntryOut {
        /// The node; zero: there is nothing of that name.
        nodeid: u64,
        /// Tells two nodes of the same number apart.
        generation: u64,
        /// Seconds that the name holds.
        entry_valid: u64,
        /// Seconds that the attributes hold.
        attr_valid: u64,
        /// Nanoseconds beyond `entry_valid`.
        entry_valid_nsec: u32,
        /// Nanoseconds beyond `attr_valid`.
        attr_valid_nsec: u32,
        /// The attributes.
        attr: Attr,
    }

    /// A node's attributes, and how long the kernel may believe them.
    pub struct AttrOut {
        /// Seconds that they hold.
        attr_valid: u64,
        /// Nanoseconds beyond.
        attr_valid_nsec: u32,
        /// Zero.
        dummy: u32,
        /// The attributes.
        attr: Attr,
    }

    /// An open file or directory.
    pub struct OpenOut {
        /// The number by which requests name it.
        fh: u64,
        /// [`FopenFlags`](crate::FopenFlags).
        open_flags: u32,
        /// With `PASSTHROUGH`: a [`BackingId`](crate::BackingId)'s number; zero otherwise.
        backing_id: i32,
    }

    /// A file system's size.
    pub struct StatfsOut {
        /// Blocks of `frsize` bytes.
        blocks: u64,
        /// Free ones.
        bfree: u64,
        /// Free ones for everybody.
        bavail: u64,
        /// Files there may be.
        files: u64,
        /// More files there may be.
        ffree: u64,
        /// Bytes that are good to read at once.
        bsize: u32,
        /// Bytes of a name.
        namelen: u32,
        /// Bytes of a block.
        frsize: u32,
        /// Zero.
        padding: u32,
        /// Zero.
        spare: [u32; 6],
    }

    /// A lock on a range of bytes.
    pub struct FileLock {
        /// The first byte.
        start: u64,
        /// The last.
        end: u64,
        /// `F_RDLCK`, `F_WRLCK` or `F_UNLCK`.
        kind: u32,
        /// The process that has it.
        pid: u32,
    }

    /// The answer to an `ioctl`; its data follow.
    pub struct IoctlOut {
        /// What the system call returns.
        result: i32,
        /// Zero, or "again, with these ranges".
        flags: u32,
        /// Ranges to read.
        in_iovs: u32,
        /// Ranges to write.
        out_iovs: u32,
    }

    /// A time of `statx`.
    pub struct StatxTime {
        /// Seconds since 1970.
        tv_sec: i64,
        /// Nanoseconds beyond.
        tv_nsec: u32,
        /// Zero.
        reserved: i32,
    }

    /// Attributes as `statx` has them.
    pub struct Statx {
        /// Which are there.
        mask: u32,
        /// Bytes that are good to read at once.
        blksize: u32,
        /// `STATX_ATTR_` bits.
        attributes: u64,
        /// Links.
        nlink: u32,
        /// Owner.
        uid: u32,
        /// Group.
        gid: u32,
        /// Kind and permissions.
        mode: u16,
        /// Zero.
        spare0: [u16; 1],
        /// The file's number.
        ino: u64,
        /// Bytes.
        size: u64,
        /// Blocks of 512 bytes.
        blocks: u64,
        /// Which of `attributes` are known.
        attributes_mask: u64,
        /// Last access.
        atime: StatxTime,
        /// Birth.
        btime: StatxTime,
        /// Last change.
        ctime: StatxTime,
        /// Last change of content.
        mtime: StatxTime,
        /// Which device it is, if one.
        rdev_major: u32,
        /// The same.
        rdev_minor: u32,
        /// Which device it is on.
        dev_major: u32,
        /// The same.
        dev_minor: u32,
        /// Zero.
        spare2: [u64; 14],
    }

    /// Attributes as `statx` has them, and how long the kernel may believe them.
    pub struct StatxOut {
        /// Seconds that they hold.
        attr_valid: u64,
        /// Nanoseconds beyond.
        attr_valid_nsec: u32,
        /// Zero.
        flags: u32,
        /// Zero.
        spare: [u64; 2],
        /// The attributes.
        stat: Statx,
    }

    pub(crate) struct InitOut {
        major: u32,
        minor: u32,
        max_readahead: u32,
        flags: u32,
        max_background: u16,
        congestion_threshold: u16,
        max_write: u32,
        time_gran: u32,
        max_pages: u16,
        map_alignment: u16,
        flags2: u32,
        max_stack_depth: u32,
        request_timeout: u16,
        unused: [u16; 11],
    }

    pub(crate) struct WriteOut {
        size: u32,
        padding: u32,
    }

    pub(crate) struct CopyFileRangeOut {
        bytes_copied: u64,
    }

    pub(crate) struct GetxattrOut {
        size: u32,
        padding: u32,
    }

    pub(crate) struct LseekOut {
        offset: u64,
    }

    pub(crate) struct BmapOut {
        block: u64,
    }

    pub(crate) struct PollOut {
        revents: u32,
        padding: u32,
    }

    /// Followed by the name, and zeros up to a multiple of eight bytes.
    pub(crate) struct Dirent {
        ino: u64,
        off: u64,
        namelen: u32,
        kind: u32,
    }
}
