// SPDX-License-Identifier: Apache-2.0
//! PID 1 of a Coracle guest.
//!
//! Until the agent is ready it makes nine system calls and allocates nothing: the time a guest takes to start is made of
//! what its kernel executes. Mounting, reaping, and the console come later, when something needs them.
//!
//! The program is in `freestanding/`; what is here also runs, and is tested, on the host. What is public besides the agent
//! itself is what the host does for containers that run without a VM, so that both do it alike.
#![no_std]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod adoption;
mod agent;
pub mod archive;
mod cgroup;
mod child;
mod connection;
mod console;
mod credentials;
mod facts;
mod files;
pub mod fill;
mod guest;
mod init;
mod inserts;
mod io_ports;
mod masks;
mod mounts;
mod network;
mod news;
mod orders;
mod power;
mod program;
mod renewal;
mod rootfs;
mod settings;
mod signals;
pub mod statistics;
mod streams;
mod sys;
mod terminal;
pub mod users;
mod vsock;
mod warm;
mod workload;

use core::ffi::CStr;

use coracle_protocol::{
    AGENT_PORT, BOOT_STAGE_INIT, BOOT_STAGE_READY, BOOT_TIMER_PORT, PVPANIC_PANICKED, PVPANIC_PORT,
};

pub use agent::Agent;
pub use io_ports::IoPorts;
pub use power::end;
pub use sys::say;

/// Runs the guest, from the first instruction of user space to the end of the machine.
pub fn init<'a>(environment: impl Iterator<Item = &'a CStr>) -> ! {
    assert!(rustix::process::getpid().is_init(), "this is PID 1 of a guest: boot a kernel with it as /init");
    sys::occupy_standard_streams();
    let ports = IoPorts::open(io_ports::DEV_PORT);
    ports.write(BOOT_TIMER_PORT, BOOT_STAGE_INIT);
    let listener = vsock::listen(AGENT_PORT);
    ports.write(BOOT_TIMER_PORT, BOOT_STAGE_READY);

    let settings = settings::Settings::read(environment);
    let mut agent = Agent::new(listener.ok());
    agent.start_console(settings);
    let shutdown = agent.run();
    end(shutdown, &ports)
}

/// Ends the machine as one whose kernel has panicked.
pub fn fail() -> ! {
    if rustix::process::getpid().is_init() {
        IoPorts::open(io_ports::DEV_PORT).write(PVPANIC_PORT, PVPANIC_PANICKED);
    }
    // Another VMM has no such port; without its PID 1 the kernel panics by itself.
    sys::exit(101)
}
