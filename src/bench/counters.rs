// SPDX-License-Identifier: Apache-2.0
//! What a program and all that it starts ask of the host's kernel, counted by the kernel itself: tracepoints as
//! perf_event_open(2) counts them, which each process hands down to its children.

use std::fs;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use perf_event_open_sys::bindings::{PERF_FLAG_FD_CLOEXEC, PERF_TYPE_TRACEPOINT, perf_event_attr};
use perf_event_open_sys::perf_event_open;
use rustix::mount::{MountFlags, mount};
use serde::Serialize;

use super::backend::Workspace;

/// Where tracefs usually is.
const USUAL: &str = "/sys/kernel/tracing";

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Event {
    /// System calls of all processes, on the host.
    SystemCalls,
    /// Times that a guest was left for KVM; PVM does not tell.
    Exits,
    /// Times that KVM went back to the VMM.
    UserExits,
    /// Instructions that KVM emulated: on PVM all those of the guest's kernel, elsewhere a few that access devices.
    EmulatedInstructions,
}

impl Event {
    /// All of them, in the order of reports.
    pub const ALL: [Self; 4] = [Self::SystemCalls, Self::Exits, Self::UserExits, Self::EmulatedInstructions];

    /// Its tracepoint.
    fn tracepoint(self) -> &'static str {
        match self {
            Self::SystemCalls => "raw_syscalls/sys_enter",
            Self::Exits => "kvm/kvm_exit",
            Self::UserExits => "kvm/kvm_userspace_exit",
            Self::EmulatedInstructions => "kvm/kvm_emulate_insn",
        }
    }
}

/// What was counted of one run, by the places of [`Event::ALL`]; `None` where the host has no such tracepoint.
pub type Counts = [Option<u64>; Event::ALL.len()];

/// The kernel's description of its tracepoints.
#[derive(Clone, Debug)]
pub struct Tracepoints(PathBuf);

impl Tracepoints {
    /// Finds it, or mounts it in the workspace.
    ///
    /// # Errors
    /// The host does not let this process count, and why.
    pub fn find(workspace: &Workspace) -> Result<Self, String> {
        let found = match Path::new(USUAL).join("events").is_dir() {
            true => Self(PathBuf::from(USUAL)),
            false => {
                workspace.can_mount()?;
                let directory = workspace.make("tracing").map_err(|error| error.to_string())?;
                mount("tracefs", &directory, "tracefs", MountFlags::RDONLY, None)
                    .map_err(|error| format!("tracefs cannot be mounted: {error}"))?;
                Self(directory)
            }
        };
        // System calls are there on each host that lets this process count at all.
        found.count(Event::SystemCalls).map(drop).map_err(|error| match error.kind() {
            io::ErrorKind::PermissionDenied => "only root may, or kernel.perf_event_paranoid has to be -1".to_owned(),
            _ => format!("the kernel has no {}: {error}", Event::SystemCalls.tracepoint()),
        })?;
        Ok(found)
    }

    /// Counts what this thread's children do from their first exec on, and their children. This thread itself, which
    /// executes nothing, is not counted.
    ///
    /// # Errors
    /// The kernel's.
    fn count(&self, event: Event) -> io::Result<OwnedFd> {
        let id = fs::read_to_string(self.0.join("events").join(event.tracepoint()).join("id"))?;
        let mut attributes = perf_event_attr {
            type_: PERF_TYPE_TRACEPOINT,
            size: u32::try_from(size_of::<perf_event_attr>()).map_err(io::Error::other)?,
            config: id.trim().parse().map_err(io::Error::other)?,
            ..perf_event_attr::default()
        };
        attributes.set_inherit(1);
        attributes.set_disabled(1);
        attributes.set_enable_on_exec(1);
        // SAFETY: `attributes` is as large as it says, and the kernel only reads it: this thread (0), on any CPU (-1), in
        // no group (-1).
        let fd = unsafe { perf_event_open(&raw mut attributes, 0, -1, -1, PERF_FLAG_FD_CLOEXEC.into()) };
        match fd {
            // SAFETY: the kernel has just given it to nobody else.
            0.. => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Begins to count what this thread starts from here on.
    pub fn begin(&self) -> Counting {
        Counting(Event::ALL.map(|event| self.count(event).ok()))
    }
}

/// Counting, of one run.
#[derive(Debug)]
pub struct Counting([Option<OwnedFd>; Event::ALL.len()]);

impl Counting {
    /// What was counted. All that was started has ended: else what it does yet is missing.
    pub fn end(self) -> Counts {
        self.0.map(|fd| {
            let mut count = [0; 8];
            let read = rustix::io::read(fd?, &mut count[..]).ok()?;
            (read == count.len()).then_some(u64::from_ne_bytes(count))
        })
    }
}
