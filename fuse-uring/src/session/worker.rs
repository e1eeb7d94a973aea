//! A thread that serves `/dev/fuse`.

use std::thread;
use std::time::Duration;

use rustix::io::Errno;
use zerocopy::FromBytes;

use super::follower::Follower;
use crate::abi::{InHeader, Opcode, READ_BUFFER_BYTES_MIN};
use crate::dispatch::Serving;

/// What a request has besides its data: header, structure, names and extensions.
const OVERHEAD_BYTES: usize = 4096;
/// The largest extended attribute.
const XATTR_BYTES_MAX: usize = 64 * 1024;

/// How long forgets gather. A removal takes a fraction of this, and closing a session at most so much more.
const GATHERING: Duration = Duration::from_millis(1);

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

/// What a thread does between two requests.
pub(super) enum Between {
    /// It reads the next.
    Nothing,
    /// It stays beside its caller.
    Following(Follower),
    /// It lets forgets gather. They are what comes over the device where requests come over a ring; nobody waits for
    /// them, but waking this thread for each, on another processor, costs whoever removes files more than asking.
    Gathering,
}

impl Between {
    fn served(&mut self, request: &[u8]) {
        let Ok((header, _)) = InHeader::read_from_prefix(request) else { return };
        match self {
            Self::Nothing => {}
            Self::Following(follower) => follower.served(header.pid),
            Self::Gathering => {
                let opcode = Opcode::new(header.opcode);
                if matches!(opcode, Some(Opcode::Forget | Opcode::BatchForget)) {
                    #[expect(clippy::disallowed_methods, reason = "the point is not to be woken")]
                    thread::sleep(GATHERING);
                }
            }
        }
    }
}

/// Serves requests until there are no more.
pub(super) fn serve(serving: &Serving, mut buffers: Buffers, mut between: Between) -> Disconnect {
    loop {
        match serving.device.read(&mut buffers.request) {
            Ok(size) => {
                let request = &buffers.request[..size];
                serving.serve_whole(request, &mut buffers.body);
                between.served(request);
            }
            // A signal, or a request that its caller took back while it was being read.
            Err(Errno::INTR | Errno::NOENT | Errno::AGAIN) => {}
            Err(Errno::NODEV) => return Disconnect::Unmounted,
            Err(Errno::CONNABORTED) => return Disconnect::Aborted,
            Err(error) => return Disconnect::Failed(error),
        }
    }
}
