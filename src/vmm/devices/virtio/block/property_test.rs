// SPDX-License-Identifier: Apache-2.0
//! Any sequence of requests, good or not: the file follows a model, and nothing panics.

use std::os::unix::fs::FileExt;

use proptest::collection::vec;
use proptest::prelude::*;
use tempfile::NamedTempFile;

use super::super::testing::{Descriptor, FakeDriver};
use super::*;

const SECTORS: u64 = 64;
const SIZE: usize = 64 * 512;
const BASE: u64 = 0x10_0000;
const FLUSH: u64 = 1 << VIRTIO_BLK_F_FLUSH;

#[derive(Clone, Debug)]
struct Wish {
    kind: u32,
    sector: u64,
    sectors: u16,
    fill: u8,
    cut: u32,
}

fn wish() -> impl Strategy<Value = Wish> {
    let kind = prop_oneof![4 => Just(0u32), 4 => Just(1), 1 => Just(4), 1 => Just(8), 2 => Just(11), 2 => Just(13),
        1 => any::<u32>()];
    let sector = prop_oneof![9 => 0..SECTORS + 4, 1 => any::<u64>()];
    (kind, sector, 0..12u16, any::<u8>(), 1..600u32).prop_map(|(kind, sector, sectors, fill, cut)| Wish {
        kind,
        sector,
        sectors,
        fill,
        cut,
    })
}

fn engine() -> impl Strategy<Value = Engine> {
    prop_oneof![Just(Engine::Adaptive), Just(Engine::Ring), Just(Engine::Synchronous)]
}

/// Content of the disk as it must be.
struct Model(Vec<u8>);

impl Model {
    /// Where the wish's range is, if the disk has it.
    fn range(&self, wish: &Wish) -> Option<std::ops::Range<usize>> {
        wish.sector.checked_add(wish.sectors.into()).filter(|end| *end <= SECTORS)?;
        let start = usize::try_from(wish.sector).ok()? * 512;
        Some(start..start + usize::from(wish.sectors) * 512)
    }

    /// The status that the wish must get; with `done`, what it changes.
    fn apply(&mut self, wish: &Wish, read_only: bool) -> u8 {
        let range = self.range(wish);
        match (wish.kind, range) {
            (0, Some(_)) | (4 | 8, _) => 0,
            (1 | 11 | 13, _) if read_only => 1,
            (1, Some(range)) => {
                self.0[range].fill(wish.fill);
                0
            }
            (11 | 13, Some(range)) => {
                self.0[range].fill(0);
                0
            }
            (0 | 1 | 11 | 13, _) => 1,
            _ => 2,
        }
    }
}

/// Cuts `length` bytes at `address` into buffers of `cut` bytes.
fn pieces(address: u64, length: usize, cut: u32, writable: bool) -> Vec<(u64, u32, bool)> {
    let length = u32::try_from(length).unwrap();
    let cut = cut.max(length / 100 + 1);
    let starts = (0..length).step_by(usize::try_from(cut).unwrap());
    starts.map(|at| (address + u64::from(at), cut.min(length - at), writable)).collect()
}

fn run(block: &mut Block, session: &mut Session) {
    block.queue_event(0, session).unwrap();
    while block.worker.in_flight() > 0 {
        block.source_event(0, EventSet::IN, session).unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn the_file_follows_the_model(wishes in vec(wish(), 1..40), engine in engine(), read_only in any::<bool>()) {
        let file = NamedTempFile::new().unwrap();
        let mut model = Model((0..SECTORS * 512).map(|at| (at % 241).to_le_bytes()[0]).collect());
        file.as_file().write_all_at(&model.0, 0).unwrap();
        let config = BlockConfig { path: file.path().into(), read_only, serial: None, queues: 1 };
        let mut block = Block::open_with(&config, engine).unwrap();
        let (mut session, mut drivers) = FakeDriver::attach(&mut block, FLUSH).unwrap();
        let driver = &mut drivers[0];
        for wish in wishes {
            let length = usize::from(wish.sectors) * 512;
            let header = [&wish.kind.to_le_bytes()[..], &[0; 4], &wish.sector.to_le_bytes()].concat();
            let (payload, room) = match wish.kind {
                0 => (vec![], length),
                1 => (vec![wish.fill; length], 0),
                8 => (vec![], 20),
                11 | 13 => {
                    let range = [&wish.sector.to_le_bytes()[..], &u32::from(wish.sectors).to_le_bytes(), &[0; 4]];
                    (range.concat(), 0)
                }
                _ => (vec![], 0),
            };
            let readable = [header, payload].concat();
            driver.write(BASE, &readable);
            driver.write(BASE + 0x10_0000, &vec![0xee; room + 64]);
            let mut buffers = pieces(BASE, readable.len(), wish.cut, false);
            buffers.extend(pieces(BASE + 0x10_0000, room + 1, wish.cut, true));
            driver.add(&buffers);
            run(&mut block, &mut session);
            let expected = model.apply(&wish, read_only);
            let written = driver.read(BASE + 0x10_0000, room + 64);
            prop_assert_eq!(written[room], expected, "{:?}", &wish);
            prop_assert!(written[room + 1..].iter().all(|byte| *byte == 0xee), "written beyond the chain");
            prop_assert!(driver.used().is_some());
            if wish.kind == 0 && expected == 0 {
                prop_assert_eq!(&written[..room], &model.0[model.range(&wish).unwrap()]);
            }
        }
        drop(block);
        prop_assert!(std::fs::read(file.path()).unwrap() == model.0);
    }

    #[test]
    fn any_ring_content_is_survived(
        content in vec(any::<u8>(), 0..256),
        descriptors in vec((prop_oneof![BASE..BASE + 256, any::<u64>()], prop_oneof![0..64u32, 0..4096u32, any::<u32>()],
            0..8u16, 0..20u16), 1..20),
        heads in vec(0..20u16, 1..20),
        engine in engine(),
    ) {
        let file = NamedTempFile::new().unwrap();
        file.as_file().set_len(SECTORS * 512).unwrap();
        let config = BlockConfig { path: file.path().into(), read_only: true, serial: None, queues: 1 };
        let mut block = Block::open_with(&config, engine).unwrap();
        let (mut session, mut drivers) = FakeDriver::attach(&mut block, FLUSH).unwrap();
        let driver = &mut drivers[0];
        driver.write(BASE, &content);
        for ((address, length, flags, next), slot) in descriptors.into_iter().zip(0..) {
            driver.set_descriptor(slot, Descriptor { address, length, flags, next });
        }
        for head in heads {
            driver.publish(head);
            if block.queue_event(0, &mut session).is_err() {
                // What the transport does: the session is over, and so is all I/O.
                block.reset(&mut session);
                prop_assert_eq!(block.worker.in_flight(), 0);
                break;
            }
        }
        block.reset(&mut session);
        prop_assert!(std::fs::read(file.path()).unwrap() == vec![0; SIZE]);
    }
}
