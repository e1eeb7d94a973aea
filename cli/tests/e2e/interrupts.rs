//! Runs that do not come to a proper end: Ctrl-C, killed daemons, processes that stay behind.

use std::fs;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::in_both_modes;
use crate::support::tree::snapshot;
use crate::support::{Mode, TestResult, Workspace, process};

in_both_modes!(
    control_c_leaves_nothing_behind,
    a_process_that_outlives_its_task_is_named,
    a_daemon_killed_during_a_run_leaves_the_base_untouched,
    a_task_whose_view_was_aborted_has_failed_whatever_it_says,
);

/// A task that writes, deletes, signals `begun`, and then takes its time.
fn long_task(mode: Mode) -> std::io::Result<Workspace> {
    let ws = Workspace::new(mode)?.config("[tasks.long]\ncommand = \"sh long.sh\"\n")?;
    let begun = ws.signal("begun");
    ws.file(
        "long.sh",
        format!("echo x > out\nrm victim\n: > '{}'\nsleep 100\necho late\n", begun.display()),
    )?;
    ws.file("victim", "alive\n")?;
    ws.mount_if_asked()?;
    Ok(ws)
}

/// Returns the processes of a workspace that are no daemon.
fn left_behind(ws: &Workspace) -> Vec<process::Process> {
    let mut found = process::of_directory(ws.outside());
    found.retain(|process| !process.name.starts_with("vout-mountd"));
    found
}

fn control_c_leaves_nothing_behind(mode: Mode) -> TestResult {
    let ws = long_task(mode)?;
    let before = snapshot(ws.root())?;
    for signal in [Signal::INT, Signal::TERM] {
        let run = ws.start_run(["long"])?;
        ws.await_signal("begun");
        // A shell that is just about to start something may keep an interrupt to itself.
        process::poll_until("the sleep", || left_behind(&ws).iter().any(|process| process.name == "sleep"));
        process::signal(run.id(), signal);
        let started = Instant::now();
        let run = ws.finish(run)?.code(128 + signal.as_raw());
        assert!(started.elapsed() < Duration::from_secs(30), "{run}");
        fs::remove_file(ws.signal("begun"))?;
        process::poll_until("end of the task's processes", || left_behind(&ws).is_empty());
        assert_eq!(snapshot(ws.root())?, before);
        assert_eq!(ws.status()?["running"].as_array().map(Vec::len), Some(0));
    }
    assert_eq!(ws.status()?["entries"], 0);
    Ok(())
}

fn a_process_that_outlives_its_task_is_named(mode: Mode) -> TestResult {
    let ws = Workspace::with_config(mode, "[tasks.serve]\ncommand = \"sh serve.sh\"\n")?;
    ws.file("serve.sh", "sleep 60 &\necho ready > out\n")?;
    let started = Instant::now();
    let run = ws.run(["serve"])?.not_stored(&["sleep"]);
    assert!(started.elapsed() < Duration::from_secs(30), "the run does not wait for it\n{run}");
    assert_eq!(ws.read("out")?, "ready\n");
    assert_eq!(ws.status()?["entries"], 0);
    Ok(())
}

/// Goal: writes that are lost are no success. Method: the task cuts its own view, and ends as if all were well.
fn a_task_whose_view_was_aborted_has_failed_whatever_it_says(mode: Mode) -> TestResult {
    let ws = Workspace::new(mode)?.config("[tasks.cut]\ncommand = \"sh cut.sh\"\n")?;
    let control = ws.outside().join("control");
    fs::create_dir(&control)?;
    ws.file(
        "cut.sh",
        format!(
            "echo x > out\nnumber=$(stat -c %Ld .)\nmount -t fusectl none '{0}'\necho 1 > '{0}'/$number/abort\nexit 0\n",
            control.display()
        ),
    )?;
    ws.mount_if_asked()?;
    let before = snapshot(ws.root())?;
    let run = ws.try_run(["cut"])?.code(125);
    assert!(run.printed().contains("wrote is lost") && run.printed().contains("aborted"), "{run}");
    assert_eq!(snapshot(ws.root())?, before);
    assert_eq!(ws.status()?["entries"], 0);
    Ok(())
}

