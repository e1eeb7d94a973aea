//! From what a person asks for to a [`TaskSpec`]: configuration, options and surroundings put together.

use std::path::Path;

use vout::command;
use vout::config::{Config, TaskConfig, parse_cli_filter};
use vout::graph::Plan;
use vout::path::RelPathBuf;
use vout::task::{CommandLine, FilterSpec, MtimePolicy, TaskSpec};

use super::env::TaskEnv;
use super::programs::ProgramSearch;
use crate::args::RunArgs;
use crate::error::CommandError;
use crate::workspace::{CONFIG_FILE, Place, Surroundings};

/// A task as it is asked for, before anything is looked up on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Requested {
    /// Name shown to people.
    pub(crate) name: String,
    commands: Vec<CommandLine>,
    cwd: RelPathBuf,
    env: Vec<String>,
    untracked_env: Vec<String>,
    input: FilterSpec,
    output: FilterSpec,
    cache: bool,
    clean: bool,
    mtime: MtimePolicy,
    discard_on_failure: bool,
}

/// A task ready to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Resolved {
    /// What decides hit or miss.
    pub(crate) spec: TaskSpec,
    /// What the task sees.
    pub(crate) env: TaskEnv,
}

/// The tasks of a run, each with the places of those that it waits for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Tasks {
    /// Dependencies first.
    pub(crate) tasks: Vec<Requested>,
    /// Which of them each waits for.
    pub(crate) waits_for: Vec<Vec<usize>>,
}

impl Tasks {
    /// Finds what `args` asks for.
    pub(crate) fn requested(
        args: &RunArgs,
        config: Option<&Config>,
        place: &Place,
        surroundings: &Surroundings,
    ) -> Result<Self, CommandError> {
        if !args.command.is_empty() {
            let task = Requested::ad_hoc(args, place, surroundings)?;
            return Ok(Self { tasks: vec![task], waits_for: vec![Vec::new()] });
        }
        let config = config.ok_or_else(|| {
            CommandError::config(format_args!("no {CONFIG_FILE} in {:?}", place.root))
                .hint("tasks are defined there; `vout run -- COMMAND` needs none")
        })?;
        let plan = Plan::new(config, &args.tasks).map_err(|error| {
            let described = CommandError::usage(&error);
            match error.hint() {
                Some(hint) => described.hint(hint),
                None => described,
            }
        })?;
        let (tasks, waits_for) =
            plan.steps.into_iter().map(|step| (Requested::configured(step.task), step.waits_for)).unzip();
        Ok(Self { tasks, waits_for })
    }
}

impl Requested {
    fn configured(task: &TaskConfig) -> Self {
        let (input, output) = task.filters();
        Self {
            name: task.name.clone(),
            commands: task.commands.clone(),
            cwd: task.cwd.clone(),
            env: task.env.clone(),
            untracked_env: task.untracked_env.clone(),
            input,
            output,
            cache: task.cache,
            clean: task.clean,
            mtime: task.mtime,
            discard_on_failure: task.discard_on_failure,
        }
    }

    fn ad_hoc(args: &RunArgs, place: &Place, surroundings: &Surroundings) -> Result<Self, CommandError> {
        let cwd = place.relative(&surroundings.cwd, args.cwd.as_deref().unwrap_or(Path::new("")))?;
        let command = CommandLine::from_args(&args.command)
            .ok_or_else(|| CommandError::usage("the command is empty"))?;
        let filter = |option: &str, items: &[String]| {
            parse_cli_filter(items, &cwd).map_err(|error| {
                let described = CommandError::usage(format_args!("{option} is no filter")).caused_by(&error);
                match error.hint() {
                    Some(hint) => described.hint(hint),
                    None => described,
                }
            })
        };
        Ok(Self {
            name: command::display(&command),
            input: filter("--input", &args.input)?,
            output: filter("--output", &args.output)?,
            commands: vec![command],
            cwd,
            env: args.env.clone(),
            untracked_env: Vec::new(),
            cache: true,
            clean: false,
            mtime: MtimePolicy::default(),
            discard_on_failure: false,
        })
    }

