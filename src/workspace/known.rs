//! Lookups that need not be done again: under a live mount that is exclusive, what nobody touched through it, and no task
//! since, is what it was.
//!
//! After a hit the states of all inputs are remembered by their hashes. The next lookup of the same path set asks what
//! was touched meanwhile, looks at those inputs alone that this may concern, and compares. Where anything differs, or it
//! is not known what was touched, all inputs are looked at as ever.
//!
//! What makes this right is the order of things. Whoever changes something touches it afterwards, and before the change
//! is answered for; whoever remembers takes the moment before looking. So a change that was not seen when a state was
//! looked at is among what was touched since.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, Weak};

use uuid::Uuid;

use super::lookup::{Asked, filtered};
use super::{Workspace, lock};
use crate::digest::Digest;
use crate::fingerprint::{PathSet, encode};
use crate::index::TaskId;
use crate::logical::Logical;
use crate::path::{RelPath, RelPathBuf};
use crate::state::{Dependency, PathState};
use crate::touched::Moment;
use crate::tree::Layer;

/// Path sets remembered at most.
const SETS_MAX: usize = 256;

/// Inputs remembered at most, of all path sets together: about 30 bytes each.
const INPUTS_MAX: usize = 2_000_000;

/// What is known of path sets while one live mount lives.
pub(super) struct Known {
    /// Returns whether the mount still lies over the base: somebody may have taken it away without telling us.
    covers: Box<dyn Fn() -> bool + Send + Sync>,
    /// Hashes paths; of equal hashes both paths are looked at.
    hasher: RandomState,
    /// A leaf.
    sets: Mutex<Sets>,
}

#[derive(Default)]
struct Sets {
    sets: HashMap<Key, KnownSet>,
    /// Counts uses, to tell which was used last.
    uses: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    owner: TaskId,
    weak: Digest,
    path_set: Digest,
}

/// A path set that led to a hit.
#[derive(Clone)]
struct KnownSet {
    members: Arc<Members>,
    strong: Digest,
    seen: Seen,
    used: u64,
}

/// When states were looked at, and what else they were made of.
#[derive(Clone)]
struct Seen {
    since: Moment,
    /// Any layer that comes or goes makes another list.
    layers: Weak<[Arc<Layer>]>,
    claim: Option<Uuid>,
}

/// The members of a path set by the hashes of their paths, in that order, and the directories above them.
struct Members {
    paths: Vec<u64>,
    dependencies: Vec<Dependency>,
    states: Vec<StateDigest>,
    above: Vec<u64>,
}

type StateDigest = [u8; 16];

/// A path set that is about to be looked at.
#[must_use = "it is for remembering what is seen"]
pub(super) struct Looking {
    known: Arc<Known>,
    key: Key,
    seen: Seen,
}

impl Known {
    pub(super) fn new(covers: Box<dyn Fn() -> bool + Send + Sync>) -> Self {
        Self { covers, hasher: RandomState::new(), sets: Mutex::default() }
    }

    fn hash(&self, path: &RelPath) -> u64 {
        self.hasher.hash_one(path.as_bytes())
    }

    fn get(&self, key: &Key) -> Option<KnownSet> {
        let sets = &mut *lock(&self.sets);
        sets.uses += 1;
        let set = sets.sets.get_mut(key)?;
        set.used = sets.uses;
        Some(set.clone())
    }

    fn insert(&self, key: Key, members: Members, strong: Digest, seen: Seen) {
        if members.paths.len() > INPUTS_MAX {
            return;
        }
        let sets = &mut *lock(&self.sets);
        sets.uses += 1;
        let set = KnownSet { members: Arc::new(members), strong, seen, used: sets.uses };
        sets.sets.insert(key, set);
        let inputs = |sets: &Sets| sets.sets.values().map(|set| set.members.paths.len()).sum::<usize>();
        while sets.sets.len() > SETS_MAX || inputs(sets) > INPUTS_MAX {
            let Some(oldest) = sets.sets.iter().min_by_key(|(_, set)| set.used).map(|(key, _)| *key) else {
                return;
            };
            sets.sets.remove(&oldest);
        }
    }

    /// Notes that a set is what it was up to a later moment, unless somebody looked at it anew meanwhile.
    fn still(&self, key: &Key, members: &Arc<Members>, now: Moment) {
        if let Some(set) = lock(&self.sets).sets.get_mut(key)
            && Arc::ptr_eq(&set.members, members)
        {
            set.seen.since = set.seen.since.max(now);
        }
    }

