//! Inode numbers: in listings, and of files that change under somebody who has them open.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::Command;

use crate::support::{Mode, TestResult, Workspace, compile_c};

/// Chooses whether the kernel reads and writes the files itself.
const PASSTHROUGH: &str = "VOUT_PASSTHROUGH";

/// Makes a tree of all kinds of names, nine of them.
const TREE: &str = "\
mkdir -p t/d/e
echo a > t/a
echo linked > t/h1
ln t/h1 t/d/h2
ln -s a t/link
echo x > t/d/e/x
mkfifo t/d/fifo
echo g > t/g
";

fn shell(ws: &Workspace, script: &str) -> TestResult {
    let status = Command::new("sh").args(["-ec", script]).current_dir(ws.root()).status()?;
    assert!(status.success(), "{script}");
    Ok(())
}

fn lister(ws: &Workspace) -> Result<PathBuf, Box<dyn std::error::Error>> {
    let program = ws.outside().join("lister");
    compile_c(include_str!("numbers/lister.c"), &program, &[])?;
    Ok(program)
}

/// Runs a program, and expects that it prints `expected`.
#[track_caller]
fn assert_prints(mut command: Command, expected: &str) -> TestResult {
    let output = command.output()?;
    assert_eq!(String::from_utf8(output.stdout)?, expected);
    assert!(output.status.success(), "{}", output.status);
    Ok(())
}

/// Goal: a listing tells the numbers that `stat` tells, also of what nobody looked at before, of names of one file, and
/// of what was changed, moved or made meanwhile. Method: a program that lists before it looks, directory by directory.
#[test]
fn listings_of_a_view_tell_the_numbers_that_stat_tells() -> TestResult {
    let mut ws = Workspace::new(Mode::Unmounted)?.config("")?;
    let program = lister(&ws)?;
    shell(&ws, TREE)?;
    let change = "\
        \"$1\" t/d && echo more >>t/h1 && mv t/d/e/x t/x && mv t/d/e t/moved && rm t/a && echo new >t/a && \
        \"$1\" t && exec \"$1\" t";
    for passthrough in ["1", "0"] {
        ws.variable(PASSTHROUGH, passthrough);
        let run = |script: &[&OsStr]| {
            let mut task = ws.vout_command(["run", "--quiet", "--no-cache", "--", "timeout", "30"]);
            task.args(script);
            task
        };
        assert_prints(run(&[program.as_ref(), "t".as_ref()]), "9 names\n")?;
        let script = ["sh", "-c", change, "sh"].map(OsStr::new);
        assert_prints(run(&[&script[..], &[program.as_ref()]].concat()), "4 names\n9 names\n9 names\n")?;
        shell(&ws, &format!("rm -r t\n{TREE}"))?;
    }
    Ok(())
}

/// As [`listings_of_a_view_tell_the_numbers_that_stat_tells`], of real and of virtual files.
#[test]
fn listings_of_the_live_mount_tell_the_numbers_that_stat_tells() -> TestResult {
    let ws =
        Workspace::new(Mode::Mounted)?.config("[tasks.build]\ncommand = \"sh build.sh\"\n")?.store_outside();
    let program = lister(&ws)?;
    shell(&ws, TREE)?;
    ws.file("build.sh", "mkdir -p o/p && echo 1 >o/1 && ln o/1 o/p/2 && ln -s 1 o/link && echo 3 >t/d/3\n")?;
    let listed = |directory: &str, expected: &str| {
        let mut command = Command::new("timeout");
        command.arg("30").arg(&program).arg(ws.path(directory));
        assert_prints(command, expected)
    };
    ws.mount()?;
    listed("t", "9 names\n")?;
    shell(&ws, "echo more >>t/h1; mv t/d/e/x t/x; mv t/d/e t/moved; rm t/a; echo new >t/a")?;
    listed("t", "9 names\n")?;
    ws.run(["build"])?.stored_miss();
    listed("o", "4 names\n")?;
    shell(&ws, "rm -r o t/d/3")?;
    ws.run(["build"])?.hit();
    listed("o", "4 names\n")?;
    listed("t", "10 names\n")?;
    // One of the virtual files becomes real, and is a file of two names still.
    shell(&ws, "echo more >>o/1")?;
    listed("o", "4 names\n")?;
    shell(&ws, "rm -r o")?;
    ws.run(["build"])?.hit();
    listed("o", "4 names\n")?;
    ws.vout(["unmount"])?.ok();
    Ok(())
}
