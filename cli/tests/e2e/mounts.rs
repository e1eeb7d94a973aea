//! `vout mount`, `vout unmount` and `vout status`.

use std::ffi::OsStr;
use std::fs;
use std::process::{Command, Stdio};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::support::process::{self, wait_at_most};
use crate::support::tree::snapshot;
use crate::support::{Mode, TestResult, Workspace, mounts_below};

/// A mounted workspace with 60 virtual files in `dist`.
fn with_layer() -> Result<Workspace, Box<dyn std::error::Error>> {
    let ws = Workspace::with_config(Mode::Mounted, "[tasks.build]\ncommand = \"sh build.sh\"\n")?;
    ws.file("build.sh", "mkdir -p dist\nfor i in $(seq 60); do seq $i > dist/$i; done\n")?;
    ws.run(["build"])?.stored_miss();
    ws.remove("dist")?;
    ws.run(["build"])?.hit();
    Ok(ws)
}

#[test]
fn mounting_is_idempotent_and_shows_the_same_files() -> TestResult {
    let ws = Workspace::new(Mode::Mounted)?.config("")?;
    ws.file("a/b/c", "deep\n")?;
    let before = snapshot(ws.root())?;
    ws.mount()?;
    ws.mount()?;
    assert_eq!(mounts_below(ws.root()), [ws.root()]);
    assert_eq!(snapshot(ws.root())?, before);
    ws.vout(["unmount"])?.ok();
    assert_eq!(mounts_below(ws.root()), [] as [&std::path::Path; 0]);
    assert_eq!(snapshot(ws.root())?, before);
    Ok(())
}

#[test]
fn what_users_write_through_the_mount_is_in_the_base() -> TestResult {
    let ws = Workspace::new(Mode::Mounted)?.config("")?;
    ws.file("old", "old\n")?;
    ws.mount()?;
    let script = "echo new > new && mkdir -p d/e && mv old d/e/moved && ln -s new link && ln new hard \
        && echo more >> new && chmod 600 d/e/moved && rm -f none && truncate -s 3 new";
    let status = Command::new("sh").args(["-c", script]).current_dir(ws.root()).status()?;
    assert!(status.success());
    let through = snapshot(ws.root())?;
    ws.vout(["unmount"])?.ok();
    assert_eq!(snapshot(ws.root())?, through);
    assert_eq!(ws.read("hard")?, "new");
    Ok(())
}

#[test]
fn unmounting_loses_nothing() -> TestResult {
    let ws = with_layer()?;
    let before = snapshot(ws.root())?;
    let unmounted = ws.vout(["unmount"])?.ok();
    assert!(unmounted.printed().contains("60"), "the amount is said\n{unmounted}");
    assert_eq!(snapshot(ws.root())?, before);
    // In place already, so a hit has nothing to do.
    ws.run(["build"])?.hit();
    assert_eq!(snapshot(ws.root())?, before);
    Ok(())
}

#[test]
fn discarding_leaves_out_what_is_virtual() -> TestResult {
    let ws = with_layer()?;
    ws.file("mine", "kept\n")?;
    ws.vout(["unmount", "--discard"])?.ok();
    assert!(!ws.exists("dist/60"));
    assert_eq!(ws.read("mine")?, "kept\n");
    ws.run(["build"])?.hit();
    assert_eq!(ws.read("dist/60")?.lines().count(), 60);
    Ok(())
}

#[test]
fn a_busy_mount_names_its_holders() -> TestResult {
    let ws = with_layer()?;
    let mut holder =
        Command::new("sleep").arg("60").current_dir(ws.path("dist")).stdin(Stdio::null()).spawn()?;
    let busy = ws.vout(["unmount"])?;
    let (held, id) = (busy.printed(), holder.id().to_string());
    holder.kill()?;
    holder.wait()?;
    assert_ne!(busy.status.code(), Some(0), "{busy}");
    assert!(held.contains(&id) && held.contains("sleep"), "{busy}");
    assert_eq!(ws.read("dist/3")?, "1\n2\n3\n", "it stays mounted");
    ws.vout(["unmount"])?.ok();
    Ok(())
}

