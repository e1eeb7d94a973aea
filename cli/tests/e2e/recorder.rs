//! The recording against another observer: what `strace` saw of a task, natively and in a view.
//!
//! Each scenario runs twice. The first time natively, under `strace`; then the workspace is put back, and the
//! task runs in a view. A slow model of a view turns the system calls into what must have been recorded, and
//! that is compared path by path, with what was looked at, what was there, and what is there now. The task in
//! the view runs under `strace` too: names that are made up anew in each run must agree as well.

mod model;
mod observed;
mod strace;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use self::model::{Known, Recorded};
use crate::support::{Mode, TestResult, Workspace, compile_c};

/// Variables that tools need, in both runs.
const VARIABLES: [&str; 5] = ["PATH", "HOME", "CARGO_HOME", "RUSTUP_HOME", "RUSTUP_TOOLCHAIN"];

/// A difference between two observers that has a reason.
struct Explained {
    /// Its path; `?` stands for any character, `*` at the end for the rest.
    path: &'static str,
    /// Why it is right.
    #[expect(dead_code, reason = "for who reads the list")]
    because: &'static str,
}

/// A task and what it works on.
struct Scenario<'a> {
    ws: &'a Workspace,
    command: &'a [&'a str],
    /// Differences between the native run and the one in the view.
    explained: &'a [Explained],
}

impl Scenario<'_> {
    /// Runs the task both ways and compares.
    fn compare(&self) -> TestResult {
        let before = self.ws.outside().join("before");
        copy(self.ws.root(), &before)?;
        let log = self.ws.outside().join("native.strace");
        let status = Command::new("strace")
            .args(strace_arguments(&log))
            .args(self.command)
            .current_dir(self.ws.root())
            .env_clear()
            .envs(VARIABLES.iter().filter_map(|name| Some((name, std::env::var_os(name)?))))
            .stdin(std::process::Stdio::null())
            .status()?;
        assert!(status.success(), "the native run ended with {status}");
        let mut native = self.observed(&log, &before)?;

        let root = self.ws.root();
        for entry in fs::read_dir(root)? {
            let path = entry?.path();
            if path.symlink_metadata()?.is_dir() { fs::remove_dir_all(path)? } else { fs::remove_file(path)? }
        }
        copy(&before, root)?;
        let (log, recording) = (self.ws.outside().join("view.strace"), self.ws.outside().join("recording"));
        let mut arguments = vec!["--recording".to_owned(), recording.to_string_lossy().into()];
        arguments.extend(VARIABLES.iter().map(|name| format!("--env={name}")));
        arguments.extend(["--".to_owned(), "strace".to_owned()]);
        arguments.extend(strace_arguments(&log));
        arguments.extend(self.command.iter().map(|word| (*word).to_owned()));
        self.ws.run(&arguments)?.ok();
        let mut traced = self.observed(&log, &before)?;
        let mut recorded = read_recording(&recording)?;
        for known in [&mut native, &mut traced, &mut recorded] {
            forget_empty(known, &before);
        }

        assert_same("strace in the view", &traced, &recorded, &[]);
        assert_same("strace of the native run", &native, &recorded, self.explained);
        // For scripts/suites/recorder.
        let wrote = recorded.values().filter(|known| known.now.is_some()).count();
        writeln!(io::stdout(), "{}: {} paths, {wrote} changed", self.command.join(" "), recorded.len())?;
        Ok(())
    }

    fn observed(&self, log: &Path, before: &Path) -> io::Result<Recorded> {
        let calls = strace::parse(&fs::read_to_string(log)?);
        let observed = observed::observe(&calls, self.ws.root(), before);
        // As the recording shows names.
        let shown = |path: PathBuf| PathBuf::from(path.to_string_lossy().into_owned());
        Ok(observed.into_iter().map(|(path, known)| (shown(path), known)).collect())
    }
}

/// Leaves out that empty files were read, where the kernel opens files by itself: it asks for no content then, because
/// the probe told that there is none.
fn forget_empty(known: &mut Recorded, before: &Path) {
    if std::env::var_os("VOUT_PASSTHROUGH").is_none_or(|passthrough| passthrough != "0") {
        return;
    }
    for (path, known) in known {
        if before.join(path).symlink_metadata().is_ok_and(|meta| meta.is_file() && meta.len() == 0) {
            known.seen.remove("read");
        }
    }
}

