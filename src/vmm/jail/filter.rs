// SPDX-License-Identifier: Apache-2.0
//! The system calls of a VMM whose guest runs (seccomp(2), filters). Any other ends the process, but for those that look
//! for a path, which fail: the C library's allocator looks into `/proc` when it gives memory back.
//!
//! Nothing is opened, executed or signalled, no memory becomes executable, no thread is made, and `ioctl` does what is
//! listed here. An io_uring, whose jobs no such filter sees, has restrictions of its own.

use std::ffi::{c_long, c_ulong};
use std::io;

use kvm_bindings::{
    KVMIO, kvm_clock_data, kvm_debugregs, kvm_irq_level, kvm_irqchip, kvm_lapic_state, kvm_mp_state, kvm_msr_list,
    kvm_msrs, kvm_regs, kvm_sregs, kvm_translation, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use vmm_sys_util::ioctl::{_IOC_NONE, _IOC_READ, _IOC_WRITE, ioctl_expr};

/// What only some VMMs need.
#[derive(Clone, Copy, Debug)]
pub struct Extra {
    /// New unix sockets, for what a guest connects to over vsock.
    pub connect: bool,
    /// To remove a file by its name.
    pub unlink: bool,
}

/// Whatever the arguments.
const ALWAYS: &[i64] = &[
    // Data, on descriptors that are there.
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_preadv2,
    libc::SYS_pwritev2,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_shutdown,
    libc::SYS_accept4,
    libc::SYS_getsockopt,
    libc::SYS_lseek,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_fallocate,
    libc::SYS_ftruncate,
    libc::SYS_fadvise64,
    libc::SYS_fstat,
    libc::SYS_close,
    libc::SYS_io_uring_enter,
    // Waiting.
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_ctl,
    libc::SYS_eventfd2,
    libc::SYS_timerfd_settime,
    libc::SYS_futex,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    libc::SYS_clock_gettime,
    libc::SYS_restart_syscall,
    libc::SYS_sched_yield,
    // Memory.
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_getrandom,
    // Threads that have been made, and begin only now.
    libc::SYS_rseq,
    libc::SYS_set_robust_list,
    libc::SYS_sched_getaffinity,
    // This process, and its end.
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigaction,
    libc::SYS_sigaltstack,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// These fail with `EACCES`.
const PATHS: [i64; 5] = [libc::SYS_open, libc::SYS_openat, libc::SYS_readlink, libc::SYS_readlinkat, libc::SYS_access];
/// So do these, but where a VMM removes its sockets itself.
const REMOVALS: [i64; 2] = [libc::SYS_unlink, libc::SYS_unlinkat];
/// And these where they are about a name and not about a descriptor, with the place of their flags.
const STATUS: [(i64, u32); 2] = [(libc::SYS_newfstatat, 3), (libc::SYS_statx, 2)];

/// What `fcntl` does of its own accord: flags of descriptors that are there.
const FCNTL: [i32; 5] = [libc::F_GETFD, libc::F_SETFD, libc::F_GETFL, libc::F_SETFL, libc::F_DUPFD_CLOEXEC];

/// `ioctl`s of KVM (Linux `Documentation/virt/kvm/api.rst`), of TAPs (`linux/if_tun.h`) and of sockets.
const IOCTLS: [u32; 20] = [
    // First: the filter asks in this order.
    kvm::<()>(_IOC_NONE, 0x80),             // KVM_RUN
    kvm::<kvm_irq_level>(_IOC_WRITE, 0x61), // KVM_IRQ_LINE
    // Where a vCPU is, for samples and for reports of what has failed.
    kvm::<kvm_regs>(_IOC_READ, 0x81),   // KVM_GET_REGS
    kvm::<kvm_sregs>(_IOC_READ, 0x83),  // KVM_GET_SREGS
    kvm::<kvm_translation>(BOTH, 0x85), // KVM_TRANSLATE
    // A snapshot.
    kvm::<()>(_IOC_NONE, 0x03),              // KVM_CHECK_EXTENSION
    kvm::<kvm_msr_list>(BOTH, 0x02),         // KVM_GET_MSR_INDEX_LIST
    kvm::<kvm_msrs>(BOTH, 0x88),             // KVM_GET_MSRS
    kvm::<kvm_mp_state>(_IOC_READ, 0x98),    // KVM_GET_MP_STATE
    kvm::<kvm_xsave>(_IOC_READ, 0xa4),       // KVM_GET_XSAVE
    kvm::<kvm_xcrs>(_IOC_READ, 0xa6),        // KVM_GET_XCRS
    kvm::<kvm_debugregs>(_IOC_READ, 0xa1),   // KVM_GET_DEBUGREGS
    kvm::<kvm_lapic_state>(_IOC_READ, 0x8e), // KVM_GET_LAPIC
    kvm::<()>(_IOC_NONE, 0xa3),              // KVM_GET_TSC_KHZ
    kvm::<kvm_vcpu_events>(_IOC_READ, 0x9f), // KVM_GET_VCPU_EVENTS
    kvm::<kvm_irqchip>(BOTH, 0x62),          // KVM_GET_IRQCHIP
    kvm::<kvm_clock_data>(_IOC_READ, 0x7c),  // KVM_GET_CLOCK
    // A TAP's offloads, as the driver chooses them, and new sockets that do not wait.
    low(libc::TUNSETOFFLOAD),
    low(libc::TUNSETVNETHDRSZ),
    low(libc::FIONBIO),
];

const BOTH: u32 = _IOC_READ | _IOC_WRITE;

#[allow(clippy::cast_possible_truncation, reason = "structures of KVM are small")]
const fn kvm<T>(direction: u32, number: u32) -> u32 {
    low(ioctl_expr(direction, KVMIO, number, size_of::<T>() as u32))
}

#[allow(clippy::cast_possible_truncation, reason = "requests of `ioctl` are numbers of 32 bits")]
const fn low(request: c_ulong) -> u32 {
    request as u32
}

/// Why there is no filter.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    /// It is too long for its jumps: a mistake of ours.
    #[error("the filter is too long")]
    TooLong,
    /// The kernel does not take it.
    #[error("the kernel refuses the filter: {0}")]
    Refused(#[from] io::Error),
    /// A thread has a filter that this one does not follow.
    #[error("thread {0} of the process has another filter")]
    Thread(c_long),
}

/// Installs the filter for all threads. None of them gains privileges any more either (`PR_SET_NO_NEW_PRIVS`).
///
/// # Errors
/// See [`FilterError`].
pub fn install(extra: Extra) -> Result<(), FilterError> {
    apply(&program(extra)?, libc::SECCOMP_FILTER_FLAG_TSYNC)
}

fn apply(program: &[libc::sock_filter], flags: c_ulong) -> Result<(), FilterError> {
    let length = program.len().try_into().map_err(|_| FilterError::TooLong)?;
    let program = libc::sock_fprog { len: length, filter: program.as_ptr().cast_mut() };
    // SAFETY: the kernel reads as many instructions as there are, and writes nothing.
    let result = unsafe {
        if libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 {
            return Err(io::Error::last_os_error().into());
        }
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program)
    };
    match result {
        0 => Ok(()),
        1.. => Err(FilterError::Thread(result)),
        ..0 => Err(io::Error::last_os_error().into()),
    }
}

/// Where the filter goes on.
#[derive(Clone, Copy)]
enum To {
    Next,
    Allow,
    Fail,
    Kill,
    /// Behind so many of the next.
    Past(usize),
}

/// An instruction before it is known how far its jumps are.
enum Line {
    Load(u32),
    /// A comparison of what was loaded: whether it is the number, or has one of its bits.
    If(u32, u32, To, To),
}

/// Places in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
/// `AUDIT_ARCH_X86_64`.
const X86_64: u32 = 0xc000_003e;
const EQUALS: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
const HAS: u32 = libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K;

/// The lower half of an argument: all that are looked at are numbers of 32 bits.
const fn argument(index: u32) -> u32 {
    16 + 8 * index
}

/// The filter as the kernel takes it.
fn program(extra: Extra) -> Result<Vec<libc::sock_filter>, FilterError> {
    let mut lines = vec![Line::Load(ARCHITECTURE), Line::If(EQUALS, X86_64, To::Next, To::Kill), Line::Load(NUMBER)];
    // Most of the system calls of a VMM are these.
    if_call(&mut lines, libc::SYS_ioctl, one_of(1, &IOCTLS));
    lines.extend(ALWAYS.iter().map(|call| Line::If(EQUALS, number(*call), To::Allow, To::Next)));
    let removals = if extra.unlink { To::Allow } else { To::Fail };
    lines.extend(PATHS.map(|call| Line::If(EQUALS, number(call), To::Fail, To::Next)));
    lines.extend(REMOVALS.map(|call| Line::If(EQUALS, number(call), removals, To::Next)));
    for (call, flags) in STATUS {
        let of_descriptor = Line::If(HAS, libc::AT_EMPTY_PATH.unsigned_abs(), To::Allow, removals);
        if_call(&mut lines, call, vec![Line::Load(argument(flags)), of_descriptor]);
    }
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        let code = Line::If(HAS, libc::PROT_EXEC.unsigned_abs(), To::Kill, To::Allow);
        if_call(&mut lines, call, vec![Line::Load(argument(2)), code]);
    }
    if_call(&mut lines, libc::SYS_fcntl, one_of(1, &FCNTL.map(i32::unsigned_abs)));
    // How long a file server may take to answer.
    let timeouts = [libc::SO_RCVTIMEO, libc::SO_SNDTIMEO].map(i32::unsigned_abs);
    if_call(&mut lines, libc::SYS_setsockopt, one_of(2, &timeouts));
    if_call(&mut lines, libc::SYS_prctl, one_of(0, &[libc::PR_SET_NAME.unsigned_abs()]));
    // How this very thread wakes up (see `wakeups`).
    let mut own = vec![Line::Load(argument(0)), Line::If(EQUALS, 0, To::Next, To::Kill)];
    own.extend(one_of(1, &[libc::SCHED_OTHER, libc::SCHED_BATCH].map(i32::unsigned_abs)));
    if_call(&mut lines, libc::SYS_sched_setscheduler, own);
    // Signals to this process alone.
    if_call(&mut lines, libc::SYS_tgkill, one_of(0, &[std::process::id()]));
    if extra.connect {
        if_call(&mut lines, libc::SYS_socket, one_of(0, &[libc::AF_UNIX.unsigned_abs()]));
        lines.push(Line::If(EQUALS, number(libc::SYS_connect), To::Allow, To::Next));
    }
    assemble(&lines)
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "numbers of system calls are small")]
const fn number(call: i64) -> u32 {
    call as u32
}

