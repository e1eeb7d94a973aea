//! What callers see.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::thread;

use fuse_uring::{Config, Errno, InitFlags, RingChoice};

use crate::support::Mounted;
use crate::test_fs::{TestFs, big};

over_both_transports! {
    files_are_read_in_small_and_in_large_pieces,
    files_are_written_in_small_and_in_large_pieces,
    names_are_made_moved_listed_and_removed,
    a_directory_larger_than_one_answer_is_listed_whole,
    extended_attributes_have_sizes_and_values,
    the_size_of_the_file_system_is_told,
    what_the_handler_does_wrong_fails_alone,
    an_operation_that_is_not_served_is_refused,
    answers_may_come_later_and_from_another_thread,
    callers_on_all_processors_are_served_at_once,
    the_kernel_reads_backing_files_itself,
}

fn files_are_read_in_small_and_in_large_pieces(ring: RingChoice) -> io::Result<()> {
    let mounted = Mounted::new(ring)?;
    assert_eq!(fs::read(mounted.path("hello"))?, b"hello, world\n");
    assert_eq!(fs::read(mounted.path("big"))?, big());
    let mut file = File::open(mounted.path("big"))?;
    file.seek(SeekFrom::Start(1_000_001))?;
    let mut piece = [0; 77];
    file.read_exact(&mut piece)?;
    assert_eq!(piece, big()[1_000_001..1_000_078]);
    Ok(())
}

fn files_are_written_in_small_and_in_large_pieces(ring: RingChoice) -> io::Result<()> {
    let mounted = Mounted::new(ring)?;
    let mut file = OpenOptions::new().create_new(true).read(true).write(true).open(mounted.path("new"))?;
    file.write_all(b"small")?;
    file.write_all(&big())?;
    file.seek(SeekFrom::Start(2))?;
    file.write_all(b"X")?;
    drop(file);
    let expected = [b"smXll".as_slice(), &big()].concat();
    assert_eq!(fs::read(mounted.path("new"))?, expected);
    Ok(())
}

fn names_are_made_moved_listed_and_removed(ring: RingChoice) -> io::Result<()> {
    let mounted = Mounted::new(ring)?;
    symlink("somewhere/else", mounted.path("made"))?;
    fs::create_dir(mounted.path("dir"))?;
    fs::rename(mounted.path("made"), mounted.path("moved"))?;
    assert_eq!(fs::read_link(mounted.path("moved"))?.as_os_str(), "somewhere/else");
    fs::remove_file(mounted.path("hello"))?;
    let mut names: Vec<_> =
        fs::read_dir(mounted.path(""))?.map(|entry| Ok(entry?.file_name())).collect::<io::Result<_>>()?;
    names.sort();
    assert_eq!(names, ["backed", "big", "dir", "late", "link", "moved"]);
    Ok(())
}

fn a_directory_larger_than_one_answer_is_listed_whole(ring: RingChoice) -> io::Result<()> {
    let mounted = Mounted::new(ring)?;
    for number in 0..3000 {
        File::create(mounted.path(&format!("{number:0>200}")))?;
    }
    assert_eq!(fs::read_dir(mounted.path(""))?.count(), 3005);
    Ok(())
}

fn extended_attributes_have_sizes_and_values(ring: RingChoice) -> io::Result<()> {
    let mounted = Mounted::new(ring)?;
    let path = mounted.path("hello");
    let mut value = [0; 16];
    assert_eq!(rustix::fs::getxattr(&path, "user.a", &mut value)?, 5);
    assert_eq!(value[..5], *b"value");
    assert_eq!(rustix::fs::getxattr_query(&path, "user.a")?, 5);
    assert_eq!(rustix::fs::getxattr(&path, "user.a", &mut value[..3]), Err(Errno::RANGE));
    assert_eq!(rustix::fs::getxattr(&path, "user.b", &mut value), Err(Errno::NODATA));
    assert_eq!(rustix::fs::listxattr(&path, &mut value)?, 7);
    Ok(())
}

