//! What is wrong with a `vout.toml`, and where.

use std::path::PathBuf;

use thiserror::Error;

use crate::filter::FilterError;

/// A `vout.toml` that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{}:{line}:{column}: {problem}", path.display())]
pub struct ConfigError {
    /// The file, as named by the caller.
    pub path: PathBuf,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// What is wrong.
    pub problem: Box<ConfigProblem>,
    /// What to write instead, where that can be told.
    pub hint: Option<String>,
}

/// What is wrong with a configuration.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ConfigProblem {
    /// Not TOML; the parser's words.
    #[error("{0}")]
    Syntax(String),
    /// A key that means nothing where it stands.
    #[error("unknown key {key:?} in {place}")]
    UnknownKey {
        /// The key.
        key: String,
        /// The table it is in.
        place: String,
    },
    /// A value of the wrong type.
    #[error("{key:?} must be {expected}, not {found}")]
    WrongType {
        /// The key.
        key: String,
        /// What is valid, with its article.
        expected: &'static str,
        /// What is there, with its article.
        found: &'static str,
    },
    /// A value that is none of the valid ones.
    #[error("{key:?} cannot be {value:?}: {problem}")]
    BadValue {
        /// The key.
        key: String,
        /// The value.
        value: String,
        /// Why not.
        problem: &'static str,
    },
    /// A name no task can have.
    #[error("{name:?} cannot be the name of a task: {problem}")]
    BadTaskName {
        /// The name.
        name: String,
        /// Why not.
        problem: &'static str,
    },
    /// A task without anything to do.
    #[error("task {task:?} has neither a command nor anything it depends on")]
    NothingToDo {
        /// The task.
        task: String,
    },
    /// A key that another one rules out.
    #[error("{name:?} is in both 'env' and 'untracked_env'")]
    EnvTwice {
        /// The variable.
        name: String,
    },
    /// A pattern that is not a glob, or leads out of the workspace.
    #[error(transparent)]
    Pattern(FilterError),
    /// A dependency that does not exist.
    #[error("task {task:?} depends on {dependency:?}, which is not a task")]
    UnknownDependency {
        /// The task.
        task: String,
        /// What it depends on.
        dependency: String,
    },
    /// Tasks that wait for each other; the first is named again at the end.
    #[error("tasks depend on each other: {}", tasks.join(" -> "))]
    Cycle {
        /// The tasks in order.
        tasks: Vec<String>,
    },
}
