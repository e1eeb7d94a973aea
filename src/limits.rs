//! How much a store may hold.

use crate::config::CacheConfig;

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

impl From<&CacheConfig> for Limits {
    /// Takes what the configuration says; a size is shared out to archives and hydrated files two to one, as
    /// the defaults are.
    fn from(cache: &CacheConfig) -> Self {
        let default = Self::default();
        let size = cache.size_max_bytes;
        let secs = |age: std::time::Duration| i64::try_from(age.as_secs()).unwrap_or(i64::MAX);
        Self {
            bytes_max: size.map_or(default.bytes_max, |size| size - size / 3),
            age_max_secs: cache.age_max.map_or(default.age_max_secs, secs),
            entries_per_task_max: cache
                .entries_per_task_max
                .map_or(default.entries_per_task_max, |entries| {
                    usize::try_from(entries).unwrap_or(usize::MAX)
                }),
            blob_bytes_max: size.map_or(default.blob_bytes_max, |size| size / 3),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_is_not_configured_is_the_default() {
        assert_eq!(Limits::from(&CacheConfig::default()), Limits::default());
    }

    #[test]
    fn a_size_is_for_archives_and_hydrated_files_together() {
        let cache = CacheConfig {
            size_max_bytes: Some(1000),
            age_max: Some(Duration::MAX),
            entries_per_task_max: Some(3),
            ..CacheConfig::default()
        };
        let limits = Limits::from(&cache);
        assert_eq!((limits.bytes_max, limits.blob_bytes_max), (667, 333));
        assert_eq!((limits.age_max_secs, limits.entries_per_task_max), (i64::MAX, 3));
    }
}
