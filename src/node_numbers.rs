//! Handing out node numbers, which are inode numbers too.

use crate::fs::NodeId;
use crate::tree::{Found, virtual_number};

/// Numbers from here on are ours; below it they are the base's own inode numbers.
const OWN: u64 = 1 << 62;

/// Numbers from here on are those of virtual objects.
const VIRTUAL: u64 = OWN | 1 << 61;

/// Node numbers leave the highest bit free.
const END: u64 = 1 << 63;

/// What a listing shows where a number is not known (`FUSE_UNKNOWN_INO`); it is advisory there.
pub(crate) const UNKNOWN: NodeId = NodeId(0xffff_ffff);

/// Hands out node numbers, none of them twice unless the caller says that it is free again.
#[derive(Debug)]
pub(crate) struct NodeNumbers {
    last_own: u64,
}

impl NodeNumbers {
    pub(crate) fn new() -> Self {
        Self { last_own: OWN }
    }

    /// Returns a number that no object of the base has.
    pub(crate) fn fresh(&mut self) -> NodeId {
        self.last_own += 1;
        NodeId(self.last_own)
    }

    /// Returns the number of an object that was found.
    pub(crate) fn of_found(&mut self, found: &Found, is_taken: impl FnOnce(NodeId) -> bool) -> NodeId {
        match found {
            Found::Base(stat) => self.of_base(stat.identity.ino, is_taken),
            Found::Virtual(layer, record) => self.of_virtual(virtual_number(layer, record), is_taken),
        }
    }

    /// Returns an object's own inode number where it may be used, so that it is the same at the next look.
    pub(crate) fn of_base(&mut self, ino: u64, is_taken: impl FnOnce(NodeId) -> bool) -> NodeId {
        of_base(ino).filter(|id| !is_taken(*id)).unwrap_or_else(|| self.fresh())
    }

    /// Returns a virtual object's number where it is free, so that it is the same at the next look.
    fn of_virtual(&mut self, number: u64, is_taken: impl FnOnce(NodeId) -> bool) -> NodeId {
        let id = of_virtual(number);
        if is_taken(id) { self.fresh() } else { id }
    }
}

/// Returns the number that an object of the base gets unless another one has it.
pub(crate) fn of_base(ino: u64) -> Option<NodeId> {
    (ino > NodeId::ROOT.0 && ino < OWN).then_some(NodeId(ino))
}

/// Returns the number that a virtual object gets unless another one has it.
pub(crate) fn of_virtual(number: u64) -> NodeId {
    NodeId(number % (END - VIRTUAL) + VIRTUAL)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_the_base_of_virtual_objects_and_our_own_differ() {
        let mut numbers = NodeNumbers::new();
        assert_eq!(numbers.of_base(7, |_| false), NodeId(7));
        assert_eq!(numbers.of_virtual(u64::MAX, |_| false), NodeId(u64::MAX / 2));
        assert!(
            (0..100).all(|number| of_virtual(number).0 >= VIRTUAL && of_base(of_virtual(number).0).is_none())
        );
        let own = [
            numbers.fresh(),
            numbers.of_base(7, |_| true),
            numbers.of_base(1, |_| false),
            numbers.of_base(u64::MAX, |_| false),
            numbers.of_virtual(7, |_| true),
        ];
        assert_eq!(own, [1, 2, 3, 4, 5].map(|number| NodeId(OWN + number)));
    }
}
