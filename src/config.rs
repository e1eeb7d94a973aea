//! `vout.toml`: the tasks of a workspace and the limits of its store.
//!
//! Reads text and checks all of it at once: keys, types, globs, names and dependencies. What it returns is
//! consistent. It opens no file, and looks at no environment; the keys are described in
//! `docs/configuration.md`.
//!
//! ```
//! use std::path::Path;
//! use vout::config::Config;
//!
//! let config = Config::parse("[tasks.build]\ncommand = 'make'\n", Path::new("vout.toml"))?;
//! assert_eq!(config.task("build").unwrap().commands.len(), 1);
//!
//! let error = Config::parse("[tasks.build]\ncomand = 'make'\n", Path::new("vout.toml")).unwrap_err();
//! assert_eq!(error.to_string(), r#"vout.toml:2:1: unknown key "comand" in task "build""#);
//! assert_eq!(error.hint.as_deref(), Some(r#"did you mean "command"?"#));
//! # Ok::<(), vout::config::ConfigError>(())
//! ```

mod cache;
mod env;
mod error;
mod mount;
mod nearest;
mod patterns;
mod read;
mod task;

use std::collections::HashMap;
use std::path::Path;

use toml::de::DeTable;

pub use cache::CacheConfig;
pub use env::select_env;
pub use error::{ConfigError, ConfigProblem};
pub(crate) use nearest::nearest;
pub use patterns::parse_cli_filter;
pub use task::TaskConfig;

use crate::graph;
use crate::serving::Wishes;
use read::{Source, Value};

/// Name of the configuration file, in the workspace root.
pub const FILE_NAME: &str = "vout.toml";

/// A configuration.
///
/// - No two tasks have the same name.
/// - Every task that one depends on exists, and no task depends on itself, at whatever distance.
/// - Every pattern compiles.
#[derive(Debug, Clone, Default)]
pub struct Config {
    tasks: Vec<TaskConfig>,
    by_name: HashMap<String, usize>,
    cache: CacheConfig,
    serving: Wishes,
}

impl Config {
    /// Reads the text of a `vout.toml`, which messages call `path_for_messages`.
    ///
    /// # Errors
    /// [`ConfigError`] with the place of the first thing that is wrong.
    pub fn parse(text: &str, path_for_messages: &Path) -> Result<Self, ConfigError> {
        let source = Source { text, path: path_for_messages };
        let document = DeTable::parse(text).map_err(|error| source.syntax_error(&error))?;
        let mut config = Self::default();
        let mut places = Vec::new();
        for entry in source.entries(document.get_ref()) {
            match entry.key {
                "tasks" => places = config.read_tasks(entry)?,
                "cache" => config.cache = CacheConfig::read(entry)?,
                "mount" => config.serving = mount::read(entry)?,
                _ => return Err(entry.unknown_key("the file", &["tasks", "cache", "mount"])),
            }
        }
        config.check_dependencies(source, &places)?;
        Ok(config)
    }

    /// Returns the task called `name`.
    #[must_use]
    pub fn task(&self, name: &str) -> Option<&TaskConfig> {
        self.by_name.get(name).map(|&index| &self.tasks[index])
    }

    /// Returns the tasks in file order.
    pub fn tasks(&self) -> impl ExactSizeIterator<Item = &TaskConfig> {
        self.tasks.iter()
    }

    /// Returns the name of the task that `name` was probably meant for.
    #[must_use]
    pub fn nearest(&self, name: &str) -> Option<&str> {
        nearest(name, self.tasks.iter().map(|task| task.name.as_str()))
    }

    /// Returns the settings of the store.
    #[must_use]
    pub fn cache(&self) -> &CacheConfig {
        &self.cache
    }

    /// Returns how mounts are to be served.
    #[must_use]
    pub fn serving(&self) -> Wishes {
        self.serving
    }

    /// Returns the place of a task in [`Config::tasks`].
    pub(crate) fn index(&self, name: &str) -> Option<usize> {
        self.by_name.get(name).copied()
    }

    /// Returns, for each task, the places of those that it depends on.
    pub(crate) fn dependencies(&self) -> Vec<Vec<usize>> {
        let places = |task: &TaskConfig| task.depends_on.iter().filter_map(|name| self.index(name)).collect();
        self.tasks.iter().map(places).collect()
    }

    /// Reads `[tasks]`; returns, for each task, where its dependencies are named.
    fn read_tasks(&mut self, tables: Value<'_>) -> Result<Vec<Vec<usize>>, ConfigError> {
        let mut places = Vec::new();
        for table in tables.table()? {
            let (task, dependencies) = TaskConfig::read(table)?;
            self.by_name.insert(task.name.clone(), self.tasks.len());
            self.tasks.push(task);
            places.push(dependencies);
        }
        Ok(places)
    }

    /// `places` holds, for each task, where its dependencies are named.
    fn check_dependencies(&self, source: Source<'_>, places: &[Vec<usize>]) -> Result<(), ConfigError> {
        for (task, places) in self.tasks.iter().zip(places) {
            for (dependency, &at) in task.depends_on.iter().zip(places) {
                if self.index(dependency).is_none() {
                    let problem = ConfigProblem::UnknownDependency {
                        task: task.name.clone(),
                        dependency: dependency.clone(),
                    };
                    let hint = self.nearest(dependency).map(|near| format!("did you mean {near:?}?"));
                    return Err(ConfigError { hint, ..source.error(at, problem) });
                }
            }
        }
        let Some(cycle) = graph::find_cycle(&self.dependencies()) else { return Ok(()) };
        let names = || cycle.iter().map(|&task| &self.tasks[task]);
        let tasks: Vec<String> = names().chain(names().take(1)).map(|task| task.name.clone()).collect();
        // The dependency that closes the cycle, as the names in the message do.
        let [.., last, first] = tasks.as_slice() else { return Ok(()) };
        let closing = self.index(last).and_then(|last| {
            let place = self.tasks[last].depends_on.iter().position(|name| name == first)?;
            places[last].get(place).copied()
        });
        Err(source.error(closing.unwrap_or(0), ConfigProblem::Cycle { tasks }))
    }
}

#[cfg(test)]
mod tests;
