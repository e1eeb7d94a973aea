//! The control socket among clients that do not keep to the protocol.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use vout::path::RelPathBuf;
use vout::proto::{CacheMode, Event, Outcome, PROTOCOL_VERSION, Request, ViewId};
use vout::report::{Chunk, Stream};
use vout::serving::Serving;
use vout::task::{CommandLine, FilterItem, FilterSpec, MtimePolicy, TaskSpec};
use vout::wire;

use crate::support::process::poll_until;
use crate::support::{Mode, TestResult, Workspace};

/// Conversations that go wrong.
const CONVERSATIONS: u64 = 600;

/// Threads and descriptors that an idle daemon may come to have, far below the number of conversations.
const FEW: usize = 16;

/// Longest wait for an answer that may never come.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(100);

/// Random numbers, the same in each run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next()).unwrap() % bound
    }

    fn bytes(&mut self, bound: usize) -> Vec<u8> {
        (0..self.below(bound)).map(|_| self.next().to_le_bytes()[0]).collect()
    }
}

fn socket(ws: &Workspace) -> PathBuf {
    let entries = fs::read_dir(ws.outside().join("run/vout")).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    paths.into_iter().find(|path| path.extension().is_some_and(|kind| kind == "sock")).expect("a socket")
}

fn greeted(ws: &Workspace) -> Result<UnixStream, Box<dyn std::error::Error>> {
    let stream = UnixStream::connect(socket(ws))?;
    wire::send(&stream, &Request::Hello { version: PROTOCOL_VERSION.to_owned() }, &[])?;
    assert_eq!(wire::receive::<Event>(&stream)?.expect("an answer").message, Event::Ready);
    stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    Ok(stream)
}

fn spec(random: &mut Random) -> TaskSpec {
    let text = String::from_utf8_lossy(&random.bytes(40)).into_owned();
    TaskSpec {
        name: text.clone(),
        commands: vec![CommandLine::Shell(text.clone())],
        cwd: RelPathBuf::root(),
        env: Vec::new(),
        programs: Vec::new(),
        input: FilterSpec(vec![FilterItem::Glob { pattern: text, negative: false }, FilterItem::Auto]),
        output: FilterSpec(vec![FilterItem::Glob {
            pattern: "{a,b}".repeat(random.below(12)),
            negative: false,
        }]),
        cache: random.below(2) == 0,
        clean: random.below(2) == 0,
        mtime: MtimePolicy::Preserve,
        discard_on_failure: true,
    }
}

/// Returns a request that is well-formed, whatever it means here and now.
fn request(random: &mut Random) -> Request {
    let view = ViewId(uuid::Uuid::from_u128(u128::from(random.next())));
    match random.below(9) {
        0 => Request::Begin {
            spec: Box::new(spec(random)),
            cache: CacheMode::ReadWrite,
            serving: Serving::default(),
        },
        1 => Request::Serve { view },
        2 => Request::Started { view },
        3 => Request::Output(Chunk { stream: Stream::Stdout, bytes: random.bytes(100).into() }),
        4 => Request::Finish(Outcome {
            exit_code: i32::MIN,
            interrupted: false,
            outlived: vec![String::new()],
            duration_ms: u64::MAX,
        }),
        5 => Request::Why { task: "x".repeat(random.below(100_000)) },
        6 => Request::CacheShow { id: String::from_utf8_lossy(&random.bytes(20)).into_owned() },
        7 => Request::TellRecording,
        _ => Request::Status,
    }
}

/// Returns the bytes of a message, some of them wrong.
fn damaged(random: &mut Random) -> Vec<u8> {
    let (left, mut right) = UnixStream::pair().unwrap();
    wire::send(&left, &request(random), &[]).unwrap();
    drop(left);
    let mut bytes = Vec::new();
    right.read_to_end(&mut bytes).unwrap();
    for _ in 0..random.below(4) {
        let at = random.below(bytes.len());
        bytes[at] = random.next().to_le_bytes()[0];
    }
    let kept = bytes.len() - random.below(2) * random.below(bytes.len());
    bytes.truncate(kept);
    bytes
}