    /// Looks up what the task's surroundings decide. To be called when its turn has come: what it waits for
    /// may have made its programs.
    pub(crate) fn resolve(&self, place: &Place, surroundings: &Surroundings) -> Resolved {
        let directory = place.directory(&self.cwd);
        let env = TaskEnv::select(surroundings, &self.env, &self.untracked_env, &directory);
        let search = ProgramSearch { path: env.get("PATH"), directory: &directory, workspace: &place.root };
        let words: Vec<String> = self.commands.iter().flat_map(words).collect();
        let programs = search.programs(&words);
        let spec = TaskSpec {
            name: self.name.clone(),
            commands: self.commands.clone(),
            cwd: self.cwd.clone(),
            env: env.tracked.clone(),
            programs,
            input: self.input.clone(),
            output: self.output.clone(),
            cache: self.cache,
            clean: self.clean,
            mtime: self.mtime,
            discard_on_failure: self.discard_on_failure,
        };
        Resolved { spec, env }
    }
}

/// Returns the programs that a command names, the shell included where it needs one.
fn words(line: &CommandLine) -> Vec<String> {
    let mut words = command::program_words(line);
    if matches!(line, CommandLine::Shell(_)) {
        words.insert(0, command::SHELL.to_owned());
    }
    words
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use vout::serving::Wishes;

    use super::*;
    use crate::args::{Cli, Command};
    use crate::workspace::resolve;

    type TestResult = Result<(), Box<dyn std::error::Error>>;

    fn requested(root: &Path, config: &str, line: &[&str]) -> Result<Tasks, CommandError> {
        let Command::Run(args) = Cli::try_parse_from(["vout", "run"].iter().chain(line)).unwrap().command
        else {
            panic!("not a run")
        };
        let config = Config::parse(config, Path::new(CONFIG_FILE)).unwrap();
        Tasks::requested(&args, Some(&config), &place(root), &surroundings(root))
    }

    fn surroundings(root: &Path) -> Surroundings {
        let env = vec![("PATH".into(), "/usr/bin:/bin".into()), ("CC".into(), "gcc".into())];
        Surroundings { cwd: root.join("sub"), env }
    }

    fn place(root: &Path) -> Place {
        let store = root.join(".vout");
        let runtime = vout::runtime::RuntimePaths::new(root, root, &store).unwrap();
        Place {
            root: root.to_owned(),
            store,
            limits: vout::limits::Limits::default(),
            serving: Wishes::default(),
            runtime,
        }
    }

    fn workspace() -> Result<(tempfile::TempDir, std::path::PathBuf), std::io::Error> {
        let dir = tempfile::tempdir()?;
        std::fs::create_dir(dir.path().join("sub"))?;
        let root = resolve(dir.path())?;
        Ok((dir, root))
    }

    #[test]
    fn an_ad_hoc_command_runs_where_it_was_called_and_is_named_by_its_text() -> TestResult {
        let (_dir, root) = workspace()?;
        let tasks = requested(&root, "", &["--env", "CC", "--output", "out/**", "--", "cc", "a b.c"])?;
        let task = tasks.tasks[0].resolve(&place(&root), &surroundings(&root)).spec;
        assert_eq!((task.name.as_str(), task.cwd.to_string().as_str()), ("cc 'a b.c'", "sub"));
        assert_eq!(task.env[0].value.as_deref().map(Vec::as_slice), Some(b"gcc".as_slice()));
        let pattern = vout::task::FilterItem::Glob { pattern: "sub/out/**".into(), negative: false };
        assert_eq!(task.output.0, [pattern]);
        Ok(())
    }

    #[test]
    fn a_shell_is_one_of_the_programs() -> TestResult {
        let (_dir, root) = workspace()?;
        let tasks = requested(&root, "", &["--", "true | cat"])?;
        let resolved = tasks.tasks[0].resolve(&place(&root), &surroundings(&root));
        assert_eq!(resolved.spec.programs[0].called, "/bin/sh");
        assert_eq!(resolved.env.get("PWD"), Some(root.join("sub").as_os_str()));
        Ok(())
    }

    #[test]
    fn tasks_come_with_what_they_depend_on() -> TestResult {
        let (_dir, root) = workspace()?;
        let config = "[tasks.test]\ncommand = 't'\ndepends_on = ['build']\n[tasks.build]\ncommand = 'b'\n";
        let tasks = requested(&root, config, &["test"])?;
        let names: Vec<_> = tasks.tasks.iter().map(|task| task.name.as_str()).collect();
        assert_eq!((names, tasks.waits_for), (vec!["build", "test"], vec![vec![], vec![0]]));
        Ok(())
    }

    #[test]
    fn unknown_tasks_and_bad_globs_are_usage_errors() -> TestResult {
        let (_dir, root) = workspace()?;
        let error = requested(&root, "[tasks.build]\ncommand = 'b'\n", &["biuld"]).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("build"), "{error}");
        let error = requested(&root, "", &["--input", "a{", "--", "make"]).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        Ok(())
    }
}
