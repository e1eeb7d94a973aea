//! What the two transports cost, side by side. Needs root, and the ring switched on:
//! `echo Y > /sys/module/fuse/parameters/enable_uring`.
//!
//! usage: cargo run --release -p fuse-uring --example bench [-- DIR]
//!
//! It takes two processors. DIR, `/dev/shm` by default, is where the files are. Sessions are served by a process of their own. Both
//! transports take turns, several times; medians are told.
#![allow(clippy::print_stdout, reason = "examples talk to people")]

#[path = "../tests/support/mounting.rs"]
mod mounting;
#[path = "support/passthrough_fs.rs"]
mod passthrough_fs;

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use fuse_uring::{Config, RingChoice, Session};
use rustix::mount::UnmountFlags;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use self::passthrough_fs::PassthroughFs;

/// Over `/dev/fuse` it matters where the server runs: on its caller's processor, or on another one.
const TRANSPORTS: [&str; 3] = ["dev-same", "dev-other", "ring"];
/// Where the one caller runs.
const CALLER_CPU: usize = 0;
/// How often the transports take turns.
const ROUNDS: usize = 7;
/// Operations of one round.
const OPERATIONS: usize = 4000;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [serve, transport, source, mounts @ ..] = &args[..]
        && serve == "serve"
    {
        return self::serve(transport, Path::new(source), mounts);
    }
    let base = args.first().map_or("/dev/shm", String::as_str);
    let dir = tempfile::Builder::new().prefix("fuse-uring-bench-").tempdir_in(base)?;
    for transport in TRANSPORTS.into_iter().chain(["dev"]) {
        // Each its own: what one mount has cached, the other must not change.
        let source = source_of(dir.path(), transport);
        fs::create_dir(&source)?;
        fs::write(source.join("file"), b"content")?;
    }
    operations(dir.path())?;
    for sessions in [1, 10, 100] {
        for transport in ["dev", "ring"] {
            resources(dir.path(), transport, sessions)?;
        }
    }
    Ok(())
}

fn source_of(dir: &Path, transport: &str) -> PathBuf {
    dir.join(format!("source-{transport}"))
}

/// Serves `source` on each of `mounts` until standard input ends.
fn serve(transport: &str, source: &Path, mounts: &[String]) -> Result<()> {
    // Each node is a descriptor.
    let limit = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: limit, maximum: limit })?;
    match transport {
        "dev-same" => pin(CALLER_CPU)?,
        "dev-other" => pin(CALLER_CPU + 1)?,
        _ => {}
    }
    let ring = if transport == "ring" { RingChoice::Required } else { RingChoice::Never };
    let mut sessions = Vec::new();
    let mut starts = Vec::new();
    for mount in mounts {
        let fs = PassthroughFs::new(source)?;
        let device = mounting::mount(Path::new(mount))?;
        let started = Instant::now();
        let config = Config { ring, ..PassthroughFs::config() };
        sessions.push(Session::start(device, config, Arc::new(fs))?);
        starts.push(started.elapsed());
    }
    // The first one brings the threads.
    println!("{} {}", starts[0].as_micros(), median(starts).as_micros());
    io::stdin().read_to_end(&mut Vec::new())?;
    let mut ends = Vec::new();
    for (mount, session) in mounts.iter().zip(sessions) {
        let started = Instant::now();
        rustix::mount::unmount(mount.as_str(), UnmountFlags::DETACH)?;
        if session.wait(Some(Duration::from_secs(1))).is_none() {
            // Somebody's mount namespace has a copy of the mount.
            session.abort();
            session.wait(None).ok_or("a session does not end")?;
        }
        ends.push(started.elapsed());
    }
    println!("{}", median(ends).as_micros());
    Ok(())
}

/// A process that serves.
struct Server {
    child: Child,
    output: BufReader<std::process::ChildStdout>,
    mounts: Vec<PathBuf>,
    /// Microseconds that the first session took to start, and the median.
    starts: String,
}

impl Server {
    fn start(dir: &Path, transport: &str, sessions: usize) -> Result<Self> {
        let mounts: Vec<PathBuf> =
            (0..sessions).map(|number| dir.join(format!("{transport}-{number}"))).collect();
        for mount in &mounts {
            fs::create_dir_all(mount)?;
        }
        let mut child = Command::new(std::env::current_exe()?)
            .args(["serve", transport])
            .arg(source_of(dir, transport))
            .args(&mounts)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut output = BufReader::new(child.stdout.take().ok_or("no output")?);
        let mut starts = String::new();
        output.read_line(&mut starts)?;
        if starts.is_empty() {
            return Err(format!("no session over {transport}").into());
        }
        Ok(Self { child, output, mounts, starts: starts.trim().to_owned() })
    }

    /// Ends it, and returns how many microseconds a session took to end.
    fn stop(mut self) -> Result<String> {
        drop(self.child.stdin.take());
        let mut ends = String::new();
        self.output.read_line(&mut ends)?;
        self.child.wait()?;
        Ok(ends.trim().to_owned())
    }

    /// Returns its memory, in KiB, and the time it has computed, in ticks.
    fn used(&self) -> Result<(u64, u64)> {
        let proc = PathBuf::from(format!("/proc/{}", self.child.id()));
        let status = fs::read_to_string(proc.join("status"))?;
        let anonymous = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).ok_or("no RssAnon")?;
        let anonymous = anonymous.trim_end_matches("kB").trim().parse()?;
        let stat = fs::read_to_string(proc.join("stat"))?;
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
        Ok((anonymous, fields[11].parse::<u64>()? + fields[12].parse::<u64>()?))
    }
}

