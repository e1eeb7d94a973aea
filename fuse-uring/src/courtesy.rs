//! Leaving the processor to the caller that was just answered.
//!
//! A thread that answers is still running when its caller wakes up, so the scheduler sends the caller to a
//! processor that is idle: its caches are cold there, and waking that processor up costs more than the
//! request did. The next answer sends it back. Under `SCHED_IDLE` a thread does not count as running: the caller
//! stays where it is and goes first, and the thread is back to waiting when the caller asks again.
//!
//! But such a thread also goes last when others want the processor, and its callers with it. So it is one only
//! while there is a single caller at a time, and nothing else runs on the machine.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{LazyLock, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use crate::sys::{Policy, set_policy};

/// What the kernel says about load; the fourth field is `RUNNING/ALL`, in threads of the whole machine.
const LOAD_PATH: &str = "/proc/loadavg";

/// Requests between two looks at the load, which takes about as long as a tenth of a request: few where a wrong policy
/// costs callers a slice of somebody else's time, each time.
const LOOKS_EVERY_GIVING_WAY: u32 = 4;
const LOOKS_EVERY_NORMALLY: u32 = 16;

/// After a pause everything may be different.
const PAUSE: Duration = Duration::from_millis(5);

/// So many looks in a row have to find nobody else before a thread gives way.
const ALONE_LOOKS_MIN: u32 = 3;
/// So many in a row have to find somebody else before it stops to: one may have found a thread that was about to sleep
/// again, such as that which hears of forgets.
const COMPANY_LOOKS_MIN: u32 = 2;

/// The policy of a thread that serves requests.
pub(crate) struct Courtesy {
    /// Where the load is read; `None` where the policy cannot be changed.
    load: Option<File>,
    gives_way: bool,
    requests: u32,
    looked: Instant,
    /// Looks in a row that contradict the present policy.
    other_looks: u32,
}

impl Courtesy {
    /// Returns that of the calling thread, which the scheduler treats like any other so far.
    pub(crate) fn new() -> Self {
        let load = if *ALLOWED { File::open(LOAD_PATH).ok() } else { None };
        Self { load, gives_way: false, requests: 0, looked: Instant::now(), other_looks: 0 }
    }

    /// Returns whether the calling thread goes last.
    pub(crate) const fn gives_way(&self) -> bool {
        self.gives_way
    }

    /// Notes that the calling thread has served a request, and is about to wait for the next.
    pub(crate) fn served(&mut self) {
        let Some(load) = &self.load else { return };
        self.requests += 1;
        let every = if self.gives_way { LOOKS_EVERY_GIVING_WAY } else { LOOKS_EVERY_NORMALLY };
        if self.requests < every && !(self.gives_way && self.looked.elapsed() > PAUSE) {
            return;
        }
        let background = BACKGROUND.get().map_or(0, |count| count());
        let alone = running(load).is_some_and(|running| running.saturating_sub(background) <= 1);
        self.requests = 0;
        self.looked = Instant::now();
        let gives_way = self.found(alone);
        if gives_way != self.gives_way {
            let policy = if gives_way { Policy::Idle } else { Policy::Normal };
            match set_policy(policy) {
                Ok(()) => self.gives_way = gives_way,
                Err(error) => {
                    tracing::debug!(%error, ?policy, "a thread keeps its scheduling policy");
                    self.load = None;
                }
            }
        }
    }

    /// Returns whether to give way, now that a look found nobody else, or somebody.
    fn found(&mut self, alone: bool) -> bool {
        self.other_looks = if alone == self.gives_way { 0 } else { self.other_looks + 1 };
        let enough = if alone { ALONE_LOOKS_MIN } else { COMPANY_LOOKS_MIN };
        let changes = self.other_looks >= enough;
        if changes {
            self.other_looks = 0;
        }
        self.gives_way != changes
    }
}

/// Whether a thread may take the policy and leave it again: that takes a privilege, or the limit of `nice`.
static ALLOWED: LazyLock<bool> = LazyLock::new(|| {
    let there_and_back = || -> io::Result<()> {
        set_policy(Policy::Idle)?;
        Ok(set_policy(Policy::Normal)?)
    };
    thread::spawn(there_and_back).join().is_ok_and(|tried| tried.is_ok())
});

/// Tells how many threads of the machine work for nobody who waits.
static BACKGROUND: OnceLock<fn() -> u32> = OnceLock::new();

/// Sets who tells how many threads are running that nobody waits for, and that run only where a processor has nothing
/// else to do: they are not company. The first who is set stays.
pub fn set_background(count: fn() -> u32) {
    BACKGROUND.get_or_init(|| count);
}

/// Returns how many threads of the machine are running or want to, the calling one included.
fn running(load: &File) -> Option<u32> {
    let mut text = [0; 64];
    let size = load.read_at(&mut text, 0).ok()?;
    running_of(&text[..size])
}

fn running_of(load: &[u8]) -> Option<u32> {
    let field = load.split(|&byte| byte == b' ').nth(3)?;
    let running = field.split(|&byte| byte == b'/').next()?;
    std::str::from_utf8(running).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_load_is_read_from_its_fourth_field() {
        assert_eq!(running_of(b"0.26 1.49 2.14 3/345 12345\n"), Some(3));
        assert_eq!(running_of(b"0.26 1.49"), None);
        assert_eq!(running_of(b"0.26 1.49 2.14 x/345 1\n"), None);
        let load = File::open(LOAD_PATH).unwrap();
        assert!(running(&load).unwrap() >= 1, "at least this thread runs");
    }

    #[test]
    fn one_look_that_finds_something_else_changes_nothing() {
        let mut courtesy = Courtesy::new();
        let mut decide = |looks: &[bool]| {
            let each = looks.iter().map(|alone| {
                courtesy.gives_way = courtesy.found(*alone);
                courtesy.gives_way
            });
            each.collect::<Vec<_>>()
        };
        assert_eq!(decide(&[true, true, false, true, true]), [false; 5]);
        assert_eq!(decide(&[true, false, true, false]), [true; 4]);
        assert_eq!(decide(&[false, true, true, true]), [false, false, false, true]);
    }

    #[test]
    fn a_thread_in_company_keeps_its_policy() {
        let busy = thread::spawn(|| {
            let until = Instant::now() + Duration::from_millis(200);
            while Instant::now() < until {
                std::hint::spin_loop();
            }
        });
        let mut courtesy = Courtesy::new();
        for _ in 0..10 * LOOKS_EVERY_NORMALLY {
            courtesy.served();
        }
        assert!(!courtesy.gives_way);
        busy.join().unwrap();
    }
}
