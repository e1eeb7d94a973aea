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

/// Holds a file open that another process then writes. Prints what is read by the descriptor before and afterwards, then
/// by both names, and link count and size by the descriptor and by name; fails where a number changes.
const HELD: &str = r#"
exec 3<t/h1
number=$(stat -c %i t/h1)
dd bs=3 count=1 status=none <&3
sh -c 'printf "NEW CONTENT" | dd of=t/h1 conv=notrunc status=none && echo more >>t/d/h2'
echo "$(cat <&3)"
cat t/h1 t/d/h2
stat -Lc '%h %s' /dev/fd/3 t/h1 t/d/h2
for name in /dev/fd/3 t/h1 t/d/h2; do
    test "$(stat -Lc %i $name)" = "$number"
done
"#;

/// Goal: who has a base file open while another process writes it reads on as documented, everybody sees new attributes
/// and one number, and the names show the new content. Where the kernel reads the file directly, the name of it leads to
/// another node from then on.
#[test]
fn a_file_that_is_read_while_it_is_first_written_stays_one_file() -> TestResult {
    let mut ws = Workspace::new(Mode::Unmounted)?.config("")?;
    let tree = "mkdir -p t/d; echo 'old content' >t/h1; ln t/h1 t/d/h2";
    let new = "NEW CONTENT\nmore\n";
    let expected = |after: &str| format!("old{after}\n{new}{new}2 17\n2 17\n2 17\n");
    ws.file("held.sh", HELD)?;
    shell(&ws, tree)?;
    let held = |ws: &Workspace| {
        let mut command = Command::new("timeout");
        command.args(["30", "sh", "-eu", "held.sh"]).current_dir(ws.root());
        command
    };
    assert_prints(held(&ws), &expected(" CONTENT\nmore"))?;
    for (passthrough, in_a_view) in [("1", " content"), ("0", " CONTENT\nmore")] {
        shell(&ws, &format!("rm -r t; {tree}"))?;
        ws.variable(PASSTHROUGH, passthrough);
        let mut task = ws.vout_command(["run", "--quiet", "--no-cache", "--", "timeout", "30"]);
        task.args(["sh", "-eu", "held.sh"]);
        // Elsewhere than as root there is no passthrough.
        let in_a_view = if rustix::process::geteuid().is_root() { in_a_view } else { " CONTENT\nmore" };
        assert_prints(task, &expected(in_a_view))?;
        assert_eq!(ws.read("t/d/h2")?, new, "what was committed, passthrough: {passthrough}");
        shell(&ws, &format!("rm -r t; {tree}"))?;
        ws.mount()?;
        assert_prints(held(&ws), &expected(" CONTENT\nmore"))?;
        ws.vout(["unmount"])?.ok();
    }
    Ok(())
}
