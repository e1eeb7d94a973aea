//! Errors as the client gets them.

use std::error::Error;

use vout::proto::{Failure, FailureKind};

/// Turns an error and its causes into an answer.
pub(crate) fn failure(kind: FailureKind, error: &dyn Error, hints: &[&str]) -> Failure {
    let mut causes = vec![error.to_string()];
    let mut next = error.source();
    while let Some(cause) = next {
        causes.push(cause.to_string());
        next = cause.source();
    }
    Failure { kind, causes, hints: hints.iter().map(ToString::to_string).collect() }
}

/// Answers a request that cannot be met as it stands.
pub(crate) fn user_failure(problem: String, hints: &[&str]) -> Failure {
    let hints = hints.iter().map(ToString::to_string).collect();
    Failure { kind: FailureKind::User, causes: vec![problem], hints }
}

/// Answers a request that failed for our reason.
pub(crate) fn internal(error: &dyn Error) -> Failure {
    tracing::warn!(%error, "request failed");
    failure(FailureKind::Internal, error, &[])
}
