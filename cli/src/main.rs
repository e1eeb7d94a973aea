//! `vout`: a FUSE-backed virtual output filesystem for cached builds, from the command line.
//!
//! A thin client: what a task sees, whether it is a hit and what becomes of its outputs is decided in
//! `vout-mountd`, over [`daemon`]. Here commands are planned and run, and people are talked to.
#![deny(unsafe_code)]

mod args;
mod cache;
mod config;
mod daemon;
mod doctor;
mod error;
mod mount;
mod output;
mod run;
mod status;
mod sys;
mod view;
mod workspace;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

use crate::args::{Cli, Command};
use crate::error::{Attempted, CommandError};
use crate::workspace::Surroundings;

fn main() -> ExitCode {
    // Usage errors exit with 2, help and version with 0, both in here.
    let cli = Cli::parse();
    dispatch(&cli.command).unwrap_or_else(|error| {
        error.print();
        ExitCode::from(error.exit_code())
    })
}

fn dispatch(command: &Command) -> Result<ExitCode, CommandError> {
    match command {
        Command::View => view::main().map(|()| ExitCode::SUCCESS),
        Command::Daemon(args) => Err(daemon::become_daemon(args)),
        Command::Run(args) => run::run(args, &surroundings()?),
        Command::Mount(args) => mount::mount(args, &surroundings()?),
        Command::Unmount(args) => mount::unmount(args, &surroundings()?),
        Command::Status(args) => status::status(args, &surroundings()?),
        Command::Why(args) => status::why(args, &surroundings()?),
        Command::Cache(command) => cache::cache(command, &surroundings()?),
        Command::Doctor => doctor::doctor(&surroundings()?),
        Command::Probe => doctor::probe(),
    }
}

/// Takes what of the process's surroundings the commands depend on.
///
/// Afterwards the current directory is `/`: it may lie in the mount, which we must not keep busy, or in one
/// that is about to be replaced.
fn surroundings() -> Result<Surroundings, CommandError> {
    #[expect(clippy::disallowed_methods, reason = "the one place that asks")]
    let cwd = std::env::current_dir()
        .or_else(|error| detached_directory().ok_or(error))
        .attempted("find the current directory")
        .map_err(|error| error.hint("if it was unmounted or replaced, `cd .` goes to what is there now"))?;
    std::env::set_current_dir("/").attempted("leave the current directory")?;
    Ok(Surroundings { cwd, env: std::env::vars_os().collect() })
}

/// Returns where the caller believes to be, if it stands in a mount that was taken out of the tree: the
/// kernel knows no path of it any more, but the shell remembers the one that was taken.
fn detached_directory() -> Option<PathBuf> {
    let remembered = PathBuf::from(std::env::var_os("PWD")?);
    // From the root of the detached mount on.
    let link = std::fs::read_link("/proc/self/cwd").ok()?;
    let below = link.strip_prefix("/").ok()?;
    // A directory that was removed is shown with a mark, and so is none of that name.
    let fits = remembered.is_absolute() && remembered.is_dir() && remembered.ends_with(below);
    fits.then_some(remembered)
}
