// SPDX-License-Identifier: Apache-2.0
//! Power-off and reset as ACPI knows them on reduced hardware (ACPI 6.5 §4.8.3.6, §4.8.3.7).

use std::sync::Arc;

use crate::vmm::bus::BusDevice;
use crate::vmm::devices::exit::{ExitLine, GuestEnd};

/// What the `\_S5` package of the DSDT gives as its sleep type.
pub const S5_SLEEP_TYPE: u8 = 5;

/// Offset of the sleep control register. The status register after it reads as zero: nothing ever wakes here.
const SLEEP_CONTROL: u64 = 0;
/// Offset of the reset register.
const RESET: u64 = 2;
/// What the FADT gives as its reset value.
pub const RESET_VALUE: u8 = 1;
/// `SLP_EN`, with the sleep type in the three bits below it.
const SLEEP_ENABLE: u8 = 1 << 5;
const SLEEP_TYPE_MASK: u8 = 7 << 2;

/// Three ports, from [`crate::vmm::layout::ACPI_SLEEP_CONTROL_PORT`] on.
pub struct AcpiPower {
    exit: Arc<ExitLine>,
}

impl AcpiPower {
    /// Number of ports.
    pub const LENGTH: u64 = 3;

    /// Registers that report to `exit`.
    pub fn new(exit: Arc<ExitLine>) -> Self {
        Self { exit }
    }
}

impl BusDevice for AcpiPower {
    fn read(&self, _offset: u64, _data: &mut [u8]) {}

    fn write(&self, offset: u64, data: &[u8]) {
        match (offset, data) {
            (SLEEP_CONTROL, &[value])
                if value & (SLEEP_ENABLE | SLEEP_TYPE_MASK) == SLEEP_ENABLE | S5_SLEEP_TYPE << 2 =>
            {
                self.exit.request(GuestEnd::PowerOff);
            }
            (RESET, &[RESET_VALUE]) => self.exit.request(GuestEnd::Reboot),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vmm::layout::{ACPI_RESET_PORT, ACPI_SLEEP_CONTROL_PORT};

    fn after(offset: u64, data: &[u8]) -> Option<GuestEnd> {
        let exit = Arc::new(ExitLine::new().unwrap());
        AcpiPower::new(Arc::clone(&exit)).write(offset, data);
        exit.reason()
    }

    #[test]
    fn registers_lie_where_the_tables_say() {
        assert_eq!(RESET, u64::from(ACPI_RESET_PORT - ACPI_SLEEP_CONTROL_PORT));
        assert_eq!(RESET + 1, AcpiPower::LENGTH);
    }

    #[test]
    fn sleep_type_5_with_enable_powers_off() {
        assert_eq!(after(SLEEP_CONTROL, &[0x34]), Some(GuestEnd::PowerOff));
        // Type without enable, enable of another type, and a word.
        for data in [&[0x14u8][..], &[0x20], &[0x38], &[0x34, 0]] {
            assert_eq!(after(SLEEP_CONTROL, data), None, "{data:?}");
        }
    }

    #[test]
    fn the_reset_value_resets() {
        assert_eq!(after(RESET, &[1]), Some(GuestEnd::Reboot));
        assert_eq!(after(RESET, &[0]), None);
        assert_eq!(after(1, &[0x34]), None);
    }
}
