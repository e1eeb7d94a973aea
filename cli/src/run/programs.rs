//! Which programs outside the workspace a task starts: part of its key by content.
//!
//! Those inside the workspace are read through the view, and recorded like any other file.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::Access;
use vout::task::ProgramFile;

use crate::workspace::{name_of, resolve};

/// Bytes of a script's first line that the kernel looks at (`BINPRM_BUF_SIZE`).
const SHEBANG_BYTES_MAX: u64 = 256;

/// How many interpreters may run each other, as in the kernel.
const INTERPRETERS_MAX: usize = 5;

/// Where programs are looked for when `PATH` is not set, as in the C library.
const PATH_DEFAULT: &str = "/bin:/usr/bin";

/// How programs are found.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ProgramSearch<'a> {
    /// The task's `PATH`.
    pub(crate) path: Option<&'a OsStr>,
    /// The task's working directory, absolute.
    pub(crate) directory: &'a Path,
    /// The workspace, absolute and without symbolic links.
    pub(crate) workspace: &'a Path,
}

impl ProgramSearch<'_> {
    /// Returns the programs behind `words`, interpreters of scripts included, each once, in the order in
    /// which they are called.
    ///
    /// A word that leads nowhere is left out: running it says so better.
    pub(crate) fn programs<S: AsRef<OsStr>>(&self, words: &[S]) -> Vec<ProgramFile> {
        let mut found = Vec::new();
        for word in words {
            self.add(word.as_ref(), INTERPRETERS_MAX, &mut found);
        }
        found
    }

    fn add(&self, word: &OsStr, depth: usize, found: &mut Vec<ProgramFile>) {
        let Some(candidate) = self.find(word) else { return };
        // The file's name is asked of the open file, so that what is hashed is what a run would start.
        let opened = File::open(&candidate).and_then(|file| Ok((name_of(&file)?, shebang(file))));
        let (path, interpreter) = match opened {
            Ok((path, interpreter)) => (path, interpreter),
            // Executable but not readable: its identity still is where it lies.
            Err(_) => match resolve(&candidate) {
                Ok(path) => (path, None),
                Err(_) => return,
            },
        };
        if !path.starts_with(self.workspace) {
            if found.iter().any(|program| program.path == path) {
                return;
            }
            if path.to_str().is_some() {
                found.push(ProgramFile { called: word.to_string_lossy().into_owned(), path });
            }
        }
        if let Some(interpreter) = interpreter
            && depth > 0
        {
            for word in interpreter.programs() {
                self.add(&word, depth - 1, found);
            }
        }
    }

    /// Returns the file that running `word` would start.
    fn find(&self, word: &OsStr) -> Option<PathBuf> {
        let executable = |path: &PathBuf| {
            rustix::fs::access(path, Access::EXEC_OK).is_ok()
                && path.metadata().is_ok_and(|meta| meta.is_file())
        };
        if word.is_empty() {
            return None;
        }
        if word.as_bytes().contains(&b'/') {
            return Some(self.directory.join(word)).filter(executable);
        }
        let path = self.path.unwrap_or(OsStr::new(PATH_DEFAULT));
        // An empty item means the working directory, and so does joining an empty path.
        std::env::split_paths(path).map(|dir| self.directory.join(dir).join(word)).find(executable)
    }
}

/// The first line of a script.
#[derive(Debug, PartialEq, Eq)]
struct Shebang {
    interpreter: OsString,
    argument: Vec<u8>,
}

impl Shebang {
    fn parse(head: &[u8]) -> Option<Self> {
        let line = head.strip_prefix(b"#!")?.split(|byte| *byte == b'\n').next()?.trim_ascii();
        let end = line.iter().position(|byte| matches!(byte, b' ' | b'\t')).unwrap_or(line.len());
        let (interpreter, argument) = line.split_at(end);
        (!interpreter.is_empty()).then(|| Self {
            interpreter: OsString::from_vec(interpreter.to_vec()),
            argument: argument.trim_ascii().to_vec(),
        })
    }

    /// Returns the interpreter, and with `env` also what that starts.
    fn programs(self) -> Vec<OsString> {
        let started = (Path::new(&self.interpreter).file_name() == Some(OsStr::new("env")))
            .then(|| {
                let words = self.argument.split(u8::is_ascii_whitespace);
                // Options (`-S` above all) and assignments come before the program.
                words
                    .map(<[u8]>::to_vec)
                    .find(|word| !word.is_empty() && !word.starts_with(b"-") && !word.contains(&b'='))
            })
            .flatten();
        std::iter::once(self.interpreter).chain(started.map(OsString::from_vec)).collect()
    }
}

