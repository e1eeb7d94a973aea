//! The adapter on a real mount, over a file system in memory.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::sync::atomic::Ordering;
use std::time::Duration;

use rustix::fs::{CWD, RawDir, RenameFlags, renameat_with};
use rustix::thread::{CpuSet, sched_getcpu, sched_setaffinity};
use vout_mountd::adapter::AdapterOptions;

use crate::support::{Counts, MemoryFs, Mounted, names, poll_until, serving};

fn errno(result: io::Result<impl Sized>) -> Option<i32> {
    result.err().and_then(|error| error.raw_os_error())
}

#[test]
fn files_can_be_made_read_changed_and_removed() -> io::Result<()> {
    for backing in [true, false] {
        let mounted = Mounted::view(MemoryFs::new(backing))?;
        fs::create_dir(mounted.path("d"))?;
        fs::write(mounted.path("d/a"), "hello")?;
        let mut file = File::options().read(true).append(true).open(mounted.path("d/a"))?;
        file.write_all(b" world")?;
        assert_eq!(fs::read_to_string(mounted.path("d/a"))?, "hello world");
        assert_eq!(fs::metadata(mounted.path("d/a"))?.len(), 11);
        file.set_len(5)?;
        assert_eq!(fs::read_to_string(mounted.path("d/a"))?, "hello");
        fs::rename(mounted.path("d/a"), mounted.path("b"))?;
        assert_eq!(fs::read_to_string(mounted.path("b"))?, "hello");
        assert_eq!(errno(fs::metadata(mounted.path("d/a"))), Some(2));
        fs::write(mounted.path("b"), "x")?;
        assert_eq!(fs::read_to_string(mounted.path("b"))?, "x");
        fs::hard_link(mounted.path("b"), mounted.path("c"))?;
        assert_eq!(fs::metadata(mounted.path("b"))?.nlink(), 2);
        symlink("b", mounted.path("l"))?;
        assert_eq!(fs::read_to_string(mounted.path("l"))?, "x");
        fs::set_permissions(mounted.path("b"), fs::Permissions::from_mode(0o4711))?;
        assert_eq!(fs::metadata(mounted.path("c"))?.mode() & 0o7777, 0o4711);
        assert_eq!(names(&mounted.path(""))?, ["b", "c", "d", "l"]);
        for name in ["b", "c", "l"] {
            fs::remove_file(mounted.path(name))?;
        }
        fs::write(mounted.path("d/x"), "")?;
        assert_eq!(errno(fs::remove_dir(mounted.path("d"))), Some(39));
        fs::remove_file(mounted.path("d/x"))?;
        fs::remove_dir(mounted.path("d"))?;
        assert!(names(&mounted.path(""))?.is_empty());
    }
    Ok(())
}

#[test]
fn an_open_file_outlives_its_name() -> io::Result<()> {
    for backing in [true, false] {
        let mounted = Mounted::view(MemoryFs::new(backing).with_file("a", b"old"))?;
        let mut file = File::options().read(true).write(true).open(mounted.path("a"))?;
        fs::remove_file(mounted.path("a"))?;
        file.write_all(b"new")?;
        file.rewind()?;
        assert_eq!(io::read_to_string(&file)?, "new");
        assert_eq!(file.metadata()?.nlink(), 0);
    }
    Ok(())
}

#[test]
fn a_missing_name_is_looked_up_once() -> io::Result<()> {
    let mounted = Mounted::view(MemoryFs::new(false))?;
    for _ in 0..5 {
        assert_eq!(errno(fs::metadata(mounted.path("missing"))), Some(2));
    }
    assert_eq!(Counts::get(&mounted.counts().lookups), 1);
    // Making it ends that.
    fs::write(mounted.path("missing"), "x")?;
    assert_eq!(fs::read_to_string(mounted.path("missing"))?, "x");
    fs::remove_file(mounted.path("missing"))?;
    assert_eq!(errno(fs::metadata(mounted.path("missing"))), Some(2));
    Ok(())
}

#[test]
fn the_live_mount_caches_no_absence() -> io::Result<()> {
    let mounted = Mounted::new(MemoryFs::new(false), AdapterOptions::live(serving(false)))?;
    for _ in 0..3 {
        assert_eq!(errno(fs::metadata(mounted.path("missing"))), Some(2));
    }
    assert_eq!(Counts::get(&mounted.counts().lookups), 3);
    Ok(())
}

