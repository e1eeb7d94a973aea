//! System calls whose contract the compiler cannot check, behind safe functions.
#![expect(unsafe_code, reason = "see each SAFETY comment")]

/// Gives memory that the process has freed back to the system.
///
/// The allocator of glibc keeps what lies below memory that is in use: a run that wrote a million files would take its
/// place until the daemon ends. Others give it back by themselves.
pub(crate) fn give_back_free_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes no pointer, may be called by any thread at any time, and touches only memory that is free.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resident_bytes() -> usize {
        let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
        statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * rustix::param::page_size()
    }

    #[test]
    fn memory_below_what_is_in_use_is_given_back() {
        // Each too small to be mapped by itself, and the last one keeps all of them where they are.
        let mut pieces: Vec<Vec<u8>> = (0..16_384).map(|_| vec![1; 4096]).collect();
        let _last = pieces.pop();
        drop(pieces);
        give_back_free_memory();
        let resident = resident_bytes();
        assert!(resident < 48 << 20, "{resident} bytes");
    }
}