    fn members(&self, set: &PathSet, states: &[PathState]) -> Members {
        let mut above = HashSet::new();
        let mut members: Vec<_> = set
            .iter()
            .zip(states)
            .map(|((path, dependency), state)| {
                for dir in path.ancestors() {
                    // What is above a directory that was seen was seen, too.
                    if !above.insert(self.hash(dir)) {
                        break;
                    }
                }
                (self.hash(path), *dependency, digest_of(state))
            })
            .collect();
        members.sort_unstable_by_key(|(path, ..)| *path);
        let mut above: Vec<_> = above.into_iter().collect();
        above.sort_unstable();
        Members {
            paths: members.iter().map(|(path, ..)| *path).collect(),
            dependencies: members.iter().map(|(_, dependency, _)| *dependency).collect(),
            states: members.iter().map(|(.., state)| *state).collect(),
            above,
        }
    }

    /// Returns whether all that `touched` may concern of a set still has the states it had.
    fn is_unchanged(
        &self,
        members: &Members,
        touched: &[RelPathBuf],
        asked: &Asked,
        logical: &Logical<'_>,
    ) -> bool {
        let mut compared = HashSet::new();
        for touched in touched {
            // A directory may have come or gone with all it holds.
            if members.above.binary_search(&self.hash(touched)).is_ok() {
                return false;
            }
            // Directories list what is in them, and a task's own are there for others only while they hold something
            // that is not the task's.
            for path in std::iter::once(&**touched).chain(touched.ancestors()) {
                if !compared.insert(path) {
                    break;
                }
                let same = |at: usize| {
                    let state = logical.state(path, members.dependencies[at]);
                    state.is_ok_and(|state| {
                        digest_of(&filtered(state, path, &asked.input)) == members.states[at]
                    })
                };
                let hash = self.hash(path);
                let first = members.paths.partition_point(|known| *known < hash);
                if !(first..members.paths.len()).take_while(|at| members.paths[*at] == hash).all(same) {
                    return false;
                }
            }
        }
        true
    }
}

fn digest_of(state: &PathState) -> StateDigest {
    let mut half = StateDigest::default();
    half.copy_from_slice(&Digest::of(&encode(state)).as_bytes()[..size_of::<StateDigest>()]);
    half
}

impl Looking {
    /// Remembers what was seen of `set`, which led to the strong key `strong`.
    pub(super) fn remember(self, set: &PathSet, states: &[PathState], strong: Digest) {
        let members = self.known.members(set, states);
        self.known.insert(self.key, members, strong, self.seen);
    }
}

impl Workspace {
    /// Returns the strong key that a lookup of a path set would lead to, and the number of its inputs, where that is
    /// known without looking at all of them.
    pub(super) fn known_lookup(
        &self,
        asked: &Asked,
        path_set: Digest,
        logical: &Logical<'_>,
    ) -> Option<(Digest, u64)> {
        let Looking { known, key, seen: present } = self.begin_looking(asked, path_set)?;
        let set = known.get(&key)?;
        if !Weak::ptr_eq(&set.seen.layers, &present.layers) || set.seen.claim != present.claim {
            return None;
        }
        let (now, touched) = self.touched.all_since(set.seen.since)?;
        if !known.is_unchanged(&set.members, &touched, asked, logical) {
            return None;
        }
        known.still(&key, &set.members, now);
        tracing::debug!(task = asked.spec.name, touched = touched.len(), "known");
        Some((set.strong, set.members.paths.len() as u64))
    }

    /// Takes the moment before the states of a path set are looked at; `None` where they cannot be remembered.
    pub(super) fn begin_looking(&self, asked: &Asked, path_set: Digest) -> Option<Looking> {
        let known = lock(&self.known).clone()?;
        // What globs match was looked for already, and a claim that cannot be read is none.
        let whole = !asked.input.has_positive_globs() && asked.claim.is_some() == asked.claimed.is_some();
        if !whole || !(known.covers)() {
            return None;
        }
        let layers = Arc::downgrade(&self.tree.layers());
        let claim = asked.claim.as_ref().map(|claim| claim.manifest);
        let key = Key { owner: asked.owner, weak: asked.weak, path_set };
        Some(Looking { known, key, seen: Seen { since: self.touched.now(), layers, claim } })
    }
}

#[cfg(test)]
mod tests;
