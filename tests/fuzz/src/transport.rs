// SPDX-License-Identifier: Apache-2.0
//! The registers of virtio-mmio: any accesses, in any order.
#![no_main]

use std::sync::Arc;

use coracle::vmm::bus::BusDevice;
use coracle::vmm::devices::virtio::mmio::Transport;
use coracle::vmm::devices::virtio::rng::Rng;
use coracle::vmm::devices::virtio::{Interrupt, Windows};
use coracle::vmm::event_loop::{EventLoop, Token};
use coracle::vmm::memory;
use libfuzzer_sys::fuzz_target;
use vmm_sys_util::eventfd::EventFd;

fuzz_target!(|accesses: Vec<(u16, u8, u64, bool)>| {
    let memory = memory::allocate(16 << 20).expect("memory");
    let events = Arc::new(EventLoop::new().expect("an epoll set"));
    let window = Windows::new(1).expect("memory").window(0);
    let interrupt = Interrupt::new(EventFd::new(libc::EFD_NONBLOCK).expect("an eventfd"));
    let transport = Transport::new(Box::new(Rng::new()), 0, memory, Arc::clone(&events), interrupt, window, true)
        .expect("a transport");
    for (offset, width, value, write) in accesses.iter().take(256) {
        let mut data = value.to_le_bytes();
        let data = &mut data[..usize::from(width % 8) + 1];
        if *write {
            transport.write((*offset % 0x120).into(), data);
        } else {
            transport.read((*offset % 0x120).into(), data);
        }
        let handle = |token, _| {
            if let Token::Queue { queue, .. } = token {
                transport.queue_event(queue);
            }
        };
        events.wait(0, handle).expect("events");
    }
});
