//! Reads what `strace -f -y -xx -o FILE` writes: one call after the other, in the order in which they ended.

use std::collections::HashMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// Calls that name a file or change what descriptors lead to. All those with a file name are `%file`.
pub(super) const TRACED: &str = "trace=%file,%process,getdents,getdents64,fchdir,fchmod,fchown,ftruncate,\
                                 fallocate,fsetxattr,fremovexattr,bind,connect";

/// A system call that has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Call {
    /// Its thread.
    pub(super) pid: u32,
    /// Its name.
    pub(super) name: String,
    /// Its arguments, as `strace` prints them.
    pub(super) args: Vec<String>,
    /// What it returned.
    pub(super) result: Returned,
}

/// What a call returned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Returned {
    /// A number, and the path of the descriptor if it is one.
    Value(i64, Option<PathBuf>),
    /// The name of an error.
    Error(String),
    /// Nothing: the thread ended, or the call is not over yet (the beginning of a `clone`).
    Nothing,
}

/// A descriptor among the arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Descriptor {
    /// `AT_FDCWD`.
    Cwd,
    /// A descriptor and where it leads.
    Open(PathBuf),
    /// One that leads to nothing with a name.
    Nameless,
}

impl Call {
    /// Returns whether it succeeded.
    pub(super) fn succeeded(&self) -> bool {
        matches!(self.result, Returned::Value(value, _) if value >= 0)
    }

    /// Returns whether it failed with this error.
    pub(super) fn failed_with(&self, error: &str) -> bool {
        matches!(&self.result, Returned::Error(name) if name == error)
    }

    /// Returns an argument; empty where there are fewer.
    pub(super) fn arg(&self, index: usize) -> &str {
        self.args.get(index).map_or("", String::as_str)
    }

    /// Returns an argument that is a path.
    pub(super) fn path(&self, index: usize) -> Option<PathBuf> {
        quoted(self.arg(index)).map(into_path)
    }

    /// Returns an argument that is a descriptor.
    pub(super) fn descriptor(&self, index: usize) -> Descriptor {
        descriptor(self.arg(index))
    }

    /// Returns whether an argument has this flag.
    pub(super) fn has(&self, index: usize, flag: &str) -> bool {
        self.arg(index).split(|c: char| !(c.is_alphanumeric() || c == '_')).any(|word| word == flag)
    }
}

/// Reads a whole log. A call that spans others stands where it ended, but one that makes a process also where it
/// began, with no result: the process may be heard of before the call returns.
pub(super) fn parse(log: &str) -> Vec<Call> {
    let mut begun: HashMap<(u32, String), String> = HashMap::new();
    let mut calls = Vec::new();
    for line in log.lines() {
        let Some((pid, text)) = line.split_once(' ') else { continue };
        let Ok(pid) = pid.parse() else { continue };
        let text = text.trim_start();
        if let Some(resumed) = text.strip_prefix("<... ") {
            let Some((name, rest)) = resumed.split_once(" resumed>") else { continue };
            let Some(beginning) = begun.remove(&(pid, name.to_owned())) else { continue };
            calls.extend(call(pid, &(beginning + rest)));
        } else if let Some(beginning) = text.strip_suffix("<unfinished ...>") {
            let Some((name, _)) = beginning.split_once('(') else { continue };
            let beginning = beginning.trim_end().to_owned();
            if name.starts_with("clone") || name.ends_with("fork") {
                let args = beginning.split_once('(').map_or("", |(_, args)| args);
                let args = split(args.trim_end_matches(','));
                calls.push(Call { pid, name: name.to_owned(), args, result: Returned::Nothing });
            }
            begun.insert((pid, name.to_owned()), beginning);
        } else {
            calls.extend(call(pid, text));
        }
    }
    calls
}

fn call(pid: u32, text: &str) -> Option<Call> {
    let (name, rest) = text.split_once('(')?;
    if name.is_empty() || !name.chars().all(|c| c.is_alphanumeric() || c == '_') {
        return None;
    }
    // The last one: a structure among the arguments may hold another.
    let (args, result) = rest.rsplit_once(" = ")?;
    let args = args.trim_end().strip_suffix(')')?;
    Some(Call { pid, name: name.to_owned(), args: split(args), result: returned(result) })
}