fn a_daemon_killed_during_a_run_leaves_the_base_untouched(mode: Mode) -> TestResult {
    let ws = long_task(mode)?;
    let before = snapshot(ws.root())?;
    let run = ws.start_run(["long"])?;
    ws.await_signal("begun");
    ws.kill_daemon();
    let ended = ws.finish(run)?;
    assert_ne!(ended.status.code(), Some(0), "{ended}");
    // A live mount died with its daemon; mounting again replaces it.
    ws.mount_if_asked()?;
    assert_eq!(snapshot(ws.root())?, before);
    ws.file("long.sh", "echo quick > out\n")?;
    ws.run(["long"])?.stored_miss();
    ws.run(["long"])?.hit();
    assert_eq!(ws.read("out")?, "quick\n");
    Ok(())
}

#[test]
fn a_live_mount_comes_back_after_its_daemon_was_killed() -> TestResult {
    let ws = Workspace::with_config(Mode::Mounted, "[tasks.build]\ncommand = \"sh build.sh\"\n")?;
    ws.file("build.sh", "mkdir -p dist\nseq 1000 > dist/a\nseq 2000 > dist/b\n")?;
    ws.run(["build"])?.stored_miss();
    ws.remove("dist")?;
    ws.run(["build"])?.hit();
    let before = snapshot(ws.root())?;
    ws.kill_daemon();
    ws.mount()?;
    assert_eq!(snapshot(ws.root())?, before, "times included: the shift is kept");
    ws.run(["build"])?.hit();
    ws.vout(["unmount"])?.ok();
    assert_eq!(ws.read("dist/b")?.lines().count(), 2000);
    Ok(())
}

/// Runs `vout` from a shell that has stood in `cwd` since before the daemon was killed.
fn across_a_kill(ws: &Workspace, command: &[&str], cwd: &str) -> std::io::Result<ExitStatus> {
    let vout = ws.vout_command(command);
    let mut shell = Command::new("sh");
    // It goes on at the end of its input.
    shell.args(["-c", "read go; exec \"$0\" \"$@\""]).arg(vout.get_program()).args(vout.get_args());
    shell.current_dir(ws.path(cwd)).stdin(Stdio::piped());
    for (name, value) in vout.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    let mut child = shell.spawn()?;
    ws.kill_daemon();
    drop(child.stdin.take());
    process::wait_at_most(&mut child, Duration::from_secs(60))
}

/// Goal: no command is stopped by a mount that a killed daemon left. Method: each from the workspace, from
/// below it, and by its path.
#[test]
fn every_command_gets_past_a_dead_mount() -> TestResult {
    let ws = Workspace::with_config(Mode::Mounted, "[tasks.build]\ncommand = \"sh build.sh\"\n")?;
    ws.file("build.sh", "mkdir -p dist\nseq 1000 > dist/a\n")?;
    ws.run(["build"])?.stored_miss();
    let root = ws.root().to_str().unwrap().to_owned();
    let commands: [(&[&str], &str); 7] = [
        (&["status"], "."),
        (&["run", "build"], "."),
        (&["run", "build"], "sub"),
        (&["mount"], "sub"),
        (&["mount", root.as_str()], "/"),
        (&["unmount", ".."], "sub"),
        (&["unmount"], "."),
    ];
    for (command, cwd) in commands {
        ws.mount()?;
        fs::create_dir_all(ws.path("sub"))?;
        ws.remove("dist")?;
        ws.run(["build"])?.hit();
        let status = across_a_kill(&ws, command, cwd)?;
        assert!(status.success(), "{command:?} in {cwd:?}: {status}");
        if command[0] == "unmount" {
            assert_eq!(ws.read("dist/a")?.lines().count(), 1000, "{command:?} writes what was virtual");
        }
    }
    Ok(())
}

#[test]
fn a_killed_daemon_with_nothing_mounted_is_no_obstacle() -> TestResult {
    let ws = Workspace::with_config(Mode::Unmounted, "[tasks.build]\ncommand = \"touch out\"\n")?;
    ws.run(["build"])?.stored_miss();
    if ws.daemon().is_some() {
        ws.kill_daemon();
    }
    ws.run(["build"])?.hit();
    Ok(())
}
