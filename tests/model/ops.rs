//! The operations that all file systems under test understand, and what they answer.

use std::ffi::OsString;

use proptest::prelude::*;
use vout::fs::{FileKind, XattrMode};

/// Handles that can be open at the same time.
pub(crate) const SLOTS: usize = 3;

/// One operation. Symbolic links are never followed.
#[derive(Debug, Clone)]
pub(crate) enum Op {
    /// Creates a file that does not exist.
    Create(String, Data, u32),
    /// Writes into a file that exists.
    Write(String, u64, Data),
    /// Opens with `O_TRUNC` and writes.
    Overwrite(String, Data),
    /// Writes at the end.
    Append(String, Data),
    Truncate(String, u64),
    Read(String),
    Stat(String),
    Mkdir(String, u32),
    Rmdir(String),
    Unlink(String),
    Rename(String, String, Replace),
    Link(String, String),
    Symlink(String, String),
    Readlink(String),
    Chmod(String, u32),
    /// Sets the modification time, in seconds.
    Utimens(String, i64),
    Readdir(String),
    /// Opens into a slot, for writing too or not.
    Open(usize, String, bool),
    ReadOpen(usize),
    WriteOpen(usize, u64, Data),
    TruncateOpen(usize, u64),
    StatOpen(usize),
    /// `fallocate` with mode, offset and length.
    Allocate(usize, u32, u64, u64),
    /// Looks for data (or a hole).
    Seek(usize, bool, u64),
    Close(usize),
    /// Opens a file without a name (`O_TMPFILE`) in the root.
    Unnamed(usize, u32),
    /// Gives an open file a name.
    LinkOpen(usize, String),
    ChmodOpen(usize, u32),
    /// Sets the modification time, in seconds, through a handle.
    UtimensOpen(usize, i64),
    /// `copy_file_range` from one slot and offset to another.
    CopyRange((usize, u64), (usize, u64), u64),
    SetXattr(String, u8, Data, XattrMode),
    RemoveXattr(String, u8),
    Xattrs(String),
    /// The kernel forgets every node that is not open.
    Reclaim,
    /// Compares the whole trees.
    Compare,
}

/// What a rename does about the new name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Replace {
    Yes,
    No,
    Exchange,
}

/// Contents by length and seed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Data(pub(crate) usize, pub(crate) u8);

impl Data {
    pub(crate) fn bytes(self) -> Vec<u8> {
        (0..self.0).map(|i| i.to_le_bytes()[0].wrapping_mul(7) ^ i.to_le_bytes()[1] ^ self.1).collect()
    }
}

/// What an operation answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    Done,
    Bytes(Vec<u8>),
    Target(OsString),
    Xattrs(Vec<(OsString, Vec<u8>)>),
    Names(Vec<(OsString, FileKind)>),
    Stat(Seen),
    /// Of a search for data or holes, whose grain is each file system's own.
    Somewhere,
}

impl Answer {
    /// Leaves link counts out.
    pub(crate) fn without_links(self) -> Self {
        match self {
            Self::Stat(seen) => Self::Stat(Seen { nlink: 0, ..seen }),
            other => other,
        }
    }
}

/// Returns the name of an extended attribute.
pub(crate) fn xattr_name(number: u8) -> OsString {
    format!("user.{number}").into()
}

/// What `stat` shows, as far as all file systems must agree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) kind: FileKind,
    pub(crate) mode: u32,
    /// Of regular files and symbolic links.
    pub(crate) size_bytes: u64,
    pub(crate) mtime: Mtime,
    /// Zero where it is not compared.
    pub(crate) nlink: u32,
}

/// A modification time: those that somebody set are long past.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mtime {
    Set(i64, u32),
    Recent,
    /// Of a directory, whose time changes with what is in it.
    Unknown,
}

impl Mtime {
    pub(crate) fn of(kind: FileKind, secs: i64, nanos: u32) -> Self {
        match kind {
            FileKind::Dir => Self::Unknown,
            _ if secs < 1_000_000_000 => Self::Set(secs, nanos),
            _ => Self::Recent,
        }
    }
}

pub(crate) fn path() -> impl Strategy<Value = String> {
    let name = || prop_oneof![Just("a"), Just("b"), Just("c")];
    prop_oneof![
        3 => name().prop_map(String::from),
        4 => (name(), name()).prop_map(|(a, b)| format!("{a}/{b}")),
        2 => (name(), name(), name()).prop_map(|(a, b, c)| format!("{a}/{b}/{c}")),
    ]
}

pub(crate) fn data() -> impl Strategy<Value = Data> {
    let length = prop_oneof![6 => 0_usize..60, 2 => 4000_usize..9000, 1 => Just(150_000_usize)];
    (length, any::<u8>()).prop_map(|(length, seed)| Data(length, seed))
}

