//! From bytes to an [`Operation`].

use thiserror::Error;
use zerocopy::FromBytes;

use super::extensions::supplementary_group;
use super::{Args, Forget, Lock, MappingRanges, Operation, Read, Release, SetTime, Setattr};
use crate::abi::{
    AccessIn, BatchForgetIn, BmapIn, CopyFileRangeIn, CreateIn, FallocateIn, FlushIn, ForgetIn, ForgetOne,
    FsyncIn, GetattrIn, GetxattrIn, INIT_IN_OLD_BYTES, InHeader, InitFlags, InitIn, InterruptIn, IoctlIn,
    LinkIn, LkIn, LseekIn, MkdirIn, MknodIn, Opcode, OpenIn, PollIn, ReadIn, ReleaseFlags, ReleaseIn,
    RemoveMappingIn, RemoveMappingOne, Rename2In, RenameIn, SetattrIn, SetattrValid, SetupMappingIn,
    SetxattrIn, SetxattrInOld, StatxIn, WriteFlags, WriteIn,
};

/// An attribute request is about an open file.
const GETATTR_FH: u32 = 1 << 0;
/// The owner of locks is known.
const READ_LOCKOWNER: u32 = 1 << 1;
/// The lock is one of `flock`.
const LK_FLOCK: u32 = 1 << 0;
/// As `fdatasync`.
const FSYNC_DATA_ONLY: u32 = 1 << 0;
/// Set-id bits are to go.
const OPEN_KILL_SUIDGID: u32 = 1 << 0;
/// The set-group-id bit is to go.
const SETXATTR_KILL_SGID: u32 = 1 << 0;
/// The kernel wants to be notified.
const POLL_NOTIFY: u32 = 1 << 0;

/// Why bytes are no request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// The protocol has no such operation, or a newer one has.
    #[error("operation {0} is unknown")]
    Opcode(u32),
    /// Bytes are missing.
    #[error("the request is cut short: expected {expected} bytes, found {found}")]
    Short {
        /// Bytes that have to be there.
        expected: usize,
        /// Bytes that are.
        found: usize,
    },
    /// The header names another length than arrived.
    #[error("the request is said to have {said} bytes, and has {found}")]
    Length {
        /// The header's.
        said: usize,
        /// What arrived.
        found: usize,
    },
    /// A name does not end.
    #[error("a name has no end")]
    Unterminated,
    /// A name is empty, or a path.
    #[error("a name is empty or has a slash")]
    Name,
    /// An extension has another size than it says.
    #[error("an extension is malformed")]
    Extension,
}

/// A request, decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Decoded<'a> {
    pub(crate) message: Message<'a>,
    /// The group that a new file may take.
    pub(crate) group: Option<u32>,
}

/// What a request is: asked of the handler, or for the session to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Message<'a> {
    Operation(Operation<'a>),
    /// No answer.
    Forget(Forget),
    /// No answer.
    Forgets(Forgets<'a>),
    /// No answer.
    Interrupt {
        unique: u64,
    },
    /// A second start of the session.
    Init,
    /// The file system is unmounted.
    Destroy,
    /// The answer to a question that nobody asks here.
    NotifyReply,
}

/// Several at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Forgets<'a> {
    bytes: &'a [u8],
}

impl Forgets<'_> {
    pub(crate) fn iter(&self) -> impl Iterator<Item = Forget> + '_ {
        self.bytes.chunks_exact(size_of::<ForgetOne>()).filter_map(|bytes| {
            let one = ForgetOne::read_from_bytes(bytes).ok()?;
            Some(Forget { node: one.nodeid, lookups: one.nlookup })
        })
    }
}

impl<'a> MappingRanges<'a> {
    /// Returns offset in the window and length of each.
    pub fn iter(&self) -> impl Iterator<Item = (u64, u64)> + use<'a> {
        self.bytes.chunks_exact(size_of::<RemoveMappingOne>()).filter_map(|bytes| {
            let one = RemoveMappingOne::read_from_bytes(bytes).ok()?;
            Some((one.moffset, one.len))
        })
    }
}

