use std::ffi::OsStr;

use zerocopy::IntoBytes;

use super::*;
use crate::abi::{ExtHeader, FileLock};

/// The parts of a request: its structure, and its names and data.
type Sample = (Opcode, Vec<u8>, Vec<u8>);

fn header(opcode: u32, extensions: u16) -> InHeader {
    InHeader {
        len: 0,
        opcode,
        unique: 1,
        nodeid: 2,
        uid: 3,
        gid: 4,
        pid: 5,
        total_extlen: extensions,
        padding: 0,
    }
}

fn decoded(opcode: Opcode, args: Args<'_>) -> Result<Message<'_>, DecodeError> {
    decode(&header(opcode as u32, 0), args, InitFlags::SETXATTR_EXT).map(|decoded| decoded.message)
}

fn bytes(value: &(impl IntoBytes + zerocopy::Immutable)) -> Vec<u8> {
    value.as_bytes().to_vec()
}

/// Returns one request of each kind that has a structure or names.
fn samples() -> Vec<Sample> {
    let read =
        bytes(&ReadIn { fh: 1, offset: 2, size: 3, read_flags: 0, lock_owner: 0, flags: 0, padding: 0 });
    let release = bytes(&ReleaseIn { fh: 1, flags: 0, release_flags: 1, lock_owner: 2 });
    let fsync = bytes(&FsyncIn { fh: 1, fsync_flags: 1, padding: 0 });
    let open = bytes(&OpenIn { flags: 1, open_flags: 1 });
    let create = bytes(&CreateIn { flags: 1, mode: 2, umask: 3, open_flags: 0 });
    let lk = FileLock { start: 1, end: 2, kind: 0, pid: 3 };
    let lock = bytes(&LkIn { fh: 1, owner: 2, lk, lk_flags: 1, padding: 0 });
    let copy = [1_u64, 2, 3, 4, 5, 6, 7];
    let write = WriteIn { fh: 1, offset: 2, size: 4, write_flags: 2, lock_owner: 5, flags: 0, padding: 0 };
    let ioctl = IoctlIn { fh: 1, flags: 0, cmd: 2, arg: 3, in_size: 4, out_size: 5 };
    let name = |name: &str| [name.as_bytes(), &[0]].concat();
    let none = Vec::new;
    let large = |length: usize| vec![7; length];
    vec![
        (Opcode::Lookup, none(), name("name")),
        (Opcode::Forget, large(8), none()),
        (Opcode::Getattr, large(16), none()),
        (Opcode::Setattr, large(88), none()),
        (Opcode::Symlink, none(), [name("name"), name("tar/get")].concat()),
        (Opcode::Mknod, large(16), name("name")),
        (Opcode::Mkdir, large(8), name("name")),
        (Opcode::Unlink, none(), name("name")),
        (Opcode::Rmdir, none(), name("name")),
        (Opcode::Rename, large(8), [name("old"), name("new")].concat()),
        (Opcode::Rename2, large(16), [name("old"), name("new")].concat()),
        (Opcode::Link, large(8), name("name")),
        (Opcode::Open, open.clone(), none()),
        (Opcode::Read, read.clone(), none()),
        (Opcode::Write, bytes(&write), b"data".to_vec()),
        (Opcode::Release, release.clone(), none()),
        (Opcode::Fsync, fsync.clone(), none()),
        (
            Opcode::Setxattr,
            bytes(&SetxattrIn { size: 5, flags: 1, setxattr_flags: 1, padding: 0 }),
            [name("user.a"), b"value".to_vec()].concat(),
        ),
        (Opcode::Getxattr, large(8), name("user.a")),
        (Opcode::Listxattr, large(8), none()),
        (Opcode::Removexattr, none(), name("user.a")),
        (Opcode::Flush, large(24), none()),
        (Opcode::Opendir, open, none()),
        (Opcode::Readdir, read.clone(), none()),
        (Opcode::Readdirplus, read, none()),
        (Opcode::Releasedir, release, none()),
        (Opcode::Fsyncdir, fsync, none()),
        (Opcode::Getlk, lock.clone(), none()),
        (Opcode::Setlk, lock.clone(), none()),
        (Opcode::Setlkw, lock, none()),
        (Opcode::Access, large(8), none()),
        (Opcode::Create, create.clone(), name("name")),
        (Opcode::Tmpfile, create, none()),
        (Opcode::Interrupt, large(8), none()),
        (Opcode::Bmap, large(16), none()),
        (Opcode::Ioctl, bytes(&ioctl), b"data".to_vec()),
        (Opcode::Poll, large(24), none()),
        (Opcode::BatchForget, bytes(&BatchForgetIn { count: 2, dummy: 0 }), large(32)),
        (Opcode::Fallocate, large(32), none()),
        (Opcode::Lseek, large(24), none()),
        (Opcode::CopyFileRange, bytes(&copy), none()),
        (Opcode::CopyFileRange64, bytes(&copy), none()),
        (Opcode::SetupMapping, large(40), none()),
        (Opcode::RemoveMapping, bytes(&RemoveMappingIn { count: 2 }), large(32)),
        (Opcode::Statx, large(24), none()),
    ]
}

#[test]
fn both_transports_decode_alike() -> Result<(), DecodeError> {
    for (opcode, structure, payload) in samples() {
        let whole = [structure.as_slice(), &payload].concat();
        let from_device = decoded(opcode, Args::whole(&whole))?;
        let from_ring = decoded(opcode, Args::split(&structure, &payload))?;
        assert_eq!(from_device, from_ring, "{opcode:?}");
    }
    Ok(())
}

#[test]
fn operations_without_arguments_need_none() -> Result<(), DecodeError> {
    for (opcode, operation) in [
        (Opcode::Readlink, Operation::Readlink),
        (Opcode::Statfs, Operation::Statfs),
        (Opcode::Syncfs, Operation::Syncfs),
    ] {
        assert_eq!(decoded(opcode, Args::whole(&[]))?, Message::Operation(operation));
    }
    Ok(())
}

/// Goal: whatever is missing at the end is noticed. Method: every request, cut at every length.
#[test]
fn requests_that_are_cut_short_are_refused() {
    for (opcode, structure, payload) in samples() {
        let whole = [structure.as_slice(), &payload].concat();
        for length in 0..whole.len() {
            let refused = decoded(opcode, Args::whole(&whole[..length]));
            assert!(
                matches!(refused, Err(DecodeError::Short { .. } | DecodeError::Unterminated)),
                "{opcode:?} of {length} bytes: {refused:?}"
            );
        }
        for length in 0..structure.len() {
            // What follows must not be taken for the rest of the structure.
            let refused = decoded(opcode, Args::split(&structure[..length], &payload));
            assert!(refused.is_err() || length == 0, "{opcode:?} of {length} bytes: {refused:?}");
        }
    }
}

/// Goal: no bytes make the decoder panic or read beyond them. Method: every operation and some that are
/// none, over pieces of pseudo-random bytes, and over the extremes.
#[test]
fn hostile_bytes_are_refused_or_decoded() {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    // Numbers below `end`.
    let mut random = move |end: u8| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        u8::try_from((state >> 32) % u64::from(end)).unwrap_or(0)
    };
    let opcodes: Vec<u32> =
        Opcode::ALL.iter().map(|opcode| *opcode as u32).chain([0, 7, 19, 54, 4096, u32::MAX]).collect();
    for round in 0..400_u32 {
        let length = random(160);
        let filled: Vec<u8> = match round {
            0 => vec![0; length.into()],
            1 => vec![0xff; length.into()],
            // Small numbers are lengths that nearly fit.
            _ => (0..length).map(|_| if random(2) == 0 { random(4) } else { random(255) }).collect(),
        };
        let (structure, payload) = filled.split_at(random(length.max(1)).into());
        for opcode in &opcodes {
            let header = header(*opcode, u16::from(random(4)) * u16::from(round % 2 == 0));
            for args in [Args::whole(&filled), Args::split(structure, payload)] {
                if let Ok(decoded) = decode(&header, args, InitFlags::empty()) {
                    touch(&decoded.message);
                }
            }
        }
    }
}

