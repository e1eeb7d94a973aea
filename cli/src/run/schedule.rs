//! Runs tasks in parallel, each after those that it waits for.

use std::sync::mpsc::{Receiver, Sender};
use std::thread;

/// How many tasks run at once, and what a failure means for the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Policy {
    /// Most tasks at once.
    pub(crate) jobs: usize,
    /// Whether others are started after one has failed.
    pub(crate) keep_going: bool,
}

/// What the scheduler is told.
#[derive(Debug)]
pub(crate) enum Message<T> {
    /// Task number `.0` has ended.
    Ended(usize, T),
    /// Start nothing more.
    Stop,
}

/// How a task ended, as far as others depend on it.
pub(crate) trait Ended {
    /// Whether those that wait for it may run.
    fn succeeded(&self) -> bool;
}

/// Why a task was not started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Skipped {
    /// This task, which it waits for, failed or was itself not started.
    Dependency(usize),
    /// Another task failed.
    Failure,
    /// The run was interrupted.
    Stopped,
}

/// Returns whether no two tasks can ever run at once: each waits, in the end, for the one before it.
pub(crate) fn is_chain(waits_for: &[Vec<usize>]) -> bool {
    waits_for.iter().enumerate().skip(1).all(|(index, waits)| waits.contains(&(index - 1)))
}

/// Runs tasks `0..waits_for.len()`; each waits for tasks with lower numbers only.
///
/// `run` is called on a thread per running task. Results come in the order of the tasks.
pub(crate) fn execute<T: Ended + Send>(
    waits_for: &[Vec<usize>],
    policy: Policy,
    sender: &Sender<Message<T>>,
    receiver: &Receiver<Message<T>>,
    run: impl Fn(usize) -> T + Sync,
) -> Vec<Result<T, Skipped>> {
    let mut results: Vec<Option<Result<T, Skipped>>> = waits_for.iter().map(|_| None).collect();
    let mut started = vec![false; waits_for.len()];
    let mut running = 0;
    let mut halt = None;
    thread::scope(|scope| {
        loop {
            skip(waits_for, halt, &started, &mut results);
            for index in 0..waits_for.len() {
                let ready = waits_for[index].iter().all(|other| matches!(results[*other], Some(Ok(_))));
                if running < policy.jobs && !started[index] && results[index].is_none() && ready {
                    started[index] = true;
                    running += 1;
                    let (run, sender) = (&run, sender.clone());
                    scope.spawn(move || drop(sender.send(Message::Ended(index, run(index)))));
                }
            }
            if running == 0 {
                break;
            }
            match receiver.recv() {
                Ok(Message::Ended(index, end)) => {
                    running -= 1;
                    if !end.succeeded() && !policy.keep_going {
                        halt = halt.or(Some(Skipped::Failure));
                    }
                    results[index] = Some(Ok(end));
                }
                Ok(Message::Stop) => halt = Some(Skipped::Stopped),
                // Cannot happen: we hold a sender. Nothing more would be heard.
                Err(_) => break,
            }
        }
    });
    results.into_iter().map(|result| result.unwrap_or(Err(Skipped::Stopped))).collect()
}

/// Marks what will not be started any more.
fn skip<T: Ended>(
    waits_for: &[Vec<usize>],
    halt: Option<Skipped>,
    started: &[bool],
    results: &mut [Option<Result<T, Skipped>>],
) {
    for index in 0..waits_for.len() {
        if started[index] || results[index].is_some() {
            continue;
        }
        let failed = waits_for[index].iter().find(|other| match &results[**other] {
            Some(Ok(end)) => !end.succeeded(),
            Some(Err(_)) => true,
            None => false,
        });
        let reason = failed.map(|other| Skipped::Dependency(*other)).or(halt);
        results[index] = reason.map(Err);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::sync::mpsc::channel;

    use super::*;

    impl Ended for bool {
        fn succeeded(&self) -> bool {
            *self
        }
    }

    fn run(
        waits_for: &[&[usize]],
        policy: Policy,
        task: impl Fn(usize) -> bool + Sync,
    ) -> Vec<Result<bool, Skipped>> {
        let waits_for: Vec<Vec<usize>> = waits_for.iter().map(|waits| waits.to_vec()).collect();
        let (sender, receiver) = channel();
        execute(&waits_for, policy, &sender, &receiver, task)
    }

    const TWO: Policy = Policy { jobs: 2, keep_going: false };
    const ONE: Policy = Policy { jobs: 1, keep_going: false };

    #[test]
    fn independent_tasks_run_at_once() {
        let both = Barrier::new(2);
        let results = run(&[&[], &[]], TWO, |_| {
            both.wait();
            true
        });
        assert_eq!(results, [Ok(true), Ok(true)]);
    }

    #[test]
    fn a_failure_stops_what_waits_for_it_and_what_has_not_started() {
        let results = run(&[&[], &[0], &[1], &[]], ONE, |index| index != 0);
        let expected =
            [Ok(false), Err(Skipped::Dependency(0)), Err(Skipped::Dependency(1)), Err(Skipped::Failure)];
        assert_eq!(results, expected);
    }

    #[test]
    fn going_on_spares_only_what_waits_for_the_failure() {
        let policy = Policy { keep_going: true, ..ONE };
        let results = run(&[&[], &[0], &[]], policy, |index| index != 0);
        assert_eq!(results, [Ok(false), Err(Skipped::Dependency(0)), Ok(true)]);
    }

    #[test]
    fn after_a_stop_nothing_is_started() {
        let (sender, receiver) = channel();
        let waits_for = vec![Vec::new(), vec![0]];
        let results = execute(&waits_for, TWO, &sender, &receiver, |_| {
            sender.send(Message::Stop).unwrap();
            true
        });
        assert_eq!(results, [Ok(true), Err(Skipped::Stopped)]);
    }

    #[test]
    fn only_a_chain_never_runs_two_tasks() {
        assert!(is_chain(&[vec![], vec![0], vec![0, 1]]));
        assert!(!is_chain(&[vec![], vec![0], vec![0]]));
        assert!(is_chain(&[]));
    }
}
