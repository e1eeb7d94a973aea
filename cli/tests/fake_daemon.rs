//! `vout run` against a daemon that only says what a test has it say: no mount, no cache, no FUSE.
#![allow(clippy::unwrap_used, reason = "helpers of tests are not covered by clippy.toml")]

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use serde_bytes::ByteBuf;
use vout::proto::{Event, Failure, FailureKind, Outcome, Request};
use vout::report::{Chunk, FinishReport, HitReport, MissReason, NotStored, Stream};
use vout::runtime::RuntimePaths;
use vout::wire;

/// How long anything here may take before the test gives up.
const PATIENCE: Duration = Duration::from_secs(20);

/// What the daemon answers to a lookup.
type Lookup = Box<dyn Fn(&str) -> Event + Send + Sync>;

/// A workspace and a daemon that was never started by anybody.
struct Fixture {
    dir: tempfile::TempDir,
    root: PathBuf,
    requests: Arc<Mutex<Vec<Request>>>,
    outputs: Receiver<Chunk>,
}

impl Fixture {
    fn new(config: &str, lookup: impl Fn(&str) -> Event + Send + Sync + 'static) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("w");
        fs::create_dir(&root).unwrap();
        fs::write(root.join("vout.toml"), config).unwrap();
        let runtime = dir.path().join("vout");
        fs::DirBuilder::new().mode(0o700).create(&runtime).unwrap();
        let paths = RuntimePaths::new(&runtime, &root, &root.join(".vout")).unwrap();
        let listener = UnixListener::bind(paths.socket()).unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (sender, outputs) = channel();
        let daemon = Daemon { requests: Arc::clone(&requests), outputs: sender, lookup: Box::new(lookup) };
        std::thread::spawn(move || Arc::new(daemon).listen(&listener));
        Self { dir, root, requests, outputs }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vout"));
        command
            .args(arguments)
            .current_dir(&self.root)
            .env("XDG_RUNTIME_DIR", self.dir.path())
            .env_remove("VOUT_STORE")
            .env_remove("VOUT_VIEW")
            .stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    fn outcome(&self) -> Option<Outcome> {
        let requests = self.requests.lock().unwrap();
        requests.iter().find_map(|request| match request {
            Request::Finish(outcome) => Some(outcome.clone()),
            _ => None,
        })
    }

    fn report(&self, path: &str) -> serde_json::Value {
        serde_json::from_slice(&fs::read(self.root.join(path)).unwrap()).unwrap()
    }
}

struct Daemon {
    requests: Arc<Mutex<Vec<Request>>>,
    outputs: Sender<Chunk>,
    lookup: Lookup,
}

impl Daemon {
    fn listen(self: Arc<Self>, listener: &UnixListener) {
        for stream in listener.incoming() {
            let (daemon, stream) = (Arc::clone(&self), stream.unwrap());
            std::thread::spawn(move || daemon.converse(&stream));
        }
    }

