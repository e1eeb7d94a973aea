//! `vout status` and `vout why`.

use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use vout::explain;
use vout::proto::{Event, Request};
use vout::report::{LayerStatus, ServedReport, StatusReport, WhyReport};

use crate::args::{StatusArgs, WhyArgs};
use crate::config;
use crate::daemon::{Connection, unexpected};
use crate::error::CommandError;
use crate::output;
use crate::workspace::Surroundings;

/// Shows mounts, layers and the store.
pub(crate) fn status(args: &StatusArgs, surroundings: &Surroundings) -> Result<ExitCode, CommandError> {
    let place = config::place(surroundings, None)?;
    match Connection::open(&place)?.ask(&Request::Status)? {
        Event::Status(report) if args.json => output::json(&status_json(&report)),
        Event::Status(report) => status_lines(&report).iter().for_each(output::result),
        other => return Err(unexpected(&other)),
    }
    Ok(ExitCode::SUCCESS)
}

/// Explains the last lookup of a task.
pub(crate) fn why(args: &WhyArgs, surroundings: &Surroundings) -> Result<ExitCode, CommandError> {
    let place = config::place(surroundings, None)?;
    let task = args.task.join(" ");
    match Connection::open(&place)?.ask(&Request::Why { task: task.clone() })? {
        Event::Why(Some(report)) => why_lines(&report, now()).iter().for_each(output::result),
        Event::Why(None) => {
            return Err(CommandError::user(format_args!("task {task:?} was never looked up"))
                .hint("`vout cache list` shows what is stored"));
        }
        other => return Err(unexpected(&other)),
    }
    Ok(ExitCode::SUCCESS)
}

/// Returns the time in seconds since the epoch.
pub(crate) fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

fn status_lines(report: &StatusReport) -> Vec<String> {
    let mounted = match &report.mounted_at {
        Some(at) => format!("at {}{}", at.display(), report.served.as_ref().map_or(String::new(), over)),
        None => "no".to_owned(),
    };
    let mut lines = vec![
        format!("workspace  {}", report.workspace.display()),
        format!("mounted    {mounted}"),
        format!(
            "store      {}: {}, {} in archives, {} hydrated",
            report.store.display(),
            // The plural is not regular.
            if report.entries == 1 { "1 entry".to_owned() } else { format!("{} entries", report.entries) },
            output::bytes(report.archive_bytes),
            output::bytes(report.hydrated_bytes)
        ),
        format!("daemon     process {}", report.daemon_pid),
    ];
    if !report.running.is_empty() {
        lines.push(format!("running    {}", report.running.join(", ")));
    }
    lines.extend(report.layers.iter().map(layer_line));
    lines
}

/// Says how a mount is served.
fn over(served: &ServedReport) -> String {
    let passthrough = if served.passthrough { ", passthrough" } else { "" };
    let why = served.why_not_ring.as_ref().map_or(String::new(), |why| format!(" ({why})"));
    format!(", over {}{why}{passthrough}", served.over)
}

fn layer_line(layer: &LayerStatus) -> String {
    format!(
        "layer      {}: {} virtual ({}), {} hydrated ({})",
        layer.task,
        output::count(layer.virtual_files, "file"),
        output::bytes(layer.virtual_bytes),
        output::count(layer.hydrated_files, "file"),
        output::bytes(layer.hydrated_bytes)
    )
}

fn status_json(report: &StatusReport) -> serde_json::Value {
    let sum = |of: fn(&LayerStatus) -> u64| report.layers.iter().map(of).sum::<u64>();
    let layers: Vec<_> = report
        .layers
        .iter()
        .map(|layer| {
            serde_json::json!({
                "task": layer.task,
                "entry": layer.entry,
                "virtual_files": layer.virtual_files,
                "virtual_bytes": layer.virtual_bytes,
                "hydrated_files": layer.hydrated_files,
                "hydrated_bytes": layer.hydrated_bytes,
            })
        })
        .collect();
    serde_json::json!({
        "workspace": report.workspace,
        "store": report.store,
        "mounted": report.mounted_at.is_some(),
        "mounted_at": report.mounted_at,
        "served": report.served,
        "daemon_pid": report.daemon_pid,
        "running": report.running,
        "entries": report.entries,
        "archive_bytes": report.archive_bytes,
        "hydrated_bytes": report.hydrated_bytes,
        "virtual_files": sum(|layer| layer.virtual_files),
        "virtual_bytes": sum(|layer| layer.virtual_bytes),
        "layers": layers,
    })
}