#[test]
fn the_live_mount_asks_again_for_all_but_what_holds() -> io::Result<()> {
    let options = AdapterOptions {
        entry_ttl: Duration::ZERO,
        attr_ttl: Duration::ZERO,
        ..AdapterOptions::live(serving(false))
    };
    let fs = MemoryFs::new(false).with_file("lasting", b"1").with_file("other", b"1");
    let mounted = Mounted::new(fs, options)?;
    for (name, lookups) in [("lasting", 1), ("other", 5)] {
        let before = Counts::get(&mounted.counts().lookups);
        for _ in 0..5 {
            assert_eq!(fs::read(mounted.path(name))?, b"1");
        }
        assert_eq!(Counts::get(&mounted.counts().lookups) - before, lookups, "{name}");
    }
    assert_eq!(Counts::get(&mounted.counts().opens), 2, "without passthrough, when they were first read");
    Ok(())
}

/// Returns a mount of so many files, each of which has as many bytes as its name says.
fn many_files(count: usize, options: AdapterOptions) -> io::Result<Mounted> {
    let file = |fs: MemoryFs, n: usize| fs.with_file(&format!("file with a long name {n:04}"), &vec![0; n]);
    Mounted::new((0..count).fold(MemoryFs::new(false), file), options)
}

fn requests_of(mounted: &Mounted, name: &str) -> u64 {
    mounted.session.report().requests.get(name).copied().unwrap_or_default()
}

#[test]
fn a_listing_of_the_live_mount_brings_attributes() -> io::Result<()> {
    let mounted = many_files(500, AdapterOptions::live(serving(false)))?;
    for entry in fs::read_dir(mounted.path(""))? {
        let entry = entry?;
        let (name, size) = (entry.file_name(), entry.metadata()?.len());
        assert!(name.to_str().is_some_and(|name| name.ends_with(&format!("{size:04}"))), "{name:?}: {size}");
    }
    assert_eq!(requests_of(&mounted, "Lookup"), 0);
    assert!(requests_of(&mounted, "Getattr") <= 1, "one is of the directory itself");
    Ok(())
}

#[test]
fn a_listing_of_a_view_looks_nothing_up() -> io::Result<()> {
    let mounted = many_files(500, AdapterOptions::view(serving(false)))?;
    assert_eq!(names(&mounted.path(""))?.len(), 500);
    assert_eq!((Counts::get(&mounted.counts().lookups), requests_of(&mounted, "Readdirplus")), (0, 0));
    Ok(())
}

/// Goal: the kernel and we count the same references of what was listed with attributes, also of a name for which
/// there was no room any more.
/// Method: what is listed and removed is forgotten, which would not come if a reference were left.
#[test]
fn what_was_listed_is_forgotten_once_it_is_removed() -> io::Result<()> {
    let mounted = many_files(500, AdapterOptions::live(serving(false)))?;
    for name in names(&mounted.path(""))? {
        fs::remove_file(mounted.path(&name))?;
    }
    let lookups = Counts::get(&mounted.counts().lookups);
    assert!(lookups > 500, "no buffer was ever full: {lookups}");
    poll_until("all are forgotten", || Ok(Counts::get(&mounted.counts().forgets) >= 500))
}

#[test]
fn an_existing_name_is_looked_up_once() -> io::Result<()> {
    let mounted = Mounted::view(MemoryFs::new(false).with_file("a", b"1"))?;
    for _ in 0..5 {
        assert_eq!(fs::metadata(mounted.path("a"))?.len(), 1);
        assert_eq!(fs::read(mounted.path("a"))?, b"1");
    }
    let counts = mounted.counts();
    assert_eq!(Counts::get(&counts.lookups), 1);
    // Every open is seen; the content stays in the page cache.
    assert_eq!(Counts::get(&counts.opens), 5);
    assert_eq!(Counts::get(&counts.reads), 1);
    Ok(())
}

#[test]
fn with_passthrough_no_content_comes_by() -> io::Result<()> {
    let mounted = Mounted::view(MemoryFs::new(true).with_file("a", &[7; 100_000]))?;
    assert!(mounted.session.passthrough(), "root on this kernel has passthrough");
    let mut first = File::options().read(true).write(true).open(mounted.path("a"))?;
    let second = File::open(mounted.path("a"))?;
    first.seek(SeekFrom::End(0))?;
    first.write_all(&[8; 1000])?;
    let mut content = Vec::new();
    (&second).read_to_end(&mut content)?;
    assert_eq!(content.len(), 101_000);
    assert_eq!(second.metadata()?.len(), 101_000);
    drop((first, second));
    fs::write(mounted.path("new"), "made and written directly")?;
    assert_eq!(fs::read_to_string(mounted.path("new"))?, "made and written directly");
    let counts = mounted.counts();
    assert_eq!((Counts::get(&counts.reads), Counts::get(&counts.writes)), (0, 0));
    Ok(())
}

