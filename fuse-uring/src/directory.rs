//! A listing on its way to the kernel.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use zerocopy::IntoBytes;

use crate::abi::{Dirent, EntryOut};

/// Entries start at multiples of this.
const ALIGNMENT: usize = 8;

/// Room for a directory's entries: as much as the kernel asked for.
#[derive(Debug)]
pub struct DirBuffer<'a> {
    room: &'a mut [u8],
    used: usize,
    /// Whether entries come with attributes.
    plus: bool,
}

/// An entry of a directory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DirEntry<'a> {
    ino: u64,
    offset: u64,
    kind: u32,
    name: &'a [u8],
}

impl<'a> DirBuffer<'a> {
    pub(crate) const fn new(room: &'a mut [u8], plus: bool) -> Self {
        Self { room, used: 0, plus }
    }

    /// Adds an entry, unless the buffer is too full: then it answers `true`, and the listing has to end.
    ///
    /// `offset` is where to go on after this entry, and not zero; `kind` is a `DT_` number. In a listing
    /// with attributes, the kernel will look this entry up where it needs to.
    #[must_use = "a full buffer has not taken the entry"]
    pub fn add(&mut self, ino: u64, offset: u64, kind: u32, name: &OsStr) -> bool {
        let entry = DirEntry { ino, offset, kind, name: name.as_bytes() };
        if self.plus {
            // A node of zero: no attributes are known.
            self.push(EntryOut::default().as_bytes(), &entry)
        } else {
            self.push(&[], &entry)
        }
    }

    /// Adds an entry with its attributes: it then counts as looked up. In a listing without attributes they
    /// are left out, and it does not.
    #[must_use = "a full buffer has not taken the entry"]
    pub fn add_plus(&mut self, entry: &EntryOut, offset: u64, kind: u32, name: &OsStr) -> bool {
        let dirent = DirEntry { ino: entry.attr.ino, offset, kind, name: name.as_bytes() };
        self.push(if self.plus { entry.as_bytes() } else { &[] }, &dirent)
    }

    /// Returns whether entries with attributes are wanted.
    #[must_use]
    pub const fn wants_attributes(&self) -> bool {
        self.plus
    }

    pub(crate) const fn used(&self) -> usize {
        self.used
    }

    fn push(&mut self, attributes: &[u8], entry: &DirEntry<'_>) -> bool {
        let Ok(namelen) = u32::try_from(entry.name.len()) else { return true };
        let dirent = Dirent { ino: entry.ino, off: entry.offset, namelen, kind: entry.kind };
        let plain = attributes.len() + size_of::<Dirent>() + entry.name.len();
        let padded = plain.next_multiple_of(ALIGNMENT);
        let Some(room) = self.room.get_mut(self.used..self.used + padded) else { return true };
        let (first, rest) = room.split_at_mut(attributes.len());
        first.copy_from_slice(attributes);
        let (second, rest) = rest.split_at_mut(size_of::<Dirent>());
        second.copy_from_slice(dirent.as_bytes());
        let (name, padding) = rest.split_at_mut(entry.name.len());
        name.copy_from_slice(entry.name);
        padding.fill(0);
        self.used += padded;
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_aligned_and_a_full_buffer_takes_no_more() {
        let mut room = [0xff; 70];
        let mut entries = DirBuffer::new(&mut room, false);
        assert!(!entries.add(7, 1, 4, OsStr::new("a")));
        assert!(!entries.add(8, 2, 8, OsStr::new("12345678")));
        assert!(entries.add(9, 3, 8, OsStr::new("b")));
        assert_eq!(entries.used(), 64);
        assert_eq!(room[16..25], [1, 0, 0, 0, 4, 0, 0, 0, b'a']);
        assert_eq!(room[25..32], [0; 7]);
        assert_eq!(room[56..64], *b"12345678");
        assert_eq!(room[64..], [0xff; 6]);
    }

    #[test]
    fn entries_have_attributes_only_where_these_are_asked_for() {
        let entry = EntryOut { nodeid: 5, ..EntryOut::default() };
        for (plus, bytes) in [(false, 32), (true, 160)] {
            let mut room = [0; 200];
            let mut entries = DirBuffer::new(&mut room, plus);
            assert!(!entries.add_plus(&entry, 1, 8, OsStr::new("a")));
            assert_eq!((entries.used(), entries.wants_attributes()), (bytes, plus));
        }
    }
}
