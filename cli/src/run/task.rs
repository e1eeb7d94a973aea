//! The life of one task: looked up, replayed or run, and reported.

use std::io::IsTerminal;
use std::os::fd::AsFd;
use std::time::Instant;

use vout::explain;
use vout::proto::{CacheMode, Event, Outcome, Request, VIEW_ENV, ViewId};
use vout::report::{Chunk, FinishReport, HitReport, MissReason, NotStored};
use vout::serving::Serving;
use vout::task::TaskSpec;

use super::interrupts::{Interrupted, Interrupts};
use super::pump::Pump;
use super::recording::RecordingFile;
use super::report::{Status, TaskReport};
use super::runner::{Runner, RunnerEnd, RunnerOutput};
use super::schedule::Ended;
use super::spec::Resolved;
use super::terminal::Sink;
use crate::daemon::{Connection, unexpected};
use crate::error::CommandError;
use crate::output::{self, ProgressDisplay, Verbosity};
use crate::view::fusermount;
use crate::view::message::{Group, Placement, RunnerSpec, Terminal, ViewPlace};
use crate::workspace::Place;

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
    /// How views are served.
    pub(crate) serving: Serving,
    /// How much is said.
    pub(crate) verbosity: Verbosity,
    /// Whether no two tasks can run at once, so that each has the terminal to itself.
    pub(crate) alone: bool,
    /// Where all that the tasks look at is written, if anywhere.
    pub(crate) recording: Option<&'a RecordingFile>,
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
        connection.send(&Request::Begin {
            spec: Box::new(spec.clone()),
            cache,
            serving: self.context.serving,
        })?;
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
        let (outcome, runner) = self.run_commands(connection, spec, inherits_terminal, &mut sink)?;
        if self.context.recording.is_some() {
            connection.send(&Request::TellRecording)?;
        }
        connection.send(&Request::Finish(outcome.clone()))?;
        let finished = self.finish(&name, connection, &mut sink);
        // The kernel took its mount apart meanwhile; how it exits says nothing more.
        drop(runner.reap());
        sink.finish();
        let finished = finished?;
        if let (Some(_), Some(why @ NotStored::SessionDied(_))) = (view, &finished.not_stored) {
            // However the task took it, nothing of what it wrote is there.
            let lost = format!("what task {name:?} wrote is lost: {}", explain::not_stored(why));
            return Err(CommandError::internal(lost).hint("the workspace is as before; run it again").into());
        }
        self.say_end(&name, &outcome, &finished);
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
            served: finished.served.clone(),
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
            view: view.map(|id| ViewPlace {
                id,
                socket: self.context.place.runtime.socket().to_owned(),
                placement: Placement::InPlace,
            }),
            workspace: self.context.place.root.clone(),
            cwd: task.spec.cwd,
            commands: task.spec.commands,
            env: env.all,
            terminal: if inherits || view.is_none() { Terminal::Inherit } else { Terminal::View },
            group: if on_terminal { Group::Terminal } else { Group::Own },
        };
        (spec, inherits)
    }

    /// Runs the commands, at another place where the machine denies the better one.
    fn run_commands(
        &self,
        connection: &Connection,
        mut spec: RunnerSpec,
        inherits_terminal: bool,
        sink: &mut Sink,
    ) -> Result<(Outcome, Runner), Stop> {
        let denied = match self.run_once(connection, &spec, inherits_terminal, sink)? {
            (RunnerEnd::Ended(outcome), runner) => return Ok((outcome, runner)),
            (RunnerEnd::Denied(denied), _) => denied,
        };
        match &mut spec.view {
            Some(view) if view.placement == Placement::InPlace && fusermount::helper().is_some() => {
                view.placement = Placement::Elsewhere;
            }
            _ => return Err(denied.into()),
        }
        if self.context.verbosity >= Verbosity::Normal {
            output::note("this machine denies private namespaces: absolute paths differ in the task");
            output::note("`vout doctor` shows the command that allows them");
        }
        match self.run_once(connection, &spec, inherits_terminal, sink)? {
            (RunnerEnd::Ended(outcome), runner) => Ok((outcome, runner)),
            (RunnerEnd::Denied(denied), _) => Err(denied.into()),
        }
    }

    fn run_once(
        &self,
        connection: &Connection,
        spec: &RunnerSpec,
        inherits_terminal: bool,
        sink: &mut Sink,
    ) -> Result<(RunnerEnd, Runner), Stop> {
        let stdin = std::io::stdin();
        let output = match (spec.terminal, inherits_terminal) {
            (Terminal::Inherit, false) => RunnerOutput::Pipes,
            (Terminal::Inherit, true) | (Terminal::View, _) => RunnerOutput::Inherit,
        };
        let mut runner = Runner::start(spec, inherits_terminal.then(|| stdin.as_fd()), output)?;
        self.context.interrupts.set_runner(self.index, Some(runner.handle()?))?;
        let end = Pump { connection, sink }.until_end(&mut runner);
        self.context.interrupts.set_runner(self.index, None)?;
        Ok((end?, runner))
    }

    fn finish(&self, name: &str, connection: &Connection, sink: &mut Sink) -> Result<FinishReport, Stop> {
        let mut display = ProgressDisplay::bar_only();
        loop {
            match connection.receive()? {
                Event::Output(chunk) => sink.write(chunk),
                Event::Recorded(paths) => {
                    if let Some(recording) = self.context.recording {
                        recording.add(name, &paths)?;
                    }
                }
                Event::Progress(progress) if self.shows_progress() => display.update(&progress),
                Event::Progress(_) => {}
                Event::Finished(report) => return Ok(report),
                other => return Err(unexpected(&other).into()),
            }
        }
    }

    fn say_end(&self, name: &str, outcome: &Outcome, finished: &FinishReport) {
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
            None if finished.entry.is_none() => {}
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
            output::note(format!("{}: {}", output::short(name), line.as_ref()));
        }
    }
}

fn elapsed_ms(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}