fn shebang(file: File) -> Option<Shebang> {
    let mut head = Vec::new();
    file.take(SHEBANG_BYTES_MAX).read_to_end(&mut head).ok()?;
    Shebang::parse(&head)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    type TestResult = Result<(), Box<dyn std::error::Error>>;

    struct Fixture {
        _dir: tempfile::TempDir,
        outside: PathBuf,
        workspace: PathBuf,
        path: OsString,
    }

    impl Fixture {
        fn new() -> std::io::Result<Self> {
            let dir = tempfile::tempdir()?;
            let root = resolve(dir.path())?;
            let (outside, workspace) = (root.join("bin"), root.join("w"));
            fs::create_dir_all(workspace.join("bin"))?;
            fs::create_dir(&outside)?;
            let path = std::env::join_paths([workspace.join("bin"), outside.clone()]).unwrap();
            Ok(Self { _dir: dir, outside, workspace, path })
        }

        fn script(&self, path: &Path, text: &str) -> std::io::Result<()> {
            fs::write(path, text)?;
            fs::set_permissions(path, fs::Permissions::from_mode(0o755))
        }

        fn called(&self, words: &[&str]) -> Vec<(String, PathBuf)> {
            let search = ProgramSearch {
                path: Some(&self.path),
                directory: &self.workspace,
                workspace: &self.workspace,
            };
            let found = search.programs(words).into_iter();
            found.map(|program| (program.called, program.path)).collect()
        }
    }

    #[test]
    fn links_are_followed_to_the_program_itself() -> TestResult {
        let fixture = Fixture::new()?;
        let real = fixture.outside.join("cc-14");
        fixture.script(&real, "\x7fELF")?;
        symlink("cc-14", fixture.outside.join("cc"))?;
        assert_eq!(fixture.called(&["cc", "cc", "missing"]), [("cc".to_owned(), real)]);
        Ok(())
    }

    #[test]
    fn interpreters_of_scripts_count_even_if_the_script_is_inside() -> TestResult {
        let fixture = Fixture::new()?;
        let (node, env) = (fixture.outside.join("node"), fixture.outside.join("env"));
        fixture.script(&node, "\x7fELF")?;
        fixture.script(&env, "\x7fELF")?;
        let tool = fixture.workspace.join("bin/tool");
        fixture.script(&tool, &format!("#! {} -S node --flag\n", env.display()))?;
        let expected = [(env.display().to_string(), env), ("node".to_owned(), node)];
        assert_eq!(fixture.called(&["tool"]), expected);
        assert_eq!(fixture.called(&["./bin/tool"]), expected);
        Ok(())
    }

    #[test]
    fn what_is_not_executable_is_passed_over() -> TestResult {
        let fixture = Fixture::new()?;
        fs::write(fixture.workspace.join("bin/make"), "not a program")?;
        fs::create_dir(fixture.workspace.join("bin/dir"))?;
        let make = fixture.outside.join("make");
        fixture.script(&make, "\x7fELF")?;
        assert_eq!(fixture.called(&["make", "dir", ""]), [("make".to_owned(), make)]);
        Ok(())
    }

    #[test]
    fn scripts_that_interpret_each_other_end() -> TestResult {
        let fixture = Fixture::new()?;
        let (one, two) = (fixture.outside.join("one"), fixture.outside.join("two"));
        fixture.script(&one, &format!("#!{}\n", two.display()))?;
        fixture.script(&two, &format!("#!{}\n", one.display()))?;
        assert_eq!(fixture.called(&["one"]).len(), 2);
        Ok(())
    }

    #[test]
    fn odd_first_lines_are_read_as_the_kernel_does() {
        assert_eq!(Shebang::parse(b"#!\n"), None);
        assert_eq!(Shebang::parse(b"echo\n"), None);
        let plain = Shebang::parse(b"#!/bin/sh").unwrap();
        assert_eq!(plain.programs(), ["/bin/sh"]);
        let env = Shebang::parse(b"#!/usr/bin/env\tA=1 python3\n").unwrap();
        assert_eq!(env.programs(), ["/usr/bin/env", "python3"]);
    }
}
