//! Whether the machine has a processor with nothing to do.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::available_parallelism;

/// What the kernel says about load; the fourth field is `RUNNING/ALL`, in threads of the whole machine.
const LOAD_PATH: &str = "/proc/loadavg";

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
    pub(crate) fn begin() -> Self {
        WORKING.fetch_add(1, Ordering::Relaxed);
        Self
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
