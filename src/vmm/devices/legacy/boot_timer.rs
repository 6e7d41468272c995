// SPDX-License-Identifier: Apache-2.0
//! One port on which the guest marks the stages of its boot: the exact time of each, for one exit.

use std::sync::{Mutex, PoisonError};

use crate::vmm::bus::BusDevice;
use crate::vmm::clock::monotonic_ns;

/// Marks that are kept; a guest that goes on writing changes nothing.
const MAX_MARKS: usize = 64;

/// A stage that the guest has reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BootMark {
    /// What the guest wrote: [`BootTimer::INIT`], [`BootTimer::AGENT_READY`], or its own.
    pub stage: u8,
    /// When the byte arrived, in nanoseconds of `CLOCK_MONOTONIC`.
    pub at_ns: u64,
}

/// The boot timer's port.
#[derive(Debug, Default)]
pub struct BootTimer {
    marks: Mutex<Vec<BootMark>>,
}

impl BootTimer {
    /// `/init` runs.
    pub const INIT: u8 = 1;
    /// The agent answers.
    pub const AGENT_READY: u8 = 2;

    /// The first 64 marks, in the order in which they came.
    pub fn marks(&self) -> Vec<BootMark> {
        self.marks.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl BusDevice for BootTimer {
    fn read(&self, _offset: u64, _data: &mut [u8]) {}

    fn write(&self, _offset: u64, data: &[u8]) {
        // Before the lock: waiting for it would count as boot time.
        let at_ns = monotonic_ns();
        let mut marks = self.marks.lock().unwrap_or_else(PoisonError::into_inner);
        if let [stage] = *data
            && marks.len() < MAX_MARKS
        {
            marks.push(BootMark { stage, at_ns });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_keep_order_and_time() {
        let timer = BootTimer::default();
        let start = monotonic_ns();
        timer.write(0, &[BootTimer::INIT]);
        timer.write(0, &[1, 2]);
        timer.write(0, &[0x77]);
        let end = monotonic_ns();
        let marks = timer.marks();
        assert_eq!(marks.iter().map(|mark| mark.stage).collect::<Vec<_>>(), [1, 0x77]);
        assert!(start <= marks[0].at_ns && marks[0].at_ns <= marks[1].at_ns && marks[1].at_ns <= end);
    }

    #[test]
    fn a_flood_keeps_the_first_marks() {
        let timer = BootTimer::default();
        for stage in 0..=255 {
            timer.write(0, &[stage]);
        }
        let marks = timer.marks();
        assert_eq!(marks.len(), MAX_MARKS);
        assert_eq!(marks.last().map(|mark| mark.stage), Some(63));
    }
}
