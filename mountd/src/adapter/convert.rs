//! Conversions between the kernel's types and the core's.

use std::time::Duration;

use fuse_uring::{AttrOut, EntryOut, StatfsOut};
use rustix::fs::{FileType, OFlags};
use vout::fs::{
    Attr, AttrChanges, FileKind, FsError, FsStats, OpenFlags, RenameFlags, SetTime, Timestamp, XattrMode,
};

/// The kernel's mark of an open for execution (`__FMODE_EXEC`); it reaches us with the open flags.
const FMODE_EXEC: u32 = 0x20;

/// Permission bits of a mode.
pub(crate) const MODE_BITS: u32 = 0o7777;

/// Returns an answer that says what a name stands for, and for how long it and the attributes hold.
pub(crate) fn entry_out(attr: &Attr, entry_ttl: Duration, attr_ttl: Duration) -> EntryOut {
    EntryOut {
        nodeid: attr.node.0,
        // Node numbers are never used again for something else while a session lasts.
        generation: 0,
        entry_valid: entry_ttl.as_secs(),
        entry_valid_nsec: entry_ttl.subsec_nanos(),
        attr_valid: attr_ttl.as_secs(),
        attr_valid_nsec: attr_ttl.subsec_nanos(),
        attr: kernel_attr(attr),
    }
}

/// Returns an answer that says that a name stands for nothing, and for how long.
pub(crate) fn no_entry(ttl: Duration) -> EntryOut {
    EntryOut { entry_valid: ttl.as_secs(), entry_valid_nsec: ttl.subsec_nanos(), ..EntryOut::default() }
}

/// Returns an answer with attributes, and for how long they hold.
pub(crate) fn attr_out(attr: &Attr, ttl: Duration) -> AttrOut {
    AttrOut {
        attr_valid: ttl.as_secs(),
        attr_valid_nsec: ttl.subsec_nanos(),
        attr: kernel_attr(attr),
        ..AttrOut::default()
    }
}

fn kernel_attr(attr: &Attr) -> fuse_uring::Attr {
    fuse_uring::Attr {
        ino: attr.ino,
        size: attr.size_bytes,
        blocks: attr.blocks,
        atime: attr.atime.secs.cast_unsigned(),
        mtime: attr.mtime.secs.cast_unsigned(),
        ctime: attr.ctime.secs.cast_unsigned(),
        atimensec: attr.atime.nanos,
        mtimensec: attr.mtime.nanos,
        ctimensec: attr.ctime.nanos,
        mode: file_type(attr.kind).as_raw_mode() | (attr.mode & MODE_BITS),
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        blksize: attr.block_size_bytes,
        flags: 0,
    }
}

pub(crate) fn statfs_out(stats: &FsStats) -> StatfsOut {
    StatfsOut {
        blocks: stats.blocks,
        bfree: stats.blocks_free,
        bavail: stats.blocks_available,
        files: stats.files,
        ffree: stats.files_free,
        bsize: stats.block_size_bytes,
        namelen: stats.name_bytes_max,
        frsize: stats.block_size_bytes,
        ..StatfsOut::default()
    }
}

/// Returns the kind of a directory's entry, a `DT_` number.
pub(crate) fn entry_kind(kind: FileKind) -> u32 {
    // The type bits of a mode, without the permission bits below them.
    file_type(kind).as_raw_mode() >> 12
}

fn file_type(kind: FileKind) -> FileType {
    match kind {
        FileKind::File => FileType::RegularFile,
        FileKind::Dir => FileType::Directory,
        FileKind::Symlink => FileType::Symlink,
        FileKind::Fifo => FileType::Fifo,
        FileKind::Socket => FileType::Socket,
        FileKind::CharDevice => FileType::CharacterDevice,
        FileKind::BlockDevice => FileType::BlockDevice,
    }
}

/// Returns the kind in the file-type bits of `mode`, as `mknod` has them.
pub(crate) fn kind_of_mode(mode: u32) -> Result<FileKind, FsError> {
    match FileType::from_raw_mode(mode) {
        // mknod(2): no type means a regular file.
        FileType::RegularFile => Ok(FileKind::File),
        FileType::Fifo => Ok(FileKind::Fifo),
        FileType::Socket => Ok(FileKind::Socket),
        FileType::CharacterDevice => Ok(FileKind::CharDevice),
        FileType::BlockDevice => Ok(FileKind::BlockDevice),
        FileType::Unknown if mode & !MODE_BITS == 0 => Ok(FileKind::File),
        FileType::Directory | FileType::Symlink | FileType::Unknown => Err(FsError::InvalidArgument),
    }
}

