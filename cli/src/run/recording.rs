//! All that the views of a run saw, as JSON for scripts and for the curious: `vout run --recording FILE`.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};
use vout::report::{Left, RecordedPath};
use vout::state::{Dependency, FileKind};

use crate::error::CommandError;

/// Parts of a path that a task can look at, by name.
const PARTS: [(Dependency, &str); 4] = [
    (Dependency::PROBE, "probe"),
    (Dependency::READ, "read"),
    (Dependency::LINK, "link"),
    (Dependency::LIST, "list"),
];

/// A file of one line per path and task.
#[derive(Debug)]
pub(crate) struct RecordingFile {
    path: PathBuf,
    /// Held for whole lines, so that those of tasks that end at once do not mix.
    file: Mutex<BufWriter<File>>,
}

impl RecordingFile {
    /// Opens `path`, whose old content is gone.
    pub(crate) fn create(path: &Path) -> Result<Self, CommandError> {
        let file = File::create(path).map_err(|error| cannot_write(path, &error))?;
        Ok(Self { path: path.to_owned(), file: Mutex::new(BufWriter::new(file)) })
    }

    /// Adds what was seen by the view of `task`.
    pub(crate) fn add(&self, task: &str, recorded: &[RecordedPath]) -> Result<(), CommandError> {
        let mut file = self.lock();
        let written = recorded.iter().try_for_each(|recorded| writeln!(file, "{}", line(task, recorded)));
        written.map_err(|error| cannot_write(&self.path, &error))
    }

    /// Writes out what is still to be written.
    pub(crate) fn finish(&self) -> Result<(), CommandError> {
        self.lock().flush().map_err(|error| cannot_write(&self.path, &error))
    }

    fn lock(&self) -> MutexGuard<'_, BufWriter<File>> {
        self.file.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn cannot_write(path: &Path, error: &io::Error) -> CommandError {
    CommandError::user(format_args!("cannot write the recording {path:?}")).caused_by(error)
}

fn line(task: &str, recorded: &RecordedPath) -> Value {
    let path = if recorded.path.is_root() { ".".to_owned() } else { recorded.path.to_string() };
    let mut line = json!({ "task": task, "path": path });
    if let Some(seen) = recorded.seen {
        let parts = PARTS.iter().filter(|(part, _)| seen.dependency.contains(*part));
        line["seen"] = parts.map(|(_, name)| *name).collect();
        line["was"] = seen.kind.map_or("absent", kind_name).into();
    }
    if let Some(left) = recorded.change {
        line["now"] = match left {
            Left::Object(kind) => kind_name(kind),
            Left::Nothing => "absent",
        }
        .into();
    }
    line
}

fn kind_name(kind: FileKind) -> &'static str {
    match kind {
        FileKind::File => "file",
        FileKind::Dir => "directory",
        FileKind::Symlink => "link",
        FileKind::Fifo => "pipe",
        FileKind::Socket => "socket",
        FileKind::CharDevice | FileKind::BlockDevice => "device",
    }
}

#[cfg(test)]
mod tests {
    use vout::path::RelPathBuf;
    use vout::report::Seen;

    use super::*;

    #[test]
    fn a_line_says_what_was_seen_and_what_is_there_now() {
        let read = Seen { dependency: Dependency::PROBE | Dependency::READ, kind: Some(FileKind::File) };
        let missed = Seen { dependency: Dependency::PROBE, kind: None };
        let paths = [
            ("a.c", Some(read), None),
            ("a.o", Some(missed), Some(Left::Object(FileKind::File))),
            ("gone", None, Some(Left::Nothing)),
            ("", Some(missed), None),
        ];
        let lines = paths.map(|(path, seen, change)| {
            line("build", &RecordedPath { path: RelPathBuf::new(path).unwrap(), seen, change }).to_string()
        });
        insta::assert_snapshot!(lines.join("\n"), @r#"
        {"path":"a.c","seen":["probe","read"],"task":"build","was":"file"}
        {"now":"file","path":"a.o","seen":["probe"],"task":"build","was":"absent"}
        {"now":"absent","path":"gone","task":"build"}
        {"path":".","seen":["probe"],"task":"build","was":"absent"}
        "#);
    }
}
