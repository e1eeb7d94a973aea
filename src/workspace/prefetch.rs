//! Making ready what will be read of a layer, while the machine has nothing else to do.
//!
//! What was opened last of a task's outputs is noted when their layer goes. When the task's outputs are a layer again,
//! of whichever entry, the same is decompressed in the same order; and where it was most of them, the rest after that.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{WorkspaceError, forgo, lock};
use crate::archive::Record;
use crate::fingerprint::encode;
use crate::fs::FsError;
use crate::index::Index;
use crate::load::{Asleep, IdleProcessor, Working, has_room};
use crate::open_file;
use crate::path::RelPathBuf;
use crate::store::Store;
use crate::tree::{Layer, Tree};

/// Larger files are left to those who read them: nothing ends the decompression of one.
const FILE_BYTES_MAX: u64 = 256 << 20;

/// So much of one layer is decompressed ahead into memory that the kernel may move to the disk.
const LAYER_BYTES_MAX: u64 = 512 << 20;

/// A layer of which this part was read, or more, is made ready as a whole.
const MOST_PERCENT: u64 = 50;

/// Records that are looked at in a row.
const RECORDS_AT_ONCE: usize = 512;

/// Makes layers ready, and remembers what of them was read. Dropping it ends that.
pub(super) struct Prefetcher {
    shared: Arc<Shared>,
    /// Started with the first layer.
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    tree: Arc<Tree>,
    index: Arc<Index>,
    store: Arc<Store>,
    /// A leaf in the lock order.
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    is_over: bool,
}

enum Job {
    /// Note what was read of a layer.
    Note(Arc<Layer>),
    /// Make ready what is likely to be read of it.
    Prefetch(Arc<Layer>),
}

/// What was read last of a task's outputs.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Reading {
    /// A file of each frame, in the order in which they were opened.
    paths: Vec<RelPathBuf>,
    is_most: bool,
}

/// Whether to go on with a layer.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    More,
    Enough,
}

impl Prefetcher {
    pub(super) fn new(tree: &Arc<Tree>, index: &Arc<Index>, store: &Arc<Store>) -> Self {
        let (tree, index, store) = (Arc::clone(tree), Arc::clone(index), Arc::clone(store));
        let shared = Shared { tree, index, store, state: Mutex::default(), changed: Condvar::new() };
        Self { shared: Arc::new(shared), thread: Mutex::default() }
    }

    /// Notes what was read of a layer since it was attached, some time soon.
    pub(super) fn note(&self, layer: &Arc<Layer>) {
        self.push(Job::Note(Arc::clone(layer)));
    }

    /// Makes ready what is likely to be read of a layer, for as long as that is attached.
    pub(super) fn prefetch(&self, layer: &Arc<Layer>) {
        self.push(Job::Prefetch(Arc::clone(layer)));
    }

    fn push(&self, job: Job) {
        lock(&self.shared.state).jobs.push_back(job);
        self.shared.changed.notify_all();
        let thread = &mut *lock(&self.thread);
        if thread.is_none() {
            let shared = Arc::clone(&self.shared);
            let work = move || shared.work();
            // Without a thread everything is as it was before somebody read it.
            *thread = std::thread::Builder::new().name("prefetch".into()).spawn(work).ok();
        }
    }
}

impl Drop for Prefetcher {
    fn drop(&mut self) {
        lock(&self.shared.state).is_over = true;
        self.shared.changed.notify_all();
        let thread = lock(&self.thread).take();
        if let Some(thread) = thread {
            // It ends after what is under way; how says nothing.
            drop(thread.join());
        }
    }
}

impl Shared {
    fn work(&self) {
        let Some((_working, idle)) = Working::begin().zip(IdleProcessor::new()) else { return };
        while let Some(job) = self.next() {
            match job {
                Job::Note(layer) => drop(forgo("note what was read", self.note(&layer))),
                Job::Prefetch(layer) => {
                    if let Err(error) = self.prefetch(&layer, Some(&idle)) {
                        let (task, error) = (layer.task_name(), super::chain(&error));
                        tracing::debug!(task, error, "no more is decompressed ahead");
                    }
                }
            }
        }
    }

