// SPDX-License-Identifier: Apache-2.0
//! System calls that rustix does not have, or not without libc.

use core::arch::asm;
use core::ffi::{CStr, c_char};

use rustix::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use rustix::fs::{Mode, OFlags};
use rustix::io::{Errno, Result};
use rustix::process::{Pid, Signal};

const IOCTL: usize = 16;
const EXECVE: usize = 59;
const KILL: usize = 62;
const RT_SIGPROCMASK: usize = 14;
const RT_SIGTIMEDWAIT: usize = 128;
const UNSHARE: usize = 272;
const CLOCK_SETTIME: usize = 227;
const CLOCK_GETTIME: usize = 228;
const EXIT_GROUP: usize = 231;
const PRLIMIT64: usize = 302;
const CLONE3: usize = 435;
const CLOSE_RANGE: usize = 436;
const SIGNALFD4: usize = 289;

const CLOCK_REALTIME: usize = 0;
const CLOCK_BOOTTIME: usize = 7;
const SIG_SETMASK: usize = 2;
/// Bytes of the kernel's `sigset_t`.
const SIGSET_SIZE: usize = 8;
/// `SFD_NONBLOCK | SFD_CLOEXEC`.
const SFD_FLAGS: usize = 0o2_004_000;

/// # Safety
/// The arguments are what the system call demands; pointers among them stay valid while it runs.
unsafe fn call(number: usize, a: usize, b: usize, c: usize, d: usize) -> Result<usize> {
    let result: usize;
    // SAFETY: the kernel changes rax, rcx, r11, and the memory that the arguments point to.
    unsafe {
        asm!("syscall", inout("rax") number => result, in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d,
            out("rcx") _, out("r11") _, options(nostack));
    }
    // The kernel returns errors as the last 4095 numbers (System V ABI, A.2.1).
    match i32::try_from(result.wrapping_neg()) {
        Ok(error @ 1..=4095) => Err(Errno::from_raw_os_error(error)),
        _ => Ok(result),
    }
}

/// The two sides of a fork.
pub enum Fork {
    /// In the child.
    Child,
    /// In the parent, with the child's id.
    Parent(Pid),
}

/// Duplicates the process.
///
/// # Safety
/// Until it calls [`exec`] or [`exit`], the child does nothing but system calls.
pub unsafe fn fork() -> Result<Fork> {
    // SAFETY: the promise is the caller's.
    unsafe { clone(0, None) }
}

/// `CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWPID`.
const CONTAINER: u64 = 0x2_0000 | 0x400_0000 | 0x800_0000 | 0x2000_0000;
const CLONE_NEWCGROUP: usize = 0x200_0000;
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
/// What the parent gets at the child's end.
const SIGCHLD: u64 = 17;

/// Duplicates the process into mount, UTS, IPC and PID namespaces of its own, and into a control group: the child is
/// PID 1 of its own, and whatever it starts ends with it.
///
/// # Safety
/// As for [`fork`]; allocating is allowed too where this process has but one thread.
pub unsafe fn fork_into_namespaces(group: Option<BorrowedFd<'_>>) -> Result<Fork> {
    // SAFETY: the promise is the caller's.
    unsafe { clone(CONTAINER, group) }
}

/// Duplicates the process into a control group.
///
/// # Safety
/// As for [`fork_into_namespaces`].
pub unsafe fn fork_into_group(group: Option<BorrowedFd<'_>>) -> Result<Fork> {
    // SAFETY: the promise is the caller's.
    unsafe { clone(0, group) }
}

/// All of the above.
///
/// # Safety
/// As for [`fork`].
unsafe fn clone(namespaces: u64, group: Option<BorrowedFd<'_>>) -> Result<Fork> {
    let (flag, group) = match group {
        Some(group) => (CLONE_INTO_CGROUP, u64::try_from(group.as_raw_fd()).map_err(|_| Errno::BADF)?),
        None => (0, 0),
    };
    // A `struct clone_args`: flags, three places for ids, the signal at its end, stack and its size, thread-local
    // storage, wanted ids and their number, the group.
    let arguments: [u64; 11] = [namespaces | flag, 0, 0, 0, SIGCHLD, 0, 0, 0, 0, 0, group];
    // SAFETY: without CLONE_VM and with no stack, clone3(2) is fork(2), in new namespaces; what the child does is the
    // caller's promise. `arguments` is valid for the call.
    let id = unsafe { call(CLONE3, (&raw const arguments).addr(), size_of_val(&arguments), 0, 0) }?;
    Ok(match i32::try_from(id).ok().and_then(Pid::from_raw) {
        Some(pid) => Fork::Parent(pid),
        None => Fork::Child,
    })
}