/// Goal: nobody else's mount is taken away with ours, or instead of it.
#[test]
fn unmounting_stops_at_what_others_mounted_on_it() -> TestResult {
    let ws = with_layer()?;
    fs::create_dir(ws.path("inner"))?;
    for at in [ws.root().to_owned(), ws.path("inner")] {
        mount("none", &at, "tmpfs", MountFlags::empty(), None)?;
        fs::write(at.join("precious"), "theirs\n")?;
        let refused = ws.vout([OsStr::new("unmount"), ws.root().as_os_str()])?.code(1);
        let hint = format!("hint: umount {}", at.display());
        assert!(refused.printed().contains("tmpfs") && refused.printed().contains(&hint), "{refused}");
        assert_eq!(fs::read_to_string(at.join("precious"))?, "theirs\n");
        unmount(&at, UnmountFlags::empty())?;
    }
    assert_eq!(ws.read("dist/3")?, "1\n2\n3\n", "it is as it was");
    ws.vout(["unmount"])?.ok();
    assert_eq!(mounts_below(ws.root()), [] as [&std::path::Path; 0]);
    Ok(())
}

/// Goal: what is out of the tree already, because somebody took it out while it was in use, is as good as unmounted.
#[test]
fn unmounting_gets_past_a_mount_that_others_detached() -> TestResult {
    let ws = with_layer()?;
    let mut holder =
        Command::new("sleep").arg("60").current_dir(ws.path("dist")).stdin(Stdio::null()).spawn()?;
    unmount(ws.root(), UnmountFlags::DETACH)?;
    let unmounted = ws.vout(["unmount"])?;
    holder.kill()?;
    holder.wait()?;
    assert!(unmounted.ok().printed().contains("60"), "what was virtual is written");
    assert_eq!(ws.read("dist/3")?, "1\n2\n3\n");
    ws.mount()?;
    assert_eq!(mounts_below(ws.root()), [ws.root()]);
    Ok(())
}

/// Goal: a task works on what people see at the workspace's path, or not at all.
#[test]
fn a_workspace_that_was_replaced_or_covered_is_not_worked_on() -> TestResult {
    let ws = Workspace::new(Mode::Mounted)?.store_outside().config("")?;
    ws.file("in", "old\n")?;
    ws.run(["--", "cat", "in"])?;
    let moved = ws.outside().join("moved");
    fs::rename(ws.root(), &moved)?;
    fs::create_dir(ws.root())?;
    ws.file("vout.toml", "")?;
    ws.file("in", "new\n")?;
    let run = ws.run(["--", "sh", "-c", "cat in; echo x > made"])?;
    assert!(run.printed().contains("new"), "{run}");
    assert_eq!((ws.read("made")?, moved.join("made").exists()), ("x\n".to_owned(), false));
    ws.mount()?;
    mount("none", ws.root(), "tmpfs", MountFlags::empty(), None)?;
    ws.file("vout.toml", "")?;
    let refused = ws.try_run(["--", "sh", "-c", "echo x > hidden"])?.code(1);
    assert!(refused.printed().contains("mounted over it"), "{refused}");
    unmount(ws.root(), UnmountFlags::empty())?;
    assert!(!ws.exists("hidden"));
    ws.run(["--", "sh", "-c", "echo x > shown"])?;
    assert_eq!(ws.read("shown")?, "x\n");
    Ok(())
}

#[test]
fn a_mount_at_another_place_leaves_the_workspace_alone() -> TestResult {
    let ws = Workspace::new(Mode::Mounted)?.config("[tasks.build]\ncommand = \"sh build.sh\"\n")?;
    ws.file("build.sh", "mkdir -p dist\nseq 9 > dist/a\n")?;
    let at = ws.outside().join("elsewhere");
    fs::create_dir(&at)?;
    ws.vout([OsStr::new("mount"), "--at".as_ref(), at.as_os_str()])?.ok();
    ws.run(["build"])?.stored_miss();
    fs::remove_dir_all(at.join("dist"))?;
    ws.run(["build"])?.hit();
    assert_eq!(fs::read_to_string(at.join("dist/a"))?.lines().count(), 9);
    assert!(!ws.exists("dist"), "virtual there, and not written here");
    ws.vout(["unmount"])?.ok();
    assert_eq!(ws.read("dist/a")?.lines().count(), 9);
    Ok(())
}

