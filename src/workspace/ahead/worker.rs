//! What the packing thread does: looking at files, and packing those that are finished.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant, SystemTime};

use rustix::fs::AtFlags;

use super::{File, PackedFiles, Shared};
use crate::archive::{AheadPacker, DiskFile, FileSource, PackError, PackedAhead, Packer};
use crate::base::BaseStat;
use crate::filter::Filter;
use crate::fs::{FileKind, NodeId, Timestamp};
use crate::load::{IdleProcessor, has_room};
use crate::path::RelPathBuf;
use crate::store::Store;
use crate::view::{Finished, View};
use crate::workspace::lock;
use crate::workspace::outputs::stat_meta;

/// A file that was open is looked at again after so long, at the least.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// So much is packed ahead before it is looked at how much of it is still of use, for the first time.
const FILES_TO_LOOK: usize = 50_000;
const BYTES_TO_LOOK: u64 = 256 << 20;

/// So many files are looked at in a row, at most.
const LOOKS_MAX: usize = 256;

pub(super) struct Worker {
    view: Weak<View>,
    store: Weak<Store>,
    output: Filter,
    packer: AheadPacker,
    /// Files to look at, and when.
    waiting: VecDeque<(Instant, NodeId)>,
    batch: Vec<Candidate>,
    batch_bytes: usize,
    /// With so many files packed, or bytes written, it is looked at how many of them are still of use.
    pub(super) files_to_look: usize,
    bytes_to_look: u64,
}

/// A file that seems finished.
pub(super) struct Candidate {
    pub(super) node: NodeId,
    blob: RelPathBuf,
    pub(super) file: File,
}

/// How fast to go about it.
pub(super) struct Pace<'a> {
    /// For how long a file must have been left alone.
    pub(super) quiet: Duration,
    /// Who says whether a processor has nothing else to do. `None`: whatever the load.
    pub(super) idle: Option<&'a IdleProcessor>,
}

/// What is to be done after a step.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    More,
    Wait,
}

impl Worker {
    pub(super) fn new(view: &Arc<View>, store: &Arc<Store>, output: Filter) -> Self {
        Self {
            view: Arc::downgrade(view),
            store: Arc::downgrade(store),
            output,
            packer: AheadPacker::new(&Packer::default()),
            waiting: VecDeque::new(),
            batch: Vec::new(),
            batch_bytes: 0,
            files_to_look: FILES_TO_LOOK,
            bytes_to_look: BYTES_TO_LOOK,
        }
    }

    /// Looks for files to fill a frame with, and packs them when there are enough.
    pub(super) fn step(&mut self, shared: &Shared, pace: &Pace<'_>) -> Result<Next, PackError> {
        let Some(view) = self.view.upgrade() else { return Err(over()) };
        let due = Instant::now() + pace.quiet;
        self.waiting.extend(view.take_made().into_iter().map(|id| (due, id)));
        for _ in 0..LOOKS_MAX {
            if self.batch_bytes >= self.packer.pack_bytes() {
                return self.pack(shared, pace).map(|()| Next::More);
            }
            match self.waiting.front() {
                Some(&(due, id)) if due <= Instant::now() => {
                    self.waiting.pop_front();
                    self.look_at(&view, id, pace.quiet);
                }
                Some(_) | None => return Ok(Next::Wait),
            }
        }
        Ok(Next::More)
    }

    /// Adds a file to the batch if it seems finished.
    fn look_at(&mut self, view: &View, node: NodeId, quiet: Duration) {
        let later = (Instant::now() + quiet.max(LOOK_AGAIN), node);
        let (path, blob, xattrs) = match view.finished_file(node) {
            Finished::File { path, blob, xattrs } => (path, blob, xattrs),
            Finished::NotYet => return self.waiting.push_back(later),
            Finished::Never => return,
        };
        if !self.output.selects_output(&path) {
            return;
        }
        let Ok(stat) = rustix::fs::statat(view.staging(), blob.as_os_str(), AtFlags::SYMLINK_NOFOLLOW) else {
            return;
        };
        let stat = BaseStat::from(stat);
        if stat.kind != FileKind::File {
            return;
        }
        if !is_older(stat.identity.ctime, quiet) {
            return self.waiting.push_back(later);
        }
        let mut meta = stat_meta(&stat);
        if xattrs {
            let Ok(xattrs) = view.blob_xattrs(&blob) else { return };
            meta.xattrs = xattrs;
        }
        let size_bytes = stat.identity.size_bytes;
        self.batch_bytes =
            self.batch_bytes.saturating_add(AheadPacker::entry_bytes(&path, &meta, size_bytes));
        self.batch.push(Candidate { node, blob, file: File { path, identity: stat.identity, meta } });
    }

