// SPDX-License-Identifier: Apache-2.0
use super::*;

/// What came of a system call behind the filter.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Done,
    Errno(i32),
    /// The process was ended by this signal.
    Killed(i32),
}

/// Makes one system call in a process of its own that has the filter.
fn call(extra: Extra, words: [i64; 5]) -> Outcome {
    let program = program(extra).unwrap();
    // SAFETY: after the fork the child makes system calls only, on memory that is there, and leaves by `_exit`.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let filtered = apply(&program, 0).is_ok();
        let [number, a, b, c, d] = words;
        // SAFETY: each case's arguments are valid for its call, or meant to be refused before they are looked at.
        let result = unsafe { libc::syscall(number, a, b, c, d, -1, 0) };
        let errno = std::io::Error::last_os_error().raw_os_error().unwrap_or(0);
        let status = match (filtered, result) {
            (false, _) => 255,
            (true, ..0) => errno,
            (true, _) => 0,
        };
        // SAFETY: it does not return.
        unsafe { libc::_exit(status) };
    }
    let mut status = 0;
    // SAFETY: `child` is ours, and nobody else waits for it; `status` is there to be written.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    match (libc::WIFSIGNALED(status), libc::WEXITSTATUS(status)) {
        (true, _) => Outcome::Killed(libc::WTERMSIG(status)),
        (false, 0) => Outcome::Done,
        (false, errno) => Outcome::Errno(errno),
    }
}

const NEITHER: Extra = Extra { connect: false, unlink: false };
const BOTH_EXTRAS: Extra = Extra { connect: true, unlink: true };
const ROOT: &std::ffi::CStr = c"/";
/// A `struct sched_param` of zero.
static PRIORITY: libc::c_int = 0;
const NONE: &std::ffi::CStr = c"/no/such/file";

fn address(text: &std::ffi::CStr) -> i64 {
    text.as_ptr() as i64
}

#[test]
fn what_a_vmm_does_is_allowed() {
    let (private, read) = (i64::from(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS), i64::from(libc::PROT_READ));
    let unix = i64::from(libc::AF_UNIX);
    for words in [
        [libc::SYS_getpid, 0, 0, 0, 0],
        [libc::SYS_mmap, 0, 4096, read, private],
        [libc::SYS_fcntl, 0, i64::from(libc::F_GETFD), 0, 0],
        [libc::SYS_eventfd2, 0, 0, 0, 0],
        [libc::SYS_sched_setscheduler, 0, libc::SCHED_BATCH.into(), (&raw const PRIORITY) as i64, 0],
    ] {
        assert_eq!(call(NEITHER, words), Outcome::Done, "{words:?}");
    }
    // Not KVM's descriptor, but that is for the kernel to say.
    let run = i64::from(kvm::<()>(_IOC_NONE, 0x80));
    assert_eq!(call(NEITHER, [libc::SYS_ioctl, -1, run, 0, 0]), Outcome::Errno(libc::EBADF));
    assert_eq!(call(BOTH_EXTRAS, [libc::SYS_socket, unix, i64::from(libc::SOCK_STREAM), 0, 0]), Outcome::Done);
    assert_eq!(call(BOTH_EXTRAS, [libc::SYS_unlink, address(NONE), 0, 0, 0]), Outcome::Errno(libc::ENOENT));
}

#[test]
fn names_are_not_looked_up() {
    let at = i64::from(libc::AT_FDCWD);
    for words in [
        [libc::SYS_open, address(ROOT), 0, 0, 0],
        [libc::SYS_openat, at, address(ROOT), 0, 0],
        [libc::SYS_readlink, address(ROOT), 0, 0, 0],
        [libc::SYS_access, address(ROOT), 0, 0, 0],
        [libc::SYS_newfstatat, at, address(ROOT), 0, 0],
        [libc::SYS_statx, at, address(ROOT), 0, 0],
        [libc::SYS_unlink, address(NONE), 0, 0, 0],
        [libc::SYS_unlinkat, at, address(NONE), 0, 0],
    ] {
        assert_eq!(call(NEITHER, words), Outcome::Errno(libc::EACCES), "{words:?}");
    }
    assert_eq!(call(BOTH_EXTRAS, [libc::SYS_openat, at, address(ROOT), 0, 0]), Outcome::Errno(libc::EACCES));
}

#[test]
fn anything_else_ends_the_process() {
    let code = i64::from(libc::PROT_READ | libc::PROT_EXEC);
    let private = i64::from(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    let (unix, stream) = (i64::from(libc::AF_UNIX), i64::from(libc::SOCK_STREAM));
    let memory = i64::from(kvm::<kvm_bindings::kvm_userspace_memory_region>(_IOC_WRITE, 0x46));
    let dumpable = i64::from(libc::PR_SET_DUMPABLE);
    let neither = [
        [libc::SYS_execve, address(ROOT), 0, 0, 0],
        [libc::SYS_clone, 0, 0, 0, 0],
        [libc::SYS_fork, 0, 0, 0, 0],
        [libc::SYS_kill, 1, 0, 0, 0],
        [libc::SYS_tgkill, 1, 1, 0, 0],
        [libc::SYS_ptrace, 0, 0, 0, 0],
        [libc::SYS_process_vm_writev, 1, 0, 0, 0],
        [libc::SYS_mmap, 0, 4096, code, private],
        [libc::SYS_mprotect, 0, 4096, code, 0],
        [libc::SYS_ioctl, 0, i64::try_from(libc::TIOCSTI).unwrap(), 0, 0],
        [libc::SYS_ioctl, -1, memory, 0, 0],
        [libc::SYS_fcntl, 0, i64::from(libc::F_SETOWN), 1, 0],
        [libc::SYS_io_uring_setup, 8, 0, 0, 0],
        [libc::SYS_bpf, 0, 0, 0, 0],
        [libc::SYS_setuid, 0, 0, 0, 0],
        [libc::SYS_chroot, address(ROOT), 0, 0, 0],
        [libc::SYS_mount, 0, 0, 0, 0],
        [libc::SYS_unshare, 0, 0, 0, 0],
        [libc::SYS_prctl, dumpable, 1, 0, 0],
        [libc::SYS_sched_setscheduler, 0, libc::SCHED_FIFO.into(), address(ROOT), 0],
        [libc::SYS_sched_setscheduler, 1, libc::SCHED_BATCH.into(), (&raw const PRIORITY) as i64, 0],
        [libc::SYS_socket, i64::from(libc::AF_INET), stream, 0, 0],
    ];
    let killed = Outcome::Killed(libc::SIGSYS);
    for words in neither {
        assert_eq!(call(NEITHER, words), killed, "{words:?}");
        assert_eq!(call(BOTH_EXTRAS, words), killed, "{words:?}");
    }
    assert_eq!(call(NEITHER, [libc::SYS_socket, unix, stream, 0, 0]), killed);
    assert_eq!(call(NEITHER, [libc::SYS_connect, -1, 0, 0, 0]), killed);
}
