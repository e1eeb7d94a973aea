//! Choosing the entries that have to go.

use std::collections::HashMap;

use uuid::Uuid;

use super::TaskId;
use crate::limits::Limits;

/// An entry that may have to go.
pub(super) struct Candidate {
    pub(super) id: Uuid,
    pub(super) task: TaskId,
    pub(super) archive: Option<Uuid>,
    pub(super) archive_bytes: u64,
    /// Seconds since the epoch.
    pub(super) used: i64,
    /// Whether its archive must stay.
    pub(super) pinned: bool,
}

/// Returns the entries to remove from `newest_first` such that the limits hold for what is left, or only
/// pinned entries are left.
pub(super) fn plan(newest_first: &[Candidate], limits: &Limits, now: i64) -> Vec<Uuid> {
    let mut remove = Vec::new();
    let mut kept = Vec::new();
    let mut of_task: HashMap<TaskId, usize> = HashMap::new();
    for entry in newest_first {
        let count = of_task.entry(entry.task).or_default();
        *count += 1;
        let too_many = *count > limits.entries_per_task_max.max(1);
        let too_old = now.saturating_sub(entry.used) > limits.age_max_secs;
        if (too_many || too_old) && !entry.pinned {
            remove.push(entry.id);
        } else {
            kept.push(entry);
        }
    }

    // An archive takes its space once, until the last entry that refers to it is gone.
    let mut references: HashMap<Uuid, usize> = HashMap::new();
    let mut bytes = 0_u64;
    for entry in &kept {
        let Some(archive) = entry.archive else { continue };
        let count = references.entry(archive).or_default();
        *count += 1;
        if *count == 1 {
            bytes = bytes.saturating_add(entry.archive_bytes);
        }
    }
    for entry in kept.iter().rev() {
        if bytes <= limits.bytes_max {
            break;
        }
        // One without an archive takes no space, so it need not go for space.
        let Some(archive) = entry.archive else { continue };
        if entry.pinned {
            continue;
        }
        remove.push(entry.id);
        if let Some(count) = references.get_mut(&archive) {
            *count -= 1;
            if *count == 0 {
                bytes = bytes.saturating_sub(entry.archive_bytes);
            }
        }
    }
    remove
}
