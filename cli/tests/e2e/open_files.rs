//! Files of the live mount that are open while what is under their names changes. Without passthrough the daemon does
//! not know of them.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt};

use crate::support::process::poll_until;
use crate::support::{Mode, TestResult, Workspace};
use crate::with_passthrough_and_without;

/// More files than the daemon holds open by itself.
const OTHERS: usize = 100;

/// Far more than the kernel reads ahead, and enough to be hydrated.
const LARGE_LINES: usize = 400_000;

with_passthrough_and_without!(
    what_is_open_outlives_hits_and_commits,
    what_is_open_outlives_its_name,
    what_is_virtual_becomes_real_where_it_is,
    changes_that_times_do_not_show_are_seen,
    what_was_virtual_is_looked_up_again_once_it_is_real,
);

/// A mounted workspace whose task copies `in`, and with files that can be read in between.
fn workspace(passthrough: &str) -> Result<Workspace, Box<dyn std::error::Error>> {
    let mut ws = Workspace::new(Mode::Mounted)?;
    ws.variable("VOUT_PASSTHROUGH", passthrough);
    let ws = ws.config(
        "[tasks.build]\ncommand = \"mkdir -p dist; cp in dist/large; head -c 5 in > dist/small\"\n",
    )?;
    for number in 0..OTHERS {
        ws.file(format!("others/{number}"), "x")?;
    }
    ws.file("in", content("one"))?;
    ws.mount()?;
    Ok(ws)
}

fn content(word: &str) -> String {
    format!("{word:>9}\n").repeat(LARGE_LINES)
}

/// Makes the daemon close what it holds open by itself.
fn read_others(ws: &Workspace) -> TestResult {
    for number in 0..OTHERS {
        ws.read(format!("others/{number}"))?;
    }
    Ok(())
}

/// An open file of which the first bytes are read.
fn open(ws: &Workspace, path: &str) -> Result<File, Box<dyn std::error::Error>> {
    let mut file = File::open(ws.path(path))?;
    file.read_exact(&mut [0; 4])?;
    Ok(file)
}

fn all_of(mut file: &File) -> Result<String, Box<dyn std::error::Error>> {
    file.seek(SeekFrom::Start(0))?;
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    Ok(text)
}

fn what_is_open_outlives_hits_and_commits(passthrough: &str) -> TestResult {
    let ws = workspace(passthrough)?;
    ws.run(["build"])?.stored_miss();
    let real = [open(&ws, "dist/large")?, open(&ws, "dist/small")?];
    ws.file("in", content("two"))?;
    ws.run(["build"])?.stored_miss();
    ws.remove("dist")?;
    ws.run(["build"])?.hit();
    let of_a_layer = [open(&ws, "dist/large")?, open(&ws, "dist/small")?];
    ws.file("in", content("one"))?;
    ws.run(["build"])?.hit();
    read_others(&ws)?;
    for (files, word) in [(real, "one"), (of_a_layer, "two")] {
        assert!(all_of(&files[0])? == content(word), "large, {word}");
        assert_eq!(all_of(&files[1])?, content(word)[..5], "{word}");
    }
    assert!(ws.read("dist/large")? == content("one"));
    Ok(())
}

fn what_is_open_outlives_its_name(passthrough: &str) -> TestResult {
    let ws = workspace(passthrough)?;
    ws.run(["build"])?.stored_miss();
    ws.remove("dist")?;
    ws.run(["build"])?.hit();
    ws.file("real", content("one"))?;
    for path in ["dist/large", "dist/small", "real"] {
        let whole = ws.read(path)?;
        // Opened, and nothing more: nobody has heard of it.
        let file = File::options().read(true).write(true).open(ws.path(path))?;
        let replaced = File::open(ws.path(path))?;
        fs::remove_file(ws.path(path))?;
        read_others(&ws)?;
        assert!(all_of(&file)? == whole, "{path}");
        assert_eq!(file.metadata()?.nlink(), 0, "{path}");
        file.write_all_at(b"new", 1)?;
        file.set_len(6)?;
        read_others(&ws)?;
        let changed = format!("{}new{}", &whole[..1], &(whole.clone() + "\0")[4..6]);
        assert_eq!(all_of(&file)?, changed, "{path}");
        assert_eq!(all_of(&replaced)?, changed, "{path}: it is one file");
        assert!(!ws.exists(path));
    }
    let mut unnamed = tempfile::tempfile_in(ws.root())?;
    unnamed.write_all(b"kept")?;
    read_others(&ws)?;
    assert_eq!(all_of(&unnamed)?, "kept");
    Ok(())
}

