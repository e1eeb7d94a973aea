//! How often the kernel asks for what.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use fuse_uring::operation_name;

/// Operations have smaller numbers than this; what has a larger one is counted as the last.
const OPERATIONS: usize = 64;

/// Requests by operation.
#[derive(Debug)]
pub(crate) struct RequestCounts([AtomicU64; OPERATIONS]);

impl Default for RequestCounts {
    fn default() -> Self {
        Self([const { AtomicU64::new(0) }; OPERATIONS])
    }
}

impl RequestCounts {
    /// Counts one request.
    pub(crate) fn add(&self, opcode: u32) {
        let index = usize::try_from(opcode).unwrap_or(OPERATIONS).min(OPERATIONS - 1);
        self.0[index].fetch_add(1, Ordering::Relaxed);
    }

    /// Returns the counts that are not zero, by name.
    pub(crate) fn by_name(&self) -> BTreeMap<String, u64> {
        let counted = (0..).zip(&self.0).map(|(opcode, count)| (opcode, count.load(Ordering::Relaxed)));
        counted
            .filter(|(_, count)| *count > 0)
            .map(|(opcode, count)| (operation_name(opcode).to_owned(), count))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_counted_by_name_and_unknown_ones_together() {
        let counts = RequestCounts::default();
        for opcode in [1, 1, 14, 63, 4096] {
            counts.add(opcode);
        }
        let expected = [("?", 2), ("Lookup", 2), ("Open", 1)].map(|(name, count)| (name.to_owned(), count));
        assert_eq!(counts.by_name(), BTreeMap::from(expected));
    }
}
