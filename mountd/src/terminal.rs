//! The terminal output of a task, written to two files of its view.
//!
//! One session thread takes the writes of both files, so their order is exact. Each write is logged, then
//! shown to the client by a thread of its own, and only then answered: a slow terminal stops the writer,
//! never the session.

use std::ffi::OsStr;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use serde_bytes::ByteBuf;
use vout::fs::{Attr, FileKind, FsError, Holds, NodeId, Timestamp};
use vout::proto::{VIEW_STDERR, VIEW_STDOUT};
use vout::report::{Chunk, Stream};

/// Output beyond this is shown but not logged.
pub use vout::report::TERMINAL_BYTES_MAX as LOG_BYTES_MAX;

/// Nodes of the terminal files. Cores number their nodes from one upwards and never get here.
const STDOUT_NODE: NodeId = NodeId((1 << 63) + 1);
const STDERR_NODE: NodeId = NodeId((1 << 63) + 2);

/// Shows terminal output to whoever started the task.
pub trait OutputSink: Send {
    /// Shows one piece; returns once it was taken over.
    ///
    /// # Errors
    /// Any; nothing more is shown after the first.
    fn show(&mut self, chunk: Chunk) -> io::Result<()>;
}

/// Called when a write was shown, or never will be.
pub(crate) type WriteDone = Box<dyn FnOnce(Result<(), FsError>) + Send>;

/// The terminal output of one task.
pub struct Terminal {
    /// From now on the view hides the names.
    sealed: AtomicBool,
    /// What was written, and the way to the forwarding thread: one lock, so that both have one order.
    /// Never held across I/O.
    state: Mutex<State>,
}

struct State {
    log: Vec<Chunk>,
    log_bytes: u64,
    queue: Sender<Forward>,
}

enum Forward {
    Show { chunk: Chunk, done: WriteDone },
    Flush(Sender<()>),
}

impl Terminal {
    /// Starts a terminal that shows its output through `sink`.
    ///
    /// # Errors
    /// Where no thread can be started.
    pub fn start(sink: Box<dyn OutputSink>) -> io::Result<Arc<Self>> {
        let (queue, forwards) = mpsc::channel();
        thread::Builder::new().name("terminal".into()).spawn(move || forward(&forwards, sink))?;
        let state = State { log: Vec::new(), log_bytes: 0, queue };
        Ok(Arc::new(Self { sealed: AtomicBool::new(false), state: Mutex::new(state) }))
    }

    /// Hides the names from now on; what is open keeps working.
    pub fn seal(&self) {
        self.sealed.store(true, Ordering::Release);
    }

    /// Waits until all that was written so far has been shown, or failed to be.
    pub fn flush(&self) {
        let (done, flushed) = mpsc::channel();
        let sent = self.lock().queue.send(Forward::Flush(done));
        if sent.is_ok() {
            // An error means the forwarder is gone, and nothing is left to wait for.
            flushed.recv().ok();
        }
    }

    /// Logs output that the client has shown already.
    pub fn record(&self, chunk: Chunk) {
        self.lock().append(&chunk);
    }

    /// Returns the log and leaves an empty one.
    ///
    /// # Guarantees
    /// It is complete if it holds at most [`LOG_BYTES_MAX`] bytes; a longer one was cut.
    #[must_use]
    pub fn take_log(&self) -> Vec<Chunk> {
        std::mem::take(&mut self.lock().log)
    }

    /// Returns the stream that `name` in the view's root stands for, while it stands for one.
    pub(crate) fn resolve(&self, parent: NodeId, name: &OsStr) -> Option<Stream> {
        if parent != NodeId::ROOT || self.sealed.load(Ordering::Acquire) {
            None
        } else if name == VIEW_STDOUT {
            Some(Stream::Stdout)
        } else if name == VIEW_STDERR {
            Some(Stream::Stderr)
        } else {
            None
        }
    }

