//! Requests over io_uring.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// What a slot's memory begins with. Names and data are elsewhere, in its payload.
#[repr(C)]
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub(crate) struct RingHeader {
    /// The header of the request, then of its answer.
    pub(crate) in_out: [u8; 128],
    /// The request's structure.
    pub(crate) op_in: [u8; 128],
    pub(crate) flags: u64,
    /// What the answer has to say to be that request's.
    pub(crate) commit_id: u64,
    /// Bytes in the payload: of the request, then of the answer.
    pub(crate) payload_bytes: u32,
    pub(crate) padding: u32,
    pub(crate) reserved: u64,
}

/// What a submission has beyond a pointer to such memory.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub(crate) struct RingCommand {
    pub(crate) flags: u64,
    pub(crate) commit_id: u64,
    /// The queue: a processor's number.
    pub(crate) qid: u16,
    pub(crate) padding: [u8; 6],
}