/// Reads whatever a message borrows.
fn touch(message: &Message<'_>) {
    match message {
        Message::Forgets(forgets) => assert!(forgets.iter().count() < 100),
        Message::Operation(Operation::RemoveMapping { ranges }) => assert!(ranges.iter().count() < 100),
        other => assert!(!format!("{other:?}").is_empty()),
    }
}

#[test]
fn an_unknown_operation_is_named() {
    let refused = decode(&header(77, 0), Args::whole(&[]), InitFlags::empty());
    assert_eq!(refused, Err(DecodeError::Opcode(77)));
}

#[test]
fn names_are_neither_empty_nor_paths() {
    for name in [&b"\0"[..], b"a/b\0", b"/\0"] {
        assert_eq!(decoded(Opcode::Lookup, Args::whole(name)), Err(DecodeError::Name));
    }
    let found = decoded(Opcode::Lookup, Args::whole(b"\xff\0"));
    assert!(matches!(found, Ok(Message::Operation(Operation::Lookup { name })) if name.len() == 1));
}

#[test]
fn lengths_beyond_the_request_are_refused() {
    let huge =
        WriteIn { fh: 0, offset: 0, size: u32::MAX, write_flags: 0, lock_owner: 0, flags: 0, padding: 0 };
    let body = [huge.as_bytes(), b"data"].concat();
    assert!(matches!(decoded(Opcode::Write, Args::whole(&body)), Err(DecodeError::Short { found: 4, .. })));
    let many = BatchForgetIn { count: u32::MAX, dummy: 0 };
    let body = [many.as_bytes(), &[0; 64]].concat();
    assert!(matches!(decoded(Opcode::BatchForget, Args::whole(&body)), Err(DecodeError::Short { .. })));
}