pub(crate) fn file_mode() -> impl Strategy<Value = u32> {
    prop_oneof![Just(0o644), Just(0o755), Just(0o600), Just(0o664)]
}

pub(crate) fn dir_mode() -> impl Strategy<Value = u32> {
    prop_oneof![Just(0o755), Just(0o700), Just(0o775)]
}

pub(crate) fn target() -> impl Strategy<Value = String> {
    prop_oneof![Just("a".into()), Just("../b".into()), Just("/nowhere".into()), Just("t".repeat(300))]
}

pub(crate) fn op() -> impl Strategy<Value = Op> {
    let offset = || prop_oneof![0_u64..80, 3000_u64..10_000, Just(140_000_u64)];
    let replace = prop_oneof![4 => Just(Replace::Yes), 1 => Just(Replace::No), 1 => Just(Replace::Exchange)];
    let slot = || 0..SLOTS;
    let tree = prop_oneof![
        4 => (path(), data(), file_mode()).prop_map(|(p, d, m)| Op::Create(p, d, m)),
        3 => (path(), dir_mode()).prop_map(|(p, m)| Op::Mkdir(p, m)),
        2 => path().prop_map(Op::Rmdir),
        4 => path().prop_map(Op::Unlink),
        6 => (path(), path(), replace).prop_map(|(a, b, r)| Op::Rename(a, b, r)),
        2 => (path(), path()).prop_map(|(a, b)| Op::Link(a, b)),
        2 => (target(), path()).prop_map(|(t, p)| Op::Symlink(t, p)),
    ]
    .boxed();
    let content = prop_oneof![
        3 => (path(), offset(), data()).prop_map(|(p, o, d)| Op::Write(p, o, d)),
        2 => (path(), data()).prop_map(|(p, d)| Op::Overwrite(p, d)),
        1 => (path(), data()).prop_map(|(p, d)| Op::Append(p, d)),
        2 => (path(), offset()).prop_map(|(p, s)| Op::Truncate(p, s)),
        2 => (path(), file_mode()).prop_map(|(p, m)| Op::Chmod(p, m | 0o700)),
        2 => (path(), 1000_i64..900_000_000).prop_map(|(p, t)| Op::Utimens(p, t)),
    ]
    .boxed();
    let reading = prop_oneof![
        3 => path().prop_map(Op::Read),
        3 => path().prop_map(Op::Stat),
        1 => path().prop_map(Op::Readlink),
        2 => prop_oneof![3 => path(), 1 => Just(String::new())].prop_map(Op::Readdir),
        1 => Just(Op::Reclaim),
        1 => Just(Op::Compare),
    ]
    .boxed();
    let handles = prop_oneof![
        5 => (slot(), path(), any::<bool>()).prop_map(|(s, p, w)| Op::Open(s, p, w)),
        2 => slot().prop_map(Op::ReadOpen),
        2 => (slot(), offset(), data()).prop_map(|(s, o, d)| Op::WriteOpen(s, o, d)),
        1 => (slot(), offset()).prop_map(|(s, o)| Op::TruncateOpen(s, o)),
        2 => slot().prop_map(Op::StatOpen),
        1 => (slot(), prop_oneof![Just(0_u32), Just(1), Just(3)], offset(), 1_u64..9000)
            .prop_map(|(s, m, o, l)| Op::Allocate(s, m, o, l)),
        1 => (slot(), any::<bool>(), offset()).prop_map(|(s, d, o)| Op::Seek(s, d, o)),
        1 => slot().prop_map(Op::Close),
        1 => (slot(), file_mode()).prop_map(|(s, m)| Op::Unnamed(s, m)),
        2 => (slot(), path()).prop_map(|(s, p)| Op::LinkOpen(s, p)),
        1 => (slot(), file_mode()).prop_map(|(s, m)| Op::ChmodOpen(s, m | 0o700)),
        1 => (slot(), 1000_i64..900_000_000).prop_map(|(s, t)| Op::UtimensOpen(s, t)),
        2 => ((slot(), offset()), (slot(), offset()), 1_u64..9000).prop_map(|(f, t, l)| Op::CopyRange(f, t, l)),
    ]
    .boxed();
    let mode = prop_oneof![
        2 => Just(XattrMode::Set), 1 => Just(XattrMode::Create), 1 => Just(XattrMode::Replace)
    ];
    let small = (0_usize..80, any::<u8>()).prop_map(|(length, seed)| Data(length, seed));
    let xattrs = prop_oneof![
        2 => (path(), 0_u8..3, small, mode).prop_map(|(p, n, d, m)| Op::SetXattr(p, n, d, m)),
        1 => (path(), 0_u8..3).prop_map(|(p, n)| Op::RemoveXattr(p, n)),
        1 => path().prop_map(Op::Xattrs),
    ]
    .boxed();
    prop_oneof![4 => tree, 3 => content, 3 => reading, 4 => handles, 1 => xattrs]
}
