//! Which paths were touched through us since when: by users through the live mount, by tasks that commit.
//!
//! It answers whether a task's outputs are still all in place without looking at each.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Mutex, PoisonError};

use crate::index::TaskId;
use crate::path::{RelPath, RelPathBuf};

/// More touched paths than this are forgotten, and everything counts as touched.
const PATHS_MAX: usize = 200_000;

/// A log of touched paths.
#[derive(Debug, Default)]
pub struct Touched {
    /// Innermost lock.
    log: Mutex<Log>,
}

#[derive(Debug, Default)]
struct Log {
    now: u64,
    /// Before this nothing is known.
    known_since: u64,
    paths: BTreeMap<RelPathBuf, Touch>,
}

#[derive(Debug)]
struct Touch {
    at: u64,
    by: Option<TaskId>,
}

/// A moment of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(u64);

/// What others than one task touched since a moment.
#[derive(Debug, Clone, Copy)]
pub struct TouchedSince<'a> {
    log: &'a Touched,
    since: Moment,
    owner: &'a TaskId,
}

impl Touched {
    /// Notes that `path` was touched, by a task or (`None`) by somebody else.
    pub fn touch(&self, path: &RelPath, by: Option<&TaskId>) {
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        log.now += 1;
        let at = log.now;
        if log.paths.len() >= PATHS_MAX {
            log.paths.clear();
            log.known_since = at;
        }
        log.paths.insert(path.to_owned(), Touch { at, by: by.copied() });
    }

    /// Returns the present moment.
    pub fn now(&self) -> Moment {
        Moment(self.log.lock().unwrap_or_else(PoisonError::into_inner).now)
    }

    /// Returns what others than `owner` touched since, or `None` where that is no longer known.
    pub fn since<'a>(&'a self, since: Moment, owner: &'a TaskId) -> Option<TouchedSince<'a>> {
        let log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        (log.known_since <= since.0).then_some(TouchedSince { log: self, since, owner })
    }
}

impl TouchedSince<'_> {
    /// Returns whether `path` or anything below it was touched.
    #[must_use]
    pub fn below(&self, path: &RelPath) -> bool {
        let log = self.log.log.lock().unwrap_or_else(PoisonError::into_inner);
        log.known_since > self.since.0
            || log
                .paths
                .range::<RelPath, _>((Bound::Included(path), Bound::Unbounded))
                // Names such as `path-other` sort between `path` and `path/child`.
                .take_while(|(touched, _)| touched.as_bytes().starts_with(path.as_bytes()))
                .any(|(touched, touch)| touched.starts_with(path) && self.counts(touch))
    }

    /// Returns what was touched, or `None` where that is more than `limit` paths or no longer known.
    #[must_use]
    pub fn paths(&self, limit: usize) -> Option<Vec<RelPathBuf>> {
        let log = self.log.log.lock().unwrap_or_else(PoisonError::into_inner);
        if log.known_since > self.since.0 {
            return None;
        }
        let touched = log.paths.iter().filter(|(_, touch)| self.counts(touch));
        let paths: Vec<_> = touched.map(|(path, _)| path.clone()).take(limit + 1).collect();
        (paths.len() <= limit).then_some(paths)
    }

    fn counts(&self, touch: &Touch) -> bool {
        touch.at > self.since.0 && touch.by.as_ref() != Some(self.owner)
    }
}
