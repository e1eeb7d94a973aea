//! What people ask about the cache.

use std::collections::HashSet;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::atomic::Ordering;

use rustix::fs::{Mode, OFlags, ResolveFlags, fstat, open, openat2};
use rustix::io::Errno;
use uuid::Uuid;

use super::lookup::StoredInputs;
use super::{Workspace, WorkspaceError, lock, now_secs};
use crate::archive::{Record, RecordKind};
use crate::base::STORE_NAME;
use crate::index::{Entry, EntryFilter};
use crate::path::RelPathBuf;
use crate::report::{EntryDetails, EntryReport, LayerStatus, StatusReport, WhyReport};
use crate::state::{FileKind, PathState};

impl Workspace {
    /// Returns the state of store and layers; the caller fills in mounts and processes.
    ///
    /// # Errors
    /// [`WorkspaceError`].
    pub fn status(&self) -> Result<StatusReport, WorkspaceError> {
        let mut layers = Vec::new();
        for layer in self.tree.layers().iter() {
            let mut status = LayerStatus {
                task: layer.task_name().to_owned(),
                entry: layer.entry(),
                virtual_files: 0,
                virtual_bytes: 0,
                hydrated_files: 0,
                hydrated_bytes: 0,
            };
            for record in layer.records() {
                let record = record?;
                let RecordKind::File { size_bytes, content, .. } = record.kind else { continue };
                status.virtual_files += 1;
                status.virtual_bytes += size_bytes;
                if crate::open_file::is_hydrated(&self.store, size_bytes, content) {
                    status.hydrated_files += 1;
                    status.hydrated_bytes += size_bytes;
                }
            }
            layers.push(status);
        }
        Ok(StatusReport {
            workspace: self.root.clone(),
            store: self.store.path().to_owned(),
            mounted_at: None,
            served: None,
            daemon_pid: std::process::id(),
            running: Vec::new(),
            layers,
            archive_bytes: self.store.archive_bytes()?,
            hydrated_bytes: self.store.blob_bytes()?,
            entries: self.index.entry_count()?,
        })
    }

    /// Returns whether the store, and the work area in the workspace if there is one, are still where they
    /// were opened. Nothing that is stored in a directory without a name can be found again.
    #[must_use]
    pub fn has_its_store(&self) -> bool {
        // A throw-away store never had a name to be found by.
        let has_store = self.fault.is_some() || self.is_at(self.store.path(), self.store.dir());
        let work = self.store.work().dir();
        has_store && (is_same(work, self.store.dir()) || self.is_at(&self.root.join(STORE_NAME), work))
    }

