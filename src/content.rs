//! Content hashes of files in the base, remembered as long as a file's identity stays the same.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::io;
use std::sync::{Arc, PoisonError, RwLock, RwLockWriteGuard};
use std::time::{Duration, SystemTime};

use crate::base::{Base, BaseStat, Identity};
use crate::digest::Digest;
use crate::fs::Timestamp;
use crate::index::{Index, IndexError, StatRow};
use crate::path::RelPath;

/// A file changed more recently than this is hashed but not remembered: another write within the
/// clock's granularity (a timer tick, 10 ms at worst) would leave its identity as it is.
const SETTLED_AFTER: Duration = Duration::from_millis(20);

/// Remembered content hashes.
#[derive(Debug, Default)]
pub struct ContentHashes {
    /// By device and inode. Released before the index is asked.
    known: RwLock<Known>,
    index: Option<Arc<Index>>,
}

#[derive(Debug, Default)]
struct Known {
    hashes: HashMap<(u64, u64), StatRow, BuildHasherDefault<NumbersHasher>>,
    unsaved: Vec<StatRow>,
}

/// Hashes device and inode numbers: nobody gains by choosing these badly, and with a hundred thousand files the time of
/// a hash that guards against it shows.
#[derive(Debug, Default)]
struct NumbersHasher(u64);

impl Hasher for NumbersHasher {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.write_u64(byte.into()));
    }

    #[expect(clippy::cast_possible_truncation, reason = "the lower half is meant")]
    fn write_u64(&mut self, number: u64) {
        // An odd constant without a pattern; the product's upper half mixes all bits of both.
        let product = u128::from(self.0.rotate_left(32) ^ number) * 0x9e37_79b9_7f4a_7c15;
        self.0 = (product ^ (product >> 64)) as u64;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

impl ContentHashes {
    /// Starts with what `index` remembers, if there is one.
    #[must_use]
    pub fn new(index: Option<Arc<Index>>) -> Self {
        Self { known: RwLock::default(), index }
    }

    /// Saves the hashes that were computed since the last call.
    ///
    /// # Errors
    /// [`IndexError`].
    pub fn save(&self) -> Result<(), IndexError> {
        let unsaved = std::mem::take(&mut self.lock().unsaved);
        match &self.index {
            Some(index) if !unsaved.is_empty() => index.stat_cache_put(&unsaved),
            _ => Ok(()),
        }
    }

    fn lock(&self) -> RwLockWriteGuard<'_, Known> {
        self.known.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers a hash that was computed on the way.
    pub fn insert(&self, identity: Identity, digest: Digest) {
        if !settled(&identity) {
            return;
        }
        let row = row_of(&identity, digest);
        let mut known = self.lock();
        known.hashes.insert((identity.dev, identity.ino), row);
        known.unsaved.push(row);
    }

    /// Returns the hash of a file that is remembered under just this identity.
    #[must_use]
    pub fn known(&self, identity: &Identity) -> Option<Digest> {
        let key = (identity.dev, identity.ino);
        let remembered = self.known.read().unwrap_or_else(PoisonError::into_inner).hashes.get(&key).copied();
        let remembered = match remembered {
            Some(row) => row,
            None => {
                let saved = self.index.as_ref()?.stat_cache_get(&[key]).ok()?;
                let row = saved.into_iter().next().flatten()?;
                self.lock().hashes.insert(key, row);
                row
            }
        };
        (remembered == row_of(identity, remembered.digest)).then_some(remembered.digest)
    }

    /// Returns the hash of the file at `path`, which `stat` describes.
    ///
    /// # Errors
    /// Where the file cannot be read, or (`ESTALE`) is no longer the one that `stat` describes.
    pub fn of_file(&self, base: &Base, path: &RelPath, stat: &BaseStat) -> io::Result<Digest> {
        if let Some(digest) = self.known(&stat.identity) {
            return Ok(digest);
        }
        let file = base.open_file(path)?;
        let digest = Digest::of_reader(&file)?;
        if BaseStat::from(rustix::fs::fstat(&file)?).identity != stat.identity {
            return Err(rustix::io::Errno::STALE.into());
        }
        self.insert(stat.identity, digest);
        Ok(digest)
    }
}

fn row_of(identity: &Identity, digest: Digest) -> StatRow {
    let ns = |time: Timestamp| time.ns_since(Timestamp::default());
    let Identity { dev, ino, size_bytes, mtime, ctime } = *identity;
    StatRow { dev, ino, size_bytes, mtime_ns: ns(mtime), ctime_ns: ns(ctime), digest }
}

fn settled(identity: &Identity) -> bool {
    let changed = identity.mtime.max(identity.ctime);
    let settled_at = Timestamp::from(SystemTime::now() - SETTLED_AFTER);
    changed < settled_at
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_was_just_written_is_hashed_anew() {
        let dir = tempfile::tempdir().unwrap();
        let base = Base::new(std::fs::File::open(dir.path()).unwrap().into(), Vec::new()).unwrap();
        std::fs::write(dir.path().join("f"), "one").unwrap();
        let path = RelPath::new("f").unwrap();
        let hashes = ContentHashes::default();
        let stat = base.stat(path).unwrap().unwrap();
        assert_eq!(hashes.of_file(&base, path, &stat).unwrap(), Digest::of(b"one"));
        assert_eq!(hashes.known(&stat.identity), None);
    }
}
