//! A workspace of its own for each test, and the programs run in it.

pub(crate) mod process;
pub(crate) mod tree;
mod watchdog;

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use self::process::wait_at_most;
use self::watchdog::Watchdog;
pub(crate) use self::watchdog::mounts_below;

/// What tests return.
pub(crate) type TestResult = Result<(), Box<dyn std::error::Error>>;

/// Longest any single command may take.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(120);

/// Whether a scenario runs under a live mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// `vout mount` first: hits are lazy.
    Mounted,
    /// No mount: hits are restored eagerly.
    Unmounted,
}

/// A workspace with its own store, daemon and runtime directory.
///
/// Dropping it unmounts, ends every process that belongs to it, and removes it.
#[must_use = "dropping it removes the workspace"]
pub(crate) struct Workspace {
    root: PathBuf,
    store: Option<PathBuf>,
    variables: Vec<(OsString, OsString)>,
    mode: Mode,
    // Dropped before the directory it watches over.
    _watchdog: Watchdog,
    dir: TempDir,
}

/// What a command printed and how it ended.
#[derive(Debug)]
pub(crate) struct Output {
    /// How it ended.
    pub(crate) status: ExitStatus,
    /// Standard output.
    pub(crate) stdout: Vec<u8>,
    /// Standard error.
    pub(crate) stderr: Vec<u8>,
    /// The objects of `--report`, one per task; empty where there is no report.
    pub(crate) report: Vec<Value>,
}

/// A `vout run` that has been started and not waited for.
pub(crate) struct Running {
    child: Child,
    files: PathBuf,
}

/// Compiles a program in C.
pub(crate) fn compile_c(source: &str, program: &Path, options: &[&str]) -> TestResult {
    let file = std::env::temp_dir().join(format!("vout-e2e-{}.c", uuid::Uuid::new_v4()));
    fs::write(&file, source)?;
    let status = Command::new("gcc").args(options).arg("-o").arg(program).arg(&file).status();
    fs::remove_file(&file)?;
    assert!(status?.success(), "{program:?} compiles");
    Ok(())
}

impl Workspace {
    /// Makes an empty workspace whose store is where it is by default.
    pub(crate) fn new(mode: Mode) -> io::Result<Self> {
        let dir = tempfile::Builder::new().prefix("vout-e2e-").tempdir()?;
        let root = dir.path().join("ws");
        for name in ["ws", "signals", "commands"] {
            fs::create_dir(dir.path().join(name))?;
        }
        let runtime = dir.path().join("run");
        fs::create_dir(&runtime)?;
        fs::set_permissions(&runtime, fs::Permissions::from_mode(0o700))?;
        let watchdog = Watchdog::start(dir.path().to_owned());
        // `scripts/suites/filesystems` puts stores on another file system than workspaces.
        let stores = std::env::var_os("VOUT_E2E_STORES").filter(|stores| !stores.is_empty());
        let store = stores.and_then(|stores| Some(Path::new(&stores).join(dir.path().file_name()?)));
        Ok(Self { root, store, variables: Vec::new(), mode, _watchdog: watchdog, dir })
    }

    /// Makes a workspace with this `vout.toml`, mounted if the mode says so.
    pub(crate) fn with_config(mode: Mode, config: &str) -> io::Result<Self> {
        let workspace = Self::new(mode)?.config(config)?;
        workspace.mount_if_asked()?;
        Ok(workspace)
    }

    /// Puts the store outside the workspace, where it can be reached while the workspace is mounted.
    pub(crate) fn store_outside(mut self) -> Self {
        self.store = Some(self.dir.path().join("store"));
        self
    }

    /// Puts the store into `dir`.
    pub(crate) fn store_at(mut self, dir: &Path) -> Self {
        self.store = Some(dir.to_owned());
        self
    }

    /// Writes `vout.toml`.
    pub(crate) fn config(self, text: &str) -> io::Result<Self> {
        self.file("vout.toml", text)?;
        Ok(self)
    }

    /// Sets a variable for the commands that follow.
    pub(crate) fn variable(&mut self, name: &str, value: impl AsRef<OsStr>) {
        self.variables.retain(|(old, _)| old != name);
        self.variables.push((name.into(), value.as_ref().to_owned()));
    }

    /// Mounts, where the scenario is about a live mount.
    #[track_caller]
    pub(crate) fn mount_if_asked(&self) -> io::Result<()> {
        match self.mode {
            Mode::Mounted => self.mount(),
            Mode::Unmounted => Ok(()),
        }
    }

    /// Mounts.
    #[track_caller]
    pub(crate) fn mount(&self) -> io::Result<()> {
        self.vout(["mount"])?.ok();
        Ok(())
    }

    /// Returns the workspace.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Returns the path of something in the workspace.
    pub(crate) fn path(&self, relative: impl AsRef<Path>) -> PathBuf {
        self.root.join(relative)
    }

    /// Returns a directory outside the workspace, for whatever the test needs.
    pub(crate) fn outside(&self) -> &Path {
        self.dir.path()
    }

