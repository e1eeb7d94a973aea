//! Which processors there are.

use std::{fs, io};

use rustix::thread::{CpuSet, sched_setaffinity};

/// Where the kernel lists them.
const LISTS: &str = "/sys/devices/system/cpu";

/// The machine's processors.
///
/// The kernel has a queue for each that could ever be there, and waits until all have slots. Those that are
/// offline have no thread, as it could not run there; their queues are served by others, so that nobody hangs
/// when one comes online.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Processors {
    queues: u16,
    online: Vec<u16>,
}

impl Processors {
    pub(super) fn of_system() -> io::Result<Self> {
        let read = |name: &str| fs::read_to_string(format!("{LISTS}/{name}"));
        Self::parse(&read("possible")?, &read("online")?)
    }

    fn parse(possible: &str, online: &str) -> io::Result<Self> {
        let (possible, online) = (list(possible)?, list(online)?);
        // Queues are counted, and named by numbers of processors.
        let queues = u16::try_from(possible.len()).map_err(io::Error::other)?;
        if online.is_empty() || online.iter().any(|processor| *processor >= queues) {
            return Err(io::Error::other("processors have numbers beyond their count"));
        }
        Ok(Self { queues, online })
    }

    /// Returns those that have a thread.
    pub(super) fn online(&self) -> &[u16] {
        &self.online
    }

    /// Returns each queue, and the position in `online` of the processor that serves it.
    pub(super) fn queues(&self) -> impl Iterator<Item = (u16, usize)> + '_ {
        (0..self.queues).map(|queue| {
            let own = self.online.iter().position(|processor| *processor == queue);
            (queue, own.unwrap_or_else(|| usize::from(queue) % self.online.len()))
        })
    }
}

/// Keeps the calling thread on a processor.
pub(crate) fn stay_on(processor: usize) -> rustix::io::Result<()> {
    let mut only = CpuSet::new();
    if processor < CpuSet::MAX_CPU {
        only.set(processor);
    }
    // A set of none is refused.
    sched_setaffinity(None, &only)
}

/// Reads a list such as `0-3,8`.
fn list(text: &str) -> io::Result<Vec<u16>> {
    let mut numbers = Vec::new();
    for part in text.trim().split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let first: u16 = first.parse().map_err(io::Error::other)?;
        let last: u16 = last.parse().map_err(io::Error::other)?;
        numbers.extend(first..=last);
    }
    Ok(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queues_of_processors_that_are_offline_are_served_by_others() -> io::Result<()> {
        let processors = Processors::parse("0-5\n", "0,2-3\n")?;
        assert_eq!(processors.online(), [0, 2, 3]);
        let queues: Vec<_> = processors.queues().collect();
        assert_eq!(queues, [(0, 0), (1, 1), (2, 1), (3, 2), (4, 1), (5, 2)]);
        Ok(())
    }

    #[test]
    fn lists_that_make_no_sense_are_refused() {
        for (possible, online) in [("0-1", "0-2"), ("0-1", ""), ("0-", "0"), ("x", "0"), ("0-99999", "0")] {
            assert!(Processors::parse(possible, online).is_err(), "{possible} {online}");
        }
    }

    #[test]
    fn this_machine_has_processors() -> io::Result<()> {
        assert!(!Processors::of_system()?.online().is_empty());
        Ok(())
    }
}
