//! From a request's bytes to its answer: the same over both transports.

use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::io::Errno;
use zerocopy::{FromBytes, IntoBytes};

use crate::abi::{InHeader, InitFlags, NotifyCode, NotifyRetrieveOut, Opcode};
use crate::control::Connection;
use crate::device::{Device, notify};
use crate::handler::Handler;
use crate::operation::{Args, DecodeError, Forget, Message, Operation, decode};
use crate::reply::{Outlet, Reply};
use crate::request::Request;

/// Beyond all numbers of requests: the kernel counts from zero, in even numbers.
const NUDGE: u64 = 1 << 62;

/// What serves a session's requests.
pub(crate) struct Serving {
    pub(crate) device: Device,
    pub(crate) handler: Arc<dyn Handler>,
    /// What kernel and server agreed on.
    pub(crate) granted: InitFlags,
    /// From now on every operation fails. Shared with those who may say so.
    pub(crate) closed: Arc<AtomicBool>,
    pub(crate) connection: Connection,
    /// The file that was opened last.
    pub(crate) file: AtomicU64,
}

impl Serving {
    /// Ends the session from the server's side: what is asked fails from now on.
    pub(crate) fn cut(&self) {
        self.closed.store(true, Ordering::Release);
        self.connection.cut();
    }

    /// Makes the kernel send a request to the calling processor's queue, about `node` or a file that was open
    /// lately: one of them has to be a file that the kernel knows. `serial` tells these requests apart.
    pub(crate) fn nudge(&self, node: u64, serial: u64) -> Result<(), Errno> {
        let ask = |nodeid| {
            // The answer to this is a request that brings no content.
            let notify_unique = NUDGE | (serial << 1);
            let out = NotifyRetrieveOut { notify_unique, nodeid, offset: 0, size: 0, padding: 0 };
            notify(self.device.as_fd(), NotifyCode::Retrieve, &[out.as_bytes()])
        };
        ask(node).or_else(|_| ask(self.file.load(Ordering::Relaxed)))
    }

    /// Serves a request that was read in one piece; the answer is put together in `body`.
    pub(crate) fn serve_whole(&self, request: &[u8], body: &mut [u8]) {
        let Ok((header, rest)) = InHeader::read_from_prefix(request) else {
            // Without a header there is no request to answer.
            return tracing::error!(found = request.len(), "kernel sent no whole header");
        };
        let out = Outlet::device(&self.device, body);
        let said = usize::try_from(header.len).unwrap_or(usize::MAX);
        if said != request.len() {
            let error = DecodeError::Length { said, found: request.len() };
            return refuse(&header, Reply::new(&header, out), &error);
        }
        self.serve(&header, Args::whole(rest), out);
    }

    /// Serves a request.
    pub(crate) fn serve(&self, header: &InHeader, args: Args<'_>, out: Outlet<'_>) {
        let mut reply = Reply::new(header, out);
        let decoded = match decode(header, args, self.granted) {
            Ok(decoded) => decoded,
            Err(error) => return refuse(header, reply, &error),
        };
        match decoded.message {
            Message::Operation(_) if self.closed.load(Ordering::Acquire) => reply.error(Errno::NOTCONN),
            Message::Operation(operation) => {
                reply.limit(&operation);
                if let Operation::Open { .. } = operation {
                    self.file.store(header.nodeid, Ordering::Relaxed);
                }
                let request = Request::new(header, operation, decoded.group, &self.device);
                guarded(|| self.handler.handle(&request, reply));
            }
            Message::Forget(forget) => {
                reply.forgo();
                guarded(|| self.handler.forget(&[forget]));
            }
            Message::Forgets(forgets) => {
                reply.forgo();
                let forgets: Vec<Forget> = forgets.iter().collect();
                guarded(|| self.handler.forget(&forgets));
            }
            Message::Interrupt { unique } => {
                reply.forgo();
                guarded(|| self.handler.interrupted(unique));
            }
            Message::NotifyReply => reply.forgo(),
            // The handler is told at the session's end.
            Message::Destroy => reply.empty(),
            Message::Init => reply.error(Errno::IO),
        }
    }
}

/// Answers what is no request.
fn refuse(header: &InHeader, reply: Reply<'_>, error: &DecodeError) {
    let (unique, opcode) = (header.unique, header.opcode);
    match error {
        DecodeError::Opcode(_) => {
            tracing::debug!(unique, opcode, "kernel asks for what is not known");
            return reply.error(Errno::NOSYS);
        }
        error => tracing::error!(unique, opcode, %error, "kernel sent a malformed request"),
    }
    let unanswered = [Opcode::Forget, Opcode::BatchForget, Opcode::Interrupt, Opcode::NotifyReply];
    match Opcode::new(opcode) {
        Some(opcode) if unanswered.contains(&opcode) => reply.forgo(),
        _ => reply.error(Errno::IO),
    }
}

/// Calls the handler. A reply that a panic drops answers `EIO`.
pub(crate) fn guarded(call: impl FnOnce()) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(call)) {
        tracing::error!(message = panic_message(&*panic), "handler panicked");
    }
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("panic without a message")
}
