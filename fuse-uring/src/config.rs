//! What a session asks the kernel for.

use crate::abi::InitFlags;
use crate::ring::{DEPTH_DEFAULT, RingPool};

/// The size of a read or write, where nothing else is said.
const MIB: u32 = 1024 * 1024;

/// What a session asks the kernel for.
///
/// ```
/// use fuse_uring::{Config, InitFlags};
///
/// let config = Config { flags: InitFlags::PASSTHROUGH, max_stack_depth: 2, ..Config::default() };
/// # drop(config);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Capabilities; what the kernel lacks is left out. Those that this crate itself needs are added.
    pub flags: InitFlags,
    /// Largest write, in bytes.
    pub max_write: u32,
    /// Largest request, in pages.
    pub max_pages: u16,
    /// Largest read-ahead, in bytes; the kernel may want less.
    pub max_readahead: u32,
    /// Requests that nobody waits for that may be under way; zero: as many as the kernel likes.
    pub max_background: u16,
    /// How many of those count as crowded; zero: as many as the kernel likes.
    pub congestion_threshold: u16,
    /// With [`InitFlags::PASSTHROUGH`]: how many file systems may lie below this one, 1 or 2.
    pub max_stack_depth: u32,
    /// How fine times are, in nanoseconds.
    pub time_gran: u32,
    /// Threads that serve `/dev/fuse`, at least one. Beside the ring it is always one.
    pub threads: usize,
    /// Whether requests may, or have to, come over io_uring.
    pub ring: RingChoice,
    /// Requests of one processor's callers that can be with the server at once, beside deferred ones. They
    /// are served one after the other: more than a few cost memory for nothing.
    pub ring_depth: u16,
    /// Whose threads serve the ring.
    pub ring_pool: RingPool,
}

/// Whether requests come over io_uring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RingChoice {
    /// Where the kernel has it, and it is switched on.
    #[default]
    Auto,
    /// Otherwise the session does not start.
    Required,
    /// No.
    Never,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            flags: InitFlags::ASYNC_READ,
            max_write: MIB,
            max_pages: 256,
            max_readahead: MIB,
            max_background: 0,
            congestion_threshold: 0,
            max_stack_depth: 0,
            time_gran: 1,
            threads: 1,
            ring: RingChoice::Auto,
            ring_depth: DEPTH_DEFAULT,
            ring_pool: RingPool::shared(),
        }
    }
}
