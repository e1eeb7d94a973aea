//! A task, resolved: all that decides what runs and what its cache key is.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use crate::path::RelPathBuf;

/// One command of a task.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum CommandLine {
    /// A program and its arguments, run without a shell. Never empty.
    Direct(Vec<ByteBuf>),
    /// Text for `/bin/sh -c`.
    Shell(String),
}

/// One item of an input or output filter, as written.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum FilterItem {
    /// All that the recording found.
    Auto,
    /// A glob relative to the workspace root.
    Glob {
        /// The pattern, without a leading `!`, already joined with its base.
        pattern: String,
        /// Whether what it matches is left out.
        negative: bool,
    },
}

/// An input or output filter, as written: positives add, negatives take away whatever the order.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct FilterSpec(pub Vec<FilterItem>);

impl Default for FilterSpec {
    /// `[{ auto = true }]`.
    fn default() -> Self {
        Self(vec![FilterItem::Auto])
    }
}

/// How the modification times of restored files are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub enum MtimePolicy {
    /// As if the task had run now: recorded times shifted by one constant.
    #[default]
    Shift,
    /// The recorded times.
    Preserve,
}

/// A variable of the task's environment.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct EnvVar {
    /// Its name.
    pub name: String,
    /// Its value; `None` where it is not set.
    pub value: Option<ByteBuf>,
}

/// A program that a task starts and that lies outside the workspace.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ProgramFile {
    /// The name the task calls it by.
    pub called: String,
    /// Absolute path without symbolic links.
    pub path: PathBuf,
}

/// A task, resolved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskSpec {
    /// Name shown to people, and together with `cwd` the owner of the outputs: the task's name in
    /// `vout.toml`, or the command line of an ad hoc run.
    pub name: String,
    /// The commands, run in order until one fails.
    pub commands: Vec<CommandLine>,
    /// Working directory.
    pub cwd: RelPathBuf,
    /// Declared variables: passed to the task and part of its key. Sorted by name.
    pub env: Vec<EnvVar>,
    /// Programs outside the workspace, part of the key by content, interpreters of scripts included.
    pub programs: Vec<ProgramFile>,
    /// Which of the recorded reads are inputs.
    pub input: FilterSpec,
    /// Which of the recorded writes are outputs.
    pub output: FilterSpec,
    /// Whether the task is cached at all.
    pub cache: bool,
    /// Whether the task starts without its earlier outputs.
    pub clean: bool,
    /// Times of restored files.
    pub mtime: MtimePolicy,
    /// Whether a failing run leaves the workspace untouched.
    pub discard_on_failure: bool,
}
