//! What changes when a live mount comes and goes, and what a crash left behind.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use uuid::Uuid;

use super::restore::{Target, at};
use super::{
    Known, LiveTree, Materialised, Mounted, ProgressSink, Workspace, WorkspaceError, forgo, lock, now_secs,
};
use crate::claim::decode_before;
use crate::filter::Filter;
use crate::fingerprint::Facets;
use crate::fs::{FsError, Invalidator, SetTime, Timestamp};
use crate::index::{EntryFilter, LayerRow};
use crate::live::{Announcer, Before, Live};
use crate::path::{RelPath, RelPathBuf};
use crate::report::{Progress, Stage};
use crate::serving::Serving;
use crate::store::{Swept, WorkArea};
use crate::task::FilterSpec;
use crate::tree::layer::LayerParts;
use crate::tree::{Found, Layer, Perspective, Stale};

impl Workspace {
    /// Starts serving layers lazily through a live mount and returns what it serves.
    ///
    /// `covers_base` says that the mount lies over the workspace, so that from now on nobody can change
    /// the base without being seen.
    ///
    /// # Errors
    /// [`WorkspaceError`].
    pub fn mount_live(
        &self,
        invalidator: Arc<dyn Invalidator>,
        serving: Serving,
        covers_base: bool,
    ) -> Result<LiveTree, WorkspaceError> {
        lock(&self.in_place).clear();
        let (store, touched) = (Arc::clone(&self.store), Arc::clone(&self.touched));
        let live = Live::new(Arc::clone(&self.materialiser), store, touched)
            .with_invalidator(Arc::clone(&invalidator))
            .with_xattrs(serving.xattrs)
            .with_opens(serving.passthrough);
        let live = Arc::new(live);
        let announcer = live.announcer();
        let tree = LiveTree {
            filesystem: Arc::<Live>::clone(&live),
            announcer: Arc::<Announcer>::clone(&announcer),
        };
        // A mapping of a file that is passed through can be written to after the file was closed, and nobody is told.
        let exclusive = serving.exclusive && covers_base && !serving.passthrough;
        *lock(&self.mounted) = Some(Mounted { live, announcer, invalidator, covers_base, exclusive });
        for layer in self.tree.layers().iter() {
            self.prefetcher.prefetch(layer);
        }
        Ok(tree)
    }

    /// Notes that the live mount is in place now, which lets an exclusive one begin to be one; `covers` returns whether it
    /// still is.
    pub fn live_covers(&self, covers: Box<dyn Fn() -> bool + Send + Sync>) {
        if lock(&self.mounted).as_ref().is_some_and(|mounted| mounted.exclusive) {
            self.touched.follow(true);
            *lock(&self.known) = Some(Arc::new(Known::new(covers)));
        }
    }

