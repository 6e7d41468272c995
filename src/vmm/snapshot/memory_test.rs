// SPDX-License-Identifier: Apache-2.0

use super::*;
use crate::vmm::memory::allocate;
use std::os::unix::fs::MetadataExt;

/// 16 MiB with something at the start, in the middle of nothing, and at the end.
fn ram() -> Arc<Ram> {
    let ram = allocate(16 << 20).unwrap();
    for place in [0, (1 << 20) + 5, (1 << 20) + 4096, (16 << 20) - 8] {
        ram.write_obj(place + 0x0123_4567_0000_0001, GuestAddress(place)).unwrap();
    }
    ram
}

#[test]
fn memory_comes_back_and_holes_stay_holes() {
    let ram = ram();
    let file = tempfile::tempfile().unwrap();
    let print = write(&ram, &file).unwrap();
    assert_eq!((print.size, print.data), (16 << 20, 4 * 4096));
    assert!(file.metadata().unwrap().blocks() * 512 <= 64 << 10, "{:?}", file.metadata());
    check(&file, &print).unwrap();
    let clones = [(); 2].map(|()| map(file.try_clone().unwrap(), print.size).unwrap());
    for clone in &clones {
        for address in (0..16 << 20).step_by(1 << 12).chain([(16 << 20) - 8, (1 << 20) + 5]) {
            let (old, new): (u64, u64) =
                (ram.read_obj(GuestAddress(address)).unwrap(), clone.read_obj(GuestAddress(address)).unwrap());
            assert_eq!(old, new, "{address:#x}");
        }
    }
    // What one writes neither the other nor the file has.
    clones[0].write_obj(7u64, GuestAddress(0)).unwrap();
    assert_eq!(clones[1].read_obj::<u64>(GuestAddress(0)).unwrap(), 0x0123_4567_0000_0001);
    check(&file, &print).unwrap();
}

#[test]
fn memory_on_both_sides_of_the_hole_is_one_file() {
    let size = (3 << 30) + (1 << 20);
    let ram = allocate(size).unwrap();
    ram.write_obj(42u64, GuestAddress((4 << 30) + 4096)).unwrap();
    let regions = ram.iter().map(|region| region.len()).collect::<Vec<_>>();
    assert_eq!(regions, [3 << 30, 1 << 20]);
    let file = tempfile::tempfile().unwrap();
    file.set_len(size).unwrap();
    file.write_all_at(&42u64.to_ne_bytes(), (3 << 30) + 4096).unwrap();
    let clone = map(file, size).unwrap();
    assert_eq!(clone.read_obj::<u64>(GuestAddress((4 << 30) + 4096)).unwrap(), 42);
}

#[test]
fn a_copy_is_good_and_a_changed_one_is_not() {
    let file = tempfile::tempfile().unwrap();
    let print = write(&ram(), &file).unwrap();
    let mut content = vec![0; 16 << 20];
    file.read_exact_at(&mut content, 0).unwrap();
    let copy = tempfile::tempfile().unwrap();
    // Written whole: zeroes are data here, and holes there.
    copy.write_all_at(&content, 0).unwrap();
    check(&copy, &print).unwrap();
    for (place, byte) in [(0, 9), (5 << 20, 1), ((16 << 20) - 1, 9)] {
        copy.write_all_at(&[byte], place).unwrap();
        assert!(matches!(check(&copy, &print), Err(SnapshotError::Memory(_))), "{place}");
        copy.write_all_at(&[content[usize::try_from(place).unwrap()]], place).unwrap();
    }
    copy.set_len(1 << 20).unwrap();
    assert!(matches!(check(&copy, &print), Err(SnapshotError::Memory("it has another size"))));
}
