//! The bytes that kernel and server exchange: protocol 7, up to minor version 45.
//!
//! Everything is in the machine's own byte order. Names of fields are those of the kernel's `<linux/fuse.h>`,
//! so that its documentation can be read beside them. What a handler fills in is public; what it is asked
//! reaches it as an [`Operation`](crate::Operation).

mod flags;
mod notices;
mod opcode;
mod replies;
mod requests;
mod ring;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

pub use self::flags::{AttrFlags, FopenFlags, InitFlags, ReleaseFlags, WriteFlags};
pub use self::replies::{
    Attr, AttrOut, EntryOut, FileLock, IoctlOut, OpenOut, StatfsOut, Statx, StatxOut, StatxTime,
};

pub(crate) use self::flags::{SetattrValid, decode_flags, encode_flags};
pub(crate) use self::notices::{
    InvalEntryOut, InvalInodeOut, NotifyCode, NotifyDeleteOut, NotifyPollOut, NotifyRetrieveOut,
    NotifyStoreOut,
};
pub(crate) use self::opcode::Opcode;
pub(crate) use self::replies::{
    BmapOut, CopyFileRangeOut, Dirent, GetxattrOut, InitOut, LseekOut, PollOut, WriteOut,
};
pub(crate) use self::requests::{
    AccessIn, BatchForgetIn, BmapIn, CopyFileRangeIn, CreateIn, ExtHeader, FallocateIn, FlushIn, ForgetIn,
    ForgetOne, FsyncIn, GetattrIn, GetxattrIn, INIT_IN_OLD_BYTES, InitIn, InterruptIn, IoctlIn, LinkIn, LkIn,
    LseekIn, MkdirIn, MknodIn, OpenIn, PollIn, ReadIn, ReleaseIn, RemoveMappingIn, RemoveMappingOne,
    Rename2In, RenameIn, SetattrIn, SetupMappingIn, SetxattrIn, SetxattrInOld, StatxIn, WriteIn,
};

pub(crate) use self::ring::{RingCommand, RingHeader};

/// The protocol's major version; there is no other.
pub(crate) const MAJOR: u32 = 7;
/// The newest minor version that is spoken here.
pub(crate) const MINOR: u32 = 45;
/// The oldest: Linux 5.4. Structures have kept their sizes since.
pub(crate) const MINOR_MIN: u32 = 31;

/// The first that has requests over io_uring: Linux 6.14.
pub(crate) const MINOR_RING: u32 = 42;

/// The node that a mount's root is.
pub const ROOT_NODE: u64 = 1;

/// A read of the device must offer at least this.
pub(crate) const READ_BUFFER_BYTES_MIN: usize = 8192;
/// Pages of a request where the kernel is not told otherwise.
pub(crate) const PAGES_DEFAULT: u16 = 32;
/// Extension of a request: the group that a new file may take from its directory.
pub(crate) const EXT_GROUPS: u32 = 32;

/// The start of every request.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub(crate) struct InHeader {
    /// Bytes of the whole request, this included.
    pub(crate) len: u32,
    pub(crate) opcode: u32,
    pub(crate) unique: u64,
    pub(crate) nodeid: u64,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) pid: u32,
    /// Bytes of extensions at the request's end, in units of eight.
    pub(crate) total_extlen: u16,
    pub(crate) padding: u16,
}

/// Bytes of [`OutHeader`].
pub(crate) const OUT_HEADER_BYTES: u32 = 16;

/// The start of every answer and notification.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub(crate) struct OutHeader {
    pub(crate) len: u32,
    /// A negated error number, or a notification's code.
    pub(crate) error: i32,
    /// The request that is answered; zero for a notification.
    pub(crate) unique: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sizes as the kernel's header has them: a field forgotten would shift all that follows.
    #[test]
    fn structures_have_the_kernels_sizes() {
        let sizes = [
            (size_of::<InHeader>(), 40),
            (size_of::<OutHeader>(), OUT_HEADER_BYTES as usize),
            (size_of::<InitIn>(), 64),
            (size_of::<InitOut>(), 64),
            (size_of::<Attr>(), 88),
            (size_of::<AttrOut>(), 104),
            (size_of::<EntryOut>(), 128),
            (size_of::<OpenOut>(), 16),
            (size_of::<StatfsOut>(), 80),
            (size_of::<Statx>(), 256),
            (size_of::<StatxOut>(), 288),
            (size_of::<FileLock>(), 24),
            (size_of::<IoctlOut>(), 16),
            (size_of::<Dirent>(), 24),
            (size_of::<SetattrIn>(), 88),
            (size_of::<WriteIn>(), 40),
            (size_of::<ReadIn>(), 40),
            (size_of::<LkIn>(), 48),
            (size_of::<CopyFileRangeIn>(), 56),
            (size_of::<IoctlIn>(), 32),
            (size_of::<StatxIn>(), 24),
            (size_of::<SetxattrIn>(), 16),
            (size_of::<InvalInodeOut>(), 24),
            (size_of::<InvalEntryOut>(), 16),
            (size_of::<NotifyDeleteOut>(), 24),
            (size_of::<NotifyRetrieveOut>(), 32),
            (size_of::<RingHeader>(), 288),
            (size_of::<RingCommand>(), 24),
        ];
        for (position, (found, expected)) in sizes.into_iter().enumerate() {
            assert_eq!(found, expected, "structure {position}");
        }
    }
}
