//! A thread that serves `/dev/fuse` on its caller's processor, while there is one caller at a time.
//!
//! The device wakes its reader wherever the scheduler likes, which is on an idle processor: waking that up takes longer
//! than the request. Beside its caller, and going last there (see [`Courtesy`]), the thread is still about to read
//! when the caller asks again.

use std::fs;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::courtesy::Courtesy;
use crate::ring::stay_on;

/// Requests between two looks at where the caller is, which take about as long as half a request.
const LOOKS_EVERY: u32 = 64;
/// The same, where somebody else calls.
const LOOKS_EVERY_CALLER: u32 = 8;

/// Where in `/proc/PID/stat` the processor is, counted from the field behind the program's name.
const PROCESSOR_FIELD: usize = 36;

/// Keeps the calling thread beside whoever it serves.
pub(super) struct Follower {
    courtesy: Courtesy,
    /// Where the thread may run when it follows nobody.
    anywhere: Option<CpuSet>,
    /// Where it was put.
    at: Option<usize>,
    caller: u32,
    requests: u32,
}

impl Follower {
    pub(super) fn new() -> Self {
        let anywhere = sched_getaffinity(None).ok();
        Self { courtesy: Courtesy::new(), anywhere, at: None, caller: 0, requests: 0 }
    }

    /// Notes that a request of thread `caller` was served; zero is one of another PID namespace.
    pub(super) fn served(&mut self, caller: u32) {
        let Some(anywhere) = self.anywhere else { return };
        self.courtesy.served();
        if !self.courtesy.gives_way() {
            if self.at.take().is_some() {
                self.moved(sched_setaffinity(None, &anywhere));
            }
            return;
        }
        self.requests += 1;
        let every = if caller == self.caller { LOOKS_EVERY } else { LOOKS_EVERY_CALLER };
        if caller == 0 || (self.at.is_some() && self.requests < every) {
            return;
        }
        (self.caller, self.requests) = (caller, 0);
        let Some(processor) = processor_of(caller) else { return };
        if self.at != Some(processor) {
            self.at = Some(processor);
            self.moved(stay_on(processor));
        }
    }

    /// Follows nobody any more where that is not allowed.
    fn moved(&mut self, moved: rustix::io::Result<()>) {
        if let Err(error) = moved {
            tracing::debug!(%error, "a thread does not follow its callers");
            self.anywhere = None;
        }
    }
}

/// Returns the processor on which a thread ran last.
fn processor_of(thread: u32) -> Option<usize> {
    processor_in(&fs::read(format!("/proc/{thread}/stat")).ok()?)
}

fn processor_in(stat: &[u8]) -> Option<usize> {
    // The name, in parentheses, may hold anything.
    let name_end = stat.iter().rposition(|&byte| byte == b')')?;
    let field = stat.get(name_end + 2..)?.split(|&byte| byte == b' ').nth(PROCESSOR_FIELD)?;
    std::str::from_utf8(field).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_processor_is_found_behind_any_name() {
        let fields: Vec<String> = (3..=52).map(|field| field.to_string()).collect();
        let stat = format!("12 (a) R 1 (x) {}", fields.join(" "));
        assert_eq!(processor_in(stat.as_bytes()), Some(39));
        assert_eq!(processor_in(b"12 (gone) Z 7"), None);
        assert_eq!(processor_in(b"12 (cut)"), None);
    }

    #[test]
    fn a_thread_that_stays_is_found_where_it_is() {
        let at = sched_getaffinity(None).unwrap();
        let processor = (0..CpuSet::MAX_CPU).find(|cpu| at.is_set(*cpu)).unwrap();
        let found = std::thread::spawn(move || {
            stay_on(processor).unwrap();
            processor_of(rustix::thread::gettid().as_raw_nonzero().get().cast_unsigned())
        });
        assert_eq!(found.join().unwrap(), Some(processor));
    }
}
