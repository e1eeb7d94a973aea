//! Content hashes by device and inode.

use rusqlite::{OptionalExtension, params};

use super::columns::{Column, get};
use super::{Index, IndexError};
use crate::digest::Digest;

/// Rows kept; a row replaced counts twice until it has aged out.
const ROWS_MAX: i64 = 1_000_000;

/// The hash of a file, and what tells whether it still is that of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StatRow {
    /// Device.
    pub dev: u64,
    /// Inode.
    pub ino: u64,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Modification of the content, in nanoseconds since the epoch.
    pub mtime_ns: i64,
    /// Change of content or attributes, in nanoseconds since the epoch.
    pub ctime_ns: i64,
    /// Content hash.
    pub digest: Digest,
}

impl Index {
    /// Returns what is known of files given by device and inode, in the same order.
    ///
    /// # Errors
    /// [`IndexError`].
    pub fn stat_cache_get(&self, files: &[(u64, u64)]) -> Result<Vec<Option<StatRow>>, IndexError> {
        self.read(|db| {
            let mut select = db.prepare_cached(
                "SELECT size_bytes, mtime_ns, ctime_ns, digest FROM stat_cache WHERE dev = ?1 AND ino = ?2",
            )?;
            let row_of = |&(dev, ino): &(u64, u64)| {
                select
                    .query_row(params![Column(dev), Column(ino)], |row| {
                        Ok(StatRow {
                            dev,
                            ino,
                            size_bytes: get(row, 0)?,
                            mtime_ns: row.get(1)?,
                            ctime_ns: row.get(2)?,
                            digest: get(row, 3)?,
                        })
                    })
                    .optional()
            };
            files.iter().map(row_of).collect()
        })
    }

    /// Remembers hashes, replacing what was known of the same files; forgets all but the last million put.
    ///
    /// # Errors
    /// [`IndexError`].
    pub fn stat_cache_put(&self, rows: &[StatRow]) -> Result<(), IndexError> {
        self.stat_cache_put_up_to(rows, ROWS_MAX)
    }

    pub(super) fn stat_cache_put_up_to(&self, rows: &[StatRow], rows_max: i64) -> Result<(), IndexError> {
        if rows.is_empty() {
            return Ok(());
        }
        self.write(|db| {
            let mut insert = db.prepare_cached(
                "INSERT OR REPLACE INTO stat_cache (dev, ino, size_bytes, mtime_ns, ctime_ns, digest)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            )?;
            for row in rows {
                insert.execute(params![
                    Column(row.dev),
                    Column(row.ino),
                    Column(row.size_bytes),
                    row.mtime_ns,
                    row.ctime_ns,
                    Column(row.digest)
                ])?;
            }
            // Each insertion takes the next number, so the range of numbers bounds the count, and nothing has
            // to be counted.
            db.prepare_cached(
                "DELETE FROM stat_cache WHERE rowid <= (SELECT max(rowid) FROM stat_cache) - ?1",
            )?
            .execute([rows_max])?;
            Ok(())
        })
    }
}
