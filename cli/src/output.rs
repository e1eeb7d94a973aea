//! The only place that prints: results to standard output, everything else to standard error.

use std::borrow::Cow;
use std::io::{self, IsTerminal, Write};

use indicatif::{ProgressBar, ProgressStyle};
use vout::report::{Progress, Stage};

/// How much is said on standard error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Verbosity {
    /// Errors only.
    Quiet,
    /// A line per task.
    Normal,
    /// All reasons and counts.
    Verbose,
}

/// Writes a line of the result. A reader that went away is no error: it has seen what it wanted.
pub(crate) fn result(line: impl AsRef<str>) {
    let mut stdout = io::stdout().lock();
    drop(stdout.write_all(line.as_ref().as_bytes()).and_then(|()| stdout.write_all(b"\n")));
}

/// Writes `value` as JSON to standard output.
pub(crate) fn json(value: &serde_json::Value) {
    result(format!("{value:#}"));
}

/// Writes a status line, marked as ours, to standard error.
pub(crate) fn note(line: impl AsRef<str>) {
    // One write, so that lines of several tasks do not mix.
    drop(io::stderr().lock().write_all(format!("vout: {}\n", line.as_ref()).as_bytes()));
}

/// Shows a number of bytes as people read it.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    // Tenths of a unit, in integers: a float would lose nothing that matters, but rounds 1023.99 up to 1024.
    let mut unit = 0;
    let mut scale: u64 = 1024;
    while unit + 1 < UNITS.len() && count / scale >= 1024 {
        scale *= 1024;
        unit += 1;
    }
    let tenths = u128::from(count) * 10 / u128::from(scale);
    format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
}

/// Shows a duration as people read it.
pub(crate) fn duration(ms: u64) -> String {
    match ms {
        0..1000 => format!("{ms} ms"),
        1000..60_000 => format!("{}.{} s", ms / 1000, ms % 1000 / 100),
        _ => format!("{} min {} s", ms / 60_000, ms % 60_000 / 1000),
    }
}

/// Shows how long ago `then` was, both in seconds since the epoch.
pub(crate) fn ago(then: i64, now: i64) -> String {
    match now.saturating_sub(then) {
        ..2 => "just now".to_owned(),
        seconds @ 2..120 => format!("{seconds} s ago"),
        seconds @ 120..7200 => format!("{} min ago", seconds / 60),
        seconds @ 7200..172_800 => format!("{} h ago", seconds / 3600),
        seconds => format!("{} days ago", seconds / 86_400),
    }
}

/// Shortens a task's name for a status line: that of an ad hoc run may be a whole script.
pub(crate) fn short(name: &str) -> Cow<'_, str> {
    const CHARS_MAX: usize = 50;
    let line = name.lines().next().unwrap_or_default();
    match line.char_indices().nth(CHARS_MAX) {
        Some((end, _)) => format!("{}…", &line[..end]).into(),
        None if line.len() < name.len() => format!("{line}…").into(),
        None => line.into(),
    }
}

/// Shows a count with its noun.
pub(crate) fn count(number: u64, noun: &str) -> String {
    if number == 1 { format!("1 {noun}") } else { format!("{number} {noun}s") }
}

/// Shows the progress of something that takes a while: a bar on a terminal, else, where wanted, lines.
pub(crate) struct ProgressDisplay {
    bar: Option<ProgressBar>,
    /// Whether a first and a last line are written where there is no terminal.
    lines: bool,
    stage: Option<Stage>,
}

impl ProgressDisplay {
    /// Shows nothing unless standard error is a terminal.
    pub(crate) const fn bar_only() -> Self {
        Self { bar: None, lines: false, stage: None }
    }

    /// Writes the amount as a line where standard error is not a terminal.
    pub(crate) const fn bar_or_lines() -> Self {
        Self { bar: None, lines: true, stage: None }
    }

    /// Shows how far it is.
    pub(crate) fn update(&mut self, progress: &Progress) {
        let verb = match progress.stage {
            Stage::Restoring => "restoring",
            Stage::Packing => "packing",
            Stage::Materialising => "materialising",
        };
        if self.stage != Some(progress.stage) {
            self.finish();
            self.stage = Some(progress.stage);
            let amount =
                format!("{verb} {} ({})", count(progress.files_total, "file"), bytes(progress.bytes_total));
            if io::stderr().is_terminal() {
                if self.lines {
                    note(&amount);
                }
                let style = ProgressStyle::with_template(
                    "{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {eta}",
                )
                .unwrap_or_else(|_| ProgressStyle::default_bar())
                .progress_chars("=> ");
                let bar = ProgressBar::new(progress.bytes_total).with_style(style);
                self.bar = Some(bar.with_message(verb));
            } else if self.lines {
                note(amount);
            }
        }
        if let Some(bar) = &self.bar {
            bar.set_length(progress.bytes_total);
            bar.set_position(progress.bytes_done);
        }
    }

    /// Takes the bar away.
    pub(crate) fn finish(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

impl Drop for ProgressDisplay {
    fn drop(&mut self) {
        self.finish();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_shown_in_the_largest_unit_that_keeps_them_above_one() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1024), "1.0 KiB");
        assert_eq!(bytes(1024 * 1024 - 1), "1023.9 KiB");
        assert_eq!(bytes(5 * 1024 * 1024 * 1024), "5.0 GiB");
        assert_eq!(bytes(u64::MAX), "16383.9 PiB");
    }

    #[test]
    fn long_names_are_cut_between_characters() {
        assert_eq!(short("make -j4"), "make -j4");
        assert_eq!(short("a\nb"), "a…");
        assert_eq!(short(&"ä".repeat(60)), format!("{}…", "ä".repeat(50)));
    }

    #[test]
    fn durations_are_short() {
        assert_eq!(duration(999), "999 ms");
        assert_eq!(duration(3400), "3.4 s");
        assert_eq!(duration(61_000), "1 min 1 s");
    }

    #[test]
    fn times_ahead_of_the_clock_are_now() {
        assert_eq!(ago(100, 50), "just now");
        assert_eq!(ago(0, 90), "90 s ago");
        assert_eq!(ago(0, 200_000), "2 days ago");
    }
}
