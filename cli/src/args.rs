//! The command line, as documented in `docs/cli.md`.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use vout::serving::Transport;

/// Run build tasks once; have their outputs back at once ever after.
///
/// `vout run` executes a task in a view of the workspace that sees every file it reads and writes, and
/// keeps the outputs in an archive. When nothing it read has changed, the next run takes no time: the
/// outputs are there, and are decompressed only where somebody reads them.
#[derive(Debug, Parser)]
#[command(name = "vout", version, propagate_version = true, arg_required_else_help = true)]
pub(crate) struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Mount the workspace, so that cached outputs appear without being written
    ///
    /// The workspace stays where it is: the mount lies over it, shows its files, and shows the outputs of
    /// cached tasks as if they were there. Returns once the mount serves; mounting twice is fine.
    Mount(MountArgs),
    /// Write out what is still virtual, and unmount the workspace
    Unmount(UnmountArgs),
    /// Run tasks of vout.toml, or any command after `--`, through the cache
    #[command(after_help = RUN_EXAMPLES)]
    Run(Box<RunArgs>),
    /// Show mounts, layers and the size of the store
    Status(StatusArgs),
    /// Explain the last lookup of a task: what was compared, what differed
    Why(WhyArgs),
    /// Look into the cache, or clean it
    #[command(subcommand)]
    Cache(CacheCommand),
    /// Check what this machine offers, and say how to get more
    Doctor,
    /// Runs one task inside its view; started by `vout run`.
    #[command(name = "__view", hide = true)]
    View,
    /// Detaches itself and becomes `vout-mountd`; started by `vout` where no daemon runs.
    #[command(name = "__daemon", hide = true)]
    Daemon(DaemonArgs),
    /// Tries to make a user and a mount namespace; started by `vout doctor`.
    #[command(name = "__probe", hide = true)]
    Probe,
}

const RUN_EXAMPLES: &str = "\
Examples:
  vout run build test                  tasks of vout.toml, and what they depend on
  vout run -- make -j4                 any command; what it reads and writes is found out
  vout run --input auto --input '!**/*.log' --output 'dist/**' -- npm run build";

/// How a mount is served; what is not given comes from the environment, then from `vout.toml`.
#[derive(Debug, Clone, Copy, Default, Args)]
pub(crate) struct ServingArgs {
    /// How requests reach the daemon: `uring`, `dev`, or `auto`, which takes the ring where the kernel has it
    #[arg(long, value_name = "TRANSPORT", value_parser = parse_transport)]
    pub(crate) transport: Option<Transport>,
    /// Let the kernel reach real files directly, where it and the user's rights allow: by default in views
    #[arg(long)]
    pub(crate) passthrough: bool,
    /// Let all content pass through the daemon: by default on the live mount
    #[arg(long, conflicts_with = "passthrough")]
    pub(crate) no_passthrough: bool,
}

fn parse_transport(word: &str) -> Result<Transport, String> {
    Transport::from_word(word).ok_or_else(|| "it can be auto, uring or dev".to_owned())
}

/// Arguments of `vout mount`.
#[derive(Debug, Args)]
pub(crate) struct MountArgs {
    /// The workspace; by default the one around the current directory
    pub(crate) workspace: Option<PathBuf>,
    /// Mount at this directory instead of over the workspace
    #[arg(long, value_name = "DIR")]
    pub(crate) at: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) serving: ServingArgs,
}

/// Arguments of `vout unmount`.
#[derive(Debug, Args)]
pub(crate) struct UnmountArgs {
    /// The workspace; by default the one around the current directory
    pub(crate) workspace: Option<PathBuf>,
    /// Leave out what is still virtual: it stays in the cache
    #[arg(long)]
    pub(crate) discard: bool,
}

