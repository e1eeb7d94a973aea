//! Whether anybody needs the daemon, and whether somebody wants it gone.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// When nobody came or went for so long after a run, what it took is given back.
const CALM_AFTER: Duration = Duration::from_secs(1);

/// Why the daemon ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    /// Nobody needed it for long enough.
    Idle,
    /// A signal came.
    Signal,
}

/// Counts those who need the daemon: connections, runs, sessions, the live mount.
#[derive(Debug)]
pub(crate) struct Activity {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    /// All who need the daemon.
    users: u64,
    /// Those of them that only talk to it.
    connections: u64,
    /// When one of them came or went last.
    last_change: Instant,
    /// Whether somebody is gone, since it was tidied up, who did more than talk.
    untidy: bool,
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
        self.count(false)
    }

    /// Counts one connection, whatever it is for.
    pub(crate) fn connect(self: &Arc<Self>) -> InUse {
        self.count(true)
    }

    fn count(self: &Arc<Self>, is_connection: bool) -> InUse {
        let mut state = self.lock();
        state.users += 1;
        state.connections += u64::from(is_connection);
        state.last_change = Instant::now();
        drop(state);
        self.changed.notify_all();
        InUse { activity: Arc::clone(self), is_connection }
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

    /// Waits until the daemon was idle for `idle`, or is to end anyway. Calls `tidy` where it is calm after somebody
    /// went who did more than talk.
    pub(crate) fn wait_for_end(&self, idle: Duration, tidy: impl Fn()) -> Reason {
        let mut state = self.lock();
        loop {
            if state.signalled {
                return Reason::Signal;
            }
            let calm = state.last_change.elapsed();
            let until_end = (state.users == 0).then(|| idle.saturating_sub(calm));
            if until_end.is_some_and(|left| state.hurry || left.is_zero()) {
                return Reason::Idle;
            }
            let until_tidy = state.untidy.then(|| CALM_AFTER.saturating_sub(calm));
            if until_tidy.is_some_and(|left| left.is_zero()) {
                state.untidy = false;
                drop(state);
                tidy();
                state = self.lock();
                continue;
            }
            state = match until_end.into_iter().chain(until_tidy).min() {
                Some(left) => {
                    self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Activity {
    fn default() -> Self {
        let state = State {
            users: 0,
            connections: 0,
            last_change: Instant::now(),
            untidy: false,
            hurry: false,
            signalled: false,
        };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        let mut state = self.activity.lock();
        state.users -= 1;
        state.connections -= u64::from(self.is_connection);
        state.last_change = Instant::now();
        state.untidy |= !self.is_connection;
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
            move || activity.wait_for_end(Duration::ZERO, || ())
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
    fn what_a_run_took_is_given_back_once_and_what_a_talk_took_is_not() {
        let activity = Arc::new(Activity::default());
        let (sender, tidied) = std::sync::mpsc::channel();
        let waiter = std::thread::spawn({
            let activity = Arc::clone(&activity);
            move || activity.wait_for_end(Duration::MAX, || sender.send(()).unwrap())
        });
        let mounted = activity.enter();
        drop(activity.connect());
        assert!(tidied.recv_timeout(CALM_AFTER + CALM_AFTER / 2).is_err());
        drop(activity.enter());
        tidied.recv_timeout(Duration::from_secs(60)).unwrap();
        assert!(tidied.recv_timeout(CALM_AFTER + CALM_AFTER / 2).is_err());
        activity.signal();
        assert_eq!(waiter.join().unwrap(), Reason::Signal);
        drop(mounted);
    }

    #[test]
    fn a_signal_ends_it_in_spite_of_users() {
        let activity = Arc::new(Activity::default());
        let _user = activity.enter();
        activity.signal();
        assert_eq!(activity.wait_for_end(Duration::MAX, || ()), Reason::Signal);
    }
}
