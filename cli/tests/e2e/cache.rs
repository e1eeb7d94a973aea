//! The store: what it keeps, what it lets go, and who may share it.

use std::fs;

use crate::in_both_modes;
use crate::support::{Mode, TestResult, Workspace};

in_both_modes!(superseded_archives_do_not_pile_up, cleaning_removes_entries_and_archives);

fn workspace(mode: Mode) -> std::io::Result<Workspace> {
    let ws = Workspace::new(mode)?.store_outside().config("[tasks.build]\ncommand = \"sh build.sh\"\n")?;
    ws.file("build.sh", "cat in in > out\n")?;
    ws.file("in", "0\n")?;
    ws.mount_if_asked()?;
    Ok(ws)
}

/// A known fault of the system this replaces: each changed run left an archive behind.
fn superseded_archives_do_not_pile_up(mode: Mode) -> TestResult {
    let ws = workspace(mode)?;
    for i in 0..50 {
        ws.file("in", format!("{i}\n"))?;
        ws.run(["build"])?.stored_miss();
    }
    let entries = ws.status()?["entries"].as_u64().expect("a count");
    assert!((1..50).contains(&entries), "several per task, but not all: {entries}");
    assert_eq!(ws.archives()?.len() as u64, entries, "one archive per live entry");
    ws.end_daemon()?;
    ws.run(["build"])?.hit();
    assert_eq!(ws.archives()?.len() as u64, ws.status()?["entries"].as_u64().expect("a count"));
    Ok(())
}

fn cleaning_removes_entries_and_archives(mode: Mode) -> TestResult {
    let ws = workspace(mode)?;
    ws.run(["build"])?.stored_miss();
    ws.vout(["cache", "clean"])?.ok();
    assert_eq!(ws.status()?["entries"], 0);
    assert_eq!(ws.read("out")?, "0\n0\n", "what was put in place stays");
    ws.run(["build"])?.stored_miss();
    ws.vout(["unmount"])?.ok();
    ws.vout(["cache", "clean"])?.ok();
    assert_eq!(ws.archives()?, Vec::<std::path::PathBuf>::new());
    Ok(())
}

#[test]
fn the_cache_can_be_looked_at() -> TestResult {
    let ws = workspace(Mode::Unmounted)?;
    let run = ws.run(["build"])?.stored_miss();
    assert_eq!(
        String::from_utf8(ws.vout(["cache", "path"])?.ok().stdout)?.trim_end(),
        ws.store().to_str().unwrap()
    );
    let list = ws.vout(["cache", "list"])?.ok();
    assert!(list.printed().contains("build"), "{list}");
    let show = ws.vout(["cache", "show", "build"])?.ok();
    for word in ["build.sh", "in", "out"] {
        assert!(show.printed().contains(word), "{word}\n{show}");
    }
    assert_eq!(ws.archives()?, [std::path::PathBuf::from(run.text("archive"))]);
    Ok(())
}

#[test]
fn limits_of_the_configuration_hold() -> TestResult {
    let ws = workspace(Mode::Unmounted)?
        .config("[tasks.build]\ncommand = \"sh build.sh\"\n[cache]\nentries_per_task_max = 2\n")?;
    for i in 0..5 {
        ws.file("in", format!("{i}\n"))?;
        ws.run(["build"])?.stored_miss();
    }
    assert_eq!(ws.status()?["entries"], 2);
    assert_eq!(ws.archives()?.len(), 2);
    Ok(())
}

/// What a crash between storing an entry and removing the superseded archive leaves: a file nobody refers to.
#[test]
fn orphans_of_a_crash_are_swept_at_the_next_start() -> TestResult {
    let ws = workspace(Mode::Unmounted)?;
    ws.run(["build"])?.stored_miss();
    let archive = ws.archives()?.remove(0);
    ws.kill_daemon();
    let orphan = archive.with_file_name("01890a5d-ac96-774b-bcce-b302099a8057.tar.zst");
    fs::copy(&archive, &orphan)?;
    ws.run(["build"])?.hit();
    assert_eq!(ws.archives()?, [archive]);
    Ok(())
}

/// Sets the version that the store's database says it has.
fn set_database_version(ws: &Workspace, version: u32) -> TestResult {
    let database = rusqlite::Connection::open(ws.store().join("index.sqlite"))?;
    Ok(database.pragma_update(None, "user_version", version)?)
}

#[test]
fn a_store_of_an_older_version_is_reset() -> TestResult {
    let ws = workspace(Mode::Unmounted)?;
    ws.run(["build"])?.stored_miss();
    ws.end_daemon()?;
    // No release ever wrote version 0 with tables in it, so there is nothing to migrate.
    set_database_version(&ws, 0)?;
    ws.run(["build"])?.stored_miss();
    ws.run(["build"])?.hit();
    assert_eq!(ws.archives()?.len(), 1);
    Ok(())
}

#[test]
fn a_store_of_a_newer_version_is_refused() -> TestResult {
    let ws = workspace(Mode::Unmounted)?;
    ws.run(["build"])?.stored_miss();
    ws.end_daemon()?;
    set_database_version(&ws, 4_000_000)?;
    let refused = ws.try_run(["build"])?;
    assert_ne!(refused.status.code(), Some(0), "{refused}");
    assert!(refused.printed().contains("newer"), "{refused}");
    assert_eq!(ws.archives()?.len(), 1, "nothing of it is touched");
    Ok(())
}

#[test]
fn the_store_ignores_itself_in_git() -> TestResult {
    let ws = Workspace::with_config(Mode::Unmounted, "[tasks.build]\ncommand = \"touch out\"\n")?;
    ws.run(["build"])?.stored_miss();
    assert!(ws.path(".vout").is_dir());
    let git = |arguments: &[&str]| {
        std::process::Command::new("git").args(arguments).current_dir(ws.root()).output()
    };
    assert!(git(&["init", "-q"])?.status.success());
    let status = String::from_utf8(git(&["status", "--porcelain", "-uall"])?.stdout)?;
    assert!(status.contains("vout.toml") && !status.contains(".vout"), "{status}");
    Ok(())
}

#[test]
fn tasks_do_not_see_the_store() -> TestResult {
    let ws = Workspace::with_config(Mode::Unmounted, "[tasks.list]\ncommand = \"ls -A\"\n")?;
    ws.run(["list"])?.stored_miss();
    let again = ws.run(["--force", "-q", "list"])?;
    assert_eq!(again.stdout, b"vout.toml\n", "{again}");
    Ok(())
}
