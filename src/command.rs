//! Commands as people write them: which run directly, which need a shell, and what programs they start.
//!
//! Running a command without a shell saves a process, and its start-up, per command. It must not change
//! what the command does, so anything that a shell could take for more than words goes to the shell.

mod programs;
mod words;

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use serde_bytes::ByteBuf;

use crate::task::CommandLine;

pub use programs::program_words;

/// The shell that [`CommandLine::Shell`] is for.
pub const SHELL: &str = "/bin/sh";

/// Words that mean something to a shell where they come first: its grammar, and commands it has built in
/// that do not exist as programs, or that differ from the program of the same name.
const SHELL_WORDS: &[&str] = &[
    "!", ".", ":", "[", "[[", "alias", "bg", "break", "builtin", "case", "cd", "command", "continue",
    "coproc", "declare", "dirs", "disown", "do", "done", "echo", "elif", "else", "enable", "esac", "eval",
    "exec", "exit", "export", "fc", "fg", "fi", "for", "function", "getopts", "hash", "history", "if", "in",
    "jobs", "kill", "let", "local", "logout", "mapfile", "popd", "printf", "pushd", "pwd", "read",
    "readonly", "return", "select", "set", "shift", "shopt", "source", "suspend", "test", "then", "time",
    "times", "trap", "type", "typeset", "ulimit", "umask", "unalias", "unset", "until", "wait", "while", "{",
    "}",
];

impl CommandLine {
    /// Decides how `text` runs: directly where it is nothing but words to a POSIX shell, else in a shell.
    ///
    /// ```
    /// use vout::task::CommandLine;
    ///
    /// assert!(matches!(CommandLine::parse("cc -o 'my app' a.c"), CommandLine::Direct(argv) if argv.len() == 4));
    /// assert!(matches!(CommandLine::parse("cc *.c && ./a.out"), CommandLine::Shell(_)));
    /// ```
    #[must_use]
    pub fn parse(text: &str) -> Self {
        match words::split(text) {
            Some(words) if words.first().is_some_and(|first| is_program(first)) => {
                Self::Direct(words.into_iter().map(|word| ByteBuf::from(word.into_bytes())).collect())
            }
            Some(_) | None => Self::Shell(text.to_owned()),
        }
    }

    /// Takes a command from a command line of its own, as in `vout run -- COMMAND ARG…`.
    ///
    /// Several arguments are the words of the command; the shell that split them has done its work. A single
    /// one is the text of a command. `None` where there is none, or an empty one.
    #[must_use]
    pub fn from_args(args: &[OsString]) -> Option<Self> {
        match args {
            [] => None,
            [first, ..] if first.is_empty() => None,
            [text] => Some(match text.to_str() {
                Some(text) => Self::parse(text),
                None => Self::Direct(vec![ByteBuf::from(text.as_bytes())]),
            }),
            _ => Some(Self::Direct(args.iter().map(|arg| ByteBuf::from(arg.as_bytes())).collect())),
        }
    }
}

/// Returns the command as a person would type it. Bytes that are not UTF-8 appear as U+FFFD.
#[must_use]
pub fn display(command: &CommandLine) -> String {
    match command {
        CommandLine::Direct(argv) => argv.iter().map(|word| quote(word)).collect::<Vec<_>>().join(" "),
        CommandLine::Shell(text) => text.clone(),
    }
}

/// Returns `word` so that a shell reads it as that one word.
fn quote(word: &[u8]) -> String {
    let text = OsStr::from_bytes(word).display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || "_@%+=:,./-".contains(c) || !c.is_ascii();
    if !text.is_empty() && text.chars().all(plain) {
        text
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

fn is_program(first: &str) -> bool {
    !first.is_empty() && !SHELL_WORDS.contains(&first) && !is_assignment(first)
}

/// Returns whether a shell takes `word` for `NAME=value`.
fn is_assignment(word: &str) -> bool {
    word.split_once('=').is_some_and(|(name, _)| {
        name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            // `NAME+=value` is one in some shells.
            && name.strip_suffix('+').unwrap_or(name).chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    })
}

#[cfg(test)]
mod tests;