/// Converts flags of `open`; `kill_set_id` says that cutting the file takes set-id bits away.
pub(crate) fn open_flags(flags: u32, kill_set_id: bool) -> OpenFlags {
    let bits = OFlags::from_bits_retain(flags);
    let mut open = match bits & OFlags::RWMODE {
        OFlags::WRONLY => OpenFlags::WRITE,
        OFlags::RDWR => OpenFlags::READ | OpenFlags::WRITE,
        _ => OpenFlags::READ,
    };
    open.set(OpenFlags::TRUNCATE, bits.contains(OFlags::TRUNC));
    open.set(OpenFlags::APPEND, bits.contains(OFlags::APPEND));
    open.set(OpenFlags::EXEC, flags & FMODE_EXEC != 0);
    open.set(OpenFlags::KILL_SET_ID, kill_set_id);
    open
}

/// Returns whether the open must create the file.
pub(crate) fn is_exclusive(flags: u32) -> bool {
    OFlags::from_bits_retain(flags).contains(OFlags::EXCL)
}

/// Converts rename flags; whiteouts are refused, as overlayfs on top of us is not supported.
pub(crate) fn rename_flags(flags: u32) -> Result<RenameFlags, FsError> {
    let known = rustix::fs::RenameFlags::from_bits_retain(flags);
    let mut rename = RenameFlags::empty();
    rename.set(RenameFlags::NO_REPLACE, known.contains(rustix::fs::RenameFlags::NOREPLACE));
    rename.set(RenameFlags::EXCHANGE, known.contains(rustix::fs::RenameFlags::EXCHANGE));
    if flags == rename.bits() { Ok(rename) } else { Err(FsError::InvalidArgument) }
}

/// Converts flags of `setxattr`.
pub(crate) fn xattr_mode(flags: u32) -> Result<XattrMode, FsError> {
    match rustix::fs::XattrFlags::from_bits_retain(flags) {
        rustix::fs::XattrFlags::CREATE => Ok(XattrMode::Create),
        rustix::fs::XattrFlags::REPLACE => Ok(XattrMode::Replace),
        none if none.is_empty() => Ok(XattrMode::Set),
        _ => Err(FsError::InvalidArgument),
    }
}

/// Converts changes of attributes.
pub(crate) fn attr_changes(set: &fuse_uring::Setattr) -> AttrChanges {
    AttrChanges {
        mode: set.mode.map(|mode| mode & MODE_BITS),
        uid: set.uid,
        gid: set.gid,
        size_bytes: set.size,
        atime: set.atime.map(set_time),
        mtime: set.mtime.map(set_time),
        kill_set_id: set.kill_suidgid,
    }
}

fn set_time(time: fuse_uring::SetTime) -> SetTime {
    match time {
        fuse_uring::SetTime::Now => SetTime::Now,
        fuse_uring::SetTime::At { seconds, nanos } => SetTime::At(Timestamp { secs: seconds, nanos }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_the_epoch_keep_their_nanoseconds() {
        let at = fuse_uring::SetTime::At { seconds: -2, nanos: 1 };
        let changes =
            attr_changes(&fuse_uring::Setattr { mtime: Some(at), ..fuse_uring::Setattr::default() });
        assert_eq!(changes.mtime, Some(SetTime::At(Timestamp { secs: -2, nanos: 1 })));
    }

    #[test]
    fn an_unknown_rename_flag_is_refused() {
        for refused in [4, 8, 3 | 8] {
            assert!(rename_flags(refused).is_err(), "{refused}");
        }
        assert_eq!(rename_flags(2).ok(), Some(RenameFlags::EXCHANGE));
        assert_eq!(rename_flags(1).ok(), Some(RenameFlags::NO_REPLACE));
    }

    #[test]
    fn open_flags_keep_execution_apart_from_reading() {
        assert_eq!(open_flags(FMODE_EXEC, false), OpenFlags::READ | OpenFlags::EXEC);
        let append = OFlags::WRONLY | OFlags::APPEND | OFlags::TRUNC;
        assert_eq!(
            open_flags(append.bits(), true),
            OpenFlags::WRITE | OpenFlags::APPEND | OpenFlags::TRUNCATE | OpenFlags::KILL_SET_ID
        );
    }

    #[test]
    fn entries_of_directories_have_the_kinds_of_readdir() {
        let kinds = [FileKind::Fifo, FileKind::Dir, FileKind::File, FileKind::Symlink, FileKind::Socket];
        assert_eq!(kinds.map(entry_kind), [1, 4, 8, 10, 12]);
    }
}
