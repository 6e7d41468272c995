// SPDX-License-Identifier: Apache-2.0
//! The few devices behind I/O ports that a PC kernel cannot do without.

mod acpi_power;
mod cmos;
mod fixed_port;
mod host_clock;
mod i8042;
mod pvpanic;
mod serial;

pub use acpi_power::{AcpiPower, RESET_VALUE, S5_SLEEP_TYPE};
pub use cmos::Cmos;
pub use fixed_port::FixedPort;
pub use host_clock::HostClock;
pub use i8042::I8042;
pub use pvpanic::PvPanic;
pub use serial::{Serial, SerialState};
