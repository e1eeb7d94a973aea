//! The life of one task: looked up, replayed or run, and reported.

use std::fs::File;
use std::io::{IsTerminal, Read};
use std::os::fd::AsFd;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use serde_bytes::ByteBuf;
use vout::explain;
use vout::proto::{CacheMode, Event, Outcome, Request, VIEW_ENV, ViewId};
use vout::report::{Chunk, FinishReport, HitReport, MissReason, NotStored, Stream};
use vout::task::TaskSpec;

use super::interrupts::{Interrupted, Interrupts};
use super::report::{Status, TaskReport};
use super::runner::{Runner, RunnerOutput};
use super::schedule::Ended;
use super::spec::Resolved;
use super::terminal::Sink;
use crate::daemon::{Connection, unexpected};
use crate::error::CommandError;
use crate::output::{self, ProgressDisplay, Verbosity};
use crate::view::message::{Group, RunnerSpec, Terminal, ViewPlace};
use crate::workspace::Place;

/// Bytes taken from a pipe at a time.
const PIPE_CHUNK_BYTES: usize = 64 * 1024;

/// Value of [`VIEW_ENV`] for a task that runs without a view.
const NO_VIEW: &str = "none";

/// What all tasks of a run share.
#[derive(Debug)]
pub(crate) struct RunContext<'a> {
    /// Where the workspace and the daemon are.
    pub(crate) place: &'a Place,
    /// Whom a signal has to reach.
    pub(crate) interrupts: &'a Interrupts,
    /// How the cache is used.
    pub(crate) cache: CacheMode,
    /// How much is said.
    pub(crate) verbosity: Verbosity,
    /// Whether no two tasks can run at once, so that each has the terminal to itself.
    pub(crate) alone: bool,
}

/// How a task ended.
#[derive(Debug)]
pub(crate) struct TaskEnd {
    /// For the report.
    pub(crate) report: TaskReport,
    /// A fault that is not the task's; its exit code then is ours.
    pub(crate) error: Option<CommandError>,
}

impl Ended for TaskEnd {
    fn succeeded(&self) -> bool {
        self.error.is_none() && self.report.exit_code == Some(0)
    }
}

/// Why a task came to no end of its own.
#[derive(Debug)]
enum Stop {
    Interrupted,
    Fault(CommandError),
}

impl From<CommandError> for Stop {
    fn from(error: CommandError) -> Self {
        Self::Fault(error)
    }
}

impl From<Interrupted> for Stop {
    fn from(Interrupted: Interrupted) -> Self {
        Self::Interrupted
    }
}

/// What the daemon said to [`Request::Begin`].
enum Begun {
    Hit(HitReport, Vec<Chunk>),
    Miss(Option<ViewId>, MissReason),
}

/// Runs the task that `resolve` gives, number `index` of the run, to its end.
pub(crate) fn run_task(
    context: &RunContext<'_>,
    index: usize,
    name: &str,
    resolve: impl FnOnce() -> Result<Resolved, CommandError>,
) -> TaskEnd {
    let started = Instant::now();
    let result = resolve().map_err(Stop::from).and_then(|task| Task { context, index, started }.run(task));
    context.interrupts.end(index);
    let mut end = match result {
        Ok(report) => TaskEnd { report, error: None },
        Err(_) if context.interrupts.signal().is_some() => {
            TaskEnd { report: TaskReport::not_run(name, "interrupted"), error: None }
        }
        Err(Stop::Interrupted) => TaskEnd { report: TaskReport::not_run(name, "interrupted"), error: None },
        Err(Stop::Fault(error)) => {
            let reason = error.causes.join(": ");
            TaskEnd { report: TaskReport::not_run(name, reason), error: Some(error) }
        }
    };
    end.report.duration_ms = elapsed_ms(started);
    end
}

/// One task of a run.
struct Task<'a> {
    context: &'a RunContext<'a>,
    index: usize,
    started: Instant,
}