    fn converse(&self, stream: &UnixStream) {
        while let Ok(Some(received)) = wire::receive::<Request>(stream) {
            let request = received.message;
            self.requests.lock().unwrap().push(request.clone());
            let answer = match request {
                Request::Hello { .. } => Event::Ready,
                Request::Begin { spec, .. } => (self.lookup)(&spec.name),
                Request::Output(chunk) if chunk.bytes.starts_with(b"die") => return,
                Request::Output(chunk) => {
                    self.outputs.send(chunk).ok();
                    continue;
                }
                Request::Finish(outcome) => finished(&outcome),
                other => panic!("unexpected {other:?}"),
            };
            wire::send(stream, &answer, &[]).ok();
        }
    }
}

fn finished(outcome: &Outcome) -> Event {
    Event::Finished(FinishReport {
        entry: (outcome.exit_code == 0).then(uuid::Uuid::nil),
        archive: None,
        inputs: 2,
        outputs: 1,
        output_bytes: 10,
        not_stored: (outcome.exit_code != 0).then_some(NotStored::Failed),
        committed: true,
        served: None,
    })
}

fn miss(_task: &str) -> Event {
    Event::Miss { view: None, reason: MissReason::NotCached }
}

fn hit(chunks: &[(Stream, &[u8])]) -> Event {
    let chunk = |(stream, bytes): &(Stream, &[u8])| Chunk { stream: *stream, bytes: ByteBuf::from(*bytes) };
    let report = HitReport {
        entry: uuid::Uuid::nil(),
        archive: Some("/s/a.tar.zst".into()),
        inputs: 3,
        outputs: 2,
        output_bytes: 20,
        recorded_ms: 3_600_000,
        in_place: false,
        lazy: true,
    };
    Event::Hit { report, terminal: chunks.iter().map(chunk).collect() }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    let (_never, pause) = channel::<()>();
    while !holds() {
        assert!(begun.elapsed() < PATIENCE, "in vain: {what}");
        pause.recv_timeout(Duration::from_millis(5)).ok();
    }
}

fn pid_in(path: &Path) -> Option<Pid> {
    Pid::from_raw(fs::read_to_string(path).ok()?.strip_suffix('\n')?.parse().ok()?)
}

/// Whether a process runs: a zombie that nobody has reaped yet does not.
fn is_alive(pid: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_pid())).unwrap_or_default();
    stat.rsplit(')')
        .next()
        .and_then(|rest| rest.trim_start().chars().next())
        .is_some_and(|state| state != 'Z')
}

