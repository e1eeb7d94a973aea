//! Conversions between the kernel's types and the core's.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, FileType, INodeNo, TimeOrNow};
use rustix::fs::OFlags;
use vout::fs::{Attr, FileKind, FsError, NodeId, OpenFlags, RenameFlags, SetTime, Timestamp};

/// The kernel's mark of an open for execution (`__FMODE_EXEC`); it reaches us with the open flags.
const FMODE_EXEC: i32 = 0x20;

/// Permission bits of a mode.
pub(crate) const MODE_BITS: u32 = 0o7777;

pub(crate) fn node_of(ino: INodeNo) -> NodeId {
    NodeId(ino.0)
}

pub(crate) fn file_attr(attr: &Attr) -> FileAttr {
    FileAttr {
        // fuser has one field for node and inode number.
        ino: INodeNo(attr.node.0),
        size: attr.size_bytes,
        blocks: attr.blocks,
        atime: system_time(attr.atime),
        mtime: system_time(attr.mtime),
        ctime: system_time(attr.ctime),
        crtime: UNIX_EPOCH,
        kind: file_type(attr.kind),
        perm: u16::try_from(attr.mode & MODE_BITS).unwrap_or(0),
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        blksize: attr.block_size_bytes,
        flags: 0,
    }
}

/// Returns what, as an entry, says that a name does not exist, and may be cached.
pub(crate) fn no_entry() -> FileAttr {
    FileAttr {
        ino: INodeNo(0),
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: FileType::RegularFile,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 0,
        flags: 0,
    }
}

pub(crate) fn file_type(kind: FileKind) -> FileType {
    match kind {
        FileKind::File => FileType::RegularFile,
        FileKind::Dir => FileType::Directory,
        FileKind::Symlink => FileType::Symlink,
        FileKind::Fifo => FileType::NamedPipe,
        FileKind::Socket => FileType::Socket,
        FileKind::CharDevice => FileType::CharDevice,
        FileKind::BlockDevice => FileType::BlockDevice,
    }
}

/// Returns the kind in the file-type bits of `mode`, as `mknod` has them.
pub(crate) fn kind_of_mode(mode: u32) -> Result<FileKind, FsError> {
    use rustix::fs::FileType as Type;
    match Type::from_raw_mode(mode) {
        // mknod(2): no type means a regular file.
        Type::RegularFile => Ok(FileKind::File),
        Type::Fifo => Ok(FileKind::Fifo),
        Type::Socket => Ok(FileKind::Socket),
        Type::CharacterDevice => Ok(FileKind::CharDevice),
        Type::BlockDevice => Ok(FileKind::BlockDevice),
        Type::Unknown if mode & !MODE_BITS == 0 => Ok(FileKind::File),
        Type::Directory | Type::Symlink | Type::Unknown => Err(FsError::InvalidArgument),
    }
}

pub(crate) fn open_flags(flags: i32) -> OpenFlags {
    let bits = OFlags::from_bits_retain(flags.cast_unsigned());
    let mut open = match bits & OFlags::RWMODE {
        OFlags::WRONLY => OpenFlags::WRITE,
        OFlags::RDWR => OpenFlags::READ | OpenFlags::WRITE,
        _ => OpenFlags::READ,
    };
    open.set(OpenFlags::TRUNCATE, bits.contains(OFlags::TRUNC));
    open.set(OpenFlags::APPEND, bits.contains(OFlags::APPEND));
    open.set(OpenFlags::EXEC, flags & FMODE_EXEC != 0);
    open
}

/// Returns whether the open must create the file.
pub(crate) fn is_exclusive(flags: i32) -> bool {
    OFlags::from_bits_retain(flags.cast_unsigned()).contains(OFlags::EXCL)
}

/// Converts rename flags; whiteouts are refused, as overlayfs on top of us is not supported.
pub(crate) fn rename_flags(flags: fuser::RenameFlags) -> Result<RenameFlags, FsError> {
    let mut rename = RenameFlags::empty();
    rename.set(RenameFlags::NO_REPLACE, flags.contains(fuser::RenameFlags::RENAME_NOREPLACE));
    rename.set(RenameFlags::EXCHANGE, flags.contains(fuser::RenameFlags::RENAME_EXCHANGE));
    if flags.bits() == rename.bits() { Ok(rename) } else { Err(FsError::InvalidArgument) }
}

pub(crate) fn set_time(time: TimeOrNow) -> SetTime {
    match time {
        TimeOrNow::Now => SetTime::Now,
        TimeOrNow::SpecificTime(time) => SetTime::At(timestamp_of_request(time)),
    }
}

fn system_time(time: Timestamp) -> SystemTime {
    let whole = Duration::from_secs(time.secs.unsigned_abs());
    let base = if time.secs < 0 { UNIX_EPOCH.checked_sub(whole) } else { UNIX_EPOCH.checked_add(whole) };
    base.and_then(|base| base.checked_add(Duration::from_nanos(time.nanos.into()))).unwrap_or(UNIX_EPOCH)
}

/// Undoes fuser's conversion, which for a time before the epoch subtracts the nanoseconds that should be
/// added: -2 s and 1 ns arrives as -2.000000001 s.
fn timestamp_of_request(time: SystemTime) -> Timestamp {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => Timestamp {
            secs: i64::try_from(after.as_secs()).unwrap_or(i64::MAX),
            nanos: after.subsec_nanos(),
        },
        Err(before) => Timestamp {
            secs: 0_i64.checked_sub_unsigned(before.duration().as_secs()).unwrap_or(i64::MIN),
            nanos: before.duration().subsec_nanos(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_the_epoch_keep_their_nanoseconds() {
        let time = Timestamp { secs: -2, nanos: 1 };
        let before = UNIX_EPOCH - Duration::new(1, 999_999_999);
        assert_eq!(system_time(time), before);
        assert_eq!(timestamp_of_request(UNIX_EPOCH - Duration::new(2, 1)), time);
    }

    #[test]
    fn times_out_of_range_do_not_panic() {
        for secs in [i64::MIN, i64::MAX] {
            system_time(Timestamp { secs, nanos: 999_999_999 });
        }
    }

    #[test]
    fn an_unknown_rename_flag_is_refused() {
        assert!(rename_flags(fuser::RenameFlags::RENAME_WHITEOUT).is_err());
        assert!(rename_flags(fuser::RenameFlags::from_bits_retain(8)).is_err());
        assert_eq!(rename_flags(fuser::RenameFlags::RENAME_EXCHANGE).ok(), Some(RenameFlags::EXCHANGE));
    }

    #[test]
    fn open_flags_keep_execution_apart_from_reading() {
        assert_eq!(open_flags(FMODE_EXEC), OpenFlags::READ | OpenFlags::EXEC);
        let append = OFlags::WRONLY | OFlags::APPEND | OFlags::TRUNC;
        assert_eq!(
            open_flags(append.bits().cast_signed()),
            OpenFlags::WRITE | OpenFlags::APPEND | OpenFlags::TRUNCATE
        );
    }
}
