// SPDX-License-Identifier: Apache-2.0
//! Numbers that the VMM and the agent share.

/// vsock port on which the agent listens.
pub const AGENT_PORT: u32 = 1024;

/// I/O port of the boot timer: each byte written marks a stage of the boot.
pub const BOOT_TIMER_PORT: u16 = 0x520;
/// Stage: the kernel has started `/init`.
pub const BOOT_STAGE_INIT: u8 = 0x01;
/// Stage: the agent accepts connections on [`AGENT_PORT`].
pub const BOOT_STAGE_READY: u8 = 0x02;

/// First of eight I/O ports with the host's time of day, in nanoseconds since 1970, the lowest byte first: reading that
/// takes the time, which the others go on with.
pub const HOST_CLOCK_PORT: u16 = 0x528;

/// I/O port of the pvpanic device (QEMU `docs/specs/pvpanic.rst`).
pub const PVPANIC_PORT: u16 = 0x505;
/// pvpanic: the guest has panicked.
pub const PVPANIC_PANICKED: u8 = 1 << 0;
/// pvpanic: the guest has shut down and can be ended.
pub const PVPANIC_SHUTDOWN: u8 = 1 << 2;
