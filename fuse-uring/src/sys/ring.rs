//! An io_uring, as far as FUSE needs one.

use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use io_uring::types::{Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};
use rustix::event::{EventfdFlags, PollFlags, eventfd};
use rustix::io::Errno;
use zerocopy::IntoBytes;

use super::slot::Slot;
use crate::abi::RingCommand;

/// Commands that are submitted at once.
const SUBMISSIONS: u32 = 64;
/// Completions that wait; what is more, the kernel keeps elsewhere.
const COMPLETIONS: u32 = 1024;

/// `FUSE_IO_URING_CMD_REGISTER`: takes a slot, and completes with a request in it.
const REGISTER: u32 = 1;
/// `FUSE_IO_URING_CMD_COMMIT_AND_FETCH`: takes the answer in a slot, and completes as above.
const COMMIT_AND_FETCH: u32 = 2;

/// The completion that belongs to no slot.
const WAKE: u64 = u64::MAX;

/// Where the length stands in a submission.
const LEN_AT: usize = 24;
/// Parts of a slot.
const PARTS: u32 = 2;

/// An io_uring that lends [`Slot`]s to the kernel. Whoever made it has to be the one who uses it.
pub(crate) struct Ring {
    /// Dropped before `lent`, see there.
    ring: ManuallyDrop<IoUring<squeue::Entry128, cqueue::Entry>>,
    /// What the kernel has: a command's number is its index.
    lent: Vec<Option<Slot>>,
    /// Indices that are free.
    free: Vec<usize>,
    /// Ends a wait.
    wake: OwnedFd,
}

/// What a wait brought.
#[derive(Debug)]
pub(crate) enum Completion {
    /// The kernel gave a slot back: with a request in it, or for good.
    Slot(Slot, Result<(), Errno>),
    /// Somebody wants to be heard.
    Wake,
}

impl Ring {
    /// Returns a ring of the calling thread. It wakes up where something is written to `wake`.
    pub(crate) fn new() -> io::Result<Self> {
        let ring = IoUring::builder()
            .setup_cqsize(COMPLETIONS)
            .setup_submit_all()
            .setup_single_issuer()
            // Requests are copied in, and completions seen, only while this thread waits.
            .setup_defer_taskrun()
            .build(SUBMISSIONS)?;
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let mut ring = Self { ring: ManuallyDrop::new(ring), lent: Vec::new(), free: Vec::new(), wake };
        ring.listen()?;
        Ok(ring)
    }

