//! The `[cache]` table: where the store is and how much it keeps.

use std::path::PathBuf;
use std::time::Duration;

use super::error::ConfigError;
use super::read::Value;

const KEYS: &[&str] = &["store", "size_max", "age_max", "entries_per_task_max"];

const SIZE_UNITS: &[(&str, u64)] = &[
    ("", 1),
    ("b", 1),
    ("kb", 1_000),
    ("mb", 1_000_000),
    ("gb", 1_000_000_000),
    ("tb", 1_000_000_000_000),
    ("kib", 1 << 10),
    ("mib", 1 << 20),
    ("gib", 1 << 30),
    ("tib", 1 << 40),
];

const AGE_UNITS: &[(&str, u64)] =
    &[("s", 1), ("m", 60), ("h", 60 * 60), ("d", 24 * 60 * 60), ("w", 7 * 24 * 60 * 60)];

/// Where the store is and how much it keeps; `None` leaves the default.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CacheConfig {
    /// Path of the store: absolute, or relative to the workspace root.
    pub store: Option<PathBuf>,
    /// Most bytes of archives and hydrated files.
    pub size_max_bytes: Option<u64>,
    /// Longest time that an entry is kept unused.
    pub age_max: Option<Duration>,
    /// Most entries of one task.
    pub entries_per_task_max: Option<u32>,
}

impl CacheConfig {
    pub(super) fn read(value: Value<'_>) -> Result<Self, ConfigError> {
        let mut cache = Self::default();
        for entry in value.table()? {
            match entry.key {
                "store" => cache.store = Some(read_store(entry)?),
                "size_max" => {
                    let expected = "it must be a whole number and a unit, as in \"10 GiB\"";
                    cache.size_max_bytes = Some(read_amount(entry, SIZE_UNITS, expected)?);
                }
                "age_max" => {
                    let expected = "it must be a whole number and one of s, m, h, d or w, as in \"30d\"";
                    cache.age_max = Some(Duration::from_secs(read_amount(entry, AGE_UNITS, expected)?));
                }
                "entries_per_task_max" => cache.entries_per_task_max = Some(entry.count()?),
                _ => return Err(entry.unknown_key("[cache]", KEYS)),
            }
        }
        Ok(cache)
    }
}

fn read_store(value: Value<'_>) -> Result<PathBuf, ConfigError> {
    let text = value.string()?;
    if text.is_empty() {
        return Err(value.bad_value(text, "it must be a path"));
    }
    if text.contains('\0') {
        return Err(value.bad_value(text, "a path has no NUL character"));
    }
    if text.starts_with('~') || text.contains('$') {
        return Err(value.bad_value(text, "'~' and variables are not expanded here; see VOUT_STORE"));
    }
    Ok(PathBuf::from(text))
}

fn read_amount(value: Value<'_>, units: &[(&str, u64)], expected: &'static str) -> Result<u64, ConfigError> {
    let text = value.string()?;
    parse_amount(text, units).filter(|&amount| amount > 0).ok_or_else(|| value.bad_value(text, expected))
}

/// Returns the amount in the smallest unit; `None` where it is none, or too large.
fn parse_amount(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let unit = unit.trim_matches(' ').to_ascii_lowercase();
    let (_, factor) = units.iter().find(|(name, _)| *name == unit)?;
    number.parse::<u64>().ok()?.checked_mul(*factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_have_units() {
        for (text, expected) in [
            ("10 GiB", Some(10 << 30)),
            ("500MB", Some(500_000_000)),
            ("1 tib", Some(1 << 40)),
            ("42", Some(42)),
            ("1.5 GiB", None),
            ("GiB", None),
            ("-1 B", None),
            ("10 elephants", None),
            ("99999999999999999999", None),
            ("99999999999 TiB", None),
        ] {
            assert_eq!(parse_amount(text, SIZE_UNITS), expected, "{text}");
        }
        assert_eq!(parse_amount("30d", AGE_UNITS), Some(30 * 86_400));
        assert_eq!(parse_amount("30", AGE_UNITS), None);
    }
}
