//! Removing what crashes left, and hydrated files beyond the limit.

use std::collections::HashSet;
use std::ffi::CString;
use std::hash::BuildHasher;
use std::ops::AddAssign;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use thiserror::Error;
use uuid::Uuid;

use super::error::{At as _, StoreError};
use super::staging::ids;
use super::{Store, WorkArea, archive_name, claim_name, tree};
use crate::index::{Index, IndexError};
use crate::limits::Limits;

/// What [`Store::sweep`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Swept {
    /// Nothing: the store is open elsewhere, and what looks left over may be in use there.
    InUse,
    /// It removed this many of each.
    Done {
        /// Temporary files, and hydrated files of an earlier boot of the machine as one.
        temporary: u64,
        /// Archives that nothing in the index refers to.
        archives: u64,
        /// Claims that nothing in the index refers to.
        claims: u64,
        /// Staging directories of runs that were cut off.
        staging: u64,
        /// Hydrated files beyond the limit.
        blobs: u64,
    },
}

/// Why a store could not be swept.
#[derive(Debug, Error)]
pub enum SweepError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The index.
    #[error(transparent)]
    Index(#[from] IndexError),
}

impl Store {
    /// Removes what crashes left, unless another process has the store open.
    ///
    /// Left alone are: what this store object made itself, `pinned` archives, staging directories that
    /// have a journal, journals, and names that are none of ours.
    ///
    /// # Errors
    /// [`SweepError`]; what was removed before stays removed.
    pub fn sweep<S: BuildHasher>(
        &self,
        index: &Index,
        limits: &Limits,
        pinned: &HashSet<Uuid, S>,
    ) -> Result<Swept, SweepError> {
        let work = || self.sweep_alone(index, limits, pinned);
        let swept = self.dirs.own.exclusively(work)?;
        swept.unwrap_or(Ok(Swept::InUse))
    }

    fn sweep_alone<S: BuildHasher>(
        &self,
        index: &Index,
        limits: &Limits,
        pinned: &HashSet<Uuid, S>,
    ) -> Result<Swept, SweepError> {
        let kept = index.archives_in_use()?;
        let archives = self.sweep_dir(self.dirs.archives.as_fd(), "archives", archive_name, |id| {
            kept.contains(&id) || pinned.contains(&id)
        })?;
        let kept = index.manifests_in_use()?;
        let claims =
            self.sweep_dir(self.dirs.claims.as_fd(), "claims", claim_name, |id| kept.contains(&id))?;
        let mut left = self.dirs.own.sweep_alone()?;
        if !Arc::ptr_eq(&self.work, &self.dirs.own) {
            left += self.work.sweep()?;
        }
        let blobs = self.trim_blobs(limits.blob_bytes_max)?.files;
        let SweptWork { temporary, staging } = left;
        Ok(Swept::Done { temporary, archives, claims, staging, blobs })
    }

    /// Removes the files of a directory that have an id as name and are neither kept nor of our making.
    fn sweep_dir(
        &self,
        dir: BorrowedFd<'_>,
        dir_name: &str,
        file_name: fn(Uuid) -> String,
        keep: impl Fn(Uuid) -> bool,
    ) -> Result<u64, StoreError> {
        let suffix = file_name(Uuid::nil()).split_off(Uuid::nil().to_string().len());
        let found = ids(dir, &suffix).at("list", || self.dirs.path.join(dir_name))?;
        let mut removed = 0;
        for id in found {
            if !keep(id) && !self.dirs.own.made().contains(&id) {
                removed += u64::from(self.remove(dir, dir_name, id, &file_name(id))?);
            }
        }
        Ok(removed)
    }

    /// Makes room without a look into the index, which may need that room itself: removes temporary
    /// files, unless another process has the store open, and all hydrated files.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn make_room(&self) -> Result<(), StoreError> {
        self.dirs.own.sweep()?;
        self.trim_blobs(0)?;
        Ok(())
    }
}

/// What [`WorkArea::sweep`] removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SweptWork {
    /// Temporary files.
    pub temporary: u64,
    /// Staging directories of runs that were cut off.
    pub staging: u64,
}

impl AddAssign for SweptWork {
    fn add_assign(&mut self, other: Self) {
        self.temporary += other.temporary;
        self.staging += other.staging;
    }
}

impl WorkArea {
    /// Removes what crashes left, unless another process has the area open.
    ///
    /// Left alone are: what was made through this object, staging directories that have a journal, and
    /// journals.
    ///
    /// # Errors
    /// [`StoreError`]; what was removed before stays removed.
    pub fn sweep(&self) -> Result<SweptWork, StoreError> {
        self.exclusively(|| self.sweep_alone())?.unwrap_or(Ok(SweptWork::default()))
    }

    fn sweep_alone(&self) -> Result<SweptWork, StoreError> {
        let left = self.leftovers()?;
        let mut swept = SweptWork::default();
        for id in left.staging {
            // A commit that was cut off still needs the files.
            if !left.journals.contains(&id) && !self.made().contains(&id) {
                swept.staging += u64::from(self.remove_staging(id)?);
            }
        }
        let at = || self.path().join("tmp");
        let names = tree::names(self.tmp()).at("list", at)?;
        let is_made = |name: &CString| {
            let id = name.to_str().ok().and_then(|name| Uuid::try_parse(name).ok());
            id.is_some_and(|id| self.made().contains(&id))
        };
        for name in names.iter().filter(|name| !is_made(name)) {
            swept.temporary += u64::from(tree::remove(self.tmp(), name).at("remove", at)?);
        }
        Ok(swept)
    }
}
