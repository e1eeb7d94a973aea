//! Framing of [`proto`](crate::proto) messages on a Unix stream socket, with file descriptors.
//!
//! | bytes | what |
//! |---|---|
//! | 4 | little-endian `u32`: length of the message in bytes |
//! | that many | the message in `postcard` |
//!
//! Descriptors ride as `SCM_RIGHTS` on the length's first byte. The kernel does not join data across such
//! a boundary, so a reader that takes exactly four bytes first gets the descriptors of this message only.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

use crate::proto::MESSAGE_BYTES_MAX;

/// Most descriptors that travel with one message.
pub const MESSAGE_FDS_MAX: usize = 4;

/// Bytes of a message's length.
const LENGTH_BYTES: usize = 4;

/// Memory set aside for a message before any of it has arrived; a lying length costs no more.
const PREALLOCATED_BYTES_MAX: usize = 1024 * 1024;

/// A message and the descriptors that came with it.
#[derive(Debug)]
pub struct Received<T> {
    /// The message.
    pub message: T,
    /// Its descriptors, closed on exec.
    pub fds: Vec<OwnedFd>,
}

/// Why a message could not be sent or received.
#[derive(Debug, Error)]
pub enum WireError {
    /// The connection failed.
    #[error("connection failed")]
    Io(#[from] io::Error),
    /// The other end closed the connection inside a message.
    #[error("connection closed in the middle of a message")]
    Truncated,
    /// The message is longer than both ends agreed on.
    #[error("message of {bytes} bytes exceeds the limit of {MESSAGE_BYTES_MAX}")]
    TooLong {
        /// Its length.
        bytes: u64,
    },
    /// More descriptors than [`MESSAGE_FDS_MAX`].
    #[error("message with {count} descriptors exceeds the limit of {MESSAGE_FDS_MAX}")]
    TooManyFds {
        /// Their number.
        count: usize,
    },
    /// The bytes are not the message that was expected.
    #[error("message cannot be encoded or decoded")]
    Format(#[from] postcard::Error),
}

impl WireError {
    /// Returns whether the other end is gone, rather than misbehaving.
    #[must_use]
    pub fn is_disconnect(&self) -> bool {
        match self {
            Self::Io(error) => matches!(
                error.kind(),
                io::ErrorKind::BrokenPipe
                    | io::ErrorKind::ConnectionReset
                    | io::ErrorKind::ConnectionAborted
                    | io::ErrorKind::NotConnected
            ),
            Self::Truncated => true,
            Self::TooLong { .. } | Self::TooManyFds { .. } | Self::Format(_) => false,
        }
    }
}

/// Sends `message` with `fds`.
///
/// # Errors
/// [`WireError`]; the connection is of no more use after one.
pub fn send<T: Serialize>(stream: &UnixStream, message: &T, fds: &[BorrowedFd<'_>]) -> Result<(), WireError> {
    if fds.len() > MESSAGE_FDS_MAX {
        return Err(WireError::TooManyFds { count: fds.len() });
    }
    let mut frame = postcard::to_extend(message, vec![0; LENGTH_BYTES])?;
    let bytes = frame.len() - LENGTH_BYTES;
    let length = u32::try_from(bytes).ok().filter(|length| *length <= MESSAGE_BYTES_MAX);
    let length = length.ok_or(WireError::TooLong { bytes: bytes as u64 })?;
    frame[..LENGTH_BYTES].copy_from_slice(&length.to_le_bytes());

    let mut sent = send_some(stream, &frame, fds)?;
    while sent < frame.len() {
        sent += send_some(stream, &frame[sent..], &[])?;
    }
    Ok(())
}

/// Receives one message; `None` where the other end closed the connection after a whole one.
///
/// # Errors
/// [`WireError`]; the connection is of no more use after one.
pub fn receive<T: DeserializeOwned>(stream: &UnixStream) -> Result<Option<Received<T>>, WireError> {
    let mut fds = Vec::new();
    let mut length = [0; LENGTH_BYTES];
    let mut filled = 0;
    while filled < LENGTH_BYTES {
        match receive_some(stream, &mut length[filled..], &mut fds)? {
            0 if filled == 0 => return Ok(None),
            0 => return Err(WireError::Truncated),
            received => filled += received,
        }
    }
    let length = u32::from_le_bytes(length);
    if length > MESSAGE_BYTES_MAX {
        return Err(WireError::TooLong { bytes: length.into() });
    }
    let length = length as usize;

    let mut body = Vec::new();
    let mut filled = 0;
    while filled < length {
        if filled == body.len() {
            body.resize(length.min((body.len() * 2).max(PREALLOCATED_BYTES_MAX)), 0);
        }
        match receive_some(stream, &mut body[filled..], &mut fds)? {
            0 => return Err(WireError::Truncated),
            received => filled += received,
        }
    }
    Ok(Some(Received { message: postcard::from_bytes(&body)?, fds }))
}

/// Receives one byte of no meaning with one descriptor, as `fusermount3` sends it; `None` where the other
/// end closed the connection instead.
///
/// # Errors
/// [`WireError`].
pub fn receive_descriptor(stream: &UnixStream) -> Result<Option<OwnedFd>, WireError> {
    let mut fds = Vec::new();
    receive_some(stream, &mut [0], &mut fds)?;
    Ok(fds.pop())
}

/// Sends a first part of `bytes` and returns its length.
fn send_some(stream: &UnixStream, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<usize, WireError> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MESSAGE_FDS_MAX))];
    loop {
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(WireError::TooManyFds { count: fds.len() });
        }
        match sendmsg(stream, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL) {
            Ok(sent) => return Ok(sent),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(WireError::Io(errno.into())),
        }
    }
}

