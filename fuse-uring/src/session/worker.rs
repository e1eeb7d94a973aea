//! A thread that serves `/dev/fuse`.

use rustix::io::Errno;
use zerocopy::FromBytes;

use super::follower::Follower;
use crate::abi::{InHeader, READ_BUFFER_BYTES_MIN};
use crate::dispatch::Serving;

/// What a request has besides its data: header, structure, names and extensions.
const OVERHEAD_BYTES: usize = 4096;
/// The largest extended attribute.
const XATTR_BYTES_MAX: usize = 64 * 1024;

/// Why there is nothing more to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Disconnect {
    Unmounted,
    Aborted,
    Failed(Errno),
}

/// A thread's memory. It is touched only as far as requests and answers are large.
pub(super) struct Buffers {
    request: Vec<u8>,
    body: Vec<u8>,
}

impl Buffers {
    /// Room for requests and answers with so much data.
    pub(super) fn new(payload_bytes: usize) -> Self {
        let request = payload_bytes.max(READ_BUFFER_BYTES_MIN) + OVERHEAD_BYTES;
        let body = payload_bytes.max(XATTR_BYTES_MAX) + OVERHEAD_BYTES;
        Self { request: vec![0; request], body: vec![0; body] }
    }
}

/// Serves requests until there are no more, beside its callers where there is a `follower`.
pub(super) fn serve(serving: &Serving, mut buffers: Buffers, mut follower: Option<Follower>) -> Disconnect {
    loop {
        match serving.device.read(&mut buffers.request) {
            Ok(size) => {
                let request = &buffers.request[..size];
                serving.serve_whole(request, &mut buffers.body);
                if let (Some(follower), Ok((header, _))) =
                    (&mut follower, InHeader::read_from_prefix(request))
                {
                    follower.served(header.pid);
                }
            }
            // A signal, or a request that its caller took back while it was being read.
            Err(Errno::INTR | Errno::NOENT | Errno::AGAIN) => {}
            Err(Errno::NODEV) => return Disconnect::Unmounted,
            Err(Errno::CONNABORTED) => return Disconnect::Aborted,
            Err(error) => return Disconnect::Failed(error),
        }
    }
}
