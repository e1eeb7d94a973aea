//! Terminal output: shown while a task runs, and replayed byte for byte.

use crate::in_both_modes;
use crate::support::{Mode, TestResult, Workspace};

in_both_modes!(
    both_streams_are_replayed_byte_for_byte,
    the_order_between_the_streams_is_kept,
    bytes_that_are_no_text_are_kept,
    output_of_all_commands_is_replayed,
);

fn both_streams_are_replayed_byte_for_byte(mode: Mode) -> TestResult {
    let ws = Workspace::with_config(mode, "[tasks.say]\ncommand = \"sh say.sh\"\n")?;
    ws.file("say.sh", "echo out\necho err >&2\nprintf 'no newline at the end'\n")?;
    let ran = ws.run(["-q", "say"])?.stored_miss();
    let hit = ws.run(["-q", "say"])?.hit();
    assert_eq!(ran.stdout, b"out\nno newline at the end", "{ran}");
    assert_eq!(ran.stderr, b"err\n", "{ran}");
    assert_eq!((ran.stdout, ran.stderr), (hit.stdout, hit.stderr));
    Ok(())
}

/// Goal: an error message stays next to the line it belongs to. Method: both streams into one file.
fn the_order_between_the_streams_is_kept(mode: Mode) -> TestResult {
    let ws = Workspace::with_config(mode, "[tasks.say]\ncommand = \"sh say.sh\"\n")?;
    ws.file("say.sh", "for i in $(seq 200); do echo out $i; echo err $i >&2; done\n")?;
    let expected: String = (1..=200).map(|i| format!("out {i}\nerr {i}\n")).collect();
    for attempt in ["miss", "hit"] {
        let (status, both) = ws.run_with_one_stream(&["run", "-q", "say"])?;
        assert!(status.success());
        assert_eq!(String::from_utf8(both)?, expected, "{attempt}");
    }
    Ok(())
}

fn bytes_that_are_no_text_are_kept(mode: Mode) -> TestResult {
    let ws = Workspace::with_config(mode, "[tasks.say]\ncommand = \"cat bytes\"\n")?;
    let bytes: Vec<u8> = (0..=255).cycle().take(100_000).collect();
    ws.file("bytes", &bytes)?;
    assert!(ws.run(["-q", "say"])?.stored_miss().stdout == bytes);
    assert!(ws.run(["-q", "say"])?.hit().stdout == bytes);
    Ok(())
}

fn output_of_all_commands_is_replayed(mode: Mode) -> TestResult {
    let config =
        "[tasks.say]\ncommand = [\"echo one\", \"echo two && echo three\", \"echo four | tr f F\"]\n";
    let ws = Workspace::with_config(mode, config)?;
    for _ in 0..2 {
        assert_eq!(ws.run(["-q", "say"])?.stdout, b"one\ntwo\nthree\nFour\n");
    }
    Ok(())
}
