//! Real projects: a C library under `make`, a Cargo workspace with dependencies, TypeScript with Vite.
//!
//! `scripts/fixtures` makes them, in `target/fixtures`.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::in_both_modes;
use crate::support::tree::{below, snapshot, without_times};
use crate::support::{Mode, TestResult, Workspace};

in_both_modes!(
    a_c_library_under_make,
    a_cargo_workspace,
    a_vite_project,
    an_incremental_typescript_compiler,
    a_second_clone_shares_the_store,
);

/// Returns a workspace with a copy of the fixture `name` in it.
fn project(mode: Mode, name: &str) -> Result<Workspace, Box<dyn std::error::Error>> {
    let ws = Workspace::new(mode)?.store_outside();
    copy_fixture(name, &ws)?;
    ws.mount_if_asked()?;
    Ok(ws)
}

fn copy_fixture(name: &str, ws: &Workspace) -> TestResult {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/fixtures").join(name);
    assert!(fixture.is_dir(), "{fixture:?} is missing: run scripts/fixtures");
    let mut from = fixture.into_os_string();
    from.push("/.");
    let status = Command::new("cp").arg("-r").arg(from).arg(ws.root()).status()?;
    assert!(status.success());
    Ok(())
}

/// Runs a program of the workspace with text on its input, and returns what it prints.
fn shell(ws: &Workspace, script: &str) -> Result<String, Box<dyn std::error::Error>> {
    let output = Command::new("sh").args(["-c", script]).current_dir(ws.root()).output()?;
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

/// Miss, hit in place, hit after removing `outputs`, and the tree is the same each time.
fn assert_cached(ws: &Workspace, task: &str, outputs: &[&str]) -> TestResult {
    ws.run([task])?.stored_miss();
    let built = snapshot(ws.root())?;
    ws.run([task])?.hit();
    assert!(snapshot(ws.root())? == built, "a hit in place changes nothing");
    for output in outputs {
        ws.remove(output)?;
    }
    ws.run([task])?.hit();
    let restored = snapshot(ws.root())?;
    assert_eq!(without_times(restored).keys().collect::<Vec<_>>(), built.keys().collect::<Vec<_>>());
    assert!(without_times(snapshot(ws.root())?) == without_times(built));
    Ok(())
}

fn a_c_library_under_make(mode: Mode) -> TestResult {
    let ws = project(mode, "c")?;
    assert_cached(&ws, "build", &["build"])?;
    assert_eq!(shell(&ws, "seq 1000 | build/squeeze | zstd -dc | tail -n 1")?, "1000\n");
    // One source changes: make compiles one file, and the archive is complete.
    let source = "lib/common/error_private.c";
    ws.file(source, ws.read(source)? + "\nint added_by_test;\n")?;
    let second = ws.run(["build"])?.missed_because(&[source]);
    assert_eq!(second.printed().matches(" -c -o ").count(), 1, "{second}");
    let built = below(snapshot(ws.root())?, "build");
    ws.remove("build")?;
    ws.run(["build"])?.hit();
    assert!(without_times(below(snapshot(ws.root())?, "build")) == without_times(built));
    // What was restored is up to date for make.
    let idle = ws.run(["--no-cache", "build"])?;
    assert_eq!(idle.printed().matches(" -c -o ").count(), 0, "{idle}");
    Ok(())
}

fn a_cargo_workspace(mode: Mode) -> TestResult {
    let ws = project(mode, "cargo")?;
    assert_cached(&ws, "build", &["target"])?;
    assert!(shell(&ws, "target/debug/app")?.starts_with("49 "));
    // Only what changed is compiled again, from restored fingerprints.
    let source = "shapes/src/lib.rs";
    ws.file(source, ws.read(source)?.replace("side * side", "side * side + 1"))?;
    let second = ws.run(["build"])?.missed_because(&[source]);
    assert!(!second.printed().contains("Compiling memchr"), "{second}");
    assert!(shell(&ws, "target/debug/app")?.starts_with("50 "));
    ws.remove("target")?;
    ws.run(["build"])?.hit();
    assert!(shell(&ws, "target/debug/app")?.starts_with("50 "));
    Ok(())
}

fn a_vite_project(mode: Mode) -> TestResult {
    let ws = project(mode, "ts")?;
    assert_cached(&ws, "build", &["dist"])?;
    let bundle = "cat dist/assets/*.js | wc -c";
    let size: u64 = shell(&ws, bundle)?.trim().parse()?;
    assert!(size > 50_000, "react and all: {size}");
    ws.file("src/show.ts", ws.read("src/show.ts")?.replace("HH:mm:ss", "mm:ss"))?;
    ws.run(["build"])?.missed_because(&["src/show.ts"]);
    Ok(())
}

fn an_incremental_typescript_compiler(mode: Mode) -> TestResult {
    let ws = project(mode, "ts")?;
    assert_cached(&ws, "typecheck", &["types"])?;
    // The compiler reads its own build info, and rewrites one file of three.
    ws.file("src/show.ts", ws.read("src/show.ts")?.replace("HH:mm:ss", "mm:ss"))?;
    let second = ws.run(["typecheck"])?.missed_because(&["src/show.ts"]);
    assert!(second.number("outputs") >= 7, "three modules, their types, and the build info\n{second}");
    ws.run(["typecheck"])?.hit();
    ws.remove("types")?;
    ws.run(["typecheck"])?.hit();
    assert!(ws.read("types/show.js")?.contains("\"mm:ss\"") && ws.exists("types/main.js"));
    assert!(ws.exists("types/.tsbuildinfo"));
    Ok(())
}

/// Goal: CI machines share a store. Method: a new copy at the same path, with other inodes and times.
fn a_second_clone_shares_the_store(mode: Mode) -> TestResult {
    let ws = project(mode, "c")?;
    ws.run(["build"])?.stored_miss();
    let built = below(snapshot(ws.root())?, "build");
    ws.vout(["unmount", "--discard"])?;
    ws.end_daemon()?;
    let entries: Vec<PathBuf> = std::fs::read_dir(ws.root())?.map(|entry| entry.unwrap().path()).collect();
    for entry in entries {
        ws.remove(entry)?;
    }
    copy_fixture("c", &ws)?;
    ws.mount_if_asked()?;
    ws.run(["build"])?.hit();
    assert!(without_times(below(snapshot(ws.root())?, "build")) == without_times(built));
    Ok(())
}
