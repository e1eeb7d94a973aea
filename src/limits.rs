//! How much a store may hold.

/// Bounds of a store; what exceeds them goes, least recently used first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of all archives together.
    pub bytes_max: u64,
    /// Seconds an entry may lie unused.
    pub age_max_secs: i64,
    /// Entries kept of one task, never less than one.
    pub entries_per_task_max: usize,
    /// Bytes of all hydrated files together.
    pub blob_bytes_max: u64,
}

impl Default for Limits {
    fn default() -> Self {
        const GIB: u64 = 1 << 30;
        Self {
            bytes_max: 20 * GIB,
            age_max_secs: 30 * 24 * 60 * 60,
            entries_per_task_max: 16,
            blob_bytes_max: 10 * GIB,
        }
    }
}