#[test]
fn attributes_are_set_where_the_request_says_so() -> Result<(), DecodeError> {
    let valid = SetattrValid::MODE | SetattrValid::ATIME | SetattrValid::ATIME_NOW | SetattrValid::MTIME;
    let nothing: SetattrIn = zerocopy::FromZeros::new_zeroed();
    let second_before_1970 = (-1_i64).cast_unsigned();
    let change =
        SetattrIn { valid: valid.bits(), mtime: second_before_1970, mtimensec: 9, mode: 0o644, ..nothing };
    let body = bytes(&change);
    let Message::Operation(Operation::Setattr(found)) = decoded(Opcode::Setattr, Args::whole(&body))? else {
        panic!("another operation");
    };
    let expected = Setattr {
        mode: Some(0o644),
        atime: Some(SetTime::Now),
        mtime: Some(SetTime::At { seconds: -1, nanos: 9 }),
        ..Setattr::default()
    };
    assert_eq!(found, expected);
    Ok(())
}

#[test]
fn setxattr_has_the_structure_that_was_agreed_on() -> Result<(), DecodeError> {
    let old = [bytes(&SetxattrInOld { size: 1, flags: 2 }), b"user.a\0v".to_vec()].concat();
    let found = decode(&header(Opcode::Setxattr as u32, 0), Args::whole(&old), InitFlags::empty())?;
    let name = OsStr::new("user.a");
    let expected = Operation::Setxattr { name, value: b"v", flags: 2, kill_sgid: false };
    assert_eq!(found.message, Message::Operation(expected));
    Ok(())
}

/// Returns an extension of a kind with a content.
fn extension(kind: u32, content: &[u32]) -> Vec<u8> {
    let length = (8 + content.len() * 4).next_multiple_of(8);
    let size = u32::try_from(length).unwrap();
    let mut extension = [bytes(&ExtHeader { size, kind }), content.as_bytes().to_vec()].concat();
    extension.resize(length, 0);
    extension
}

#[test]
fn the_supplementary_group_is_found_among_extensions() -> Result<(), DecodeError> {
    let extensions = [extension(3, &[1, 2, 3]), extension(32, &[1, 4711])].concat();
    let words = u16::try_from(extensions.len() / 8).unwrap();
    let body = [vec![0; 8], b"name\0".to_vec(), extensions.clone()].concat();
    let split = [b"name\0".to_vec(), extensions].concat();
    for args in [Args::whole(&body), Args::split(&[0; 8], &split)] {
        let found = decode(&header(Opcode::Mkdir as u32, words), args, InitFlags::empty())?;
        assert_eq!(found.group, Some(4711));
        let expected = Operation::Mkdir { name: OsStr::new("name"), mode: 0, umask: 0 };
        assert_eq!(found.message, Message::Operation(expected));
    }
    Ok(())
}

#[test]
fn malformed_extensions_are_refused() {
    let sizes = [(0, DecodeError::Extension), (7, DecodeError::Extension), (24, DecodeError::Extension)];
    for (size, expected) in sizes {
        let body = [b"name\0".to_vec(), bytes(&ExtHeader { size, kind: 32 }), vec![0; 8]].concat();
        let refused = decode(&header(Opcode::Unlink as u32, 2), Args::whole(&body), InitFlags::empty());
        assert_eq!(refused, Err(expected), "size {size}");
    }
    let refused = decode(&header(Opcode::Unlink as u32, 900), Args::whole(b"name\0"), InitFlags::empty());
    assert!(matches!(refused, Err(DecodeError::Short { .. })));
    let group = extension(32, &[]);
    let refused = decode(&header(Opcode::Statfs as u32, 1), Args::whole(&group), InitFlags::empty());
    assert_eq!(refused, Err(DecodeError::Extension));
}

#[test]
fn old_kernels_start_a_session_with_less() -> Result<(), DecodeError> {
    let body: Vec<u8> = [7_u32, 31, 4096, 1].as_bytes().to_vec();
    let init = decode_init(&body)?;
    assert_eq!((init.major, init.minor, init.flags, init.flags2), (7, 31, 1, 0));
    assert!(matches!(decode_init(&body[..15]), Err(DecodeError::Short { expected: 16, found: 15 })));
    assert!(decode_init(&[0xff; 200]).is_ok());
    Ok(())
}