/// Arguments of `vout run`.
#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// Tasks of vout.toml
    #[arg(value_name = "TASK", required_unless_present = "adhoc", conflicts_with = "adhoc")]
    pub(crate) tasks: Vec<String>,
    /// A command to run instead, with its arguments
    #[arg(last = true, value_name = "COMMAND", id = "adhoc")]
    pub(crate) command: Vec<OsString>,
    /// What counts as input: a glob, `!glob`, or `auto` (repeatable; default: auto)
    #[arg(long, value_name = "GLOB", conflicts_with = "tasks")]
    pub(crate) input: Vec<String>,
    /// What counts as output: a glob, `!glob`, or `auto` (repeatable; default: auto)
    #[arg(long, value_name = "GLOB", conflicts_with = "tasks")]
    pub(crate) output: Vec<String>,
    /// Pass this variable to the task, and run anew when it changes (repeatable; `*` stands for any characters)
    #[arg(long, value_name = "NAME", conflicts_with = "tasks")]
    pub(crate) env: Vec<String>,
    /// Run in this directory of the workspace
    #[arg(long, value_name = "DIR", conflicts_with = "tasks")]
    pub(crate) cwd: Option<PathBuf>,
    /// Neither look in the cache nor store
    #[arg(long, conflicts_with = "force")]
    pub(crate) no_cache: bool,
    /// Run even if nothing changed, and store the result anew
    #[arg(long)]
    pub(crate) force: bool,
    /// Go on with other tasks when one has failed
    #[arg(long)]
    pub(crate) keep_going: bool,
    /// How many tasks run at once (default: one per CPU)
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) jobs: Option<u16>,
    /// Write what happened to each task into this file, as JSON
    #[arg(long, value_name = "FILE")]
    pub(crate) report: Option<PathBuf>,
    /// Write all that each task looked at and changed into this file, a line of JSON per path
    #[arg(long, value_name = "FILE")]
    pub(crate) recording: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) serving: ServingArgs,
    /// Say nothing but errors
    #[arg(short, long, conflicts_with = "verbose")]
    pub(crate) quiet: bool,
    /// Say more: all reasons for a miss, counts, archives
    #[arg(short, long)]
    pub(crate) verbose: bool,
}

/// Arguments of `vout status`.
#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Arguments of `vout why`.
#[derive(Debug, Args)]
pub(crate) struct WhyArgs {
    /// Name of the task; for an ad hoc run, its command line
    #[arg(required = true, num_args = 1.., allow_hyphen_values = true)]
    pub(crate) task: Vec<String>,
}

/// What to do with the cache.
#[derive(Debug, Subcommand)]
pub(crate) enum CacheCommand {
    /// List what is stored, most recently used first
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show one entry: its inputs, its outputs, its archive
    Show {
        /// Entry id, the beginning of one, or the name of a task
        id: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Remove entries and the archives only they use
    Clean {
        /// Only entries of this task
        task: Option<String>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Print where the store is
    Path,
}

/// Arguments of the hidden `vout __daemon`.
#[derive(Debug, Args)]
pub(crate) struct DaemonArgs {
    /// The program to become.
    pub(crate) program: PathBuf,
    /// Its arguments.
    #[arg(last = true)]
    pub(crate) arguments: Vec<OsString>,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn run(arguments: &[&str]) -> Result<RunArgs, clap::Error> {
        let parsed = Cli::try_parse_from(["vout", "run"].iter().chain(arguments))?;
        match parsed.command {
            Command::Run(run) => Ok(*run),
            other => panic!("not a run: {other:?}"),
        }
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn everything_after_the_dashes_belongs_to_the_command() {
        let args = run(&["--input", "!a/**", "--output", "auto", "--", "make", "--force", "-j4"]).unwrap();
        assert_eq!(args.command, ["make", "--force", "-j4"]);
        assert_eq!((args.input, args.output), (vec!["!a/**".to_owned()], vec!["auto".to_owned()]));
        assert!(!args.force && args.tasks.is_empty());
    }

    #[test]
    fn a_run_needs_a_task_or_a_command_and_not_both() {
        assert!(run(&[]).is_err());
        assert!(run(&["build", "--", "make"]).is_err());
        assert_eq!(run(&["build", "test"]).unwrap().tasks, ["build", "test"]);
    }

    #[test]
    fn contradictions_are_refused() {
        assert!(run(&["--force", "--no-cache", "build"]).is_err());
        assert!(run(&["-q", "-v", "build"]).is_err());
        assert!(run(&["-j0", "build"]).is_err());
    }

    #[test]
    fn options_of_an_ad_hoc_run_need_one() {
        for option in ["--input=a", "--output=a", "--env=A", "--cwd=a"] {
            assert!(run(&[option, "build"]).is_err(), "{option}");
            assert!(run(&[option, "--", "make"]).is_ok(), "{option}");
        }
    }

    #[test]
    fn a_lookup_of_an_ad_hoc_run_is_named_by_its_command_line() {
        let parsed = Cli::try_parse_from(["vout", "why", "make", "-j4"]).unwrap();
        assert!(matches!(parsed.command, Command::Why(why) if why.task == ["make", "-j4"]));
    }

    #[test]
    fn wrong_usage_exits_with_2() {
        assert_eq!(run(&["--nonsense"]).unwrap_err().exit_code(), i32::from(crate::error::EXIT_USAGE));
    }
}
