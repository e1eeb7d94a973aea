//! What is done while a processor has nothing to do: packing while a task still runs, and decompressing what will be
//! read.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use crate::support::process::poll_until;
use crate::support::{Mode, TestResult, Workspace};

/// Returns the bytes of what the daemon has decompressed ahead, which is a file without a name.
fn bytes_ahead(ws: &Workspace) -> u64 {
    let Some(descriptors) = ws.daemon().and_then(|id| fs::read_dir(format!("/proc/{id}/fd")).ok()) else {
        return 0;
    };
    let is_ahead = |target: &str| target.contains("/tmp/") && target.ends_with(" (deleted)");
    let paths = descriptors.filter_map(|entry| Some(entry.ok()?.path()));
    let ahead = paths.filter(|path| fs::read_link(path).is_ok_and(|to| to.to_str().is_some_and(is_ahead)));
    ahead.filter_map(|path| Some(fs::metadata(path).ok()?.len())).sum()
}

/// Goal: a hit in a new daemon makes ready what was read under the one before. Method: the archive loses its content
/// after that.
#[test]
#[ignore = "wants an idle processor; scripts/suites/idle runs it"]
fn what_was_read_last_is_decompressed_after_the_next_hit() -> TestResult {
    let ws = Workspace::new(Mode::Mounted)?
        .store_outside()
        .config("[tasks.build]\ncommand = \"sh build.sh\"\n")?;
    ws.file("build.sh", "mkdir dist\nfor i in 1 2 3 4; do seq $((i * 3000)) >dist/$i; done\n")?;
    ws.mount()?;
    let archive = ws.run(["build"])?.stored_miss().text("archive");
    let content = fs::read(ws.path("dist/2"))?;
    ws.remove("dist")?;
    ws.run(["build"])?.hit();
    assert_eq!(fs::read(ws.path("dist/2"))?, content);
    ws.vout(["unmount", "--discard"])?.ok();
    ws.end_daemon()?;
    ws.mount()?;
    assert_eq!(bytes_ahead(&ws), 0);
    ws.run(["build"])?.hit();
    poll_until("something decompressed ahead", || bytes_ahead(&ws) > content.len() as u64);
    File::options().write(true).open(&archive)?.write_all_at(&[0; 1000], 0)?;
    assert_eq!(fs::read(ws.path("dist/2"))?, content);
    ws.vout(["unmount", "--discard"])?.ok();
    Ok(())
}

/// Goal: an archive that was begun while its task ran is gone after a kill, and the next run makes a whole one.
#[test]
#[ignore = "wants an idle processor; scripts/suites/idle runs it"]
fn a_daemon_killed_while_it_packs_leaves_nothing() -> TestResult {
    let ws = Workspace::new(Mode::Unmounted)?
        .store_outside()
        .config("[tasks.long]\ncommand = \"sh long.sh\"\n")?;
    let begun = ws.signal("begun");
    let make = "mkdir dist; for i in $(seq 40); do seq $i 9000 >dist/$i; done";
    ws.file("long.sh", format!("{make}; touch {}; exec sleep 600\n", begun.display()))?;
    let packed_bytes = || -> u64 {
        let begun = fs::read_dir(ws.store().join("tmp")).into_iter().flatten();
        begun.filter_map(|entry| Some(entry.ok()?.metadata().ok()?.len())).sum()
    };
    let run = ws.start_run(["long"])?;
    ws.await_signal("begun");
    poll_until("something packed", || packed_bytes() > 0);
    ws.kill_daemon();
    ws.finish(run)?.code(125);
    assert!(!ws.exists("dist"));
    ws.file("long.sh", format!("{make}\n"))?;
    let archive = ws.run(["long"])?.stored_miss().text("archive");
    assert_eq!(packed_bytes(), 0);
    assert_eq!(ws.archives()?, [std::path::PathBuf::from(archive)]);
    ws.remove("dist")?;
    ws.run(["long"])?.hit();
    assert!(ws.read("dist/40")?.starts_with("40\n41\n"));
    Ok(())
}
