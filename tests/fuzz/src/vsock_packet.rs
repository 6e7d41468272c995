// SPDX-License-Identifier: Apache-2.0
//! Headers of vsock packets: any bytes can be judged, and what is written is what was read.
#![no_main]

use coracle::vmm::devices::virtio::vsock::packet::{HEADER_LEN, Header};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: ([u8; HEADER_LEN], u16)| {
    let (bytes, data) = input;
    let header = Header::from_bytes(&bytes);
    assert_eq!(header.to_bytes(), bytes);
    let _ = header.judge(3, data.into());
    let reset = header.reset();
    assert_eq!(reset.to_bytes().len(), HEADER_LEN);
});
