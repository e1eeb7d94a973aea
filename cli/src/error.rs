//! What can go wrong, told to a person: whose fault it is, what caused it, and what to do about it.

use std::error::Error;
use std::fmt;
use std::io::{self, Write};

use vout::proto::{Failure, FailureKind};

/// Exit code for a fault of ours or of the machine.
pub(crate) const EXIT_INTERNAL: u8 = 125;

/// Exit code for usage and configuration.
pub(crate) const EXIT_USAGE: u8 = 2;

/// Exit code for a request that cannot be met as it stands.
pub(crate) const EXIT_USER: u8 = 1;

/// Whose fault an error is; decides the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ErrorKind {
    /// The request cannot be met as it stands.
    User,
    /// `vout.toml`, the environment or the store is unusable.
    Config,
    /// The command line makes no sense.
    Usage,
    /// A fault of ours or of the machine.
    Internal,
}

/// An error as it is shown: one sentence, its causes, and advice.
#[derive(Debug)]
pub(crate) struct CommandError {
    /// Whose fault it is.
    pub(crate) kind: ErrorKind,
    /// What went wrong, outermost first; never empty.
    pub(crate) causes: Vec<String>,
    /// What to do about it.
    pub(crate) hints: Vec<String>,
}

impl CommandError {
    fn new(kind: ErrorKind, message: impl fmt::Display) -> Self {
        Self { kind, causes: vec![message.to_string()], hints: Vec::new() }
    }

    /// The request cannot be met as it stands.
    pub(crate) fn user(message: impl fmt::Display) -> Self {
        Self::new(ErrorKind::User, message)
    }

    /// Configuration or store is unusable.
    pub(crate) fn config(message: impl fmt::Display) -> Self {
        Self::new(ErrorKind::Config, message)
    }

    /// The command line makes no sense.
    pub(crate) fn usage(message: impl fmt::Display) -> Self {
        Self::new(ErrorKind::Usage, message)
    }

    /// A fault of ours or of the machine.
    pub(crate) fn internal(message: impl fmt::Display) -> Self {
        Self::new(ErrorKind::Internal, message)
    }

    /// Adds `source` and the chain behind it.
    #[must_use]
    pub(crate) fn caused_by(mut self, source: &(dyn Error + 'static)) -> Self {
        let mut next = Some(source);
        while let Some(error) = next {
            self.causes.push(error.to_string());
            next = error.source();
        }
        self
    }

    /// Adds advice.
    #[must_use]
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }

    /// Returns the exit code of `vout`.
    pub(crate) fn exit_code(&self) -> u8 {
        match self.kind {
            ErrorKind::User => EXIT_USER,
            ErrorKind::Config | ErrorKind::Usage => EXIT_USAGE,
            ErrorKind::Internal => EXIT_INTERNAL,
        }
    }

    /// Shows the error on standard error; there is nowhere to report a failure to do so.
    pub(crate) fn print(&self) {
        drop(io::stderr().lock().write_all(self.to_string().as_bytes()));
    }
}

/// Shows `error: …`, `  caused by: …` and `hint: …`, a line each.
impl fmt::Display for CommandError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, cause) in self.causes.iter().enumerate() {
            let label = if index == 0 { "error" } else { "  caused by" };
            writeln!(f, "{label}: {cause}")?;
        }
        self.hints.iter().try_for_each(|hint| writeln!(f, "hint: {hint}"))
    }
}

impl Error for CommandError {}

impl From<Failure> for CommandError {
    fn from(failure: Failure) -> Self {
        let kind = match failure.kind {
            FailureKind::User => ErrorKind::User,
            FailureKind::Config => ErrorKind::Config,
            FailureKind::Internal => ErrorKind::Internal,
        };
        let causes = if failure.causes.is_empty() {
            vec!["vout-mountd refused the request without saying why".to_owned()]
        } else {
            failure.causes
        };
        Self { kind, causes, hints: failure.hints }
    }
}

/// Turns a failed system call into a fault of the machine, with a sentence about what was tried.
pub(crate) trait Attempted<T> {
    /// `what` completes "cannot …".
    fn attempted(self, what: impl fmt::Display) -> Result<T, CommandError>;
}

impl<T, E: Error + 'static> Attempted<T> for Result<T, E> {
    fn attempted(self, what: impl fmt::Display) -> Result<T, CommandError> {
        self.map_err(|error| CommandError::internal(format_args!("cannot {what}")).caused_by(&error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_shows_its_causes_and_its_hints_a_line_each() {
        let source = io::Error::other("disk on fire");
        let error = CommandError::config("store \"/s\" is unusable").caused_by(&source).hint("buy a disk");
        assert_eq!(
            error.to_string(),
            "error: store \"/s\" is unusable\n  caused by: disk on fire\nhint: buy a disk\n"
        );
    }

    #[test]
    fn the_kind_decides_the_exit_code() {
        assert_eq!(CommandError::user("").exit_code(), 1);
        assert_eq!(CommandError::config("").exit_code(), 2);
        assert_eq!(CommandError::usage("").exit_code(), 2);
        assert_eq!(CommandError::internal("").exit_code(), 125);
    }
}