    /// Returns what the live mount shows before layers or the paths `changing` of the base change; `None`
    /// where nothing is mounted.
    pub(super) fn before<'a>(&self, changing: impl IntoIterator<Item = &'a RelPath>) -> Option<Before> {
        let live = lock(&self.mounted).as_ref().map(|mounted| Arc::clone(&mounted.live))?;
        Some(live.before(changing))
    }

    /// Lets those hear who watch the live mount, after kernel caches were told.
    pub(super) fn tell_watchers(&self, before: Option<Before>) {
        let mounted = lock(&self.mounted);
        let Some((before, mounted)) = before.zip(mounted.as_ref()) else { return };
        let news = mounted.live.news(&mounted.announcer, &self.hashes, before);
        mounted.invalidator.news(news);
    }

    /// Returns how many files, and bytes, are still virtual.
    ///
    /// # Errors
    /// [`WorkspaceError`].
    pub fn virtual_total(&self) -> Result<Materialised, WorkspaceError> {
        let mut total = Materialised::default();
        for layer in self.tree.layers().iter() {
            let all = layer.archive().toc().totals();
            let mut sum = Materialised { files: all.files, bytes: all.content_bytes, discarded_files: 0 };
            if layer.has_punches() {
                sum = Materialised::default();
                for record in layer.records() {
                    let record = record?;
                    sum.files += u64::from(record.is_file());
                    sum.bytes += record.size_bytes();
                }
            }
            total.files += sum.files;
            total.bytes += sum.bytes;
        }
        Ok(total)
    }

    /// Writes virtual files into the base, or with `discard` forgets them, and ends the live mount's
    /// layers. Called while the live mount still serves (without `discard`), or after it is gone.
    ///
    /// # Errors
    /// [`WorkspaceError`]; what was written before stays, and what was not stays virtual.
    pub fn unmount_live(
        &self,
        discard: bool,
        progress: ProgressSink<'_>,
    ) -> Result<Materialised, WorkspaceError> {
        let done = if discard { self.discard_layers()? } else { self.materialise_layers(progress)? };
        lock(&self.in_place).clear();
        Ok(done)
    }

    /// Notes that the live mount is gone.
    pub fn live_ended(&self) {
        *lock(&self.known) = None;
        self.touched.follow(false);
        *lock(&self.mounted) = None;
        lock(&self.in_place).clear();
        for layer in self.tree.layers().iter() {
            self.prefetcher.note(layer);
        }
    }

    /// Without a live mount nobody serves layers; those that one left behind are written out.
    pub(super) fn settle_layers(&self, progress: ProgressSink<'_>) -> Result<(), WorkspaceError> {
        if lock(&self.mounted).is_none() && !self.tree.layers().is_empty() {
            self.materialise_layers(progress)?;
        }
        Ok(())
    }

    fn materialise_layers(&self, progress: ProgressSink<'_>) -> Result<Materialised, WorkspaceError> {
        let committing = self.committing()?;
        let total = self.virtual_total()?;
        let mut done = Materialised::default();
        let overall = |done: &Materialised, of_layer: (u64, u64)| {
            progress(Progress {
                stage: Stage::Materialising,
                files_done: done.files + of_layer.0,
                files_total: total.files,
                bytes_done: done.bytes + of_layer.1,
                bytes_total: total.bytes,
            });
        };
        if total.files > 0 {
            overall(&done, (0, 0));
        }
        // Oldest first: what a newer layer holds of the same path is written over it.
        for layer in self.tree.layers().iter().rev() {
            let claim = self.index.claim(self.id, *layer.owner())?;
            let claimed = self.open_claim(claim.as_ref());
            let outputs = self.outputs_of(layer.entry())?;
            let target = Target {
                owner: *layer.owner(),
                task_name: layer.task_name(),
                entry: layer.entry(),
                archive: layer.archive(),
                shift_ns: layer.shift_ns(),
                outputs: &outputs,
                punched: &|path| layer.punched_before(path),
                stage: Stage::Materialising,
            };
            let of_layer = |layer: Progress| overall(&done, (layer.files_done, layer.bytes_done));
            let times = self.times_of_real_dirs(layer)?;
            let restored = self.restore(&target, claim.as_ref(), claimed, &of_layer)?;
            for (dir, mtime) in times {
                self.tree.base().set_times(&dir, None, Some(SetTime::At(mtime))).map_err(at(&dir))?;
            }
            done.files += restored.files;
            done.bytes += restored.bytes;
            self.drop_layer(layer)?;
        }
        drop(committing);
        Ok(done)
    }

    /// Returns the modification times of real directories into which a layer is about to be written: nothing
    /// changes in them that anybody could see.
    fn times_of_real_dirs(&self, layer: &Layer) -> Result<BTreeMap<RelPathBuf, Timestamp>, WorkspaceError> {
        let mut times = BTreeMap::new();
        let mut seen = HashSet::new();
        for record in layer.records() {
            let Some(dir) = record?.path.parent().map(RelPath::to_owned) else { continue };
            if seen.insert(dir.clone())
                && let Some(Found::Base(stat)) =
                    self.tree.find(&dir, Perspective::ALL).map_err(FsError::from)?
            {
                times.insert(dir, stat.identity.mtime);
            }
        }
        Ok(times)
    }

    fn discard_layers(&self) -> Result<Materialised, WorkspaceError> {
        let discarded_files = self.virtual_total()?.files;
        for layer in self.tree.layers().iter() {
            self.drop_layer(layer)?;
        }
        Ok(Materialised { discarded_files, ..Materialised::default() })
    }

    fn drop_layer(&self, layer: &Arc<Layer>) -> Result<(), WorkspaceError> {
        let freed = self.index.remove_layer(self.id, *layer.owner())?;
        self.tree.detach(layer.owner());
        self.prefetcher.note(layer);
        self.remove_archives(&freed);
        self.invalidate_layers(&[layer]);
        Ok(())
    }

    /// Finishes commits that were cut off, attaches the layers that were attached, and sweeps the store and
    /// a work area that is not in use any more.
    pub(super) fn recover(&self, former: Option<&Arc<WorkArea>>) -> Result<(), WorkspaceError> {
        for area in self.store.work_areas().chain(former) {
            self.recover_commits(area)?;
        }
        for row in self.index.layers(self.id)?.into_iter().rev() {
            self.reattach(row)?;
        }
        // What the index did not take before must at least be known to the layers.
        forgo("finish a commit", self.committing().map(drop));
        let nothing_pinned = HashSet::<Uuid>::new();
        let evicted = self.index.evict(&self.limits, now_secs(), &nothing_pinned);
        if let Some(removed) = forgo("evict entries", evicted) {
            self.remove_archives(&removed.archives);
        }
        let swept = self.store.sweep(&self.index, &self.limits, &nothing_pinned);
        if let Some(Swept::Done { .. }) = forgo("sweep the store", swept) {
            tracing::debug!("the store is swept");
        }
        if let Some(former) = former {
            forgo("sweep the workspace", former.sweep());
        }
        Ok(())
    }

    fn reattach(&self, row: LayerRow) -> Result<(), WorkspaceError> {
        let new = row.layer;
        let archive = match self.open_archive(new.archive) {
            Ok(archive) => archive,
            Err(error) => {
                tracing::error!(task = new.task_name, %error, "a layer is lost; its task will run again");
                forgo("forget a layer", self.index.remove_layer(self.id, new.owner));
                return Ok(());
            }
        };
        let punches = self.index.punches(self.id, new.owner)?;
        let punched = punches
            .into_iter()
            .map(|punch| (punch.path, punch.before.as_deref().and_then(decode_before)))
            .collect();
        let claim = self.index.claim(self.id, new.owner)?;
        let outputs = self.outputs_of(new.entry)?;
        let stale = self.open_claim(claim.as_ref()).map(|claimed| Stale { claimed, outputs });
        self.tree.attach(Arc::new(Layer::new(LayerParts {
            owner: new.owner,
            task_name: new.task_name,
            entry: new.entry,
            archive_id: new.archive,
            archive,
            shift_ns: new.shift_ns,
            stale,
            punched,
        })));
        Ok(())
    }

    /// Returns the output filter under which an entry was stored; of one that is gone, the automatic one.
    fn outputs_of(&self, entry: Uuid) -> Result<Filter, WorkspaceError> {
        let facets = self.index.facets(entry)?;
        let facets = facets.and_then(|bytes| postcard::from_bytes::<Facets>(&bytes).ok());
        let spec = facets.map_or_else(FilterSpec::default, |facets| facets.output().clone());
        Ok(Filter::compile(&spec)?)
    }

    /// Removes an entry that turned out to be unusable.
    pub(super) fn drop_entry(&self, entry: Uuid) {
        let removed = self.index.remove_entries(&EntryFilter::Id(entry));
        if let Some(removed) = forgo("remove an entry", removed) {
            self.remove_archives(&removed.archives);
        }
    }
}
