// SPDX-License-Identifier: Apache-2.0
//! Probes of what a tenant can reach of the kernel that answers it. Each tries what can do no harm where it succeeds: on
//! the host's own kernel they all run as controls.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::Path;

use super::catalogue::{Facts, Group, Method, Probe, Seen};
use super::sys::{call, words};

const fn try_to(
    name: &'static str,
    tries: &'static str,
    means: &'static str,
    look: fn(&Facts) -> io::Result<Seen>,
) -> Probe {
    Probe { name, group: Group::Reached, method: Method::Reach, tries, means, look: Some(look) }
}

/// All of them.
pub static PROBES: &[Probe] = &[
    Probe {
        name: "system-calls",
        group: Group::Reached,
        method: Method::Level,
        tries: "makes each system call with arguments that are wrong, and counts those that are not refused unseen",
        means: "so much of the host's kernel can be attacked",
        look: Some(system_calls),
    },
    Probe {
        name: "socket-families",
        group: Group::Reached,
        method: Method::Level,
        tries: "makes a socket of each of eight address families, and counts",
        means: "so many of the host's network protocols can be attacked",
        look: Some(socket_families),
    },
    try_to("io-uring", "sets up an io_uring", "a part of the kernel with many holes found is open", |_| {
        made("a ring", call(libc::SYS_io_uring_setup, [1.into(), (&mut [0; 120][..]).into()]))
    }),
    try_to("userfaultfd", "makes a userfaultfd", "a tool that makes races in the kernel winnable is at hand", |_| {
        made("a descriptor", call(libc::SYS_userfaultfd, [0.into()]))
    }),
    try_to("bpf", "makes a BPF map", "programs can be loaded into the host's kernel", |_| {
        // BPF_MAP_CREATE: an array of one entry, keys and values of 4 bytes.
        let attributes = words(&[2, 4, 4, 1, 0, 0, 0, 0, 0, 0, 0, 0]);
        made("a map", call(libc::SYS_bpf, [0.into(), attributes.as_slice().into(), 48.into()]))
    }),
    try_to("perf-events", "counts events of all processes on a CPU", "sees what others execute", |_| {
        // PERF_TYPE_SOFTWARE, PERF_COUNT_SW_CPU_CLOCK; of all processes on CPU 0.
        let mut attributes = vec![0_u8; 112];
        attributes[0] = 1;
        attributes[4] = 112;
        let arguments = [attributes.as_slice().into(), (-1).into(), 0.into(), (-1).into(), 0.into()];
        made("a counter", call(libc::SYS_perf_event_open, arguments))
    }),
    try_to("ptrace", "traces a process of its own", "a part of the kernel with many holes found is open", |_| {
        // SAFETY: this process has one thread; the child waits to be killed.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            loop {
                // SAFETY: waits for a signal.
                unsafe { libc::pause() };
            }
        }
        // PTRACE_SEIZE.
        let traced = call(libc::SYS_ptrace, [0x4206.into(), i64::from(pid).into(), 0.into(), 0.into()]);
        // SAFETY: ends our own child, and waits for it, so that no zombie has our name.
        unsafe {
            libc::kill(pid, libc::SIGKILL);
            libc::waitpid(pid, std::ptr::null_mut(), 0);
        }
        made("traced", traced)
    }),
    try_to(
        "module-loading",
        "gives the kernel a module that is none",
        "code can be loaded into the host's kernel",
        |_| {
            let parameters: &std::ffi::CStr = c"";
            let loaded = call(libc::SYS_init_module, [(&[0; 64][..]).into(), 64.into(), parameters.into()]);
            reached("the loader looked at it", libc::ENOEXEC, loaded)
        },
    ),
    try_to("kexec", "gives the kernel another one that is none", "the host's kernel can be replaced", |_| {
        // More segments than there may be (KEXEC_SEGMENT_MAX), which is looked at after rights are.
        let loaded = call(libc::SYS_kexec_load, [0.into(), 17.into(), 0.into(), 0.into()]);
        reached("it would take one", libc::EINVAL, loaded)
    }),
    try_to("reboot", "calls reboot(2) with a command that there is not", "the host can be switched off", |_| {
        let magic = [0xfee1_dead_u32, 0x2812_1969, 0x0bad_c0de];
        let [one, two, command] = magic.map(|word| i64::from(word).into());
        reached("it looked at the command", libc::EINVAL, call(libc::SYS_reboot, [one, two, command]))
    }),
    try_to("clock", "sets the clock's tick to what it is", "the host's time can be changed", |_| {
        // ADJ_TICK is 0x4000 in `modes`, and `tick` the 11th word of 8 bytes (struct timex).
        let mut time = vec![0_u8; 208];
        call(libc::SYS_adjtimex, [time.as_mut_slice().into()])?;
        time[..4].copy_from_slice(&0x4000_u32.to_ne_bytes());
        made("set", call(libc::SYS_adjtimex, [time.as_mut_slice().into()]))
    }),
    try_to("swap", "switches off a swap file that there is not", "the host's memory can be managed", |_| {
        let path: &std::ffi::CStr = c"/no-such-swap-file";
        reached("it looked for it", libc::ENOENT, call(libc::SYS_swapoff, [path.into()]))
    }),
    try_to("io-ports", "asks for an I/O port", "the host's hardware can be driven", |_| {
        made("granted", call(libc::SYS_ioperm, [0x80.into(), 1.into(), 1.into()]))
    }),
    try_to("mount", "mounts a file system in memory", "file systems of the host's kernel can be attacked", |_| {
        let target = ["/dev/shm", "/tmp", "/run"].into_iter().find(|path| Path::new(path).is_dir()).unwrap_or("/");
        let target = std::ffi::CString::new(target)?;
        // In a namespace of this process, so that nobody else sees it: where that is refused, so is the mount.
        call(libc::SYS_unshare, [i64::from(libc::CLONE_NEWNS).into()])?;
        let (none, root, kind): (&std::ffi::CStr, &std::ffi::CStr, &std::ffi::CStr) = (c"none", c"/", c"tmpfs");
        let private = i64::try_from(libc::MS_PRIVATE | libc::MS_REC).unwrap_or(0);
        call(libc::SYS_mount, [none.into(), root.into(), 0.into(), private.into(), 0.into()])?;
        let mounted = call(libc::SYS_mount, [none.into(), target.as_c_str().into(), kind.into(), 0.into(), 0.into()]);
        made("mounted", mounted)
    }),
    try_to(
        "user-namespaces",
        "makes a user namespace",
        "gives rights in which most holes of late years were used",
        |_| made("made", call(libc::SYS_unshare, [i64::from(libc::CLONE_NEWUSER).into()])),
    ),
    try_to("raw-sockets", "makes a raw IP socket", "addresses of others can be feigned", |_| {
        made("made", call(libc::SYS_socket, [2.into(), 3.into(), 1.into()]))
    }),
    try_to("packet-sockets", "makes a packet socket", "all that passes on its network can be read", |_| {
        made("made", call(libc::SYS_socket, [17.into(), 3.into(), 0.into()]))
    }),
    try_to("vsock", "makes a vsock socket", "the host's own hypervisor can be spoken to", |_| {
        made("made", call(libc::SYS_socket, [40.into(), 1.into(), 0.into()]))
    }),
    try_to(
        "kernel-crypto",
        "makes a socket for the kernel's cryptography",
        "a part with many holes found is open",
        |_| made("made", call(libc::SYS_socket, [38.into(), 5.into(), 0.into()])),
    ),
    try_to(
        "disk-nodes",
        "makes a node of the host's disk, and opens it",
        "all files of the host can be read",
        |facts| {
            let Some((major, minor)) = facts.disk else { return Ok(Seen::Missing("the host has no disk".to_owned())) };
            let place =
                ["/dev/shm", "/tmp", "/run", "/"].into_iter().find(|path| Path::new(path).is_dir()).unwrap_or("/");
            let path = format!("{place}/coracle-probe-disk");
            let name = std::ffi::CString::new(path.as_str())?;
            let device = i64::try_from(libc::makedev(major, minor)).unwrap_or(0);
            call(libc::SYS_mknod, [name.as_c_str().into(), i64::from(libc::S_IFBLK | 0o600).into(), device.into()])?;
            let opened = File::open(&path);
            fs::remove_file(&path)?;
            opened.map(|_| Seen::Done("opened".to_owned()))
        },
    ),
    try_to("memory-node", "opens /dev/mem", "the host's memory can be read", |_| opened("/dev/mem", false)),
    try_to("kvm-node", "opens /dev/kvm", "the host's hypervisor can be attacked", |_| opened("/dev/kvm", true)),
    try_to("log-node", "writes to the kernel's log", "the host's log can be filled, and feigned", |_| {
        let mut log = OpenOptions::new().write(true).open("/dev/kmsg")?;
        log.write_all(b"<7>coracle bench isolation: a probe writes to this log\n")?;
        Ok(Seen::Done("written".to_owned()))
    }),
    try_to("kernel-memory", "reads the beginning of /proc/kcore", "the host's memory can be read", |_| {
        let mut head = [0; 4];
        let count = File::open("/proc/kcore")?.read(&mut head)?;
        Ok(match &head[..count] {
            b"\x7fELF" => Seen::Done("read".to_owned()),
            _ => Seen::Refused("something lies over it".to_owned()),
        })
    }),
    try_to("sysrq", "opens /proc/sysrq-trigger to write", "the host can be crashed", |_| {
        opened("/proc/sysrq-trigger", true)
    }),
    try_to(
        "core-pattern",
        "opens /proc/sys/kernel/core_pattern to write",
        "a program of the tenant's is run by the host when a process crashes",
        |_| opened("/proc/sys/kernel/core_pattern", true),
    ),
    try_to(
        "kernel-settings",
        "opens a setting of the kernel's in /sys to write",
        "the host's kernel can be set",
        |_| {
            opened("/sys/kernel/mm/transparent_hugepage/enabled", true).or_else(|error| match error.kind() {
                io::ErrorKind::NotFound => opened("/sys/kernel/rcu_expedited", true),
                _ => Err(error),
            })
        },
    ),
    try_to(
        "control-groups",
        "opens a control group's list of processes to write",
        "limits can be left behind, and with version 1 programs be run by the host",
        |_| {
            let version1 =
                ["memory", "pids", "cpu", "unified"].map(|name| format!("/sys/fs/cgroup/{name}/cgroup.procs"));
            let paths = std::iter::once("/sys/fs/cgroup/cgroup.procs".to_owned()).chain(version1);
            match paths.into_iter().find(|path| Path::new(path).exists()) {
                Some(path) => opened(&path, true),
                None => Ok(Seen::Missing("there is none".to_owned())),
            }
        },
    ),
    try_to("file-handles", "opens a file by its handle", "files outside of the root can be opened", |_| {
        // struct file_handle: 8 bytes, and up to 128 (MAX_HANDLE_SZ) of the file system's own; first for /proc, if need be.
        let mut handle = vec![0_u8; 136];
        let mut mount = [0_u8; 4];
        handle[..4].copy_from_slice(&128_u32.to_ne_bytes());
        let root: &std::ffi::CStr = c"/";
        let found = call(
            libc::SYS_name_to_handle_at,
            [(-100).into(), root.into(), handle.as_mut_slice().into(), (&mut mount[..]).into(), 0.into()],
        );
        if let Err(error) = found
            && error.raw_os_error() != Some(libc::EOPNOTSUPP)
        {
            return Err(error);
        }
        let opened = call(libc::SYS_open_by_handle_at, [(-100).into(), handle.as_mut_slice().into(), 0.into()]);
        match opened {
            // Past the question of rights.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ESTALE | libc::EOPNOTSUPP | libc::EINVAL)) => {
                Ok(Seen::Done("it looked at the handle".to_owned()))
            }
            opened => made("opened", opened),
        }
    }),
    try_to("priority", "asks to run before others", "takes CPUs from all others", |_| {
        // PRIO_PROCESS, of this one.
        made("granted", call(libc::SYS_setpriority, [0.into(), 0.into(), (-10).into()]))
    }),
    try_to("out-of-memory-score", "asks to be spared when memory runs out", "others are killed in its place", |_| {
        fs::write("/proc/self/oom_score_adj", "-500")?;
        Ok(Seen::Done("granted".to_owned()))
    }),
    try_to("trace-events", "opens the kernel's list of trace points", "sees what the host's kernel does", |_| {
        opened("/sys/kernel/tracing/available_events", false)
    }),
];