fn strace_arguments(log: &Path) -> Vec<String> {
    let log = log.to_string_lossy();
    ["-f", "-qq", "-y", "-xx", "-s", "65535", "-e", strace::TRACED, "-e", "signal=none", "-o", &log]
        .map(str::to_owned)
        .into()
}

fn copy(from: &Path, to: &Path) -> TestResult {
    fs::create_dir_all(to)?;
    let status = Command::new("cp").arg("-a").arg(from.join(".")).arg(to).status()?;
    assert!(status.success());
    Ok(())
}

fn read_recording(path: &Path) -> Result<Recorded, Box<dyn std::error::Error>> {
    let mut recorded = BTreeMap::new();
    for line in fs::read_to_string(path)?.lines() {
        let line: Value = serde_json::from_str(line)?;
        let text = |key: &str| line[key].as_str().map(str::to_owned);
        let seen = line["seen"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let known = Known { seen: seen.map(str::to_owned).collect(), was: text("was"), now: text("now") };
        let path = text("path").unwrap_or_default();
        recorded.insert(if path == "." { PathBuf::new() } else { path.into() }, known);
    }
    Ok(recorded)
}

#[track_caller]
fn assert_same(observer: &str, observed: &Recorded, recorded: &Recorded, explained: &[Explained]) {
    let paths: BTreeSet<_> = observed.keys().chain(recorded.keys()).collect();
    let is_explained = |path: &Path| {
        let path = path.to_string_lossy();
        explained.iter().any(|known| matches(known.path, &path))
    };
    let differences: Vec<_> = paths
        .into_iter()
        .filter(|path| observed.get(*path) != recorded.get(*path) && !is_explained(path))
        .map(|path| {
            format!("{path:?}\n  observed {:?}\n  recorded {:?}", observed.get(path), recorded.get(path))
        })
        .collect();
    let count = differences.len();
    assert!(count == 0, "{count} differences from {observer}:\n{}", differences.join("\n"));
    assert!(!recorded.is_empty(), "something was recorded");
}

fn matches(pattern: &str, path: &str) -> bool {
    let (pattern, open) = pattern.strip_suffix('*').map_or((pattern, false), |pattern| (pattern, true));
    let same = pattern.chars().zip(path.chars()).all(|(wanted, found)| wanted == '?' || wanted == found);
    let (wanted, found) = (pattern.chars().count(), path.chars().count());
    same && (wanted == found || open && wanted < found)
}

/// Compiles a program into the workspace.
fn compile(ws: &Workspace, name: &str, source: &str, options: &[&str]) -> TestResult {
    compile_c(source, &ws.path(name), options)
}

#[test]
fn a_script_full_of_tricks() -> TestResult {
    let ws = Workspace::new(Mode::Unmounted)?.store_outside().config("")?;
    for (path, content) in [
        ("tricks.sh", include_str!("recorder/tricks.sh")),
        ("src/a.txt", "a\n"),
        ("src/b.txt", "b\n"),
        ("src/deep/er/c.txt", "c\n"),
        ("src/empty/.keep", ""),
        ("moved/x", "x\n"),
        ("moved/sub/y", "y\n"),
        ("full/z", "z\n"),
        ("old/out.txt", "old\n"),
        ("old/gone.txt", "gone\n"),
        ("bin/tool", "#!bin/interpreter\nnever read by a shell\n"),
    ] {
        ws.file(path, content)?;
    }
    let set_up = "\
        cp /bin/cat bin/interpreter && chmod +x bin/tool
        ln -s src/a.txt link && ln -s link link2 && ln -s ../link2 src/link3 && ln -s src/deep dirlink
        ln -s missing dangling && ln -s loop2 loop1 && ln -s loop1 loop2 && ln -s \"$PWD/src\" absolute
        ln -s tool bin/alias && ln src/b.txt src/b2.txt && ln src/b.txt old/b3.txt
        mkdir void && mkfifo pipe && printf x > \"$(printf 'name \\377 \\n')\"
        mkdir links && for name in retimed moved linked; do ln -s ../nowhere links/$name; done";
    let status = Command::new("sh").args(["-ec", set_up]).current_dir(ws.root()).status()?;
    assert!(status.success());
    let explained = [Explained { path: "tmp.??????????", because: "mktemp makes up another name each time" }];
    Scenario { ws: &ws, command: &["sh", "tricks.sh"], explained: &explained }.compare()
}

#[test]
fn a_static_program() -> TestResult {
    let ws = Workspace::new(Mode::Unmounted)?.store_outside().config("")?;
    ws.file("in/a", "a\n")?;
    compile(&ws, "walk", include_str!("recorder/walk.c"), &["-static"])?;
    Scenario { ws: &ws, command: &["./walk"], explained: &[] }.compare()
}

#[test]
fn a_program_without_a_c_library() -> TestResult {
    let ws = directory_of_letters()?;
    compile(&ws, "raw", include_str!("recorder/raw.c"), &["-static", "-nostdlib", "-ffreestanding"])?;
    Scenario { ws: &ws, command: &["./raw"], explained: &[] }.compare()
}

/// `strace` is blind here, so what must be recorded is written down.
#[test]
fn a_program_that_works_through_a_ring() -> TestResult {
    let ws = directory_of_letters()?;
    compile(&ws, "ring", include_str!("recorder/ring.c"), &[])?;
    let recording = ws.outside().join("recording");
    let arguments = ["--recording".as_ref(), recording.as_os_str(), "--".as_ref(), "./ring".as_ref()];
    let output = ws.run(arguments)?;
    if output.status.code() == Some(77) {
        // Containers often deny rings; then no task has them either.
        return Ok(());
    }
    output.ok();
    let known = |seen: &[&str], was: Option<&str>, now: Option<&str>| Known {
        seen: seen.iter().map(|part| (*part).to_owned()).collect(),
        was: was.map(str::to_owned),
        now: now.map(str::to_owned),
    };
    let expected = [
        ("in", known(&["probe"], Some("directory"), None)),
        ("in/a", known(&["probe", "read"], Some("file"), None)),
        ("in/b", known(&["probe"], Some("file"), None)),
        ("in/c", known(&["probe"], Some("file"), Some("absent"))),
        ("in/link", known(&["link", "probe"], Some("link"), None)),
        ("in/missing", known(&["probe"], Some("absent"), None)),
        ("out", known(&["probe"], Some("absent"), Some("directory"))),
        ("out/whole", known(&[], None, Some("file"))),
        ("ring", known(&["probe", "read"], Some("file"), None)),
    ];
    let expected = expected.into_iter().map(|(path, known)| (path.into(), known)).collect();
    assert_same("what was written down", &expected, &read_recording(&recording)?, &[]);
    Ok(())
}

/// Goal: what real tools do, whatever that is. `scripts/suites/recorder` runs these.
#[test]
#[ignore = "a minute; scripts/suites/recorder runs it"]
fn a_c_library_under_make() -> TestResult {
    let ws = project("c")?;
    Scenario { ws: &ws, command: &["make", "-j2"], explained: &[] }.compare()
}

#[test]
#[ignore = "minutes; scripts/suites/recorder runs it"]
fn a_cargo_workspace() -> TestResult {
    let ws = project("cargo")?;
    let explained = [
        Explained {
            path: "target/debug/incremental/*",
            because: "sessions are named by the time and by random numbers",
        },
        Explained { path: "target??????", because: "target is made under a random name, and then renamed" },
    ];
    Scenario { ws: &ws, command: &["cargo", "build", "--offline"], explained: &explained }.compare()
}

#[test]
#[ignore = "minutes; scripts/suites/recorder runs it"]
fn a_vite_project() -> TestResult {
    let ws = project("ts")?;
    Scenario { ws: &ws, command: &["node_modules/.bin/vite", "build"], explained: &[] }.compare()
}

#[test]
#[ignore = "minutes; scripts/suites/recorder runs it"]
fn packages_from_npm() -> TestResult {
    let ws = project("ts")?;
    fs::remove_dir_all(ws.path("node_modules"))?;
    let command = ["npm", "ci", "--no-audit", "--no-fund"];
    Scenario { ws: &ws, command: &command, explained: &[] }.compare()
}

/// Returns a workspace with a copy of a project that `scripts/fixtures` makes.
fn project(name: &str) -> Result<Workspace, Box<dyn std::error::Error>> {
    let ws = Workspace::new(Mode::Unmounted)?.store_outside();
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/fixtures").join(name);
    assert!(fixture.is_dir(), "{fixture:?} is missing: run scripts/fixtures");
    copy(&fixture, ws.root())?;
    Ok(ws)
}

fn directory_of_letters() -> io::Result<Workspace> {
    let ws = Workspace::new(Mode::Unmounted)?.store_outside().config("")?;
    for name in ["a", "b", "c"] {
        ws.file(format!("in/{name}"), name)?;
    }
    std::os::unix::fs::symlink("a", ws.path("in/link"))?;
    Ok(ws)
}
