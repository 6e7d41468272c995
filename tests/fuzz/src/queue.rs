// SPDX-License-Identifier: Apache-2.0
//! Rings and descriptor chains: whatever they hold, popping ends and gives only buffers in RAM.
#![no_main]

use coracle::vmm::devices::virtio::testing::{Descriptor, FakeDriver};
use libfuzzer_sys::fuzz_target;

#[derive(arbitrary::Arbitrary, Debug)]
struct Rings {
    table: Vec<(u64, u32, u16, u16)>,
    indirect: Vec<u8>,
    heads: Vec<u16>,
    index: Option<u16>,
}

fuzz_target!(|rings: Rings| {
    let mut driver = FakeDriver::new(32);
    let mut queue = driver.queue();
    driver.write(0x8_0000, &rings.indirect[..rings.indirect.len().min(4096)]);
    for (slot, (address, length, flags, next)) in (0..32).zip(rings.table) {
        driver.set_descriptor(slot, Descriptor { address, length, flags, next });
    }
    for head in rings.heads.iter().take(64) {
        driver.publish(*head);
    }
    if let Some(index) = rings.index {
        driver.set_available_index(index);
    }
    for _ in 0..64 {
        let Ok(Some(chain)) = queue.pop() else { break };
        for (address, length) in chain.writable_spans() {
            assert!(address.0 + length as u64 <= driver.memory_size());
        }
        let mut start = [0; 64];
        let length = chain.readable_len().min(64);
        chain.reader().read_exact(&mut start[..length]).expect("what the chain says it has");
        chain.writer().write_all(&start[..chain.writable_len().min(64)]).expect("what the chain says it takes");
        if queue.push(chain.head(), 0).is_err() {
            break;
        }
    }
});
