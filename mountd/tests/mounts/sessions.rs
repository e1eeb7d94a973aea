//! Sessions of views: terminal files, and how sessions end.

use std::fs;
use std::io::{self, Read};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use vout::report::{Chunk, Stream};
use vout_mountd::adapter::AdapterOptions;
use vout_mountd::session::SessionEnd;
use vout_mountd::terminal::{OutputSink, Terminal};

use crate::support::{MemoryFs, Mounted, PATIENCE, Shown, ViewScript, serving};

/// Opens both terminal files as a runner does, and then lets the test say when to go on.
const OPEN_TERMINAL: &str = "exec 3>&1 >>.vout-stdout 2>>.vout-stderr; echo open >&3\n";

fn view(script: &str) -> io::Result<ViewScript> {
    ViewScript::start(Arc::new(MemoryFs::new(true)), None, script)
}

fn view_with_terminal(script: &str) -> io::Result<(ViewScript, Arc<Terminal>, Shown)> {
    let shown = Shown::default();
    let terminal = Terminal::start(Box::new(shown.clone()))?;
    let fs = Arc::new(MemoryFs::new(true));
    let script = OPEN_TERMINAL.to_owned() + script;
    let mut view = ViewScript::start(fs, Some(Arc::clone(&terminal)), &script)?;
    assert_eq!(view.line()?, "open");
    Ok((view, terminal, shown))
}

fn text(chunks: &[Chunk], stream: Stream) -> String {
    let chunks = chunks.iter().filter(|chunk| chunk.stream == stream);
    chunks.map(|chunk| String::from_utf8_lossy(&chunk.bytes).into_owned()).collect()
}

#[test]
fn a_session_ends_with_the_last_process_of_its_namespace() -> io::Result<()> {
    let mut view = view("echo x > file; cat file; (exec 1>&-; sleep 0.3) & exit 0")?;
    assert_eq!(view.line()?, "x");
    assert!(view.child.wait()?.success());
    // The background process still holds it.
    assert_eq!(view.session.end(), None);
    assert_eq!(view.session.wait(PATIENCE), Some(SessionEnd::Unmounted));
    Ok(())
}

#[test]
fn an_aborted_view_answers_nothing_any_more() -> io::Result<()> {
    let script =
        "echo x > file; echo ready >&2; echo ready; sleep 0.5; cat file; echo $?; echo y > new; echo $?";
    let mut view = view(script)?;
    assert_eq!(view.line()?, "ready");
    view.session.abort();
    assert_eq!(view.session.wait(PATIENCE), Some(SessionEnd::Aborted));
    assert_eq!((view.line()?, view.line()?), ("1".into(), "2".into()));
    Ok(())
}

/// Goal: the order between the two streams is exact. Method: one process alternates 1,000 writes.
#[test]
fn terminal_output_keeps_its_order_across_streams() -> io::Result<()> {
    let script = "i=0; while [ $i -lt 500 ]; do echo out$i; echo err$i >&2; i=$((i+1)); done";
    let (mut view, terminal, shown) = view_with_terminal(script)?;
    terminal.seal();
    assert!(view.child.wait()?.success());
    terminal.flush();
    let log = terminal.take_log();
    assert_eq!(log.len(), 1000);
    for (i, pair) in log.chunks(2).enumerate() {
        assert_eq!((pair[0].stream, &**pair[0].bytes), (Stream::Stdout, format!("out{i}\n").as_bytes()));
        assert_eq!((pair[1].stream, &**pair[1].bytes), (Stream::Stderr, format!("err{i}\n").as_bytes()));
    }
    assert_eq!(*shown.0.lock().unwrap(), log);
    Ok(())
}

#[test]
fn terminal_names_vanish_once_sealed_but_open_files_stay() -> io::Result<()> {
    let script = "while [ -e .vout-stdout ]; do sleep 0.02; done\n\
        ls -A >&3; echo one; echo two >/dev/stdout; echo three >>/dev/stderr\n\
        sh -c 'echo four >/proc/self/fd/1'; echo done >&3";
    let (mut view, terminal, _) = view_with_terminal(script)?;
    terminal.seal();
    assert_eq!(view.line()?, "done", "the listing is empty");
    assert!(view.child.wait()?.success());
    let log = terminal.take_log();
    assert_eq!(text(&log, Stream::Stdout), "one\ntwo\nfour\n");
    assert_eq!(text(&log, Stream::Stderr), "three\n");
    Ok(())
}

#[test]
fn a_terminal_file_is_an_empty_file_that_takes_everything() -> io::Result<()> {
    let script = "stat -L -c '%F %s' /dev/fd/2 >&3; truncate -s 100 /dev/stdout; sync /dev/stdout\n\
        stat -L -c %s /dev/fd/2 >&3; test -t 1; echo $? >&3; dd if=/dev/zero bs=3M count=1 2>/dev/null\n\
        cat /dev/fd/2 >&3; echo end >&3";
    let (mut view, terminal, _) = view_with_terminal(script)?;
    assert_eq!(view.line()?, "regular empty file 0");
    assert_eq!(view.line()?, "0");
    assert_eq!(view.line()?, "1");
    assert_eq!(view.line()?, "end");
    assert!(view.child.wait()?.success());
    assert_eq!(text(&terminal.take_log(), Stream::Stdout).len(), 3 << 20);
    Ok(())
}

/// Goal: a terminal that takes nothing stops its writer, and nobody else.
#[test]
fn a_slow_terminal_stops_only_the_writer() -> io::Result<()> {
    struct Stuck(mpsc::Receiver<()>);
    impl OutputSink for Stuck {
        fn show(&mut self, _: Chunk) -> io::Result<()> {
            self.0.recv().map_err(io::Error::other)
        }
    }
    let (go, stuck) = mpsc::channel();
    let terminal = Terminal::start(Box::new(Stuck(stuck)))?;
    let script =
        OPEN_TERMINAL.to_owned() + "{ echo x; echo written >&3; } & echo y > file; cat file >&3; wait";
    let fs = Arc::new(MemoryFs::new(false));
    let mut view = ViewScript::start(fs, Some(terminal), &script)?;
    assert_eq!(view.line()?, "open");
    assert_eq!(view.line()?, "y");
    go.send(()).unwrap();
    assert_eq!(view.line()?, "written");
    Ok(())
}

#[test]
fn a_write_fails_when_the_client_is_gone() -> io::Result<()> {
    struct Gone;
    impl OutputSink for Gone {
        fn show(&mut self, _: Chunk) -> io::Result<()> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
    }
    let terminal = Terminal::start(Box::new(Gone))?;
    let script =
        OPEN_TERMINAL.to_owned() + "perl -e '$|=1; print \"x\"; $e=$!+0; open(O,\">&=3\"); print O \"$e\n\"'";
    let mut view = ViewScript::start(Arc::new(MemoryFs::new(true)), Some(terminal), &script)?;
    assert_eq!(view.line()?, "open");
    assert_eq!(view.line()?, "32");
    let mut rest = String::new();
    view.stdout.read_to_string(&mut rest)?;
    Ok(())
}

#[test]
fn unmounting_ends_a_session_and_wakes_whoever_waits() -> io::Result<()> {
    let mounted = Mounted::new(MemoryFs::new(false), AdapterOptions::live(serving(false)))?;
    assert_eq!(mounted.session.wait(Duration::from_millis(1)), None);
    fs::write(mounted.path("a"), "x")?;
    rustix::mount::unmount(mounted.path(""), rustix::mount::UnmountFlags::empty())?;
    assert_eq!(mounted.session.wait(PATIENCE), Some(SessionEnd::Unmounted));
    Ok(())
}
