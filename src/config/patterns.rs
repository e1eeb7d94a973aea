//! `input` and `output`: arrays of patterns, in the file and on the command line.

use super::error::{ConfigError, ConfigProblem};
use super::read::Value;
use crate::filter::{Filter, FilterError, join};
use crate::path::RelPath;
use crate::task::{FilterItem, FilterSpec};

const ITEM: &str = "a pattern, { auto = true }, or { pattern = \"…\", base = \"workspace\" }";

/// What a pattern is relative to.
#[derive(Clone, Copy)]
enum Base {
    Cwd,
    Workspace,
}

/// Reads the filter under a key of a task whose working directory is `cwd`.
pub(super) fn read(value: Value<'_>, cwd: &RelPath) -> Result<FilterSpec, ConfigError> {
    let items = value.array("an array of patterns")?;
    let items = items.into_iter().map(|item| read_item(item, cwd)).collect::<Result<Vec<_>, _>>()?;
    Ok(complete(items))
}

fn read_item(value: Value<'_>, cwd: &RelPath) -> Result<FilterItem, ConfigError> {
    if let Some(text) = value.as_str() {
        if text == "auto" {
            let hint = "write { auto = true }, or \"./auto\" for a file of that name".to_owned();
            let error = value.bad_value(text, "as a string it would be the name of a file");
            return Err(ConfigError { hint: Some(hint), ..error });
        }
        return read_pattern(value, text, cwd);
    }
    let entries = value.as_table().ok_or_else(|| value.wrong_type(ITEM))?;
    let (mut auto, mut pattern, mut base) = (None, None, None);
    for entry in entries {
        match entry.key {
            "auto" => auto = Some(entry),
            "pattern" => pattern = Some(entry),
            "base" => base = Some(entry.choice(&[("workspace", Base::Workspace), ("cwd", Base::Cwd)])?),
            _ => return Err(entry.unknown_key("a pattern", &["auto", "pattern", "base"])),
        }
    }
    match (auto, pattern, base) {
        (Some(auto), None, None) => match auto.boolean()? {
            true => Ok(FilterItem::Auto),
            false => Err(auto.bad_value("false", "leave the item out instead")),
        },
        (None, Some(pattern), Some(Base::Workspace)) => {
            read_pattern(pattern, pattern.string()?, RelPath::ROOT)
        }
        (None, Some(pattern), Some(Base::Cwd) | None) => read_pattern(pattern, pattern.string()?, cwd),
        (Some(_), _, _) | (None, None, _) => Err(value.wrong_type(ITEM)),
    }
}

fn read_pattern(value: Value<'_>, text: &str, base: &RelPath) -> Result<FilterItem, ConfigError> {
    parse_pattern(text, base).map_err(|error| ConfigError {
        hint: error.hint().map(str::to_owned),
        ..value.error(ConfigProblem::Pattern(error))
    })
}

fn parse_pattern(text: &str, base: &RelPath) -> Result<FilterItem, FilterError> {
    let (negative, glob) = match text.strip_prefix('!') {
        Some(glob) => (true, glob),
        None => (false, text),
    };
    // The error names what was written, not what it was joined to.
    let as_written = |error: FilterError| FilterError { pattern: text.to_owned(), ..error };
    let pattern = join(base, glob).map_err(as_written)?;
    let item = FilterItem::Glob { pattern, negative };
    Filter::compile(&FilterSpec(vec![item.clone()])).map_err(as_written)?;
    Ok(item)
}

/// Adds what a filter of nothing but negatives takes away from: all that the recording found.
fn complete(mut items: Vec<FilterItem>) -> FilterSpec {
    let is_negative = |item: &FilterItem| match item {
        FilterItem::Auto => false,
        FilterItem::Glob { negative, .. } => *negative,
    };
    if !items.is_empty() && items.iter().all(is_negative) {
        items.insert(0, FilterItem::Auto);
    }
    FilterSpec(items)
}

/// Reads the values of an `--input` or `--output` option: `auto`, a glob, or `!` and a glob, relative to
/// the directory `cwd` of the workspace.
///
/// Without any the filter is `auto`; negatives alone take away from `auto`. `./auto` is a file of that name.
///
/// # Errors
/// [`FilterError`] with the pattern that is not a glob, or leads out of the workspace.
pub fn parse_cli_filter(items: &[String], cwd: &RelPath) -> Result<FilterSpec, FilterError> {
    if items.is_empty() {
        return Ok(FilterSpec::default());
    }
    let items = items.iter().map(|text| match text.as_str() {
        "auto" => Ok(FilterItem::Auto),
        _ => parse_pattern(text, cwd),
    });
    Ok(complete(items.collect::<Result<_, _>>()?))
}