/// Makes the control group of this process the root of those that it, and what it starts, can see.
pub fn unshare_cgroup() -> Result<()> {
    // SAFETY: this changes what the process sees in file systems that it mounts, and nothing in its memory.
    unsafe { call(UNSHARE, CLONE_NEWCGROUP, 0, 0, 0) }.map(drop)
}

/// Closes every descriptor from this one on, whoever owns it: for a process that does no more with any.
pub fn close_from(first: u32) {
    // SAFETY: a closed descriptor is an error to whoever uses it.
    let _ = unsafe { call(CLOSE_RANGE, usize::try_from(first).unwrap_or(0), usize::MAX >> 32, 0, 0) };
}

/// Waits for a blocked signal out of `set`, and gives its number.
pub fn wait_for_signal(set: u64) -> Option<u8> {
    let set = &raw const set;
    // SAFETY: `set` is valid for the call; neither information nor a time limit is asked for.
    let signal = unsafe { call(RT_SIGTIMEDWAIT, set.addr(), 0, 0, SIGSET_SIZE) };
    signal.ok().and_then(|signal| u8::try_from(signal).ok())
}

/// Becomes another program; returns only if that fails.
pub fn exec(program: &CStr, arguments: &[*const c_char], environment: &[*const c_char]) -> Errno {
    assert!(ends_with_null(arguments) && ends_with_null(environment), "unterminated argument list");
    // SAFETY: the strings are terminated, and so are both lists. Their pointers come from C strings: a wrong one is
    // EFAULT, since it is the kernel that follows it.
    let result =
        unsafe { call(EXECVE, program.as_ptr().addr(), arguments.as_ptr().addr(), environment.as_ptr().addr(), 0) };
    result.err().unwrap_or(Errno::NOEXEC)
}

fn ends_with_null(list: &[*const c_char]) -> bool {
    list.last().is_some_and(|last| last.is_null())
}

/// Ends the process.
pub fn exit(status: u8) -> ! {
    loop {
        // SAFETY: exit_group(2) takes a number, and does not return.
        let _ = unsafe { call(EXIT_GROUP, status.into(), 0, 0, 0) };
    }
}

fn signal_number(signal: Signal) -> usize {
    usize::try_from(signal.as_raw()).unwrap_or(0)
}

/// Sends the signal with this number to a process that the agent has not reaped yet.
pub fn kill(pid: Pid, signal: u8) {
    let Ok(id) = usize::try_from(pid.as_raw_nonzero().get()) else { return };
    // SAFETY: kill(2) takes two numbers. It fails only where there is no such signal, which nobody can hear then.
    let _ = unsafe { call(KILL, id, signal.into(), 0, 0) };
}

/// Sets a limit of this process by its number (`prlimit(2)`).
pub fn limit_resource(resource: u8, soft: u64, hard: u64) -> Result<()> {
    let limits = [soft, hard];
    // SAFETY: `limits` has the layout of `struct rlimit64` and is valid for the call; no old limits are asked for.
    unsafe { call(PRLIMIT64, 0, resource.into(), (&raw const limits).addr(), 0) }.map(drop)
}

/// Sends `signal` to every process but PID 1.
pub fn kill_all(signal: Signal) {
    // SAFETY: kill(2) takes two numbers. It fails only if there is nobody to kill.
    let _ = unsafe { call(KILL, usize::MAX, signal_number(signal), 0, 0) };
}

/// The set of `signals`, as the kernel's `sigset_t`.
pub fn signal_set(signals: &[Signal]) -> u64 {
    signals.iter().fold(0, |set, &signal| set | 1 << (signal_number(signal) - 1))
}

/// Blocks exactly the signals in `set`.
pub fn block_signals(set: u64) {
    let set = &raw const set;
    // SAFETY: `set` is valid for the call; no old set is asked for. With these arguments it cannot fail.
    let _ = unsafe { call(RT_SIGPROCMASK, SIG_SETMASK, set.addr(), 0, SIGSET_SIZE) };
}

