//! How a program's memory is managed.

/// Lets the process keep large blocks that it frees, for the tensors of the next step.
///
/// glibc hands blocks beyond a threshold back to the kernel at once, and the kernel then fills in every
/// page of the next block anew. A training step frees and asks for the same hundreds of megabytes each
/// time, so programs that train should call this first, as the `arbora` command does. It counts for
/// libtorch's tensors too, which come from the same allocator. Blocks above 32 MiB, the most that
/// glibc accepts, are still handed back.
///
/// Does nothing with another C library.
pub fn keep_freed_blocks() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: the calls set numbers of the allocator under its own lock, and touch no memory of the program. A number that it does not
    // accept is refused and changes nothing.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 32 << 20);
        libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX);
        libc::mallopt(libc::M_TOP_PAD, 64 << 20);
    }
}