#[test]
fn commands_work_from_inside_a_mount_at_another_place() -> TestResult {
    let ws = Workspace::new(Mode::Mounted)?.config("[tasks.build]\ncommand = \"seq 9 > out\"\n")?;
    ws.file("sub/in", "x\n")?;
    // What has to be quoted in the table of mounts, or for those who mount.
    let at = ws.outside().join("else, where\\#");
    fs::create_dir(&at)?;
    ws.vout([OsStr::new("mount"), "--at".as_ref(), at.as_os_str()])?.ok();
    let inside = |directory: &str, arguments: &[&str]| -> Result<String, Box<dyn std::error::Error>> {
        let output = ws.vout_command(arguments).current_dir(at.join(directory)).output()?;
        assert!(output.status.success(), "{output:?}");
        Ok(String::from_utf8(output.stdout)? + &String::from_utf8(output.stderr)?)
    };
    inside("", &["run", "build"])?;
    let copied = inside("sub", &["run", "--", "cp", "in", "copy"])?;
    assert_eq!(ws.read("sub/copy").unwrap_or_default(), "x\n", "{copied}");
    let status: serde_json::Value = serde_json::from_str(&inside("sub", &["status", "--json"])?)?;
    assert_eq!(status["workspace"], ws.root().to_str().unwrap(), "{status}");
    assert_eq!(status["mounted_at"], at.to_str().unwrap(), "{status}");
    inside("sub", &["unmount"])?;
    assert_eq!(mounts_below(ws.outside()), [] as [&std::path::Path; 0]);
    ws.vout([OsStr::new("mount"), "--at".as_ref(), at.as_os_str()])?.ok();
    ws.vout([OsStr::new("unmount"), at.as_os_str()])?.ok();
    assert_eq!(mounts_below(ws.outside()), [] as [&std::path::Path; 0]);
    Ok(())
}

#[test]
fn a_workspace_inside_a_mounted_one_is_refused() -> TestResult {
    let ws = Workspace::new(Mode::Mounted)?.config("")?;
    ws.file("inner/vout.toml", "")?;
    ws.mount()?;
    let refused = ws.vout(["mount", "inner"])?;
    assert_ne!(refused.status.code(), Some(0), "{refused}");
    assert!(refused.printed().contains("mount"), "{refused}");
    Ok(())
}

#[test]
fn status_works_where_nothing_runs_and_nothing_is_mounted() -> TestResult {
    let ws = Workspace::new(Mode::Unmounted)?.config("")?;
    assert_eq!(ws.daemon(), None);
    let status = ws.status()?;
    assert_eq!((&status["mounted"], &status["entries"]), (&false.into(), &0.into()), "{status}");
    Ok(())
}

#[test]
fn unmounting_from_inside_and_what_is_not_mounted_is_fine() -> TestResult {
    let ws = with_layer()?;
    // The harness starts vout in the workspace.
    ws.vout(["unmount"])?.ok();
    assert_eq!(ws.read("dist/3")?, "1\n2\n3\n");
    ws.vout(["unmount"])?.ok();
    Ok(())
}

/// Goal: a CI step, whose shell starts in the mounted workspace, can unmount it. Method: one shell that stays
/// where it is, and looks at what is mounted after each command.
#[test]
fn the_shell_that_unmounts_may_stand_in_the_mount() -> TestResult {
    let ws = with_layer()?;
    let script = "cd \"$WS\" && mounted() { grep -c -F \" $WS \" /proc/self/mountinfo; }
        mounted; \"$VOUT\" unmount; mounted; ls dist | wc -l; \"$VOUT\" mount; mounted; cat dist/3
        \"$VOUT\" run build; \"$VOUT\" unmount; mounted; cd . && cat dist/60 | wc -l";
    let mut command = Command::new("bash");
    command.env("WS", ws.root()).env("VOUT", env!("CARGO_BIN_EXE_vout")).args(["-c", script]);
    command.env("XDG_RUNTIME_DIR", ws.outside().join("run")).env_remove("VOUT_STORE").current_dir("/");
    let output = command.stdin(Stdio::null()).output()?;
    let (stdout, stderr) = (String::from_utf8(output.stdout)?, String::from_utf8(output.stderr)?);
    assert_eq!(stdout, "1\n0\n60\n1\n1\n2\n3\n0\n60\n", "{stderr}");
    assert_eq!(stderr.matches("your shell still stands in the old mount: run `cd .`").count(), 1, "{stderr}");
    assert!(stderr.contains("60 files"), "{stderr}");
    assert_eq!(ws.read("dist/3")?, "1\n2\n3\n");
    Ok(())
}