fn what_is_virtual_becomes_real_where_it_is(passthrough: &str) -> TestResult {
    let ws = workspace(passthrough)?;
    ws.run(["build"])?.stored_miss();
    ws.remove("dist")?;
    ws.run(["build"])?.hit();
    let (small, before) = (open(&ws, "dist/small")?, fs::metadata(ws.path("dist/small"))?);
    let mut writer = File::options().append(true).open(ws.path("dist/small"))?;
    writer.write_all(b"more")?;
    assert_eq!(all_of(&small)?, content("one")[..5].to_owned() + "more");
    assert_eq!(fs::metadata(ws.path("dist/small"))?.ino(), before.ino());
    // Written again long after it was opened, and after the task has put it in order: that is noticed, too.
    for text in ["first", "again"] {
        ws.run(["build"])?.stored_miss();
        assert_eq!(ws.read("dist/small")?, content("one")[..5]);
        let mut writer = File::options().write(true).open(ws.path("dist/small"))?;
        writer.write_all(text.as_bytes())?;
        assert_eq!(ws.read("dist/small")?, text);
    }
    Ok(())
}

fn changes_that_times_do_not_show_are_seen(passthrough: &str) -> TestResult {
    let mut ws = Workspace::new(Mode::Mounted)?;
    ws.variable("VOUT_PASSTHROUGH", passthrough);
    let ws = ws.config("")?;
    ws.file("file", "old")?;
    let at = ws.outside().join("at");
    fs::create_dir(&at)?;
    ws.vout([std::ffi::OsStr::new("mount"), "--at".as_ref(), at.as_os_str()])?.ok();
    let mut reader = File::open(at.join("file"))?;
    assert_eq!(fs::read(at.join("file"))?, b"old");
    let times = fs::metadata(ws.path("file"))?;
    let changed = File::options().write(true).open(ws.path("file"))?;
    changed.write_all_at(b"NEW", 0)?;
    changed.set_modified(times.modified()?)?;
    poll_until("the new content", || fs::read(at.join("file")).is_ok_and(|content| content == b"NEW"));
    let mut text = String::new();
    reader.read_to_string(&mut text)?;
    assert_eq!(text, "NEW");
    Ok(())
}

/// Goal: names of virtual files hold for good, because a hit tells of changes; once a file is real nobody does.
fn what_was_virtual_is_looked_up_again_once_it_is_real(passthrough: &str) -> TestResult {
    let mut ws = Workspace::new(Mode::Mounted)?;
    ws.variable("VOUT_PASSTHROUGH", passthrough);
    let ws = ws.config("[tasks.build]\ncommand = \"mkdir -p dist/d; touch dist/a dist/b dist/d/c\"\n")?;
    let at = ws.outside().join("at");
    fs::create_dir(&at)?;
    ws.vout([std::ffi::OsStr::new("mount"), "--at".as_ref(), at.as_os_str()])?.ok();
    ws.run(["build"])?.stored_miss();
    fs::remove_dir_all(at.join("dist"))?;
    ws.run(["build"])?.hit();
    for name in ["a", "b", "d/c"] {
        assert_eq!(fs::read(at.join("dist").join(name))?, b"");
    }
    fs::write(at.join("dist/a"), "written")?;
    fs::rename(at.join("dist/b"), at.join("dist/moved"))?;
    fs::rename(at.join("dist/d"), at.join("dist/e"))?;
    for name in ["a", "moved", "e/c"] {
        let (beneath, through) = (ws.path("dist").join(name), at.join("dist").join(name));
        fs::read(&through)?;
        fs::write(ws.path("other"), "beneath")?;
        fs::rename(ws.path("other"), &beneath)?;
        poll_until(name, || fs::read(&through).is_ok_and(|content| content == b"beneath"));
        fs::remove_file(&beneath)?;
        poll_until(name, || !through.exists());
    }
    Ok(())
}
