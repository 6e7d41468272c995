// SPDX-License-Identifier: Apache-2.0
//! What a container without privileges does not see, or may not change, of its kernel: the paths of Docker's default
//! (moby `oci/defaults.go`), as an OCI runtime treats them; and kernel parameters.

use core::ffi::CStr;

use coracle_protocol::Sysctl;
use rustix::fs::{Mode, OFlags};
use rustix::io::{Errno, Result};
use rustix::mount::{MountFlags, mount, mount_bind, mount_remount};

use crate::workload::{Refusal, failed};

const MASKED: [&CStr; 10] = [
    c"/proc/acpi",
    c"/proc/asound",
    c"/proc/kcore",
    c"/proc/keys",
    c"/proc/latency_stats",
    c"/proc/sched_debug",
    c"/proc/scsi",
    c"/proc/timer_list",
    c"/sys/devices/virtual/powercap",
    c"/sys/firmware",
];

const READ_ONLY: [&CStr; 5] = [c"/proc/bus", c"/proc/fs", c"/proc/irq", c"/proc/sys", c"/proc/sysrq-trigger"];

/// Hides and protects what is there of these.
///
/// # Errors
/// What the kernel refused.
pub fn mask() -> core::result::Result<(), Refusal> {
    for path in MASKED {
        there(hide(path)).map_err(failed(format_args!("cannot hide {}", path.to_string_lossy())))?;
    }
    for path in READ_ONLY {
        there(protect(path)).map_err(failed(format_args!("cannot protect {}", path.to_string_lossy())))?;
    }
    Ok(())
}

fn there(outcome: Result<()>) -> Result<()> {
    if outcome == Err(Errno::NOENT) { Ok(()) } else { outcome }
}

fn hide(path: &CStr) -> Result<()> {
    match mount_bind(c"/dev/null", path) {
        Err(Errno::NOTDIR) => mount(c"tmpfs", path, c"tmpfs", MountFlags::RDONLY, c"size=0"),
        other => other,
    }
}

fn protect(path: &CStr) -> Result<()> {
    mount_bind(path, path)?;
    let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount_remount(path, MountFlags::BIND | flags, c"")
}

/// Sets a kernel parameter, from within the root.
///
/// # Errors
/// The kernel's: there is no such parameter, or it does not take this value.
pub fn set_parameter(parameter: &Sysctl) -> Result<()> {
    let mut path = b"/proc/sys/".to_vec();
    path.extend(parameter.name.iter().map(|byte| if *byte == b'.' { b'/' } else { *byte }));
    let file = rustix::fs::open(path.as_slice(), OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(&file, &parameter.value).map(drop)
}