    /// Waits for something to do; `None` when it is over and everything is noted.
    fn next(&self) -> Option<Job> {
        let state = lock(&self.state);
        let _asleep = Asleep::begin();
        let waited = self.changed.wait_while(state, |state| state.jobs.is_empty() && !state.is_over);
        let state = &mut *waited.unwrap_or_else(PoisonError::into_inner);
        if state.is_over {
            state.jobs.retain(|job| matches!(job, Job::Note(_)));
        }
        state.jobs.pop_front()
    }

    fn is_over_after(&self, pause: Duration) -> bool {
        let state = lock(&self.state);
        let _asleep = Asleep::begin();
        let waited = self.changed.wait_timeout_while(state, pause, |state| !state.is_over);
        waited.unwrap_or_else(PoisonError::into_inner).0.is_over
    }

    /// Waits for a processor with nothing else to do, and returns whether it is over.
    fn is_over_before_idle(&self, idle: Option<&IdleProcessor>) -> bool {
        idle.is_some_and(|idle| idle.is_over_before(|pause| self.is_over_after(pause)))
    }

    fn note(&self, layer: &Layer) -> Result<(), WorkspaceError> {
        let (opening, frames) = layer.archive().take_opened();
        if opening.paths.is_empty() {
            // Nobody was there: what the last one read still says most.
            return Ok(());
        }
        let is_most = opening.frames.saturating_mul(100) >= frames.saturating_mul(MOST_PERCENT);
        let reading = Reading { paths: opening.paths, is_most };
        Ok(self.index.set_reading(*layer.owner(), &encode(&reading))?)
    }

    fn reading(&self, layer: &Layer) -> Result<Reading, WorkspaceError> {
        let bytes = self.index.reading(*layer.owner())?;
        Ok(bytes.and_then(|bytes| postcard::from_bytes(&bytes).ok()).unwrap_or_default())
    }

    /// Makes a layer ready. Without `idle`, however busy the machine is.
    fn prefetch(&self, layer: &Arc<Layer>, idle: Option<&IdleProcessor>) -> Result<(), WorkspaceError> {
        let reading = self.reading(layer)?;
        let mut left_bytes = LAYER_BYTES_MAX;
        for path in &reading.paths {
            if let Some(record) = layer.find(path)?
                && self.make_ready(layer, &record, idle, &mut left_bytes)? == Next::Enough
            {
                return Ok(());
            }
        }
        if reading.is_most {
            for (number, record) in layer.records().enumerate() {
                // Looking takes time as well.
                if number % RECORDS_AT_ONCE == 0 && self.is_over_before_idle(idle) {
                    return Ok(());
                }
                if self.make_ready(layer, &record?, idle, &mut left_bytes)? == Next::Enough {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn make_ready(
        &self,
        layer: &Arc<Layer>,
        record: &Record,
        idle: Option<&IdleProcessor>,
        left_bytes: &mut u64,
    ) -> Result<Next, WorkspaceError> {
        let bytes = open_file::missing_bytes(&self.store, layer.archive(), record)?;
        if bytes == 0 || bytes > FILE_BYTES_MAX {
            return Ok(Next::More);
        }
        if self.is_over_before_idle(idle) {
            return Ok(Next::Enough);
        }
        let is_attached =
            self.tree.layer_of(layer.owner()).is_some_and(|attached| Arc::ptr_eq(&attached, layer));
        *left_bytes = left_bytes.saturating_sub(bytes);
        let has_room = || has_room(self.store.dir(), bytes).map_err(FsError::from);
        if !is_attached || *left_bytes == 0 || !has_room()? {
            return Ok(Next::Enough);
        }
        open_file::make_ready(&self.store, layer.archive(), record)?;
        Ok(Next::More)
    }
}

#[cfg(test)]
mod tests;