    /// Returns whether `path` leads to the open directory `dir`. What lies in the workspace is looked up in
    /// its own directory: by its name it may be below a mount.
    fn is_at(&self, path: &Path, dir: BorrowedFd<'_>) -> bool {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = match path.strip_prefix(&self.root) {
            Ok(below) => {
                let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
                openat2(self.tree.base().root(), below, flags, Mode::empty(), resolve)
            }
            Err(_) => open(path, flags, Mode::empty()),
        };
        // What cannot be told is not taken for a loss.
        let gone = |errno| errno == Errno::NOENT || errno == Errno::NOTDIR;
        match opened {
            Ok(found) => is_same(found.as_fd(), dir),
            Err(errno) => !gone(errno),
        }
    }

    /// Does what nobody should have to wait for: call it when there is nothing else to do. It stops early
    /// where a lookup begins, and does the rest when it is called again.
    ///
    /// # Errors
    /// [`WorkspaceError`].
    pub fn tidy(&self) -> Result<(), WorkspaceError> {
        drop(std::mem::take(&mut *lock(&self.retired)));
        while self.lookups.load(Ordering::Relaxed) == 0 && self.index.tidy()? > 0 {}
        if self.lookups.load(Ordering::Relaxed) > 0 {
            return Ok(());
        }
        let pinned = HashSet::<Uuid>::new();
        let removed = self.index.evict(&self.limits, now_secs(), &pinned)?;
        self.remove_archives(&removed.archives);
        self.store.trim_blobs(self.limits.blob_bytes_max)?;
        Ok(())
    }

    /// Returns the last lookup of a task.
    ///
    /// # Errors
    /// [`WorkspaceError`].
    pub fn why(&self, task: &str) -> Result<Option<WhyReport>, WorkspaceError> {
        let known = self.index.lookup(self.id, task)?;
        Ok(known.and_then(|bytes| postcard::from_bytes(&bytes).ok()))
    }

    /// Returns all entries, most recently used first.
    ///
    /// # Errors
    /// [`WorkspaceError`].
    pub fn entries(&self) -> Result<Vec<EntryReport>, WorkspaceError> {
        Ok(self.index.entries()?.iter().map(|entry| self.entry_report(entry)).collect())
    }

    /// Returns one entry in full, by id, by the beginning of its id, or the newest of a task by name.
    ///
    /// # Errors
    /// [`WorkspaceError`].
    pub fn entry(&self, id: &str) -> Result<Option<EntryDetails>, WorkspaceError> {
        let entries = self.index.entries()?;
        let mut by_id = entries.iter().filter(|entry| entry.id.to_string().starts_with(id));
        let entry = match (by_id.next(), by_id.next()) {
            (Some(entry), None) => Some(entry),
            _ => entries.iter().find(|entry| entry.task_name == id),
        };
        let Some(entry) = entry else { return Ok(None) };
        let mut inputs = Vec::new();
        if let Some(states) = self.index.states(entry.id)?
            && let Ok(StoredInputs { set, states }) = postcard::from_bytes(&states)
        {
            let recorded = set.into_iter().zip(states.recorded).map(|((path, _), state)| (path, state));
            inputs.extend(recorded.chain(states.globbed).map(|(path, state)| (path, describe_state(&state))));
        }
        let mut outputs: Vec<(RelPathBuf, String)> = Vec::new();
        if let Some(archive) = entry.archive {
            for record in self.open_archive(archive)?.toc().iter() {
                let record = record?;
                if let Some(text) = describe_record(&record) {
                    outputs.push((record.path, text));
                }
            }
        }
        outputs.sort();
        Ok(Some(EntryDetails { summary: self.entry_report(entry), inputs, outputs }))
    }

    /// Removes entries (of one task, or all) and what only they used; returns entries and bytes.
    ///
    /// # Errors
    /// [`WorkspaceError`].
    pub fn clean(&self, task: Option<&str>) -> Result<(u64, u64), WorkspaceError> {
        let filter = task.map_or(EntryFilter::All, |task| EntryFilter::TaskName(task.to_owned()));
        let removed = self.index.remove_entries(&filter)?;
        self.remove_archives(&removed.archives);
        let mut bytes = removed.bytes;
        if task.is_none() {
            bytes += self.store.trim_blobs(0)?.bytes;
        }
        Ok((removed.entries, bytes))
    }

    fn entry_report(&self, entry: &Entry) -> EntryReport {
        let archive = |id: Uuid| self.store.archive_path(id);
        EntryReport {
            entry: entry.id,
            task: entry.task_name.clone(),
            archive: entry.archive.map(archive),
            archive_bytes: entry.archive_bytes,
            inputs: entry.inputs,
            outputs: entry.outputs,
            output_bytes: entry.output_bytes,
            created: entry.created,
            used: entry.used,
            recorded_ms: entry.recorded_ms,
        }
    }
}

fn is_same(one: BorrowedFd<'_>, other: BorrowedFd<'_>) -> bool {
    let ids = (fstat(one), fstat(other));
    matches!(ids, (Ok(one), Ok(other)) if (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino))
}

fn describe_state(state: &PathState) -> String {
    match state {
        PathState::Absent => "missing".into(),
        PathState::File { content: Some(content), .. } => format!("file, content {content}"),
        PathState::File { content: None, size_bytes, .. } => format!("file of {size_bytes} bytes, not read"),
        PathState::Dir { listing: Some(names) } => format!("directory, {} names listed", names.len()),
        PathState::Dir { listing: None } => "directory".into(),
        PathState::Symlink { target: Some(target) } => {
            format!("link to {}", String::from_utf8_lossy(target))
        }
        PathState::Symlink { target: None } => "link".into(),
        PathState::Special(FileKind::Fifo) => "named pipe".into(),
        PathState::Special(FileKind::Socket) => "socket".into(),
        PathState::Special(_) => "device".into(),
    }
}

fn describe_record(record: &Record) -> Option<String> {
    match &record.kind {
        RecordKind::File { size_bytes, link_to: None, .. } => Some(format!("file of {size_bytes} bytes")),
        RecordKind::File { link_to: Some(first), .. } => Some(format!("hard link to {first}")),
        RecordKind::Dir => Some("directory".into()),
        RecordKind::ImpliedDir => None,
        RecordKind::Symlink { target } => Some(format!("link to {}", target.display())),
        RecordKind::Absent => Some("deleted".into()),
    }
}
