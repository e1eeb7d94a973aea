//! `vout run`: tasks through the cache.

mod env;
mod interrupts;
mod nested;
mod programs;
mod pump;
mod recording;
mod report;
mod runner;
mod schedule;
mod spec;
mod task;
mod terminal;

use std::process::ExitCode;
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::Instant;

use rustix::process::Signal;
use signal_hook::iterator::{Handle, Signals};
use vout::config::Config;
use vout::proto::{CacheMode, VIEW_ENV};

use self::interrupts::Interrupts;
use self::recording::RecordingFile;
use self::report::{Status, TaskReport};
use self::schedule::{Message, Policy, Skipped};
use self::spec::Tasks;
use self::task::{RunContext, TaskEnd, run_task};
use crate::args::RunArgs;
use crate::config;
use crate::error::{Attempted, CommandError, EXIT_USER};
use crate::output::{self, Verbosity};
use crate::view::children::exit_code_of_signal;
use crate::workspace::{Place, Surroundings};

/// Runs what `args` asks for and returns the exit code.
pub(crate) fn run(args: &RunArgs, surroundings: &Surroundings) -> Result<ExitCode, CommandError> {
    let report_path = args.report.as_deref().map(|path| surroundings.cwd.join(path));
    let write_report = |reports: &[TaskReport]| match &report_path {
        Some(path) => report::write(path, reports),
        None => Ok(()),
    };
    let (code, reports) = match prepare(args, surroundings).and_then(|run| run.execute()) {
        Ok(done) => done,
        Err(error) => {
            // Scripts read the report of a run that failed, too; the first fault is the one to tell.
            let names = args.tasks.iter().map(String::as_str);
            let reports: Vec<_> =
                names.map(|name| TaskReport::not_run(name, error.causes.join(": "))).collect();
            drop(write_report(&reports));
            return Err(error);
        }
    };
    write_report(&reports)?;
    Ok(ExitCode::from(code))
}

/// A run, ready to begin.
struct Run<'a> {
    args: &'a RunArgs,
    surroundings: &'a Surroundings,
    place: Place,
    tasks: Tasks,
}

fn prepare<'a>(args: &'a RunArgs, surroundings: &'a Surroundings) -> Result<Run<'a>, CommandError> {
    let mut config: Option<Config> = None;
    let place = Place::find(surroundings, None, |root| {
        config = config::load(root)?;
        Ok(config.clone().unwrap_or_default())
    })?;
    let tasks = Tasks::requested(args, config.as_ref(), &place, surroundings)?;
    Ok(Run { args, surroundings, place, tasks })
}

impl Run<'_> {
    /// Returns the exit code and what happened to each task.
    fn execute(&self) -> Result<(u8, Vec<TaskReport>), CommandError> {
        if self.surroundings.var(VIEW_ENV).is_some() {
            let reports = nested::run(&self.tasks.tasks, &self.place, self.surroundings)?;
            let code = reports.last().and_then(|report| report.exit_code).unwrap_or(0);
            return Ok((narrow(code), reports));
        }
        let started = Instant::now();
        let jobs = self
            .args
            .jobs
            .map_or_else(|| thread::available_parallelism().map_or(1, usize::from), usize::from);
        let policy = Policy { jobs, keep_going: self.args.keep_going };
        let interrupts = Interrupts::default();
        let recording = match &self.args.recording {
            Some(path) => Some(RecordingFile::create(&self.surroundings.cwd.join(path))?),
            None => None,
        };
        let context = RunContext {
            place: &self.place,
            interrupts: &interrupts,
            cache: match (self.args.no_cache, self.args.force) {
                (true, _) => CacheMode::Off,
                (false, true) => CacheMode::Refresh,
                (false, false) => CacheMode::ReadWrite,
            },
            serving: config::serving(self.args.serving, self.surroundings, self.place.serving)?.for_view(),
            verbosity: match (self.args.quiet, self.args.verbose) {
                (true, _) => Verbosity::Quiet,
                (false, true) => Verbosity::Verbose,
                (false, false) => Verbosity::Normal,
            },
            alone: jobs == 1 || schedule::is_chain(&self.tasks.waits_for),
            recording: recording.as_ref(),
        };
        let results = self.execute_tasks(&context, policy)?;
        if let Some(recording) = &recording {
            recording.finish()?;
        }
        let (code, reports) = self.conclude(&context, results);
        if reports.len() > 1 && context.verbosity >= Verbosity::Normal {
            output::note(summary(&reports, started));
        }
        Ok((code, reports))
    }

    fn execute_tasks(
        &self,
        context: &RunContext<'_>,
        policy: Policy,
    ) -> Result<Vec<Result<TaskEnd, Skipped>>, CommandError> {
        let (sender, receiver) = channel();
        thread::scope(|scope| {
            let (signals, handle) = catch_signals()?;
            let stop: Sender<Message<TaskEnd>> = sender.clone();
            let watch = scope.spawn(move || pass_on(signals, context.interrupts, &stop));
            let results = schedule::execute(&self.tasks.waits_for, policy, &sender, &receiver, |index| {
                let task = &self.tasks.tasks[index];
                let end =
                    run_task(context, index, &task.name, || Ok(task.resolve(&self.place, self.surroundings)));
                if let Some(error) = &end.error {
                    error.print();
                }
                end
            });
            handle.close();
            // It ends when its handle is closed, and has nothing to tell.
            drop(watch.join());
            Ok(results)
        })
    }

    /// Returns the exit code, and the reports of all tasks, those that were not started included.
    fn conclude(
        &self,
        context: &RunContext<'_>,
        results: Vec<Result<TaskEnd, Skipped>>,
    ) -> (u8, Vec<TaskReport>) {
        let mut code = None;
        let mut reports = Vec::with_capacity(results.len());
        for (index, result) in results.into_iter().enumerate() {
            let name = &self.tasks.tasks[index].name;
            match result {
                Ok(end) => {
                    let own = end.error.as_ref().map(CommandError::exit_code);
                    let task = end.report.exit_code.map(narrow).filter(|code| *code != 0);
                    code = code.or(own).or(task);
                    reports.push(end.report);
                }
                Err(skipped) => {
                    let reason = match skipped {
                        Skipped::Dependency(other) => {
                            format!("it depends on '{}'", self.tasks.tasks[other].name)
                        }
                        Skipped::Failure => "another task failed".to_owned(),
                        Skipped::Stopped => "interrupted".to_owned(),
                    };
                    if context.verbosity >= Verbosity::Normal {
                        output::note(format!("{name}: not run: {reason}"));
                    }
                    reports.push(TaskReport::not_run(name, reason));
                }
            }
        }
        let interrupted = context.interrupts.signal().map(|signal| narrow(exit_code_of_signal(signal)));
        (interrupted.or(code).unwrap_or(0), reports)
    }
}