    /// Returns the store.
    pub(crate) fn store(&self) -> PathBuf {
        self.store.clone().unwrap_or_else(|| self.root.join(".vout"))
    }

    /// Returns a file outside the workspace through which tasks and tests signal each other.
    pub(crate) fn signal(&self, name: &str) -> PathBuf {
        self.dir.path().join("signals").join(name)
    }

    /// Waits until a task has made `signal(name)`.
    pub(crate) fn await_signal(&self, name: &str) {
        let path = self.signal(name);
        process::poll_until(&format!("signal {name}"), || path.exists());
    }

    /// Makes `signal(name)`, for which a task is waiting.
    pub(crate) fn give_signal(&self, name: &str) -> io::Result<()> {
        fs::write(self.signal(name), "")
    }

    /// Writes a file of the workspace, and the directories above it.
    pub(crate) fn file(&self, path: impl AsRef<Path>, content: impl AsRef<[u8]>) -> io::Result<()> {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap())?;
        fs::write(path, content)
    }

    /// Reads a file of the workspace as text.
    pub(crate) fn read(&self, path: impl AsRef<Path>) -> io::Result<String> {
        let path = self.path(path);
        fs::read_to_string(&path).map_err(|error| io::Error::new(error.kind(), format!("{path:?}: {error}")))
    }

    /// Returns whether something is there; a broken symbolic link is.
    pub(crate) fn exists(&self, path: impl AsRef<Path>) -> bool {
        self.path(path).symlink_metadata().is_ok()
    }

    /// Removes a file or a directory with all it contains.
    pub(crate) fn remove(&self, path: impl AsRef<Path>) -> io::Result<()> {
        let path = self.path(path);
        if path.symlink_metadata()?.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }
    }

    /// Returns a `vout` command for this workspace.
    ///
    /// It starts in the workspace, as people do: `vout unmount` must not be held up by itself.
    pub(crate) fn vout_command<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vout"));
        command
            .args(arguments)
            .current_dir(&self.root)
            .env("XDG_RUNTIME_DIR", self.dir.path().join("run"))
            .env_remove("VOUT_STORE")
            .env_remove("VOUT_VIEW")
            .stdin(Stdio::null());
        if let Some(store) = &self.store {
            command.env("VOUT_STORE", store);
        }
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Runs `vout` with these arguments.
    pub(crate) fn vout<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> io::Result<Output> {
        self.finish(self.spawn(arguments)?)
    }

    /// Runs a task or, with `--` first, a command, and expects exit code 0.
    #[track_caller]
    pub(crate) fn run<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> io::Result<Output> {
        Ok(self.try_run(arguments)?.ok())
    }

    /// Like [`Self::run`], whatever the exit code.
    #[track_caller]
    pub(crate) fn try_run<A: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = A>,
    ) -> io::Result<Output> {
        self.finish(self.start_run(arguments)?)
    }

    /// Starts a run and returns at once.
    pub(crate) fn start_run<A: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = A>,
    ) -> io::Result<Running> {
        let files = self.command_files()?;
        let report = files.join("report");
        let prefix = ["run".into(), "--report".into(), report.into_os_string()];
        let all = prefix.into_iter().chain(arguments.into_iter().map(|a| a.as_ref().to_owned()));
        self.spawn_with(self.vout_command(all), files)
    }

    /// Starts `vout` and returns at once.
    pub(crate) fn spawn<A: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = A>,
    ) -> io::Result<Running> {
        self.spawn_with(self.vout_command(arguments), self.command_files()?)
    }

    /// Starts `vout` with standard output and standard error in one file, for looking at their order.
    pub(crate) fn run_with_one_stream(&self, arguments: &[&str]) -> io::Result<(ExitStatus, Vec<u8>)> {
        let files = self.command_files()?;
        let stream = File::options().create(true).append(true).open(files.join("both"))?;
        let mut child = self.vout_command(arguments).stdout(stream.try_clone()?).stderr(stream).spawn()?;
        let status = wait_at_most(&mut child, COMMAND_TIMEOUT)?;
        Ok((status, fs::read(files.join("both"))?))
    }

    /// Waits for a run that was started.
    pub(crate) fn finish(&self, running: Running) -> io::Result<Output> {
        let Running { mut child, files } = running;
        let status = wait_at_most(&mut child, COMMAND_TIMEOUT)?;
        let report = match fs::read(files.join("report")) {
            Ok(text) => parse_report(&text)?,
            Err(_) => Vec::new(),
        };
        let (stdout, stderr) = (fs::read(files.join("stdout"))?, fs::read(files.join("stderr"))?);
        Ok(Output { status, stdout, stderr, report })
    }

    /// Makes a directory for what one command writes.
    ///
    /// Output goes to files, not pipes: a daemon that kept a pipe open would hang the test.
    fn command_files(&self) -> io::Result<PathBuf> {
        Ok(tempfile::Builder::new().prefix("").tempdir_in(self.dir.path().join("commands"))?.keep())
    }

    fn spawn_with(&self, mut command: Command, files: PathBuf) -> io::Result<Running> {
        let child = command
            .stdout(File::create(files.join("stdout"))?)
            .stderr(File::create(files.join("stderr"))?)
            .spawn()?;
        Ok(Running { child, files })
    }

    /// Returns `vout status --json`.
    #[track_caller]
    pub(crate) fn status(&self) -> io::Result<Value> {
        let output = self.vout(["status", "--json"])?.ok();
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    /// Returns the process id of the daemon, if it runs.
    pub(crate) fn daemon(&self) -> Option<u32> {
        process::of_directory(self.dir.path())
            .into_iter()
            .find(|process| process.name.starts_with("vout-mountd"))
            .map(|process| process.id)
    }

    /// Kills the daemon with SIGKILL and waits until it is gone.
    pub(crate) fn kill_daemon(&self) {
        let id = self.daemon().expect("the daemon runs");
        process::signal(id, rustix::process::Signal::KILL);
        process::poll_until("end of the daemon", || self.daemon() != Some(id));
    }

    /// Asks the daemon to end, unmounted, and waits until it is gone.
    pub(crate) fn end_daemon(&self) -> TestResult {
        self.vout(["unmount"])?;
        if let Some(id) = self.daemon() {
            process::signal(id, rustix::process::Signal::TERM);
            process::poll_until("end of the daemon", || self.daemon() != Some(id));
        }
        Ok(())
    }

    /// Returns the archives of the store; under a live mount only for a store outside.
    pub(crate) fn archives(&self) -> io::Result<Vec<PathBuf>> {
        tree::files_below(&self.store(), |name| name.ends_with(".tar.zst"))
    }
}

