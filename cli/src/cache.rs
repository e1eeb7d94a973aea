//! `vout cache`.

use std::collections::HashSet;
use std::process::ExitCode;

use serde_json::json;
use vout::proto::{Event, Request};
use vout::report::{EntryDetails, EntryReport};

use crate::args::CacheCommand;
use crate::config;
use crate::daemon::{Connection, unexpected};
use crate::error::CommandError;
use crate::output;
use crate::status::now;
use crate::workspace::Surroundings;

/// Least number of digits of an entry's id in a list.
const ID_DIGITS_MIN: usize = 8;

/// Characters of a whole id.
const ID_DIGITS: usize = uuid::fmt::Hyphenated::LENGTH;

/// Looks into the cache, or cleans it.
pub(crate) fn cache(command: &CacheCommand, surroundings: &Surroundings) -> Result<ExitCode, CommandError> {
    let place = config::place(surroundings, None)?;
    let ask = |request: &Request| Connection::open(&place)?.ask(request);
    match command {
        CacheCommand::Path => output::result(place.store.display().to_string()),
        CacheCommand::List { json } => match ask(&Request::CacheList)? {
            Event::Entries(entries) if *json => {
                output::json(&entries.iter().map(entry_json).collect());
            }
            Event::Entries(entries) => list_lines(&entries, now()).iter().for_each(output::result),
            other => return Err(unexpected(&other)),
        },
        CacheCommand::Show { id, json } => match ask(&Request::CacheShow { id: id.clone() })? {
            Event::Entry(Some(entry)) if *json => output::json(&details_json(&entry)),
            Event::Entry(Some(entry)) => details_lines(&entry, now()).iter().for_each(output::result),
            Event::Entry(None) => {
                return Err(CommandError::user(format_args!("no entry {id:?}"))
                    .hint("`vout cache list` shows what is stored"));
            }
            other => return Err(unexpected(&other)),
        },
        CacheCommand::Clean { task, json } => match ask(&Request::CacheClean { task: task.clone() })? {
            Event::Cleaned { entries, bytes } if *json => {
                output::json(&json!({ "entries": entries, "bytes": bytes }));
            }
            Event::Cleaned { entries, bytes } => {
                output::note(format!("{} removed, {} freed", entry_count(entries), output::bytes(bytes)));
            }
            other => return Err(unexpected(&other)),
        },
    }
    Ok(ExitCode::SUCCESS)
}

fn entry_count(entries: u64) -> String {
    if entries == 1 { "1 entry".to_owned() } else { format!("{entries} entries") }
}

fn list_lines(entries: &[EntryReport], now: i64) -> Vec<String> {
    let width = entries.iter().map(|entry| entry.task.chars().count()).max().unwrap_or(0).min(40);
    let digits = distinct_digits(entries);
    let mut lines: Vec<String> = entries
        .iter()
        .map(|entry| {
            format!(
                "{}  {:width$}  {:>10} in {:>9}, used {}",
                &entry.entry.to_string()[..digits],
                entry.task,
                output::bytes(entry.archive_bytes),
                output::count(entry.outputs, "file"),
                output::ago(entry.used, now)
            )
        })
        .collect();
    let total = entries.iter().map(|entry| entry.archive_bytes).sum();
    let count = entry_count(u64::try_from(entries.len()).unwrap_or(u64::MAX));
    lines.push(format!("{count}, {} in archives", output::bytes(total)));
    lines
}

/// Returns how much of the beginning of each id tells the entries apart: `vout cache show` takes that.
fn distinct_digits(entries: &[EntryReport]) -> usize {
    let ids: Vec<String> = entries.iter().map(|entry| entry.entry.to_string()).collect();
    let distinct = |digits: &usize| {
        let beginnings: HashSet<&str> = ids.iter().map(|id| &id[..*digits]).collect();
        beginnings.len() == ids.len()
    };
    (ID_DIGITS_MIN..ID_DIGITS).find(distinct).unwrap_or(ID_DIGITS)
}

fn details_lines(entry: &EntryDetails, now: i64) -> Vec<String> {
    let summary = &entry.summary;
    let archive = match &summary.archive {
        Some(archive) => format!("{} ({})", archive.display(), output::bytes(summary.archive_bytes)),
        None => "none".to_owned(),
    };
    let mut lines = vec![
        format!("entry    {}", summary.entry),
        format!("task     {}", summary.task),
        format!("stored   {}", output::ago(summary.created, now)),
        format!("used     {}", output::ago(summary.used, now)),
        format!("took     {}", output::duration(summary.recorded_ms)),
        format!("archive  {archive}"),
        format!("inputs   {}", summary.inputs),
    ];
    lines.extend(entry.inputs.iter().map(|(path, what)| format!("  {path}  {what}")));
    lines.push(format!("outputs  {} ({})", summary.outputs, output::bytes(summary.output_bytes)));
    lines.extend(entry.outputs.iter().map(|(path, what)| format!("  {path}  {what}")));
    lines
}

fn entry_json(entry: &EntryReport) -> serde_json::Value {
    json!({
        "entry": entry.entry,
        "task": entry.task,
        "archive": entry.archive,
        "archive_bytes": entry.archive_bytes,
        "inputs": entry.inputs,
        "outputs": entry.outputs,
        "output_bytes": entry.output_bytes,
        "created": entry.created,
        "used": entry.used,
        "recorded_ms": entry.recorded_ms,
    })
}

fn details_json(entry: &EntryDetails) -> serde_json::Value {
    let list = |items: &[(vout::path::RelPathBuf, String)]| -> Vec<_> {
        items.iter().map(|(path, what)| json!({ "path": path.to_string(), "what": what })).collect()
    };
    let mut value = entry_json(&entry.summary);
    value["inputs"] = list(&entry.inputs).into();
    value["outputs"] = list(&entry.outputs).into();
    value
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;
    use vout::path::RelPathBuf;

    use super::*;

    fn entry() -> EntryReport {
        EntryReport {
            entry: Uuid::from_u128(0xabc),
            task: "build".into(),
            archive: Some("/s/a.tar.zst".into()),
            archive_bytes: 2048,
            inputs: 1,
            outputs: 1,
            output_bytes: 4096,
            created: 0,
            used: 90,
            recorded_ms: 3400,
        }
    }

    #[test]
    fn the_list_ends_with_a_sum() {
        insta::assert_snapshot!(list_lines(&[entry()], 100).join("\n"), @r"
        00000000  build     2.0 KiB in    1 file, used 10 s ago
        1 entry, 2.0 KiB in archives
        ");
        let other = EntryReport { entry: Uuid::from_u128(0xdef), ..entry() };
        assert!(list_lines(&[entry(), other], 0)[0].starts_with("00000000-0000-0000-0000-000000000a  "));
        assert_eq!(list_lines(&[], 0), ["0 entries, 0 B in archives"]);
    }

    #[test]
    fn details_name_every_input_and_output() {
        let path = |text: &str| RelPathBuf::new(text).unwrap();
        let details = EntryDetails {
            summary: entry(),
            inputs: vec![(path("a.c"), "read".into())],
            outputs: vec![(path("a.o"), "file".into())],
        };
        let lines = details_lines(&details, 100);
        assert!(lines.contains(&"  a.c  read".to_owned()) && lines.contains(&"  a.o  file".to_owned()));
        let json = details_json(&details);
        assert_eq!(
            (&json["inputs"][0]["path"], &json["outputs"][0]["what"]),
            (&"a.c".into(), &"file".into())
        );
    }
}