fn one_of(index: u32, values: &[u32]) -> Vec<Line> {
    let load = std::iter::once(Line::Load(argument(index)));
    load.chain(values.iter().map(|value| Line::If(EQUALS, *value, To::Allow, To::Next))).collect()
}

/// What is to be looked at for one system call; it ends the process if nothing of that decides.
fn if_call(lines: &mut Vec<Line>, call: i64, then: Vec<Line>) {
    // One more, for the end.
    lines.push(Line::If(EQUALS, number(call), To::Next, To::Past(then.len() + 1)));
    lines.extend(then);
    lines.push(Line::If(EQUALS, 0, To::Kill, To::Kill));
}

/// Behind all lines come the three outcomes.
fn assemble(lines: &[Line]) -> Result<Vec<libc::sock_filter>, FilterError> {
    let outcomes = [
        libc::SECCOMP_RET_KILL_PROCESS,
        libc::SECCOMP_RET_ALLOW,
        libc::SECCOMP_RET_ERRNO | libc::EACCES.unsigned_abs(),
    ];
    let code = |code: u32| u16::try_from(code).map_err(|_| FilterError::TooLong);
    let mut program = Vec::with_capacity(lines.len() + outcomes.len());
    for (place, line) in lines.iter().enumerate() {
        let left = lines.len() - place - 1;
        let jump = |to: &To| {
            let distance = match to {
                To::Next => 0,
                To::Past(count) => *count,
                To::Kill => left,
                To::Allow => left + 1,
                To::Fail => left + 2,
            };
            u8::try_from(distance).map_err(|_| FilterError::TooLong)
        };
        program.push(match line {
            Line::Load(place) => {
                libc::sock_filter { code: code(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS)?, jt: 0, jf: 0, k: *place }
            }
            Line::If(test, value, yes, no) => {
                libc::sock_filter { code: code(*test)?, jt: jump(yes)?, jf: jump(no)?, k: *value }
            }
        });
    }
    for outcome in outcomes {
        program.push(libc::sock_filter { code: code(libc::BPF_RET | libc::BPF_K)?, jt: 0, jf: 0, k: outcome });
    }
    Ok(program)
}

#[cfg(test)]
#[path = "filter_test.rs"]
mod tests;