impl Running {
    /// Returns the process id of `vout`.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }
}

impl Output {
    /// Expects exit code 0.
    #[track_caller]
    pub(crate) fn ok(self) -> Self {
        self.code(0)
    }

    /// Expects this exit code.
    #[track_caller]
    pub(crate) fn code(self, code: i32) -> Self {
        assert_eq!(self.status.code(), Some(code), "{self}");
        self
    }

    /// Returns the only task of the report.
    #[track_caller]
    pub(crate) fn task(&self) -> &Value {
        assert_eq!(self.report.len(), 1, "one task in the report\n{self}");
        &self.report[0]
    }

    /// Expects a hit.
    #[track_caller]
    pub(crate) fn hit(self) -> Self {
        assert_eq!(self.task()["status"], "hit", "{self}");
        self
    }

    /// Expects a miss that was stored.
    #[track_caller]
    pub(crate) fn stored_miss(self) -> Self {
        assert_eq!(self.task()["status"], "miss", "{self}");
        assert_eq!(self.task()["stored"], true, "{self}");
        self
    }

    /// Expects that nothing was stored, for a reason that contains all of `words`.
    #[track_caller]
    pub(crate) fn not_stored(self, words: &[&str]) -> Self {
        assert_eq!(self.task()["stored"], false, "{self}");
        let reason = self.text("not_stored_reason");
        for word in words {
            assert!(reason.contains(word), "{word:?} is not in {reason:?}\n{self}");
        }
        self
    }

    /// Expects a stored miss whose reason contains all of `words`.
    #[track_caller]
    pub(crate) fn missed_because(self, words: &[&str]) -> Self {
        assert_eq!(self.task()["status"], "miss", "{self}");
        let reason = self.text("reason");
        for word in words {
            assert!(reason.contains(word), "{word:?} is not in {reason:?}\n{self}");
        }
        self
    }

    /// Returns a text of the report; empty where it is null.
    #[track_caller]
    pub(crate) fn text(&self, key: &str) -> String {
        self.task()[key].as_str().unwrap_or_default().to_owned()
    }

    /// Returns a number of the report.
    #[track_caller]
    pub(crate) fn number(&self, key: &str) -> u64 {
        self.task()[key].as_u64().unwrap_or_else(|| panic!("{key} is a number\n{self}"))
    }

    /// Returns both streams as text.
    pub(crate) fn printed(&self) -> String {
        format!("{}{}", String::from_utf8_lossy(&self.stdout), String::from_utf8_lossy(&self.stderr))
    }
}

impl std::fmt::Display for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "vout ended with {}", self.status)?;
        writeln!(f, "--- stdout\n{}", String::from_utf8_lossy(&self.stdout))?;
        writeln!(f, "--- stderr\n{}", String::from_utf8_lossy(&self.stderr))?;
        writeln!(f, "--- report\n{}", Value::from(self.report.clone()))
    }
}

/// Reads a report: an array of objects.
fn parse_report(text: &[u8]) -> io::Result<Vec<Value>> {
    match serde_json::from_slice(text)? {
        Value::Array(tasks) => Ok(tasks),
        other => Err(io::Error::other(format!("the report is not an array: {other}"))),
    }
}