fn returned(text: &str) -> Returned {
    if text.starts_with('?') {
        return Returned::Nothing;
    }
    if let Some(error) = text.strip_prefix("-1 ") {
        return Returned::Error(error.split(' ').next().unwrap_or_default().to_owned());
    }
    let digits = text.find(|c: char| !(c.is_ascii_digit() || c == '-')).unwrap_or(text.len());
    match text[..digits].parse() {
        Ok(value) => Returned::Value(value, annotation(&text[digits..])),
        Err(_) => Returned::Nothing,
    }
}

fn descriptor(text: &str) -> Descriptor {
    if text.starts_with("AT_FDCWD") {
        return Descriptor::Cwd;
    }
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    annotation(&text[digits..]).map_or(Descriptor::Nameless, Descriptor::Open)
}

/// Reads the path in `<…>`, if it is one, and still has its name.
fn annotation(text: &str) -> Option<PathBuf> {
    let (inside, after) = text.strip_prefix('<')?.split_once('>')?;
    let path = unescape(inside);
    (path.starts_with(b"/") && !after.starts_with("(deleted)")).then(|| into_path(path))
}

/// Reads a quoted string.
pub(super) fn quoted(text: &str) -> Option<Vec<u8>> {
    let inside = text.strip_prefix('"')?;
    Some(unescape(&inside[..inside.rfind('"')?]))
}

fn unescape(text: &str) -> Vec<u8> {
    text.split("\\x").skip(1).filter_map(|digits| u8::from_str_radix(digits.get(..2)?, 16).ok()).collect()
}

fn into_path(bytes: Vec<u8>) -> PathBuf {
    OsString::from_vec(bytes).into()
}

/// Splits arguments at the commas that are in no brackets. Strings hold none: all of their bytes are escaped.
fn split(args: &str) -> Vec<String> {
    let (mut depth, mut parts) = (0_usize, vec![String::new()]);
    for c in args.chars() {
        match c {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                parts.push(String::new());
                continue;
            }
            _ => {}
        }
        if let Some(part) = parts.last_mut() {
            part.push(c);
        }
    }
    parts.into_iter().map(|part| part.trim().to_owned()).collect()
}

#[test]
fn calls_are_read_in_the_order_in_which_they_end() {
    let log = r#"7 clone(child_stack=NULL, flags=SIGCHLD <unfinished ...>
8 openat(AT_FDCWD<\x2f\x77>, "\x61\x2c", O_RDONLY|O_CLOEXEC) = 4<\x2f\x77\x2f\x61\x2c>
7 <... clone resumed>, child_tidptr=0x7f) = 8
8 newfstatat(4<\x2f\x77>, "", {st_mode=S_IFREG|0644, st_size=3, ...}, AT_EMPTY_PATH) = 0
8 --- SIGCHLD {si_signo=SIGCHLD} ---
8 unlink("\x62") = -1 ENOENT (No such file or directory)
8 exit_group(0)     = ?
"#;
    let calls = parse(log);
    let names: Vec<_> = calls.iter().map(|call| call.name.as_str()).collect();
    assert_eq!(names, ["clone", "openat", "clone", "newfstatat", "unlink", "exit_group"]);
    assert_eq!(calls[1].path(1), Some("a,".into()));
    assert!(calls[1].has(2, "O_CLOEXEC") && !calls[1].has(2, "O_CLO"));
    assert_eq!(calls[1].result, Returned::Value(4, Some("/w/a,".into())));
    assert_eq!(calls[2].result, Returned::Value(8, None));
    assert_eq!(calls[3].descriptor(0), Descriptor::Open("/w".into()));
    assert_eq!((calls[3].args.len(), calls[3].path(1)), (4, Some("".into())));
    assert!(calls[4].failed_with("ENOENT") && !calls[4].succeeded());
}
