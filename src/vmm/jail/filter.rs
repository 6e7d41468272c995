// SPDX-License-Identifier: Apache-2.0
//! The system calls of a VMM whose guest runs (seccomp(2), filters). Any other ends the process, but for those that look
//! for a path, which fail: the C library's allocator looks into `/proc` when it gives memory back.
//!
//! Nothing is opened, executed or signalled, no memory becomes executable, no thread is made, and `ioctl` does what is
//! listed here. An io_uring, whose jobs no such filter sees, has restrictions of its own.

use std::collections::BTreeMap;
use std::ffi::c_ulong;

use kvm_bindings::{
    KVMIO, kvm_clock_data, kvm_debugregs, kvm_irq_level, kvm_irqchip, kvm_lapic_state, kvm_mp_state, kvm_msr_list,
    kvm_msrs, kvm_regs, kvm_sregs, kvm_translation, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use seccompiler::{
    BackendError, BpfProgram, Error, SeccompAction, SeccompCmpArgLen as Length, SeccompCmpOp as Is, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch, apply_filter_all_threads,
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
const STATUS: [(i64, u8); 2] = [(libc::SYS_newfstatat, 3), (libc::SYS_statx, 2)];

/// What `fcntl` does of its own accord: flags of descriptors that are there.
const FCNTL: [i32; 5] = [libc::F_GETFD, libc::F_SETFD, libc::F_GETFL, libc::F_SETFL, libc::F_DUPFD_CLOEXEC];

/// `ioctl`s of KVM (Linux `Documentation/virt/kvm/api.rst`), of TAPs (`linux/if_tun.h`) and of sockets.
const IOCTLS: [c_ulong; 20] = [
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
    libc::TUNSETOFFLOAD,
    libc::TUNSETVNETHDRSZ,
    libc::FIONBIO,
];

const BOTH: u32 = _IOC_READ | _IOC_WRITE;

#[allow(clippy::cast_possible_truncation, reason = "structures of KVM are small")]
const fn kvm<T>(direction: u32, number: u32) -> c_ulong {
    ioctl_expr(direction, KVMIO, number, size_of::<T>() as u32)
}

/// For each system call the rules of which one has to hold; none is needed where there are none.
type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// Why there is no filter.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    /// It does not compile, which is a mistake of ours.
    #[error("the filter is wrong: {0}")]
    Wrong(#[from] BackendError),
    /// The kernel does not take it.
    #[error("the kernel refuses the filter: {0}")]
    Refused(#[from] Error),
}

/// Installs the filter for all threads. None of them gains privileges any more either (`PR_SET_NO_NEW_PRIVS`).
///
/// # Errors
/// See [`FilterError`].
pub fn install(extra: Extra) -> Result<(), FilterError> {
    // The second forbids to install another.
    for program in [paths(extra)?, calls(extra)?] {
        apply_filter_all_threads(&program)?;
    }
    Ok(())
}

/// What fails.
fn paths(extra: Extra) -> Result<BpfProgram, BackendError> {
    let mut rules: Rules = PATHS.map(|call| (call, Vec::new())).into();
    if !extra.unlink {
        rules.extend(REMOVALS.map(|call| (call, Vec::new())));
        let descriptor = u64::from(libc::AT_EMPTY_PATH.unsigned_abs());
        for (call, flags) in STATUS {
            rules.insert(call, vec![SeccompRule::new(vec![low(flags, Is::MaskedEq(descriptor), 0)?])?]);
        }
    }
    compile(rules, SeccompAction::Allow, SeccompAction::Errno(libc::EACCES.unsigned_abs()))
}

/// What is allowed.
fn calls(extra: Extra) -> Result<BpfProgram, BackendError> {
    let whatever = ALWAYS.iter().chain(&PATHS).chain(&REMOVALS).chain(STATUS.iter().map(|(call, _)| call));
    let mut rules: Rules = whatever.map(|call| (*call, Vec::new())).collect();
    // Each of the rules for a call is enough; all conditions of a rule have to hold.
    let one_of = |argument, values: &[u64]| {
        values.iter().map(|value| SeccompRule::new(vec![low(argument, Is::Eq, *value)?])).collect::<Result<Vec<_>, _>>()
    };
    rules.insert(libc::SYS_ioctl, one_of(1, &IOCTLS)?);
    rules.insert(libc::SYS_fcntl, one_of(1, &FCNTL.map(|command| u64::from(command.unsigned_abs())))?);
    // Of this process alone.
    rules.insert(libc::SYS_tgkill, one_of(0, &[u64::from(std::process::id())])?);
    rules.insert(libc::SYS_prctl, one_of(0, &[u64::from(libc::PR_SET_NAME.unsigned_abs())])?);
    let never_code = low(2, Is::MaskedEq(u64::from(libc::PROT_EXEC.unsigned_abs())), 0)?;
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        rules.insert(call, vec![SeccompRule::new(vec![never_code.clone()])?]);
    }
    if extra.connect {
        rules.insert(libc::SYS_socket, one_of(0, &[u64::from(libc::AF_UNIX.unsigned_abs())])?);
        rules.insert(libc::SYS_connect, Vec::new());
    }
    compile(rules, SeccompAction::KillProcess, SeccompAction::Allow)
}

/// Arguments are numbers of 32 bits, whatever is above them in their registers.
fn low(argument: u8, is: Is, value: u64) -> Result<SeccompCondition, BackendError> {
    SeccompCondition::new(argument, Length::Dword, is, value)
}

fn compile(rules: Rules, others: SeccompAction, these: SeccompAction) -> Result<BpfProgram, BackendError> {
    SeccompFilter::new(rules, others, these, TargetArch::x86_64)?.try_into()
}

#[cfg(test)]
#[path = "filter_test.rs"]
mod tests;
