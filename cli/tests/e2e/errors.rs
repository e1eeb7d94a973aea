//! Exit codes, and what is said where something is wrong with the request.

use crate::in_both_modes;
use crate::support::{Mode, TestResult, Workspace};

in_both_modes!(
    exit_codes_are_those_of_a_shell,
    a_failing_task_keeps_its_files_and_caches_nothing,
    a_failing_task_may_discard_its_files
);

fn exit_codes_are_those_of_a_shell(mode: Mode) -> TestResult {
    let ws = Workspace::with_config(mode, "")?;
    ws.file("not-executable", "")?;
    for (command, code) in [
        (&["sh", "-c", "exit 7"][..], 7),
        (&["no-such-program-anywhere"], 127),
        (&["./not-executable"], 126),
        (&["sh", "-c", "kill -TERM $$"], 143),
        (&["sh", "-c", "kill -KILL $$"], 137),
    ] {
        let run = ws.try_run(["--"].iter().chain(command))?.code(code);
        assert_eq!(run.task()["exit_code"], code, "{run}");
        assert_eq!(run.task()["status"], "failed", "{run}");
        assert_eq!(run.task()["stored"], false, "{run}");
    }
    Ok(())
}

fn a_failing_task_keeps_its_files_and_caches_nothing(mode: Mode) -> TestResult {
    let ws = Workspace::with_config(mode, "[tasks.test]\ncommand = \"sh test.sh\"\n")?;
    ws.file("test.sh", "echo 'one failed' > report.txt\nexit 3\n")?;
    for _ in 0..2 {
        let run = ws.try_run(["test"])?.code(3);
        assert_eq!(run.task()["status"], "failed", "{run}");
        assert_eq!(run.task()["stored"], false, "{run}");
    }
    assert_eq!(ws.read("report.txt")?, "one failed\n");
    assert_eq!(ws.status()?["entries"], 0);
    Ok(())
}

fn a_failing_task_may_discard_its_files(mode: Mode) -> TestResult {
    let ws =
        Workspace::with_config(mode, "[tasks.test]\ncommand = \"sh test.sh\"\ndiscard_on_failure = true\n")?;
    ws.file("test.sh", "echo partial > out\nrm keep\nexit 1\n")?;
    ws.file("keep", "kept\n")?;
    ws.try_run(["test"])?.code(1);
    assert!(!ws.exists("out"));
    assert_eq!(ws.read("keep")?, "kept\n");
    Ok(())
}

/// Expects that `vout run build` refuses this `vout.toml`, with exit code 2 and all of `words`.
#[track_caller]
fn assert_refused(config: &str, words: &[&str]) {
    let ws = Workspace::new(Mode::Unmounted).unwrap().config(config).unwrap();
    let refused = ws.try_run(["build"]).unwrap().code(2);
    for word in words {
        assert!(refused.printed().contains(word), "{word:?} is missing\n{refused}");
    }
}

#[test]
fn an_unknown_key_is_named_with_its_line_and_the_nearest_valid_one() {
    assert_refused(
        "[tasks.build]\ncommand = \"true\"\noutptu = []\n",
        &["vout.toml", "3", "outptu", "output"],
    );
}

#[test]
fn a_bad_glob_is_named_with_its_line() {
    assert_refused(
        "[tasks.build]\ncommand = \"true\"\noutput = [\"dist/[\"]\n",
        &["vout.toml", "3", "dist/["],
    );
}

#[test]
fn a_cycle_is_named() {
    let config = "[tasks.build]\ncommand = \"true\"\ndepends_on = [\"lint\"]\n\
        [tasks.lint]\ncommand = \"true\"\ndepends_on = [\"build\"]\n";
    assert_refused(config, &["vout.toml", "build", "lint"]);
}

#[test]
fn an_unknown_task_is_named_with_the_nearest_one() {
    assert_refused("[tasks.buidl]\ncommand = \"true\"\n", &["build", "buidl"]);
}

#[test]
fn a_syntax_error_is_named_with_its_line() {
    assert_refused("[tasks.build]\ncommand = \n", &["vout.toml", "2"]);
}

#[test]
fn tasks_without_a_configuration_are_refused_with_a_sentence() -> TestResult {
    let ws = Workspace::new(Mode::Unmounted)?;
    std::fs::create_dir(ws.path(".git"))?;
    let refused = ws.try_run(["build"])?.code(2);
    assert!(refused.printed().contains("vout.toml"), "{refused}");
    Ok(())
}

#[test]
fn wrong_usage_exits_with_2() -> TestResult {
    let ws = Workspace::new(Mode::Unmounted)?.config("")?;
    for arguments in [&["run"][..], &["run", "--no-such-option", "--", "true"], &["no-such-command"]] {
        ws.vout(arguments)?.code(2);
    }
    Ok(())
}

#[test]
fn the_doctor_says_what_this_machine_can_do() -> TestResult {
    let ws = Workspace::new(Mode::Unmounted)?.config("")?;
    let doctor = ws.vout(["doctor"])?;
    assert!(doctor.printed().contains("/dev/fuse"), "{doctor}");
    Ok(())
}
