//! Headers of the tar stream: ustar, with PAX records for what ustar cannot say.

use std::os::unix::ffi::OsStrExt;

use tar::{EntryType, Header};

use crate::archive::plan::Meta;
use crate::archive::record::Extent;
use crate::fs::Timestamp;
use crate::path::RelPath;

/// The unit of a tar stream.
pub(super) const BLOCK_BYTES: u64 = 512;
/// The end of a tar stream: two empty blocks.
pub(super) const END: [u8; 1024] = [0; 1024];

/// Largest number in a 12-digit octal field, and in an 8-digit one.
const OCTAL_12_MAX: u64 = 0o777_7777_7777;
const OCTAL_8_MAX: u32 = 0o777_7777;

/// What an entry is.
pub(super) enum Body<'a> {
    Dir,
    Symlink(&'a [u8]),
    HardLink(&'a RelPath),
    /// A file and its size.
    File(u64),
    /// A file with holes: its size and what lies between them.
    Sparse(u64, &'a [Extent]),
}

/// Returns all of an entry that precedes its data.
pub(super) fn encode(path: &RelPath, meta: &Meta, body: &Body<'_>) -> Vec<u8> {
    let map = match body {
        Body::Sparse(size_bytes, extents) => sparse_map(*size_bytes, extents),
        Body::Dir | Body::Symlink(_) | Body::HardLink(_) | Body::File(_) => Vec::new(),
    };
    let stored_bytes = match body {
        Body::File(size_bytes) => *size_bytes,
        Body::Sparse(_, extents) => {
            map.len() as u64 + extents.iter().map(|extent| extent.length_bytes).sum::<u64>()
        }
        Body::Dir | Body::Symlink(_) | Body::HardLink(_) => 0,
    };
    let mut pax = Pax::default();
    let mut header = new_header(match body {
        Body::Dir => EntryType::Directory,
        Body::Symlink(_) => EntryType::Symlink,
        Body::HardLink(_) => EntryType::Link,
        Body::File(_) | Body::Sparse(..) => EntryType::Regular,
    });
    put_name(&mut header, &mut pax, path, body);
    put_link(&mut header, &mut pax, body);
    put_meta(&mut header, &mut pax, meta);
    header.set_size(stored_bytes);
    if stored_bytes > OCTAL_12_MAX {
        pax.put(b"size", stored_bytes.to_string().as_bytes());
    }
    header.set_cksum();
    let mut out = pax.into_entry(path);
    out.extend_from_slice(header.as_bytes());
    out.extend_from_slice(&map);
    out
}

/// Returns the zeros that fill the last block of `length_bytes` of data.
pub(super) fn padding(length_bytes: u64) -> &'static [u8] {
    static ZEROS: [u8; 512] = [0; 512];
    let odd = length_bytes % BLOCK_BYTES;
    let missing = if odd == 0 { 0 } else { BLOCK_BYTES - odd };
    // Less than 512.
    &ZEROS[..usize::try_from(missing).unwrap_or(0)]
}

fn new_header(kind: EntryType) -> Header {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

fn put_name(header: &mut Header, pax: &mut Pax, path: &RelPath, body: &Body<'_>) {
    let mut name = path.as_bytes().to_vec();
    match body {
        Body::Dir => name.push(b'/'),
        Body::Sparse(size_bytes, _) => {
            // GNU sparse format 1.0: tools that do not know it must not take this for the file.
            pax.put(b"GNU.sparse.major", b"1");
            pax.put(b"GNU.sparse.minor", b"0");
            pax.put(b"GNU.sparse.name", &name);
            pax.put(b"GNU.sparse.realsize", size_bytes.to_string().as_bytes());
            let (parent, last) = path.split_last().unwrap_or((RelPath::ROOT, path.as_os_str()));
            let parent = if parent.is_root() { b".".as_slice() } else { parent.as_bytes() };
            name = [parent, b"/GNUSparseFile.0/", last.as_bytes()].concat();
        }
        Body::Symlink(_) | Body::HardLink(_) | Body::File(_) => {}
    }
    if !put_ustar_name(header, &name) && !matches!(body, Body::Sparse(..)) {
        pax.put(b"path", &name);
    }
}

/// Sets name and prefix; where they cannot hold `name`, they hold what fits, and this returns false.
fn put_ustar_name(header: &mut Header, name: &[u8]) -> bool {
    let Some(ustar) = header.as_ustar_mut() else { return false };
    if name.len() <= ustar.name.len() {
        ustar.name[..name.len()].copy_from_slice(name);
        return true;
    }
    // The last character of a directory's name is a slash, which is no place to split.
    let slashes = name[..name.len() - 1].iter().enumerate().filter(|(_, byte)| **byte == b'/');
    let mut fitting = slashes
        .map(|(i, _)| i)
        .filter(|&i| (1..=ustar.prefix.len()).contains(&i) && name.len() - i - 1 <= ustar.name.len());
    if let Some(i) = fitting.next() {
        ustar.prefix[..i].copy_from_slice(&name[..i]);
        ustar.name[..name.len() - i - 1].copy_from_slice(&name[i + 1..]);
        return true;
    }
    let length = ustar.name.len();
    ustar.name.copy_from_slice(&name[..length]);
    false
}

fn put_link(header: &mut Header, pax: &mut Pax, body: &Body<'_>) {
    let target = match body {
        Body::Symlink(target) => target,
        Body::HardLink(target) => target.as_bytes(),
        Body::Dir | Body::File(_) | Body::Sparse(..) => return,
    };
    let Some(ustar) = header.as_ustar_mut() else { return };
    let length = target.len().min(ustar.linkname.len());
    ustar.linkname[..length].copy_from_slice(&target[..length]);
    if length < target.len() {
        pax.put(b"linkpath", target);
    }
}

fn put_meta(header: &mut Header, pax: &mut Pax, meta: &Meta) {
    header.set_mode(meta.mode);
    header.set_uid(meta.uid.min(OCTAL_8_MAX).into());
    header.set_gid(meta.gid.min(OCTAL_8_MAX).into());
    if meta.uid > OCTAL_8_MAX {
        pax.put(b"uid", meta.uid.to_string().as_bytes());
    }
    if meta.gid > OCTAL_8_MAX {
        pax.put(b"gid", meta.gid.to_string().as_bytes());
    }
    let Timestamp { secs, nanos } = meta.mtime;
    let whole = u64::try_from(secs).ok().filter(|&secs| secs <= OCTAL_12_MAX);
    header.set_mtime(whole.unwrap_or(0));
    if nanos != 0 || whole.is_none() {
        pax.put(b"mtime", decimal_time(meta.mtime).as_bytes());
    }
    for (name, value) in &meta.xattrs {
        // As GNU tar does: '=' ends a keyword.
        let mut keyword = b"SCHILY.xattr.".to_vec();
        for &byte in name.as_bytes() {
            match byte {
                b'=' => keyword.extend_from_slice(b"%3D"),
                b'%' => keyword.extend_from_slice(b"%25"),
                byte => keyword.push(byte),
            }
        }
        pax.put(&keyword, value);
    }
}

/// Returns seconds as PAX writes them; before the epoch, the fraction counts away from zero.
fn decimal_time(time: Timestamp) -> String {
    let Timestamp { secs, nanos } = time;
    match (secs < 0, nanos) {
        (_, 0) => secs.to_string(),
        (false, _) => format!("{secs}.{nanos:09}"),
        (true, _) => format!("-{}.{:09}", (secs + 1).unsigned_abs(), 1_000_000_000 - nanos),
    }
}

/// Returns the map that precedes the data of a sparse file, padded to whole blocks.
fn sparse_map(size_bytes: u64, extents: &[Extent]) -> Vec<u8> {
    let mut ranges: Vec<_> = extents.iter().map(|extent| (extent.offset, extent.length_bytes)).collect();
    // A hole at the end is told by an empty range behind it.
    if extents.last().is_none_or(|last| last.end() < size_bytes) {
        ranges.push((size_bytes, 0));
    }
    let mut map = format!("{}\n", ranges.len());
    for (offset, length_bytes) in ranges {
        map.push_str(&format!("{offset}\n{length_bytes}\n"));
    }
    let mut map = map.into_bytes();
    map.extend_from_slice(padding(map.len() as u64));
    map
}

/// Records of a PAX extended header.
#[derive(Default)]
struct Pax {
    records: Vec<u8>,
}

impl Pax {
    fn put(&mut self, keyword: &[u8], value: &[u8]) {
        // "LENGTH KEYWORD=VALUE\n", where the length counts its own digits.
        let rest = keyword.len() + value.len() + 3;
        let mut length = rest + 1;
        while length != rest + length.to_string().len() {
            length = rest + length.to_string().len();
        }
        self.records.extend_from_slice(format!("{length} ").as_bytes());
        for part in [keyword, b"=", value, b"\n"] {
            self.records.extend_from_slice(part);
        }
    }

    /// Returns the extended header as an entry, or nothing where there are no records.
    fn into_entry(self, path: &RelPath) -> Vec<u8> {
        if self.records.is_empty() {
            return Vec::new();
        }
        let mut header = new_header(EntryType::XHeader);
        let name = [b"PaxHeaders.0/", path.name().unwrap_or_default().as_bytes()].concat();
        put_ustar_name(&mut header, &name[..name.len().min(100)]);
        header.set_mode(0o644);
        header.set_size(self.records.len() as u64);
        header.set_cksum();
        let mut out = header.as_bytes().to_vec();
        out.extend_from_slice(&self.records);
        out.extend_from_slice(padding(self.records.len() as u64));
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pax_length_counts_itself() {
        for value_bytes in [0, 1, 85, 86, 87, 88, 89, 90, 91, 980, 985, 990, 995] {
            let mut pax = Pax::default();
            pax.put(b"key", &vec![b'x'; value_bytes]);
            let digits: Vec<u8> = pax.records.iter().copied().take_while(|&byte| byte != b' ').collect();
            let length: usize = String::from_utf8(digits).unwrap().parse().unwrap();
            assert_eq!(length, pax.records.len());
        }
    }

    #[test]
    fn times_before_the_epoch_are_decimal_numbers() {
        let text = |secs, nanos| decimal_time(Timestamp { secs, nanos });
        assert_eq!(text(-1, 500_000_000), "-0.500000000");
        assert_eq!(text(-2, 999_999_999), "-1.000000001");
        assert_eq!(text(-2, 0), "-2");
        assert_eq!(text(3, 7), "3.000000007");
    }
}
