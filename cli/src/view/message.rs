//! What `vout run` and its runner tell each other over the runner's standard input, a Unix socket.
//!
//! | direction | message |
//! |---|---|
//! | to the runner | [`RunnerSpec`], with a descriptor for the task's standard input where it has one; then [`Control`]… |
//! | from the runner | one [`RunnerEvent`] |
//!
//! The socket's end tells either side that the other is gone.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;
use vout::path::RelPathBuf;
use vout::proto::{Failure, Outcome, ViewId};
use vout::task::CommandLine;

/// What a runner runs, and where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RunnerSpec {
    /// The view to run in; without one the workspace itself.
    pub(crate) view: Option<ViewPlace>,
    /// The workspace, absolute.
    pub(crate) workspace: PathBuf,
    /// Working directory.
    pub(crate) cwd: RelPathBuf,
    /// The commands, run in order until one fails.
    pub(crate) commands: Vec<CommandLine>,
    /// The whole environment.
    pub(crate) env: Vec<(ByteBuf, ByteBuf)>,
    /// Where the commands write.
    pub(crate) terminal: Terminal,
    /// Whose process group the commands join.
    pub(crate) group: Group,
}

/// A view and who serves it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ViewPlace {
    /// The view.
    pub(crate) id: ViewId,
    /// Socket of the daemon.
    pub(crate) socket: PathBuf,
    /// Where it is mounted.
    pub(crate) placement: Placement,
}

/// Where a view is mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Placement {
    /// Over the workspace, in a mount namespace that only the task is in.
    InPlace,
    /// By `fusermount3` at a place of its own, for machines that deny such namespaces.
    Elsewhere,
}

/// Where commands write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Terminal {
    /// To the two terminal files of the view.
    View,
    /// Where the runner's own standard output and error lead.
    Inherit,
}

/// The process group of the commands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Group {
    /// One of their own, which signals are forwarded to.
    Own,
    /// That of `vout`, so that they may read from the terminal, which sends them its signals itself.
    Terminal,
}

/// What the runner is told while the commands run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Control {
    /// Pass this signal on, and start nothing more.
    Signal(i32),
    /// Kill all that is left.
    Kill,
}

/// How it ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum RunnerEvent {
    /// The commands ran, or could not be started for a reason that a shell has an exit code for.
    Ended(Outcome),
    /// This machine denies the namespace that [`Placement::InPlace`] needs. The view is unused: a second
    /// runner, one that has not half-entered a namespace, may try [`Placement::Elsewhere`].
    Denied(Failure),
    /// The view could not be set up.
    Failed(Failure),
}
