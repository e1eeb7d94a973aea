//! Content hashes of files in the base, remembered as long as a file's identity stays the same.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

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
    known: Mutex<Known>,
    index: Option<Arc<Index>>,
}

#[derive(Debug, Default)]
struct Known {
    hashes: HashMap<(u64, u64), StatRow>,
    unsaved: Vec<StatRow>,
}

impl ContentHashes {
    /// Starts with what `index` remembers, if there is one.
    #[must_use]
    pub fn new(index: Option<Arc<Index>>) -> Self {
        Self { known: Mutex::default(), index }
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

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
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
        let remembered = self.lock().hashes.get(&key).copied();
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

impl From<SystemTime> for Timestamp {
    fn from(time: SystemTime) -> Self {
        match time.duration_since(UNIX_EPOCH) {
            Ok(after) => {
                Self { secs: i64::try_from(after.as_secs()).unwrap_or(i64::MAX), nanos: after.subsec_nanos() }
            }
            Err(before) => {
                let before = before.duration();
                let whole = i64::try_from(before.as_secs()).unwrap_or(i64::MAX);
                match before.subsec_nanos() {
                    0 => Self { secs: -whole, nanos: 0 },
                    nanos => Self { secs: -whole - 1, nanos: 1_000_000_000 - nanos },
                }
            }
        }
    }
}

impl Timestamp {
    /// Returns the time `by_ns` nanoseconds later (earlier, if negative).
    #[must_use]
    pub fn shifted(self, by_ns: i64) -> Self {
        let nanos = i64::from(self.nanos) + by_ns.rem_euclid(1_000_000_000);
        Self {
            secs: self
                .secs
                .saturating_add(by_ns.div_euclid(1_000_000_000))
                .saturating_add(nanos / 1_000_000_000),
            nanos: u32::try_from(nanos % 1_000_000_000).expect("a remainder of a billion"),
        }
    }

    /// Returns the nanoseconds from `earlier` to `self`, saturating at some 292 years.
    #[must_use]
    pub fn ns_since(self, earlier: Self) -> i64 {
        let ns = (i128::from(self.secs) - i128::from(earlier.secs)) * 1_000_000_000 + i128::from(self.nanos)
            - i128::from(earlier.nanos);
        i64::try_from(ns).unwrap_or(if ns < 0 { i64::MIN } else { i64::MAX })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shifting_by_a_difference_leads_from_one_time_to_the_other() {
        for (a, b) in [((5, 999_999_999), (6, 0)), ((0, 1), (-3, 999_999_998)), ((7, 7), (7, 7))] {
            let [a, b] = [a, b].map(|(secs, nanos)| Timestamp { secs, nanos });
            assert_eq!(a.shifted(b.ns_since(a)), b);
            assert_eq!(b.shifted(a.ns_since(b)), a);
        }
    }

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