impl Task<'_> {
    fn run(&self, task: Resolved) -> Result<TaskReport, Stop> {
        let connection = Connection::open(self.context.place)?;
        self.context.interrupts.begin(self.index, connection.handle()?)?;
        let cache = if task.spec.cache { self.context.cache } else { CacheMode::Off };
        match self.begin(&connection, &task.spec, cache)? {
            Begun::Hit(hit, terminal) => Ok(self.replay(&task.spec.name, hit, terminal)),
            Begun::Miss(view, reason) => self.execute(&connection, task, cache, view, &reason),
        }
    }

    fn begin(&self, connection: &Connection, spec: &TaskSpec, cache: CacheMode) -> Result<Begun, Stop> {
        connection.send(&Request::Begin { spec: Box::new(spec.clone()), cache })?;
        let mut display = ProgressDisplay::bar_only();
        let event = connection.receive_past_progress(|progress| {
            if self.shows_progress() {
                display.update(progress);
            }
        })?;
        match event {
            Event::Hit { report, terminal } => Ok(Begun::Hit(report, terminal)),
            Event::Miss { view, reason } => Ok(Begun::Miss(view, reason)),
            other => Err(unexpected(&other).into()),
        }
    }

    fn replay(&self, name: &str, hit: HitReport, terminal: Vec<Chunk>) -> TaskReport {
        let saved_ms = hit.recorded_ms.saturating_sub(elapsed_ms(self.started));
        let mut line = format!("hit (saved {})", output::duration(saved_ms));
        if self.context.verbosity == Verbosity::Verbose {
            let how = match (hit.in_place, hit.lazy) {
                (true, _) => "in place already",
                (false, true) => "served from the archive",
                (false, false) => "restored",
            };
            let outputs = output::count(hit.outputs, "output");
            line += &format!(
                ": {} compared, {outputs} ({}) {how}",
                output::count(hit.inputs, "input"),
                output::bytes(hit.output_bytes)
            );
        }
        self.say(name, line);
        let mut sink = self.sink();
        terminal.into_iter().for_each(|chunk| sink.write(chunk));
        sink.finish();
        TaskReport {
            status: Status::Hit,
            reason: None,
            exit_code: Some(0),
            saved_ms,
            inputs: hit.inputs,
            outputs: hit.outputs,
            output_bytes: hit.output_bytes,
            archive: hit.archive,
            stored: true,
            not_stored_reason: None,
            ..TaskReport::not_run(name, "")
        }
    }

    fn execute(
        &self,
        connection: &Connection,
        task: Resolved,
        cache: CacheMode,
        view: Option<ViewId>,
        reason: &MissReason,
    ) -> Result<TaskReport, Stop> {
        let name = task.spec.name.clone();
        let reason_text = (cache != CacheMode::Off).then(|| explain::miss(reason));
        match &reason_text {
            Some(text) if self.context.verbosity == Verbosity::Verbose => {
                let details = explain::miss_details(reason);
                self.say(
                    &name,
                    format!("miss: {}", if details.is_empty() { text.clone() } else { details.join(", ") }),
                );
            }
            Some(text) => self.say(&name, format!("miss: {text}")),
            None => self.say(&name, "running, not cached"),
        }
        let mut sink = self.sink();
        let (spec, inherits_terminal) = self.runner_spec(task, cache, view);
        let outcome = self.run_commands(connection, &spec, inherits_terminal, &mut sink)?;
        connection.send(&Request::Finish(outcome.clone()))?;
        let finished = self.finish(connection, &mut sink);
        sink.finish();
        let finished = finished?;
        self.say_end(&name, cache, &outcome, &finished);
        Ok(TaskReport {
            status: match (outcome.exit_code, cache) {
                (0, CacheMode::Off) => Status::Uncached,
                (0, CacheMode::ReadWrite | CacheMode::Refresh) => Status::Miss,
                _ => Status::Failed,
            },
            reason: reason_text,
            exit_code: Some(outcome.exit_code),
            inputs: finished.inputs,
            outputs: finished.outputs,
            output_bytes: finished.output_bytes,
            archive: finished.archive,
            stored: finished.entry.is_some(),
            not_stored_reason: finished.not_stored.as_ref().map(explain::not_stored),
            ..TaskReport::not_run(&name, "")
        })
    }

    /// Returns what the runner is to do, and whether the task gets our own standard streams.
    fn runner_spec(&self, task: Resolved, cache: CacheMode, view: Option<ViewId>) -> (RunnerSpec, bool) {
        // Nothing is recorded of the terminal of a task that is not cached, so it may have it to itself.
        let inherits = cache == CacheMode::Off && self.context.alone;
        let mut env = task.env;
        env.set(VIEW_ENV, view.map_or_else(|| NO_VIEW.to_owned(), |view| view.0.to_string()));
        let on_terminal = inherits && std::io::stdin().is_terminal();
        let spec = RunnerSpec {
            view: view.map(|id| ViewPlace { id, socket: self.context.place.runtime.socket().to_owned() }),
            workspace: self.context.place.root.clone(),
            cwd: task.spec.cwd,
            commands: task.spec.commands,
            env: env.all,
            terminal: if inherits || view.is_none() { Terminal::Inherit } else { Terminal::View },
            group: if on_terminal { Group::Terminal } else { Group::Own },
        };
        (spec, inherits)
    }

    fn run_commands(
        &self,
        connection: &Connection,
        spec: &RunnerSpec,
        inherits_terminal: bool,
        sink: &mut Sink,
    ) -> Result<Outcome, Stop> {
        let stdin = std::io::stdin();
        let output = match (spec.terminal, inherits_terminal) {
            (Terminal::Inherit, false) => RunnerOutput::Pipes,
            (Terminal::Inherit, true) | (Terminal::View, _) => RunnerOutput::Inherit,
        };
        let mut runner = Runner::start(spec, inherits_terminal.then(|| stdin.as_fd()), output)?;
        self.context.interrupts.set_runner(self.index, Some(runner.handle()?))?;
        let outcome = Pump { connection, sink }.until_outcome(&mut runner);
        self.context.interrupts.set_runner(self.index, None)?;
        if outcome.is_ok() {
            // Its mount namespace has to go before the view is empty; how it exits says nothing more.
            drop(runner.reap());
        }
        Ok(outcome?)
    }

    fn finish(&self, connection: &Connection, sink: &mut Sink) -> Result<FinishReport, Stop> {
        let mut display = ProgressDisplay::bar_only();
        loop {
            match connection.receive()? {
                Event::Output(chunk) => sink.write(chunk),
                Event::Progress(progress) if self.shows_progress() => display.update(&progress),
                Event::Progress(_) => {}
                Event::Finished(report) => return Ok(report),
                other => return Err(unexpected(&other).into()),
            }
        }
    }

    fn say_end(&self, name: &str, cache: CacheMode, outcome: &Outcome, finished: &FinishReport) {
        let took = output::duration(outcome.duration_ms);
        if outcome.interrupted {
            self.say(name, format!("interrupted after {took}"));
        } else if outcome.exit_code != 0 {
            self.say(name, format!("failed with exit code {} after {took}", outcome.exit_code));
        }
        match &finished.not_stored {
            // Said already, or wanted so.
            Some(NotStored::Failed | NotStored::Interrupted | NotStored::Disabled) => {}
            Some(why) => self.say(name, format!("not stored: {}", explain::not_stored(why))),
            None if cache == CacheMode::Off => {}
            None => {
                let outputs = output::count(finished.outputs, "output");
                self.say(
                    name,
                    format!("stored {outputs} ({}) after {took}", output::bytes(finished.output_bytes)),
                );
            }
        }
    }

    fn sink(&self) -> Sink {
        if self.context.alone { Sink::Live } else { Sink::Block(Vec::new()) }
    }

    /// Bars of several tasks would paint over each other.
    fn shows_progress(&self) -> bool {
        self.context.alone && self.context.verbosity >= Verbosity::Normal
    }

    fn say(&self, name: &str, line: impl AsRef<str>) {
        if self.context.verbosity >= Verbosity::Normal {
            output::note(format!("{name}: {}", line.as_ref()));
        }
    }
}

