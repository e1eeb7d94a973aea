//! Handing out node numbers, which are inode numbers too.

use crate::fs::NodeId;

/// Numbers from here on are ours; below it they are the base's own inode numbers.
const OWN: u64 = 1 << 62;

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

    /// Returns an object's own inode number where it may be used, so that it is the same at the next look.
    pub(crate) fn of_base(&mut self, ino: u64, is_taken: impl FnOnce(NodeId) -> bool) -> NodeId {
        let id = NodeId(ino);
        if ino <= NodeId::ROOT.0 || ino >= OWN || is_taken(id) { self.fresh() } else { id }
    }
}