    /// Logs a write and queues it to be shown; `done` is called afterwards from another thread.
    pub(crate) fn write(&self, stream: Stream, bytes: &[u8], done: WriteDone) {
        let chunk = Chunk { stream, bytes: ByteBuf::from(bytes) };
        let mut state = self.lock();
        state.append(&chunk);
        if let Err(mpsc::SendError(Forward::Show { done, .. })) =
            state.queue.send(Forward::Show { chunk, done })
        {
            drop(state);
            done(Err(broken_pipe()));
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        // Nothing that holds the lock can leave the state half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn append(&mut self, chunk: &Chunk) {
        if self.log_bytes > LOG_BYTES_MAX {
            return;
        }
        // The piece that exceeds the limit is kept: the length says that the log was cut.
        self.log_bytes += chunk.bytes.len() as u64;
        match self.log.last_mut() {
            Some(last) if last.stream == chunk.stream => last.bytes.extend_from_slice(&chunk.bytes),
            Some(_) | None => self.log.push(chunk.clone()),
        }
    }
}

/// Returns the stream behind a terminal file's node.
pub(crate) fn stream_of(node: NodeId) -> Option<Stream> {
    match node {
        STDOUT_NODE => Some(Stream::Stdout),
        STDERR_NODE => Some(Stream::Stderr),
        _ => None,
    }
}

/// Returns the attributes of a terminal file: an empty file that anybody in the view may write to.
pub(crate) fn attr_of(stream: Stream) -> Attr {
    let node = match stream {
        Stream::Stdout => STDOUT_NODE,
        Stream::Stderr => STDERR_NODE,
    };
    Attr {
        node,
        ino: node.0,
        kind: FileKind::File,
        mode: 0o222,
        nlink: 1,
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        rdev: 0,
        size_bytes: 0,
        blocks: 0,
        block_size_bytes: 4096,
        atime: Timestamp::default(),
        mtime: Timestamp::default(),
        ctime: Timestamp::default(),
        holds: Holds::Nothing,
    }
}

fn broken_pipe() -> FsError {
    FsError::from(rustix::io::Errno::PIPE)
}

/// Shows what arrives until the terminal is dropped.
fn forward(forwards: &Receiver<Forward>, sink: Box<dyn OutputSink>) {
    let mut sink = Some(sink);
    while let Ok(forward) = forwards.recv() {
        match forward {
            Forward::Flush(done) => {
                // The one who asked may have gone.
                done.send(()).ok();
            }
            Forward::Show { chunk, done } => {
                let shown = sink.as_mut().is_some_and(|sink| match sink.show(chunk) {
                    Ok(()) => true,
                    Err(error) => {
                        tracing::debug!(%error, "client takes no more output");
                        false
                    }
                });
                if !shown {
                    sink = None;
                }
                done(if shown { Ok(()) } else { Err(broken_pipe()) });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Vector(Arc<Mutex<Vec<Chunk>>>, usize);

    impl OutputSink for Vector {
        fn show(&mut self, chunk: Chunk) -> io::Result<()> {
            let mut shown = self.0.lock().unwrap();
            if shown.len() == self.1 {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            shown.push(chunk);
            Ok(())
        }
    }

    fn ignore() -> WriteDone {
        Box::new(|_| ())
    }

    #[test]
    fn log_and_display_have_the_same_order() -> io::Result<()> {
        let shown = Arc::new(Mutex::new(Vec::new()));
        let terminal = Terminal::start(Box::new(Vector(Arc::clone(&shown), usize::MAX)))?;
        for (stream, bytes) in [(Stream::Stdout, "a"), (Stream::Stderr, "b"), (Stream::Stdout, "c")] {
            terminal.write(stream, bytes.as_bytes(), ignore());
        }
        terminal.flush();
        assert_eq!(*shown.lock().unwrap(), terminal.take_log());
        Ok(())
    }

    #[test]
    fn neighbours_of_one_stream_are_logged_as_one() -> io::Result<()> {
        let terminal = Terminal::start(Box::new(Vector(Arc::default(), usize::MAX)))?;
        terminal.write(Stream::Stdout, b"a", ignore());
        terminal.write(Stream::Stdout, b"b", ignore());
        assert_eq!(terminal.take_log(), [Chunk { stream: Stream::Stdout, bytes: ByteBuf::from(*b"ab") }]);
        Ok(())
    }

    #[test]
    fn writers_learn_that_the_client_is_gone() -> io::Result<()> {
        let terminal = Terminal::start(Box::new(Vector(Arc::default(), 1)))?;
        let (sender, results) = mpsc::channel();
        for _ in 0..3 {
            let sender = sender.clone();
            terminal.write(
                Stream::Stdout,
                b"x",
                Box::new(move |result| sender.send(result.is_ok()).unwrap()),
            );
        }
        terminal.flush();
        assert_eq!(results.try_iter().collect::<Vec<_>>(), [true, false, false]);
        Ok(())
    }

    #[test]
    fn a_log_beyond_the_limit_is_cut_but_says_so() -> io::Result<()> {
        let terminal = Terminal::start(Box::new(Vector(Arc::default(), 0)))?;
        let piece = vec![0; 16 * 1024 * 1024];
        for _ in 0..8 {
            terminal.record(Chunk { stream: Stream::Stdout, bytes: ByteBuf::from(piece.clone()) });
        }
        let logged: usize = terminal.take_log().iter().map(|chunk| chunk.bytes.len()).sum();
        assert_eq!(logged, 5 * piece.len());
        Ok(())
    }

    #[test]
    fn names_are_hidden_once_sealed() -> io::Result<()> {
        let terminal = Terminal::start(Box::new(Vector(Arc::default(), 0)))?;
        let name = OsStr::new(VIEW_STDERR);
        assert_eq!(terminal.resolve(NodeId::ROOT, name), Some(Stream::Stderr));
        assert_eq!(terminal.resolve(NodeId(2), name), None);
        terminal.seal();
        assert_eq!(terminal.resolve(NodeId::ROOT, name), None);
        Ok(())
    }
}
