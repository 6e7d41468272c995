// SPDX-License-Identifier: Apache-2.0
//! Every device behind a fuzzed driver.
#![no_main]

use std::fs::File;
use std::sync::OnceLock;

use coracle::vmm::devices::console_output::ConsoleOutput;
use coracle::vmm::devices::virtio::VirtioDevice;
use coracle::vmm::devices::virtio::balloon::Balloon;
use coracle::vmm::devices::virtio::block::{Block, BlockConfig};
use coracle::vmm::devices::virtio::console::Console;
use coracle::vmm::devices::virtio::pmem::{Pmem, PmemConfig};
use coracle::vmm::devices::virtio::rng::Rng;
use coracle::vmm::devices::virtio::vsock::{Vsock, VsockConfig};
use coracle_fuzz::{Step, drive};
use libfuzzer_sys::fuzz_target;
use tempfile::TempDir;

#[derive(arbitrary::Arbitrary, Debug)]
enum Kind {
    Balloon,
    Block { read_only: bool },
    Console,
    Pmem,
    Rng,
    Vsock,
}

/// Files that the devices stand on, made once.
fn folder() -> &'static TempDir {
    static FOLDER: OnceLock<TempDir> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let folder = TempDir::new().expect("a temporary folder");
        for name in ["disk", "pmem"] {
            File::create(folder.path().join(name)).and_then(|file| file.set_len(4 << 20)).expect("a file");
        }
        folder
    })
}

fn make(kind: &Kind) -> Box<dyn VirtioDevice> {
    let path = |name: &str| folder().path().join(name);
    match kind {
        Kind::Balloon => Box::new(Balloon::new(16 << 20).expect("a balloon").0),
        Kind::Block { read_only } => {
            let config = BlockConfig { path: path("disk"), read_only: *read_only, serial: None, queues: 2 };
            Box::new(Block::open(&config).expect("a disk"))
        }
        Kind::Console => {
            let sink = File::options().write(true).open("/dev/null").expect("/dev/null");
            let output = ConsoleOutput::new().and_then(|output| output.to_terminal(sink)).expect("an output");
            Box::new(Console::new(None, output).expect("a console").0)
        }
        Kind::Pmem => Box::new(Pmem::open(&PmemConfig { path: path("pmem") }).expect("a pmem device")),
        Kind::Rng => Box::new(Rng::new()),
        Kind::Vsock => Box::new(Vsock::open(&VsockConfig { path: path("vsock"), cid: 3 }).expect("a vsock")),
    }
}

fuzz_target!(|input: (Kind, u64, Vec<Step>)| {
    let (kind, wanted, steps) = input;
    let mut device = make(&kind);
    let features = device.features() & wanted | 1 << 32;
    drive(device.as_mut(), features, &steps[..steps.len().min(64)]);
});