/// Something was made.
fn made(what: &str, result: io::Result<i64>) -> io::Result<Seen> {
    result.map(|_| Seen::Done(what.to_owned()))
}

/// The kernel complains of what it was given, and so has looked at it: rights were not in the way.
fn reached(what: &str, complaint: i32, result: io::Result<i64>) -> io::Result<Seen> {
    match result {
        Err(error) if error.raw_os_error() == Some(complaint) => Ok(Seen::Done(what.to_owned())),
        result => made(what, result),
    }
}

fn opened(path: &str, write: bool) -> io::Result<Seen> {
    OpenOptions::new().read(!write).write(write).open(path).map(|_| Seen::Done("opened".to_owned()))
}

/// Families that most kernels have, each with a type that it has: others would have the host load modules.
const FAMILIES: [(libc::c_int, libc::c_int); 8] = [
    (libc::AF_UNIX, libc::SOCK_STREAM),
    (libc::AF_INET, libc::SOCK_DGRAM),
    (libc::AF_INET6, libc::SOCK_DGRAM),
    (libc::AF_NETLINK, libc::SOCK_RAW),
    (libc::AF_PACKET, libc::SOCK_RAW),
    (libc::AF_ALG, libc::SOCK_SEQPACKET),
    (libc::AF_VSOCK, libc::SOCK_STREAM),
    (libc::AF_XDP, libc::SOCK_RAW),
];

