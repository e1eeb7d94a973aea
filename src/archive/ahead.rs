//! Frames that were decompressed before anybody asked for them.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{OnceLock, PoisonError, RwLock};

/// Decompressed frames in a file, so that the kernel may take their memory back.
#[derive(Debug, Default)]
pub(super) struct FramesAhead {
    file: OnceLock<File>,
    /// Innermost lock.
    places: RwLock<Places>,
}

#[derive(Debug, Default)]
struct Places {
    /// Offsets in `file` by those in the archive.
    by_frame: HashMap<u64, u64>,
    end: u64,
}

impl FramesAhead {
    /// Keeps frames in `file`, which is empty, from now on; the first one stands.
    pub(super) fn keep_in(&self, file: File) {
        self.file.set(file).ok();
    }

    pub(super) fn has_file(&self) -> bool {
        self.file.get().is_some()
    }

    pub(super) fn contains(&self, frame: u64) -> bool {
        self.places.read().unwrap_or_else(PoisonError::into_inner).by_frame.contains_key(&frame)
    }

    /// Adds a frame. One that is here already is as good.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] without a file, and those of writing to it.
    pub(super) fn add(&self, frame: u64, raw: &[u8]) -> io::Result<()> {
        let file = self.file.get().ok_or(io::ErrorKind::NotFound)?;
        let at = {
            let mut places = self.places.write().unwrap_or_else(PoisonError::into_inner);
            let at = places.end;
            places.end += raw.len() as u64;
            at
        };
        file.write_all_at(raw, at)?;
        self.places.write().unwrap_or_else(PoisonError::into_inner).by_frame.insert(frame, at);
        Ok(())
    }

    /// Fills `buffer` from byte `from` of a frame on; returns whether it could.
    pub(super) fn read(&self, frame: u64, from: u64, buffer: &mut [u8]) -> bool {
        let at = self.places.read().unwrap_or_else(PoisonError::into_inner).by_frame.get(&frame).copied();
        let place = self.file.get().zip(at);
        place.is_some_and(|(file, at)| file.read_exact_at(buffer, at + from).is_ok())
    }
}
