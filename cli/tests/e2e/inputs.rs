//! What a run depends on: reads, missing files, listings, programs; and how a miss says what changed.

use std::process::Command;

use crate::in_both_modes;
use crate::support::{Mode, TestResult, Workspace};

in_both_modes!(
    a_changed_file_is_named,
    a_missing_file_that_appears_is_named,
    a_changed_listing_is_named,
    a_removed_input_is_named,
    a_link_that_points_elsewhere_is_a_miss,
    earlier_inputs_hit_again,
    touching_without_changing_hits,
    reads_below_other_directories_are_seen,
    statically_linked_programs_are_seen,
    force_runs_and_stores_anew,
    no_cache_neither_looks_nor_stores,
    ad_hoc_commands_are_cached,
    the_report_has_all_its_fields,
);

fn task(mode: Mode, script: &str) -> std::io::Result<Workspace> {
    let ws = Workspace::new(mode)?.config("[tasks.build]\ncommand = \"sh build.sh\"\n")?;
    ws.file("build.sh", script)?;
    ws.file("src/a.txt", "a\n")?;
    ws.file("src/b.txt", "b\n")?;
    ws.mount_if_asked()?;
    Ok(ws)
}

fn a_changed_file_is_named(mode: Mode) -> TestResult {
    let ws = task(mode, "cat src/a.txt > out\n")?;
    ws.run(["build"])?.stored_miss();
    ws.file("src/b.txt", "not read\n")?;
    ws.run(["build"])?.hit();
    ws.file("src/a.txt", "changed\n")?;
    ws.run(["build"])?.missed_because(&["src/a.txt"]);
    assert_eq!(ws.read("out")?, "changed\n");
    let why = ws.vout(["why", "build"])?.ok();
    assert!(why.printed().contains("src/a.txt"), "{why}");
    Ok(())
}

fn a_missing_file_that_appears_is_named(mode: Mode) -> TestResult {
    let ws = task(mode, "if [ -e local.conf ]; then cat local.conf > out; else echo default > out; fi\n")?;
    ws.run(["build"])?.stored_miss();
    ws.run(["build"])?.hit();
    ws.file("local.conf", "mine\n")?;
    ws.run(["build"])?.missed_because(&["local.conf"]);
    assert_eq!(ws.read("out")?, "mine\n");
    ws.remove("local.conf")?;
    ws.run(["build"])?.hit();
    assert_eq!(ws.read("out")?, "default\n");
    Ok(())
}

fn a_changed_listing_is_named(mode: Mode) -> TestResult {
    let ws = task(mode, "ls src > out\n")?;
    ws.run(["build"])?.stored_miss();
    ws.file("src/c.txt", "")?;
    ws.run(["build"])?.missed_because(&["c.txt", "src"]);
    assert_eq!(ws.read("out")?, "a.txt\nb.txt\nc.txt\n");
    ws.remove("src/a.txt")?;
    ws.run(["build"])?.missed_because(&["a.txt", "src"]);
    Ok(())
}

fn a_removed_input_is_named(mode: Mode) -> TestResult {
    let ws = task(mode, "cat src/a.txt > out 2>/dev/null || echo none > out\n")?;
    ws.run(["build"])?.stored_miss();
    ws.remove("src/a.txt")?;
    ws.run(["build"])?.missed_because(&["src/a.txt"]);
    assert_eq!(ws.read("out")?, "none\n");
    Ok(())
}

fn a_link_that_points_elsewhere_is_a_miss(mode: Mode) -> TestResult {
    let ws = task(mode, "cat current > out\n")?;
    std::os::unix::fs::symlink("src/a.txt", ws.path("current"))?;
    ws.run(["build"])?.stored_miss();
    ws.run(["build"])?.hit();
    ws.remove("current")?;
    std::os::unix::fs::symlink("src/b.txt", ws.path("current"))?;
    ws.run(["build"])?.missed_because(&["current"]);
    assert_eq!(ws.read("out")?, "b\n");
    Ok(())
}

fn earlier_inputs_hit_again(mode: Mode) -> TestResult {
    let ws = task(mode, "cat src/a.txt > out\n")?;
    ws.run(["build"])?.stored_miss();
    ws.file("src/a.txt", "other\n")?;
    ws.run(["build"])?.stored_miss();
    ws.file("src/a.txt", "a\n")?;
    ws.run(["build"])?.hit();
    assert_eq!(ws.read("out")?, "a\n");
    ws.file("src/a.txt", "other\n")?;
    ws.run(["build"])?.hit();
    assert_eq!(ws.read("out")?, "other\n");
    Ok(())
}

fn touching_without_changing_hits(mode: Mode) -> TestResult {
    let ws = task(mode, "cat src/a.txt > out\n")?;
    ws.run(["build"])?.stored_miss();
    ws.file("src/a.txt", "a\n")?;
    ws.run(["build"])?.hit();
    Ok(())
}

