//! Memory that kernel and server hand to each other.

use std::os::fd::OwnedFd;
use std::ptr::NonNull;
use std::sync::Arc;

use rustix::io::Result;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

use crate::abi::RingHeader;

/// Where the kernel finds its two parts: header, then payload.
const PARTS_AT: usize = size_of::<RingHeader>();
/// Where the payload begins: a small request then lies in one page, with its header.
pub(crate) const PAYLOAD_AT: usize = 512;

const _: () =
    assert!(PARTS_AT + size_of::<Parts>() <= PAYLOAD_AT && PARTS_AT.is_multiple_of(align_of::<Parts>()));

/// The kernel's `struct iovec`, twice.
type Parts = [libc::iovec; 2];

/// Room for one request and its answer, and where they belong.
///
/// # Guarantees
/// - Its memory is its own, readable, writable and zeroed at first, and stays where it is until it is dropped.
/// - It takes memory only as far as it was written to.
#[derive(Debug)]
pub(crate) struct Slot {
    memory: NonNull<u8>,
    mapped_bytes: usize,
    payload_bytes: usize,
    /// How far memory may have been written to since it was last given back.
    touched_bytes: usize,
    /// The session's device. The kernel may still be asked for it while the slot exists.
    pub(crate) device: Arc<OwnedFd>,
    /// The processor whose requests come here.
    pub(crate) queue: u16,
    /// The session, as its thread counts them.
    pub(crate) session: u64,
}

// SAFETY: the memory is owned, and reached only through `&self` and `&mut self`; no thread is special to it.
unsafe impl Send for Slot {}

impl Slot {
    /// Returns an empty one.
    pub(crate) fn new(device: Arc<OwnedFd>, queue: u16, payload_bytes: usize) -> Result<Self> {
        let mapped_bytes = (PAYLOAD_AT + payload_bytes).next_multiple_of(rustix::param::page_size());
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a private, anonymous mapping at an address of the kernel's choice disturbs no other.
        let memory =
            unsafe { mmap_anonymous(std::ptr::null_mut(), mapped_bytes, access, MapFlags::PRIVATE) }?;
        let memory = NonNull::new(memory.cast()).ok_or(rustix::io::Errno::NOMEM)?;
        let touched_bytes = 0;
        Ok(Self { memory, mapped_bytes, payload_bytes, touched_bytes, device, queue, session: 0 })
    }

    /// Returns header and payload.
    pub(crate) fn parts(&mut self) -> (&mut RingHeader, &mut [u8]) {
        let (memory, payload_bytes) = (self.memory.as_ptr(), self.payload_bytes);
        // SAFETY: both ranges are inside the mapping (`new`), do not overlap (the assertion above), and are
        // borrowed as `self` is. A page is aligned for any type, and every pattern of bits is a `RingHeader`.
        unsafe {
            let header = &mut *memory.cast::<RingHeader>();
            let payload = std::slice::from_raw_parts_mut(memory.add(PAYLOAD_AT), payload_bytes);
            (header, payload)
        }
    }

    pub(crate) const fn payload_bytes(&self) -> usize {
        self.payload_bytes
    }

    /// Notes that so many bytes of the payload have been written.
    pub(crate) fn touch(&mut self, payload_bytes: usize) {
        self.touched_bytes = self.touched_bytes.max(PAYLOAD_AT + payload_bytes);
    }

    /// Returns how much memory there is to give back beyond `keep` bytes.
    pub(crate) const fn excess(&self, keep: usize) -> usize {
        self.touched_bytes.saturating_sub(keep)
    }

    /// Gives memory beyond `keep` bytes, a multiple of the page size, back to the system: it reads as zero
    /// from then on. The kernel may hold the slot, as long as no request in it is unread.
    pub(crate) fn give_back(&mut self, keep: usize) {
        if self.excess(keep) == 0 {
            return;
        }
        // SAFETY: the range starts at a page inside the mapping, and ends with it; nothing is borrowed from
        // it, as `self` is borrowed exclusively.
        let given = unsafe {
            let start = self.memory.as_ptr().add(keep);
            madvise(start.cast(), self.mapped_bytes - keep, Advice::LinuxDontNeed)
        };
        if let Err(error) = given {
            tracing::debug!(%error, "memory of a slot is kept");
        }
        self.touched_bytes = keep;
    }

    /// Lets everything go but the memory.
    pub(super) fn leak(self) {
        let this = std::mem::ManuallyDrop::new(self);
        // SAFETY: `this` is not used again, and not dropped.
        drop(unsafe { std::ptr::read(&raw const this.device) });
    }

    /// Returns the address of the two parts' description, for the kernel.
    pub(super) fn describe(&mut self) -> u64 {
        let memory = self.memory.as_ptr();
        let header = libc::iovec { iov_base: memory.cast(), iov_len: size_of::<RingHeader>() };
        // SAFETY: `PAYLOAD_AT` is inside the mapping, and so is the description, which is aligned and lies
        // between header and payload (the assertion above): it is written through no other reference.
        unsafe {
            let payload =
                libc::iovec { iov_base: memory.add(PAYLOAD_AT).cast(), iov_len: self.payload_bytes };
            let parts = memory.add(PARTS_AT).cast::<Parts>();
            parts.write([header, payload]);
            parts.addr() as u64
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        // SAFETY: the mapping is this slot's own, nothing is borrowed from it any more, and the kernel is
        // not using it: what it is lent belongs to a `Ring`, which gives it back or forgets it.
        let unmapped = unsafe { munmap(self.memory.as_ptr().cast(), self.mapped_bytes) };
        if let Err(error) = unmapped {
            tracing::debug!(%error, "memory of a slot is not unmapped");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use zerocopy::IntoBytes;

    use super::*;

    #[test]
    fn a_slot_keeps_what_is_written_until_it_is_given_back() -> std::io::Result<()> {
        let null = Arc::new(OwnedFd::from(File::open("/dev/null")?));
        let (page, size) = (rustix::param::page_size(), 100_000);
        let mut slot = Slot::new(null, 3, size)?;
        let (header, payload) = slot.parts();
        assert_eq!(payload.len(), size);
        header.as_mut_bytes().fill(1);
        payload.fill(2);
        slot.touch(size);
        assert_eq!(slot.excess(page), PAYLOAD_AT + size - page);
        slot.give_back(page);
        assert_eq!(slot.excess(page), 0);
        let (header, payload) = slot.parts();
        assert!(header.as_bytes().iter().all(|byte| *byte == 1));
        assert!(payload[..page - PAYLOAD_AT].iter().all(|byte| *byte == 2));
        assert!(payload[page - PAYLOAD_AT..].iter().all(|byte| *byte == 0));
        Ok(())
    }
}
