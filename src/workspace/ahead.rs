//! Packing outputs while their task still runs.
//!
//! A file that was made, closed, and left alone for a while goes into the archive before the task ends, on a thread
//! that works only while a processor has nothing else to do. At the end each is compared with what it was then; what
//! was changed, moved or removed is left out again, with what shares its frame, and packed like everything else.

mod worker;

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use self::worker::{Candidate, Next, Pace, Worker};
use super::lock;
#[cfg(test)]
use crate::archive::PackError;
use crate::archive::{Meta, PackedAhead};
use crate::base::Identity;
use crate::filter::Filter;
use crate::fs::NodeId;
use crate::load::{Asleep, IdleProcessor, Working};
use crate::path::{RelPath, RelPathBuf};
use crate::store::{Store, TempFile};
use crate::view::View;

/// A file that was left alone for so long may be finished.
const QUIET: Duration = Duration::from_millis(400);

/// Between two looks for finished files.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Packs the outputs of one run ahead. Dropping it ends that.
pub(super) struct Ahead {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    /// What the thread works with, for as long as a step takes.
    worker: Mutex<Worker>,
    /// A leaf in the lock order; held while a frame is written, too.
    state: Mutex<State>,
    over: Condvar,
}

#[derive(Default)]
struct State {
    is_over: bool,
    packed: Option<PackedFiles>,
}

/// Files in an archive that is not complete.
pub(super) struct PackedFiles {
    pub(super) temp: TempFile,
    pub(super) archive: PackedAhead,
    files: HashMap<NodeId, PackedFile>,
    /// How many files each unit holds.
    units: Vec<usize>,
}

/// A file as it was when it was packed; its record has the rest.
struct PackedFile {
    unit: usize,
    /// Its place among the files of the unit.
    place: usize,
    identity: Identity,
}

/// A file that is to be packed.
pub(super) struct File {
    pub(super) path: RelPathBuf,
    pub(super) identity: Identity,
    pub(super) meta: Meta,
}

impl Ahead {
    /// Starts to look for finished files. `None` where that cannot be.
    pub(super) fn start(view: &Arc<View>, store: &Arc<Store>, output: Filter) -> Option<Self> {
        let idle = IdleProcessor::new()?;
        let worker = Mutex::new(Worker::new(view, store, output));
        let shared = Arc::new(Shared { worker, state: Mutex::default(), over: Condvar::new() });
        let work = {
            let shared = Arc::clone(&shared);
            move || {
                if let Some(_working) = Working::begin() {
                    shared.work(&idle);
                }
            }
        };
        let thread = std::thread::Builder::new().name("pack-ahead".into()).spawn(work).ok()?;
        Some(Self { shared, thread: Some(thread) })
    }

    /// Ends the packing, and returns what was packed. Does not wait for what is under way.
    pub(super) fn take(&self) -> Option<PackedFiles> {
        self.shared.end()
    }

    /// Packs everything that is closed, however busy the machine is and however new the files.
    #[cfg(test)]
    pub(super) fn pack_now(&self) -> Result<(), PackError> {
        let mut worker = lock(&self.shared.worker);
        let pace = Pace { quiet: Duration::ZERO, idle: None };
        while worker.step(&self.shared, &pace)? == Next::More {}
        worker.pack(&self.shared, &pace)
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        drop(self.shared.end());
        if let Some(thread) = self.thread.take() {
            // It has been told before, so it waits for nothing; how it ended says nothing.
            drop(thread.join());
        }
    }
}

impl Shared {
    fn end(&self) -> Option<PackedFiles> {
        let packed = {
            let mut state = lock(&self.state);
            state.is_over = true;
            state.packed.take()
        };
        self.over.notify_all();
        packed
    }

    fn work(&self, idle: &IdleProcessor) {
        let pace = Pace { quiet: QUIET, idle: Some(idle) };
        let mut pause = LOOK_EVERY;
        while !self.is_over_after(pause) && !idle.is_over_before(|pause| self.is_over_after(pause)) {
            let next = lock(&self.worker).step(self, &pace);
            pause = match next {
                Ok(Next::More) => Duration::ZERO,
                Ok(Next::Wait) => LOOK_EVERY,
                Err(error) if !self.is_over_after(Duration::ZERO) => {
                    tracing::debug!(error = super::chain(&error), "nothing more is packed ahead");
                    return drop(self.end());
                }
                Err(_) => return,
            };
        }
    }

    fn is_over_after(&self, pause: Duration) -> bool {
        let state = lock(&self.state);
        if pause.is_zero() {
            return state.is_over;
        }
        let _asleep = Asleep::begin();
        let waited = self.over.wait_timeout_while(state, pause, |state| !state.is_over);
        waited.unwrap_or_else(PoisonError::into_inner).0.is_over
    }

    /// Lets `change` have what is packed so far, unless it is over.
    fn with_packed<T>(&self, change: impl FnOnce(&mut PackedFiles) -> io::Result<T>) -> io::Result<T> {
        let mut state = lock(&self.state);
        change(state.packed.as_mut().ok_or(io::ErrorKind::Interrupted)?)
    }
}

impl PackedFiles {
    fn new(temp: TempFile, archive: PackedAhead) -> Self {
        Self { temp, archive, files: HashMap::new(), units: Vec::new() }
    }

    fn len(&self) -> usize {
        self.files.len()
    }

    fn nodes(&self) -> Vec<NodeId> {
        self.files.keys().copied().collect()
    }

    fn close_unit(&mut self, files: Vec<Candidate>) {
        let unit = self.archive.close_unit();
        debug_assert_eq!(unit, self.units.len(), "units are numbered from 0");
        self.units.push(files.len());
        let packed = |(place, Candidate { node, file, .. })| {
            (node, PackedFile { unit, place, identity: file.identity })
        };
        self.files.extend(files.into_iter().enumerate().map(packed));
    }

    /// Returns the unit of a file that was packed, and whether it is just as it was then and was not opened for writing
    /// since.
    pub(super) fn compare(
        &self,
        unopened: &HashSet<NodeId>,
        node: NodeId,
        now: &Now<'_>,
    ) -> Option<(usize, bool)> {
        let PackedFile { unit, place, identity } = self.files.get(&node)?;
        let as_packed = self.archive.record(*unit, *place).is_some_and(|record| {
            *record.path == *now.path && now.meta.is_of(record) && *identity == *now.identity
        });
        Some((*unit, as_packed && unopened.contains(&node)))
    }

    /// Returns which units can stay: those of whose files each was compared once and is as it was.
    pub(super) fn standing(&self, compared: impl Iterator<Item = (usize, bool)>) -> Standing {
        let mut missing: Vec<Option<usize>> = self.units.iter().map(|&files| Some(files)).collect();
        for (unit, same) in compared {
            // A second name of a file is one too many.
            missing[unit] = missing[unit].filter(|_| same).and_then(|left| left.checked_sub(1));
        }
        let units: Vec<_> = missing.into_iter().map(|missing| missing == Some(0)).collect();
        let files = self.files.values().filter(|packed| units[packed.unit]);
        let bytes = files.map(|packed| packed.identity.size_bytes).sum();
        Standing { units, bytes }
    }
}

/// A file as it is now.
pub(super) struct Now<'a> {
    pub(super) path: &'a RelPath,
    pub(super) identity: &'a Identity,
    pub(super) meta: &'a Meta,
}

/// What of a begun archive is good.
#[derive(Debug, Default)]
pub(super) struct Standing {
    /// For each unit, whether it stays.
    pub(super) units: Vec<bool>,
    /// The sizes of the files in them.
    pub(super) bytes: u64,
}

#[cfg(test)]
mod tests;
