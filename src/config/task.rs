//! A `[tasks.NAME]` table.

use super::error::{ConfigError, ConfigProblem};
use super::read::Value;
use super::{env, patterns};
use crate::path::{RelPath, RelPathBuf};
use crate::task::{CommandLine, FilterSpec, MtimePolicy};

const KEYS: &[&str] = &[
    "command",
    "cwd",
    "depends_on",
    "env",
    "untracked_env",
    "input",
    "output",
    "cache",
    "clean",
    "mtime",
    "discard_on_failure",
];

/// A task as configured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskConfig {
    /// Its name.
    pub name: String,
    /// Commands, run in order until one fails. Empty for a task that only names what it depends on.
    pub commands: Vec<CommandLine>,
    /// Working directory.
    pub cwd: RelPathBuf,
    /// Names of the tasks that must have run before, as written. They exist, and there is no cycle.
    pub depends_on: Vec<String>,
    /// Variables that the task gets and that are part of its key; see [`super::select_env`].
    pub env: Vec<String>,
    /// Variables that the task gets and that are not part of its key.
    pub untracked_env: Vec<String>,
    /// Which of the recorded reads are inputs; patterns are relative to the workspace root.
    pub input: FilterSpec,
    /// Which of the recorded writes are outputs; patterns are relative to the workspace root.
    pub output: FilterSpec,
    /// Whether the task is cached.
    pub cache: bool,
    /// Whether the task starts without its earlier outputs.
    pub clean: bool,
    /// Times of restored files.
    pub mtime: MtimePolicy,
    /// Whether a failing run leaves the workspace untouched.
    pub discard_on_failure: bool,
}

impl TaskConfig {
    /// Returns the input and the output filter.
    #[must_use]
    pub fn filters(&self) -> (FilterSpec, FilterSpec) {
        (self.input.clone(), self.output.clone())
    }

    /// Reads the task under `table`, and where each of its dependencies is named.
    pub(super) fn read(table: Value<'_>) -> Result<(Self, Vec<usize>), ConfigError> {
        check_name(table)?;
        let mut task = Self {
            name: table.key.to_owned(),
            commands: Vec::new(),
            cwd: RelPathBuf::root(),
            depends_on: Vec::new(),
            env: Vec::new(),
            untracked_env: Vec::new(),
            input: FilterSpec::default(),
            output: FilterSpec::default(),
            cache: true,
            clean: false,
            mtime: MtimePolicy::default(),
            discard_on_failure: false,
        };
        let mut places = Vec::new();
        let entries = table.table()?;
        // Patterns are relative to the working directory, wherever that stands in the table.
        if let Some(cwd) = entries.iter().find(|entry| entry.key == "cwd") {
            task.cwd = read_cwd(*cwd)?;
        }
        for entry in entries {
            match entry.key {
                "command" => task.commands = read_commands(entry)?,
                "cwd" => {}
                "depends_on" => (task.depends_on, places) = read_dependencies(entry)?,
                "env" => {
                    task.env = env::read(entry)?;
                    env::check_disjoint(&task.env, &task.untracked_env, entry)?;
                }
                "untracked_env" => {
                    task.untracked_env = env::read(entry)?;
                    env::check_disjoint(&task.env, &task.untracked_env, entry)?;
                }
                "input" => task.input = patterns::read(entry, &task.cwd)?,
                "output" => task.output = patterns::read(entry, &task.cwd)?,
                "cache" => task.cache = entry.boolean()?,
                "clean" => task.clean = entry.boolean()?,
                "mtime" => {
                    task.mtime = entry
                        .choice(&[("shift", MtimePolicy::Shift), ("preserve", MtimePolicy::Preserve)])?;
                }
                "discard_on_failure" => task.discard_on_failure = entry.boolean()?,
                _ => return Err(entry.unknown_key(&format!("task {:?}", task.name), KEYS)),
            }
        }
        if task.commands.is_empty() && task.depends_on.is_empty() {
            let hint = Some("add command = \"…\"".to_owned());
            let problem = ConfigProblem::NothingToDo { task: task.name };
            return Err(ConfigError { hint, ..table.key_error(problem) });
        }
        Ok((task, places))
    }
}

fn check_name(table: Value<'_>) -> Result<(), ConfigError> {
    let name = table.key;
    let problem = if name.is_empty() {
        "it is empty"
    } else if name.starts_with('-') {
        "it would be taken for an option"
    } else if name.contains(char::is_control) {
        "it has control characters"
    } else if name.trim() != name {
        "it starts or ends with a space"
    } else {
        return Ok(());
    };
    Err(table.key_error(ConfigProblem::BadTaskName { name: name.to_owned(), problem }))
}

fn read_commands(value: Value<'_>) -> Result<Vec<CommandLine>, ConfigError> {
    let expected = "a string or an array of strings";
    let Some(items) = value.as_array() else {
        let text = value.as_str().ok_or_else(|| value.wrong_type(expected))?;
        return Ok(vec![read_command(value, text)?]);
    };
    if items.is_empty() {
        return Err(value.bad_value("[]", "there is nothing to run"));
    }
    items
        .into_iter()
        .map(|item| read_command(item, item.as_str().ok_or_else(|| item.wrong_type(expected))?))
        .collect()
}

fn read_command(value: Value<'_>, text: &str) -> Result<CommandLine, ConfigError> {
    if text.trim().is_empty() {
        return Err(value.bad_value(text, "there is nothing to run"));
    }
    if text.contains('\0') {
        return Err(value.bad_value(text, "a command has no NUL character"));
    }
    Ok(CommandLine::parse(text))
}

fn read_dependencies(value: Value<'_>) -> Result<(Vec<String>, Vec<usize>), ConfigError> {
    let items = value.array("an array of task names")?;
    items.into_iter().map(|item| Ok((item.string()?.to_owned(), item.span().start))).collect()
}

fn read_cwd(value: Value<'_>) -> Result<RelPathBuf, ConfigError> {
    let text = value.string()?;
    if text.is_empty() {
        return Err(value.bad_value(text, "write \".\" for the workspace root"));
    }
    if text.starts_with('/') {
        return Err(value.bad_value(text, "it is relative to the workspace root"));
    }
    let mut names: Vec<&str> = Vec::new();
    for name in text.split('/') {
        match name {
            "" | "." => {}
            ".." if names.pop().is_none() => {
                return Err(value.bad_value(text, "it leads out of the workspace"));
            }
            ".." => {}
            _ => names.push(name),
        }
    }
    RelPath::new(&names.join("/")).map(ToOwned::to_owned).map_err(|error| value.bad_value(text, error.reason))
}
