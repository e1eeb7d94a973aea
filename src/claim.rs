//! Claims: which paths of the base a task's runs left behind, what they looked like then, and what was
//! there before.
//!
//! A claim is data: an owner, an entry, and a manifest with one record per path: the record is the
//! signature of the path after the run, its `before` the state before it (itself taken logically, so a
//! chain of runs leads back to what was there first). Modification times in a manifest are those that the
//! base shows.

use std::collections::BTreeMap;

use crate::archive::{ArchiveError, Record, RecordKind, Toc};
use crate::base::BaseStat;
use crate::fs::Timestamp;
use crate::path::{RelPath, RelPathBuf};
use crate::state::{FileKind, PathState};

/// What a task's runs left in the base.
#[derive(Debug)]
pub struct Claimed {
    manifest: Toc,
}

/// A path that the owner's run created, changed or deleted, and nobody touched since.
#[derive(Debug, Clone, PartialEq)]
pub struct Owned {
    /// Its state before that run; `None` where nothing was there.
    pub before: Option<PathState>,
}

impl Claimed {
    /// Takes an opened manifest.
    #[must_use]
    pub fn new(manifest: Toc) -> Self {
        Self { manifest }
    }

    /// Returns the manifest.
    #[must_use]
    pub fn manifest(&self) -> &Toc {
        &self.manifest
    }

    /// Returns the record of `path`, whether or not it still describes the base.
    ///
    /// # Errors
    /// Where the manifest is damaged.
    pub fn record(&self, path: &RelPath) -> Result<Option<Record>, ArchiveError> {
        Ok(self.manifest.find(path)?.filter(|record| !matches!(record.kind, RecordKind::ImpliedDir)))
    }

    /// Returns what the claim says of the object at `path`, if it is still as the run left it.
    ///
    /// # Errors
    /// Where the manifest is damaged.
    pub fn owned(&self, path: &RelPath, stat: &BaseStat) -> Result<Option<Owned>, ArchiveError> {
        let record = self.record(path)?;
        Ok(record.filter(|record| still_describes(record, record.mtime, stat)).map(|record| owned(&record)))
    }

    /// Adds all records to `records`, in place of those already there.
    ///
    /// # Errors
    /// Where the manifest is damaged.
    pub fn add_to(&self, records: &mut BTreeMap<RelPathBuf, Record>) -> Result<(), ArchiveError> {
        for record in self.manifest.iter() {
            let record = record?;
            if !matches!(record.kind, RecordKind::ImpliedDir) {
                records.insert(record.path.clone(), record);
            }
        }
        Ok(())
    }

    /// Returns what the claim says of `path`, if the run deleted it.
    ///
    /// # Errors
    /// Where the manifest is damaged.
    pub fn deleted(&self, path: &RelPath) -> Result<Option<Owned>, ArchiveError> {
        let record = self.record(path)?;
        Ok(record.filter(|record| matches!(record.kind, RecordKind::Absent)).map(|record| owned(&record)))
    }
}

fn owned(record: &Record) -> Owned {
    Owned { before: record.before.as_deref().and_then(decode_before) }
}

/// Returns whether an object of the base is just what `record` says, with `mtime` as its time.
#[must_use]
pub fn still_describes(record: &Record, mtime: Timestamp, stat: &BaseStat) -> bool {
    match &record.kind {
        RecordKind::File { size_bytes, .. } => {
            stat.kind == FileKind::File
                && stat.identity.size_bytes == *size_bytes
                && stat.identity.mtime == mtime
                && stat.mode == record.mode
        }
        RecordKind::Symlink { .. } => stat.kind == FileKind::Symlink && stat.identity.mtime == mtime,
        RecordKind::Dir => stat.kind == FileKind::Dir,
        RecordKind::ImpliedDir | RecordKind::Absent => false,
    }
}

/// Encodes a state before a run for a manifest or the index; `None` for nothing there.
#[must_use]
pub fn encode_before(state: &PathState) -> Option<Vec<u8>> {
    match state {
        PathState::Absent => None,
        state => Some(postcard::to_stdvec(state).expect("plain data encodes into memory")),
    }
}

/// Decodes what [`encode_before`] made. Damaged bytes read as nothing there, which leads to a miss.
#[must_use]
pub fn decode_before(bytes: &[u8]) -> Option<PathState> {
    postcard::from_bytes(bytes).ok()
}

/// Returns an archive's record as a claim keeps it, with the time that the base shows.
#[must_use]
pub fn claim_record(record: &Record, mtime: Timestamp, before: &PathState) -> Record {
    let mut kept = Record { mtime, before: encode_before(before), xattrs: Vec::new(), ..record.clone() };
    if let RecordKind::File { data, link_to, .. } = &mut kept.kind {
        (*data, *link_to) = (None, None);
    }
    kept
}

/// Returns the record of a real object as a claim keeps it; `None` for pipes, sockets and devices.
#[must_use]
pub fn real_record(path: RelPathBuf, stat: &BaseStat, before: &PathState) -> Option<Record> {
    let kind = match stat.kind {
        FileKind::File => {
            let size_bytes = stat.identity.size_bytes;
            RecordKind::File { size_bytes, content: None, data: None, link_to: None }
        }
        FileKind::Dir => RecordKind::Dir,
        // Times tell whether it is still the same.
        FileKind::Symlink => RecordKind::Symlink { target: "-".into() },
        FileKind::Fifo | FileKind::Socket | FileKind::CharDevice | FileKind::BlockDevice => return None,
    };
    Some(Record {
        path,
        kind,
        mode: stat.mode,
        uid: stat.uid,
        gid: stat.gid,
        mtime: stat.identity.mtime,
        xattrs: Vec::new(),
        before: encode_before(before),
    })
}

/// Returns the record of a deletion as a claim keeps it.
#[must_use]
pub fn absent_record(path: RelPathBuf, before: &PathState) -> Record {
    Record {
        path,
        kind: RecordKind::Absent,
        mode: 0,
        uid: 0,
        gid: 0,
        mtime: Timestamp::default(),
        xattrs: Vec::new(),
        before: encode_before(before),
    }
}
