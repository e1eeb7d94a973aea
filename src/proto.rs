//! Messages between `vout` and `vout-mountd`.
//!
//! A connection is a Unix stream socket. Each message is a little-endian `u32` length and that many bytes
//! of `postcard`. Both ends come from the same build: the first message names the version, and any other
//! version is refused with a sentence. File descriptors travel as `SCM_RIGHTS` with the first byte of the
//! message they belong to.
//!
//! | a connection | sends | gets |
//! |---|---|---|
//! | any | [`Request::Hello`] | [`Event::Ready`] |
//! | a task's | [`Request::Begin`] | [`Event::Progress`]…, then [`Event::Hit`] or [`Event::Miss`] |
//! | the same after a miss | [`Request::Output`]… (only where the view carries no terminal), [`Request::TellRecording`] where it is wanted, [`Request::Finish`] | [`Event::Output`]…, [`Event::Recorded`]…, [`Event::Progress`]…, [`Event::Finished`] |
//! | the runner's | [`Request::Serve`] with the `/dev/fuse` descriptor | [`Event::Ready`] once the view is served |
//! | any other | a request | [`Event::Progress`]…, then its answer |
//!
//! Closing a task's connection before [`Event::Finished`] abandons the run: its view is aborted, its
//! writes are discarded.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::report::{
    Chunk, EntryDetails, EntryReport, FinishReport, HitReport, MissReason, Progress, RecordedPath,
    StatusReport, WhyReport,
};
use crate::serving::Serving;
use crate::task::TaskSpec;

/// Version both ends must share.
pub const PROTOCOL_VERSION: &str = concat!("vout ", env!("CARGO_PKG_VERSION"), " protocol 3");

/// Longest message in bytes; a longer one is a protocol error.
pub const MESSAGE_BYTES_MAX: u32 = 256 * 1024 * 1024;

/// Name, in the root of a view, of the task's standard output while the view is being set up.
///
/// Writing to a file of the view keeps the order between the two streams exact, which two pipes cannot.
pub const VIEW_STDOUT: &str = ".vout-stdout";

/// Like [`VIEW_STDOUT`], for standard error.
pub const VIEW_STDERR: &str = ".vout-stderr";

/// Environment variable that marks processes inside a view; its value is the view's id.
pub const VIEW_ENV: &str = "VOUT_VIEW";

/// A running view.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ViewId(pub uuid::Uuid);

/// How a run uses the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum CacheMode {
    /// Look up, and store on a miss.
    ReadWrite,
    /// Do not look up, but store (`--force`).
    Refresh,
    /// Neither (`--no-cache`).
    Off,
}

/// How a task's commands ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// Exit code as a shell gives it: 128+N for signal N.
    pub exit_code: i32,
    /// Whether the run was cut short from outside (Ctrl-C, SIGTERM).
    pub interrupted: bool,
    /// Command names of processes that were still running.
    pub outlived: Vec<String>,
    /// Wall time of the commands.
    pub duration_ms: u64,
}

/// What a client asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Opens the conversation.
    Hello {
        /// [`PROTOCOL_VERSION`] of the client.
        version: String,
    },
    /// Looks a task up.
    Begin {
        /// The task.
        spec: Box<TaskSpec>,
        /// How to use the cache.
        cache: CacheMode,
        /// How its view is served, if it gets one.
        serving: Serving,
    },
    /// Serves a view on the descriptor that comes along.
    Serve {
        /// The view of an [`Event::Miss`].
        view: ViewId,
    },
    /// The runner has opened its terminal files; from now on the view hides them.
    Started {
        /// The view.
        view: ViewId,
    },
    /// Terminal output of a task whose view carries none.
    Output(Chunk),
    /// Has all that the view saw told once the task has ended.
    TellRecording,
    /// The task has ended.
    Finish(Outcome),
    /// Mounts the workspace.
    Mount {
        /// Where, if not over the workspace itself.
        at: Option<PathBuf>,
        /// How it is served.
        serving: Serving,
    },
    /// Unmounts the workspace.
    Unmount {
        /// Leave out what is still virtual.
        discard: bool,
    },
    /// Asks for [`Event::Status`].
    Status,
    /// Asks for [`Event::Why`].
    Why {
        /// Task name.
        task: String,
    },
    /// Asks for [`Event::Entries`].
    CacheList,
    /// Asks for [`Event::Entry`].
    CacheShow {
        /// Entry id or an unambiguous beginning of it, or a task name.
        id: String,
    },
    /// Removes entries and everything only they used.
    CacheClean {
        /// Only of this task.
        task: Option<String>,
    },
    /// Asks the daemon to end once nothing is mounted.
    Shutdown,
}

/// What the daemon answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// Done.
    Ready,
    /// Something takes a while.
    Progress(Progress),
    /// The task was a hit; its outputs are in place, and this is its terminal output.
    Hit {
        /// What was hit.
        report: HitReport,
        /// Terminal output to replay.
        terminal: Vec<Chunk>,
    },
    /// The task must run.
    Miss {
        /// The view it runs in; `None` where this machine has no FUSE, and it runs in the workspace.
        view: Option<ViewId>,
        /// Why.
        reason: MissReason,
    },
    /// Terminal output of the running task.
    Output(Chunk),
    /// A part of what the view saw, for [`Request::TellRecording`]; paths come in order.
    Recorded(Vec<RecordedPath>),
    /// The run is over.
    Finished(FinishReport),
    /// Answer to [`Request::Mount`].
    Mounted {
        /// Where.
        at: PathBuf,
        /// Whether it was mounted before.
        already: bool,
    },
    /// Answer to [`Request::Unmount`].
    Unmounted {
        /// Files written out.
        files: u64,
        /// Their bytes.
        bytes: u64,
        /// Files left out.
        discarded_files: u64,
        /// Whether those who started the client still stand in what was mounted, and are served there until
        /// they leave.
        standing: bool,
    },
    /// The mount is in use.
    Busy {
        /// Process ids and command names.
        holders: Vec<(u32, String)>,
    },
    /// Answer to [`Request::Status`].
    Status(Box<StatusReport>),
    /// Answer to [`Request::Why`]; `None` where the task was never looked up.
    Why(Option<Box<WhyReport>>),
    /// Answer to [`Request::CacheList`].
    Entries(Vec<EntryReport>),
    /// Answer to [`Request::CacheShow`].
    Entry(Option<Box<EntryDetails>>),
    /// Answer to [`Request::CacheClean`].
    Cleaned {
        /// Entries removed.
        entries: u64,
        /// Bytes freed.
        bytes: u64,
    },
    /// The request failed.
    Failed(Failure),
}

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Whose fault it is.
    pub kind: FailureKind,
    /// What is wrong: the chain of causes, outermost first.
    pub causes: Vec<String>,
    /// What to do about it.
    pub hints: Vec<String>,
}

/// Whose fault a failure is; decides the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureKind {
    /// The request cannot be met as it stands.
    User,
    /// The configuration or the store is unusable.
    Config,
    /// A fault of ours or of the machine.
    Internal,
}
