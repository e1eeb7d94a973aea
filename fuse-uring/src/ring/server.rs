//! The thread of one ring.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Duration;

use rustix::io::Errno;
use rustix::thread::sched_getcpu;
use zerocopy::{FromBytes, IntoBytes};

use super::mailbox::{Later, Mail, Mailbox};
use super::processors::stay_on;
use crate::abi::{InHeader, OUT_HEADER_BYTES, OutHeader};
use crate::courtesy::Courtesy;
use crate::dispatch::Serving;
use crate::operation::Args;
use crate::reply::{Held, Outlet};
use crate::sys::{Completion, Ring, Slot};

/// Memory of slots that may be kept while there is work.
const EXCESS_BYTES_MAX: usize = 4 * 1024 * 1024;
/// How long there has to be no work before it is given back.
const IDLE: Duration = Duration::from_secs(1);
/// Requests served elsewhere between two tries to come back.
const RETURNS_EVERY: u32 = 1024;
/// Slots of one queue of a session, however many answers are deferred.
const SLOTS_MAX: usize = 4096;

/// Serves the queues of one processor.
struct Server {
    ring: Ring,
    mailbox: Arc<Mailbox>,
    sessions: HashMap<u64, Attached>,
    /// Where answers are put together while their request's names are still borrowed.
    scratch: Vec<u8>,
    /// Memory that slots may have kept, beyond a page each.
    excess_bytes: usize,
    page_bytes: usize,
    /// Requests that this thread made the kernel send.
    nudges: u64,
    courtesy: Courtesy,
    processor: u16,
    /// Requests that were served on another processor, since ours went offline.
    away: u32,
}

/// A session, as this thread knows it.
struct Attached {
    /// Gone once the session is over; slots may still be with the kernel.
    serving: Option<Arc<Serving>>,
    later: Later,
    queues: BTreeMap<u16, Queue>,
    payload_bytes: usize,
    /// Who waits for the slots to be registered.
    registering: Option<Sender<Result<(), Errno>>>,
    refused: Option<Errno>,
}

/// A session's slots on one queue.
#[derive(Default)]
struct Queue {
    /// With the kernel, or just being served.
    slots: usize,
    /// Out of the kernel's reach until their requests are answered, by the requests' numbers.
    deferred: HashMap<u64, Slot>,
}

/// Runs until nobody needs the thread any more.
pub(super) fn run(processor: u16, started: &Sender<io::Result<Arc<Mailbox>>>) {
    pin(processor);
    let server = Ring::new().and_then(|ring| {
        let waker = ring.waker().try_clone_to_owned()?;
        Ok(Server::new(processor, ring, Arc::new(Mailbox::new(waker))))
    });
    let mut server = match server {
        Ok(server) => server,
        Err(error) => return drop(started.send(Err(error))),
    };
    started.send(Ok(Arc::clone(&server.mailbox))).ok();
    if let Err(error) = server.serve() {
        tracing::error!(%error, processor, "a ring failed; its sessions are cut");
        for serving in server.sessions.values().filter_map(|attached| attached.serving.as_ref()) {
            serving.cut();
        }
    }
    server.mailbox.close();
}

/// Keeps the thread on a processor. Where that is not allowed, it serves from elsewhere.
fn pin(processor: u16) {
    if let Err(error) = stay_on(processor.into()) {
        tracing::debug!(%error, processor, "a ring's thread cannot stay on its processor");
    }
}

impl Server {
    fn new(processor: u16, ring: Ring, mailbox: Arc<Mailbox>) -> Self {
        Self {
            ring,
            mailbox,
            sessions: HashMap::new(),
            scratch: Vec::new(),
            excess_bytes: 0,
            page_bytes: rustix::param::page_size(),
            nudges: 0,
            courtesy: Courtesy::new(),
            processor,
            away: 0,
        }
    }

    fn serve(&mut self) -> io::Result<()> {
        let mut completions = Vec::new();
        loop {
            let idle = if self.excess_bytes > 0 { Some(IDLE) } else { None };
            self.ring.wait(idle)?;
            while let Some(completion) = self.ring.next()? {
                completions.push(completion);
            }
            let excess_max = if completions.is_empty() { 0 } else { EXCESS_BYTES_MAX };
            if self.excess_bytes > excess_max && self.ring.give_back(self.page_bytes) {
                self.excess_bytes = 0;
            }
            let mut left = completions.len();
            for completion in completions.drain(..) {
                left -= 1;
                if self.complete(completion)?.is_break() {
                    return Ok(());
                }
                if left > 0 {
                    // Its caller need not wait for the others' answers.
                    self.ring.submit()?;
                }
            }
            self.come_back();
            // What was answered goes out with the next wait.
            self.courtesy.served();
        }
    }

