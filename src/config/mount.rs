//! The `[mount]` table: how views and the live mount are served.

use super::error::ConfigError;
use super::read::Value;
use crate::serving::{Transport, Wishes};

const KEYS: &[&str] = &["transport", "passthrough", "xattrs", "exclusive"];

/// Reads the table; what it does not name stays as it is by default.
pub(super) fn read(value: Value<'_>) -> Result<Wishes, ConfigError> {
    let mut serving = Wishes::default();
    for entry in value.table()? {
        match entry.key {
            "transport" => serving.transport = entry.choice(Transport::WORDS)?,
            "passthrough" => serving.passthrough = Some(entry.boolean()?),
            "xattrs" => serving.xattrs = entry.boolean()?,
            "exclusive" => serving.exclusive = entry.boolean()?,
            _ => return Err(entry.unknown_key("[mount]", KEYS)),
        }
    }
    Ok(serving)
}
