//! The life of a run: looked up, served in a view, finished or abandoned.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use vout::fs::Filesystem;
use vout::proto::{Event, Failure, FailureKind, Outcome, Request, ViewId};
use vout::report::{FinishReport, ServedReport};
use vout::serving::Serving;
use vout::task::TaskSpec;
use vout::wire::WireError;
use vout::workspace::{Begun, Run, RunOptions};

use super::Server;
use super::connection::Connection;
use super::failure::{failure, internal, user_failure};
use crate::adapter::{Adapter, AdapterOptions};
use crate::invalidate::KernelInvalidator;
use crate::live::FUSE_DEVICE_PATH;
use crate::session::{Session, SessionEnd, hints};
use crate::terminal::Terminal;

/// Most paths of a recording in one message: far below the longest message, whatever their length.
const RECORDED_PATHS_MAX: usize = 10_000;

/// The kernel says that a mount is gone before it takes it apart, so this is never waited for unless somebody holds the
/// task's mount namespace without being a process of the task.
const UNMOUNTED_WITHIN: Duration = Duration::from_secs(5);

/// What the runner needs of a run.
pub(crate) struct View {
    task: String,
    filesystem: Arc<dyn Filesystem>,
    serving: Serving,
    terminal: Arc<Terminal>,
    /// Where names may come to lead to another node, as they do only under passthrough.
    invalidator: Option<Arc<KernelInvalidator>>,
    /// Held while the session starts, so that a run abandoned meanwhile is not served.
    session: Mutex<ViewSession>,
}

enum ViewSession {
    /// The runner has not come yet.
    Awaited,
    Serving(Session),
    /// The run is over.
    Closed,
}

impl View {
    /// Returns the name of the task.
    pub(crate) fn task(&self) -> &str {
        &self.task
    }

    fn session(&self) -> MutexGuard<'_, ViewSession> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns how it was served, if it was.
    fn served(&self) -> Option<ServedReport> {
        match &*self.session() {
            ViewSession::Serving(session) => Some(session.report()),
            ViewSession::Awaited | ViewSession::Closed => None,
        }
    }

    /// Takes the session away; none is started any more.
    fn close(&self) -> ViewSession {
        std::mem::replace(&mut *self.session(), ViewSession::Closed)
    }
}

/// A run that is neither finished nor abandoned.
#[must_use = "dropping it abandons the run"]
struct OpenRun<'a> {
    server: &'a Server,
    view: Arc<View>,
    id: Option<ViewId>,
    /// Taken when the run is finished.
    run: Option<Run>,
}

impl Server {
    /// Looks a task up and, on a miss, sees its run through to the end.
    pub(super) fn run_task(
        self: &Arc<Self>,
        connection: &Connection,
        spec: TaskSpec,
        options: RunOptions,
    ) -> Result<(), WireError> {
        let _in_use = self.activity.enter();
        let task = spec.name.clone();
        let begun = self.workspace.begin(spec, options, &|progress| connection.progress(progress));
        let (run, reason) = match begun {
            Ok(Begun::Hit { report, terminal }) => {
                self.flush_invalidations();
                return connection.send(&Event::Hit { report, terminal });
            }
            Ok(Begun::Miss { run, reason }) => (run, reason),
            Err(error) => return connection.send(&Event::Failed(internal(&error))),
        };
        let mut open = match self.register(task, run, options.serving, connection) {
            Ok(open) => open,
            Err(failed) => return connection.send(&Event::Failed(failed)),
        };
        connection.send(&Event::Miss { view: open.id, reason })?;
        let Some(ended) = await_end(connection, &open.view)? else { return Ok(()) };
        open.await_session(&ended.outcome);
        if ended.tells_recording
            && let Err(failed) = open.tell_recording(connection)?
        {
            return connection.send(&Event::Failed(failed));
        }
        // What is left of the run is taken apart when nobody waits for that any more.
        connection.send(&open.finish(connection, &ended.outcome))
    }

