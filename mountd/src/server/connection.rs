//! One connection: requests come in on one thread, events go out from several.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use vout::proto::{Event, Request};
use vout::report::{Chunk, Progress};
use vout::wire::{self, Received, WireError};

use crate::terminal::OutputSink;

/// A client's connection.
pub(crate) struct Connection {
    incoming: UnixStream,
    /// Process id of the client, where it is known here.
    peer: Option<u32>,
    outgoing: Arc<Outgoing>,
}

/// The sending half.
pub(crate) struct Outgoing {
    /// Held while a message is written, so that messages do not mix: whoever sends waits for the client.
    stream: Mutex<UnixStream>,
}

impl Connection {
    pub(crate) fn new(stream: UnixStream, peer: Option<u32>) -> io::Result<Self> {
        let outgoing = Arc::new(Outgoing { stream: Mutex::new(stream.try_clone()?) });
        Ok(Self { incoming: stream, peer, outgoing })
    }

    /// Returns the process id of the client.
    pub(crate) fn peer(&self) -> Option<u32> {
        self.peer
    }

    /// Receives the next request; `None` where the client is done.
    pub(crate) fn receive(&self) -> Result<Option<Received<Request>>, WireError> {
        wire::receive(&self.incoming)
    }

    /// Sets how long a silent client is waited for.
    pub(crate) fn set_patience(&self, patience: Option<Duration>) -> io::Result<()> {
        self.incoming.set_read_timeout(patience)
    }

    pub(crate) fn send(&self, event: &Event) -> Result<(), WireError> {
        self.outgoing.send(event)
    }

    /// Shows progress; a client that is gone is noticed with the answer.
    pub(crate) fn progress(&self, progress: Progress) {
        self.outgoing.send(&Event::Progress(progress)).ok();
    }

    /// Returns a sink that shows terminal output through this connection.
    pub(crate) fn output(&self) -> Box<dyn OutputSink> {
        Box::new(Output(Arc::clone(&self.outgoing)))
    }
}

impl Outgoing {
    fn send(&self, event: &Event) -> Result<(), WireError> {
        let stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        wire::send(&stream, event, &[])
    }
}

struct Output(Arc<Outgoing>);

impl OutputSink for Output {
    fn show(&mut self, chunk: Chunk) -> io::Result<()> {
        self.0.send(&Event::Output(chunk)).map_err(io::Error::other)
    }
}
