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
        .attempted("find the current directory")
        .map_err(|error| error.hint("if it was unmounted or replaced, `cd .` goes to what is there now"))?;
    std::env::set_current_dir("/").attempted("leave the current directory")?;
    Ok(Surroundings { cwd, env: std::env::vars_os().collect() })
}
