// SPDX-License-Identifier: Apache-2.0
//! What drivers read of their devices' registers, as memory that the guest can read and not write: a read costs no exit,
//! while a write leaves the guest as if there were no memory (Linux `virt/kvm/api.rst`, `KVM_MEM_READONLY`).

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use vm_memory::mmap::{MmapRegionBuilder, MmapRegionError};
use vm_memory::{MmapRegion, VolatileMemory};

use crate::vmm::layout::MMIO_WINDOW;

/// Windows of devices, one behind the other.
#[derive(Debug)]
pub struct Windows {
    memory: MmapRegion,
}

impl Windows {
    /// Memory for `count` windows, and one where that is none; all zeroes.
    ///
    /// # Errors
    /// The system has no memory for them.
    pub fn new(count: usize) -> Result<Arc<Self>, MmapRegionError> {
        let size = count.max(1) * usize::try_from(MMIO_WINDOW).unwrap_or(usize::MAX);
        let memory = MmapRegionBuilder::new(size)
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_ANONYMOUS | libc::MAP_PRIVATE)
            .build()?;
        Ok(Arc::new(Self { memory }))
    }

    /// Where it is in this process.
    pub fn host_address(&self) -> *const u8 {
        self.memory.as_ptr()
    }

    /// Bytes of all windows.
    pub fn length(&self) -> u64 {
        self.memory.len() as u64
    }

    /// The window with this number.
    pub fn window(self: &Arc<Self>, number: u16) -> Window {
        Window { windows: Arc::clone(self), number }
    }
}

/// What one driver reads. Vacant where there is no such window.
#[derive(Clone, Debug)]
pub struct Window {
    windows: Arc<Windows>,
    number: u16,
}

impl Window {
    fn with<R>(&self, offset: u64, then: impl FnOnce(&AtomicU32) -> R) -> Option<R> {
        let place = usize::try_from(u64::from(self.number) * MMIO_WINDOW + offset).ok()?;
        self.windows.memory.get_atomic_ref::<AtomicU32>(place).ok().map(then)
    }

    /// Sets the 32 bits at `offset`, a multiple of 4, at once.
    pub fn store(&self, offset: u64, value: u32) {
        self.with(offset, |register| register.store(value.to_le(), Ordering::Release));
    }

    /// Sets bytes from `offset` on, four at a time.
    pub fn store_bytes(&self, offset: u64, bytes: &[u8]) {
        let (words, _) = bytes.as_chunks::<4>();
        for (offset, word) in (offset..).step_by(4).zip(words) {
            self.store(offset, u32::from_le_bytes(*word));
        }
    }

    /// Fills `data` with what is read at `offset`.
    pub fn load(&self, offset: u64, data: &mut [u8]) {
        for (offset, byte) in (offset..).zip(data) {
            let word = self.with(offset & !3, |register| register.load(Ordering::Acquire)).unwrap_or(0);
            *byte = word.to_ne_bytes()[usize::try_from(offset & 3).unwrap_or(0)];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_apart_and_end() {
        let windows = Windows::new(2).unwrap();
        let (first, second, none) = (windows.window(0), windows.window(1), windows.window(2));
        first.store(0xffc, 0x0403_0201);
        second.store_bytes(0, &[5, 6, 7, 8, 9]);
        none.store(0, 1);
        let read = |window: &Window, offset, size| {
            let mut data = vec![0xee; size];
            window.load(offset, &mut data);
            data
        };
        assert_eq!(read(&first, 0xffd, 2), [2, 3]);
        assert_eq!(read(&second, 0, 6), [5, 6, 7, 8, 0, 0]);
        assert_eq!(read(&none, 0, 4), [0; 4]);
        assert_eq!(windows.length(), 0x2000);
    }
}
