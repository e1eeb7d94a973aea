//! Directories that views write to, and what crashed runs leave of them.

use std::ffi::CString;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::{FlockOperation, Mode};
use rustix::io::{Errno, retry_on_intr};
use uuid::Uuid;

use super::error::{At as _, StoreError};
use super::{DIR_MODE, WorkArea, open_dir, tree};

/// What runs left that were cut off, sorted. Nothing of a run that is still going on, here or in another
/// process.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Leftovers {
    /// Staging directories.
    pub staging: Vec<Uuid>,
    /// Journals: commits to carry out or to undo before anything else.
    pub journals: Vec<Uuid>,
}

impl Leftovers {
    /// Returns whether there is nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.staging.is_empty() && self.journals.is_empty()
    }
}

impl WorkArea {
    /// Opens the staging directory `id`, creating it where it is missing.
    ///
    /// It counts as in use until the descriptor, with all its duplicates, is closed.
    ///
    /// # Errors
    /// [`StoreError`]; of kind `WouldBlock` where another process uses it.
    pub fn staging(&self, id: Uuid) -> Result<OwnedFd, StoreError> {
        let name = id.to_string();
        let at = || self.path().join("staging").join(&name);
        self.made().insert(id);
        match open_dir(self.staging_dir(), &name) {
            Ok(dir) => {
                lock(&dir).at("lock", at)?;
                return Ok(dir);
            }
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(StoreError::of("open", at(), errno.into())),
        }
        // It gets its name when it is locked: nobody may ever see it and take it for a leftover.
        rustix::fs::mkdirat(self.tmp(), &name, Mode::from(DIR_MODE)).at("create", at)?;
        let dir = open_dir(self.tmp(), &name).at("open", at)?;
        lock(&dir).at("lock", at)?;
        rustix::fs::renameat(self.tmp(), &name, self.staging_dir(), &name).at("create", at)?;
        Ok(dir)
    }

    /// Removes the staging directory `id` with all that is in it; returns whether there was one.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn remove_staging(&self, id: Uuid) -> Result<bool, StoreError> {
        let removed = tree::remove(self.staging_dir(), &c_name(id))
            .at("remove", || self.path().join("staging").join(id.to_string()))?;
        self.made().remove(&id);
        Ok(removed)
    }

    /// Returns what runs left that were cut off.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn leftovers(&self) -> Result<Leftovers, StoreError> {
        let list = |dir: BorrowedFd<'_>, name: &str| {
            let mut ids = ids(dir, "").at("list", || self.path().join(name))?;
            ids.sort_unstable();
            Ok::<_, StoreError>(ids)
        };
        // Journals first: one that is published after this look has a staging directory that is locked.
        let mut journals = list(self.journal(), "journal")?;
        let mut staging = list(self.staging_dir(), "staging")?;
        staging.retain(|&id| !self.staging_in_use(id));
        journals.retain(|&id| !self.staging_in_use(id));
        Ok(Leftovers { staging, journals })
    }

    fn staging_in_use(&self, id: Uuid) -> bool {
        match open_dir(self.staging_dir(), &id.to_string()) {
            Ok(dir) => lock(&dir).is_err(),
            // A journal without a staging directory: the commit took the last file out of it.
            Err(_) => false,
        }
    }
}

/// Returns the ids in a directory whose names are `<uuid><suffix>`; other names are not ours to judge.
pub(super) fn ids(dir: BorrowedFd<'_>, suffix: &str) -> Result<Vec<Uuid>, Errno> {
    let names = tree::names(dir)?;
    let id = |name: &CString| Uuid::try_parse(name.to_str().ok()?.strip_suffix(suffix)?).ok();
    Ok(names.iter().filter_map(id).collect())
}

fn lock(dir: &OwnedFd) -> Result<(), Errno> {
    retry_on_intr(|| rustix::fs::flock(dir, FlockOperation::NonBlockingLockExclusive))
}

fn c_name(id: Uuid) -> CString {
    CString::new(id.to_string()).unwrap_or_default()
}