#[test]
fn without_a_backing_file_content_comes_by() -> io::Result<()> {
    let mounted = Mounted::view(MemoryFs::new(false))?;
    let content: Vec<u8> = (0..3_000_000_u32).map(|i| i.to_le_bytes()[0]).collect();
    fs::write(mounted.path("a"), &content)?;
    let file = File::open(mounted.path("a"))?;
    let mut tail = vec![0; 1000];
    file.read_exact_at(&mut tail, 2_999_000)?;
    assert_eq!(tail, content[2_999_000..]);
    assert_eq!(fs::read(mounted.path("a"))?, content);
    assert!(Counts::get(&mounted.counts().writes) >= 3);
    Ok(())
}

/// Goal: who waits for a disk makes nobody else wait. Method: while an `fsync` is under way, whoever is on the same
/// processor, and so asks the same thread over the ring, is answered.
#[test]
fn a_slow_disk_holds_up_only_who_waits_for_it() -> io::Result<()> {
    let mounted = Mounted::view(MemoryFs::new(false).with_file("a", b"content"))?;
    let mut here = CpuSet::new();
    here.set(sched_getcpu());
    sched_setaffinity(None, &here)?;
    let slow = &mounted.counts().disk_is_slow;
    slow.store(true, Ordering::SeqCst);
    let file = File::open(mounted.path("a"))?;
    std::thread::scope(|scope| {
        // It inherits the processor.
        let waiting = scope.spawn(|| file.sync_all());
        while Counts::get(&mounted.counts().syncs) == 0 {
            std::thread::yield_now();
        }
        let asked = mounted.path("b").try_exists();
        let waited = waiting.is_finished();
        slow.store(false, Ordering::SeqCst);
        assert!(!asked? && !waited);
        waiting.join().unwrap()
    })
}

#[test]
fn a_view_without_passthrough_hears_of_contents_not_of_opens() -> io::Result<()> {
    let mounted =
        Mounted::new(MemoryFs::new(false).with_file("a", b"first"), AdapterOptions::view(serving(false)))?;
    for _ in 0..3 {
        assert_eq!(fs::read(mounted.path("a"))?, b"first");
    }
    assert_eq!(Counts::get(&mounted.counts().reads), 1, "the kernel keeps what it has read");
    assert_eq!(Counts::get(&mounted.counts().opens), 1, "opened to be read");

    // What a handle and a name lead to stays one file, cut, written, and without a name.
    let mut file = File::options().read(true).write(true).open(mounted.path("a"))?;
    fs::write(mounted.path("a"), "second, longer")?;
    file.write_all(b"S")?;
    assert_eq!(fs::read(mounted.path("a"))?, b"Second, longer");
    fs::remove_file(mounted.path("a"))?;
    file.set_len(3)?;
    file.seek(SeekFrom::End(0))?;
    file.write_all(b"!")?;
    let mut content = [0; 16];
    let size = file.read_at(&mut content, 0)?;
    assert_eq!(&content[..size], b"Sec!");

    // Far more than are held open at a time.
    let files: Vec<File> =
        (0..300).map(|i| File::create_new(mounted.path(&format!("f{i}")))).collect::<io::Result<_>>()?;
    for (i, file) in files.iter().enumerate() {
        file.write_all_at(i.to_string().as_bytes(), 0)?;
    }
    for i in 0..300 {
        assert_eq!(fs::read_to_string(mounted.path(&format!("f{i}")))?, i.to_string());
    }
    Ok(())
}

/// Goal: positions in a large directory stay good while names come and go.
/// Method: read a part, note the position, make and remove names, read on from there.
#[test]
fn positions_in_a_large_directory_are_stable() -> io::Result<()> {
    let mounted = Mounted::view(MemoryFs::new(false))?;
    for i in 0..10_000 {
        symlink("x", mounted.path(&format!("f{i:05}")))?;
    }
    let dir = File::open(mounted.path(""))?;
    let mut buffer = Vec::with_capacity(8192);
    let mut read = |limit: usize| -> io::Result<Vec<(OsString, u64)>> {
        let mut entries = Vec::new();
        let mut raw = RawDir::new(&dir, buffer.spare_capacity_mut());
        while let Some(entry) = raw.next() {
            let entry = entry?;
            let name = OsString::from(entry.file_name().to_str().unwrap());
            entries.push((name, entry.next_entry_cookie()));
            if entries.len() == limit {
                break;
            }
        }
        Ok(entries)
    };
    let first = read(4000)?;
    let (last_name, position) = first.last().unwrap().clone();
    assert_eq!(last_name, "f03997");
    fs::remove_file(mounted.path("f00000"))?;
    fs::write(mounted.path("a-new-first-name"), "")?;
    rustix::fs::seek(&dir, rustix::fs::SeekFrom::Start(position))?;
    let rest = read(usize::MAX)?;
    assert_eq!(rest.len(), 6002);
    assert_eq!(rest[0].0, "f03998");
    // From the start again, the changes show.
    rustix::fs::seek(&dir, rustix::fs::SeekFrom::Start(0))?;
    let again = read(usize::MAX)?;
    assert_eq!(again.len(), 10_002);
    assert!(again.iter().any(|(name, _)| name == "a-new-first-name"));
    assert!(!again.iter().any(|(name, _)| name == "f00000"));
    Ok(())
}