/// A round of operations by one caller.
type Work = fn(&Path, usize) -> io::Result<Vec<Duration>>;

fn operations(dir: &Path) -> Result<()> {
    let servers = TRANSPORTS.map(|transport| Server::start(dir, transport, 1));
    let servers = servers.into_iter().collect::<Result<Vec<_>>>()?;
    let works: [(&str, Work); 4] =
        [("lookup (absent)", lookups), ("open and close", opens), ("create", creates), ("unlink", unlinks)];
    println!("{:<18}{:>8}{:>12}{:>12}{:>12}", "1 caller, us", "", "dev-same", "dev-other", "ring");
    let mut samples = vec![[const { Vec::new() }; TRANSPORTS.len()]; works.len()];
    let everywhere = sched_getaffinity(None)?;
    pin(CALLER_CPU)?;
    for _ in 0..ROUNDS {
        for (position, (_, work)) in works.iter().enumerate() {
            for (transport, server) in servers.iter().enumerate() {
                samples[position][transport].extend(work(&server.mounts[0], 0)?);
            }
        }
    }
    sched_setaffinity(None, &everywhere)?;
    for ((name, _), mut samples) in works.iter().zip(samples) {
        for (which, part) in [("median", 50), ("p90", 90)] {
            print!("{name:<18}{which:>8}");
            samples.iter_mut().for_each(|samples| print!("{:>12.1}", percentile(samples, part)));
            println!();
        }
    }
    println!("thousand opens a second, callers anywhere");
    for callers in [1, 2, 4] {
        let mut rates = [const { Vec::new() }; TRANSPORTS.len()];
        for _ in 0..ROUNDS {
            for (transport, server) in servers.iter().enumerate() {
                rates[transport].push(throughput(&server.mounts[0], callers)?);
            }
        }
        print!("{callers:<18}{:>8}", "callers");
        for mut rates in rates {
            rates.sort_by(f64::total_cmp);
            print!("{:>12.1}", rates[rates.len() / 2]);
        }
        println!();
    }
    servers.into_iter().try_for_each(|server| server.stop().map(drop))
}

/// Returns thousands of opens in a second, by so many callers together.
fn throughput(mount: &Path, callers: usize) -> Result<f64> {
    let started = Instant::now();
    thread::scope(|scope| {
        let callers: Vec<_> = (0..callers).map(|caller| scope.spawn(move || opens(mount, caller))).collect();
        callers.into_iter().try_for_each(|caller| caller.join().map_err(|_| io::ErrorKind::Other)?.map(drop))
    })?;
    Ok((callers * OPERATIONS) as f64 / started.elapsed().as_secs_f64() / 1e3)
}

fn pin(processor: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(processor);
    Ok(sched_setaffinity(None, &set)?)
}

fn timed(mut operation: impl FnMut(usize) -> io::Result<()>) -> io::Result<Vec<Duration>> {
    (0..OPERATIONS)
        .map(|number| {
            let started = Instant::now();
            operation(number).map(|()| started.elapsed())
        })
        .collect()
}

fn lookups(mount: &Path, _: usize) -> io::Result<Vec<Duration>> {
    timed(|number| match fs::symlink_metadata(mount.join(format!("absent-{number}"))) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        _ => Err(io::Error::other("found what is not there")),
    })
}

fn opens(mount: &Path, _: usize) -> io::Result<Vec<Duration>> {
    let path = mount.join("file");
    timed(|_| File::open(&path).map(drop))
}

fn creates(mount: &Path, _: usize) -> io::Result<Vec<Duration>> {
    timed(|number| File::create(mount.join(format!("new-{number}"))).map(drop))
}

fn unlinks(mount: &Path, _: usize) -> io::Result<Vec<Duration>> {
    timed(|number| fs::remove_file(mount.join(format!("new-{number}"))))
}

/// What sessions cost: to start, to have, to use, and to end.
fn resources(dir: &Path, transport: &str, sessions: usize) -> Result<()> {
    let server = Server::start(dir, transport, sessions)?;
    let (fresh, _) = server.used()?;
    for mount in &server.mounts {
        for number in 0..32 {
            let path = mount.join(format!("file-{number}"));
            File::create(&path)?.write_all(&[1; 4096])?;
            fs::read(&path)?;
            fs::remove_file(&path)?;
        }
    }
    let (busy, _) = server.used()?;
    let ticks = server.used()?.1;
    // What is idle gives memory back after a second.
    let idle_for = Duration::from_secs(3);
    let parked = Instant::now();
    while parked.elapsed() < idle_for {
        thread::park_timeout(idle_for.saturating_sub(parked.elapsed()));
    }
    let (idle, after) = server.used()?;
    let (ticks, starts) = (after - ticks, server.starts.clone());
    let ends = server.stop()?;
    println!(
        "{transport:<5}{sessions:>4} sessions: start {starts} us (first, median), end {ends} us; \
         KiB fresh {fresh}, busy {busy}, idle {idle}; {ticks} ticks in {} s idle",
        idle_for.as_secs()
    );
    Ok(())
}

fn median(mut durations: Vec<Duration>) -> Duration {
    durations.sort_unstable();
    durations[durations.len() / 2]
}

/// Returns a percentile, in microseconds.
fn percentile(durations: &mut [Duration], part: usize) -> f64 {
    durations.sort_unstable();
    durations[(durations.len() - 1) * part / 100].as_secs_f64() * 1e6
}
