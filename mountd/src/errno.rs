//! The one place where a core error becomes an `errno`.

use fuser::Errno;
use vout::fs::FsError;

/// Returns the `errno` that says `error` to a process.
pub(crate) fn errno_of(error: &FsError) -> Errno {
    match error {
        FsError::NotFound => Errno::ENOENT,
        FsError::AlreadyExists => Errno::EEXIST,
        FsError::NotADirectory => Errno::ENOTDIR,
        FsError::IsADirectory => Errno::EISDIR,
        FsError::DirectoryNotEmpty => Errno::ENOTEMPTY,
        FsError::InvalidArgument => Errno::EINVAL,
        FsError::NotPermitted => Errno::EPERM,
        // EOPNOTSUPP, not ENOSYS: the kernel takes ENOSYS for "never ask again".
        FsError::NotSupported => Errno::EOPNOTSUPP,
        // The kernel answers ESTALE on open by looking the path up again.
        FsError::Stale => Errno::ESTALE,
        // Never wrong bytes, never success.
        FsError::Corrupt(_) => Errno::EIO,
        // ENOSYS from the operating system would switch the operation off for the whole session.
        FsError::Os(error) => match error.raw_os_error() {
            Some(errno) if errno == Errno::ENOSYS.code() => Errno::EOPNOTSUPP,
            Some(errno) if errno > 0 => Errno::from_i32(errno),
            Some(_) | None => Errno::EIO,
        },
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn errors_without_a_number_and_damage_are_eio() {
        assert_eq!(errno_of(&FsError::Corrupt("frame 3".into())).code(), Errno::EIO.code());
        assert_eq!(errno_of(&FsError::Os(io::Error::other("x"))).code(), Errno::EIO.code());
    }

    #[test]
    fn numbers_of_the_operating_system_pass_through_but_for_enosys() {
        let of = |errno: Errno| errno_of(&FsError::Os(io::Error::from_raw_os_error(errno.code()))).code();
        assert_eq!(of(Errno::ENOSPC), Errno::ENOSPC.code());
        assert_eq!(of(Errno::ENOSYS), Errno::EOPNOTSUPP.code());
    }
}