#[test]
fn a_hit_replays_both_streams_byte_for_byte_and_runs_nothing() {
    let fixture = Fixture::new("[tasks.build]\ncommand = 'touch ran'\n", |_| {
        hit(&[(Stream::Stdout, b"a\xff\0"), (Stream::Stderr, b"E\n"), (Stream::Stdout, b"b")])
    });
    let output = fixture.run(&["run", "--report", "r.json", "build"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert_eq!(output.stdout, b"a\xff\0b");
    assert!(text(&output.stderr).starts_with("vout: build: hit (saved "), "{}", text(&output.stderr));
    assert!(output.stderr.ends_with(b"E\n"));
    assert!(!fixture.root.join("ran").exists());
    let report = &fixture.report("r.json")[0];
    assert_eq!((&report["status"], &report["stored"]), (&"hit".into(), &true.into()));
    assert_eq!((&report["inputs"], &report["archive"]), (&3.into(), &"/s/a.tar.zst".into()));
    assert!(report["saved_ms"].as_u64().unwrap() > 3_500_000);
}

#[test]
fn the_order_of_the_streams_is_kept() {
    let fixture = Fixture::new("", |_| {
        hit(&[(Stream::Stdout, b"1"), (Stream::Stderr, b"2"), (Stream::Stdout, b"3"), (Stream::Stderr, b"4")])
    });
    let both = fs::File::create(fixture.root.join("both")).unwrap();
    let mut command = fixture.command(&["run", "-q", "--", "anything", "x"]);
    command.stdout(both.try_clone().unwrap()).stderr(both);
    assert!(command.status().unwrap().success());
    assert_eq!(fs::read_to_string(fixture.root.join("both")).unwrap(), "1234");
}

#[test]
fn a_miss_runs_the_commands_and_has_their_output_recorded() {
    let config =
        "[tasks.build]\ncommand = ['echo out', 'echo err >&2; echo $PWD $SECRET $KNOWN']\nenv = ['KNOWN']\n";
    let fixture = Fixture::new(config, miss);
    let mut command = fixture.command(&["run", "--report", "r.json", "build"]);
    let output = command.env("SECRET", "s").env("KNOWN", "k").output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let expected = format!("out\n{} k\n", fixture.root.display());
    assert_eq!(text(&output.stdout), expected);
    assert!(text(&output.stderr).contains("vout: build: miss: not cached yet\n"), "{}", text(&output.stderr));
    let recorded: Vec<Chunk> = fixture.outputs.try_iter().collect();
    let of = |stream| -> Vec<u8> {
        let chunks = recorded.iter().filter(|chunk| chunk.stream == stream);
        chunks.flat_map(|chunk| chunk.bytes.iter().copied()).collect()
    };
    assert_eq!((text(&of(Stream::Stdout)), text(&of(Stream::Stderr))), (expected, "err\n".to_owned()));
    let report = &fixture.report("r.json")[0];
    assert_eq!((&report["status"], &report["reason"]), (&"miss".into(), &"not cached yet".into()));
    assert_eq!((&report["exit_code"], &report["outputs"]), (&0.into(), &1.into()));
}

#[test]
fn exit_codes_are_those_of_a_shell() {
    let fixture = Fixture::new("", miss);
    let codes: Vec<_> = [
        ["run", "--", "exit 3"].as_slice(),
        &["run", "--", "vout-no-such-program", "x"],
        &["run", "--", "/etc", "x"],
        &["run", "--", "kill -9 $$"],
        &["run", "no-such-task"],
        &["run", "--nonsense"],
    ]
    .iter()
    .map(|line| fixture.run(line).status.code())
    .collect();
    assert_eq!(codes, [3, 127, 126, 137, 2, 2].map(Some));
}

#[test]
fn a_fault_of_the_daemon_is_125_and_says_what_to_do() {
    let fixture = Fixture::new("", |_| {
        Event::Failed(Failure {
            kind: FailureKind::Internal,
            causes: vec!["the index is damaged".into(), "page 3".into()],
            hints: vec!["run `vout cache clean`".into()],
        })
    });
    let output = fixture.run(&["run", "--report", "r.json", "--", "true", "x"]);
    assert_eq!(output.status.code(), Some(125));
    let expected = "error: the index is damaged\n  caused by: page 3\nhint: run `vout cache clean`\n";
    assert_eq!(text(&output.stderr), expected);
    assert_eq!(fixture.report("r.json")[0]["status"], "failed");
}

#[test]
fn a_failure_spares_nothing_that_waits_for_it() {
    let config = "[tasks.a]\ncommand = 'exit 4'\n[tasks.b]\ncommand = 'touch b'\ndepends_on = ['a']\n\
                  [tasks.c]\ncommand = 'touch c'\n";
    let fixture = Fixture::new(config, miss);
    let output = fixture.run(&["run", "--keep-going", "-j2", "--report", "r.json", "b", "c"]);
    assert_eq!(output.status.code(), Some(4));
    assert!(!fixture.root.join("b").exists() && fixture.root.join("c").exists());
    let report = fixture.report("r.json");
    let statuses: Vec<_> = report.as_array().unwrap().iter().map(|task| task["status"].clone()).collect();
    assert_eq!(statuses, ["failed", "failed", "miss"]);
    assert_eq!(report[1]["reason"], "it depends on 'a'");
    assert!(text(&output.stderr).contains("vout: 3 tasks in "), "{}", text(&output.stderr));
}

#[test]
fn output_of_tasks_that_run_at_once_comes_in_blocks() {
    // Each waits for the other, so both are running while they print.
    let turn = |own: &str, other: &str| {
        format!("command = 'echo {own}1; touch {own}; while ! test -e {other}; do :; done; echo {own}2'\n")
    };
    let config = format!("[tasks.x]\n{}[tasks.y]\n{}", turn("x", "y"), turn("y", "x"));
    let fixture = Fixture::new(&config, miss);
    let output = fixture.run(&["run", "-j2", "x", "y"]);
    let printed = text(&output.stdout);
    assert!(printed == "x1\nx2\ny1\ny2\n" || printed == "y1\ny2\nx1\nx2\n", "{printed}");
}

#[test]
fn ctrl_c_reaches_the_task_and_leaves_nothing_behind() {
    // A process that ignores the signal and has left the process group must go as well.
    let fixture = Fixture::new("", miss);
    let script = "setsid sh -c 'trap \"\" INT; echo $$ > stray; while :; do sleep 1; done' & \
                  echo $$ > main; wait";
    let mut child = fixture.command(&["run", "--", script]).stderr(Stdio::null()).spawn().unwrap();
    let pids = ["main", "stray"].map(|name| {
        let path = fixture.root.join(name);
        wait_until("the task starts", || pid_in(&path).is_some());
        pid_in(&path).unwrap()
    });
    rustix::process::kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(fixture.outcome().unwrap().interrupted);
    assert!(!pids.iter().any(|pid| is_alive(*pid)));
}

#[test]
fn a_task_that_ignores_ctrl_c_is_killed_by_the_second() {
    let fixture = Fixture::new("", miss);
    let script = "trap 'echo > told' INT; echo $$ > main; while :; do sleep 0.1; done";
    let mut child = fixture.command(&["run", "--", script]).stderr(Stdio::null()).spawn().unwrap();
    let interrupt = || rustix::process::kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    wait_until("the task starts", || pid_in(&fixture.root.join("main")).is_some());
    interrupt();
    wait_until("the task is told", || fixture.root.join("told").exists());
    interrupt();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let outcome = fixture.outcome().unwrap();
    assert_eq!((outcome.exit_code, outcome.interrupted), (137, true));
}

#[test]
fn a_run_that_is_killed_takes_its_task_along() {
    let fixture = Fixture::new("", miss);
    let script = "sh -c 'echo $$ > inner; while :; do sleep 1; done' & echo $$ > main; wait";
    let mut child = fixture.command(&["run", "--", script]).stderr(Stdio::null()).spawn().unwrap();
    let pids = ["main", "inner"].map(|name| {
        let path = fixture.root.join(name);
        wait_until("the task starts", || pid_in(&path).is_some());
        pid_in(&path).unwrap()
    });
    child.kill().unwrap();
    child.wait().unwrap();
    wait_until("the task dies", || !pids.iter().any(|pid| is_alive(*pid)));
}

#[test]
fn a_task_ends_with_the_daemon_that_serves_it() {
    let fixture = Fixture::new("", miss);
    let output = fixture.run(&["run", "--", "echo $$ > main; echo die; while :; do sleep 1; done"]);
    assert_eq!(output.status.code(), Some(125), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("error: vout-mountd ended"), "{}", text(&output.stderr));
    let pid = pid_in(&fixture.root.join("main")).unwrap();
    wait_until("the task dies", || !is_alive(pid));
}

#[test]
fn a_process_that_outlives_its_task_is_named_and_lives_on() {
    let fixture = Fixture::new("", miss);
    let output = fixture.run(&["run", "--", "sleep 60 > /dev/null 2>&1 & echo $! > pid"]);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(fixture.outcome().unwrap().outlived, ["sleep"]);
    let pid = pid_in(&fixture.root.join("pid")).unwrap();
    assert!(is_alive(pid));
    rustix::process::kill_process(pid, Signal::KILL).unwrap();
}

#[test]
fn a_run_inside_a_task_asks_no_daemon() {
    let config =
        "[tasks.a]\ncommand = 'echo a $VOUT_VIEW'\n[tasks.b]\ncommand = 'exit 5'\ndepends_on = ['a']\n";
    let fixture = Fixture::new(config, |_| panic!("nobody should ask"));
    let output = fixture.command(&["run", "b"]).env("VOUT_VIEW", "7").output().unwrap();
    assert_eq!((text(&output.stdout), output.status.code()), ("a 7\n".to_owned(), Some(5)));
    assert!(fixture.requests.lock().unwrap().is_empty());
}

#[test]
fn an_uncached_run_may_read_from_our_input() {
    let fixture = Fixture::new("", miss);
    let mut command = fixture.command(&["run", "-q", "--no-cache", "--", "cat", "-"]);
    fs::write(fixture.root.join("in"), "typed").unwrap();
    let output = command.stdin(fs::File::open(fixture.root.join("in")).unwrap()).output().unwrap();
    assert_eq!(text(&output.stdout), "typed");
    let cached = fixture.command(&["run", "-q", "--", "cat", "-"]).output().unwrap();
    assert_eq!(text(&cached.stdout), "");
}
