//! Damaged archives and stores that cannot be written: never wrong bytes, never a failed build.

use std::fs;
use std::path::Path;

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::in_both_modes;
use crate::support::process::poll_until;
use crate::support::{Mode, TestResult, Workspace};

in_both_modes!(
    a_flipped_bit_never_becomes_wrong_bytes,
    a_truncated_archive_is_a_miss,
    a_claim_that_a_crash_took_costs_a_miss,
    a_missing_archive_is_a_miss
);

/// A task with outputs of some size, stored, and no outputs in place.
fn stored(mode: Mode) -> Result<(Workspace, std::path::PathBuf), Box<dyn std::error::Error>> {
    let ws = Workspace::new(mode)?.store_outside().config("[tasks.build]\ncommand = \"sh build.sh\"\n")?;
    ws.file("build.sh", "mkdir -p dist\nseq 100000 > dist/a\nseq 5 > dist/b\n")?;
    ws.mount_if_asked()?;
    let run = ws.run(["build"])?.stored_miss();
    ws.remove("dist")?;
    Ok((ws, run.text("archive").into()))
}

/// Expects outputs as the task writes them.
fn assert_outputs(ws: &Workspace) -> TestResult {
    let lines: String = (1..=100_000).map(|i| format!("{i}\n")).collect();
    assert!(ws.read("dist/a")? == lines);
    assert_eq!(ws.read("dist/b")?, "1\n2\n3\n4\n5\n");
    Ok(())
}

/// Goal: damage anywhere in an archive is found before it does harm. Method: flip one bit in each of 16
/// places. A hit that was announced before the damaged part was read may fail the read, and never shows
/// wrong bytes; the next run is then a miss that says why.
fn a_flipped_bit_never_becomes_wrong_bytes(mode: Mode) -> TestResult {
    let (ws, _) = stored(mode)?;
    for sixteenth in 0..16 {
        let archive = ws.run(["--force", "build"])?.stored_miss().text("archive");
        ws.remove("dist")?;
        let mut bytes = fs::read(&archive)?;
        let at = bytes.len() * sixteenth / 16;
        bytes[at] ^= 0x10;
        fs::write(&archive, &bytes)?;

        let run = ws.run(["build"])?;
        if run.task()["status"] == "miss" {
            run.missed_because(&["archive"]);
        } else if !assert_outputs_or_error(&ws)? {
            let again = ws.run(["build"])?;
            if again.task()["status"] == "hit" {
                // That of an earlier run does.
                assert_ne!(again.text("archive"), archive);
            } else {
                again.missed_because(&["archive"]);
            }
        }
        assert_outputs(&ws)?;
    }
    Ok(())
}

/// Returns whether both outputs can be read, and then they must be right; an error is no wrong content.
fn assert_outputs_or_error(ws: &Workspace) -> Result<bool, Box<dyn std::error::Error>> {
    if ws.read("dist/a").is_err() || ws.read("dist/b").is_err() {
        return Ok(false);
    }
    assert_outputs(ws)?;
    Ok(true)
}

fn a_truncated_archive_is_a_miss(mode: Mode) -> TestResult {
    let (ws, archive) = stored(mode)?;
    let whole = fs::read(&archive)?;
    fs::write(&archive, &whole[..whole.len() / 2])?;
    ws.run(["build"])?.missed_because(&["archive"]);
    assert_outputs(&ws)?;
    ws.remove("dist")?;
    ws.run(["build"])?.hit();
    assert_outputs(&ws)
}

fn a_missing_archive_is_a_miss(mode: Mode) -> TestResult {
    let (ws, archive) = stored(mode)?;
    fs::remove_file(&archive)?;
    ws.run(["build"])?.missed_because(&["archive"]);
    assert_outputs(&ws)?;
    ws.remove("dist")?;
    ws.run(["build"])?.hit();
    assert_outputs(&ws)
}

