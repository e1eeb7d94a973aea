//! A disk below that is full, read-only or broken, and a daemon out of descriptors: the caller hears of it as it
//! would without us, and the tree is as good as before.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use rustix::io::Errno;
use rustix::mount::{MountFlags, mount, mount_remount};

use crate::support::process::poll_until;
use crate::support::tree::{snapshot, without_times};
use crate::support::{Mode, TestResult, Workspace, compile_c};

/// Returns a workspace on a small disk of its own, in memory. The watchdog takes the disk away.
fn on_small_disk(options: &std::ffi::CStr) -> Result<Workspace, Box<dyn std::error::Error>> {
    let ws = Workspace::new(Mode::Mounted)?.store_outside();
    mount("small", ws.root(), "tmpfs", MountFlags::empty(), options)?;
    Ok(ws.config("[tasks.build]\ncommand = \"sh build.sh\"\n")?)
}

#[track_caller]
fn assert_errno<T: std::fmt::Debug>(result: io::Result<T>, errno: Errno) {
    assert_eq!(result.unwrap_err().raw_os_error(), Some(errno.raw_os_error()));
}

/// Writes until that is refused as it should be; returns how much was not.
fn fill(path: &Path, refusal: Errno) -> io::Result<u64> {
    let mut file = File::create(path)?;
    let mut written = 0;
    loop {
        match file.write(&[7; 50_000]) {
            Ok(bytes) => written += bytes as u64,
            Err(error) if error.raw_os_error() == Some(refusal.raw_os_error()) => return Ok(written),
            Err(error) => return Err(error),
        }
    }
}

/// Waits until the disk has room again: of a file that was written and removed, the kernel tells a moment later that
/// nobody has it open.
fn await_room(ws: &Workspace) {
    let free_bytes = || {
        let stat = rustix::fs::statvfs(ws.root()).unwrap();
        stat.f_bavail * stat.f_frsize
    };
    poll_until("the space of what was removed is free", || free_bytes() > 4 << 20);
}

/// Expects that the mount and the disk below it show the same, and that the mount goes away.
fn assert_sound(ws: &Workspace) -> TestResult {
    let shown = snapshot(ws.root())?;
    ws.vout(["unmount"])?.ok();
    assert_eq!(without_times(snapshot(ws.root())?), without_times(shown));
    Ok(())
}

#[test]
fn a_full_disk_shows_through_the_live_mount() -> TestResult {
    let ws = on_small_disk(c"size=8m")?;
    ws.mount()?;
    ws.file("before", "here before\n")?;
    let written = fill(&ws.path("big"), Errno::NOSPC)?;
    assert_eq!(ws.path("big").metadata()?.len(), written);
    assert_errno(fs::write(ws.path("more"), [1; 10_000]), Errno::NOSPC);
    assert_eq!(ws.read("before")?, "here before\n");
    ws.remove("more")?;
    ws.remove("big")?;
    await_room(&ws);
    ws.file("after", "room again\n")?;
    assert_eq!(ws.read("after")?, "room again\n");
    assert_sound(&ws)
}

#[test]
fn a_disk_without_inodes_shows_through_the_live_mount() -> TestResult {
    let ws = on_small_disk(c"nr_inodes=40")?;
    ws.mount()?;
    let refused = (0..100).map(|i| fs::create_dir(ws.path(format!("d{i}")))).find(Result::is_err);
    assert_errno(refused.expect("there are fewer"), Errno::NOSPC);
    assert_errno(File::create(ws.path("f")), Errno::NOSPC);
    assert_errno(std::os::unix::fs::symlink("x", ws.path("l")), Errno::NOSPC);
    for name in ["f", "l"] {
        assert!(!ws.exists(name), "{name} is not half there");
    }
    ws.remove("d0")?;
    fs::create_dir(ws.path("again"))?;
    assert_sound(&ws)
}

/// Goal: what cannot be made real for want of space stays virtual, and whole.
#[test]
fn a_virtual_file_survives_a_full_disk() -> TestResult {
    let ws = on_small_disk(c"size=8m")?;
    ws.file("build.sh", "head -c 3000000 /dev/zero | tr '\\0' x >out\n")?;
    ws.mount()?;
    ws.run(["build"])?.stored_miss();
    ws.remove("out")?;
    ws.run(["build"])?.hit();
    fill(&ws.path("big"), Errno::NOSPC)?;
    let content = fs::read(ws.path("out"))?;
    assert_eq!((content.len(), content.iter().find(|byte| **byte != b'x')), (3_000_000, None));
    let open = File::options().append(true).open(ws.path("out"));
    assert_errno(open.and_then(|mut file| file.write_all(b"y")), Errno::NOSPC);
    assert!(fs::read(ws.path("out"))? == content, "it is as it was");
    ws.remove("big")?;
    await_room(&ws);
    File::options().append(true).open(ws.path("out"))?.write_all(b"y")?;
    assert_eq!(ws.path("out").metadata()?.len(), 3_000_001);
    assert_sound(&ws)
}