    /// Returns what to write to.
    pub(crate) fn waker(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    /// Makes a new slot known to the kernel.
    pub(crate) fn register(&mut self, slot: Slot) -> io::Result<()> {
        self.lend(slot, REGISTER, 0)
    }

    /// Returns a slot to the kernel, with the answer of request `commit_id` in it.
    pub(crate) fn commit(&mut self, slot: Slot, commit_id: u64) -> io::Result<()> {
        self.lend(slot, COMMIT_AND_FETCH, commit_id)
    }

    /// Submits what is prepared. Completions there may be already, but no requests.
    pub(crate) fn submit(&self) -> io::Result<()> {
        ignored(self.ring.submit())
    }

    /// Submits what is prepared, and waits for a completion, or until `timeout` has passed.
    pub(crate) fn wait(&self, timeout: Option<Duration>) -> io::Result<()> {
        let submitter = self.ring.submitter();
        let Some(timeout) = timeout else { return ignored(submitter.submit_and_wait(1)) };
        let timespec = Timespec::from(timeout);
        ignored(submitter.submit_with_args(1, &SubmitArgs::new().timespec(&timespec)))
    }

    /// Returns the next completion.
    pub(crate) fn next(&mut self) -> io::Result<Option<Completion>> {
        loop {
            let Some(entry) = self.ring.completion().next() else { return Ok(None) };
            match entry.user_data() {
                WAKE => {
                    let mut count = [0; 8];
                    rustix::io::retry_on_intr(|| rustix::io::read(&self.wake, &mut count)).ok();
                    self.listen()?;
                    return Ok(Some(Completion::Wake));
                }
                index => {
                    let index = usize::try_from(index).unwrap_or(usize::MAX);
                    let Some(slot) = self.lent.get_mut(index).and_then(Option::take) else { continue };
                    self.free.push(index);
                    let result = match entry.result() {
                        0.. => Ok(()),
                        error => Err(Errno::from_raw_os_error(-error)),
                    };
                    return Ok(Some(Completion::Slot(slot, result)));
                }
            }
        }
    }

    /// Gives back memory of the slots that the kernel has, beyond `keep` bytes each, and returns whether that
    /// was possible. There must be no answers in them that are not submitted yet, nor requests that are not
    /// read yet. The kernel itself writes to a slot only while this thread submits or waits.
    pub(crate) fn give_back(&mut self, keep: usize) -> bool {
        if !self.ring.submission().is_empty() || !self.ring.completion().is_empty() {
            return false;
        }
        for slot in self.lent.iter_mut().flatten() {
            slot.give_back(keep);
        }
        true
    }

    fn lend(&mut self, mut slot: Slot, command: u32, commit_id: u64) -> io::Result<()> {
        let index = self.free.pop().unwrap_or_else(|| {
            self.lent.push(None);
            self.lent.len() - 1
        });
        let request = RingCommand { commit_id, qid: slot.queue, ..RingCommand::default() };
        let mut space = [0; 80];
        space[..size_of::<RingCommand>()].copy_from_slice(request.as_bytes());
        let entry = opcode::UringCmd80::new(Fd(slot.device.as_raw_fd()), command).cmd(space);
        let entry = entry.addr((command == REGISTER).then(|| slot.describe()));
        let mut entry = entry.build().user_data(index as u64);
        if command == REGISTER {
            set_len(&mut entry, PARTS);
        }
        self.lent[index] = Some(slot);
        self.push(&entry)
    }

    fn listen(&mut self) -> io::Result<()> {
        let events = u32::from(PollFlags::IN.bits());
        let entry = opcode::PollAdd::new(Fd(self.wake.as_raw_fd()), events).build().user_data(WAKE);
        self.push(&entry.into())
    }

    fn push(&mut self, entry: &squeue::Entry128) -> io::Result<()> {
        // SAFETY: what the entry points at lives until it completes: a slot's memory, and its device, are
        // kept in `lent` till then; the eventfd as long as the ring.
        if unsafe { self.ring.submission().push(entry) }.is_err() {
            self.submit()?;
            // SAFETY: as above.
            unsafe { self.ring.submission().push(entry) }.map_err(io::Error::other)?;
        }
        Ok(())
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: it is not used again.
        unsafe { ManuallyDrop::drop(&mut self.ring) };
        // The kernel takes a ring down some time after it is closed. Until then it may know these addresses,
        // so they stay mapped; devices are let go, as they would keep sessions alive.
        for slot in self.lent.drain(..).flatten() {
            slot.leak();
        }
    }
}

/// Sets a field that the `io-uring` crate does not know for commands.
fn set_len(entry: &mut squeue::Entry128, len: u32) {
    const { assert!(size_of::<squeue::Entry128>() == 128) };
    // SAFETY: the type is the kernel's `struct io_uring_sqe` of 128 bytes, in which `len` is an aligned `u32`
    // at this place.
    unsafe { std::ptr::from_mut(entry).byte_add(LEN_AT).cast::<u32>().write(len) };
}

/// What is no failure: signals, an expired timeout, and a full queue of completions, which are read next.
fn ignored(entered: io::Result<usize>) -> io::Result<()> {
    match entered {
        Ok(_) => Ok(()),
        Err(error) => match Errno::from_io_error(&error) {
            Some(Errno::INTR | Errno::TIME | Errno::BUSY | Errno::AGAIN) => Ok(()),
            _ => Err(error),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::sync::Arc;

    use super::*;

    #[test]
    fn a_ring_can_be_woken_up_again_and_again() -> io::Result<()> {
        let mut ring = Ring::new()?;
        for _ in 0..3 {
            rustix::io::write(ring.waker(), &1_u64.to_be_bytes())?;
            ring.wait(None)?;
            assert!(matches!(ring.next()?, Some(Completion::Wake)));
            assert!(ring.next()?.is_none());
        }
        ring.wait(Some(Duration::from_millis(1)))?;
        assert!(ring.next()?.is_none());
        Ok(())
    }

    #[test]
    fn a_slot_that_the_device_refuses_comes_back() -> io::Result<()> {
        let mut ring = Ring::new()?;
        let null = Arc::new(OwnedFd::from(File::open("/dev/urandom")?));
        for _ in 0..2 {
            ring.register(Slot::new(Arc::clone(&null), 0, 8192)?)?;
            ring.wait(None)?;
            let found = ring.next()?;
            assert!(matches!(found, Some(Completion::Slot(_, Err(_)))), "{found:?}");
            drop(found);
            assert_eq!(Arc::strong_count(&null), 1);
        }
        Ok(())
    }
}
