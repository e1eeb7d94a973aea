//! What tasks commit while others run, which may be a hazard to those.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};

use super::lock;
use crate::path::RelPathBuf;

/// More paths than this are not kept for those who want to know; a path takes some 80 bytes.
const PATHS_MAX: usize = 1_000_000;

/// A log of commits, as far back as somebody wants to know.
#[derive(Debug, Default)]
pub(super) struct CommitLog {
    /// A leaf in the lock order.
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Number of the next commit.
    next: u64,
    /// The last ones, in order.
    recent: VecDeque<Arc<Committed>>,
    /// Paths in these.
    paths: usize,
    /// How many want to know of the commits from a number on.
    followers: BTreeMap<u64, usize>,
}

/// What a task committed.
#[derive(Debug)]
pub(super) struct Committed {
    number: u64,
    pub(super) task_name: String,
    pub(super) paths: Vec<RelPathBuf>,
}

/// Somebody who wants to know what is committed from now on, until dropped.
#[derive(Debug)]
pub(super) struct Following {
    log: Arc<CommitLog>,
    since: u64,
}

impl CommitLog {
    /// Returns the number of the next commit.
    pub(super) fn next(&self) -> u64 {
        lock(&self.state).next
    }

    /// Notes a commit.
    pub(super) fn note(&self, task_name: String, mut paths: Vec<RelPathBuf>) {
        // It was made of something larger, in the same place.
        paths.shrink_to_fit();
        let mut state = lock(&self.state);
        let number = state.next;
        state.next += 1;
        state.paths += paths.len();
        state.recent.push_back(Arc::new(Committed { number, task_name, paths }));
        state.prune();
    }

    /// Begins to keep what is committed from now on.
    pub(super) fn follow(self: &Arc<Self>) -> Following {
        let mut state = lock(&self.state);
        let since = state.next;
        *state.followers.entry(since).or_default() += 1;
        Following { log: Arc::clone(self), since }
    }
}

impl State {
    /// Forgets what nobody wants to know, and the oldest of what is too much.
    fn prune(&mut self) {
        let wanted = self.followers.keys().next().copied().unwrap_or(self.next);
        while let Some(oldest) = self.recent.front()
            && (oldest.number < wanted || self.paths > PATHS_MAX)
        {
            self.paths -= oldest.paths.len();
            self.recent.pop_front();
        }
    }
}

impl Following {
    /// Returns what was committed since; `None` where that was too much to be kept.
    pub(super) fn commits(&self) -> Option<Vec<Arc<Committed>>> {
        let state = lock(&self.log.state);
        let first = state.recent.front().map_or(state.next, |oldest| oldest.number);
        let since = || state.recent.iter().filter(|commit| commit.number >= self.since);
        (first <= self.since).then(|| since().cloned().collect())
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        let mut state = lock(&self.log.state);
        if let Some(followers) = state.followers.get_mut(&self.since) {
            *followers -= 1;
            if *followers == 0 {
                state.followers.remove(&self.since);
            }
        }
        state.prune();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::path::RelPath;

    fn commit(log: &CommitLog, task: &str, paths: usize) {
        let path = |number: usize| RelPath::ROOT.join(number.to_string().as_ref());
        log.note(task.to_owned(), (0..paths).map(path).collect());
    }

    fn tasks(following: &Following) -> Option<Vec<String>> {
        let commits = following.commits()?;
        Some(commits.iter().map(|commit| commit.task_name.clone()).collect())
    }

    #[test]
    fn each_follower_hears_of_what_came_after_it() {
        let log = Arc::new(CommitLog::default());
        commit(&log, "before", 1);
        let first = log.follow();
        commit(&log, "a", 1);
        let second = log.follow();
        commit(&log, "b", 1);
        assert_eq!(tasks(&first).unwrap(), ["a", "b"]);
        assert_eq!(tasks(&second).unwrap(), ["b"]);
        assert!(tasks(&log.follow()).unwrap().is_empty());
        assert_eq!(log.next(), 3);
    }

    #[test]
    fn nothing_is_kept_that_nobody_wants_to_know() {
        let log = Arc::new(CommitLog::default());
        let kept = || {
            let state = lock(&log.state);
            (state.recent.len(), state.paths)
        };
        commit(&log, "alone", 3);
        assert_eq!(kept(), (0, 0));
        let (first, twin) = (log.follow(), log.follow());
        commit(&log, "a", 3);
        let last = log.follow();
        commit(&log, "b", 2);
        drop(first);
        assert_eq!(kept(), (2, 5));
        drop(twin);
        assert_eq!(kept(), (1, 2));
        drop(last);
        assert_eq!(kept(), (0, 0));
        assert!(lock(&log.state).followers.is_empty());
    }

    #[test]
    fn what_is_too_much_is_told_from_nothing() {
        let log = Arc::new(CommitLog::default());
        let early = log.follow();
        commit(&log, "small", 1);
        let late = log.follow();
        commit(&log, "large", PATHS_MAX);
        assert_eq!(tasks(&early), None);
        assert_eq!(tasks(&late).unwrap(), ["large"]);
        commit(&log, "one more", 1);
        assert_eq!(tasks(&late), None);
        assert_eq!(tasks(&log.follow()).unwrap(), [""; 0]);
    }
}
