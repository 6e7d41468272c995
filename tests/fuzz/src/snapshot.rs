// SPDX-License-Identifier: Apache-2.0
//! State files: damaged ones, and those whose checksums vouch for nonsense. Nothing of them is ever taken unchecked.
#![no_main]

use std::sync::{Arc, OnceLock};

use coracle::vmm::devices::virtio::mmio::Transport;
use coracle::vmm::devices::virtio::rng::Rng;
use coracle::vmm::devices::virtio::{Interrupt, Windows};
use coracle::vmm::event_loop::EventLoop;
use coracle::vmm::memory;
use coracle::vmm::snapshot::format::{HEADER, VERSION, decode, encode, seal};
use coracle::vmm::snapshot::testing;
use libfuzzer_sys::fuzz_target;
use vmm_sys_util::eventfd::EventFd;

#[derive(arbitrary::Arbitrary, Debug)]
enum Input {
    /// Any bytes at all.
    Raw(Vec<u8>),
    /// Any payload under right checksums.
    Forged(Vec<u8>),
    /// A good state with bytes changed, under right checksums.
    Changed(Vec<(u16, u8)>),
}

/// A state with a device, as a VM leaves it.
fn good() -> &'static [u8] {
    static GOOD: OnceLock<Vec<u8>> = OnceLock::new();
    GOOD.get_or_init(|| {
        let mut state = testing::state();
        state.config.rng = true;
        state.devices.push(transport().rest());
        encode(&state).expect("a state")
    })
}

fn transport() -> Transport {
    let memory = memory::allocate(16 << 20).expect("memory");
    let events = Arc::new(EventLoop::new().expect("an epoll set"));
    let window = Windows::new(1).expect("memory").window(0);
    let interrupt = Interrupt::new(EventFd::new(libc::EFD_NONBLOCK).expect("an eventfd"));
    Transport::new(Box::new(Rng::new()), 0, memory, events, interrupt, window).expect("a transport")
}

fuzz_target!(|input: Input| {
    let file = match input {
        Input::Raw(bytes) => bytes,
        Input::Forged(payload) => seal(VERSION, &payload),
        Input::Changed(changes) => {
            let mut payload = good()[HEADER..].to_vec();
            for (place, byte) in changes {
                let place = usize::from(place) % payload.len();
                payload[place] = byte;
            }
            seal(VERSION, &payload)
        }
    };
    let Ok(state) = decode(&file) else { return };
    if state.check().is_ok() {
        for device in &state.devices {
            let transport = transport();
            let _ = transport.restore(device);
            transport.queue_event(0);
            transport.shut_down();
        }
    }
});
