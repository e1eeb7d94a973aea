//! Several runs at once: each in its own view, and what they do to each other.

use std::fs;

use crate::in_both_modes;
use crate::support::{Mode, TestResult, Workspace};

in_both_modes!(
    two_tasks_run_in_their_own_views,
    a_hazard_between_two_tasks_is_named,
    the_same_task_twice_at_once_ends_well,
    dependencies_run_first_and_feed_each_other,
    a_run_inside_a_task_belongs_to_it,
);

/// Shell text that makes a signal.
fn give(ws: &Workspace, name: &str) -> String {
    format!(": > '{}'\n", ws.signal(name).display())
}

/// Shell text that waits for a signal.
fn wait_for(ws: &Workspace, name: &str) -> String {
    format!("until [ -e '{}' ]; do sleep 0.02; done\n", ws.signal(name).display())
}

fn two_tasks(mode: Mode) -> std::io::Result<Workspace> {
    let ws = Workspace::new(mode)?
        .config("[tasks.one]\ncommand = \"sh one.sh\"\n[tasks.two]\ncommand = \"sh two.sh\"\n")?;
    ws.file("shared", "old\n")?;
    ws.mount_if_asked()?;
    Ok(ws)
}

fn two_tasks_run_in_their_own_views(mode: Mode) -> TestResult {
    let ws = two_tasks(mode)?;
    ws.file(
        "one.sh",
        format!("echo 1 > one.out\n{}{}ls > one.list\n", give(&ws, "one"), wait_for(&ws, "two")),
    )?;
    ws.file(
        "two.sh",
        format!("echo 2 > two.out\n{}{}ls > two.list\n", give(&ws, "two"), wait_for(&ws, "one")),
    )?;
    // `one` ends only after `two` has begun, and the other way round.
    let (one, two) = (ws.start_run(["one"])?, ws.start_run(["two"])?);
    ws.await_signal("one");
    ws.await_signal("two");
    ws.finish(one)?.ok();
    ws.finish(two)?.ok();
    assert_eq!((ws.read("one.out")?, ws.read("two.out")?), ("1\n".into(), "2\n".into()));
    assert!(ws.read("one.list")?.contains("one.out") && ws.read("two.list")?.contains("two.out"));
    Ok(())
}

fn a_hazard_between_two_tasks_is_named(mode: Mode) -> TestResult {
    let ws = two_tasks(mode)?;
    ws.file("one.sh", format!("cat shared > one.out\n{}{}", give(&ws, "read"), wait_for(&ws, "written")))?;
    ws.file("two.sh", "echo new > shared\n")?;
    let one = ws.start_run(["one"])?;
    ws.await_signal("read");
    ws.run(["two"])?.stored_miss();
    ws.give_signal("written")?;
    let hazard = ws.finish(one)?.code(0).not_stored(&["two", "shared"]);
    for word in ["one", "two", "shared"] {
        assert!(hazard.printed().contains(word), "{word} is not said\n{hazard}");
    }
    assert_eq!((ws.read("one.out")?, ws.read("shared")?), ("old\n".into(), "new\n".into()));
    let again = ws.run(["one"])?;
    assert_eq!(again.task()["status"], "miss", "nothing was stored before\n{again}");
    assert_eq!(ws.read("one.out")?, "new\n");
    Ok(())
}

fn the_same_task_twice_at_once_ends_well(mode: Mode) -> TestResult {
    let ws = two_tasks(mode)?;
    ws.file(
        "one.sh",
        "rm -rf dist\nmkdir dist\nfor i in $(seq 30); do cat shared > dist/$i; done\necho said\n",
    )?;
    let runs = [ws.start_run(["one"])?, ws.start_run(["one"])?];
    for run in runs {
        let run = ws.finish(run)?.ok();
        assert!(run.printed().contains("said"), "{run}");
    }
    for i in 1..=30 {
        assert_eq!(ws.read(format!("dist/{i}"))?, "old\n");
    }
    ws.run(["one"])?;
    ws.remove("dist")?;
    ws.run(["one"])?.hit();
    assert_eq!(fs::read_dir(ws.path("dist"))?.count(), 30);
    Ok(())
}

