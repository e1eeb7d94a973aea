//! Records as bytes.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use crate::archive::layout::RECORD_BYTES_MAX;
use crate::archive::record::{DataRef, Extent, Key, Record, RecordKind};
use crate::digest::Digest;
use crate::fs::Timestamp;
use crate::path::RelPathBuf;

const KIND_FILE: u8 = 0;
const KIND_DIR: u8 = 1;
const KIND_IMPLIED_DIR: u8 = 2;
const KIND_SYMLINK: u8 = 3;
const KIND_ABSENT: u8 = 4;

const HAS_CONTENT: u8 = 1;
const HAS_DATA: u8 = 2;
const HAS_HOLES: u8 = 4;
const IS_LINK: u8 = 8;
const HAS_BEFORE: u8 = 16;
const HAS_LINKS: u8 = 32;

/// Takes integers and byte strings off the front of a slice; an error says what is wrong with it.
pub(super) struct Decoder<'a> {
    rest: &'a [u8],
}

impl<'a> Decoder<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub(super) fn take(&mut self, length: usize) -> Result<&'a [u8], &'static str> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or("it ends too early")?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], &'static str> {
        let (taken, rest) = self.rest.split_first_chunk::<N>().ok_or("it ends too early")?;
        self.rest = rest;
        Ok(*taken)
    }

    pub(super) fn u8(&mut self) -> Result<u8, &'static str> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub(super) fn u16(&mut self) -> Result<u16, &'static str> {
        self.array().map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, &'static str> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, &'static str> {
        self.array().map(u64::from_le_bytes)
    }

    pub(super) fn i64(&mut self) -> Result<i64, &'static str> {
        self.array().map(i64::from_le_bytes)
    }

    pub(super) fn nanos(&mut self) -> Result<u32, &'static str> {
        self.u32().and_then(|nanos| if nanos < 1_000_000_000 { Ok(nanos) } else { Err("a time is invalid") })
    }

    pub(super) fn digest(&mut self) -> Result<Digest, &'static str> {
        self.array().map(Digest::from_bytes)
    }

    /// A byte string behind a 16-bit length.
    pub(super) fn short(&mut self) -> Result<&'a [u8], &'static str> {
        let length = self.u16()?;
        self.take(length.into())
    }

    /// A byte string behind a 32-bit length.
    fn long(&mut self) -> Result<&'a [u8], &'static str> {
        let length = self.u32()?;
        self.take(length as usize)
    }

    pub(super) fn key(&mut self) -> Result<Key<'a>, &'static str> {
        Ok(Key { parent: self.short()?, name: self.short()? })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    fn remaining(&self) -> usize {
        self.rest.len()
    }
}

/// Appends `bytes` behind a 16-bit length.
pub(super) fn put_short(out: &mut Vec<u8>, bytes: &[u8]) -> Result<(), &'static str> {
    let length = u16::try_from(bytes.len()).map_err(|_| "a name or path is longer than 65535 bytes")?;
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(bytes);
    Ok(())
}

fn put_long(out: &mut Vec<u8>, bytes: &[u8]) -> Result<(), &'static str> {
    let length = u32::try_from(bytes.len()).map_err(|_| "a field is longer than 4 GiB")?;
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(bytes);
    Ok(())
}

pub(super) fn put_key(out: &mut Vec<u8>, key: Key<'_>) -> Result<(), &'static str> {
    put_short(out, key.parent)?;
    put_short(out, key.name)
}

/// Encodes a record, or says why it cannot be held.
pub(super) fn encode(record: &Record) -> Result<Vec<u8>, &'static str> {
    let mut out = Vec::with_capacity(128 + record.path.as_bytes().len());
    put_key(&mut out, record.key())?;
    out.extend_from_slice(&kind_and_flags(record));
    for number in [record.mode, record.uid, record.gid] {
        out.extend_from_slice(&number.to_le_bytes());
    }
    out.extend_from_slice(&record.mtime.secs.to_le_bytes());
    out.extend_from_slice(&record.mtime.nanos.to_le_bytes());
    let xattrs = u16::try_from(record.xattrs.len()).map_err(|_| "it has more than 65535 attributes")?;
    out.extend_from_slice(&xattrs.to_le_bytes());
    for (name, value) in &record.xattrs {
        put_short(&mut out, name.as_bytes())?;
        put_long(&mut out, value)?;
    }
    match &record.kind {
        RecordKind::File { size_bytes, content, data, link_to } => {
            out.extend_from_slice(&size_bytes.to_le_bytes());
            if let Some(content) = content {
                out.extend_from_slice(content.as_bytes());
            }
            if let Some(data) = data {
                put_data(&mut out, data)?;
            }
            if let Some(target) = link_to {
                put_short(&mut out, target.as_bytes())?;
            }
        }
        RecordKind::Symlink { target } => put_long(&mut out, target.as_bytes())?,
        RecordKind::Dir | RecordKind::ImpliedDir | RecordKind::Absent => {}
    }
    if let Some(before) = &record.before {
        put_long(&mut out, before)?;
    }
    if out.len() > RECORD_BYTES_MAX {
        return Err("its name, attributes and holes take more than 8 MiB");
    }
    Ok(out)
}