fn socket_families(_: &Facts) -> io::Result<Seen> {
    let made = FAMILIES.iter().filter(|(family, kind)| {
        call(libc::SYS_socket, [i64::from(*family).into(), i64::from(*kind).into(), 0.into()]).is_ok()
    });
    Ok(Seen::Count(u64::try_from(made.count()).unwrap_or(0)))
}

/// Those that end or stop the caller, change its memory or signals, or bother the host whatever their arguments are.
const LEFT_OUT: [libc::c_long; 22] = [
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_fork,
    libc::SYS_vfork,
    libc::SYS_clone,
    libc::SYS_clone3,
    libc::SYS_rt_sigreturn,
    libc::SYS_pause,
    libc::SYS_rt_sigsuspend,
    libc::SYS_sync,
    libc::SYS_vhangup,
    libc::SYS_alarm,
    libc::SYS_munlockall,
    libc::SYS_init_module,
    libc::SYS_brk,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_mprotect,
    libc::SYS_set_tid_address,
    libc::SYS_setsid,
    libc::SYS_restart_syscall,
];

fn system_calls(_: &Facts) -> io::Result<Seen> {
    let seen = |number: &libc::c_long| {
        let wrong = || (-1).into();
        match call(*number, [wrong(), wrong(), wrong(), wrong(), wrong(), wrong()]) {
            Ok(_) => true,
            Err(error) => !matches!(error.raw_os_error(), Some(libc::EPERM | libc::ENOSYS)),
        }
    };
    // Numbers from 335 to 423 are of no call on x86-64.
    let numbers = (0..335).chain(424..462).filter(|number| !LEFT_OUT.contains(number));
    Ok(Seen::Count(u64::try_from(numbers.filter(seen).count()).unwrap_or(0)))
}
