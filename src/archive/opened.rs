//! Which files of an archive were opened, and in which order.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use crate::path::{RelPath, RelPathBuf};

/// So much is noted of one archive: frames of small files are some 256 KiB, so it is 5 GiB of them.
const PATHS_MAX: usize = 20_000;

/// The files that were opened, one for each frame.
#[derive(Debug, Default)]
pub(super) struct Opened {
    /// Innermost lock.
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// By their offset in the file.
    frames: HashSet<u64>,
    paths: Vec<RelPathBuf>,
    frames_read: u64,
}

/// What was read of an archive.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Opening {
    /// The file of each frame that was opened first, in the order in which that was.
    pub paths: Vec<RelPathBuf>,
    /// How many frames hold them and their neighbours.
    pub frames: u64,
}

impl Opened {
    /// Notes that a file was opened which begins in the frame at `frame` and takes `frames` of them.
    pub(super) fn note(&self, frame: u64, frames: u64, path: &RelPath) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.paths.len() < PATHS_MAX && state.frames.insert(frame) {
            state.paths.push(path.to_owned());
            state.frames_read += frames;
        }
    }

    /// Returns whether a file was opened that begins in the frame at `frame`.
    pub(super) fn contains(&self, frame: u64) -> bool {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).frames.contains(&frame)
    }

    /// Returns what was noted, and begins anew.
    pub(super) fn take(&self) -> Opening {
        let state = std::mem::take(&mut *self.state.lock().unwrap_or_else(PoisonError::into_inner));
        Opening { paths: state.paths, frames: state.frames_read }
    }
}
