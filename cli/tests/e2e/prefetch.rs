//! What was read last of a task's outputs is at hand before it is read again.

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