fn descriptors(random: &mut Random) -> Vec<OwnedFd> {
    let kinds = ["/dev/null", "/dev/fuse", "/", "/proc/self/exe"];
    (0..random.below(wire::MESSAGE_FDS_MAX + 1))
        .map(|_| File::open(kinds[random.below(kinds.len())]).unwrap().into())
        .collect()
}

fn misbehave(ws: &Workspace, random: &mut Random) -> TestResult {
    if random.below(3) == 0 {
        let mut stream = UnixStream::connect(socket(ws))?;
        stream.write_all(&random.bytes(64)).ok();
        return Ok(());
    }
    let mut stream = greeted(ws)?;
    for _ in 0..=random.below(3) {
        // The daemon hangs up when it has had enough.
        if random.below(2) == 0 {
            stream.write_all(&damaged(random)).ok();
        } else {
            let fds = descriptors(random);
            let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
            wire::send(&stream, &request(random), &fds).ok();
        }
    }
    if random.below(2) == 0 {
        wire::receive::<Event>(&stream).ok();
    }
    Ok(())
}

fn entries_of(daemon: u32, what: &str) -> usize {
    fs::read_dir(format!("/proc/{daemon}/{what}")).map_or(0, Iterator::count)
}

/// Goal: nothing that a client of the same user sends harms others or stays behind.
/// Method: bytes, damaged messages and requests out of place, while an honest client has its say; then the daemon
/// has about as many threads and descriptors as before.
#[test]
fn clients_that_break_the_protocol_harm_nobody() -> TestResult {
    let ws = Workspace::new(Mode::Unmounted)?.store_outside().config("")?;
    ws.status()?;
    let honest = greeted(&ws)?;
    honest.set_read_timeout(None)?;
    let daemon = ws.daemon().expect("the daemon runs");
    // Those that begin to say something, and no more.
    let mut silent = Vec::new();
    for begun in [&b""[..], b"\x05", b"\x05\0\0\0ab", b"\xff\xff\xff\x0f\0\0\0"] {
        let mut stream = UnixStream::connect(socket(&ws))?;
        stream.write_all(begun)?;
        silent.push(stream);
    }
    let (fds, threads) = (entries_of(daemon, "fd"), entries_of(daemon, "task"));
    let mut random = Random(1);
    for conversation in 0..CONVERSATIONS {
        misbehave(&ws, &mut random)?;
        if conversation % 50 == 0 {
            wire::send(&honest, &Request::Status, &[])?;
            let answer = wire::receive::<Event>(&honest)?.expect("an answer").message;
            assert!(matches!(answer, Event::Status(_)), "{answer:?}");
        }
    }
    poll_until("the end of what they began", || {
        entries_of(daemon, "task") <= threads + FEW && entries_of(daemon, "fd") <= fds + FEW
    });
    assert_eq!(ws.daemon(), Some(daemon), "the daemon is the same");
    let log = fs::read_to_string(socket(&ws).with_extension("log"))?;
    assert!(!log.contains("panicked"), "{log}");
    assert_eq!(ws.status()?["running"], serde_json::json!([]));
    Ok(())
}

#[test]
fn other_users_are_not_answered() -> TestResult {
    const KNOCK: &str = "use IO::Socket::UNIX; $SIG{PIPE} = 'IGNORE'; \
        my $s = IO::Socket::UNIX->new(Peer => $ARGV[0]) or exit 3; \
        print $s pack('V', 1), chr(9); $s->flush; exit(defined(getc($s)) ? 4 : 0)";
    if !rustix::process::geteuid().is_root() {
        // Nobody else can be had here.
        return Ok(());
    }
    let ws = Workspace::new(Mode::Unmounted)?.store_outside().config("")?;
    ws.status()?;
    let _kept = greeted(&ws)?;
    let socket = socket(&ws);
    let knock = || -> std::io::Result<Option<i32>> {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--clear-groups", "perl", "-e", KNOCK]).arg(&socket);
        Ok(command.status()?.code())
    };
    assert_eq!(knock()?, Some(3), "the directory is closed");
    // Even with all doors open.
    for dir in socket.ancestors().take(4) {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o777))?;
    }
    assert_eq!(knock()?, Some(0), "the daemon hangs up");
    Ok(())
}