    /// Packs the batch: the small files into one unit, and each large one into one of its own.
    pub(super) fn pack(&mut self, shared: &Shared, pace: &Pace<'_>) -> Result<(), PackError> {
        let Some(view) = self.view.upgrade() else { return Ok(()) };
        self.batch_bytes = 0;
        let is_large = |candidate: &mut Candidate| self.packer.is_large(candidate.file.identity.size_bytes);
        let large: Vec<_> = self.batch.extract_if(.., is_large).collect();
        let small = std::mem::take(&mut self.batch);
        let units = large.into_iter().map(|candidate| vec![candidate]).chain([small]);
        for unit in units.filter(|unit| !unit.is_empty()) {
            self.make_room(shared)?;
            self.make_sure_of_use(shared, &view)?;
            match self.pack_unit((shared, pace), &view, unit) {
                // Somebody was at a file after all; it is packed at the end.
                Err(PackError::SizeChanged { .. } | PackError::Source { .. }) => {}
                other => other?,
            }
        }
        Ok(())
    }

    /// Begins the archive, and makes sure that the disk has room for more.
    fn make_room(&self, shared: &Shared) -> Result<(), PackError> {
        let mut state = lock(&shared.state);
        if state.is_over {
            return Err(over());
        }
        let packed = match &mut state.packed {
            Some(packed) => packed,
            none => none.insert(self.begin().map_err(PackError::Output)?),
        };
        match has_room(packed.temp.file(), 0).map_err(PackError::Output)? {
            true => Ok(()),
            false => Err(PackError::Output(io::ErrorKind::StorageFull.into())),
        }
    }

    /// Gives up on a task that removes or changes most of what it makes: what is packed for nothing takes room until
    /// the end.
    fn make_sure_of_use(&mut self, shared: &Shared, view: &View) -> Result<(), PackError> {
        let packed = |packed: &mut PackedFiles| {
            let much =
                packed.len() >= self.files_to_look || packed.archive.packed_bytes() >= self.bytes_to_look;
            Ok(much.then(|| (packed.nodes(), packed.archive.packed_bytes())))
        };
        let Some((nodes, bytes)) = shared.with_packed(packed).map_err(PackError::Output)? else {
            return Ok(());
        };
        let total = nodes.len();
        if 2 * view.count_finished(&nodes) < total {
            return Err(PackError::Output(io::Error::other("most of it was for nothing")));
        }
        (self.files_to_look, self.bytes_to_look) =
            (2 * total.max(self.files_to_look), 2 * bytes.max(self.bytes_to_look));
        Ok(())
    }

    fn begin(&self) -> io::Result<PackedFiles> {
        let store = self.store.upgrade().ok_or(io::ErrorKind::Interrupted)?;
        let temp = store.create_temp().map_err(io::Error::other)?;
        let archive = PackedAhead::new(temp.file())?;
        Ok(PackedFiles::new(temp, archive))
    }

    fn pack_unit(
        &mut self,
        (shared, pace): (&Shared, &Pace<'_>),
        view: &View,
        unit: Vec<Candidate>,
    ) -> Result<(), PackError> {
        let source = |candidate: &Candidate| -> Box<dyn FileSource> {
            let (path, size_bytes) = (candidate.blob.clone(), candidate.file.identity.size_bytes);
            Box::new(DiskFile { dir: Arc::clone(view.staging()), path, size_bytes })
        };
        let file = |candidate: &Candidate| {
            (candidate.file.path.clone(), candidate.file.meta.clone(), source(candidate))
        };
        // A large file has many pieces.
        let append = |piece| match pace.idle {
            Some(idle) if idle.is_over_before(|pause| shared.is_over_after(pause)) => {
                Err(io::ErrorKind::Interrupted.into())
            }
            Some(_) | None => shared.with_packed(|packed| packed.archive.append(piece)),
        };
        let result = self.packer.pack(unit.iter().map(file).collect(), append);
        let noted = shared.with_packed(|packed| {
            match &result {
                Ok(()) => packed.close_unit(unit),
                Err(_) => packed.archive.discard_open_unit(),
            }
            Ok(())
        });
        result.and(noted.map_err(PackError::Output))
    }
}

/// The run has ended, or is about to.
fn over() -> PackError {
    PackError::Output(io::ErrorKind::Interrupted.into())
}

/// Returns whether a moment is at least so long ago.
fn is_older(moment: Timestamp, age: Duration) -> bool {
    let now = Timestamp::from(SystemTime::now() - age);
    moment <= now
}