/// Returns the signals to pass on, and what ends the waiting for them.
///
/// What our caller has us ignore stays ignored, in the tasks too: `nohup vout run` is one case of it.
fn catch_signals() -> Result<(Signals, Handle), CommandError> {
    let ignored = std::fs::read_to_string("/proc/self/status").map_or(0, |status| ignored_signals(&status));
    let wanted = [Signal::INT, Signal::TERM, Signal::HUP, Signal::QUIT].map(Signal::as_raw);
    let wanted = wanted.into_iter().filter(|signal| ignored & (1 << (signal - 1)) == 0);
    let signals = Signals::new(wanted).attempted("take over signals")?;
    let handle = signals.handle();
    Ok((signals, handle))
}

/// Returns the bit set of ignored signals that `/proc/self/status` shows.
fn ignored_signals(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    line.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

/// Passes signals on until the handle is closed.
fn pass_on(mut signals: Signals, interrupts: &Interrupts, stop: &Sender<Message<TaskEnd>>) {
    for signal in signals.forever() {
        interrupts.interrupt(signal);
        // A scheduler that has ended starts nothing more anyway.
        drop(stop.send(Message::Stop));
    }
}

/// Returns `code` as a process can give it: of an exit code the kernel keeps eight bits.
fn narrow(code: i32) -> u8 {
    u8::try_from(code & 0xff).unwrap_or(EXIT_USER)
}

fn summary(reports: &[TaskReport], started: Instant) -> String {
    let number = |status| reports.iter().filter(|report| report.status == status).count();
    let counts = [
        (Status::Hit, "hit", "hits"),
        (Status::Miss, "miss", "misses"),
        (Status::Uncached, "not cached", "not cached"),
        (Status::Failed, "failed", "failed"),
    ];
    let counts: Vec<String> = counts
        .into_iter()
        .map(|(status, one, many)| (number(status), one, many))
        .filter(|(number, ..)| *number > 0)
        .map(|(number, one, many)| format!("{number} {}", if number == 1 { one } else { many }))
        .collect();
    let took = output::duration(u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX));
    let saved: u64 = reports.iter().map(|report| report.saved_ms).sum();
    let saved = if saved > 0 { format!(", saved {}", output::duration(saved)) } else { String::new() };
    format!("{} tasks in {took}: {}{saved}", reports.len(), counts.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ignored_signals_are_read() {
        assert_eq!(ignored_signals("Name:\tvout\nSigIgn:\t0000000000000001\nSigCgt:\t0\n"), 1);
        assert_eq!(ignored_signals(""), 0);
    }

    #[test]
    fn exit_codes_keep_eight_bits() {
        assert_eq!((narrow(0), narrow(130), narrow(256), narrow(-1)), (0, 130, 0, 255));
    }

    #[test]
    fn the_summary_counts_what_there_was() {
        let mut reports = vec![TaskReport::not_run("a", ""), TaskReport::not_run("b", "")];
        reports[0].status = Status::Hit;
        reports[0].saved_ms = 3400;
        let text = summary(&reports, Instant::now());
        assert!(text.ends_with(": 1 hit, 1 failed, saved 3.4 s"), "{text}");
    }
}
