//! Arguments of `vout-mountd`. Only `vout` starts it, so there is no help text to speak of.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use thiserror::Error;
use vout::limits::Limits;

use crate::watchers::HELPER_ARGUMENT;

/// How long the daemon stays when nobody needs it, unless told otherwise.
const IDLE_DEFAULT: Duration = Duration::from_secs(10);

/// What the process is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Order {
    /// Be the daemon of a workspace.
    Serve(Box<Options>),
    /// Serve another process of this program that tells watchers what happened in its mount.
    Announce,
    /// Unmount what a killed daemon left at this absolute path, if it is there, and end.
    ClearDead(PathBuf),
}

/// What the daemon was started with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Absolute path of the workspace.
    pub workspace: PathBuf,
    /// Absolute path of the store.
    pub store: PathBuf,
    /// Absolute path of the control socket; its directory is made if it is missing.
    pub socket: PathBuf,
    /// Absolute path of the log.
    pub log: PathBuf,
    /// Whether to keep terminal and process group.
    pub foreground: bool,
    /// How long to stay when nobody needs the daemon.
    pub idle: Duration,
    /// How much the store may hold.
    pub limits: Limits,
}

/// The arguments make no sense.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "{problem}\nusage: vout-mountd --workspace PATH --store PATH --socket PATH --log PATH \
     [--idle-secs N] [--foreground] [--archive-bytes-max N] [--hydrated-bytes-max N] [--age-max-secs N] \
     [--entries-per-task-max N]\n       vout-mountd --clear-dead PATH"
)]
pub struct UsageError {
    problem: String,
}

impl Order {
    /// Reads the arguments that follow the program's name.
    ///
    /// # Errors
    /// [`UsageError`] where one is missing, unknown or malformed.
    pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Self, UsageError> {
        let mut arguments = arguments.into_iter().peekable();
        if arguments.next_if(|first| first == HELPER_ARGUMENT).is_some() {
            return Ok(Self::Announce);
        }
        if arguments.next_if(|first| first == "--clear-dead").is_none() {
            return Ok(Self::Serve(Box::new(Options::parse(arguments)?)));
        }
        let path = absolute("--clear-dead", arguments.next())?;
        match arguments.next() {
            None => Ok(Self::ClearDead(path)),
            Some(more) => Err(usage(format!("unknown argument {more:?}"))),
        }
    }
}

impl Options {
    /// Reads the arguments that follow the program's name.
    ///
    /// # Errors
    /// [`UsageError`] where one is missing, unknown or malformed.
    pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Self, UsageError> {
        let mut arguments = arguments.into_iter();
        let (mut workspace, mut store, mut socket, mut log) = (None, None, None, None);
        let (mut foreground, mut idle, mut limits) = (false, IDLE_DEFAULT, Limits::default());
        while let Some(argument) = arguments.next() {
            let name = argument.to_string_lossy().into_owned();
            let mut value = || arguments.next().ok_or_else(|| usage(format!("{name} needs a value")));
            match name.as_str() {
                "--workspace" => workspace = Some(value()?),
                "--store" => store = Some(value()?),
                "--socket" => socket = Some(value()?),
                "--log" => log = Some(value()?),
                "--foreground" => foreground = true,
                "--idle-secs" => idle = Duration::from_secs(number(&name, &value()?)?),
                "--archive-bytes-max" => limits.bytes_max = number(&name, &value()?)?,
                "--hydrated-bytes-max" => limits.blob_bytes_max = number(&name, &value()?)?,
                "--age-max-secs" => limits.age_max_secs = number(&name, &value()?)?,
                "--entries-per-task-max" => limits.entries_per_task_max = number(&name, &value()?)?,
                _ => return Err(usage(format!("unknown argument {name:?}"))),
            }
        }
        Ok(Self {
            workspace: absolute("--workspace", workspace)?,
            store: absolute("--store", store)?,
            socket: absolute("--socket", socket)?,
            log: absolute("--log", log)?,
            foreground,
            idle,
            limits,
        })
    }
}

fn absolute(name: &str, value: Option<OsString>) -> Result<PathBuf, UsageError> {
    let path = PathBuf::from(value.ok_or_else(|| usage(format!("{name} is missing")))?);
    if path.is_absolute() { Ok(path) } else { Err(usage(format!("{name} {path:?} is not absolute"))) }
}

fn number<N: FromStr>(name: &str, value: &OsStr) -> Result<N, UsageError> {
    let number = value.to_str().and_then(|text| text.parse().ok());
    number.ok_or_else(|| usage(format!("{name} needs a number, not {value:?}")))
}

fn usage(problem: String) -> UsageError {
    UsageError { problem }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Options, UsageError> {
        Options::parse(line.split(' ').map(OsString::from))
    }

    #[test]
    fn clearing_takes_one_absolute_path() {
        let order = |line: &str| Order::parse(line.split(' ').map(OsString::from));
        assert_eq!(order("--clear-dead /w"), Ok(Order::ClearDead("/w".into())));
        assert!(order("--clear-dead w").is_err() && order("--clear-dead /w --foreground").is_err());
        assert!(order("--clear-dead").is_err() && order("--workspace /w").is_err());
    }

    #[test]
    fn all_paths_are_needed_and_absolute() {
        let options = parse("--workspace /w --store /s --socket /r/s --log /r/l --idle-secs 1").unwrap();
        assert_eq!(options.idle, Duration::from_secs(1));
        assert!(!options.foreground);
        assert_eq!(options.limits, Limits::default());
        for bad in [
            "--workspace /w --store /s --socket /r/s",
            "--workspace w --store /s --socket /r/s --log /r/l",
            "--workspace /w --store /s --socket /r/s --log /r/l --idle-secs x",
            "--workspace /w --store /s --socket /r/s --log /r/l --loud",
            "--workspace",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