#[test]
fn a_listing_is_asked_for_once_until_it_changes() -> io::Result<()> {
    let mounted = Mounted::view(MemoryFs::new(false).with_file("a", b""))?;
    for _ in 0..3 {
        assert_eq!(names(&mounted.path(""))?, ["a"]);
    }
    assert_eq!(Counts::get(&mounted.counts().listings), 1);
    fs::write(mounted.path("b"), "")?;
    assert_eq!(names(&mounted.path(""))?, ["a", "b"]);
    fs::remove_file(mounted.path("a"))?;
    assert_eq!(names(&mounted.path(""))?, ["b"]);
    Ok(())
}

#[test]
fn renames_can_exchange_or_spare_the_target_but_leave_no_whiteout() -> io::Result<()> {
    let mounted = Mounted::view(MemoryFs::new(false).with_file("a", b"1").with_file("b", b"2"))?;
    let rename = |flags| renameat_with(CWD, mounted.path("a"), CWD, mounted.path("b"), flags);
    assert_eq!(rename(RenameFlags::NOREPLACE), Err(rustix::io::Errno::EXIST));
    assert_eq!(rename(RenameFlags::WHITEOUT), Err(rustix::io::Errno::INVAL));
    rename(RenameFlags::EXCHANGE)?;
    assert_eq!(fs::read_to_string(mounted.path("a"))?, "2");
    assert_eq!(fs::read_to_string(mounted.path("b"))?, "1");
    Ok(())
}

#[test]
fn holes_allocation_sync_and_sizes_are_passed_on() -> io::Result<()> {
    let mounted = Mounted::view(MemoryFs::new(false))?;
    let file = File::create_new(mounted.path("sparse"))?;
    file.set_len(1 << 20)?;
    file.write_all_at(b"x", 512 * 1024)?;
    assert_eq!(rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(0))?, 512 * 1024);
    assert_eq!(rustix::fs::seek(&file, rustix::fs::SeekFrom::Hole(0))?, 0);
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, 2 << 20)?;
    assert_eq!(file.metadata()?.len(), 2 << 20);
    file.sync_all()?;
    File::open(mounted.path(""))?.sync_all()?;
    assert_eq!(rustix::fs::statfs(mounted.path(""))?.f_blocks, 1000);
    let mut copy = File::create(mounted.path("copy"))?;
    io::copy(&mut File::open(mounted.path("sparse"))?, &mut copy)?;
    assert_eq!(copy.metadata()?.len(), 2 << 20);
    Ok(())
}

#[test]
fn times_before_the_epoch_survive() -> io::Result<()> {
    use std::time::{Duration, UNIX_EPOCH};
    let mounted = Mounted::view(MemoryFs::new(false).with_file("a", b""))?;
    let time = UNIX_EPOCH - Duration::new(3, 999_999_999);
    File::options().write(true).open(mounted.path("a"))?.set_modified(time)?;
    assert_eq!(fs::metadata(mounted.path("a"))?.modified()?, time);
    Ok(())
}

#[test]
fn a_fault_in_one_request_is_its_own_affair() -> io::Result<()> {
    let mounted = Mounted::view(MemoryFs::new(false).with_file("a", b"1"))?;
    assert_eq!(errno(fs::metadata(mounted.path("panic"))), Some(5));
    assert_eq!(fs::read(mounted.path("a"))?, b"1");
    Ok(())
}

#[test]
fn extended_attributes_are_not_asked_for() -> io::Result<()> {
    let mounted = Mounted::view(MemoryFs::new(false).with_file("a", b"1"))?;
    let mut value = [0_u8; 16];
    let got = rustix::fs::getxattr(mounted.path("a"), c"user.x", &mut value);
    assert_eq!(got, Err(rustix::io::Errno::OPNOTSUPP));
    Ok(())
}
