//! `vout doctor`: what this machine offers, and the commands that would make it offer more.

use std::fs::{self, OpenOptions};
use std::io;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use crate::config;
use crate::error::CommandError;
use crate::output;
use crate::view::{fusermount, namespace};
use crate::workspace::Surroundings;

/// First kernel that lets a privileged server hand files to the kernel.
const PASSTHROUGH_SINCE: (u32, u32) = (6, 9);

/// First kernel with FUSE over io_uring.
const URING_SINCE: (u32, u32) = (6, 14);

/// Where requests of a mounted view come from.
const FUSE_DEVICE: &str = "/dev/fuse";

/// Where the kernel says whether FUSE may use io_uring.
const URING_SWITCH: &str = "/sys/module/fuse/parameters/enable_uring";

/// What was found out about the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Findings {
    kernel: String,
    root: bool,
    /// Why `/dev/fuse` cannot be opened.
    fuse: Result<(), String>,
    /// Why there is no private namespace with a view in it.
    namespace: Result<(), String>,
    helper: Option<&'static str>,
    uring: bool,
}

/// How well views work here; each rung includes those below it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rung {
    /// No views: inputs and outputs have to be declared.
    ExplicitOnly,
    /// Views at another path.
    Elsewhere,
    /// Views in place, in a user namespace.
    UserNamespace,
    /// Views in place, as root.
    Root,
    /// The same, and file contents at native speed.
    Passthrough,
}

/// Shows what was found and what to do.
pub(crate) fn doctor(surroundings: &Surroundings) -> Result<ExitCode, CommandError> {
    let findings = Findings::of_this_machine();
    for line in findings.lines() {
        output::result(line);
    }
    // Outside a workspace there is nothing more to tell, which is no fault.
    if let Ok(place) = config::place(surroundings, None) {
        output::result(format!("workspace          {}", place.root.display()));
        output::result(format!("store              {}", place.store.display()));
        output::result(format!("log of the daemon  {}", place.runtime.log().display()));
    }
    Ok(ExitCode::SUCCESS)
}

/// Tries what a view needs, in a process of its own: the hidden `vout __probe`.
pub(crate) fn probe() -> Result<ExitCode, CommandError> {
    namespace::unshare()?;
    if open_fuse().is_ok() {
        // Any directory does: the mount is seen by this process only, and goes with it.
        namespace::mount(Path::new("/proc"))?;
    }
    Ok(ExitCode::SUCCESS)
}

impl Findings {
    fn of_this_machine() -> Self {
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned();
        Self {
            kernel,
            root: rustix::process::geteuid().is_root(),
            fuse: open_fuse().map_err(|error| error.to_string()),
            namespace: run_probe(),
            helper: fusermount::helper(),
            uring: fs::read_to_string(URING_SWITCH).is_ok_and(|value| value.trim() == "Y"),
        }
    }

    fn rung(&self) -> Rung {
        match (&self.fuse, &self.namespace) {
            (Err(_), _) => Rung::ExplicitOnly,
            (Ok(()), Err(_)) if self.helper.is_some() => Rung::Elsewhere,
            (Ok(()), Err(_)) => Rung::ExplicitOnly,
            (Ok(()), Ok(())) if !self.root => Rung::UserNamespace,
            (Ok(()), Ok(())) if is_at_least(&self.kernel, PASSTHROUGH_SINCE) => Rung::Passthrough,
            (Ok(()), Ok(())) => Rung::Root,
        }
    }

    fn lines(&self) -> Vec<String> {
        let outcome = |result: &Result<(), String>| match result {
            Ok(()) => "yes".to_owned(),
            Err(problem) => format!("no: {problem}"),
        };
        let since = |wanted: (u32, u32), here: bool| match (is_at_least(&self.kernel, wanted), here) {
            (true, true) => "yes".to_owned(),
            (true, false) => "no".to_owned(),
            (false, _) => format!("no: needs Linux {}.{}", wanted.0, wanted.1),
        };
        let mut lines = vec![
            format!("kernel             {}", self.kernel),
            format!("/dev/fuse          {}", outcome(&self.fuse)),
            format!("root               {}", if self.root { "yes" } else { "no" }),
            format!("private namespace  {}", outcome(&self.namespace)),
            format!("fusermount3        {}", self.helper.unwrap_or("no")),
            format!("passthrough        {}", since(PASSTHROUGH_SINCE, self.root)),
            format!("FUSE over io_uring {}", since(URING_SINCE, self.uring)),
            String::new(),
            format!("rung               {}", self.rung().sentence()),
        ];
        lines.extend(self.advice().into_iter().map(|advice| format!("to do better       {advice}")));
        lines
    }

