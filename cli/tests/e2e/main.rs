//! End-to-end tests: the real programs on real mounts.
//!
//! Each test owns a workspace and a daemon. Most scenarios run twice, under a live mount and without one:
//! `in_both_modes!` makes two tests of a function that takes a [`support::Mode`].
#![cfg(feature = "mount-tests")]
// `allow-unwrap-in-tests` does not cover the functions that several tests share.
#![allow(clippy::unwrap_used, reason = "a failing step of a test is a failing test")]

mod support;

mod beneath;
mod cache;
mod concurrent;
mod damage;
mod errors;
mod exclusive;
mod failing_disk;
mod filters;
mod hostile;
mod idle;
mod inputs;
mod interrupts;
mod likeness;
mod logical;
mod mounts;
mod numbers;
mod open_files;
mod programs;
mod real;
mod recorder;
mod restore;
mod socket;
mod terminal;
mod watchers;

/// Makes a test under a live mount and one without of each scenario.
macro_rules! in_both_modes {
    ($($scenario:ident),+ $(,)?) => {$(
        mod $scenario {
            use crate::support::{Mode, TestResult};

            #[test]
            fn mounted() -> TestResult {
                super::$scenario(Mode::Mounted)
            }

            #[test]
            fn unmounted() -> TestResult {
                super::$scenario(Mode::Unmounted)
            }
        }
    )+};
}
pub(crate) use in_both_modes;

/// Makes a test with passthrough, where the kernel and the user may, and one without of each scenario, which takes what
/// `VOUT_PASSTHROUGH` is.
macro_rules! with_passthrough_and_without {
    ($($scenario:ident),+ $(,)?) => {$(
        mod $scenario {
            use crate::support::TestResult;

            #[test]
            fn with_passthrough() -> TestResult {
                super::$scenario("1")
            }

            #[test]
            fn without() -> TestResult {
                super::$scenario("0")
            }
        }
    )+};
}
pub(crate) use with_passthrough_and_without;
