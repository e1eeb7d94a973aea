//! Live mounts that nobody goes around, so that what was not touched through them need not be looked at.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::process::Command;

use crate::support::process::poll_until;
use crate::support::{Mode, TestResult, Workspace, compile_c};
use crate::with_passthrough_and_without;

const LOOK: &str = "cat src/a src/b src/sub/c src/sub/deep/d; ls -F src; cat src/gone 2>/dev/null; true";

const CONFIG: &str = "\
[tasks.write]
command = \"cat what > src/b\"
[mount]
exclusive = true
";

/// A mounted workspace whose task `look` was hit twice, so that it is known.
fn known(passthrough: &str) -> Result<Workspace, Box<dyn std::error::Error>> {
    let mut ws = Workspace::new(Mode::Mounted)?;
    ws.variable("VOUT_PASSTHROUGH", passthrough);
    let ws = ws.config(&format!("[tasks.look]\ncommand = {LOOK:?}\noutput = []\n{CONFIG}"))?;
    for name in ["src/a", "src/b", "src/sub/c", "src/sub/deep/d"] {
        ws.file(name, name)?;
    }
    Ok(ws)
}

fn mounted(passthrough: &str) -> Result<Workspace, Box<dyn std::error::Error>> {
    let ws = known(passthrough)?;
    ws.mount()?;
    settle(&ws)?;
    Ok(ws)
}

/// Has `look` hit twice.
fn settle(ws: &Workspace) -> TestResult {
    ws.run(["look"])?;
    ws.run(["look"])?.hit();
    ws.run(["look"])?.hit();
    Ok(())
}

/// Expects that `look` sees what `change` does to the workspace, at once: what it says, whether it runs or hits, is what
/// it would say if it ran now.
#[track_caller]
fn sees(ws: &Workspace, what: &str, change: impl FnOnce() -> TestResult) -> TestResult {
    settle(ws)?;
    let before = printed(ws)?;
    change()?;
    let now = printed(ws)?;
    assert_ne!(before, now, "{what} is to be seen");
    let output = ws.run(["look"])?;
    assert_eq!(String::from_utf8_lossy(&output.stdout), now, "{what}\n{output}");
    Ok(())
}

/// Returns what the command of `look` says when it runs.
fn printed(ws: &Workspace) -> Result<String, Box<dyn std::error::Error>> {
    let output = Command::new("sh").args(["-c", LOOK]).current_dir(ws.root()).output()?;
    Ok(String::from_utf8(output.stdout)?)
}

fn every_change_is_seen(passthrough: &str) -> TestResult {
    let ws = mounted(passthrough)?;
    let path = |name: &str| ws.path(name);
    sees(&ws, "a write", || Ok(ws.file("src/a", "1")?))?;
    sees(&ws, "the same size", || Ok(ws.file("src/a", "2")?))?;
    let open = File::options().write(true).open(path("src/sub/c"))?;
    for byte in [b"x", b"y"] {
        sees(&ws, "a write to what is open", || Ok(open.write_all_at(byte, 0)?))?;
    }
    sees(&ws, "a cut", || Ok(open.set_len(1)?))?;
    drop(open);
    sees(&ws, "a mode", || Ok(fs::set_permissions(path("src/a"), fs::Permissions::from_mode(0o755))?))?;
    sees(&ws, "a new name", || Ok(ws.file("src/new", "")?))?;
    sees(&ws, "what was not there", || Ok(ws.file("src/gone", "now")?))?;
    sees(&ws, "a removal", || Ok(ws.remove("src/gone")?))?;
    sees(&ws, "another file", || {
        ws.file("other", "another")?;
        Ok(fs::rename(path("other"), path("src/a"))?)
    })?;
    sees(&ws, "a renamed directory", || Ok(fs::rename(path("src/sub"), path("src/bus"))?))?;
    fs::rename(path("src/bus"), path("src/sub"))?;
    sees(&ws, "a directory above", || {
        fs::rename(path("src/sub/deep"), path("deep"))?;
        fs::create_dir(path("src/sub/deep"))?;
        Ok(ws.file("src/sub/deep/d", "other")?)
    })?;
    fs::hard_link(path("src/sub/c"), path("link"))?;
    sees(&ws, "another name", || Ok(ws.file("link", "through the link")?))?;
    Ok(())
}

fn commits_and_hits_are_seen(passthrough: &str) -> TestResult {
    let ws = mounted(passthrough)?;
    for what in ["one", "two", "one", "two"] {
        // At first by running, then by attaching one layer in place of another.
        ws.file("what", what)?;
        sees(&ws, what, || {
            ws.run(["write"])?;
            Ok(())
        })?;
        assert_eq!(ws.read("src/b")?, what);
    }
    Ok(())
}

fn mapped_pages_are_seen(passthrough: &str) -> TestResult {
    let ws = mounted(passthrough)?;
    let program = ws.outside().join("exclusive");
    compile_c(include_str!("exclusive.c"), &program, &[])?;
    let (now, mapped) = (ws.outside().join("now"), ws.outside().join("mapped"));
    let mut child = Command::new(&program)
        .arg(ws.path("src/a"))
        .args([&now, &mapped])
        .current_dir(ws.outside())
        .spawn()?;
    poll_until("the mapping", || mapped.exists());
    settle(&ws)?;
    // The file is closed, and the mapping is written to only now.
    File::create(&now)?;
    assert!(child.wait()?.success());
    let output = ws.run(["look"])?;
    assert_eq!(output.task()["status"], "miss", "{output}");
    Ok(())
}

/// Goal: what the promise is about. Nobody but who breaks it changes a file through a directory that was open before the
/// mount, and only where nothing is promised, or can be, that is seen.
fn what_the_promise_is_about(passthrough: &str) -> TestResult {
    let ws = known(passthrough)?;
    let beneath = File::open(ws.root())?;
    ws.mount()?;
    settle(&ws)?;
    let path = format!("/proc/self/fd/{}/src/a", beneath.as_raw_fd());
    fs::write(&path, "changed beneath")?;
    let output = ws.run(["look"])?;
    let kept = passthrough == "0";
    assert_eq!(output.task()["status"], if kept { "hit" } else { "miss" }, "{output}");
    // A new daemon, or a new mount, knows nothing.
    drop(beneath);
    ws.vout(["unmount"])?.ok();
    ws.mount()?;
    let output = ws.run(["look"])?;
    assert_eq!(output.task()["status"], if kept { "miss" } else { "hit" }, "{output}");
    Ok(())
}

with_passthrough_and_without!(
    every_change_is_seen,
    commits_and_hits_are_seen,
    mapped_pages_are_seen,
    what_the_promise_is_about,
);