/// Carries a task's output while it runs.
struct Pump<'a> {
    connection: &'a Connection,
    sink: &'a mut Sink,
}

impl Pump<'_> {
    /// Carries output until the runner tells the outcome.
    fn until_outcome(&mut self, runner: &mut Runner) -> Result<Outcome, CommandError> {
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
                let outcome = runner.outcome()?;
                // What the task wrote last is in the pipes already; a process that outlived it may hold
                // them open for ever, so their end is not waited for.
                loop {
                    let ready =
                        pipes.poll(self.connection, runner, Some(rustix::event::Timespec::default()))?;
                    let chunks = pipes.read(&ready);
                    if chunks.is_empty() {
                        return Ok(outcome);
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
        timeout: Option<rustix::event::Timespec>,
    ) -> Result<Ready, CommandError> {
        let readable = |fd| PollFd::from_borrowed_fd(fd, PollFlags::IN);
        let mut fds = vec![readable(connection.as_fd()), readable(runner.as_fd()?)];
        fds.extend(self.0.iter().map(|(_, pipe)| readable(pipe.as_fd())));
        match rustix::event::poll(&mut fds, timeout.as_ref()) {
            Ok(_) => {}
            Err(Errno::INTR) => return Ok(Ready { pipes: vec![false; self.0.len()], ..Ready::default() }),
            Err(errno) => {
                return Err(CommandError::internal("cannot wait for the task")
                    .caused_by(&std::io::Error::from(errno)));
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
                Err(error) => error.kind() == std::io::ErrorKind::Interrupted,
            }
        });
        chunks
    }
}

fn elapsed_ms(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}
