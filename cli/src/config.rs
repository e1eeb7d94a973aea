//! Reads the workspace's `vout.toml`.

use std::fs;
use std::io;
use std::path::Path;

use vout::config::Config;
use vout::serving::{Transport, Wishes};

use crate::args::ServingArgs;
use crate::error::CommandError;
use crate::workspace::{CONFIG_FILE, Place, Surroundings};

/// Variable that chooses the transport.
const TRANSPORT_ENV: &str = "VOUT_TRANSPORT";

/// Variable that switches passthrough off (`0`) or on (`1`).
const PASSTHROUGH_ENV: &str = "VOUT_PASSTHROUGH";

/// Variable that promises (`1`), or not (`0`), that the workspace is changed through the live mount only.
const EXCLUSIVE_ENV: &str = "VOUT_EXCLUSIVE";

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
    Place::find(surroundings, explicit, |root| Ok(load(root)?.unwrap_or_default()))
}

/// Decides how a mount is served: options go before variables, and these before the configuration.
pub(crate) fn serving(
    args: ServingArgs,
    surroundings: &Surroundings,
    configured: Wishes,
) -> Result<Wishes, CommandError> {
    let mut serving = configured;
    if let Some(word) = surroundings.var(TRANSPORT_ENV) {
        serving.transport = word.to_str().and_then(Transport::from_word).ok_or_else(|| {
            CommandError::usage(format_args!("{TRANSPORT_ENV} is {word:?}; it can be auto, uring or dev"))
        })?;
    }
    serving.passthrough = switch(surroundings, PASSTHROUGH_ENV)?.or(serving.passthrough);
    serving.exclusive = switch(surroundings, EXCLUSIVE_ENV)?.unwrap_or(serving.exclusive);
    serving.transport = args.transport.unwrap_or(serving.transport);
    serving.passthrough = match (args.passthrough, args.no_passthrough) {
        (true, _) => Some(true),
        (_, true) => Some(false),
        _ => serving.passthrough,
    };
    Ok(serving)
}

/// Returns what a variable says that switches something on or off.
fn switch(surroundings: &Surroundings, name: &str) -> Result<Option<bool>, CommandError> {
    let Some(word) = surroundings.var(name) else { return Ok(None) };
    match word.to_str() {
        Some("0") => Ok(Some(false)),
        Some("1") => Ok(Some(true)),
        _ => Err(CommandError::usage(format_args!("{name} is {word:?}; it can be 0 or 1"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_go_before_variables_and_these_before_the_configuration() {
        let surroundings = |env: &[(&str, &str)]| Surroundings {
            cwd: "/".into(),
            env: env.iter().map(|(name, value)| (name.into(), value.into())).collect(),
        };
        let configured = Wishes { transport: Transport::Dev, ..Wishes::default() };
        let none = ServingArgs::default();
        let plain = serving(none, &surroundings(&[]), configured).unwrap();
        assert_eq!(plain, configured);
        assert_eq!((plain.for_view().passthrough, plain.for_live_mount().passthrough), (true, false));
        let around = surroundings(&[(TRANSPORT_ENV, "uring"), (PASSTHROUGH_ENV, "0")]);
        let from_env = serving(none, &around, configured).unwrap();
        assert_eq!((from_env.transport, from_env.passthrough), (Transport::Uring, Some(false)));
        let args = ServingArgs { transport: Some(Transport::Auto), no_passthrough: true, ..none };
        let from_args = serving(args, &surroundings(&[(PASSTHROUGH_ENV, "1")]), configured).unwrap();
        assert_eq!((from_args.transport, from_args.passthrough), (Transport::Auto, Some(false)));
        let asked = serving(ServingArgs { passthrough: true, ..none }, &around, configured).unwrap();
        assert!(asked.for_live_mount().passthrough);
        let promised = Wishes { exclusive: true, ..configured };
        let promises = |around: &[(&str, &str)], configured| {
            serving(none, &surroundings(around), configured).unwrap().for_live_mount().exclusive
        };
        assert!(!promises(&[], configured) && promises(&[], promised));
        assert!(
            promises(&[(EXCLUSIVE_ENV, "1")], configured) && !promises(&[(EXCLUSIVE_ENV, "0")], promised)
        );
        for bad in [(TRANSPORT_ENV, "pigeon"), (PASSTHROUGH_ENV, "yes"), (EXCLUSIVE_ENV, "maybe")] {
            assert_eq!(serving(none, &surroundings(&[bad]), configured).unwrap_err().exit_code(), 2);
        }
    }

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
