//! Single files on their way into a frame.

use std::io;
use std::os::unix::ffi::OsStrExt;

use crate::archive::pack::{PackError, Piece};
use crate::archive::plan::{Planned, What};
use crate::archive::reader::hash_hole;
use crate::archive::record::{DataRef, Extent, Record, RecordKind};
use crate::archive::source::{FileContent, FileSource};
use crate::archive::tar_entry::{self, Body};
use crate::digest::{Digest, Hasher};
use crate::path::RelPathBuf;

/// Holes are kept in this unit, whatever the file system's is: data grows to whole blocks.
const HOLE_BLOCK_BYTES: u64 = 4096;
/// Files with more ranges of data than this lose their smallest holes.
const EXTENTS_MAX: usize = 4096;

/// Appends a whole entry to `raw` and its record to `piece`.
pub(super) fn pack_small(entry: Planned, raw: &mut Vec<u8>, piece: &mut Piece) -> Result<(), PackError> {
    let kind = match &entry.what {
        What::File { source, names } => {
            let open = OpenSource::open(&entry.path, &**source)?;
            raw.extend_from_slice(&tar_entry::encode(&entry.path, &entry.meta, &open.body()));
            let data_start = raw.len();
            let content = open.read_all(raw)?;
            raw.extend_from_slice(tar_entry::padding(open.stored_bytes()));
            piece.files += 1;
            piece.bytes += open.stored_bytes();
            piece.linked.extend((*names > 1).then(|| entry.path.clone()));
            piece.records.push(open.record(&entry, data_start as u64, content));
            return Ok(());
        }
        What::Dir => {
            raw.extend_from_slice(&tar_entry::encode(&entry.path, &entry.meta, &Body::Dir));
            RecordKind::Dir
        }
        What::Symlink(target) => {
            let body = Body::Symlink(target.as_bytes());
            raw.extend_from_slice(&tar_entry::encode(&entry.path, &entry.meta, &body));
            RecordKind::Symlink { target: target.clone() }
        }
        What::HardLink(target) => {
            raw.extend_from_slice(&tar_entry::encode(&entry.path, &entry.meta, &Body::HardLink(target)));
            piece.files += 1;
            // The sink, which has seen the target, fills in the rest.
            RecordKind::File { size_bytes: 0, content: None, data: None, link_to: Some(target.clone()) }
        }
        // Other tools make missing directories by themselves, and have no word for what is not there.
        What::ImpliedDir => RecordKind::ImpliedDir,
        What::Absent => RecordKind::Absent,
    };
    piece.records.push(record(&entry, kind));
    Ok(())
}

fn record(entry: &Planned, kind: RecordKind) -> Record {
    let meta = entry.meta.clone();
    Record {
        path: entry.path.clone(),
        kind,
        mode: meta.mode,
        uid: meta.uid,
        gid: meta.gid,
        mtime: meta.mtime,
        xattrs: meta.xattrs,
        before: None,
    }
}

/// A file that is being packed.
pub(super) struct OpenSource<'a> {
    path: &'a RelPathBuf,
    content: Box<dyn FileContent>,
    pub(super) size_bytes: u64,
    /// What is stored of a file with holes.
    extents: Option<Vec<Extent>>,
}

impl<'a> OpenSource<'a> {
    pub(super) fn open(path: &'a RelPathBuf, source: &dyn FileSource) -> Result<Self, PackError> {
        let failed = |source| PackError::Source { path: path.clone(), source };
        let size_bytes = source.size_bytes();
        let content = source.open().map_err(failed)?;
        let extents = content.data_extents().map_err(failed)?;
        let extents = extents.and_then(|extents| whole_blocks(&extents, size_bytes));
        Ok(Self { path, content, size_bytes, extents })
    }

