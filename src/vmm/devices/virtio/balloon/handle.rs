// SPDX-License-Identifier: Apache-2.0
//! The host's side of the balloon.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use vmm_sys_util::eventfd::EventFd;

use super::statistics::Statistics;

/// Pages of 4 KiB in a MiB.
const PAGES_PER_MIB: u32 = 256;

/// The asked size is more than the guest has.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("a balloon of {asked_mib} MiB is more than the guest's {memory_mib} MiB of memory")]
pub struct TargetError {
    /// Asked size.
    pub asked_mib: u32,
    /// The guest's memory.
    pub memory_mib: u32,
}

/// What the device and its handles share.
#[derive(Debug)]
pub(super) struct Shared {
    memory_mib: u32,
    /// `num_pages`: what the host wants, in pages.
    target: AtomicU32,
    target_changed: AtomicBool,
    /// `actual`: what the driver says to have given, in pages.
    actual: AtomicU32,
    statistics: Mutex<Option<Statistics>>,
    statistics_wanted: AtomicBool,
    wake: EventFd,
}

impl Shared {
    pub(super) fn new(memory_size: u64) -> io::Result<Arc<Self>> {
        let wake = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        Ok(Arc::new(Self {
            memory_mib: u32::try_from(memory_size >> 20).unwrap_or(u32::MAX),
            target: AtomicU32::new(0),
            target_changed: AtomicBool::new(false),
            actual: AtomicU32::new(0),
            statistics: Mutex::new(None),
            statistics_wanted: AtomicBool::new(false),
            wake,
        }))
    }

    pub(super) fn target(&self) -> u32 {
        self.target.load(Ordering::SeqCst)
    }

    pub(super) fn set_target(&self, pages: u32) {
        self.target.store(pages, Ordering::SeqCst);
    }

    /// Whether the target was set since the last call. Not whether it differs from what the driver has given: a driver
    /// that is on its way to an older target has to hear of the new one as well.
    pub(super) fn take_target_change(&self) -> bool {
        self.target_changed.swap(false, Ordering::SeqCst)
    }

    pub(super) fn actual(&self) -> u32 {
        self.actual.load(Ordering::SeqCst)
    }

    pub(super) fn set_actual(&self, pages: u32) {
        self.actual.store(pages, Ordering::SeqCst);
    }

    pub(super) fn set_statistics(&self, statistics: Option<Statistics>) {
        *self.statistics.lock().unwrap_or_else(PoisonError::into_inner) = statistics;
    }

    /// Whether somebody has asked for statistics since the last call.
    pub(super) fn take_statistics_wish(&self) -> bool {
        self.statistics_wanted.swap(false, Ordering::SeqCst)
    }

    pub(super) fn wake(&self) -> &EventFd {
        &self.wake
    }
}

/// Sets the balloon's size and reads what the guest tells; clones steer the same balloon.
#[derive(Clone, Debug)]
pub struct BalloonHandle(pub(super) Arc<Shared>);

impl BalloonHandle {
    /// Asks the guest for `mib` MiB of its memory, or for less than before: the rest is the guest's again.
    ///
    /// The guest follows as fast as it can, and not beyond what it can spare: see [`BalloonHandle::actual_mib`].
    ///
    /// # Errors
    /// [`TargetError`] where the guest does not have so much.
    pub fn set_target_mib(&self, mib: u32) -> Result<(), TargetError> {
        let memory_mib = self.0.memory_mib;
        let error = TargetError { asked_mib: mib, memory_mib };
        let pages = mib.checked_mul(PAGES_PER_MIB).filter(|_| mib <= memory_mib).ok_or(error)?;
        self.0.target.store(pages, Ordering::SeqCst);
        self.0.target_changed.store(true, Ordering::SeqCst);
        self.notify();
        Ok(())
    }

    /// The size asked for, in MiB.
    pub fn target_mib(&self) -> u32 {
        self.0.target() / PAGES_PER_MIB
    }

    /// The size that the guest says the balloon has, in MiB.
    pub fn actual_mib(&self) -> u32 {
        self.0.actual() / PAGES_PER_MIB
    }

    /// Asks the guest for new statistics; they replace those of [`BalloonHandle::statistics`] when they come.
    pub fn request_statistics(&self) {
        self.0.statistics_wanted.store(true, Ordering::SeqCst);
        self.notify();
    }

    /// The last statistics that came, `None` where the driver has sent none.
    pub fn statistics(&self) -> Option<Statistics> {
        self.0.statistics.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn notify(&self) {
        // Fails only when the counter is full, and then the event is pending anyway.
        let _ = self.0.wake.write(1);
    }
}