    /// Returns the commands that lift this machine.
    fn advice(&self) -> Vec<String> {
        let mut advice = Vec::new();
        if self.fuse.is_err() {
            advice.push(
                match (Path::new(FUSE_DEVICE).exists(), Path::new("/.dockerenv").exists()) {
                    (true, _) => "`sudo chmod 666 /dev/fuse`",
                    (false, true) => "start the container with `--device /dev/fuse --cap-add SYS_ADMIN`",
                    (false, false) => "`sudo modprobe fuse`",
                }
                .to_owned(),
            );
        }
        if self.namespace.is_err() && !self.root {
            advice.extend(namespace_switches());
            if self.helper.is_none() {
                advice.push("`sudo apt-get install fuse3` for views at another path".to_owned());
            }
        }
        if !is_at_least(&self.kernel, PASSTHROUGH_SINCE) {
            advice.push("Linux 6.9 or newer, for file contents at native speed as root".to_owned());
        } else if self.rung() == Rung::UserNamespace {
            advice.push("run as root, for file contents at native speed".to_owned());
        }
        if is_at_least(&self.kernel, URING_SINCE) && !self.uring {
            advice.push(format!("`echo Y | sudo tee {URING_SWITCH}`, for faster access to many small files"));
        }
        advice
    }
}

impl Rung {
    fn sentence(self) -> &'static str {
        match self {
            Self::ExplicitOnly => {
                "5 of 5: no views. Tasks run and nothing is stored; hits are restored eagerly."
            }
            Self::Elsewhere => "4 of 5: views at another path, so absolute paths differ in a task.",
            Self::UserNamespace => "3 of 5: views in place, in a user namespace.",
            Self::Root => "2 of 5: views in place.",
            Self::Passthrough => "1 of 5: views in place, with file contents at native speed.",
        }
    }
}

/// Returns the commands for the switches that deny user namespaces on this machine.
fn namespace_switches() -> Vec<String> {
    let switches = [
        (
            "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
            "1",
            "kernel.apparmor_restrict_unprivileged_userns=0",
        ),
        ("/proc/sys/kernel/unprivileged_userns_clone", "0", "kernel.unprivileged_userns_clone=1"),
        ("/proc/sys/user/max_user_namespaces", "0", "user.max_user_namespaces=15000"),
    ];
    let set = switches
        .into_iter()
        .filter(|(path, denied, _)| fs::read_to_string(path).is_ok_and(|value| value.trim() == *denied));
    set.map(|(_, _, command)| format!("`sudo sysctl -w {command}`")).collect()
}

fn open_fuse() -> io::Result<()> {
    OpenOptions::new().read(true).write(true).open(FUSE_DEVICE).map(drop)
}

/// Tries a view's mount in a child process.
fn run_probe() -> Result<(), String> {
    let output = Command::new("/proc/self/exe")
        .arg("__probe")
        .stdin(Stdio::null())
        .output()
        .map_err(|error| error.to_string())?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let causes: Vec<&str> = said
        .lines()
        .filter_map(|line| line.strip_prefix("error: ").or_else(|| line.strip_prefix("  caused by: ")))
        .collect();
    Err(if causes.is_empty() { output.status.to_string() } else { causes.join(": ") })
}

/// Returns whether a kernel release, as `uname -r` has it, is at least `wanted`.
fn is_at_least(release: &str, wanted: (u32, u32)) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse::<u32>().ok());
    match (numbers.next().flatten(), numbers.next().flatten()) {
        (Some(major), Some(minor)) => (major, minor) >= wanted,
        (Some(major), None) => (major, 0) >= wanted,
        (None, _) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings() -> Findings {
        Findings {
            kernel: "6.18.1-generic".into(),
            root: true,
            fuse: Ok(()),
            namespace: Ok(()),
            helper: None,
            uring: false,
        }
    }

    #[test]
    fn releases_compare_as_numbers() {
        assert!(is_at_least("6.18.44-fc-v657", (6, 9)));
        assert!(is_at_least("6.9", (6, 9)));
        assert!(!is_at_least("5.15.0-100-generic", (6, 9)));
        assert!(!is_at_least("unknown", (6, 9)));
    }

    #[test]
    fn the_rung_is_what_the_weakest_part_allows() {
        let denied = || Err("denied".to_owned());
        assert_eq!(findings().rung(), Rung::Passthrough);
        assert_eq!(Findings { kernel: "6.1.0".into(), ..findings() }.rung(), Rung::Root);
        assert_eq!(Findings { root: false, ..findings() }.rung(), Rung::UserNamespace);
        let helper = Findings { namespace: denied(), helper: Some("/usr/bin/fusermount3"), ..findings() };
        assert_eq!(helper.rung(), Rung::Elsewhere);
        assert_eq!(Findings { helper: None, ..helper.clone() }.rung(), Rung::ExplicitOnly);
        assert_eq!(Findings { fuse: denied(), ..helper }.rung(), Rung::ExplicitOnly);
    }

    #[test]
    fn a_missing_device_comes_with_the_command_that_brings_it() {
        let findings = Findings { fuse: Err("no such file".into()), ..findings() };
        let text = findings.lines().join("\n");
        assert!(text.contains("/dev/fuse          no: no such file"), "{text}");
        assert!(text.contains("to do better"), "{text}");
    }
}
