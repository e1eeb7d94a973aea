//! Reasons as sentences for people.
//!
//! Names come from files and may hold anything: control characters are shown escaped, so that a name can
//! neither break a line nor command a terminal.
#![deny(clippy::wildcard_enum_match_arm)]

use std::fmt::Write;

use crate::path::RelPath;
use crate::report::{Difference, MissReason, NotStored};

/// Most processes that are named in one sentence.
const PROCESSES_NAMED_MAX: usize = 5;

/// Returns why a task was not a hit, in one line: the first cause, and how many more there are.
#[must_use]
pub fn miss(reason: &MissReason) -> String {
    let causes = miss_details(reason);
    match causes.as_slice() {
        [] => "something changed".to_owned(),
        [only] => only.clone(),
        [first, more @ ..] => format!("{first} (and {} more)", more.len()),
    }
}

/// Returns why a task was not a hit: all causes, a line each.
#[must_use]
pub fn miss_details(reason: &MissReason) -> Vec<String> {
    match reason {
        MissReason::NotCached => vec!["not cached yet".to_owned()],
        MissReason::Changed(differences) => differences.iter().map(difference).collect(),
        MissReason::Forced => vec!["run anew on request".to_owned()],
        MissReason::BadArchive { archive, problem } => {
            let archive = quote(archive.as_os_str().as_encoded_bytes());
            vec![format!("archive {archive} cannot be used: {}", plain(problem))]
        }
        MissReason::Storage(problem) => vec![format!("the cache cannot be used: {}", plain(problem))],
    }
}

/// Returns one difference, as in `'src/a.txt' modified`.
#[must_use]
pub fn difference(difference: &Difference) -> String {
    match difference {
        Difference::Modified(path) => format!("{} modified", quote_path(path)),
        Difference::Removed(path) => format!("{} removed", quote_path(path)),
        Difference::Appeared(path) => format!("{} appeared", quote_path(path)),
        Difference::AddedIn { name, dir } => format!("{} added in {}", quote(name), quote_path(dir)),
        Difference::RemovedFrom { name, dir } => format!("{} removed from {}", quote(name), quote_path(dir)),
        Difference::Env(name) => format!("env {} changed", quote(name.as_bytes())),
        Difference::EnvDeclaration => "env configuration changed".to_owned(),
        Difference::Command => "command changed".to_owned(),
        Difference::Cwd => "working directory changed".to_owned(),
        Difference::Program(name) => format!("program {} changed", quote(name.as_bytes())),
        Difference::InputConfig => "input configuration changed".to_owned(),
        Difference::OutputConfig => "output configuration changed".to_owned(),
        Difference::TaskConfig(setting) => format!("setting {} changed", quote(setting.as_bytes())),
    }
}

/// Returns why the result of a run was not stored, in one line.
#[must_use]
pub fn not_stored(reason: &NotStored) -> String {
    match reason {
        NotStored::Disabled => "caching is off".to_owned(),
        NotStored::Failed => "the task failed".to_owned(),
        NotStored::Interrupted => "the task was interrupted".to_owned(),
        NotStored::InputChanged(path) => format!("{} was changed while the task ran", quote_path(path)),
        NotStored::Hazard { other, path } => format!(
            "task {} changed {} while this task, which had looked at it, ran",
            quote(other.as_bytes()),
            quote_path(path)
        ),
        NotStored::Outlived(processes) => outlived(processes),
        NotStored::SessionDied(problem) => {
            format!("the task's view of the workspace failed: {}", plain(problem))
        }
        NotStored::Unarchivable { path, problem } => {
            format!("output {} cannot be archived: {}", quote_path(path), plain(problem))
        }
        NotStored::Storage(problem) => format!("it could not be written to the store: {}", plain(problem)),
        NotStored::TerminalTooLarge(limit_bytes) => {
            format!("the terminal output is larger than {limit_bytes} bytes")
        }
        NotStored::Incomplete(problem) => {
            format!("what it depends on is not known in full: {}", plain(problem))
        }
    }
}

fn outlived(processes: &[String]) -> String {
    if processes.is_empty() {
        return "processes of the task were still running when it ended".to_owned();
    }
    let named: Vec<_> =
        processes.iter().take(PROCESSES_NAMED_MAX).map(|process| quote(process.as_bytes())).collect();
    let mut sentence = format!("still running when the task ended: {}", named.join(", "));
    if let more @ 1.. = processes.len() - named.len() {
        write!(sentence, " (and {more} more)").expect("writing to a string succeeds");
    }
    sentence
}

/// Returns `path` in single quotes, for the middle of a sentence; the root is `'.'`.
#[must_use]
pub fn quote_path(path: &RelPath) -> String {
    if path.is_root() { "'.'".to_owned() } else { quote(path.as_bytes()) }
}

/// Returns `name` in single quotes. Control characters, `'` and `\` are escaped, and so are bytes that are
/// not UTF-8.
fn quote(name: &[u8]) -> String {
    let mut quoted = String::from("'");
    for chunk in name.utf8_chunks() {
        for c in chunk.valid().chars() {
            if needs_escape(c) || matches!(c, '\'' | '\\') {
                quoted.extend(c.escape_default());
            } else {
                quoted.push(c);
            }
        }
        for byte in chunk.invalid() {
            write!(quoted, "\\x{byte:02x}").expect("writing to a string succeeds");
        }
    }
    quoted.push('\'');
    quoted
}

