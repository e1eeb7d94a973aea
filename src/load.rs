//! What the machine has to spare for work that nobody waits for: processors and room on the disk.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::available_parallelism;
use std::time::Duration;

use crate::fs::FsStats;

/// What the kernel says about load; the fourth field is `RUNNING/ALL`, in threads of the whole machine.
const LOAD_PATH: &str = "/proc/loadavg";

/// Between two looks for a processor with nothing to do.
const BUSY_PAUSE_MIN: Duration = Duration::from_millis(1);
const BUSY_PAUSE_MAX: Duration = Duration::from_millis(20);

/// Others need the disk more than we do: so much of it is left to them.
const ROOM_BYTES_MIN: u64 = 1 << 30;

/// Steps back for whoever shares the processor. Not as far as one can: what was begun is also to be finished.
const NICE: i32 = 10;

/// Tells when a processor is idle.
///
/// # Limitations
/// It counts the threads that want to run, of the whole machine: where the process may use only some of the
/// processors, it says no more often than it had to.
#[derive(Debug)]
pub(crate) struct IdleProcessor {
    load: File,
    processors: usize,
}

impl IdleProcessor {
    /// `None` where that cannot be told.
    pub(crate) fn new() -> Option<Self> {
        Some(Self { load: File::open(LOAD_PATH).ok()?, processors: available_parallelism().ok()?.get() })
    }

    /// Returns whether there is a processor for each thread that wants to run, the calling one included.
    pub(crate) fn is_there(&self) -> bool {
        let mut text = [0; 64];
        let size = self.load.read_at(&mut text, 0).unwrap_or(0);
        running(&text[..size]).is_some_and(|running| running <= self.processors)
    }

    /// Waits for an idle processor. `is_over_after` waits for as long as it is told, or until it is over, and returns
    /// whether it is; so does this.
    pub(crate) fn is_over_before(&self, is_over_after: impl Fn(Duration) -> bool) -> bool {
        let mut pause = BUSY_PAUSE_MIN;
        while !self.is_there() {
            if is_over_after(pause) {
                return true;
            }
            pause = (2 * pause).min(BUSY_PAUSE_MAX);
        }
        false
    }
}

/// Returns whether `bytes` more on the file system of `file` leave enough of it to others.
pub(crate) fn has_room(file: impl AsFd, bytes: u64) -> io::Result<bool> {
    let stats = FsStats::of(&rustix::fs::fstatvfs(file)?);
    let available = stats.blocks_available.saturating_mul(u64::from(stats.block_size_bytes));
    Ok(available.saturating_sub(bytes) >= ROOM_BYTES_MIN)
}

/// Threads of this process that work while a processor is idle.
static WORKING: AtomicU32 = AtomicU32::new(0);

/// Returns how many threads of this process are at work that nobody waits for, and that is done while a processor is
/// idle only.
#[must_use]
pub fn working_ahead() -> u32 {
    WORKING.load(Ordering::Relaxed)
}

/// The calling thread does such work, until this is dropped.
#[derive(Debug)]
pub(crate) struct Working;

/// The calling thread, which does such work, waits, until this is dropped.
#[derive(Debug)]
pub(crate) struct Asleep;

impl Working {
    /// `None` where the thread cannot step back for others.
    pub(crate) fn begin() -> Option<Self> {
        rustix::process::nice(NICE).ok()?;
        WORKING.fetch_add(1, Ordering::Relaxed);
        Some(Self)
    }
}

impl Drop for Working {
    fn drop(&mut self) {
        WORKING.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Asleep {
    pub(crate) fn begin() -> Self {
        WORKING.fetch_sub(1, Ordering::Relaxed);
        Self
    }
}

impl Drop for Asleep {
    fn drop(&mut self) {
        WORKING.fetch_add(1, Ordering::Relaxed);
    }
}

fn running(load: &[u8]) -> Option<usize> {
    let field = std::str::from_utf8(load).ok()?.split(' ').nth(3)?;
    field.split_once('/')?.0.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_load_is_the_fourth_field() {
        assert_eq!(running(b"0.26 1.49 2.14 3/345 12345\n"), Some(3));
        assert_eq!(running(b"0.26 1.49"), None);
        assert_eq!(running(b"0.26 1.49 2.14 x/345 1\n"), None);
        let file = std::fs::read(LOAD_PATH).unwrap();
        assert!(running(&file).unwrap() >= 1, "at least this thread runs");
    }
}
