//! The last lookup of each task.

use rusqlite::{OptionalExtension, Transaction, params};

use super::{Index, IndexError, WorkspaceId};

/// Lookups kept over all workspaces; ad hoc commands would pile up without end.
pub(super) const LOOKUPS_MAX: i64 = 10_000;

impl Index {
    /// Remembers the last lookup of a task; forgets all but the last ten thousand set.
    ///
    /// # Errors
    /// [`IndexError`].
    pub fn set_lookup(
        &self,
        workspace: WorkspaceId,
        task_name: &str,
        content: &[u8],
    ) -> Result<(), IndexError> {
        self.set_lookup_up_to((workspace, task_name), content, LOOKUPS_MAX)
    }

    pub(super) fn set_lookup_up_to(
        &self,
        (workspace, task_name): (WorkspaceId, &str),
        content: &[u8],
        lookups_max: i64,
    ) -> Result<(), IndexError> {
        self.write(|db| set(db, (workspace, task_name), content, lookups_max))
    }

    /// Returns the last lookup of a task.
    ///
    /// # Errors
    /// [`IndexError`].
    pub fn lookup(&self, workspace: WorkspaceId, task_name: &str) -> Result<Option<Vec<u8>>, IndexError> {
        self.read(|db| {
            db.prepare_cached("SELECT content FROM lookups WHERE workspace = ?1 AND task_name = ?2")?
                .query_row(params![workspace, task_name], |row| row.get(0))
                .optional()
        })
    }
}

pub(super) fn set(
    db: &Transaction<'_>,
    (workspace, task_name): (WorkspaceId, &str),
    content: &[u8],
    lookups_max: i64,
) -> rusqlite::Result<()> {
    db.prepare_cached("INSERT OR REPLACE INTO lookups (workspace, task_name, content) VALUES (?1, ?2, ?3)")?
        .execute(params![workspace, task_name, content])?;
    db.prepare_cached("DELETE FROM lookups WHERE rowid <= (SELECT max(rowid) FROM lookups) - ?1")?
        .execute([lookups_max])?;
    Ok(())
}
