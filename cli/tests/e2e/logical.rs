//! A task's own earlier outputs never cause its miss; what others do to them does.

use crate::in_both_modes;
use crate::support::{Mode, TestResult, Workspace};

in_both_modes!(
    reading_then_overwriting_hits_on_the_second_run,
    emptying_the_output_directory_first_hits,
    listing_its_own_outputs_hits,
    an_incremental_script_keeps_a_complete_archive,
    make_keeps_a_complete_archive,
    an_edited_output_that_is_read_is_a_miss,
    an_edited_output_that_is_not_read_is_restored,
    appending_to_its_own_log_hits,
    clean_hides_earlier_outputs,
);

fn task(mode: Mode, script: &str) -> std::io::Result<Workspace> {
    task_with(mode, script, "")
}

fn task_with(mode: Mode, script: &str, settings: &str) -> std::io::Result<Workspace> {
    let ws =
        Workspace::new(mode)?.config(&format!("[tasks.build]\ncommand = \"sh build.sh\"\n{settings}\n"))?;
    ws.file("build.sh", script)?;
    ws.file("src/a", "a\n")?;
    ws.mount_if_asked()?;
    Ok(ws)
}

fn reading_then_overwriting_hits_on_the_second_run(mode: Mode) -> TestResult {
    let bump = "v=$(sed -n 's/.*\"version\": \\([0-9]*\\).*/\\1/p' package.json)\n\
        echo \"{ \\\"version\\\": $((v + 1)) }\" > package.json\n";
    let ws = task(mode, bump)?;
    ws.file("package.json", "{ \"version\": 1 }\n")?;
    ws.run(["build"])?.stored_miss();
    assert_eq!(ws.read("package.json")?, "{ \"version\": 2 }\n");
    ws.run(["build"])?.hit();
    assert_eq!(ws.read("package.json")?, "{ \"version\": 2 }\n");
    // The original content is what the run depended on, whoever brings it back.
    ws.file("package.json", "{ \"version\": 1 }\n")?;
    ws.run(["build"])?.hit();
    assert_eq!(ws.read("package.json")?, "{ \"version\": 2 }\n");
    // Other content, written by somebody else, is a change.
    ws.file("package.json", "{ \"version\": 7 }\n")?;
    ws.run(["build"])?.missed_because(&["package.json"]);
    assert_eq!(ws.read("package.json")?, "{ \"version\": 8 }\n");
    Ok(())
}

fn emptying_the_output_directory_first_hits(mode: Mode) -> TestResult {
    let ws = task(mode, "rm -rf dist\nmkdir dist\ncp src/a dist/a\n")?;
    ws.run(["build"])?.stored_miss();
    ws.run(["build"])?.hit();
    ws.run(["--force", "build"])?.stored_miss();
    ws.run(["build"])?.hit();
    ws.remove("dist")?;
    ws.run(["build"])?.hit();
    assert_eq!(ws.read("dist/a")?, "a\n");
    Ok(())
}

fn listing_its_own_outputs_hits(mode: Mode) -> TestResult {
    let ws = task(mode, "mkdir -p dist\nls -R . > /dev/null\nls dist\ncp src/a dist/a\n")?;
    ws.run(["build"])?.stored_miss();
    ws.run(["build"])?.hit();
    ws.file("dist/foreign", "")?;
    ws.run(["build"])?.missed_because(&["foreign"]);
    Ok(())
}

fn an_incremental_script_keeps_a_complete_archive(mode: Mode) -> TestResult {
    let script = "mkdir -p dist\n\
        for f in src/*; do o=dist/${f#src/}; cmp -s $f $o || { cp $f $o; echo built $o; }; done\n";
    let ws = task(mode, script)?;
    for i in 0..20 {
        ws.file(format!("src/f{i}"), format!("{i}\n"))?;
    }
    ws.run(["build"])?.stored_miss();
    ws.file("src/f7", "changed\n")?;
    let second = ws.run(["build"])?.stored_miss();
    assert_eq!(second.printed().matches("built dist/").count(), 1, "earlier outputs are visible\n{second}");
    assert!(second.number("outputs") >= 21, "the archive has all outputs, not the rewritten one\n{second}");
    ws.remove("dist")?;
    ws.run(["build"])?.hit();
    for i in 0..20 {
        let expected = if i == 7 { "changed\n".to_owned() } else { format!("{i}\n") };
        assert_eq!(ws.read(format!("dist/f{i}"))?, expected);
    }
    Ok(())
}

fn make_keeps_a_complete_archive(mode: Mode) -> TestResult {
    let ws = Workspace::new(mode)?.config("[tasks.build]\ncommand = \"make\"\n")?;
    ws.file("Makefile", "all: o/a o/b o/c\no/%: src/%\n\t@mkdir -p o\n\tcp $< $@\n")?;
    for name in ["a", "b", "c"] {
        ws.file(format!("src/{name}"), format!("{name}\n"))?;
    }
    ws.mount_if_asked()?;
    ws.run(["build"])?.stored_miss();
    // `make` compares times: a source must be younger than what was made of it.
    ws.file("src/b", "changed\n")?;
    let second = ws.run(["build"])?.stored_miss();
    assert_eq!(second.printed().matches("cp src/").count(), 1, "{second}");
    ws.remove("o")?;
    ws.run(["build"])?.hit();
    assert_eq!(
        (ws.read("o/a")?, ws.read("o/b")?, ws.read("o/c")?),
        ("a\n".into(), "changed\n".into(), "c\n".into())
    );
    // What is restored counts as made now: nothing is out of date.
    let third = ws.run(["--no-cache", "build"])?;
    assert_eq!(third.printed().matches("cp src/").count(), 0, "{third}");
    Ok(())
}

fn an_edited_output_that_is_read_is_a_miss(mode: Mode) -> TestResult {
    let ws = task(mode, "cat state 2>/dev/null\ncp src/a state\n")?;
    ws.run(["build"])?.stored_miss();
    ws.run(["build"])?.hit();
    ws.file("state", "edited by hand\n")?;
    let run = ws.run(["build"])?.missed_because(&["state"]);
    assert!(run.printed().contains("edited by hand"), "{run}");
    Ok(())
}

fn an_edited_output_that_is_not_read_is_restored(mode: Mode) -> TestResult {
    let ws = task(mode, "cat src/a > out\n")?;
    ws.run(["build"])?.stored_miss();
    ws.file("out", "edited by hand\n")?;
    // Opening for writing finds out that the file is there, so this may be a hit or a miss; either way the
    // task's output is in place afterwards.
    ws.run(["build"])?;
    assert_eq!(ws.read("out")?, "a\n");
    ws.run(["build"])?.hit();
    Ok(())
}

fn appending_to_its_own_log_hits(mode: Mode) -> TestResult {
    let ws = task(mode, "cat src/a >> log\n")?;
    ws.run(["build"])?.stored_miss();
    ws.run(["build"])?.hit();
    assert_eq!(ws.read("log")?, "a\n", "the first run's output, once");
    Ok(())
}

fn clean_hides_earlier_outputs(mode: Mode) -> TestResult {
    let ws =
        task_with(mode, "ls dist 2>/dev/null\nmkdir -p dist\ncp src/a dist/$(cat src/a)\n", "clean = true")?;
    ws.run(["build"])?.stored_miss();
    ws.file("src/a", "b\n")?;
    let second = ws.run(["build"])?.stored_miss();
    assert!(!second.printed().contains('a') || !second.stdout.starts_with(b"a\n"), "{second}");
    assert!(ws.exists("dist/b"));
    assert!(!ws.exists("dist/a"), "a clean run leaves only its own outputs");
    Ok(())
}
