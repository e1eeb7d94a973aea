//! A workspace with its store, cache index and layers: the engine that decides hit or miss.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use thiserror::Error;

use crate::fs::{Filesystem, Invalidator};
use crate::proto::{CacheMode, Outcome};
use crate::report::{
    Chunk, EntryDetails, EntryReport, FinishReport, HitReport, MissReason, Progress, StatusReport, WhyReport,
};
use crate::task::TaskSpec;

/// How to open a [`Workspace`].
#[derive(Debug)]
pub struct OpenOptions {
    /// Absolute path of the workspace.
    pub root: PathBuf,
    /// The workspace's directory, opened before anything is mounted over it.
    pub root_dir: OwnedFd,
    /// Absolute path of the store; created where it is missing.
    pub store: PathBuf,
    /// Whether sessions hand descriptors of backing files to the kernel.
    pub passthrough: bool,
}

/// Takes the progress of a long operation.
pub type ProgressSink<'a> = &'a (dyn Fn(Progress) + Sync);

/// A workspace.
#[derive(Debug)]
pub struct Workspace {}

/// What [`Workspace::begin`] found.
pub enum Begun {
    /// Nothing has to run: outputs are in place.
    Hit {
        /// What was hit.
        report: HitReport,
        /// Terminal output to replay.
        terminal: Vec<Chunk>,
    },
    /// The task must run.
    Miss {
        /// The run, to be ended by [`Workspace::finish`] or [`Workspace::abandon`].
        run: Run,
        /// Why.
        reason: MissReason,
    },
}

/// A task that is running in a view.
#[must_use = "dropping a run discards the task's writes"]
pub struct Run {
    filesystem: Arc<dyn Filesystem>,
}

impl Run {
    /// Returns what the task sees.
    #[must_use]
    pub fn filesystem(&self) -> Arc<dyn Filesystem> {
        Arc::clone(&self.filesystem)
    }
}

/// What [`Workspace::unmount_live`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Materialised {
    /// Files written.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Files left out.
    pub discarded_files: u64,
}

/// Why a workspace cannot be used.
#[derive(Debug, Error)]
pub enum WorkspaceError {
    /// Placeholder until the engine lands.
    #[error("not built yet")]
    NotBuilt,
}

impl Workspace {
    /// Opens the workspace and recovers what a crash left.
    ///
    /// # Errors
    /// [`WorkspaceError`] where store or index cannot be used.
    pub fn open(_options: OpenOptions) -> Result<Self, WorkspaceError> {
        Ok(Self {})
    }

    /// Looks a task up: applies a hit, or opens a view for it to run in.
    ///
    /// # Errors
    /// [`WorkspaceError`].
    pub fn begin(
        &self,
        _spec: TaskSpec,
        _cache: CacheMode,
        _progress: ProgressSink<'_>,
    ) -> Result<Begun, WorkspaceError> {
        Err(WorkspaceError::NotBuilt)
    }

    /// Ends a run: splits outputs off, stores the entry, commits the writes. The view's session must not
    /// be asked for anything any more, or only by processes that outlived the task.
    ///
    /// `fault` says that the view did not serve the task to its end.
    ///
    /// # Errors
    /// [`WorkspaceError`] where the writes could not be committed.
    pub fn finish(
        &self,
        _run: Run,
        _outcome: Outcome,
        _terminal: Vec<Chunk>,
        _fault: Option<String>,
        _progress: ProgressSink<'_>,
    ) -> Result<FinishReport, WorkspaceError> {
        Err(WorkspaceError::NotBuilt)
    }

    /// Discards a run and all it wrote.
    pub fn abandon(&self, run: Run) {
        drop(run);
    }

    /// Starts serving layers lazily through a live mount and returns what it serves.
    ///
    /// # Errors
    /// [`WorkspaceError`].
    pub fn mount_live(
        &self,
        _invalidator: Arc<dyn Invalidator>,
    ) -> Result<Arc<dyn Filesystem>, WorkspaceError> {
        Err(WorkspaceError::NotBuilt)
    }

    /// Returns how many files, and bytes, are still virtual.
    #[must_use]
    pub fn virtual_total(&self) -> Materialised {
        Materialised::default()
    }

    /// Writes virtual files into the base, or with `discard` forgets them, and ends the live mount's
    /// layers. Called while the live mount still serves (without `discard`), or after it is gone.
    ///
    /// # Errors
    /// [`WorkspaceError`].
    pub fn unmount_live(
        &self,
        _discard: bool,
        _progress: ProgressSink<'_>,
    ) -> Result<Materialised, WorkspaceError> {
        Err(WorkspaceError::NotBuilt)
    }

    /// Returns the state of store and layers; the caller fills in mounts and processes.
    ///
    /// # Errors
    /// [`WorkspaceError`].
    pub fn status(&self) -> Result<StatusReport, WorkspaceError> {
        Err(WorkspaceError::NotBuilt)
    }

    /// Returns the last lookup of a task.
    ///
    /// # Errors
    /// [`WorkspaceError`].
    pub fn why(&self, _task: &str) -> Result<Option<WhyReport>, WorkspaceError> {
        Err(WorkspaceError::NotBuilt)
    }

    /// Returns all entries, most recently used first.
    ///
    /// # Errors
    /// [`WorkspaceError`].
    pub fn entries(&self) -> Result<Vec<EntryReport>, WorkspaceError> {
        Err(WorkspaceError::NotBuilt)
    }

    /// Returns one entry in full, by id, by the beginning of its id, or the newest of a task by name.
    ///
    /// # Errors
    /// [`WorkspaceError`].
    pub fn entry(&self, _id: &str) -> Result<Option<EntryDetails>, WorkspaceError> {
        Err(WorkspaceError::NotBuilt)
    }

    /// Removes entries (of one task, or all) and what only they used; returns entries and bytes.
    ///
    /// # Errors
    /// [`WorkspaceError`].
    pub fn clean(&self, _task: Option<&str>) -> Result<(u64, u64), WorkspaceError> {
        Err(WorkspaceError::NotBuilt)
    }
}
