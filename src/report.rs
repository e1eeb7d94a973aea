//! What the engine tells about a run, a mount or the cache: plain data for printing and for the wire.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use crate::path::RelPathBuf;
use crate::state::{Dependency, FileKind};

/// Terminal output in bytes beyond which a run is not stored; what exceeds it is not even kept.
pub const TERMINAL_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// A terminal stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// A piece of terminal output, in the order in which it was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chunk {
    /// Where it was written.
    pub stream: Stream,
    /// The bytes.
    pub bytes: ByteBuf,
}

/// One difference between what a cached run saw and the present.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Difference {
    /// The content, mode or kind of an input changed.
    Modified(RelPathBuf),
    /// An input that was there is gone.
    Removed(RelPathBuf),
    /// An input that was missing is there.
    Appeared(RelPathBuf),
    /// A name is new in a directory that was listed.
    AddedIn {
        /// The new name.
        name: ByteBuf,
        /// The directory.
        dir: RelPathBuf,
    },
    /// A name is gone from a directory that was listed.
    RemovedFrom {
        /// The old name.
        name: ByteBuf,
        /// The directory.
        dir: RelPathBuf,
    },
    /// A declared variable has another value, or is newly set or unset.
    Env(String),
    /// The list of declared variables changed.
    EnvDeclaration,
    /// The commands or their arguments changed.
    Command,
    /// The working directory changed.
    Cwd,
    /// A program has other content.
    Program(String),
    /// The input filter changed.
    InputConfig,
    /// The output filter changed.
    OutputConfig,
    /// Another setting of the task changed (`clean`, `mtime`…).
    TaskConfig(String),
}

/// Why a task was not a hit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum MissReason {
    /// Nothing is stored for this task yet.
    NotCached,
    /// It differs from its closest entry; never empty, the most telling first.
    Changed(Vec<Difference>),
    /// `--force` was given.
    Forced,
    /// The archive of the matching entry is missing or damaged.
    BadArchive {
        /// Path of the archive.
        archive: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The store or the index cannot be used.
    Storage(String),
}

/// Why the result of a run was not stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum NotStored {
    /// Caching is off for the task or the run.
    Disabled,
    /// The task failed.
    Failed,
    /// The task was interrupted.
    Interrupted,
    /// A file was changed by somebody else while the task ran.
    InputChanged(RelPathBuf),
    /// Another task committed something this one had looked at.
    Hazard {
        /// The other task.
        other: String,
        /// Which path both touched.
        path: RelPathBuf,
    },
    /// Processes of the task were still running when it ended; their command names.
    Outlived(Vec<String>),
    /// The view ended before the task did.
    SessionDied(String),
    /// An output cannot be archived.
    Unarchivable {
        /// The output.
        path: RelPathBuf,
        /// Why not (a socket, a device…).
        problem: String,
    },
    /// Storing went wrong; the task's result stands.
    Storage(String),
    /// The terminal output exceeded the limit, in bytes.
    TerminalTooLarge(u64),
    /// There was more to remember of what the task depends on than is kept.
    Incomplete(String),
}

/// A hit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HitReport {
    /// Entry that was hit.
    pub entry: uuid::Uuid,
    /// Its archive, where it has outputs.
    pub archive: Option<PathBuf>,
    /// Number of inputs compared.
    pub inputs: u64,
    /// Number of outputs.
    pub outputs: u64,
    /// Bytes of the outputs, uncompressed.
    pub output_bytes: u64,
    /// How long the recorded run took.
    pub recorded_ms: u64,
    /// Whether everything was in place already.
    pub in_place: bool,
    /// Whether outputs are served from the archive rather than written out.
    pub lazy: bool,
}

/// The end of a run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FinishReport {
    /// The new entry, where the run was stored.
    pub entry: Option<uuid::Uuid>,
    /// Its archive, where it has outputs.
    pub archive: Option<PathBuf>,
    /// Number of inputs after filtering.
    pub inputs: u64,
    /// Number of outputs after filtering.
    pub outputs: u64,
    /// Bytes of the outputs, uncompressed.
    pub output_bytes: u64,
    /// Why it was not stored.
    pub not_stored: Option<NotStored>,
    /// Whether the task's writes were committed to the workspace.
    pub committed: bool,
    /// How its view was served, where it had one.
    pub served: Option<ServedReport>,
}

