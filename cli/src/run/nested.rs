//! A `vout run` inside a task: its commands belong to the task around it, and to that one's recording.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Instant;

use vout::proto::VIEW_ENV;

use super::report::{Status, TaskReport};
use super::spec::{Requested, Resolved};
use crate::error::Attempted;
use crate::error::CommandError;
use crate::view::children::{command_of, exit_code_of_signal, explain_start};
use crate::workspace::{Place, Surroundings};

/// Runs `tasks` one after the other until one fails, with our own terminal, daemon and cache left out.
pub(crate) fn run(
    tasks: &[Requested],
    place: &Place,
    surroundings: &Surroundings,
) -> Result<Vec<TaskReport>, CommandError> {
    let mut reports = Vec::new();
    for task in tasks {
        let started = Instant::now();
        let mut resolved = task.resolve(place, surroundings);
        if let Some(view) = surroundings.var(VIEW_ENV) {
            resolved.env.set(VIEW_ENV, view.as_bytes());
        }
        let exit_code = run_commands(&resolved, place)?;
        reports.push(TaskReport {
            status: if exit_code == 0 { Status::Uncached } else { Status::Failed },
            reason: Some("it runs inside another task".to_owned()),
            exit_code: Some(exit_code),
            duration_ms: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
            ..TaskReport::not_run(&task.name, "it runs inside another task")
        });
        if exit_code != 0 {
            break;
        }
    }
    Ok(reports)
}

fn run_commands(task: &Resolved, place: &Place) -> Result<i32, CommandError> {
    let directory = place.directory(&task.spec.cwd);
    for line in &task.spec.commands {
        let env = task.env.all.iter();
        let mut command = command_of(line);
        command
            .current_dir(&directory)
            .env_clear()
            .envs(env.map(|(name, value)| (OsStr::from_bytes(name), OsStr::from_bytes(value))));
        let code = match command.status() {
            Ok(status) => exit_code(status),
            Err(error) => explain_start(command.get_program(), &error, &mut std::io::stderr())
                .attempted("say why a command cannot be started")?,
        };
        if code != 0 {
            return Ok(code);
        }
    }
    Ok(0)
}

fn exit_code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| exit_code_of_signal(status.signal().unwrap_or_default()))
}
