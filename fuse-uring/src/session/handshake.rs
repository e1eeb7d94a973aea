//! The start of a session: kernel and server agree on what they do.

use rustix::io::Errno;
use zerocopy::{FromBytes, IntoBytes};

use super::StartError;
use crate::abi::{
    InHeader, InitFlags, InitIn, InitOut, MAJOR, MINOR, MINOR_MIN, MINOR_RING, Opcode, PAGES_DEFAULT,
    READ_BUFFER_BYTES_MIN, decode_flags, encode_flags,
};
use crate::config::Config;
use crate::device::Device;
use crate::operation::decode_init;
use crate::ring::NoRing;

/// Room for the first request.
const INIT_BYTES_MAX: usize = 16 * 1024;
/// The kernel takes no smaller writes.
const WRITE_BYTES_MIN: u32 = 4096;

/// What kernel and server agreed on.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Negotiated {
    /// The protocol's version.
    pub version: (u32, u32),
    /// What both can do, and the server asked for.
    pub flags: InitFlags,
    /// What the kernel can do.
    pub offered: InitFlags,
    /// Largest write, in bytes.
    pub max_write: u32,
    /// Largest request, in pages.
    pub max_pages: u16,
    /// Largest read-ahead, in bytes.
    pub max_readahead: u32,
    /// How requests come.
    pub transport: Transport,
}

/// How requests come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Transport {
    /// Over io_uring; forgets and interruptions over `/dev/fuse`.
    Ring,
    /// Over `/dev/fuse`, and why not over io_uring.
    Device(NoRing),
}

/// The kernel's offer, not answered yet.
pub(super) struct Offer {
    unique: u64,
    minor: u32,
    pub(super) negotiated: Negotiated,
}

impl Negotiated {
    /// Returns how much data a request or an answer can have.
    pub(crate) fn payload_bytes(&self) -> usize {
        let write = usize::try_from(self.max_write).unwrap_or(usize::MAX);
        let pages = usize::from(self.max_pages) * rustix::param::page_size();
        READ_BUFFER_BYTES_MIN.max(write).max(pages)
    }
}

/// Reads the kernel's first request.
pub(super) fn receive(device: &Device, config: &Config) -> Result<Offer, StartError> {
    let mut buffer = vec![0; INIT_BYTES_MAX];
    loop {
        let (header, init) = read_init(device, &mut buffer)?;
        if init.major > MAJOR {
            // The kernel comes again with a version that we name.
            let answer = InitOut { major: MAJOR, minor: MINOR, ..InitOut::default() };
            device.answer(header.unique, Ok(answer.as_bytes()));
            continue;
        }
        if init.major < MAJOR || init.minor < MINOR_MIN {
            device.answer(header.unique, Err(Errno::PROTO));
            return Err(StartError::Version { major: init.major, minor: init.minor });
        }
        let negotiated = negotiate(&init, config);
        return Ok(Offer { unique: header.unique, minor: init.minor, negotiated });
    }
}

impl Offer {
    /// Returns whether the kernel would send requests over io_uring.
    pub(super) fn has_ring(&self) -> Result<(), NoRing> {
        if self.negotiated.offered.contains(InitFlags::OVER_IO_URING) {
            Ok(())
        } else if self.minor < MINOR_RING {
            Err(NoRing::Kernel(self.minor))
        } else {
            Err(NoRing::Disabled)
        }
    }

    /// Takes the offer, with the ring or without.
    pub(super) fn accept(mut self, device: &Device, config: &Config, ring: Result<(), NoRing>) -> Negotiated {
        self.negotiated.transport = match ring {
            Ok(()) => {
                self.negotiated.flags |= InitFlags::OVER_IO_URING;
                Transport::Ring
            }
            Err(why) => Transport::Device(why),
        };
        device.answer(self.unique, Ok(answer(&self.negotiated, config).as_bytes()));
        self.negotiated
    }

    /// Declines it: the mount is of no use then.
    pub(super) fn decline(self, device: &Device) {
        device.answer(self.unique, Err(Errno::PROTO));
    }
}

fn read_init(device: &Device, buffer: &mut [u8]) -> Result<(InHeader, InitIn), StartError> {
    let size = rustix::io::retry_on_intr(|| device.read(buffer));
    let size = size.map_err(|error| StartError::Handshake(error.into()))?;
    let broken = |message: &str| StartError::Handshake(std::io::Error::other(message.to_owned()));
    let request = &buffer[..size];
    let (header, body) =
        InHeader::read_from_prefix(request).map_err(|_| broken("a request without header"))?;
    if Opcode::new(header.opcode) != Some(Opcode::Init) {
        return Err(broken("the session has begun already"));
    }
    let init = decode_init(body).map_err(|error| StartError::Handshake(std::io::Error::other(error)))?;
    Ok((header, init))
}