    /// Sees to it that the thread is on its processor: when that goes offline, the kernel puts the thread
    /// elsewhere and leaves it there.
    fn come_back(&mut self) {
        if sched_getcpu() == usize::from(self.processor) {
            return;
        }
        if self.away.is_multiple_of(RETURNS_EVERY) {
            pin(self.processor);
        }
        self.away = self.away.wrapping_add(1);
    }

    fn complete(&mut self, completion: Completion) -> io::Result<ControlFlow<()>> {
        match completion {
            Completion::Slot(slot, Ok(())) => self.request(slot)?,
            Completion::Slot(slot, Err(error)) => self.retire(&slot, error),
            Completion::Wake => {
                for mail in self.mailbox.take() {
                    match mail {
                        Mail::Attach { session, serving, slots, done } => {
                            self.attach(session, serving, slots, done)?;
                        }
                        Mail::Detach { session, done } => {
                            self.detach(session);
                            done.send(()).ok();
                        }
                        Mail::Answer { session, unique, answer } => self.answer(session, unique, answer)?,
                        Mail::Stop => return Ok(ControlFlow::Break(())),
                    }
                }
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    fn attach(
        &mut self,
        session: u64,
        serving: Arc<Serving>,
        slots: Vec<Slot>,
        done: Sender<Result<(), Errno>>,
    ) -> io::Result<()> {
        let payload_bytes = slots.iter().map(Slot::payload_bytes).max().unwrap_or(0);
        if self.scratch.len() < payload_bytes {
            self.scratch = vec![0; payload_bytes];
        }
        let attached = Attached {
            serving: Some(serving),
            later: Later::new(Arc::clone(&self.mailbox), session),
            queues: BTreeMap::new(),
            payload_bytes,
            registering: Some(done),
            refused: None,
        };
        let attached = self.sessions.entry(session).or_insert(attached);
        for mut slot in slots {
            slot.session = session;
            attached.queues.entry(slot.queue).or_default().slots += 1;
            self.ring.register(slot)?;
        }
        self.ring.submit()?;
        // What is refused completes at once; requests only with the next wait.
        let mut early = Vec::new();
        while let Some(completion) = self.ring.next()? {
            early.push(completion);
        }
        for completion in early {
            if self.complete(completion)?.is_break() {
                return Ok(());
            }
        }
        if let Some(attached) = self.sessions.get_mut(&session)
            && let Some(done) = attached.registering.take()
        {
            done.send(attached.refused.map_or(Ok(()), Err)).ok();
        }
        Ok(())
    }

    fn detach(&mut self, session: u64) {
        let Some(attached) = self.sessions.get_mut(&session) else { return };
        attached.serving = None;
        for queue in attached.queues.values_mut() {
            // Nobody waits for these, and the kernel does not have them.
            queue.deferred.clear();
        }
        self.forget_if_over(session);
    }

    /// Lets go of a slot that the kernel gave back for good.
    fn retire(&mut self, slot: &Slot, error: Errno) {
        let Some(attached) = self.sessions.get_mut(&slot.session) else { return };
        if let Some(queue) = attached.queues.get_mut(&slot.queue) {
            queue.slots -= 1;
        }
        let over = [Errno::NOTCONN, Errno::CONNABORTED, Errno::CANCELED];
        if attached.registering.is_some() {
            attached.refused = Some(error);
        } else if let Some(serving) = &attached.serving
            && !over.contains(&error)
        {
            // Callers on this processor would wait forever.
            tracing::error!(%error, queue = slot.queue, "kernel gave up a queue; the session is cut");
            serving.cut();
        }
        self.forget_if_over(slot.session);
    }

    fn forget_if_over(&mut self, session: u64) {
        let Some(attached) = self.sessions.get(&session) else { return };
        if attached.serving.is_none() && attached.queues.values().all(|queue| queue.slots == 0) {
            self.sessions.remove(&session);
        }
    }

    /// Serves the request in a slot, and prepares its answer.
    fn request(&mut self, mut slot: Slot) -> io::Result<()> {
        let Some(attached) = self.sessions.get_mut(&slot.session) else { return Ok(()) };
        let (ring_header, payload) = slot.parts();
        let Ok((header, _)) = InHeader::read_from_prefix(&ring_header.in_out) else { return Ok(()) };
        let commit_id = ring_header.commit_id;
        let arrived = usize::try_from(ring_header.payload_bytes).unwrap_or(usize::MAX).min(payload.len());
        let said = usize::try_from(header.len).unwrap_or(usize::MAX);
        let structure = said.saturating_sub(size_of::<InHeader>() + arrived).min(ring_header.op_in.len());

        let mut held = Held::Unanswered;
        let mut borrowed = false;
        if let Some(serving) = &attached.serving {
            // While names or data lie in the payload, the answer has to be put together elsewhere.
            borrowed = arrived > 0;
            let (request, body) =
                if borrowed { (&payload[..arrived], &mut *self.scratch) } else { (&[][..], &mut *payload) };
            let args = Args::split(&ring_header.op_in[..structure], request);
            serving.serve(&header, args, Outlet::ring(&mut held, &attached.later, body));
        }
        let answer = match held {
            Held::Answered(answer) => answer,
            Held::Deferred => return self.defer(slot, &header, arrived),
            // The session is over, or the kernel only says something.
            Held::Unanswered => Err(Errno::NOTCONN),
        };
        if borrowed && let Ok(size) = answer {
            payload[..size].copy_from_slice(&self.scratch[..size]);
        }
        self.touch(&mut slot, arrived);
        self.commit(slot, commit_id, answer)
    }

    /// Keeps a slot until its answer comes.
    fn defer(&mut self, mut slot: Slot, header: &InHeader, arrived: usize) -> io::Result<()> {
        self.touch(&mut slot, arrived);
        let (session, number) = (slot.session, slot.queue);
        let Some(attached) = self.sessions.get_mut(&session) else { return Ok(()) };
        let queue = attached.queues.entry(number).or_default();
        let device = Arc::clone(&slot.device);
        queue.slots -= 1;
        queue.deferred.insert(header.unique, slot);
        if queue.slots > 0 || queue.deferred.len() >= SLOTS_MAX {
            return Ok(());
        }
        // The queue needs a slot for what comes next: the answer may depend on it.
        let mut more = match Slot::new(device, number, attached.payload_bytes) {
            Ok(more) => more,
            Err(error) => {
                tracing::error!(%error, "no memory: callers wait for a deferred answer");
                return Ok(());
            }
        };
        more.session = session;
        queue.slots += 1;
        self.ring.register(more)?;
        // Requests that came while there was no slot are fetched together with the next answer, not by a new
        // slot (`fuse_uring_do_register` in Linux 6.18). So there has to be a request to be answered.
        self.ring.submit()?;
        self.nudges += 1;
        if let Some(serving) = &attached.serving
            && let Err(error) = serving.nudge(header.nodeid, self.nudges)
        {
            tracing::debug!(%error, "callers may wait for a deferred answer");
        }
        Ok(())
    }

    /// Takes the answer of a deferred request.
    fn answer(&mut self, session: u64, unique: u64, answer: Result<Vec<u8>, Errno>) -> io::Result<()> {
        // Of a session that is over, nothing is there.
        let Some(attached) = self.sessions.get_mut(&session) else { return Ok(()) };
        let found = attached.queues.values_mut().find_map(|queue| {
            let slot = queue.deferred.remove(&unique)?;
            queue.slots += 1;
            Some(slot)
        });
        let Some(mut slot) = found else { return Ok(()) };
        let (_, payload) = slot.parts();
        let answer = answer.and_then(|body| {
            payload.get_mut(..body.len()).ok_or(Errno::RANGE)?.copy_from_slice(&body);
            Ok(body.len())
        });
        self.commit(slot, unique, answer)
    }

    /// Prepares a slot's way back to the kernel, with an answer in its payload.
    fn commit(&mut self, mut slot: Slot, unique: u64, answer: Result<usize, Errno>) -> io::Result<()> {
        let (size, error) = match answer {
            Ok(size) => (size, 0),
            Err(errno) => (0, -errno.raw_os_error()),
        };
        let (header, _) = slot.parts();
        let bytes = u32::try_from(size).map_err(io::Error::other)?;
        let out = OutHeader { len: bytes + OUT_HEADER_BYTES, error, unique };
        header.in_out[..size_of::<OutHeader>()].copy_from_slice(out.as_bytes());
        header.payload_bytes = bytes;
        self.touch(&mut slot, size);
        self.ring.commit(slot, unique)
    }

    /// Counts memory that a request or an answer took.
    fn touch(&mut self, slot: &mut Slot, payload_bytes: usize) {
        let before = slot.excess(self.page_bytes);
        slot.touch(payload_bytes);
        self.excess_bytes += slot.excess(self.page_bytes) - before;
    }
}