/// Goal: a task hears that the disk of its writes is full, and may go on with less.
#[test]
fn a_full_disk_shows_in_a_view() -> TestResult {
    let ws = Workspace::new(Mode::Unmounted)?;
    mount("small", ws.root(), "tmpfs", MountFlags::empty(), c"size=8m")?;
    let ws = ws.config("[tasks.build]\ncommand = \"sh build.sh\"\n")?;
    ws.file(
        "build.sh",
        "if head -c 20000000 /dev/zero >big 2>message; then exit 1; fi\n\
         rm big\n\
         grep -q 'No space left' message\n\
         echo less >out\n",
    )?;
    ws.run(["build"])?.ok();
    assert_eq!(ws.read("out")?, "less\n");
    assert!(!ws.exists("big"));
    ws.file("in", "still usable\n")?;
    ws.run(["build"])?.ok();
    Ok(())
}

#[test]
fn a_read_only_disk_shows_through_the_live_mount() -> TestResult {
    let ws = on_small_disk(c"size=8m")?;
    ws.file("a", "a\n")?;
    // Before the live mount covers it: a path leads to the topmost one.
    mount_remount(ws.root(), MountFlags::RDONLY, c"")?;
    ws.mount()?;
    assert_eq!(ws.read("a")?, "a\n");
    assert_errno(fs::write(ws.path("a"), "b"), Errno::ROFS);
    assert_errno(fs::create_dir(ws.path("d")), Errno::ROFS);
    assert_errno(fs::remove_file(ws.path("a")), Errno::ROFS);
    assert_errno(fs::rename(ws.path("a"), ws.path("b")), Errno::ROFS);
    assert_errno(fs::set_permissions(ws.path("a"), fs::Permissions::from_mode(0o600)), Errno::ROFS);
    assert_eq!(ws.read("a")?, "a\n");
    assert_sound(&ws)
}

#[test]
fn a_daemon_out_of_descriptors_says_so_and_recovers() -> TestResult {
    let mut ws = Workspace::new(Mode::Mounted)?.store_outside().config("")?;
    // Without passthrough open files are no descriptors of the daemon.
    ws.variable("VOUT_PASSTHROUGH", "1");
    for i in 0..100 {
        ws.file(format!("f{i}"), format!("{i}\n"))?;
    }
    ws.mount()?;
    let daemon = ws.daemon().expect("the daemon runs");
    let used = fs::read_dir(format!("/proc/{daemon}/fd"))?.count();
    let limit = |soft: usize| -> TestResult {
        let limit = format!("--nofile={soft}:");
        assert!(Command::new("prlimit").args(["--pid", &daemon.to_string(), &limit]).status()?.success());
        Ok(())
    };
    limit(used + 30)?;
    let opened: Vec<_> = (0..100).map(|i| File::open(ws.path(format!("f{i}")))).collect();
    let refused = opened.iter().filter(|opened| opened.is_err()).count();
    assert!((1..100).contains(&refused), "{refused} were refused");
    for refusal in opened.iter().filter_map(|opened| opened.as_ref().err()) {
        assert_eq!(refusal.raw_os_error(), Some(Errno::MFILE.raw_os_error()));
    }
    for (i, file) in opened.into_iter().enumerate() {
        let Ok(mut file) = file else { continue };
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        assert_eq!(text, format!("{i}\n"));
    }
    limit(used + 1000)?;
    for i in 0..100 {
        assert_eq!(ws.read(format!("f{i}"))?, format!("{i}\n"));
    }
    assert_sound(&ws)
}

/// Makes an empty image for a disk.
fn image_of(ws: &Workspace, mebibytes: u64) -> TestResult {
    Ok(File::create(ws.outside().join("image"))?.set_len(mebibytes << 20)?)
}

/// Runs a script with the image and the workspace as its arguments.
#[track_caller]
fn with_image(ws: &Workspace, script: &str) -> TestResult {
    let script = format!("PATH=$PATH:/sbin:/usr/sbin; {script}");
    let image = ws.outside().join("image");
    let status = Command::new("sh").args(["-ec", &script, "sh"]).arg(image).arg(ws.root()).status()?;
    assert!(status.success(), "{script}");
    Ok(())
}

/// Goal: bad blocks are the caller's news, and only those. Method: an ext4 image on a loop device, of which the rear
/// part is cut off.
#[test]
#[ignore = "wants loop devices; scripts/suites/hostile runs it"]
fn bad_blocks_show_through_live_mounts_and_views() -> TestResult {
    let ws = Workspace::new(Mode::Unmounted)?.store_outside();
    image_of(&ws, 64)?;
    let shell = |script: &str| with_image(&ws, script);
    shell("mkfs.ext4 -q -O ^has_journal \"$1\" && mount -o loop \"$1\" \"$2\"")?;
    ws.file("good", "good\n")?;
    ws.file("vout.toml", "[tasks.copy]\ncommand = \"sh copy.sh\"\n")?;
    ws.file(
        "copy.sh",
        "cat good >out; if cat bad >copied 2>message; then exit 1; fi; grep -q 'nput/output' message\n",
    )?;
    fs::write(ws.path("bad"), vec![b'x'; 40 << 20])?;
    shell("sync -f \"$2\" && umount \"$2\" && mount -o loop \"$1\" \"$2\" && truncate -s 16M \"$1\"")?;
    ws.run(["copy"])?.ok();
    assert_eq!(ws.read("out")?, "good\n");
    ws.mount()?;
    let mut read = Vec::new();
    assert_errno(File::open(ws.path("bad"))?.read_to_end(&mut read), Errno::IO);
    assert!(read.iter().all(|byte| *byte == b'x'), "what could be read is right");
    assert_eq!(ws.read("good")?, "good\n");
    ws.vout(["unmount"])?.ok();
    Ok(())
}

