//! What happened to each task, as JSON for scripts: `vout run --report FILE`.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::Serialize;
use vout::report::ServedReport;

use crate::error::{Attempted, CommandError};

/// What happened to a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Status {
    /// Nothing ran; the outputs are in place.
    Hit,
    /// It ran.
    Miss,
    /// It ran, and the cache was not asked.
    Uncached,
    /// It ran and failed, or it could not run.
    Failed,
}

/// One object of the report. Its fields are a contract.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct TaskReport {
    /// Name of the task, or the command line of an ad hoc run.
    pub(crate) task: String,
    /// What happened.
    pub(crate) status: Status,
    /// Why it was a miss, or why it did not run.
    pub(crate) reason: Option<String>,
    /// Its exit code; `null` where it never ran.
    pub(crate) exit_code: Option<i32>,
    /// Wall time of all we did for it.
    pub(crate) duration_ms: u64,
    /// How much longer the recorded run took than this hit.
    pub(crate) saved_ms: u64,
    /// Number of inputs.
    pub(crate) inputs: u64,
    /// Number of outputs.
    pub(crate) outputs: u64,
    /// Bytes of the outputs, uncompressed.
    pub(crate) output_bytes: u64,
    /// Path of the archive.
    pub(crate) archive: Option<PathBuf>,
    /// Whether the result is in the cache: always so after a hit.
    pub(crate) stored: bool,
    /// Why it is not.
    pub(crate) not_stored_reason: Option<String>,
    /// How its view was served, where it ran in one.
    pub(crate) served: Option<ServedReport>,
}

impl TaskReport {
    /// Reports a task that has not run for `reason`.
    pub(crate) fn not_run(task: &str, reason: impl Into<String>) -> Self {
        let reason = reason.into();
        Self {
            task: task.to_owned(),
            status: Status::Failed,
            reason: Some(reason.clone()),
            exit_code: None,
            duration_ms: 0,
            saved_ms: 0,
            inputs: 0,
            outputs: 0,
            output_bytes: 0,
            archive: None,
            stored: false,
            not_stored_reason: Some(reason),
            served: None,
        }
    }
}

/// Writes `reports` as a JSON array to `path`, which has either its old or its whole new content.
pub(crate) fn write(path: &Path, reports: &[TaskReport]) -> Result<(), CommandError> {
    let mut json = serde_json::to_vec_pretty(reports).attempted("encode the report")?;
    json.push(b'\n');
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.tmp", std::process::id()));
    let temporary = path.with_file_name(name);
    let written = File::create(&temporary)
        .and_then(|mut file| file.write_all(&json))
        .and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        drop(fs::remove_file(&temporary));
    }
    written.map_err(|error| {
        CommandError::user(format_args!("cannot write the report {path:?}")).caused_by(&error)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fields_are_the_contract() {
        let report = TaskReport {
            status: Status::Hit,
            reason: None,
            exit_code: Some(0),
            duration_ms: 7,
            saved_ms: 3400,
            inputs: 2,
            outputs: 3,
            output_bytes: 4,
            archive: Some("/s/a.tar.zst".into()),
            stored: true,
            not_stored_reason: None,
            ..TaskReport::not_run("build", "")
        };
        insta::assert_snapshot!(serde_json::to_string_pretty(&report).unwrap(), @r#"
        {
          "task": "build",
          "status": "hit",
          "reason": null,
          "exit_code": 0,
          "duration_ms": 7,
          "saved_ms": 3400,
          "inputs": 2,
          "outputs": 3,
          "output_bytes": 4,
          "archive": "/s/a.tar.zst",
          "stored": true,
          "not_stored_reason": null,
          "served": null
        }
        "#);
    }

    #[test]
    fn a_report_replaces_the_one_before_and_leaves_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("r.json");
        fs::write(&path, "old").unwrap();
        write(&path, &[TaskReport::not_run("a", "b failed")]).unwrap();
        let read: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        assert_eq!(read[0]["exit_code"], serde_json::Value::Null);
        assert_eq!(read[0]["status"], "failed");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert_eq!(write(&dir.path().join("no/dir.json"), &[]).unwrap_err().exit_code(), 1);
    }
}
