//! Tables by node.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use crate::fs::NodeId;

/// A table by node. Several are looked into for each request, so their hash is one multiplication.
///
/// # Limitations
/// The hash withstands patterns in inode numbers, but nobody who may choose them: those are file systems, and this
/// program.
pub type NodeMap<V> = HashMap<NodeId, V, BuildHasherDefault<NodeHasher>>;

/// The hash of a [`NodeMap`]; of anything but one number it is a poor one.
#[derive(Debug, Default, Clone, Copy)]
pub struct NodeHasher(u64);

/// An odd number without a pattern: the fraction of the golden ratio.
const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;

impl Hasher for NodeHasher {
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(byte.into());
        }
    }

    fn write_u64(&mut self, number: u64) {
        let product = u128::from(self.0 ^ number) * u128::from(FACTOR);
        // A table takes both ends of the result, and each half is weak at one of its own: both are folded.
        let half = |product| u64::try_from(product & u128::from(u64::MAX)).unwrap_or_default();
        self.0 = half(product) ^ half(product >> 64);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::hash::BuildHasher;

    use super::*;

    #[test]
    fn numbers_that_follow_each_other_spread() {
        let hash = |number| BuildHasherDefault::<NodeHasher>::default().hash_one(NodeId(number));
        for step in [1, 8, 1 << 20, 1 << 40] {
            let hashes: Vec<_> = (1..=4096).map(|number: u64| hash(number * step)).collect();
            let buckets: HashSet<_> = hashes.iter().map(|hash| hash % 8192).collect();
            // By chance it would be 3200.
            assert!(buckets.len() > 2000, "{} of {step}", buckets.len());
            let tags: HashSet<_> = hashes.iter().map(|hash| hash >> 57).collect();
            assert_eq!(tags.len(), 128, "of {step}");
        }
    }
}