fn dependencies_run_first_and_feed_each_other(mode: Mode) -> TestResult {
    let config = "[tasks.two]\ncommand = \"sh two.sh\"\ndepends_on = [\"one\"]\n[tasks.one]\ncommand = \"sh one.sh\"\n";
    let ws = Workspace::new(mode)?.config(config)?;
    ws.file("one.sh", "mkdir -p gen\ncat in > gen/code\n")?;
    ws.file("two.sh", "cat gen/code gen/code > final\n")?;
    ws.file("in", "a\n")?;
    ws.mount_if_asked()?;
    let statuses = |arguments: &[&str]| -> std::io::Result<Vec<(String, String)>> {
        let run = ws.run(arguments)?;
        let text = |task: &serde_json::Value, key: &str| task[key].as_str().unwrap_or_default().to_owned();
        Ok(run.report.iter().map(|task| (text(task, "task"), text(task, "status"))).collect())
    };
    let both =
        |status: &str| vec![("one".to_owned(), status.to_owned()), ("two".to_owned(), status.to_owned())];
    assert_eq!(statuses(&["two"])?, both("miss"));
    ws.remove("gen")?;
    ws.remove("final")?;
    assert_eq!(statuses(&["two"])?, both("hit"));
    assert_eq!(ws.read("final")?, "a\na\n");
    ws.file("in", "b\n")?;
    assert_eq!(statuses(&["two"])?, both("miss"));
    assert_eq!(ws.read("final")?, "b\nb\n");
    ws.file("in", "a\n")?;
    assert_eq!(statuses(&["two"])?, both("hit"));
    assert_eq!(ws.read("final")?, "a\na\n");
    Ok(())
}

fn a_run_inside_a_task_belongs_to_it(mode: Mode) -> TestResult {
    let vout = env!("CARGO_BIN_EXE_vout");
    let config = format!(
        "[tasks.outer]\ncommand = \"sh outer.sh '{vout}'\"\n[tasks.inner]\ncommand = \"sh inner.sh\"\n"
    );
    let ws = Workspace::new(mode)?.config(&config)?;
    ws.file("outer.sh", "echo o > outer.out\n\"$1\" run inner\n")?;
    ws.file("inner.sh", "cat in > inner.out\n")?;
    ws.file("in", "1\n")?;
    ws.mount_if_asked()?;
    ws.run(["outer"])?.stored_miss();
    ws.remove("inner.out")?;
    ws.remove("outer.out")?;
    ws.run(["outer"])?.hit();
    assert_eq!((ws.read("inner.out")?, ws.read("outer.out")?), ("1\n".into(), "o\n".into()));
    ws.file("in", "2\n")?;
    ws.run(["outer"])?.missed_because(&["in"]);
    assert_eq!(ws.read("inner.out")?, "2\n");
    Ok(())
}

#[test]
fn a_task_reads_what_another_ones_lazy_layer_provides() -> TestResult {
    let ws = Workspace::new(Mode::Mounted)?
        .config("[tasks.gen]\ncommand = \"sh gen.sh\"\n[tasks.use]\ncommand = \"sh use.sh\"\n")?;
    ws.file("gen.sh", "mkdir -p dist\nfor i in $(seq 40); do cat in > dist/$i; done\n")?;
    ws.file("use.sh", "cat dist/7 dist/8 > used\n")?;
    ws.file("in", "one\n")?;
    ws.mount()?;
    ws.run(["gen"])?.stored_miss();
    ws.remove("dist")?;
    ws.run(["gen"])?.hit();
    let layer = &ws.status()?["layers"][0];
    assert_eq!((&layer["task"], &layer["virtual_files"]), (&"gen".into(), &40.into()), "{layer}");
    ws.run(["use"])?.stored_miss();
    assert_eq!(ws.read("used")?, "one\none\n");
    let virtual_files = ws.status()?["layers"][0]["virtual_files"].as_u64().expect("a count");
    assert!((1..=40).contains(&virtual_files), "most was not read: {virtual_files}");
    ws.run(["use"])?.hit();
    ws.file("in", "two\n")?;
    ws.run(["gen"])?.stored_miss();
    ws.run(["use"])?.missed_because(&["dist/7"]);
    ws.file("in", "one\n")?;
    ws.run(["gen"])?.hit();
    ws.run(["use"])?.hit();
    assert_eq!(ws.read("used")?, "one\none\n");
    ws.vout(["unmount"])?.ok();
    assert_eq!(fs::read_dir(ws.path("dist"))?.count(), 40);
    assert_eq!(ws.read("dist/40")?, "one\n");
    Ok(())
}
