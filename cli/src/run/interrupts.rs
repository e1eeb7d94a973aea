//! Signals to `vout run`: passed on to the tasks, which are given a chance to end by themselves.
//!
//! | signal | a running task | a task that is looked up, restored or packed |
//! |---|---|---|
//! | first | gets the same signal | is given up |
//! | second | is killed | |
//! | third | is given up | |

use std::collections::HashMap;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, MutexGuard, PoisonError};

use vout::wire;

use crate::view::message::Control;

/// What an interruption has to reach.
#[derive(Debug, Default)]
pub(crate) struct Interrupts {
    /// Taken for short sends only; no other lock is taken under it.
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The first signal.
    signal: Option<i32>,
    count: u32,
    targets: HashMap<usize, Target>,
}

#[derive(Debug)]
struct Target {
    daemon: UnixStream,
    runner: Option<UnixStream>,
}

/// A signal came before this could begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Interrupted;

impl Interrupts {
    /// Returns the first signal that came.
    pub(crate) fn signal(&self) -> Option<i32> {
        self.lock().signal
    }

    /// Makes the conversation of task `index` with the daemon one that an interruption ends.
    pub(crate) fn begin(&self, index: usize, daemon: UnixStream) -> Result<(), Interrupted> {
        let mut state = self.lock();
        if state.signal.is_some() {
            return Err(Interrupted);
        }
        state.targets.insert(index, Target { daemon, runner: None });
        Ok(())
    }

    /// Task `index` has a runner from now on (or has none any more), which is told instead.
    pub(crate) fn set_runner(&self, index: usize, runner: Option<UnixStream>) -> Result<(), Interrupted> {
        let mut state = self.lock();
        if state.signal.is_some() && runner.is_some() {
            return Err(Interrupted);
        }
        if let Some(target) = state.targets.get_mut(&index) {
            target.runner = runner;
        }
        Ok(())
    }

    /// Task `index` is over.
    pub(crate) fn end(&self, index: usize) {
        self.lock().targets.remove(&index);
    }

    /// Tells everybody of `signal`.
    pub(crate) fn interrupt(&self, signal: i32) {
        let mut state = self.lock();
        state.signal.get_or_insert(signal);
        state.count += 1;
        let control = match state.count {
            1 => Some(Control::Signal(signal)),
            2 => Some(Control::Kill),
            _ => None,
        };
        for target in state.targets.values() {
            // Who cannot be told has ended.
            match (&target.runner, control) {
                (Some(runner), Some(control)) => drop(wire::send(runner, &control, &[])),
                _ => drop(target.daemon.shutdown(Shutdown::Both)),
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_runner_is_told_first_and_killed_second() {
        let interrupts = Interrupts::default();
        let (daemon, _daemon_end) = UnixStream::pair().unwrap();
        let (runner, runner_end) = UnixStream::pair().unwrap();
        interrupts.begin(0, daemon).unwrap();
        interrupts.set_runner(0, Some(runner)).unwrap();
        interrupts.interrupt(15);
        interrupts.interrupt(2);
        let told = || wire::receive::<Control>(&runner_end).unwrap().unwrap().message;
        assert_eq!((told(), told()), (Control::Signal(15), Control::Kill));
        assert_eq!(interrupts.signal(), Some(15));
    }

    #[test]
    fn what_only_waits_for_the_daemon_is_given_up() {
        let interrupts = Interrupts::default();
        let (daemon, daemon_end) = UnixStream::pair().unwrap();
        interrupts.begin(0, daemon).unwrap();
        interrupts.interrupt(2);
        assert!(wire::receive::<Control>(&daemon_end).unwrap().is_none());
        let (late, _late_end) = UnixStream::pair().unwrap();
        assert_eq!(interrupts.begin(1, late), Err(Interrupted));
    }
}
