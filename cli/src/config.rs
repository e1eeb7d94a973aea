//! Reads the workspace's `vout.toml`.

use std::fs;
use std::io;
use std::path::Path;

use vout::config::Config;

use crate::error::CommandError;
use crate::workspace::{CONFIG_FILE, Place, Surroundings};

/// Reads the configuration of the workspace at `root`; `None` where it has none.
pub(crate) fn load(root: &Path) -> Result<Option<Config>, CommandError> {
    let path = root.join(CONFIG_FILE);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => {
            return Err(CommandError::config(format_args!("cannot read {path:?}")).caused_by(&error));
        }
    };
    Config::parse(&text, Path::new(CONFIG_FILE)).map(Some).map_err(|error| {
        let described = CommandError::config(&error);
        match error.hint {
            Some(hint) => described.hint(hint),
            None => described,
        }
    })
}

/// Finds the workspace at `explicit` or around the current directory, and its store.
pub(crate) fn place(surroundings: &Surroundings, explicit: Option<&Path>) -> Result<Place, CommandError> {
    Place::find(surroundings, explicit, |root| {
        Ok(load(root)?.map(|config| config.cache().clone()).unwrap_or_default())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_file_is_no_configuration_and_a_bad_one_an_error_with_its_line() {
        let dir = tempfile::tempdir().unwrap();
        assert!(load(dir.path()).unwrap().is_none());
        fs::write(dir.path().join(CONFIG_FILE), "[tasks.a]\ncomand = 'x'\n").unwrap();
        let error = load(dir.path()).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("vout.toml:2:1"), "{error}");
        assert!(error.to_string().contains("\"command\""), "{error}");
    }
}