/// Receives a first part into `buffer`, adds descriptors to `fds`, and returns the part's length.
fn receive_some(stream: &UnixStream, buffer: &mut [u8], fds: &mut Vec<OwnedFd>) -> Result<usize, WireError> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MESSAGE_FDS_MAX))];
    loop {
        let mut control = RecvAncillaryBuffer::new(&mut space);
        match recvmsg(stream, &mut [IoSliceMut::new(buffer)], &mut control, RecvFlags::CMSG_CLOEXEC) {
            Ok(received) => {
                for message in control.drain() {
                    if let RecvAncillaryMessage::ScmRights(rights) = message {
                        fds.extend(rights);
                    }
                }
                if fds.len() > MESSAGE_FDS_MAX {
                    return Err(WireError::TooManyFds { count: fds.len() });
                }
                return Ok(received.bytes);
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(WireError::Io(errno.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Write};
    use std::os::fd::AsFd;

    use super::*;
    use crate::proto::{Event, Request};

    type TestResult = Result<(), Box<dyn std::error::Error>>;

    #[test]
    fn messages_arrive_in_order_and_then_the_end() -> TestResult {
        let (left, right) = UnixStream::pair()?;
        send(&left, &Request::Hello { version: "a".into() }, &[])?;
        send(&left, &Request::Status, &[])?;
        drop(left);
        let first = receive::<Request>(&right)?.expect("a message was sent");
        assert_eq!(first.message, Request::Hello { version: "a".into() });
        assert_eq!(receive::<Request>(&right)?.expect("a message was sent").message, Request::Status);
        assert!(receive::<Request>(&right)?.is_none());
        Ok(())
    }

    #[test]
    fn descriptors_stay_with_their_message() -> TestResult {
        let (left, right) = UnixStream::pair()?;
        let file = File::open("/dev/null")?;
        send(&left, &Request::Status, &[])?;
        send(&left, &Request::CacheList, &[file.as_fd()])?;
        send(&left, &Request::Shutdown, &[])?;
        let counts = (0..3)
            .map(|_| Ok(receive::<Request>(&right)?.map_or(0, |received| received.fds.len())))
            .collect::<Result<Vec<_>, WireError>>()?;
        assert_eq!(counts, [0, 1, 0]);
        Ok(())
    }

    #[test]
    fn a_message_larger_than_the_socket_buffer_arrives_whole() -> TestResult {
        let (left, right) = UnixStream::pair()?;
        let sent = Event::Failed(crate::proto::Failure {
            kind: crate::proto::FailureKind::User,
            causes: vec!["x".repeat(5_000_000)],
            hints: Vec::new(),
        });
        let writer = std::thread::spawn({
            let sent = sent.clone();
            move || send(&left, &sent, &[])
        });
        assert_eq!(receive::<Event>(&right)?.expect("a message was sent").message, sent);
        writer.join().expect("the writer does not panic")?;
        Ok(())
    }

    #[test]
    fn a_lying_length_is_refused() -> TestResult {
        let (mut left, right) = UnixStream::pair()?;
        left.write_all(&u32::MAX.to_le_bytes())?;
        assert!(matches!(receive::<Event>(&right), Err(WireError::TooLong { .. })));
        let (mut left, right) = UnixStream::pair()?;
        left.write_all(&[9, 0, 0, 0, 1])?;
        drop(left);
        assert!(matches!(receive::<Event>(&right), Err(WireError::Truncated)));
        let (mut left, right) = UnixStream::pair()?;
        left.write_all(&[1, 0, 0, 0, 250])?;
        assert!(matches!(receive::<Event>(&right), Err(WireError::Format(_))));
        // The connection still works as a stream: nothing more was taken than the frame.
        left.write_all(b"x")?;
        let mut rest = [0];
        (&right).read_exact(&mut rest)?;
        assert_eq!(&rest, b"x");
        Ok(())
    }
}