fn the_size_of_the_file_system_is_told(ring: RingChoice) -> io::Result<()> {
    let mounted = Mounted::new(ring)?;
    assert_eq!(rustix::fs::statfs(mounted.path(""))?.f_blocks, 77);
    Ok(())
}

fn what_the_handler_does_wrong_fails_alone(ring: RingChoice) -> io::Result<()> {
    let mounted = Mounted::new(ring)?;
    for name in ["bad-panic", "bad-silent", "bad-lost", "bad-kind"] {
        let error = fs::metadata(mounted.path(name)).unwrap_err();
        let expected = [Errno::IO, Errno::INVAL].map(|errno| Some(errno.raw_os_error()));
        assert!(expected.contains(&error.raw_os_error()), "{name}: {error:?}");
        assert_eq!(fs::read(mounted.path("hello"))?, b"hello, world\n");
    }
    Ok(())
}

fn an_operation_that_is_not_served_is_refused(ring: RingChoice) -> io::Result<()> {
    let mounted = Mounted::new(ring)?;
    let error = fs::hard_link(mounted.path("hello"), mounted.path("other")).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Unsupported | ErrorKind::PermissionDenied), "{error:?}");
    Ok(())
}

/// Goal: deferred answers hold up nobody else. Method: more of them at once than there are slots, on every
/// processor, while others are served; then all are answered.
fn answers_may_come_later_and_from_another_thread(ring: RingChoice) -> io::Result<()> {
    let mounted = Mounted::new(ring)?;
    let waiters: Vec<_> = (0..24)
        .map(|number| {
            let path = mounted.path(if number == 0 { "bad-late" } else { "late" });
            thread::spawn(move || if number == 0 { fs::metadata(path).map(drop) } else { read_late(&path) })
        })
        .collect();
    for _ in 0..200 {
        fs::metadata(mounted.path("nothing")).unwrap_err();
    }
    assert!(waiters.iter().all(|waiter| !waiter.is_finished()));
    mounted.fs.gate.open();
    for waiter in waiters {
        waiter.join().unwrap()?;
    }
    Ok(())
}

fn read_late(path: &Path) -> io::Result<()> {
    let mut content = [0; 4];
    File::open(path)?.read_exact(&mut content)?;
    assert_eq!(&content, b"late");
    Ok(())
}

fn callers_on_all_processors_are_served_at_once(ring: RingChoice) -> io::Result<()> {
    let mounted = Mounted::with(ring, TestFs::new(None), Config { threads: 3, ..Config::default() })?;
    thread::scope(|scope| {
        let callers: Vec<_> = (0..8)
            .map(|caller| {
                let mounted = &mounted;
                scope.spawn(move || -> io::Result<()> {
                    for round in 0..200 {
                        let path = mounted.path(&format!("{caller}-{round}"));
                        fs::write(&path, vec![caller; round * 7])?;
                        assert_eq!(fs::read(&path)?, vec![caller; round * 7]);
                        fs::remove_file(&path)?;
                    }
                    Ok(())
                })
            })
            .collect();
        callers.into_iter().try_for_each(|caller| caller.join().unwrap())
    })
}

fn the_kernel_reads_backing_files_itself(ring: RingChoice) -> io::Result<()> {
    let mut backing = tempfile::tempfile()?;
    backing.write_all(b"straight from the backing file")?;
    let config = Config { flags: InitFlags::PASSTHROUGH, max_stack_depth: 1, ..Config::default() };
    let mounted = Mounted::with(ring, TestFs::new(Some(backing)), config)?;
    assert!(mounted.session.negotiated().flags.contains(InitFlags::PASSTHROUGH));
    let mut content = vec![0; 30];
    File::open(mounted.path("backed"))?.read_exact(&mut content)?;
    assert_eq!(content, b"straight from the backing file");
    assert_eq!(mounted.fs.counts.reads.load(std::sync::atomic::Ordering::Relaxed), 0);
    Ok(())
}
