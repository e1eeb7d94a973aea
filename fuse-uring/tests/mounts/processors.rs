//! Processors that go and come back.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use fuse_uring::{Config, RingChoice, RingPool};
use rustix::thread::{CpuSet, sched_setaffinity};

use crate::support::{Mounted, eventually};
use crate::test_fs::TestFs;

/// A processor that is offline, until this is dropped.
struct Offline(PathBuf);

impl Offline {
    fn new(processor: usize) -> io::Result<Self> {
        let switch = PathBuf::from(format!("/sys/devices/system/cpu/cpu{processor}/online"));
        fs::write(&switch, "0")?;
        Ok(Self(switch))
    }
}

impl Drop for Offline {
    fn drop(&mut self) {
        fs::write(&self.0, "1").unwrap();
    }
}

fn stay_on(processor: usize) -> io::Result<()> {
    let mut set = CpuSet::new();
    set.set(processor);
    Ok(sched_setaffinity(None, &set)?)
}

/// Returns which processors the ring's thread of `processor` may run on, of those started last.
fn place_of_thread(processor: usize) -> io::Result<String> {
    let mut found = None;
    for thread in fs::read_dir("/proc/self/task")? {
        let thread = thread?.path();
        if fs::read_to_string(thread.join("comm"))?.trim() == format!("fuse-ring/{processor}") {
            found = found.max(Some(thread));
        }
    }
    let status = fs::read_to_string(found.unwrap().join("status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap();
    Ok(line.trim().to_owned())
}

fn ask(path: &Path) -> io::Result<()> {
    assert_eq!(fs::read(path)?, b"hello, world\n");
    Ok(())
}

/// Goal: a processor that goes offline, and comes back, takes no caller with it. Method: sessions from before and from
/// meanwhile are asked from every processor there is.
#[test]
#[ignore = "takes a processor offline; scripts/suites/processors runs it"]
fn sessions_go_on_while_a_processor_is_offline() -> io::Result<()> {
    let last = std::thread::available_parallelism()?.get() - 1;
    assert!(last > 0, "the only processor cannot go offline");
    let pool = RingPool::new();
    let served = || {
        let config = Config { ring_pool: pool.clone(), ..Config::default() };
        Mounted::with(RingChoice::Required, TestFs::new(None), config)
    };
    let before = served()?;
    stay_on(last)?;
    ask(&before.path("hello"))?;

    let offline = Offline::new(last)?;
    let meanwhile = served()?;
    for processor in 0..last {
        stay_on(processor)?;
        ask(&before.path("hello"))?;
        ask(&meanwhile.path("hello"))?;
    }
    drop(offline);

    stay_on(last)?;
    ask(&before.path("hello"))?;
    ask(&meanwhile.path("hello"))?;
    let back = eventually(|| {
        ask(&before.path("hello")).unwrap();
        place_of_thread(last).unwrap() == last.to_string()
    });
    assert!(back, "its thread may run on {}", place_of_thread(last)?);
    Ok(())
}