    /// Makes a run known to its runner.
    fn register(
        &self,
        task: String,
        run: Run,
        serving: Serving,
        connection: &Connection,
    ) -> Result<OpenRun<'_>, Failure> {
        let terminal = match Terminal::start(connection.output()) {
            Ok(terminal) => terminal,
            Err(error) => {
                self.workspace.abandon(run);
                return Err(internal(&error));
            }
        };
        let invalidator = match serving.passthrough.then(KernelInvalidator::start).transpose() {
            Ok(invalidator) => invalidator,
            Err(error) => {
                self.workspace.abandon(run);
                return Err(internal(&error));
            }
        };
        if let Some(invalidator) = &invalidator {
            run.set_invalidator(Arc::<KernelInvalidator>::clone(invalidator));
        }
        let session = Mutex::new(ViewSession::Awaited);
        let filesystem = run.filesystem();
        let view = Arc::new(View { task, filesystem, serving, terminal, invalidator, session });
        let id = self.options.fuse.then(|| ViewId(uuid::Uuid::new_v4()));
        if let Some(id) = id {
            self.views().insert(id, Arc::clone(&view));
        }
        Ok(OpenRun { server: self, view, id, run: Some(run) })
    }

    /// Serves a view on the descriptor its runner mounted.
    pub(super) fn serve_view(&self, id: ViewId, mut fds: Vec<OwnedFd>) -> Result<Event, Failure> {
        let (Some(device), true) = (fds.pop(), fds.is_empty()) else {
            return Err(user_failure("serving a view takes exactly one descriptor".into(), &[]));
        };
        let view = self.view(id)?;
        let mut session = view.session();
        match &*session {
            ViewSession::Awaited => {}
            ViewSession::Serving(_) => return Err(user_failure("the view is served already".into(), &[])),
            ViewSession::Closed => return Err(user_failure("the run is over".into(), &[])),
        }
        let options = AdapterOptions::view(view.serving);
        let terminal = Some(Arc::clone(&view.terminal));
        let adapter = Adapter::new(Arc::clone(&view.filesystem), options, terminal);
        let (in_use, unopened) = (self.activity.enter(), adapter.unopened());
        let (task, invalidator) = (view.task.clone(), view.invalidator.clone());
        let on_end = move |end: &SessionEnd| {
            if let Some(invalidator) = invalidator {
                invalidator.stop();
            }
            tracing::info!(task, ?end, "view ended");
            drop(in_use);
        };
        let served = Session::serve(device, adapter, on_end)
            .map_err(|error| failure(FailureKind::Internal, &error, hints(&error)))?;
        tracing::info!(
            task = view.task,
            over = served.report().over,
            passthrough = served.passthrough(),
            "view served"
        );
        if let Some(invalidator) = &view.invalidator {
            invalidator.attach(served.notifier(), unopened, None);
        }
        *session = ViewSession::Serving(served);
        Ok(Event::Ready)
    }

    /// Hides the terminal files of a view from its task.
    pub(super) fn seal_view(&self, id: ViewId) -> Result<Event, Failure> {
        self.view(id)?.terminal.seal();
        Ok(Event::Ready)
    }

    fn view(&self, id: ViewId) -> Result<Arc<View>, Failure> {
        let view = self.views().get(&id).cloned();
        view.ok_or_else(|| user_failure(format!("there is no view {}", id.0), &[]))
    }
}

/// What a client says when its task has ended.
struct Ended {
    outcome: Outcome,
    /// Whether it wants to know all that the view saw.
    tells_recording: bool,
}

impl OpenRun<'_> {
    /// Sends all that the view saw.
    fn tell_recording(&self, connection: &Connection) -> Result<Result<(), Failure>, WireError> {
        let Some(run) = &self.run else { return Ok(Ok(())) };
        match run.recorded() {
            Ok(recorded) => {
                for part in recorded.chunks(RECORDED_PATHS_MAX) {
                    connection.send(&Event::Recorded(part.to_vec()))?;
                }
                Ok(Ok(()))
            }
            Err(error) => Ok(Err(internal(&error))),
        }
    }

    /// Waits until the task's mount is gone, which nothing keeps but the runner, who is about to exit.
    fn await_session(&self, outcome: &Outcome) {
        let session = self.view.session();
        if let (ViewSession::Serving(session), true) = (&*session, outcome.outlived.is_empty())
            && session.wait(UNMOUNTED_WITHIN).is_none()
        {
            tracing::warn!(task = self.view.task, "somebody keeps the view of a task that has ended");
        }
    }

    /// Ends the run. Processes that outlived the task are served on, until the last of them is gone.
    fn finish(&mut self, connection: &Connection, outcome: &Outcome) -> Event {
        let Some(run) = self.run.take() else {
            return Event::Failed(user_failure("the run is over".into(), &[]));
        };
        self.view.terminal.flush();
        let terminal = self.view.terminal.take_log();
        let fault = self.fault();
        let progress = |progress| connection.progress(progress);
        let finished = self.server.workspace.finish(run, outcome, &terminal, fault, &progress);
        self.server.flush_invalidations();
        // It is nobody's any more from now on, although it still takes its place in memory.
        if let Some(id) = self.id.take() {
            self.server.views().remove(&id);
        }
        match finished {
            Ok(report) => Event::Finished(FinishReport { served: self.view.served(), ..report }),
            Err(error) => Event::Failed(internal(&error)),
        }
    }

    /// Returns why the view did not serve the task to its end, if it did not.
    fn fault(&self) -> Option<String> {
        // What was not recorded must not be stored, be it the inputs or the outputs.
        if self.id.is_none() {
            return Some(format!("{FUSE_DEVICE_PATH} cannot be used, so the task ran without one"));
        }
        match &*self.view.session() {
            ViewSession::Awaited => Some("the view was never mounted".to_owned()),
            ViewSession::Closed => Some("the view was closed".to_owned()),
            ViewSession::Serving(session) => match session.end() {
                // The last process of the task took the mount with it.
                None | Some(SessionEnd::Unmounted) => None,
                Some(SessionEnd::Aborted) => Some("the view was aborted".to_owned()),
                Some(SessionEnd::Failed(problem)) => Some(problem),
            },
        }
    }
}

impl Drop for OpenRun<'_> {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            self.server.views().remove(&id);
        }
        let session = self.view.close();
        let Some(run) = self.run.take() else { return };
        tracing::info!(task = self.view.task, "run abandoned");
        if let ViewSession::Serving(session) = session {
            session.abort();
        }
        self.server.workspace.abandon(run);
    }
}

/// Takes output until the task ends; `None` where the client left.
fn await_end(connection: &Connection, view: &View) -> Result<Option<Ended>, WireError> {
    let mut tells_recording = false;
    while let Some(received) = connection.receive()? {
        match received.message {
            Request::Output(chunk) => view.terminal.record(chunk),
            Request::TellRecording => tells_recording = true,
            Request::Finish(outcome) => return Ok(Some(Ended { outcome, tells_recording })),
            other => {
                let problem = format!("a task is running here, and the client sent {other:?}");
                connection.send(&Event::Failed(user_failure(problem, &[])))?;
                return Ok(None);
            }
        }
    }
    Ok(None)
}
