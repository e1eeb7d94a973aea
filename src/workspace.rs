//! A workspace with its store, cache index and layers: the engine that decides hit or miss.
//!
//! | part | does |
//! |---|---|
//! | `open` | store, index, and what takes their place where they cannot be used |
//! | `lookup` | from a task to an entry, or to the reason why there is none |
//! | `known` | lookups that need not be done again under an exclusive live mount |
//! | `hit` | puts an entry's outputs in place: as a layer, or written out |
//! | `restore` | writes outputs into the base |
//! | `run`, `finish`, `outputs` | a run from its view to its entry and its commit |
//! | `ahead` | packs outputs while their task still runs |
//! | `prefetch` | decompresses what will be read, while the machine is idle |
//! | `commits` | what is committed while others run |
//! | `unfinished` | commits that stopped half-way |
//! | `mounts` | what changes when a live mount comes and goes; recovery |
//! | `admin` | what people ask about the cache |
//!
//! # Locking
//! A task's turn (`running`) is taken before `committing`, and that before the short-lived tables; views, live
//! tree and merged tree have locks of their own below these.

mod admin;
mod ahead;
mod commits;
mod finish;
mod hit;
mod known;
mod lookup;
mod mounts;
mod open;
mod outputs;
mod prefetch;
mod restore;
mod run;
#[cfg(test)]
mod tests;
mod unfinished;

use std::collections::{HashMap, HashSet};
use std::error::Error;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{SystemTime, UNIX_EPOCH};

use thiserror::Error;
use uuid::Uuid;

use self::commits::CommitLog;
use self::known::Known;
use self::prefetch::Prefetcher;
pub use self::run::Run;
use self::unfinished::Unfinished;
use crate::archive::restore::RestoreError;
use crate::archive::{Archive, ArchiveError, Manifest, ManifestError};
use crate::claim::Claimed;
use crate::commit::CommitError;
use crate::content::ContentHashes;
use crate::filter::FilterError;
use crate::fs::{Filesystem, FsError, Invalidator};
use crate::index::{Claim, Index, IndexError, TaskId, WorkspaceId};
use crate::limits::Limits;
use crate::live::{Announcer, Live};
use crate::materialise::Materialiser;
use crate::path::RelPathBuf;
use crate::proto::{CacheMode, Outcome};
use crate::report::{Chunk, FinishReport, HitReport, MissReason, Progress};
use crate::serving::Serving;
use crate::store::{Store, StoreError, SweepError};
use crate::task::TaskSpec;
use crate::touched::{Moment, Touched};
use crate::tree::{Layer, Tree};

/// How to open a [`Workspace`].
#[derive(Debug)]
pub struct OpenOptions {
    /// Absolute path of the workspace.
    pub root: PathBuf,
    /// The workspace's directory, opened before anything is mounted over it.
    pub root_dir: OwnedFd,
    /// Absolute path of the store; created where it is missing.
    pub store: PathBuf,
    /// How much the store may hold.
    pub limits: Limits,
}

/// How [`Workspace::begin`] goes about a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunOptions {
    /// How the cache is used.
    pub cache: CacheMode,
    /// How the view is served; `passthrough` only where the kernel will really grant it.
    pub serving: Serving,
}

/// Takes the progress of a long operation.
pub type ProgressSink<'a> = &'a (dyn Fn(Progress) + Sync);

/// A workspace.
pub struct Workspace {
    root: PathBuf,
    id: WorkspaceId,
    store: Arc<Store>,
    index: Arc<Index>,
    limits: Limits,
    /// Why the store is a throw-away one, and nothing is cached.
    fault: Option<String>,
    tree: Arc<Tree>,
    hashes: Arc<ContentHashes>,
    materialiser: Arc<Materialiser>,
    touched: Arc<Touched>,
    prefetcher: Prefetcher,
    /// Kept while a live mount that covers the base is exclusive.
    known: Mutex<Option<Arc<Known>>>,
    /// The live mount, while there is one.
    mounted: Mutex<Option<Mounted>>,
    /// Open archives, so that all readers share one cache of frames.
    archives: Mutex<HashMap<Uuid, Weak<Archive>>>,
    /// Layers that were replaced: taking one apart costs as much as it has punches, and nobody should wait
    /// for that.
    retired: Mutex<Vec<Arc<Layer>>>,
    /// Lookups under way: tidying stands back for them.
    lookups: AtomicUsize,
    /// Held while a run is stored and committed: one at a time.
    committing: Mutex<()>,
    /// Commits whose journals are published and not carried out in full; only changed under `committing`.
    unfinished: Mutex<Vec<Unfinished>>,
    commits: Arc<CommitLog>,
    /// Tasks whose outputs were all in place at a moment.
    in_place: Mutex<HashMap<TaskId, InPlace>>,
    /// Tasks that are being looked up or run for the cache.
    running: Mutex<HashSet<TaskId>>,
    idle: Condvar,
}

struct Mounted {
    live: Arc<Live>,
    announcer: Arc<Announcer>,
    invalidator: Arc<dyn Invalidator>,
    /// Whether it hides the base, so that nobody can change the base without being seen.
    covers_base: bool,
    /// Whether somebody promised that there is no other way to change the base, and we hear of all that go through it.
    exclusive: bool,
}

/// What a live mount serves.
pub struct LiveTree {
    /// To everybody.
    pub filesystem: Arc<dyn Filesystem>,
    /// To the process that tells watchers what happened.
    pub announcer: Arc<dyn Filesystem>,
}