fn negotiate(init: &InitIn, config: &Config) -> Negotiated {
    let offered = decode_flags(init.flags, init.flags2);
    let own = InitFlags::INIT_EXT | InitFlags::MAX_PAGES | InitFlags::BIG_WRITES | InitFlags::ABORT_ERROR;
    let mut flags = (config.flags | own) & offered;
    // The kernel refuses the whole session where these do not go together.
    if config.max_stack_depth == 0 || flags.contains(InitFlags::WRITEBACK_CACHE) {
        flags.remove(InitFlags::PASSTHROUGH);
    }
    // Nothing here answers in time by itself, or aligns mappings. The ring is agreed on later.
    flags.remove(InitFlags::REQUEST_TIMEOUT | InitFlags::MAP_ALIGNMENT | InitFlags::OVER_IO_URING);
    let pages = if flags.contains(InitFlags::MAX_PAGES) { config.max_pages.max(1) } else { PAGES_DEFAULT };
    Negotiated {
        version: (MAJOR, init.minor.min(MINOR)),
        flags,
        offered,
        max_write: config.max_write.max(WRITE_BYTES_MIN),
        max_pages: pages,
        max_readahead: config.max_readahead.min(init.max_readahead),
        transport: Transport::Device(NoRing::NotWanted),
    }
}

fn answer(negotiated: &Negotiated, config: &Config) -> InitOut {
    let (flags, flags2) = encode_flags(negotiated.flags);
    let passthrough = negotiated.flags.contains(InitFlags::PASSTHROUGH);
    InitOut {
        major: negotiated.version.0,
        minor: negotiated.version.1,
        max_readahead: negotiated.max_readahead,
        flags,
        max_background: config.max_background,
        congestion_threshold: config.congestion_threshold,
        max_write: negotiated.max_write,
        time_gran: config.time_gran,
        max_pages: negotiated.max_pages,
        flags2,
        max_stack_depth: if passthrough { config.max_stack_depth } else { 0 },
        ..InitOut::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(minor: u32, flags: InitFlags) -> InitIn {
        let (low, high) = encode_flags(flags);
        InitIn { major: 7, minor, max_readahead: 4096, flags: low, flags2: high, unused: [0; 11] }
    }

    #[test]
    fn only_what_both_know_is_agreed_on() {
        let wanted = InitFlags::CACHE_SYMLINKS | InitFlags::PASSTHROUGH | InitFlags::POSIX_LOCKS;
        let config = Config { flags: wanted, max_stack_depth: 1, ..Config::default() };
        let known = InitFlags::INIT_EXT | InitFlags::PASSTHROUGH | InitFlags::CACHE_SYMLINKS;
        let agreed = negotiate(&offer(99, known), &config);
        assert_eq!(agreed.version, (7, MINOR));
        assert_eq!(agreed.flags, known);
        assert_eq!((agreed.max_pages, agreed.max_readahead), (PAGES_DEFAULT, 4096));
        assert_eq!(answer(&agreed, &config).max_stack_depth, 1);
    }

    #[test]
    fn passthrough_is_left_out_where_the_kernel_would_refuse_the_session() {
        let offered = offer(40, InitFlags::all());
        let flags = InitFlags::PASSTHROUGH | InitFlags::WRITEBACK_CACHE;
        let config = Config { flags, max_stack_depth: 2, ..Config::default() };
        assert!(!negotiate(&offered, &config).flags.contains(InitFlags::PASSTHROUGH));
        let config = Config { flags: InitFlags::PASSTHROUGH, ..Config::default() };
        assert!(!negotiate(&offered, &config).flags.contains(InitFlags::PASSTHROUGH));
    }

    #[test]
    fn flags_of_the_second_word_count_only_with_the_extension() {
        assert_eq!(decode_flags(1, 1 << 5), InitFlags::ASYNC_READ);
        let both = decode_flags(1 << 30, 1 << 5);
        assert_eq!(both, InitFlags::INIT_EXT | InitFlags::PASSTHROUGH);
        assert_eq!(encode_flags(both), (1 << 30, 1 << 5));
    }
}