/// Makes a workspace with a quota of 16 MiB. Quota groups of btrfs hold root, too.
fn with_quota(ws: &Workspace) -> TestResult {
    image_of(ws, 256)?;
    with_image(
        ws,
        "mkfs.btrfs -q \"$1\" >/dev/null && mount -o loop \"$1\" \"$2\" && btrfs quota enable \"$2\" && \
         btrfs subvolume create \"$2/ws\" >/dev/null && btrfs qgroup limit 16M \"$2/ws\" && \
         umount \"$2\" && mount -o loop,subvol=ws \"$1\" \"$2\"",
    )?;
    ws.file("vout.toml", "[tasks.build]\ncommand = \"sh build.sh\"\n")?;
    ws.file("build.sh", "head -c 3000000 /dev/zero | tr '\\0' x >out\n")?;
    Ok(())
}

/// Goal: a quota is told as such, nothing is half there, and what cannot be made real stays virtual.
#[test]
#[ignore = "wants loop devices; scripts/suites/hostile runs it"]
fn a_quota_shows_through_the_live_mount() -> TestResult {
    let ws = Workspace::new(Mode::Mounted)?.store_outside();
    with_quota(&ws)?;
    ws.mount()?;
    ws.run(["build"])?.stored_miss();
    ws.remove("out")?;
    ws.run(["build"])?.hit();
    let written = fill(&ws.path("big"), Errno::DQUOT)?;
    assert_eq!(ws.path("big").metadata()?.len(), written);
    for i in 0.. {
        // Small files have room in what is there already, for a while.
        let Err(refusal) = fs::write(ws.path(format!("f{i}")), [1; 1000]) else { continue };
        assert_eq!(refusal.raw_os_error(), Some(Errno::DQUOT.raw_os_error()));
        break;
    }
    assert_errno(fs::create_dir(ws.path("d")), Errno::DQUOT);
    assert_errno(std::os::unix::fs::symlink("x", ws.path("l")), Errno::DQUOT);
    assert!(!ws.exists("d") && !ws.exists("l"), "not half there");
    let open = File::options().append(true).open(ws.path("out"));
    assert_errno(open.and_then(|mut file| file.write_all(b"y")), Errno::DQUOT);
    let content = fs::read(ws.path("out"))?;
    assert_eq!((content.len(), content.iter().find(|byte| **byte != b'x')), (3_000_000, None));
    ws.remove("big")?;
    with_image(&ws, "sync -f \"$2\"")?;
    File::options().append(true).open(ws.path("out"))?.write_all(b"y")?;
    assert_eq!(ws.path("out").metadata()?.len(), 3_000_001);
    assert_sound(&ws)
}

/// Goal: a task hears of a quota, and may go on with less; a result that a quota keeps out of the workspace is an error.
#[test]
#[ignore = "wants loop devices; scripts/suites/hostile runs it"]
fn a_quota_shows_in_a_view() -> TestResult {
    let ws = Workspace::new(Mode::Unmounted)?;
    with_quota(&ws)?;
    ws.file(
        "build.sh",
        "if head -c 30000000 /dev/zero | tr '\\0' x >big 2>message; then exit 1; fi\n\
         rm big\n\
         sync .\n\
         grep -q 'quota exceeded' message\n\
         echo less >out\n",
    )?;
    ws.run(["build"])?.ok();
    assert_eq!(ws.read("out")?, "less\n");
    assert!(!ws.exists("big"));
    Ok(())
}

/// Goal: ten thousand open files and a hundred writers at once, through the live mount and in a view.
#[test]
#[ignore = "a minute on a busy machine; scripts/suites/hostile runs it"]
fn a_crowd_is_served() -> TestResult {
    let ws = Workspace::new(Mode::Mounted)?;
    // In memory, as is the store in it: how fast a disk makes files is not the question.
    mount("crowd", ws.root(), "tmpfs", MountFlags::empty(), c"size=400m")?;
    let ws = ws.config("")?;
    let program = ws.outside().join("crowd");
    compile_c(include_str!("failing_disk/crowd.c"), &program, &["-O1", "-pthread"])?;
    ws.mount()?;
    let status = Command::new(&program).current_dir(ws.root()).status()?;
    assert!(status.success(), "{status}");
    assert!(!ws.exists("crowd"), "nothing is left");
    ws.run(["--".as_ref(), program.as_os_str()])?.ok();
    Ok(())
}
