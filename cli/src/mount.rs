//! `vout mount` and `vout unmount`.

use std::path::Path;
use std::process::ExitCode;

use vout::proto::{Event, Request};

use crate::args::{MountArgs, UnmountArgs};
use crate::config;
use crate::daemon::{Connection, unexpected};
use crate::error::CommandError;
use crate::output::{self, ProgressDisplay};
use crate::workspace::Surroundings;

/// Mounts a workspace.
pub(crate) fn mount(args: &MountArgs, surroundings: &Surroundings) -> Result<ExitCode, CommandError> {
    let place = config::place(surroundings, args.workspace.as_deref())?;
    let serving = config::serving(args.serving, surroundings, place.serving)?.for_live_mount();
    let at = args.at.as_deref().map(|at| surroundings.cwd.join(at));
    match Connection::open(&place)?.ask(&Request::Mount { at, serving })? {
        Event::Mounted { at, already } => {
            let already = if already { " already" } else { "" };
            output::note(format!("{} is{already} mounted at {}", place.root.display(), at.display()));
            // A process keeps the directory it is in, which lies below the mount, not in it.
            if !already.is_empty() || !is_inside(&surroundings.cwd, &at) {
                return Ok(ExitCode::SUCCESS);
            }
            output::note("your shell still stands in the directory below: run `cd .` to enter the mount");
            Ok(ExitCode::SUCCESS)
        }
        other => Err(unexpected(&other)),
    }
}

/// Unmounts a workspace.
pub(crate) fn unmount(args: &UnmountArgs, surroundings: &Surroundings) -> Result<ExitCode, CommandError> {
    let place = config::place(surroundings, args.workspace.as_deref())?;
    let connection = match Connection::existing(&place)? {
        Some(connection) => connection,
        // A daemon that was killed may have left layers that are still to be written out.
        None if place.store.is_dir() => Connection::open(&place)?,
        None => {
            output::note(format!("{} is not mounted", place.root.display()));
            return Ok(ExitCode::SUCCESS);
        }
    };
    connection.send(&Request::Unmount { discard: args.discard })?;
    let mut display = ProgressDisplay::bar_or_lines();
    let answer = connection.receive_past_progress(|progress| display.update(progress));
    display.finish();
    match answer? {
        Event::Unmounted { files, bytes, discarded_files, standing } => {
            let mut line = format!("{} is unmounted", place.root.display());
            if files > 0 {
                line += &format!(": {} ({}) written", output::count(files, "file"), output::bytes(bytes));
            }
            if discarded_files > 0 {
                line += &format!(", {} left in the cache", output::count(discarded_files, "file"));
            }
            output::note(line);
            if standing {
                output::note("your shell still stands in the old mount: run `cd .`");
            }
            Ok(ExitCode::SUCCESS)
        }
        Event::Busy { holders } => Err(busy(&place.root, &holders)),
        other => Err(unexpected(&other)),
    }
}

fn busy(root: &Path, holders: &[(u32, String)]) -> CommandError {
    let mut error = CommandError::user(format_args!("{} is in use", root.display()));
    error.causes.extend(holders.iter().map(|(pid, name)| format!("process {pid} ({name})")));
    error.hint("end these processes, or have them leave the directory, and try again")
}

fn is_inside(cwd: &Path, mount: &Path) -> bool {
    cwd.starts_with(mount)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_holds_a_mount_is_named() {
        let error = busy(Path::new("/w"), &[(12, "bash".into()), (13, "vim".into())]);
        assert_eq!(error.exit_code(), 1);
        assert!(error.to_string().contains("process 12 (bash)\n"), "{error}");
    }

    #[test]
    fn a_directory_with_the_same_beginning_is_not_inside() {
        assert!(is_inside(Path::new("/w/a"), Path::new("/w")));
        assert!(!is_inside(Path::new("/w2"), Path::new("/w")));
    }
}
