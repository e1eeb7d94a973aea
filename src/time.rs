//! Points in time, to the nanosecond, before and after the epoch.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// A point in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Timestamp {
    /// Whole seconds since the epoch; negative before it.
    pub secs: i64,
    /// Nanoseconds within the second, below 1,000,000,000.
    pub nanos: u32,
}

impl From<SystemTime> for Timestamp {
    fn from(time: SystemTime) -> Self {
        match time.duration_since(UNIX_EPOCH) {
            Ok(after) => {
                Self { secs: i64::try_from(after.as_secs()).unwrap_or(i64::MAX), nanos: after.subsec_nanos() }
            }
            Err(before) => {
                let before = before.duration();
                let whole = i64::try_from(before.as_secs()).unwrap_or(i64::MAX);
                match before.subsec_nanos() {
                    0 => Self { secs: -whole, nanos: 0 },
                    nanos => Self { secs: -whole - 1, nanos: 1_000_000_000 - nanos },
                }
            }
        }
    }
}

impl Timestamp {
    /// Returns the present time as file systems take it: from the clock's last tick, so that times that we
    /// and they give are in order.
    #[must_use]
    pub fn now() -> Self {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::RealtimeCoarse);
        Self { secs: now.tv_sec, nanos: u32::try_from(now.tv_nsec).unwrap_or(0) }
    }

    /// Returns the time `by_ns` nanoseconds later (earlier, if negative).
    #[must_use]
    pub fn shifted(self, by_ns: i64) -> Self {
        let nanos = i64::from(self.nanos) + by_ns.rem_euclid(1_000_000_000);
        Self {
            secs: self
                .secs
                .saturating_add(by_ns.div_euclid(1_000_000_000))
                .saturating_add(nanos / 1_000_000_000),
            nanos: u32::try_from(nanos % 1_000_000_000).expect("a remainder of a billion"),
        }
    }

    /// Returns the nanoseconds from `earlier` to `self`, saturating at some 292 years.
    #[must_use]
    pub fn ns_since(self, earlier: Self) -> i64 {
        let ns = (i128::from(self.secs) - i128::from(earlier.secs)) * 1_000_000_000 + i128::from(self.nanos)
            - i128::from(earlier.nanos);
        i64::try_from(ns).unwrap_or(if ns < 0 { i64::MIN } else { i64::MAX })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shifting_by_a_difference_leads_from_one_time_to_the_other() {
        for (a, b) in [((5, 999_999_999), (6, 0)), ((0, 1), (-3, 999_999_998)), ((7, 7), (7, 7))] {
            let [a, b] = [a, b].map(|(secs, nanos)| Timestamp { secs, nanos });
            assert_eq!(a.shifted(b.ns_since(a)), b);
            assert_eq!(b.shifted(a.ns_since(b)), a);
        }
    }
}