/// A descriptor that is readable while a signal in `set` is pending.
pub fn signalfd(set: u64) -> Result<OwnedFd> {
    let set = &raw const set;
    // SAFETY: `set` is valid for the call; -1 asks for a new descriptor.
    let fd = unsafe { call(SIGNALFD4, usize::MAX, set.addr(), SIGSET_SIZE, SFD_FLAGS) }?;
    let fd = i32::try_from(fd).map_err(|_| Errno::BADF)?;
    // SAFETY: the kernel has just made it for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Milliseconds since the kernel started.
pub fn uptime_ms() -> u64 {
    uptime_ns() / 1_000_000
}

/// Nanoseconds since the kernel started. Not through the vDSO: finding that takes more faults than this call.
pub fn uptime_ns() -> u64 {
    let mut time = [0u64; 2];
    // SAFETY: `time` has the layout of a 64-bit `struct timespec` and is valid for the call.
    let _ = unsafe { call(CLOCK_GETTIME, CLOCK_BOOTTIME, (&raw mut time).addr(), 0, 0) };
    let [seconds, nanoseconds] = time;
    seconds.saturating_mul(1_000_000_000).saturating_add(nanoseconds)
}

/// Sets the time of day, in nanoseconds since 1970. Other clocks go on as they are.
pub fn set_clock(realtime_ns: u64) -> Result<()> {
    let time = [realtime_ns / 1_000_000_000, realtime_ns % 1_000_000_000];
    // SAFETY: `time` has the layout of a 64-bit `struct timespec` and is valid for the call.
    unsafe { call(CLOCK_SETTIME, CLOCK_REALTIME, (&raw const time).addr(), 0, 0) }.map(drop)
}

/// Gives the kernel's generator a `struct rand_pool_info` (`random(4)`, RNDADDENTROPY).
pub fn add_entropy(device: &OwnedFd, request: &[u8]) -> Result<()> {
    const RNDADDENTROPY: usize = 0x4008_5203;
    let fd = usize::try_from(device.as_raw_fd()).map_err(|_| Errno::BADF)?;
    let length = request.get(4..8).and_then(|field| field.try_into().ok()).map(i32::from_ne_bytes);
    if length.and_then(|length| usize::try_from(length).ok()).and_then(|length| length.checked_add(8))
        != Some(request.len())
    {
        return Err(Errno::INVAL);
    }
    // SAFETY: the request is as long as its length field says, which is what the kernel reads, and valid for the call.
    unsafe { call(IOCTL, fd, RNDADDENTROPY, request.as_ptr().addr(), 0) }.map(drop)
}

/// Has the kernel's generator take a new key from what it was given (`random(4)`, RNDRESEEDCRNG).
pub fn reseed(device: &OwnedFd) -> Result<()> {
    const RNDRESEEDCRNG: usize = 0x5207;
    let fd = usize::try_from(device.as_raw_fd()).map_err(|_| Errno::BADF)?;
    // SAFETY: the request takes no argument.
    unsafe { call(IOCTL, fd, RNDRESEEDCRNG, 0, 0) }.map(drop)
}

/// Without a console the kernel leaves descriptors 0 to 2 free, and the first that is opened would be taken for standard
/// error: they get something that cannot be read or written.
pub fn occupy_standard_streams() {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    while let Ok(fd) = rustix::fs::open(c"/", flags, Mode::empty()) {
        if fd.as_raw_fd() > 2 {
            break;
        }
        core::mem::forget(fd);
    }
}

/// The kernel's number of a network interface (`netdevice(7)`, SIOCGIFINDEX), through any socket.
pub fn interface_index(socket: &OwnedFd, name: &[u8]) -> Result<u32> {
    const SIOCGIFINDEX: usize = 0x8933;
    // A `struct ifreq`: 16 bytes of name with its NUL, then the number.
    let mut request = [0u8; 40];
    if name.len() > 15 {
        return Err(Errno::INVAL);
    }
    request.iter_mut().zip(name).for_each(|(place, byte)| *place = *byte);
    let fd = usize::try_from(socket.as_raw_fd()).map_err(|_| Errno::BADF)?;
    // SAFETY: `request` is as long as what the kernel reads and writes, and valid for the call.
    unsafe { call(IOCTL, fd, SIOCGIFINDEX, (&raw mut request).addr(), 0) }?;
    let [a, b, c, d] = [request[16], request[17], request[18], request[19]];
    Ok(u32::from_ne_bytes([a, b, c, d]))
}

/// Writes to the console. It may be absent, and then there is nobody to tell.
pub fn say(text: &[u8]) {
    // SAFETY: the kernel opens descriptors 0 to 2 for PID 1, or it has no console, and then writing to 2 fails.
    let console = unsafe { BorrowedFd::borrow_raw(2) };
    debug_assert_eq!(console.as_raw_fd(), 2);
    let _ = rustix::io::write(console, text);
}