fn reads_below_other_directories_are_seen(mode: Mode) -> TestResult {
    let ws = Workspace::new(mode)?.config("[tasks.build]\ncommand = \"sh build.sh\"\ncwd = \"app\"\n")?;
    ws.file("app/build.sh", "cat ../lib/x \"$PWD/../lib/y\" > out\n")?;
    ws.file("lib/x", "x\n")?;
    ws.file("lib/y", "y\n")?;
    ws.mount_if_asked()?;
    ws.run(["build"])?.stored_miss();
    ws.file("lib/x", "changed\n")?;
    ws.run(["build"])?.missed_because(&["lib/x"]);
    // By its absolute path.
    ws.file("lib/y", "changed\n")?;
    ws.run(["build"])?.missed_because(&["lib/y"]);
    Ok(())
}

/// A tracer in the C library does not see what a static program does; a file system does.
fn statically_linked_programs_are_seen(mode: Mode) -> TestResult {
    const COPY: &str = "\
#include <stdio.h>
int main(void) {
    FILE *in = fopen(\"src/a.txt\", \"r\"), *out = fopen(\"out\", \"w\");
    for (int c; (c = getc(in)) != EOF;) putc(c, out);
    return fclose(out);
}
";
    let ws = Workspace::new(mode)?.config("[tasks.build]\ncommand = \"./copy\"\n")?;
    ws.file("src/a.txt", "a\n")?;
    ws.file("copy.c", COPY)?;
    let compiled =
        Command::new("gcc").args(["-static", "-o", "copy", "copy.c"]).current_dir(ws.root()).status()?;
    assert!(compiled.success());
    ws.mount_if_asked()?;
    ws.run(["build"])?.stored_miss();
    ws.remove("out")?;
    ws.run(["build"])?.hit();
    assert_eq!(ws.read("out")?, "a\n");
    ws.file("src/a.txt", "b\n")?;
    ws.run(["build"])?.missed_because(&["src/a.txt"]);
    Ok(())
}

fn force_runs_and_stores_anew(mode: Mode) -> TestResult {
    let ws = task(mode, "cat src/a.txt > out\n")?;
    let first = ws.run(["build"])?.stored_miss();
    let again = ws.run(["--force", "build"])?.stored_miss();
    assert!(first.text("archive") != again.text("archive"), "{first}{again}");
    ws.run(["build"])?.hit();
    Ok(())
}

fn no_cache_neither_looks_nor_stores(mode: Mode) -> TestResult {
    let ws = task(mode, "cat src/a.txt > out\necho ran\n")?;
    let run = ws.run(["--no-cache", "build"])?;
    assert_eq!(run.task()["status"], "uncached", "{run}");
    assert_eq!(run.task()["stored"], false, "{run}");
    assert_eq!(ws.read("out")?, "a\n");
    assert_eq!(ws.run(["build"])?.stored_miss().number("exit_code"), 0);
    let run = ws.run(["--no-cache", "build"])?;
    assert_eq!(run.task()["status"], "uncached", "{run}");
    Ok(())
}

fn ad_hoc_commands_are_cached(mode: Mode) -> TestResult {
    let ws = Workspace::new(mode)?.config("")?;
    ws.file("in", "in\n")?;
    ws.mount_if_asked()?;
    let copy = ["--output", "dist/**", "--", "sh", "-c", "mkdir -p dist && cp in dist/out && touch other"];
    ws.run(copy)?.stored_miss();
    ws.remove("dist")?;
    ws.remove("other")?;
    ws.run(copy)?.hit();
    assert_eq!(ws.read("dist/out")?, "in\n");
    assert!(!ws.exists("other"));
    let everything = ["--", "sh", "-c", "mkdir -p dist && cp in dist/out && touch other"];
    ws.run(everything)?.stored_miss();
    Ok(())
}

fn the_report_has_all_its_fields(mode: Mode) -> TestResult {
    let ws = task(mode, "cat src/a.txt > out\n")?;
    let miss = ws.run(["build"])?;
    let hit = ws.run(["build"])?;
    for output in [&miss, &hit] {
        let task = output.task();
        assert_eq!(task["task"], "build", "{output}");
        assert_eq!(task["exit_code"], 0, "{output}");
        for key in ["duration_ms", "saved_ms", "inputs", "outputs", "output_bytes"] {
            assert!(task[key].is_u64(), "{key}\n{output}");
        }
        for key in ["reason", "archive", "stored", "not_stored_reason"] {
            assert!(task.get(key).is_some(), "{key}\n{output}");
        }
        assert_eq!(task["output_bytes"], 2, "{output}");
        assert!(output.text("archive").ends_with(".tar.zst"), "{output}");
    }
    assert_eq!((miss.task()["status"].as_str(), hit.task()["status"].as_str()), (Some("miss"), Some("hit")));
    assert_eq!(miss.text("archive"), hit.text("archive"));
    Ok(())
}