/// Decodes what follows `header`; `granted` is what the session agreed on.
pub(crate) fn decode<'a>(
    header: &InHeader,
    mut args: Args<'a>,
    granted: InitFlags,
) -> Result<Decoded<'a>, DecodeError> {
    let opcode = Opcode::new(header.opcode).ok_or(DecodeError::Opcode(header.opcode))?;
    let extensions = args.cut_end(usize::from(header.total_extlen) * 8)?;
    let group = supplementary_group(extensions)?;
    let message = match opcode {
        Opcode::Forget => {
            let forget: ForgetIn = args.take()?;
            Message::Forget(Forget { node: header.nodeid, lookups: forget.nlookup })
        }
        Opcode::BatchForget => {
            let batch: BatchForgetIn = args.take()?;
            let size = u64::from(batch.count) * size_of::<ForgetOne>() as u64;
            Message::Forgets(Forgets { bytes: args.data(size)? })
        }
        Opcode::Interrupt => {
            let interrupt: InterruptIn = args.take()?;
            Message::Interrupt { unique: interrupt.unique }
        }
        Opcode::Init => Message::Init,
        Opcode::Destroy => Message::Destroy,
        Opcode::NotifyReply => Message::NotifyReply,
        _ => Message::Operation(match operation_on_name(opcode, &mut args)? {
            Some(operation) => operation,
            None => match operation_on_node(opcode, &mut args, granted)? {
                Some(operation) => operation,
                None => operation_on_handle(opcode, &mut args)?,
            },
        }),
    };
    Ok(Decoded { message, group })
}

/// Decodes the request that starts a session.
pub(crate) fn decode_init(body: &[u8]) -> Result<InitIn, DecodeError> {
    // Older kernels send less; what they leave out is zero.
    if body.len() < INIT_IN_OLD_BYTES {
        return Err(DecodeError::Short { expected: INIT_IN_OLD_BYTES, found: body.len() });
    }
    let mut padded = [0; size_of::<InitIn>()];
    let known = body.len().min(padded.len());
    padded[..known].copy_from_slice(&body[..known]);
    Ok(zerocopy::transmute!(padded))
}

fn operation_on_name<'a>(opcode: Opcode, args: &mut Args<'a>) -> Result<Option<Operation<'a>>, DecodeError> {
    Ok(Some(match opcode {
        Opcode::Lookup => Operation::Lookup { name: args.component()? },
        Opcode::Symlink => Operation::Symlink { name: args.component()?, target: args.name()? },
        Opcode::Mknod => {
            let MknodIn { mode, rdev, umask, .. } = args.take()?;
            Operation::Mknod { name: args.component()?, mode, rdev, umask }
        }
        Opcode::Mkdir => {
            let MkdirIn { mode, umask } = args.take()?;
            Operation::Mkdir { name: args.component()?, mode, umask }
        }
        Opcode::Unlink => Operation::Unlink { name: args.component()? },
        Opcode::Rmdir => Operation::Rmdir { name: args.component()? },
        Opcode::Rename => {
            let RenameIn { newdir } = args.take()?;
            rename(args, newdir, 0)?
        }
        Opcode::Rename2 => {
            let Rename2In { newdir, flags, .. } = args.take()?;
            rename(args, newdir, flags)?
        }
        Opcode::Link => {
            let LinkIn { oldnodeid } = args.take()?;
            Operation::Link { node: oldnodeid, name: args.component()? }
        }
        Opcode::Create => {
            let CreateIn { flags, mode, umask, open_flags } = args.take()?;
            let kill_suidgid = open_flags & OPEN_KILL_SUIDGID != 0;
            Operation::Create { name: args.component()?, mode, umask, flags, kill_suidgid }
        }
        // The name that follows is the kernel's own.
        Opcode::Tmpfile => {
            let CreateIn { flags, mode, umask, .. } = args.take()?;
            Operation::Tmpfile { mode, umask, flags }
        }
        _ => return Ok(None),
    }))
}

fn rename<'a>(args: &mut Args<'a>, new_parent: u64, flags: u32) -> Result<Operation<'a>, DecodeError> {
    let name = args.component()?;
    Ok(Operation::Rename { name, new_parent, new_name: args.component()?, flags })
}

