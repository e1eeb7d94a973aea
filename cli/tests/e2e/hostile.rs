//! Callers that nobody would want: random system calls with odd arguments, interrupted, and killed in the middle.
//!
//! Whatever they do, the daemon goes on, no request has a fault inside, and nobody reads what belongs to another
//! file or another request.

use std::fs;
use std::process::Command;

use crate::support::{Mode, TestResult, Workspace, compile_c};

/// How long a client goes wild, in milliseconds; `scripts/suites/hostile` has it go on for longer, from elsewhere.
const WILD_MS: &str = "4000";

/// Virtual files in its way.
const FILES: &str = "12";

/// Returns a workspace with a hostile client, and a task that makes files for it to read.
fn workspace(mode: Mode) -> Result<Workspace, Box<dyn std::error::Error>> {
    let ws = Workspace::new(mode)?.store_outside();
    let client = ws.outside().join("hostile");
    compile_c(include_str!("hostile/hostile.c"), &client, &["-O1", "-pthread"])?;
    let config = format!("[tasks.fill]\ncommand = \"{} fill {FILES}\"\n", client.display());
    let ws = ws.config(&config)?;
    ws.mount_if_asked()?;
    ws.run(["fill"])?.stored_miss();
    ws.remove("v")?;
    ws.run(["fill"])?.hit();
    Ok(ws)
}

/// Returns where a client's random numbers begin, and for how long it goes wild.
fn plan() -> [String; 2] {
    let choice = |name, otherwise: &str| std::env::var(name).unwrap_or_else(|_| otherwise.to_owned());
    [choice("VOUT_HOSTILE_SEED", "7"), choice("VOUT_HOSTILE_MS", WILD_MS)]
}

/// What must hold afterwards: the same daemon serves, and has nothing to report about itself.
fn assert_unharmed(ws: &Workspace, daemon: Option<u32>) -> TestResult {
    assert_eq!(ws.daemon(), daemon, "the daemon is the same");
    ws.status()?;
    let mut logs = 0;
    for entry in fs::read_dir(ws.outside().join("run/vout"))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "log") {
            let log = fs::read_to_string(path)?;
            let bad = |line: &&str| {
                ["internal fault", "panicked", "damaged data"].iter().any(|bad| line.contains(bad))
            };
            assert_eq!(log.lines().find(bad), None, "{log}");
            logs += 1;
        }
    }
    assert_eq!(logs, 1, "the daemon has a log");
    // Everything is still there, and what ought to be in it.
    let client = ws.outside().join("hostile");
    let status = Command::new(client).args(["1", "0", FILES]).current_dir(ws.root()).status()?;
    assert!(status.success());
    Ok(())
}

#[test]
fn a_live_mount_survives_hostile_callers() -> TestResult {
    let ws = workspace(Mode::Mounted)?;
    let daemon = ws.daemon();
    let client = ws.outside().join("hostile");
    let status = Command::new(client).args(plan()).arg(FILES).current_dir(ws.root()).status()?;
    assert!(status.success(), "{status}");
    assert_unharmed(&ws, daemon)?;
    ws.vout(["unmount"])?.ok();
    Ok(())
}

#[test]
fn a_view_survives_hostile_callers() -> TestResult {
    let ws = workspace(Mode::Mounted)?;
    let daemon = ws.daemon();
    let client = ws.outside().join("hostile");
    let [seed, wild_ms] = plan();
    ws.run(["--".as_ref(), client.as_os_str(), seed.as_ref(), wild_ms.as_ref(), FILES.as_ref()])?.ok();
    assert_unharmed(&ws, daemon)
}
