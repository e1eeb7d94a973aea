//! Carries a task's output, from its view or through pipes, while it runs.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use serde_bytes::ByteBuf;
use vout::proto::{Event, Request};
use vout::report::{Chunk, Stream};

use super::runner::{Runner, RunnerEnd};
use super::terminal::Sink;
use crate::daemon::{Connection, unexpected};
use crate::error::CommandError;

/// Bytes taken from a pipe at a time.
const PIPE_CHUNK_BYTES: usize = 64 * 1024;

/// Carries a task's output while it runs.
pub(crate) struct Pump<'a> {
    /// The task's conversation with the daemon.
    pub(crate) connection: &'a Connection,
    /// Where output is shown.
    pub(crate) sink: &'a mut Sink,
}

impl Pump<'_> {
    /// Carries output until the runner tells how it ended.
    pub(crate) fn until_end(&mut self, runner: &mut Runner) -> Result<RunnerEnd, CommandError> {
        let mut pipes = Pipes::of(runner);
        loop {
            let ready = pipes.poll(self.connection, runner, None)?;
            for (stream, chunk) in pipes.read(&ready) {
                self.forward(stream, chunk)?;
            }
            if ready.daemon {
                match self.connection.receive() {
                    Ok(Event::Output(chunk)) => self.sink.write(chunk),
                    Ok(Event::Progress(_)) => {}
                    Ok(other) => return Err(unexpected(&other)),
                    // Without its view the task cannot go on, and must not go on half-way.
                    Err(error) => {
                        runner.kill();
                        return Err(error);
                    }
                }
            } else if ready.runner {
                let end = runner.outcome()?;
                // What the task wrote last is in the pipes already; a process that outlived it may hold
                // them open for ever, so their end is not waited for.
                loop {
                    let ready = pipes.poll(self.connection, runner, Some(Timespec::default()))?;
                    let chunks = pipes.read(&ready);
                    if chunks.is_empty() {
                        return Ok(end);
                    }
                    for (stream, chunk) in chunks {
                        self.forward(stream, chunk)?;
                    }
                }
            }
        }
    }

    /// Shows what came through a pipe, and has it recorded.
    fn forward(&mut self, stream: Stream, bytes: Vec<u8>) -> Result<(), CommandError> {
        let chunk = Chunk { stream, bytes: ByteBuf::from(bytes) };
        self.sink.write(chunk.clone());
        self.connection.send(&Request::Output(chunk))
    }
}

/// The pipes of a task that has no terminal files.
#[derive(Default)]
struct Pipes(Vec<(Stream, File)>);

/// What can be read.
#[derive(Default)]
struct Ready {
    daemon: bool,
    runner: bool,
    pipes: Vec<bool>,
}

impl Pipes {
    fn of(runner: &mut Runner) -> Self {
        let pipes = runner.pipes.take();
        Self(pipes.map_or_else(Vec::new, |(out, err)| vec![(Stream::Stdout, out), (Stream::Stderr, err)]))
    }

    fn poll(
        &self,
        connection: &Connection,
        runner: &Runner,
        timeout: Option<Timespec>,
    ) -> Result<Ready, CommandError> {
        let readable = |fd| PollFd::from_borrowed_fd(fd, PollFlags::IN);
        let mut fds = vec![readable(connection.as_fd()), readable(runner.as_fd()?)];
        fds.extend(self.0.iter().map(|(_, pipe)| readable(pipe.as_fd())));
        match rustix::event::poll(&mut fds, timeout.as_ref()) {
            Ok(_) => {}
            Err(Errno::INTR) => return Ok(Ready { pipes: vec![false; self.0.len()], ..Ready::default() }),
            Err(errno) => {
                return Err(
                    CommandError::internal("cannot wait for the task").caused_by(&io::Error::from(errno))
                );
            }
        }
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        Ok(Ready { daemon: ready[0], runner: ready[1], pipes: ready[2..].to_vec() })
    }

    /// Reads once from each pipe that is ready; one that is at its end is closed.
    fn read(&mut self, ready: &Ready) -> Vec<(Stream, Vec<u8>)> {
        let mut chunks = Vec::new();
        let mut ready = ready.pipes.iter();
        self.0.retain_mut(|(stream, pipe)| {
            if ready.next() != Some(&true) {
                return true;
            }
            let mut buffer = vec![0; PIPE_CHUNK_BYTES];
            match pipe.read(&mut buffer) {
                Ok(0) => false,
                Ok(read) => {
                    buffer.truncate(read);
                    chunks.push((*stream, buffer));
                    true
                }
                Err(error) => error.kind() == io::ErrorKind::Interrupted,
            }
        });
        chunks
    }
}
