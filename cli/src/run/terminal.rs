//! Where a task's output goes: to our own streams as it comes, or as one block when the task has ended.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Mutex, PoisonError};

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use vout::report::{Chunk, Stream};

/// Keeps blocks of several tasks apart.
static BLOCK: Mutex<()> = Mutex::new(());

/// Takes the output of one task.
#[derive(Debug)]
pub(crate) enum Sink {
    /// Writes at once: nothing else runs meanwhile.
    Live,
    /// Keeps all until the end.
    Block(Vec<Chunk>),
}

impl Sink {
    /// Takes the next piece.
    pub(crate) fn write(&mut self, chunk: Chunk) {
        match self {
            Self::Live => write_chunk(&chunk),
            Self::Block(chunks) => chunks.push(chunk),
        }
    }

    /// Writes what was kept, with nothing of another task in between.
    pub(crate) fn finish(self) {
        if let Self::Block(chunks) = self {
            let _apart = BLOCK.lock().unwrap_or_else(PoisonError::into_inner);
            chunks.iter().for_each(write_chunk);
        }
    }
}

/// Writes a piece to our own stream of the same kind. Where nobody reads that any more, it is dropped: the
/// task goes on, and its result is worth storing.
fn write_chunk(chunk: &Chunk) {
    let stream = match chunk.stream {
        Stream::Stdout => rustix::stdio::stdout(),
        Stream::Stderr => rustix::stdio::stderr(),
    };
    drop(write_all(stream, &chunk.bytes));
}

/// Writes all bytes, also to a stream that somebody made non-blocking, as some parents do with their pipes.
fn write_all(stream: BorrowedFd<'_>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(stream, bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                rustix::event::poll(&mut [PollFd::from_borrowed_fd(stream, PollFlags::OUT)], None)?;
            }
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_stream_that_does_not_block_still_gets_every_byte() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let reader = std::thread::spawn(move || {
            let mut read = Vec::new();
            theirs.read_to_end(&mut read).map(|_| read)
        });
        let bytes: Vec<u8> = (0..=255).cycle().take(2_000_000).collect();
        write_all(ours.as_fd(), &bytes).unwrap();
        drop(ours);
        assert!(reader.join().unwrap().unwrap() == bytes);
    }

    #[test]
    fn a_stream_nobody_reads_is_an_error_and_no_signal() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(theirs);
        assert!(write_all(ours.as_fd(), b"x").is_err());
    }
}
