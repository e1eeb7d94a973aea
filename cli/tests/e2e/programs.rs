//! Programs of several processes: what they see in a view and on the live mount is what they see on the disk itself.
//!
//! The programs are the scenarios of `programs/programs.c`. `scripts/suites/tools` runs the same with larger numbers.

use std::path::Path;
use std::process::Command;

use crate::support::{Mode, TestResult, Workspace, compile_c};

/// Chooses whether the kernel reads and writes the files itself.
const PASSTHROUGH: &str = "VOUT_PASSTHROUGH";

/// Runs a scenario in `directory` with `command` in front, and returns what it printed.
fn printed(mut command: Command, directory: &Path) -> Result<String, Box<dyn std::error::Error>> {
    let output = command.current_dir(directory).output()?;
    let text = String::from_utf8(output.stdout)?;
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}\n{text}\n{complaints}", output.status);
    Ok(text)
}

/// Runs a scenario on the disk itself, and everywhere else where it has to print the same.
#[track_caller]
fn same_everywhere(scenario: &str, count: u32) -> TestResult {
    let mut ws = Workspace::new(Mode::Unmounted)?.config("")?;
    let program = ws.outside().join("programs");
    compile_c(include_str!("programs/programs.c"), &program, &[])?;
    let count = count.to_string();
    let native = ws.outside().join("native");
    std::fs::create_dir(&native)?;
    let directly = || {
        let mut command = Command::new("timeout");
        command.arg("60").arg(&program).args([scenario, &count]);
        command
    };
    let expected = printed(directly(), &native)?;
    for passthrough in ["1", "0"] {
        ws.variable(PASSTHROUGH, passthrough);
        let mut task = ws.vout_command(["run", "--quiet", "--no-cache", "--", "timeout", "60"]);
        task.arg(&program).args([scenario, &count]);
        assert_eq!(printed(task, ws.root())?, expected, "in a view, passthrough: {passthrough}");
        let below = ws.path("live");
        std::fs::create_dir_all(&below)?;
        ws.mount()?;
        assert_eq!(printed(directly(), &below)?, expected, "on the live mount, passthrough: {passthrough}");
        ws.vout(["unmount"])?.ok();
    }
    Ok(())
}

/// `flock`, POSIX and OFD locks exclude other processes, and go with the process that holds them.
#[test]
fn locks_are_kept_between_processes() -> TestResult {
    same_everywhere("locks", 1)
}

#[test]
fn eight_processes_append_whole_records() -> TestResult {
    same_everywhere("append", 200)
}

/// Goal: mappings of several processes, `read` and `write` show one content, also while others write.
#[test]
fn shared_mappings_are_one_with_the_file() -> TestResult {
    same_everywhere("mapped", 2000)
}

/// Goal: what was just written runs; what runs is not written, nor cut by an open for reading with `O_TRUNC`,
/// which the kernel refuses only after it has asked us.
#[test]
fn what_runs_is_not_written_and_what_is_written_runs() -> TestResult {
    same_everywhere("execute", 5)
}

#[test]
fn pipes_and_sockets_with_names_connect_processes() -> TestResult {
    same_everywhere("pipes", 1)
}

#[test]
fn a_directory_is_read_by_positions_while_it_changes() -> TestResult {
    same_everywhere("directory", 1000)
}

/// Also: a name of 256 bytes is too long, rather than absent.
#[test]
fn paths_may_be_longer_than_the_kernel_takes_at_once() -> TestResult {
    same_everywhere("deep", 20)
}

#[test]
fn files_may_be_larger_than_four_gigabytes_and_mostly_holes() -> TestResult {
    same_everywhere("sparse", 5)
}

#[test]
fn files_without_a_name_are_named_later() -> TestResult {
    same_everywhere("unnamed", 1)
}

#[test]
fn times_umask_and_setgid_directories_are_as_on_the_disk() -> TestResult {
    same_everywhere("times", 1)
}