/// How a session was served, and what the kernel asked of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServedReport {
    /// How requests came: `io_uring` or `/dev/fuse`.
    pub over: String,
    /// Why they did not come through the ring, where it was looked for.
    pub why_not_ring: Option<String>,
    /// Whether the kernel read and wrote real files directly.
    pub passthrough: bool,
    /// How often it asked for what: requests by their names in the protocol. Each is a round trip, but for
    /// those that nobody waits for (forgetting, closing).
    pub requests: BTreeMap<String, u64>,
}

/// What a view saw of one path, and what its task made of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordedPath {
    /// The path.
    pub path: RelPathBuf,
    /// What the task looked at there; `None` where it only wrote.
    pub seen: Option<Seen>,
    /// What the task left there; `None` where it changed nothing.
    pub change: Option<Left>,
}

/// What a task looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// Which parts.
    pub dependency: Dependency,
    /// What was there; `None` where nothing was.
    pub kind: Option<FileKind>,
}

/// What a task left at a path that it changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Left {
    /// An object that it made, moved or changed.
    Object(FileKind),
    /// Nothing.
    Nothing,
}

/// Progress of something that may take a while.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// What is being done.
    pub stage: Stage,
    /// Files done.
    pub files_done: u64,
    /// Files in all.
    pub files_total: u64,
    /// Bytes done.
    pub bytes_done: u64,
    /// Bytes in all.
    pub bytes_total: u64,
}

/// What [`Progress`] is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stage {
    /// Writing cached outputs into the workspace.
    Restoring,
    /// Packing outputs into an archive.
    Packing,
    /// Writing virtual files into the workspace before unmounting.
    Materialising,
}

/// State of a workspace's mounts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusReport {
    /// The workspace.
    pub workspace: PathBuf,
    /// The store.
    pub store: PathBuf,
    /// Where the live mount is, if there is one.
    pub mounted_at: Option<PathBuf>,
    /// How the live mount is served.
    pub served: Option<ServedReport>,
    /// Process id of the daemon.
    pub daemon_pid: u32,
    /// Names of the tasks that are running in views.
    pub running: Vec<String>,
    /// Layers of the live mount, newest first.
    pub layers: Vec<LayerStatus>,
    /// Bytes in the store: archives.
    pub archive_bytes: u64,
    /// Bytes in the store: hydrated files.
    pub hydrated_bytes: u64,
    /// Number of entries.
    pub entries: u64,
}

/// One layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerStatus {
    /// Task whose outputs they are.
    pub task: String,
    /// Entry.
    pub entry: uuid::Uuid,
    /// Files served from the archive.
    pub virtual_files: u64,
    /// Their bytes, uncompressed.
    pub virtual_bytes: u64,
    /// Files already decompressed into the blob store.
    pub hydrated_files: u64,
    /// Their bytes.
    pub hydrated_bytes: u64,
}

/// One entry of the cache.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EntryReport {
    /// Its id.
    pub entry: uuid::Uuid,
    /// Task name.
    pub task: String,
    /// Its archive.
    pub archive: Option<PathBuf>,
    /// Size of the archive in bytes.
    pub archive_bytes: u64,
    /// Number of inputs.
    pub inputs: u64,
    /// Number of outputs.
    pub outputs: u64,
    /// Bytes of the outputs, uncompressed.
    pub output_bytes: u64,
    /// When it was stored, in seconds since the epoch.
    pub created: i64,
    /// When it was last hit or stored, in seconds since the epoch.
    pub used: i64,
    /// How long the recorded run took.
    pub recorded_ms: u64,
}

/// One entry of the cache in full.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EntryDetails {
    /// The summary.
    pub summary: EntryReport,
    /// Inputs: path and what was looked at, as text.
    pub inputs: Vec<(RelPathBuf, String)>,
    /// Outputs: path and what it is, as text.
    pub outputs: Vec<(RelPathBuf, String)>,
}

/// The last lookup of a task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WhyReport {
    /// Task name.
    pub task: String,
    /// When the lookup was made, in seconds since the epoch.
    pub when: i64,
    /// The entry that was hit, if it was a hit.
    pub hit: Option<uuid::Uuid>,
    /// Why it was not a hit.
    pub miss: Option<MissReason>,
    /// The entry it was compared with.
    pub closest: Option<uuid::Uuid>,
    /// Number of inputs compared.
    pub inputs: u64,
    /// Why the run after it was not stored.
    pub not_stored: Option<NotStored>,
}