fn kind_and_flags(record: &Record) -> [u8; 2] {
    let before = if record.before.is_some() { HAS_BEFORE } else { 0 };
    let (kind, flags) = match &record.kind {
        RecordKind::File { content, data, link_to, .. } => {
            let mut flags = 0;
            if content.is_some() {
                flags |= HAS_CONTENT;
            }
            if let Some(data) = data {
                flags |= if data.extents.is_some() { HAS_DATA | HAS_HOLES } else { HAS_DATA };
                flags |= if data.links > 1 { HAS_LINKS } else { 0 };
            }
            if link_to.is_some() {
                flags |= IS_LINK;
            }
            (KIND_FILE, flags)
        }
        RecordKind::Dir => (KIND_DIR, 0),
        RecordKind::ImpliedDir => (KIND_IMPLIED_DIR, 0),
        RecordKind::Symlink { .. } => (KIND_SYMLINK, 0),
        RecordKind::Absent => (KIND_ABSENT, 0),
    };
    [kind, flags | before]
}

fn put_data(out: &mut Vec<u8>, data: &DataRef) -> Result<(), &'static str> {
    out.extend_from_slice(&data.stream_offset.to_le_bytes());
    if let Some(extents) = &data.extents {
        let count = u32::try_from(extents.len()).map_err(|_| "it has too many holes")?;
        out.extend_from_slice(&count.to_le_bytes());
        for extent in extents {
            out.extend_from_slice(&extent.offset.to_le_bytes());
            out.extend_from_slice(&extent.length_bytes.to_le_bytes());
        }
    }
    if data.links > 1 {
        out.extend_from_slice(&data.links.to_le_bytes());
    }
    Ok(())
}

/// Decodes a record from bytes that may come from anybody.
pub(super) fn decode(bytes: &[u8]) -> Result<Record, &'static str> {
    let mut from = Decoder::new(bytes);
    let path = decode_path(from.key()?)?;
    let (kind, flags) = (from.u8()?, from.u8()?);
    let (mode, uid, gid) = (from.u32()?, from.u32()?, from.u32()?);
    if mode > 0o7777 {
        return Err("a mode is invalid");
    }
    let mtime = Timestamp { secs: from.i64()?, nanos: from.nanos()? };
    let mut xattrs = Vec::new();
    for _ in 0..from.u16()? {
        let name = from.short()?;
        if name.is_empty() || name.contains(&0) {
            return Err("the name of an attribute is invalid");
        }
        xattrs.push((OsString::from_vec(name.to_vec()), from.long()?.to_vec()));
    }
    if kind != KIND_FILE && flags & !HAS_BEFORE != 0 {
        return Err("a record has unknown flags");
    }
    let kind = match kind {
        KIND_FILE => decode_file(&mut from, flags)?,
        KIND_DIR => RecordKind::Dir,
        KIND_IMPLIED_DIR => RecordKind::ImpliedDir,
        KIND_SYMLINK => {
            let target = from.long()?;
            if target.is_empty() || target.contains(&0) {
                return Err("the target of a symbolic link is invalid");
            }
            RecordKind::Symlink { target: OsStr::from_bytes(target).to_owned() }
        }
        KIND_ABSENT => RecordKind::Absent,
        _ => return Err("a record is of an unknown kind"),
    };
    let before = if flags & HAS_BEFORE != 0 { Some(from.long()?.to_vec()) } else { None };
    if !from.is_empty() {
        return Err("a record is longer than it should be");
    }
    Ok(Record { path, kind, mode, uid, gid, mtime, xattrs, before })
}

fn decode_path(key: Key<'_>) -> Result<RelPathBuf, &'static str> {
    if key.name.is_empty() || key.name.contains(&b'/') {
        return Err("a name is invalid");
    }
    let path = if key.parent.is_empty() { key.name.to_vec() } else { [key.parent, b"/", key.name].concat() };
    RelPathBuf::new(path).map_err(|invalid| invalid.reason)
}

fn decode_file(from: &mut Decoder<'_>, flags: u8) -> Result<RecordKind, &'static str> {
    if flags & !(HAS_CONTENT | HAS_DATA | HAS_HOLES | HAS_LINKS | IS_LINK | HAS_BEFORE) != 0
        || (flags & (HAS_HOLES | HAS_LINKS) != 0 && flags & HAS_DATA == 0)
    {
        return Err("a record has unknown flags");
    }
    let size_bytes = from.u64()?;
    // File offsets are signed in the kernel.
    if size_bytes > i64::MAX.unsigned_abs() {
        return Err("a size is invalid");
    }
    let content = if flags & HAS_CONTENT != 0 { Some(from.digest()?) } else { None };
    let data = if flags & HAS_DATA != 0 {
        let stream_offset = from.u64()?;
        let extents = if flags & HAS_HOLES != 0 { Some(decode_extents(from, size_bytes)?) } else { None };
        let links = if flags & HAS_LINKS != 0 { from.u32()? } else { 1 };
        Some(DataRef { stream_offset, extents, links })
    } else {
        None
    };
    let link_to = if flags & IS_LINK != 0 {
        Some(RelPathBuf::new(from.short()?).map_err(|invalid| invalid.reason)?)
    } else {
        None
    };
    Ok(RecordKind::File { size_bytes, content, data, link_to })
}

fn decode_extents(from: &mut Decoder<'_>, size_bytes: u64) -> Result<Vec<Extent>, &'static str> {
    let count = from.u32()? as usize;
    if count > from.remaining() / 16 {
        return Err("it ends too early");
    }
    let mut extents = Vec::with_capacity(count);
    let mut end = 0;
    for _ in 0..count {
        let extent = Extent { offset: from.u64()?, length_bytes: from.u64()? };
        let extent_end = extent.offset.checked_add(extent.length_bytes);
        if extent.length_bytes == 0 || extent.offset < end || extent_end.is_none_or(|end| end > size_bytes) {
            return Err("the holes of a file are invalid");
        }
        end = extent.end();
        extents.push(extent);
    }
    Ok(extents)
}