fn operation_on_node<'a>(
    opcode: Opcode,
    args: &mut Args<'a>,
    granted: InitFlags,
) -> Result<Option<Operation<'a>>, DecodeError> {
    Ok(Some(match opcode {
        Opcode::Getattr => {
            let GetattrIn { getattr_flags, fh, .. } = args.take()?;
            Operation::Getattr { handle: (getattr_flags & GETATTR_FH != 0).then_some(fh) }
        }
        Opcode::Setattr => Operation::Setattr(setattr(&args.take()?)),
        Opcode::Readlink => Operation::Readlink,
        Opcode::Open => {
            let OpenIn { flags, open_flags } = args.take()?;
            Operation::Open { flags, kill_suidgid: open_flags & OPEN_KILL_SUIDGID != 0 }
        }
        Opcode::Opendir => {
            let OpenIn { flags, .. } = args.take()?;
            Operation::Opendir { flags }
        }
        Opcode::Statfs => Operation::Statfs,
        Opcode::Setxattr => setxattr(args, granted)?,
        Opcode::Getxattr => {
            let GetxattrIn { size, .. } = args.take()?;
            Operation::Getxattr { name: args.name()?, size }
        }
        Opcode::Listxattr => {
            let GetxattrIn { size, .. } = args.take()?;
            Operation::Listxattr { size }
        }
        Opcode::Removexattr => Operation::Removexattr { name: args.name()? },
        Opcode::Access => {
            let AccessIn { mask, .. } = args.take()?;
            Operation::Access { mask }
        }
        Opcode::Syncfs => Operation::Syncfs,
        Opcode::Statx => {
            let StatxIn { getattr_flags, fh, sx_flags, sx_mask, .. } = args.take()?;
            let handle = (getattr_flags & GETATTR_FH != 0).then_some(fh);
            Operation::Statx { handle, flags: sx_flags, mask: sx_mask }
        }
        Opcode::Bmap => {
            let BmapIn { block, blocksize, .. } = args.take()?;
            Operation::Bmap { block, block_size: blocksize }
        }
        Opcode::RemoveMapping => {
            let RemoveMappingIn { count } = args.take()?;
            let size = u64::from(count) * size_of::<RemoveMappingOne>() as u64;
            Operation::RemoveMapping { ranges: MappingRanges { bytes: args.data(size)? } }
        }
        _ => return Ok(None),
    }))
}

fn setxattr<'a>(args: &mut Args<'a>, granted: InitFlags) -> Result<Operation<'a>, DecodeError> {
    let (size, flags, more) = if granted.contains(InitFlags::SETXATTR_EXT) {
        let SetxattrIn { size, flags, setxattr_flags, .. } = args.take()?;
        (size, flags, setxattr_flags)
    } else {
        let SetxattrInOld { size, flags } = args.take()?;
        (size, flags, 0)
    };
    let name = args.name()?;
    let value = args.data(u64::from(size))?;
    Ok(Operation::Setxattr { name, value, flags, kill_sgid: more & SETXATTR_KILL_SGID != 0 })
}

