// SPDX-License-Identifier: Apache-2.0
//! What a fuzzed driver does, as a list of steps, and how they are done.

use arbitrary::Arbitrary;
use coracle::vmm::devices::virtio::testing::{Descriptor, FakeDriver};
use coracle::vmm::devices::virtio::{DeviceError, Session, VirtioDevice};
use vmm_sys_util::epoll::EventSet;

/// One thing that a driver, or the host's side of a device, does.
#[derive(Arbitrary, Debug)]
pub enum Step {
    /// Puts a chain of `(place, length, writable)` buffers into a queue; places are pages of the buffer area.
    Add { queue: u8, buffers: Vec<(u8, u16, bool)> },
    /// Writes any descriptor.
    Descriptor { queue: u8, slot: u8, address: u64, length: u32, flags: u8, next: u8 },
    /// Makes any head available.
    Publish { queue: u8, head: u16 },
    /// Sets the available index.
    Index { queue: u8, index: u16 },
    /// Writes bytes into a page of the buffer area.
    Write { place: u8, bytes: Vec<u8> },
    /// Notifies a queue.
    Notify { queue: u8 },
    /// Something happens on a descriptor of the host.
    Source { id: u8 },
    /// Writes configuration space.
    Config { offset: u8, bytes: Vec<u8> },
    /// Resets the device and starts it anew.
    Reset,
}

/// Where the buffers of a fuzzed driver begin; one page each.
const BUFFERS: u64 = 0x10_0000;

/// Drives `device` through `steps`: it may refuse them, and must not panic, hang, or touch anything outside of memory.
pub fn drive(device: &mut dyn VirtioDevice, features: u64, steps: &[Step]) {
    let Ok((mut session, mut drivers)) = FakeDriver::attach(device, features) else { return };
    for step in steps {
        let count = drivers.len().max(1);
        let result = take(device, &mut session, &mut drivers, step, count);
        if result.is_err() || matches!(step, Step::Reset) {
            device.reset(&mut session);
            match FakeDriver::attach(device, features) {
                Ok(attached) => (session, drivers) = attached,
                Err(_) => return,
            }
        }
    }
    device.reset(&mut session);
}

fn take(
    device: &mut dyn VirtioDevice,
    session: &mut Session,
    drivers: &mut [FakeDriver],
    step: &Step,
    count: usize,
) -> Result<(), DeviceError> {
    let page = |place: u8| BUFFERS + u64::from(place) * 0x1000;
    match step {
        Step::Add { queue, buffers } => {
            let buffers: Vec<_> =
                buffers.iter().map(|(place, length, writable)| (page(*place), (*length).into(), *writable)).collect();
            if let (Some(driver), false) = (drivers.get_mut(usize::from(*queue) % count), buffers.is_empty()) {
                driver.add(&buffers);
            }
        }
        Step::Descriptor { queue, slot, address, length, flags, next } => {
            if let Some(driver) = drivers.get_mut(usize::from(*queue) % count) {
                let (flags, next) = ((*flags).into(), (*next).into());
                driver.set_descriptor((*slot).into(), Descriptor { address: *address, length: *length, flags, next });
            }
        }
        Step::Publish { queue, head } => {
            if let Some(driver) = drivers.get_mut(usize::from(*queue) % count) {
                driver.publish(*head);
            }
        }
        Step::Index { queue, index } => {
            if let Some(driver) = drivers.get_mut(usize::from(*queue) % count) {
                driver.set_available_index(*index);
            }
        }
        Step::Write { place, bytes } => {
            if let Some(driver) = drivers.first() {
                driver.write(page(*place), &bytes[..bytes.len().min(0x1000)]);
            }
        }
        Step::Notify { queue } => return device.queue_event(usize::from(*queue) % count, session),
        Step::Source { id } => {
            let sources = device.sources();
            if let Some(source) = sources.get(usize::from(*id) % sources.len().max(1)) {
                return device.source_event(source.id, EventSet::IN, session);
            }
        }
        Step::Config { offset, bytes } => device.write_config((*offset).into(), bytes, Some(session)),
        Step::Reset => {}
    }
    Ok(())
}
