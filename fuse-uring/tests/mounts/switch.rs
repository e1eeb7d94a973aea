//! The kernel's switch for requests over io_uring.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use rustix::fs::{FlockOperation, flock};

const PARAMETER: &str = "/sys/module/fuse/parameters/enable_uring";

/// Who needs it in one position, in this process.
static USERS: Mutex<Users> = Mutex::new(Users { count: 0, held: None });
static FREE: Condvar = Condvar::new();

struct Users {
    count: usize,
    held: Option<Held>,
}

/// The parameter, locked against other test programs.
struct Held {
    parameter: File,
    value: &'static [u8],
    before: Vec<u8>,
}

/// Keeps the switch where it is. The last one puts back what was.
pub(crate) struct Switch(());

impl Switch {
    pub(crate) fn on() -> io::Result<Self> {
        Self::hold(b"Y")
    }

    pub(crate) fn off() -> io::Result<Self> {
        Self::hold(b"N")
    }

    fn hold(value: &'static [u8]) -> io::Result<Self> {
        let other = |users: &mut Users| users.held.as_ref().is_some_and(|held| held.value != value);
        let mut users = FREE.wait_while(users(), other).unwrap_or_else(PoisonError::into_inner);
        if users.count == 0 {
            let mut parameter = File::options().read(true).write(true).open(PARAMETER)?;
            flock(&parameter, FlockOperation::LockExclusive)?;
            let mut before = Vec::new();
            parameter.read_to_end(&mut before)?;
            set(&mut parameter, value)?;
            users.held = Some(Held { parameter, value, before });
        }
        users.count += 1;
        Ok(Self(()))
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        let mut users = users();
        users.count -= 1;
        if users.count == 0
            && let Some(mut held) = users.held.take()
        {
            set(&mut held.parameter, &held.before).unwrap();
            FREE.notify_all();
        }
    }
}

fn users() -> MutexGuard<'static, Users> {
    // A test that failed has not spoilt it.
    USERS.lock().unwrap_or_else(PoisonError::into_inner)
}

fn set(parameter: &mut File, value: &[u8]) -> io::Result<()> {
    parameter.seek(SeekFrom::Start(0))?;
    parameter.write_all(value)
}