fn operation_on_handle<'a>(opcode: Opcode, args: &mut Args<'a>) -> Result<Operation<'a>, DecodeError> {
    Ok(match opcode {
        Opcode::Read => Operation::Read(read(&args.take()?)),
        Opcode::Readdir => Operation::Readdir(read(&args.take()?)),
        Opcode::Readdirplus => Operation::Readdirplus(read(&args.take()?)),
        Opcode::Write => {
            let WriteIn { fh, offset, size, write_flags, lock_owner, flags, .. } = args.take()?;
            let write_flags = WriteFlags::from_bits_retain(write_flags);
            let lock_owner = write_flags.contains(WriteFlags::LOCKOWNER).then_some(lock_owner);
            let data = args.data(u64::from(size))?;
            Operation::Write { handle: fh, offset, data, write_flags, lock_owner, flags }
        }
        Opcode::Release => Operation::Release(release(&args.take()?)),
        Opcode::Releasedir => Operation::Releasedir(release(&args.take()?)),
        Opcode::Fsync => {
            let FsyncIn { fh, fsync_flags, .. } = args.take()?;
            Operation::Fsync { handle: fh, data_only: fsync_flags & FSYNC_DATA_ONLY != 0 }
        }
        Opcode::Fsyncdir => {
            let FsyncIn { fh, fsync_flags, .. } = args.take()?;
            Operation::Fsyncdir { handle: fh, data_only: fsync_flags & FSYNC_DATA_ONLY != 0 }
        }
        Opcode::Flush => {
            let FlushIn { fh, lock_owner, .. } = args.take()?;
            Operation::Flush { handle: fh, lock_owner }
        }
        Opcode::Getlk => Operation::Getlk(lock(&args.take()?)),
        Opcode::Setlk => Operation::Setlk { lock: lock(&args.take()?), wait: false },
        Opcode::Setlkw => Operation::Setlk { lock: lock(&args.take()?), wait: true },
        Opcode::Ioctl => {
            let IoctlIn { fh, flags, cmd, arg, in_size, out_size } = args.take()?;
            let data = args.data(u64::from(in_size))?;
            Operation::Ioctl { handle: fh, flags, command: cmd, argument: arg, data, out_size }
        }
        Opcode::Poll => {
            let PollIn { fh, kh, flags, events } = args.take()?;
            Operation::Poll { handle: fh, kernel_handle: kh, notify: flags & POLL_NOTIFY != 0, events }
        }
        Opcode::Fallocate => {
            let FallocateIn { fh, offset, length, mode, .. } = args.take()?;
            Operation::Fallocate { handle: fh, offset, length, mode }
        }
        Opcode::Lseek => {
            let LseekIn { fh, offset, whence, .. } = args.take()?;
            Operation::Lseek { handle: fh, offset, whence }
        }
        Opcode::CopyFileRange | Opcode::CopyFileRange64 => copy_file_range(&args.take()?),
        Opcode::SetupMapping => {
            let SetupMappingIn { fh, foffset, len, flags, moffset } = args.take()?;
            Operation::SetupMapping {
                handle: fh,
                offset: foffset,
                length: len,
                flags,
                window_offset: moffset,
            }
        }
        other => return Err(DecodeError::Opcode(other as u32)),
    })
}

const fn read(from: &ReadIn) -> Read {
    let lock_owner = if from.read_flags & READ_LOCKOWNER == 0 { None } else { Some(from.lock_owner) };
    Read { handle: from.fh, offset: from.offset, size: from.size, lock_owner, flags: from.flags }
}

const fn release(from: &ReleaseIn) -> Release {
    Release {
        handle: from.fh,
        flags: from.flags,
        release_flags: ReleaseFlags::from_bits_retain(from.release_flags),
        lock_owner: from.lock_owner,
    }
}

const fn lock(from: &LkIn) -> Lock {
    Lock { handle: from.fh, owner: from.owner, lock: from.lk, flock: from.lk_flags & LK_FLOCK != 0 }
}

const fn copy_file_range<'a>(from: &CopyFileRangeIn) -> Operation<'a> {
    Operation::CopyFileRange {
        handle: from.fh_in,
        offset: from.off_in,
        to_node: from.nodeid_out,
        to_handle: from.fh_out,
        to_offset: from.off_out,
        length: from.len,
        flags: from.flags,
    }
}

fn setattr(from: &SetattrIn) -> Setattr {
    let valid = SetattrValid::from_bits_retain(from.valid);
    let is = |flag| valid.contains(flag);
    let at = |seconds: u64, nanos| SetTime::At { seconds: seconds.cast_signed(), nanos };
    let time = |flag, now, seconds, nanos| match (is(now), is(flag)) {
        (true, _) => Some(SetTime::Now),
        (false, true) => Some(at(seconds, nanos)),
        (false, false) => None,
    };
    Setattr {
        mode: is(SetattrValid::MODE).then_some(from.mode),
        uid: is(SetattrValid::UID).then_some(from.uid),
        gid: is(SetattrValid::GID).then_some(from.gid),
        size: is(SetattrValid::SIZE).then_some(from.size),
        atime: time(SetattrValid::ATIME, SetattrValid::ATIME_NOW, from.atime, from.atimensec),
        mtime: time(SetattrValid::MTIME, SetattrValid::MTIME_NOW, from.mtime, from.mtimensec),
        ctime: is(SetattrValid::CTIME).then(|| at(from.ctime, from.ctimensec)),
        handle: is(SetattrValid::FH).then_some(from.fh),
        lock_owner: is(SetattrValid::LOCKOWNER).then_some(from.lock_owner),
        kill_suidgid: is(SetattrValid::KILL_SUIDGID),
    }
}

#[cfg(test)]
mod tests;