fn why_lines(report: &WhyReport, now: i64) -> Vec<String> {
    let when = output::ago(report.when, now);
    let compared = output::count(report.inputs, "input");
    let mut lines = Vec::new();
    match (&report.hit, &report.miss) {
        (Some(entry), _) => {
            lines.push(format!("{}: hit, {when}", report.task));
            lines.push(format!("  {compared} as in entry {entry}"));
        }
        (None, Some(miss)) => {
            lines.push(format!("{}: miss, {when}", report.task));
            lines.extend(explain::miss_details(miss).into_iter().map(|line| format!("  {line}")));
        }
        (None, None) => lines.push(format!("{}: not looked up, {when}", report.task)),
    }
    if let (None, Some(closest)) = (&report.hit, &report.closest) {
        lines.push(format!("  compared with entry {closest} ({compared})"));
    }
    if let Some(reason) = &report.not_stored {
        lines.push(format!("  the run after it was not stored: {}", explain::not_stored(reason)));
    }
    lines
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;
    use vout::path::RelPathBuf;
    use vout::report::{Difference, MissReason, NotStored};

    use super::*;

    fn report() -> StatusReport {
        StatusReport {
            workspace: "/w".into(),
            store: "/w/.vout".into(),
            mounted_at: Some("/w".into()),
            served: Some(ServedReport {
                over: "/dev/fuse".into(),
                why_not_ring: Some("fuse.enable_uring is off".into()),
                passthrough: true,
                requests: [("Lookup".to_owned(), 3)].into(),
            }),
            daemon_pid: 7,
            running: vec!["test".into()],
            layers: vec![LayerStatus {
                task: "build".into(),
                entry: Uuid::nil(),
                virtual_files: 2,
                virtual_bytes: 2048,
                hydrated_files: 1,
                hydrated_bytes: 10,
            }],
            archive_bytes: 4096,
            hydrated_bytes: 10,
            entries: 1,
        }
    }

    #[test]
    fn status_for_people() {
        insta::assert_snapshot!(status_lines(&report()).join("\n"), @r"
        workspace  /w
        mounted    at /w, over /dev/fuse (fuse.enable_uring is off), passthrough
        store      /w/.vout: 1 entry, 4.0 KiB in archives, 10 B hydrated
        daemon     process 7
        running    test
        layer      build: 2 files virtual (2.0 KiB), 1 file hydrated (10 B)
        ");
    }

    #[test]
    fn status_for_scripts_has_the_sums() {
        let json = status_json(&report());
        assert_eq!((&json["mounted"], &json["virtual_files"]), (&true.into(), &2.into()));
        assert_eq!(json["layers"][0]["virtual_bytes"], 2048);
    }

    #[test]
    fn a_miss_is_explained_with_all_its_causes() {
        let path = |text: &str| RelPathBuf::new(text).unwrap();
        let why = WhyReport {
            task: "build".into(),
            when: 100,
            hit: None,
            miss: Some(MissReason::Changed(vec![
                Difference::Modified(path("src/a.txt")),
                Difference::Env("CC".into()),
            ])),
            closest: Some(Uuid::nil()),
            inputs: 3,
            not_stored: Some(NotStored::Failed),
        };
        insta::assert_snapshot!(why_lines(&why, 112).join("\n"), @r"
        build: miss, 12 s ago
          'src/a.txt' modified
          env 'CC' changed
          compared with entry 00000000-0000-0000-0000-000000000000 (3 inputs)
          the run after it was not stored: the task failed
        ");
    }
}
