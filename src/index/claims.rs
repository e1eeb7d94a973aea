//! What of a task's outputs lies in a workspace's base.

use std::collections::HashSet;

use rusqlite::{OptionalExtension, Row, Transaction, params};
use uuid::Uuid;

use super::columns::{Column, get, get_optional};
use super::entries::collect_ids;
use super::{Index, IndexError, TaskId, WorkspaceId};

/// A task's claim to files in a workspace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// The workspace.
    pub workspace: WorkspaceId,
    /// The task.
    pub owner: TaskId,
    /// The task's name, for people.
    pub task_name: String,
    /// The claim's table of contents in the store.
    pub manifest: Uuid,
    /// What was added to recorded modification times, in nanoseconds.
    pub shift_ns: i64,
    /// The entry of the run; it may have left the cache since.
    pub entry: Option<Uuid>,
}

impl Index {
    /// Returns the claim of a task.
    ///
    /// # Errors
    /// [`IndexError`].
    pub fn claim(&self, workspace: WorkspaceId, owner: TaskId) -> Result<Option<Claim>, IndexError> {
        self.read(|db| {
            db.prepare_cached(
                "SELECT workspace, owner, task_name, manifest, shift_ns, entry FROM claims
                 WHERE workspace = ?1 AND owner = ?2",
            )?
            .query_row(params![workspace, owner], claim_of)
            .optional()
        })
    }

    /// Returns all claims in a workspace, by owner.
    ///
    /// # Errors
    /// [`IndexError`].
    pub fn claims(&self, workspace: WorkspaceId) -> Result<Vec<Claim>, IndexError> {
        self.read(|db| {
            db.prepare_cached(
                "SELECT workspace, owner, task_name, manifest, shift_ns, entry FROM claims
                 WHERE workspace = ?1 ORDER BY owner",
            )?
            .query_map([workspace], claim_of)?
            .collect()
        })
    }

    /// Sets a task's claim, and returns the table of contents of its previous one if nothing refers to it any
    /// more.
    ///
    /// # Errors
    /// [`IndexError`].
    pub fn set_claim(&self, claim: &Claim) -> Result<Option<Uuid>, IndexError> {
        self.write(|db| {
            let old = manifest(db, claim.workspace, claim.owner)?;
            db.prepare_cached("INSERT OR REPLACE INTO claims VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?.execute(
                params![
                    claim.workspace,
                    claim.owner,
                    claim.task_name,
                    Column(claim.manifest),
                    claim.shift_ns,
                    claim.entry.map(Column)
                ],
            )?;
            unless_in_use(db, old)
        })
    }

    /// Removes a task's claim, and returns its table of contents if nothing refers to it any more.
    ///
    /// # Errors
    /// [`IndexError`].
    pub fn remove_claim(&self, workspace: WorkspaceId, owner: TaskId) -> Result<Option<Uuid>, IndexError> {
        self.write(|db| {
            let old = manifest(db, workspace, owner)?;
            db.prepare_cached("DELETE FROM claims WHERE workspace = ?1 AND owner = ?2")?
                .execute(params![workspace, owner])?;
            unless_in_use(db, old)
        })
    }

    /// Returns the tables of contents that claims refer to.
    ///
    /// # Errors
    /// [`IndexError`].
    pub fn manifests_in_use(&self) -> Result<HashSet<Uuid>, IndexError> {
        self.read(|db| Ok(collect_ids(db, "SELECT DISTINCT manifest FROM claims", [])?.into_iter().collect()))
    }
}

fn manifest(db: &Transaction<'_>, workspace: WorkspaceId, owner: TaskId) -> rusqlite::Result<Option<Uuid>> {
    db.prepare_cached("SELECT manifest FROM claims WHERE workspace = ?1 AND owner = ?2")?
        .query_row(params![workspace, owner], |row| get(row, 0))
        .optional()
}

fn unless_in_use(db: &Transaction<'_>, manifest: Option<Uuid>) -> rusqlite::Result<Option<Uuid>> {
    let Some(manifest) = manifest else { return Ok(None) };
    let in_use: bool = db
        .prepare_cached("SELECT EXISTS (SELECT 1 FROM claims WHERE manifest = ?1)")?
        .query_row([Column(manifest)], |row| row.get(0))?;
    Ok((!in_use).then_some(manifest))
}

fn claim_of(row: &Row<'_>) -> rusqlite::Result<Claim> {
    Ok(Claim {
        workspace: row.get(0)?,
        owner: row.get(1)?,
        task_name: row.get(2)?,
        manifest: get(row, 3)?,
        shift_ns: row.get(4)?,
        entry: get_optional(row, 5)?,
    })
}
