//! Memory that frames are read and decompressed into, used again and again: the kernel has to zero every page that a
//! process gets anew, and takes it apart again when it is given back.

use std::cell::RefCell;
use std::fmt;
use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use zstd::bulk::Decompressor;

/// Buffers kept for the next frames. A cache that is full lets one go for each that it takes.
const SPARE_BUFFERS_MAX: usize = 2;

/// What is larger goes back at once: frames are this large only where somebody else packed them.
const KEPT_BYTES_MAX: usize = 1024 * 1024;

/// Buffers of what was decompressed and is of no use any more. Clones are the same.
#[derive(Clone, Default)]
pub(super) struct Buffers {
    /// A leaf.
    spare: Arc<Mutex<Vec<Vec<u8>>>>,
}

/// Decompressed bytes, whose memory goes back to its [`Buffers`].
pub(super) struct Buffer {
    bytes: Vec<u8>,
    home: Buffers,
}

/// What a thread needs to decompress something.
#[derive(Default)]
pub(super) struct Workbench {
    /// What was read, compressed.
    pub(super) stored: Vec<u8>,
    decompressor: Option<Decompressor<'static>>,
}

impl Buffers {
    /// Returns an empty buffer with room for `bytes`.
    pub(super) fn take(&self, bytes: usize) -> Buffer {
        let spare = self.lock().pop();
        let mut buffer = Buffer { bytes: spare.unwrap_or_default(), home: self.clone() };
        buffer.bytes.reserve_exact(bytes);
        buffer
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Vec<u8>>> {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Buffer {
    /// Returns the bytes to be filled.
    pub(super) fn bytes_mut(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut bytes = std::mem::take(&mut self.bytes);
        bytes.clear();
        let mut spare = self.home.lock();
        if bytes.capacity() <= KEPT_BYTES_MAX && spare.len() < SPARE_BUFFERS_MAX {
            spare.push(bytes);
        }
    }
}

impl Workbench {
    /// Lets `work` use the thread's own.
    pub(super) fn with<R>(work: impl FnOnce(&mut Self) -> R) -> R {
        thread_local! {
            static OWN: RefCell<Workbench> = RefCell::default();
        }
        OWN.with(|own| {
            let mut bench = own.take();
            let result = work(&mut bench);
            if bench.stored.capacity() <= KEPT_BYTES_MAX {
                own.replace(bench);
            }
            result
        })
    }

    /// Decompresses what is stored to at most the room of `out`, which is empty.
    pub(super) fn decompress(&mut self, out: &mut Vec<u8>) -> std::io::Result<()> {
        let decompressor = match &mut self.decompressor {
            Some(decompressor) => decompressor,
            none => none.insert(Decompressor::new()?),
        };
        decompressor.decompress_to_buffer(&self.stored, out).map(drop)
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buffer").field("bytes", &self.bytes.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_used_again_within_limits() {
        let buffers = Buffers::default();
        let addresses =
            |taken: &[Buffer]| taken.iter().map(|buffer| buffer.bytes.as_ptr()).collect::<Vec<_>>();
        let first: Vec<_> = (0..4).map(|_| buffers.take(1000)).collect();
        let before = addresses(&first);
        drop(first);
        assert_eq!(buffers.lock().len(), SPARE_BUFFERS_MAX);
        let again: Vec<_> = (0..2).map(|_| buffers.take(500)).collect();
        assert!(addresses(&again).iter().all(|address| before.contains(address)));
        assert!(again.iter().all(|buffer| buffer.is_empty()));
        drop(buffers.take(KEPT_BYTES_MAX + 1));
        assert!(buffers.lock().is_empty(), "what is too large is not kept");
    }

    #[test]
    fn what_came_before_leaves_nothing() -> std::io::Result<()> {
        let mut out = Vec::with_capacity(100);
        for text in [&b"a longer text than the next one"[..], b"short"] {
            Workbench::with(|bench| {
                bench.stored = zstd::bulk::compress(text, 3)?;
                out.clear();
                bench.decompress(&mut out)
            })?;
            assert_eq!(out, text);
        }
        let failed = Workbench::with(|bench| {
            bench.stored.truncate(4);
            out.clear();
            bench.decompress(&mut out)
        });
        assert!(failed.is_err());
        Workbench::with(|bench| {
            bench.stored = zstd::bulk::compress(b"after a failure", 3)?;
            out.clear();
            bench.decompress(&mut out)
        })?;
        assert_eq!(out, b"after a failure");
        Ok(())
    }
}
