//! Which paths were touched through us since when: by users through the live mount, by tasks that commit.
//!
//! It answers whether a task's outputs are still all in place without looking at each.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::{Mutex, PoisonError};

use crate::index::TaskId;
use crate::path::{RelPath, RelPathBuf};

/// More touched paths than this are forgotten, and everything counts as touched.
const PATHS_MAX: usize = 200_000;

/// Paths that are remembered in the order in which they were touched; whoever asks for more has to look at everything.
const RECENT_MAX: usize = 10_000;

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
    /// Kept while somebody follows.
    recent: Option<Recent>,
}

/// What was touched last, by anybody, in that order.
#[derive(Debug, Default)]
struct Recent {
    /// Before this something was missed.
    since: u64,
    paths: VecDeque<(u64, RelPathBuf)>,
}

impl Recent {
    fn note(&mut self, at: u64, path: &RelPath) {
        if let Some((last, known)) = self.paths.back_mut()
            && &**known == path
        {
            // Whoever followed before the first time hears of it, and so does whoever began in between.
            *last = at;
            return;
        }
        if self.paths.len() >= RECENT_MAX
            && let Some((gone, _)) = self.paths.pop_front()
        {
            self.since = gone;
        }
        self.paths.push_back((at, path.to_owned()));
    }
}

#[derive(Debug)]
struct Touch {
    at: u64,
    by: Option<TaskId>,
    /// The last time that it was anybody else than `by`; 0 for never.
    others_at: u64,
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
        let by = by.copied();
        let others_at = match log.paths.get(path) {
            Some(last) if last.by == by => last.others_at,
            Some(last) => last.at,
            None => 0,
        };
        log.paths.insert(path.to_owned(), Touch { at, by, others_at });
        if let Some(recent) = &mut log.recent {
            recent.note(at, path);
        }
    }

    /// Begins, or ends, to remember the order of touches. Nothing from before is known to whoever follows.
    pub fn follow(&self, follow: bool) {
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        log.now += 1;
        log.recent = follow.then(|| Recent { since: log.now, paths: VecDeque::new() });
    }

    /// Returns whether somebody follows.
    #[must_use]
    pub fn is_followed(&self) -> bool {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).recent.is_some()
    }

    /// Notes that something changed of which not all paths are known: whoever follows has to look at everything.
    pub fn lose_track(&self) {
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        log.now += 1;
        let since = log.now;
        if let Some(recent) = &mut log.recent {
            *recent = Recent { since, paths: VecDeque::new() };
        }
    }

    /// Returns what anybody touched after `since`, and the moment up to which that is so; `None` where it is not known.
    #[must_use]
    pub fn all_since(&self, since: Moment) -> Option<(Moment, Vec<RelPathBuf>)> {
        let log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        let recent = log.recent.as_ref().filter(|recent| recent.since <= since.0)?;
        let touched = recent.paths.iter().rev().take_while(|(at, _)| *at > since.0);
        Some((Moment(log.now), touched.map(|(_, path)| path.clone()).collect()))
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
    /// Returns whether `path` or anything below it was touched, or a directory above it, which may have
    /// been renamed with all it holds.
    #[must_use]
    pub fn below(&self, path: &RelPath) -> bool {
        let log = self.log.log.lock().unwrap_or_else(PoisonError::into_inner);
        log.known_since > self.since.0
            || path.ancestors().any(|dir| log.paths.get(dir).is_some_and(|touch| self.counts(touch)))
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
        let at = if touch.by.as_ref() == Some(self.owner) { touch.others_at } else { touch.at };
        at > self.since.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Digest;

    fn path(text: &str) -> &RelPath {
        RelPath::new(text).unwrap()
    }

    fn task(name: &str) -> TaskId {
        TaskId(Digest::of(name.as_bytes()))
    }

    #[test]
    fn below_is_by_component_and_looks_past_names_that_sort_in_between() {
        let (log, owner) = (Touched::default(), task("a"));
        let start = log.now();
        for touched in ["dist-x", "dist-x/f", "dist.old", "dist/deep/f"] {
            log.touch(path(touched), None);
        }
        let since = log.since(start, &owner).unwrap();
        assert!(since.below(path("dist")) && since.below(path("dist/deep")) && since.below(RelPath::ROOT));
        assert!(!since.below(path("dist/other")) && !since.below(path("dis")) && !since.below(path("dist-")));
    }

    #[test]
    fn a_touched_directory_touches_what_it_holds() {
        let (log, owner) = (Touched::default(), task("a"));
        let start = log.now();
        log.touch(path("build"), None);
        assert!(log.since(start, &owner).unwrap().below(path("build/dist")));
    }

    #[test]
    fn own_and_earlier_touches_do_not_count() {
        let (log, owner) = (Touched::default(), task("a"));
        log.touch(path("early"), None);
        let start = log.now();
        log.touch(path("own"), Some(&owner));
        let since = log.since(start, &owner).unwrap();
        assert_eq!(since.paths(10), Some(Vec::new()));
        assert!(!since.below(RelPath::ROOT));
        log.touch(path("own"), Some(&task("b")));
        assert_eq!(since.paths(10), Some(vec![path("own").to_owned()]));
        assert_eq!(since.paths(0), None);
    }

    #[test]
    fn a_path_that_a_task_touches_after_somebody_else_counts_as_touched() {
        let (log, owner) = (Touched::default(), task("a"));
        let start = log.now();
        log.touch(path("f"), None);
        log.touch(path("f"), Some(&owner));
        assert!(log.since(start, &owner).unwrap().below(path("f")));
    }

    #[test]
    fn after_an_overflow_nothing_earlier_is_known() {
        let (log, owner) = (Touched::default(), task("a"));
        let start = log.now();
        let before = log.since(start, &owner).unwrap();
        for number in 0..=PATHS_MAX {
            log.touch(path(&number.to_string()), Some(&owner));
        }
        assert!(log.since(start, &owner).is_none());
        assert!(before.below(path("never-touched")));
        assert_eq!(before.paths(usize::MAX - 1), None);
        assert!(!log.since(log.now(), &owner).unwrap().below(RelPath::ROOT));
    }

    #[test]
    fn whoever_follows_hears_of_all_or_knows_that_it_does_not() {
        let (log, owner) = (Touched::default(), task("a"));
        let before = log.now();
        log.touch(path("early"), None);
        assert!(log.all_since(before).is_none() && !log.is_followed());
        log.follow(true);
        assert!(log.all_since(before).is_none(), "from before it began");
        let start = log.now();
        for (touched, by) in [("a", None), ("b", Some(&owner)), ("b", None), ("a", Some(&owner))] {
            log.touch(path(touched), by);
        }
        let (then, touched) = log.all_since(start).unwrap();
        assert_eq!(touched, ["a", "b", "a"].map(|touched| path(touched).to_owned()));
        assert_eq!(log.all_since(then).unwrap().1, [], "up to that moment");
        log.touch(path("a"), None);
        assert_eq!(log.all_since(then).unwrap().1, [path("a").to_owned()], "the same path once more");
        log.lose_track();
        assert!(log.all_since(then).is_none());
        let then = log.now();
        for number in 0..RECENT_MAX {
            log.touch(path(&number.to_string()), None);
        }
        assert_eq!(log.all_since(then).unwrap().1.len(), RECENT_MAX);
        log.touch(path("one too many"), None);
        assert!(log.all_since(then).is_none());
        log.follow(false);
        log.follow(true);
        assert!(log.all_since(log.now()).is_some() && log.all_since(then).is_none());
    }
}
