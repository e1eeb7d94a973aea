//! What of a task's outputs was read.

use rusqlite::{OptionalExtension, Transaction, params};

use super::{Index, IndexError, TaskId};

impl Index {
    /// Remembers what was read last of the outputs of a task, in whichever workspace, for as long as the task has
    /// entries.
    ///
    /// # Errors
    /// [`IndexError`].
    pub fn set_reading(&self, task: TaskId, content: &[u8]) -> Result<(), IndexError> {
        self.write(|db| {
            db.prepare_cached(
                "INSERT OR REPLACE INTO readings SELECT ?1, ?2
                 WHERE EXISTS (SELECT 1 FROM entries WHERE task = ?1)",
            )?
            .execute(params![task, content])?;
            Ok(())
        })
    }

    /// Returns what was read last of the outputs of a task.
    ///
    /// # Errors
    /// [`IndexError`].
    pub fn reading(&self, task: TaskId) -> Result<Option<Vec<u8>>, IndexError> {
        self.read(|db| {
            db.prepare_cached("SELECT content FROM readings WHERE task = ?1")?
                .query_row([task], |row| row.get(0))
                .optional()
        })
    }
}

/// Forgets tasks without entries.
pub(super) fn prune(db: &Transaction<'_>) -> rusqlite::Result<()> {
    db.prepare_cached(
        "DELETE FROM readings WHERE NOT EXISTS (SELECT 1 FROM entries WHERE entries.task = readings.task)",
    )?
    .execute([])?;
    Ok(())
}