#[test]
fn a_shell_with_an_open_file_keeps_the_mount_busy() -> TestResult {
    let ws = with_layer()?;
    let mut command = Command::new("bash");
    command.env("VOUT", env!("CARGO_BIN_EXE_vout")).args(["-c", "exec 7<dist/3; \"$VOUT\" unmount; echo $?"]);
    command.env("XDG_RUNTIME_DIR", ws.outside().join("run")).env_remove("VOUT_STORE");
    let output = command.current_dir(ws.root()).stdin(Stdio::null()).output()?;
    assert_eq!(output.stdout, b"1\n");
    assert!(String::from_utf8(output.stderr)?.contains("(bash)"));
    assert_eq!(mounts_below(ws.root()), [ws.root()]);
    Ok(())
}

/// Goal: `rm -rf .vout` is a way to start anew. Method: no waiting for the daemon to be idle.
#[test]
fn a_removed_store_is_made_anew() -> TestResult {
    let ws = Workspace::with_config(Mode::Unmounted, "[tasks.build]\ncommand = \"seq 9 > out\"\n")?;
    ws.run(["build"])?.stored_miss();
    let first = ws.daemon();
    ws.remove(".vout")?;
    ws.run(["build"])?.stored_miss();
    assert_ne!(ws.daemon(), first);
    ws.run(["build"])?.hit();
    // Another one of the same name is not ours either.
    ws.remove(".vout")?;
    fs::create_dir(ws.path(".vout"))?;
    ws.run(["build"])?.stored_miss();
    ws.run(["build"])?.hit();
    Ok(())
}

#[test]
fn a_store_removed_under_a_mount_is_told_and_the_way_out_works() -> TestResult {
    let ws =
        Workspace::new(Mode::Mounted)?.config("[tasks.build]\ncommand = \"seq 9 > out\"\n")?.store_outside();
    ws.mount()?;
    ws.run(["build"])?.stored_miss();
    ws.remove("out")?;
    ws.run(["build"])?.hit();
    fs::remove_dir_all(ws.store())?;
    let refused = ws.try_run(["build"])?;
    assert!(refused.printed().contains("the store was removed while the workspace is mounted"), "{refused}");
    assert!(refused.printed().contains("vout unmount --discard"), "{refused}");
    ws.vout(["unmount", "--discard"])?.ok();
    ws.mount()?;
    ws.run(["build"])?.stored_miss();
    ws.run(["build"])?.hit();
    Ok(())
}

#[test]
fn status_tells_of_mounts_layers_and_the_store() -> TestResult {
    let ws = with_layer()?;
    let status = ws.status()?;
    assert_eq!(status["mounted_at"], ws.root().to_str().unwrap(), "{status}");
    assert_eq!(status["entries"], 1, "{status}");
    assert!(status["archive_bytes"].as_u64() > Some(0), "{status}");
    assert_eq!(status["daemon_pid"].as_u64(), ws.daemon().map(u64::from), "{status}");
    let layer = &status["layers"][0];
    assert_eq!((&layer["task"], &layer["virtual_files"]), (&"build".into(), &60.into()), "{status}");
    ws.read("dist/60")?;
    let text = ws.vout(["status"])?.ok();
    assert!(text.printed().contains("build"), "{text}");
    Ok(())
}

#[test]
fn a_file_written_over_a_virtual_one_stays() -> TestResult {
    let ws = with_layer()?;
    ws.file("dist/7", "mine\n")?;
    fs::OpenOptions::new().append(true).open(ws.path("dist/8"))?.set_len(2)?;
    ws.remove("dist/9")?;
    fs::rename(ws.path("dist/10"), ws.path("dist/moved"))?;
    let check = || -> TestResult {
        assert_eq!((ws.read("dist/7")?, ws.read("dist/8")?), ("mine\n".into(), "1\n".into()));
        assert!(!ws.exists("dist/9") && !ws.exists("dist/10"));
        assert_eq!(ws.read("dist/moved")?.lines().count(), 10);
        Ok(())
    };
    check()?;
    ws.vout(["unmount"])?.ok();
    check()
}

/// Goal: `$(vout mount)` in a script returns. Method: a pipe that ends only when its last holder closes it.
#[test]
fn the_daemon_does_not_hold_its_callers_output() -> TestResult {
    let ws = Workspace::with_config(Mode::Unmounted, "")?;
    let mut command = ws.vout_command(["mount"]);
    let mut mount = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let (stdout, stderr) = (mount.stdout.take().unwrap(), mount.stderr.take().unwrap());
    assert!(wait_at_most(&mut mount, std::time::Duration::from_secs(60))?.success());
    let reader = std::thread::spawn(move || {
        std::io::copy(&mut std::io::Read::chain(stdout, stderr), &mut std::io::sink())
    });
    process::poll_until("end of the output", || reader.is_finished());
    Ok(())
}
