// SPDX-License-Identifier: Apache-2.0
//! State files: damaged ones, and those whose checksums vouch for nonsense. Nothing of them is ever taken unchecked.
#![no_main]

use std::sync::{Arc, OnceLock};

use coracle::vmm::devices::virtio::mmio::Transport;
use coracle::vmm::devices::virtio::rng::Rng;
use coracle::vmm::devices::virtio::{Interrupt, Windows};
use coracle::vmm::event_loop::EventLoop;
use coracle::vmm::memory;
use coracle::vmm::snapshot::difference::{Base, Whole};
use coracle::vmm::snapshot::format::{HEADER, VERSION, decode, encode, seal};
use coracle::vmm::snapshot::{memory as memory_file, testing};
use libfuzzer_sys::fuzz_target;
use vm_memory::{Bytes, GuestAddress};
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

/// Bytes of memory that a guest of these states has.
const SIZE: u64 = 16 << 20;

/// A state with a device, as a VM leaves it, of a memory that is a difference.
fn good() -> &'static [u8] {
    static GOOD: OnceLock<Vec<u8>> = OnceLock::new();
    GOOD.get_or_init(|| {
        let mut state = testing::state();
        state.config.rng = true;
        state.devices.push(transport().rest());
        // What a changed state says of where it differs is what is tried.
        let file = tempfile::tempfile().expect("a file");
        let print = memory_file::write(&memory::allocate(SIZE).expect("memory"), &file).expect("a memory file");
        let ram = memory_file::map(file, SIZE).expect("a mapping");
        [1, 2, 5].map(|page| ram.write_obj(1u8, GuestAddress(page << 12)).expect("RAM"));
        let whole = Whole { path: "memory".into(), print };
        let written =
            Base::write_difference(whole, &ram, &tempfile::tempfile().expect("a file")).expect("a difference");
        (state.base, state.memory) = (Some(written.0), written.1);
        encode(&state).expect("a state")
    })
}

fn transport() -> Transport {
    let memory = memory::allocate(SIZE).expect("memory");
    let events = Arc::new(EventLoop::new().expect("an epoll set"));
    let window = Windows::new(1).expect("memory").window(0);
    let interrupt = Interrupt::new(EventFd::new(libc::EFD_NONBLOCK).expect("an eventfd"));
    Transport::new(Box::new(Rng::new()), 0, memory, events, interrupt, window, true).expect("a transport")
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
        if let Some(base) = state.base.as_ref().filter(|_| state.memory.size == SIZE) {
            let file = tempfile::tempfile().expect("a file");
            file.set_len(SIZE).expect("room");
            let ram = memory_file::map(file.try_clone().expect("a descriptor"), SIZE).expect("a mapping");
            base.lay_over(&ram, &file).expect("mappings within it");
        }
        for device in &state.devices {
            let transport = transport();
            let _ = transport.restore(device);
            transport.queue_event(0);
            transport.shut_down();
        }
    }
});
