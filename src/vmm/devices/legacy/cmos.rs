// SPDX-License-Identifier: Apache-2.0
//! The real-time clock of a PC (MC146818), read-only: the host's time in UTC.
//!
//! A kernel that has no paravirtual wall clock reads its time here at boot, and some wait for the clock to tick.

use std::sync::atomic::{AtomicU8, Ordering};

use crate::vmm::bus::BusDevice;
use crate::vmm::clock::utc_seconds;

/// Offset of the data port; the index port is at 0.
const DATA: u64 = 1;
/// Bit 7 of the index port masks NMIs and is no part of the index.
const INDEX_MASK: u8 = 0x7f;
/// Register A: 32768 Hz time base, no update in progress, ever.
const STATUS_A: u8 = 0x26;
/// Register B: 24-hour mode, BCD, no interrupts.
const STATUS_B: u8 = 0x02;
/// Register D: the battery is good.
const STATUS_D: u8 = 0x80;

/// Ports 0x70 and 0x71.
#[derive(Debug, Default)]
pub struct Cmos {
    index: AtomicU8,
}

impl Cmos {
    /// First port.
    pub const BASE: u64 = 0x70;
    /// Number of ports.
    pub const LENGTH: u64 = 2;
}

impl BusDevice for Cmos {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if let (DATA, [byte]) = (offset, data) {
            *byte = register(self.index.load(Ordering::Relaxed), utc_seconds());
        }
    }

    /// Selects a register. Writes to registers are ignored: the guest cannot set the host's clock, and the shutdown
    /// code that kernels store before they start CPUs has no reader here.
    fn write(&self, offset: u64, data: &[u8]) {
        if let (0, &[index]) = (offset, data) {
            self.index.store(index & INDEX_MASK, Ordering::Relaxed);
        }
    }
}

/// Register `index` at `now`, in seconds since 1970.
fn register(index: u8, now: u64) -> u8 {
    let (day, second) = (now / 86_400, now % 86_400);
    let date = civil_date(day);
    match index {
        0x00 => bcd(second % 60),
        0x02 => bcd(second / 60 % 60),
        0x04 => bcd(second / 3600),
        // 1970-01-01 was a Thursday, the fifth day of a week that begins with Sunday as 1.
        0x06 => bcd((day + 4) % 7 + 1),
        0x07 => bcd(date.day),
        0x08 => bcd(date.month),
        0x09 => bcd(date.year % 100),
        0x0a => STATUS_A,
        0x0b => STATUS_B,
        0x0d => STATUS_D,
        0x32 => bcd(date.year / 100),
        _ => 0,
    }
}

/// Two decimal digits, one a nibble.
fn bcd(value: u64) -> u8 {
    u8::try_from(value / 10 % 10 * 16 + value % 10).unwrap_or(0)
}

struct Date {
    year: u64,
    month: u64,
    day: u64,
}

/// The Gregorian date `days` after 1970-01-01. Counts from 1 March of year 0, so that the leap day ends a year and
/// month lengths follow one formula.
fn civil_date(days: u64) -> Date {
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    Date { year, month, day }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn time(now: u64) -> Vec<u8> {
        [0x32, 0x09, 0x08, 0x07, 0x06, 0x04, 0x02, 0x00].iter().map(|index| register(*index, now)).collect()
    }

    #[test]
    fn known_dates_read_as_bcd() {
        // `date -u -d @SECONDS`; the weekday counts from Sunday as 1.
        for (now, expected) in [
            (0, [0x19, 0x70, 0x01, 0x01, 5, 0x00, 0x00, 0x00]),
            (951_782_399, [0x20, 0x00, 0x02, 0x28, 2, 0x23, 0x59, 0x59]),
            (951_782_400, [0x20, 0x00, 0x02, 0x29, 3, 0x00, 0x00, 0x00]),
            (1_735_689_599, [0x20, 0x24, 0x12, 0x31, 3, 0x23, 0x59, 0x59]),
            (4_107_542_400, [0x21, 0x00, 0x03, 0x01, 2, 0x00, 0x00, 0x00]),
        ] {
            assert_eq!(time(now), expected, "{now}");
        }
    }

    #[test]
    fn no_update_is_in_progress_and_the_battery_is_good() {
        assert_eq!(register(0x0a, 0) & 0x80, 0);
        assert_eq!(register(0x0b, 0) & 0x06, 0x02, "24 hours, BCD");
        assert_eq!(register(0x0d, 0), 0x80);
    }

    #[test]
    fn the_index_selects_and_writes_change_nothing() {
        let cmos = Cmos::default();
        cmos.write(0, &[0x80 | 0x0b]);
        cmos.write(1, &[0xff]);
        let mut data = [0];
        cmos.read(1, &mut data);
        assert_eq!(data, [STATUS_B]);
    }

    proptest! {
        /// Every second of two centuries is a valid time, and the next day is the one after.
        #[test]
        fn all_times_are_valid(now in 0u64..6_400_000_000) {
            let digits = |index| {
                let value = register(index, now);
                u64::from(value >> 4) * 10 + u64::from(value & 15)
            };
            prop_assert!(digits(0) < 60 && digits(2) < 60 && digits(4) < 24);
            prop_assert!((1..=7).contains(&digits(6)) && (1..=31).contains(&digits(7)) && (1..=12).contains(&digits(8)));
            let (today, tomorrow) = (civil_date(now / 86_400), civil_date(now / 86_400 + 1));
            let next_day = tomorrow.day == today.day + 1 && tomorrow.month == today.month;
            let next_month = tomorrow.day == 1 && tomorrow.month == today.month % 12 + 1;
            prop_assert!(next_day || next_month);
        }
    }
}