/// Returns `text` with control characters escaped.
fn plain(text: &str) -> String {
    let mut shown = String::new();
    for c in text.chars() {
        if needs_escape(c) {
            shown.extend(c.escape_default());
        } else {
            shown.push(c);
        }
    }
    shown
}

/// Returns whether a character could change how the line around it is shown: controls, line separators,
/// and those that reorder text.
fn needs_escape(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use serde_bytes::ByteBuf;

    use super::*;
    use crate::path::RelPathBuf;

    fn path(text: &str) -> RelPathBuf {
        RelPathBuf::new(text).unwrap()
    }

    fn name(text: &str) -> ByteBuf {
        ByteBuf::from(text.as_bytes())
    }

    #[test]
    fn differences_name_what_changed() {
        for (given, expected) in [
            (Difference::Modified(path("src/a.txt")), "'src/a.txt' modified"),
            (Difference::Removed(path("a b")), "'a b' removed"),
            (Difference::Appeared(path(".env")), "'.env' appeared"),
            (Difference::AddedIn { name: name("c.txt"), dir: path("src") }, "'c.txt' added in 'src'"),
            (Difference::RemovedFrom { name: name("c.txt"), dir: path("") }, "'c.txt' removed from '.'"),
            (Difference::Env("FOO".into()), "env 'FOO' changed"),
            (Difference::EnvDeclaration, "env configuration changed"),
            (Difference::Command, "command changed"),
            (Difference::Cwd, "working directory changed"),
            (Difference::Program("cc".into()), "program 'cc' changed"),
            (Difference::InputConfig, "input configuration changed"),
            (Difference::OutputConfig, "output configuration changed"),
            (Difference::TaskConfig("clean".into()), "setting 'clean' changed"),
        ] {
            assert_eq!(difference(&given), expected);
        }
    }

    #[test]
    fn miss_is_summed_up_in_one_line_and_listed_in_full() {
        let one = Difference::Modified(path("a"));
        let differences = vec![one.clone(), Difference::Command, Difference::Env("X".into())];
        assert_eq!(miss(&MissReason::Changed(vec![one])), "'a' modified");
        let reason = MissReason::Changed(differences);
        assert_eq!(miss(&reason), "'a' modified (and 2 more)");
        assert_eq!(miss_details(&reason), ["'a' modified", "command changed", "env 'X' changed"]);
        assert_eq!(miss(&MissReason::NotCached), "not cached yet");
        assert_eq!(miss(&MissReason::Forced), "run anew on request");
        let bad =
            MissReason::BadArchive { archive: "/s/x.tar.zst".into(), problem: "it is truncated".into() };
        assert_eq!(miss(&bad), "archive '/s/x.tar.zst' cannot be used: it is truncated");
        assert_eq!(miss(&MissReason::Changed(vec![])), "something changed");
    }

    #[test]
    fn reasons_for_not_storing_are_sentences() {
        let processes = |count: usize| NotStored::Outlived((0..count).map(|i| format!("p{i}")).collect());
        for (given, expected) in [
            (NotStored::Disabled, "caching is off"),
            (NotStored::Failed, "the task failed"),
            (NotStored::Interrupted, "the task was interrupted"),
            (NotStored::InputChanged(path("a")), "'a' was changed while the task ran"),
            (
                NotStored::Hazard { other: "gen".into(), path: path("x/y") },
                "task 'gen' changed 'x/y' while this task, which had looked at it, ran",
            ),
            (processes(0), "processes of the task were still running when it ended"),
            (processes(1), "still running when the task ended: 'p0'"),
            (processes(7), "still running when the task ended: 'p0', 'p1', 'p2', 'p3', 'p4' (and 2 more)"),
            (
                NotStored::SessionDied("connection reset".into()),
                "the task's view of the workspace failed: connection reset",
            ),
            (
                NotStored::Unarchivable { path: path("s"), problem: "it is a socket".into() },
                "output 's' cannot be archived: it is a socket",
            ),
            (NotStored::Storage("disk full".into()), "it could not be written to the store: disk full"),
            (NotStored::TerminalTooLarge(1024), "the terminal output is larger than 1024 bytes"),
            (
                NotStored::Incomplete("too many paths".into()),
                "what it depends on is not known in full: too many paths",
            ),
        ] {
            assert_eq!(not_stored(&given), expected);
        }
    }

    #[test]
    fn names_cannot_break_the_line_or_command_the_terminal() {
        let odd = RelPathBuf::new(b"a\n\x1b[31m'\\\xff\xc3\xa9".as_slice()).unwrap();
        assert_eq!(quote_path(&odd), r"'a\n\u{1b}[31m\'\\\xffé'");
        assert_eq!(quote_path(&path("\u{202e}txt")), r"'\u{202e}txt'");
        assert_eq!(plain("a\r\nb 'c'"), r"a\r\nb 'c'");
    }
}