#[derive(Clone, Copy)]
struct InPlace {
    entry: Option<Uuid>,
    since: Moment,
}

/// What [`Workspace::begin`] found.
#[expect(clippy::large_enum_variant, reason = "one per task, moved once")]
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

/// Why something with a workspace went wrong.
#[derive(Debug, Error)]
pub enum WorkspaceError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The index.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// An archive or a claim.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// A claim could not be written.
    #[error("the claim of a task cannot be written")]
    Manifest(#[from] ManifestError),
    /// Cached outputs could not be written out.
    #[error(transparent)]
    Restore(#[from] RestoreError),
    /// The task's writes could not be committed.
    #[error("the writes of the task cannot be committed")]
    Commit(#[from] CommitError),
    /// The base holds a part of what the task wrote.
    #[error(
        "the writes of a task are committed only in part; free some space, or see what is wrong, and the \
         next run finishes it from {journal:?}"
    )]
    Unfinished {
        /// What is left to do.
        journal: PathBuf,
        /// Where it stopped.
        source: CommitError,
    },
    /// A filter of the task.
    #[error(transparent)]
    Filter(#[from] FilterError),
    /// The merged tree or a view.
    #[error("the workspace cannot be read")]
    Fs(#[from] FsError),
    /// The base.
    #[error("cannot change {path:?}")]
    Base {
        /// The path.
        path: RelPathBuf,
        /// The operating system's answer.
        source: io::Error,
    },
    /// Neither the store nor the workspace can be written.
    #[error("nothing can run: the store cannot be used, and neither can the workspace in its place: {work}")]
    NoStorage {
        /// What is wrong with the workspace.
        work: String,
        /// What is wrong with the store.
        #[source]
        store: Box<Self>,
    },
    /// The workspace's directory.
    #[error("the workspace {path:?} cannot be opened")]
    Root {
        /// The workspace.
        path: PathBuf,
        /// The operating system's answer.
        source: io::Error,
    },
}

impl WorkspaceError {
    /// Returns whether only the cache is at fault, so that a build can go on without it.
    fn is_of_cache(&self) -> bool {
        matches!(self, Self::Store(_) | Self::Index(_) | Self::Manifest(_))
    }
}

impl From<SweepError> for WorkspaceError {
    fn from(error: SweepError) -> Self {
        match error {
            SweepError::Store(error) => Self::Store(error),
            SweepError::Index(error) => Self::Index(error),
        }
    }
}

impl Workspace {
    /// Looks a task up: applies a hit, or opens a view for it to run in.
    ///
    /// Where the same task is running already, waits for it: most likely it leaves a hit.
    ///
    /// # Errors
    /// [`WorkspaceError`].
    pub fn begin(
        &self,
        spec: TaskSpec,
        options: RunOptions,
        progress: ProgressSink<'_>,
    ) -> Result<Begun, WorkspaceError> {
        self.begin_run(spec, options, progress)
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
        run: Run,
        outcome: &Outcome,
        terminal: &[Chunk],
        fault: Option<String>,
        progress: ProgressSink<'_>,
    ) -> Result<FinishReport, WorkspaceError> {
        let ending = finish::Ending { outcome, terminal, progress };
        self.finish_run(run, &ending, fault)
    }

    /// Opens an archive, or returns the one that is open already.
    fn open_archive(&self, id: Uuid) -> Result<Arc<Archive>, ArchiveError> {
        let mut archives = lock(&self.archives);
        if let Some(archive) = archives.get(&id).and_then(Weak::upgrade) {
            return Ok(archive);
        }
        let path = self.store.archive_path(id);
        let file =
            self.store.open_archive(id).map_err(|source| ArchiveError::Io { path: path.clone(), source })?;
        let archive = Arc::new(Archive::open(file, path)?);
        archives.retain(|_, archive| archive.strong_count() > 0);
        archives.insert(id, Arc::downgrade(&archive));
        Ok(archive)
    }

    /// Opens what a claim says; one that cannot be read is as good as none, which leads to a miss.
    fn open_claim(&self, claim: Option<&Claim>) -> Option<Arc<Claimed>> {
        let claim = claim?;
        let path = self.store.path().join("claims").join(claim.manifest.to_string());
        let file = match self.store.open_claim(claim.manifest) {
            Ok(file) => file,
            Err(error) => {
                tracing::warn!(?path, %error, "a claim is missing");
                return None;
            }
        };
        match Manifest::open(file, path) {
            Ok(manifest) => Some(Arc::new(Claimed::new(manifest))),
            Err(error) => {
                tracing::warn!(%error, "a claim is damaged");
                None
            }
        }
    }

    /// Removes archives that nothing refers to; what stays is swept later.
    fn remove_archives(&self, archives: &[Uuid]) {
        for id in archives {
            forgo("remove an archive", self.store.remove_archive(*id));
        }
    }

    fn save_hashes(&self) {
        forgo("save content hashes", self.hashes.save());
    }
}

impl std::fmt::Debug for Workspace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Workspace").field("root", &self.root).finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Puts an error and its causes on one line.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// Goes on without something that only the cache needs.
fn forgo<T>(what: &str, result: Result<T, impl Error>) -> Option<T> {
    result.inspect_err(|error| tracing::warn!(error = chain(error), "could not {what}")).ok()
}

/// Returns the present time in seconds since the epoch.
fn now_secs() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}