    pub(super) fn body(&self) -> Body<'_> {
        match &self.extents {
            Some(extents) => Body::Sparse(self.size_bytes, extents),
            None => Body::File(self.size_bytes),
        }
    }

    pub(super) fn stored(&self) -> Vec<Extent> {
        let whole = || vec![Extent { offset: 0, length_bytes: self.size_bytes }];
        self.extents.clone().unwrap_or_else(whole)
    }

    pub(super) fn stored_bytes(&self) -> u64 {
        self.stored().iter().map(|extent| extent.length_bytes).sum()
    }

    /// Appends all that is stored and returns the hash of the whole.
    fn read_all(&self, raw: &mut Vec<u8>) -> Result<Digest, PackError> {
        if self.extents.is_none() {
            return self.read_whole(raw);
        }
        let mut hasher = Hasher::default();
        let mut position = 0;
        for extent in self.stored() {
            hash_hole(&mut hasher, extent.offset - position);
            let start = raw.len();
            // Bounded: only files below the split size are read at once.
            raw.resize(start + usize::try_from(extent.length_bytes).unwrap_or(usize::MAX), 0);
            self.read(extent.offset, &mut raw[start..])?;
            hasher.update(&raw[start..]);
            position = extent.end();
        }
        hash_hole(&mut hasher, self.size_bytes - position);
        self.check_end()?;
        Ok(hasher.finish())
    }

    /// As [`read_all`](Self::read_all) without holes, in the fewest calls: a byte of room beyond the end tells
    /// that it is the end.
    fn read_whole(&self, raw: &mut Vec<u8>) -> Result<Digest, PackError> {
        let start = raw.len();
        // Bounded: only files below the split size are read at once.
        let size = usize::try_from(self.size_bytes).unwrap_or(usize::MAX - 1);
        raw.resize(start + size + 1, 0);
        let mut done = 0;
        while done < size {
            match self.read_some(done as u64, &mut raw[start + done..])? {
                0 => return Err(self.size_changed(done as u64)),
                n => done += n,
            }
        }
        // An empty file was not read at all.
        if done > size || (size == 0 && self.read_some(0, &mut raw[start..])? > 0) {
            return Err(self.size_changed(self.size_bytes + 1));
        }
        raw.truncate(start + size);
        Ok(Digest::of(&raw[start..]))
    }

    pub(super) fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), PackError> {
        let mut done = 0;
        while done < buffer.len() {
            match self.read_some(offset + done as u64, &mut buffer[done..])? {
                0 => return Err(self.size_changed(offset + done as u64)),
                n => done += n,
            }
        }
        Ok(())
    }

    pub(super) fn check_end(&self) -> Result<(), PackError> {
        match self.read_some(self.size_bytes, &mut [0])? {
            0 => {}
            _ => return Err(self.size_changed(self.size_bytes + 1)),
        }
        // The end may be a hole, of which nothing was read.
        if self.size_bytes > 0 && self.read_some(self.size_bytes - 1, &mut [0])? == 0 {
            return Err(self.size_changed(self.size_bytes - 1));
        }
        Ok(())
    }

    fn read_some(&self, offset: u64, buffer: &mut [u8]) -> Result<usize, PackError> {
        loop {
            match self.content.read_at(buffer, offset) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => {
                    return result.map_err(|source| PackError::Source { path: self.path.clone(), source });
                }
            }
        }
    }

    fn size_changed(&self, found_bytes: u64) -> PackError {
        let path = self.path.clone();
        PackError::SizeChanged { path, expected_bytes: self.size_bytes, found_bytes }
    }

    pub(super) fn record(&self, entry: &Planned, data_start: u64, content: Digest) -> Record {
        let links = match entry.what {
            What::File { names, .. } => names,
            _ => 1,
        };
        let data = DataRef { stream_offset: data_start, extents: self.extents.clone(), links };
        let size_bytes = self.size_bytes;
        let kind = RecordKind::File { size_bytes, content: Some(content), data: Some(data), link_to: None };
        record(entry, kind)
    }
}

/// Grows ranges of data to whole blocks, and drops small holes where there are too many. `None` where no
/// hole is left.
fn whole_blocks(extents: &[Extent], size_bytes: u64) -> Option<Vec<Extent>> {
    let mut unit = HOLE_BLOCK_BYTES;
    loop {
        let mut grown: Vec<Extent> = Vec::new();
        for extent in extents {
            let offset = extent.offset / unit * unit;
            let end = extent.end().next_multiple_of(unit).min(size_bytes);
            match grown.last_mut() {
                Some(last) if offset <= last.end() => {
                    last.length_bytes = end.max(last.end()) - last.offset;
                }
                _ if offset < end => grown.push(Extent { offset, length_bytes: end - offset }),
                _ => {}
            }
        }
        if grown.len() > EXTENTS_MAX {
            unit *= 2;
            continue;
        }
        let is_whole = matches!(*grown, [only] if only.offset == 0 && only.length_bytes == size_bytes);
        return (size_bytes > 0 && !is_whole).then_some(grown);
    }
}
