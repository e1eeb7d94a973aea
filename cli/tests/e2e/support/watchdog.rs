//! Ends a test that hangs, and clears up after every test.
//!
//! A test that reads through a mount whose daemon is stuck cannot be interrupted from inside. Killing the
//! daemon closes its `/dev/fuse`, which fails every request that waits.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::mount::{UnmountFlags, unmount};
use rustix::process::Signal;

use super::process;

/// Longest a test may take.
const TEST_TIMEOUT: Duration = Duration::from_secs(300);

/// Kills all processes of a directory and unmounts what lies in it, when time is up or when dropped.
#[must_use = "dropping it ends every process of the directory"]
pub(super) struct Watchdog {
    dir: PathBuf,
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Watchdog {
    /// Starts watching over `dir`.
    pub(super) fn start(dir: PathBuf) -> Self {
        let (stop, stopped) = channel();
        let watched = dir.clone();
        let thread = std::thread::spawn(move || {
            if stopped.recv_timeout(TEST_TIMEOUT) == Err(RecvTimeoutError::Timeout) {
                clear(&watched);
            }
        });
        Self { dir, stop: Some(stop), thread: Some(thread) }
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // Where it panicked, `clear` does so again, and says why.
            drop(thread.join());
        }
        clear(&self.dir);
    }
}

fn clear(dir: &Path) {
    for process in process::of_directory(dir) {
        process::signal(process.id, Signal::KILL);
    }
    // Innermost first. Busy ones go once their last user is gone.
    for point in mounts_below(dir).into_iter().rev() {
        unmount(&point, UnmountFlags::DETACH).ok();
    }
}

/// Returns the mount points at or below `dir`, in the order in which they were mounted.
pub(crate) fn mounts_below(dir: &Path) -> Vec<PathBuf> {
    let Ok(table) = fs::read_to_string("/proc/self/mountinfo") else { return Vec::new() };
    table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(|field| PathBuf::from(unescape(field)))
        .filter(|point| point.starts_with(dir))
        .collect()
}

/// Undoes the octal escapes of `/proc/self/mountinfo`.
fn unescape(field: &str) -> OsString {
    let mut bytes = Vec::new();
    let mut rest = field.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let escaped = if first == b'\\' { tail.get(..3) } else { None };
        let code = escaped.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        bytes.push(code.unwrap_or(first));
        rest = if code.is_some() { &tail[3..] } else { tail };
    }
    OsString::from_vec(bytes)
}
