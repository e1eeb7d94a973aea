//! Removing what crashes left, and hydrated files beyond the limit.

use std::collections::HashSet;
use std::ffi::CString;
use std::hash::BuildHasher;
use std::os::fd::{AsFd, BorrowedFd};

use thiserror::Error;
use uuid::Uuid;

use super::error::{At as _, StoreError};
use super::staging::ids;
use super::{Store, archive_name, claim_name, tree};
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
        let swept = self.lock.exclusively(self.dir(), work).at("lock", || self.dirs.path.join("lock"))?;
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
        let left = self.leftovers()?;
        let mut staging = 0;
        for id in left.staging {
            // A commit that was cut off still needs the files.
            if !left.journals.contains(&id) && !self.dirs.made().contains(&id) {
                staging += u64::from(self.remove_staging(id)?);
            }
        }
        let temporary = self.sweep_temporary()?;
        let blobs = self.trim_blobs(limits.blob_bytes_max)?.files;
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
            if !keep(id) && !self.dirs.made().contains(&id) {
                removed += u64::from(self.remove(dir, dir_name, id, &file_name(id))?);
            }
        }
        Ok(removed)
    }

    fn sweep_temporary(&self) -> Result<u64, StoreError> {
        let at = || self.dirs.path.join("tmp");
        let names = tree::names(self.dirs.tmp.as_fd()).at("list", at)?;
        let is_made = |name: &CString| {
            let id = name.to_str().ok().and_then(|name| Uuid::try_parse(name).ok());
            id.is_some_and(|id| self.dirs.made().contains(&id))
        };
        let mut removed = 0;
        for name in names.iter().filter(|name| !is_made(name)) {
            removed += u64::from(tree::remove(self.dirs.tmp.as_fd(), name).at("remove", at)?);
        }
        Ok(removed)
    }
}
