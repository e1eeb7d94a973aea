//! Whether anybody needs the daemon, and whether somebody wants it gone.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Why the daemon ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    /// Nobody needed it for long enough.
    Idle,
    /// A signal came.
    Signal,
}

/// Counts those who need the daemon: connections, runs, sessions, the live mount.
#[derive(Debug, Default)]
pub(crate) struct Activity {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// All who need the daemon.
    users: u64,
    /// Those of them that only talk to it.
    connections: u64,
    /// Nobody waits for the idle time to pass any more.
    hurry: bool,
    signalled: bool,
}

/// Somebody who needs the daemon, until dropped.
#[derive(Debug)]
#[must_use = "dropping it says that the daemon is not needed any more"]
pub(crate) struct InUse {
    activity: Arc<Activity>,
    is_connection: bool,
}

impl Activity {
    /// Counts one user.
    pub(crate) fn enter(self: &Arc<Self>) -> InUse {
        self.lock().users += 1;
        self.changed.notify_all();
        InUse { activity: Arc::clone(self), is_connection: false }
    }

    /// Counts one connection, whatever it is for.
    pub(crate) fn connect(self: &Arc<Self>) -> InUse {
        let mut state = self.lock();
        state.users += 1;
        state.connections += 1;
        drop(state);
        self.changed.notify_all();
        InUse { activity: Arc::clone(self), is_connection: true }
    }

    /// Waits until nobody does more than talk: no run, no session, no live mount. Returns whether it came to
    /// that within `timeout`.
    pub(crate) fn calms_down(&self, timeout: Duration) -> bool {
        let is_busy = |state: &mut State| state.users > state.connections;
        let waited = self.changed.wait_timeout_while(self.lock(), timeout, is_busy);
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        !is_busy(&mut state)
    }

    /// Lets the daemon end as soon as it is idle.
    pub(crate) fn hurry(&self) {
        self.lock().hurry = true;
        self.changed.notify_all();
    }

    /// Lets the daemon end now.
    pub(crate) fn signal(&self) {
        self.lock().signalled = true;
        self.changed.notify_all();
    }

    /// Waits until the daemon was idle for `idle`, or is to end anyway.
    pub(crate) fn wait_for_end(&self, idle: Duration) -> Reason {
        let mut state = self.lock();
        let mut idle_since = Instant::now();
        loop {
            if state.signalled {
                return Reason::Signal;
            }
            if state.users > 0 {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                idle_since = Instant::now();
                continue;
            }
            let left = idle.saturating_sub(idle_since.elapsed());
            if state.hurry || left.is_zero() {
                return Reason::Idle;
            }
            let waited = self.changed.wait_timeout(state, left);
            let (next, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
            state = next;
            if !timeout.timed_out() {
                // Somebody came, and may be gone again.
                idle_since = Instant::now();
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        let mut state = self.activity.lock();
        state.users -= 1;
        state.connections -= u64::from(self.is_connection);
        drop(state);
        self.activity.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_only_after_the_last_user() {
        let activity = Arc::new(Activity::default());
        let user = activity.enter();
        let waiter = std::thread::spawn({
            let activity = Arc::clone(&activity);
            move || activity.wait_for_end(Duration::ZERO)
        });
        assert!(!waiter.is_finished());
        drop(user);
        assert_eq!(waiter.join().unwrap(), Reason::Idle);
    }

    #[test]
    fn who_only_talks_keeps_the_daemon_but_not_busy() {
        let activity = Arc::new(Activity::default());
        let connection = activity.connect();
        assert!(activity.calms_down(Duration::ZERO));
        let run = activity.enter();
        drop(connection);
        assert!(!activity.calms_down(Duration::ZERO));
        drop(run);
        assert!(activity.calms_down(Duration::ZERO));
    }

    #[test]
    fn a_signal_ends_it_in_spite_of_users() {
        let activity = Arc::new(Activity::default());
        let _user = activity.enter();
        activity.signal();
        assert_eq!(activity.wait_for_end(Duration::MAX), Reason::Signal);
    }
}
