//! Processes: waiting for them within limits, and finding those of a test.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

/// Longest wait for something that takes no time unless it is broken.
const POLL_TIMEOUT: Duration = Duration::from_secs(60);

/// A process that belongs to a test.
#[derive(Debug)]
pub(crate) struct Process {
    /// Its id.
    pub(crate) id: u32,
    /// Its command name, of which the kernel keeps 15 bytes.
    pub(crate) name: String,
}

/// Waits for a child; kills it and fails when it takes longer than `limit`.
pub(crate) fn wait_at_most(child: &mut Child, limit: Duration) -> io::Result<ExitStatus> {
    let pidfd = pidfd_open(pid(child.id()), PidfdFlags::empty())?;
    let limit_spec = Timespec { tv_sec: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX), tv_nsec: 0 };
    let ended = poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&limit_spec))?;
    if ended == 0 {
        child.kill()?;
        child.wait()?;
        return Err(io::Error::new(io::ErrorKind::TimedOut, format!("still running after {limit:?}")));
    }
    child.wait()
}

/// Waits until `condition` holds; panics, naming `what`, when it does not in a minute.
#[track_caller]
pub(crate) fn poll_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + POLL_TIMEOUT;
    while !condition() {
        assert!(Instant::now() < deadline, "waited {POLL_TIMEOUT:?} for {what}");
        pause(Duration::from_millis(5));
    }
}

/// Lets time pass, for tests that are about time.
#[expect(clippy::disallowed_methods, reason = "tests watch other processes, which signal nothing")]
pub(crate) fn pause(time: Duration) {
    std::thread::sleep(time);
}

/// Sends a signal; a process that is gone already is fine.
pub(crate) fn signal(id: u32, signal: Signal) {
    match kill_process(pid(id), signal) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => {}
        Err(error) => panic!("signal {id}: {error}"),
    }
}

/// Returns the processes that have `dir` in their command line or environment, or work below it; zombies
/// and ourselves left out.
pub(crate) fn of_directory(dir: &Path) -> Vec<Process> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .filter_map(Result::ok)
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|&id| id != std::process::id() && mentions(id, dir))
        .filter_map(|id| {
            let name = fs::read_to_string(format!("/proc/{id}/comm")).ok()?.trim_end().to_owned();
            Some(Process { id, name })
        })
        .collect()
}

/// Returns whether a process mentions `dir`. A zombie mentions nothing: its files in `/proc` are empty.
fn mentions(id: u32, dir: &Path) -> bool {
    let needle = dir.as_os_str().as_bytes();
    let contains = |file: &str| {
        fs::read(format!("/proc/{id}/{file}"))
            .is_ok_and(|bytes| bytes.windows(needle.len()).any(|window| window == needle))
    };
    contains("cmdline")
        || contains("environ")
        || fs::read_link(format!("/proc/{id}/cwd")).is_ok_and(|cwd| cwd.starts_with(dir))
}

fn pid(id: u32) -> Pid {
    Pid::from_raw(i32::try_from(id).expect("process ids are positive")).expect("process ids are not zero")
}