/// Goal: claims need not be synced. Method: what may become of one when the machine crashes, for a task that reads what it
/// then overwrites: without its claim that is an input that changed.
fn a_claim_that_a_crash_took_costs_a_miss(mode: Mode) -> TestResult {
    let ws = Workspace::new(mode)?.config("[tasks.bump]\ncommand = \"sh bump.sh\"\n")?;
    ws.file(
        "bump.sh",
        "n=$(cat count)\nmkdir -p dist\nseq $((n + 1)) > dist/seq\necho $((n + 1)) > count\n",
    )?;
    ws.file("count", "0\n")?;
    ws.mount_if_asked()?;
    ws.run(["bump"])?.stored_miss();
    let harms: [fn(&Path) -> std::io::Result<()>; 4] = [
        |claim| fs::remove_file(claim),
        |claim| fs::write(claim, ""),
        |claim| fs::read(claim).and_then(|whole| fs::write(claim, &whole[..whole.len() / 2])),
        |claim| fs::read(claim).and_then(|whole| fs::write(claim, vec![0; whole.len()])),
    ];
    for (made, harm) in harms.into_iter().enumerate() {
        ws.run(["bump"])?.hit();
        ws.end_daemon()?;
        let claims = fs::read_dir(ws.store().join("claims"))?.collect::<Result<Vec<_>, _>>()?;
        assert_eq!(claims.len(), 1);
        harm(&claims[0].path())?;
        ws.mount_if_asked()?;
        ws.run(["bump"])?.missed_because(&["count"]).stored_miss();
        assert_eq!(ws.read("count")?, format!("{}\n", made + 2));
        assert_eq!(ws.read("dist/seq")?.lines().count(), made + 2);
    }
    ws.run(["bump"])?.hit();
    Ok(())
}

/// A small file system of its own at `dir`; gone when dropped.
struct SmallDisk<'a>(&'a Path);

impl<'a> SmallDisk<'a> {
    fn at(dir: &'a Path, size: &str) -> Result<Self, Box<dyn std::error::Error>> {
        fs::create_dir_all(dir)?;
        let options = std::ffi::CString::new(format!("size={size}"))?;
        mount("small", dir, "tmpfs", MountFlags::empty(), options.as_c_str())?;
        Ok(Self(dir))
    }
}

impl Drop for SmallDisk<'_> {
    fn drop(&mut self) {
        // Where it cannot be unmounted it is not mounted.
        unmount(self.0, UnmountFlags::DETACH).ok();
    }
}

#[test]
fn a_full_store_costs_the_cache_and_not_the_build() -> TestResult {
    let disk = tempfile::Builder::new().prefix("vout-e2e-disk-").tempdir()?;
    let _small = SmallDisk::at(disk.path(), "8m")?;
    let ws = Workspace::new(Mode::Unmounted)?
        .store_at(disk.path())
        .config("[tasks.big]\ncommand = \"sh big.sh\"\n[tasks.small]\ncommand = \"sh small.sh\"\n")?;
    ws.file("big.sh", "head -c 20000000 /dev/urandom > big\necho made\n")?;
    ws.file("small.sh", "echo tiny > tiny\n")?;
    let run = ws.run(["big"])?.not_stored(&["space"]);
    assert!(run.printed().contains("made"), "{run}");
    assert_eq!(ws.path("big").metadata()?.len(), 20_000_000);
    ws.run(["small"])?.stored_miss();
    ws.run(["small"])?.hit();
    Ok(())
}

#[test]
fn a_store_that_became_read_only_costs_the_cache_and_not_the_build() -> TestResult {
    let disk = tempfile::Builder::new().prefix("vout-e2e-disk-").tempdir()?;
    let _small = SmallDisk::at(disk.path(), "64m")?;
    let ws = Workspace::new(Mode::Unmounted)?
        .store_at(disk.path())
        .config("[tasks.build]\ncommand = \"sh build.sh\"\n")?;
    ws.file("build.sh", "cat in > out\n")?;
    ws.file("in", "1\n")?;
    ws.run(["build"])?.stored_miss();
    ws.end_daemon()?;
    // A process loses its command line before its open files.
    poll_until("a disk that nobody writes to", || {
        rustix::mount::mount_remount(disk.path(), MountFlags::RDONLY, c"").is_ok()
    });
    ws.file("in", "2\n")?;
    ws.run(["build"])?.not_stored(&["read-only"]);
    assert_eq!(ws.read("out")?, "2\n");
    Ok(())
}
