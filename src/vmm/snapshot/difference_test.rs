// SPDX-License-Identifier: Apache-2.0

use std::sync::Arc;

use vm_memory::{Bytes, GuestAddress};

use super::super::memory;
use super::*;
use crate::vmm::memory::allocate;

const MIB: u64 = 1 << 20;

/// A file with these pages (number and content) of 16 MiB, and what it is known by.
fn whole(pages: &[(u64, u64)]) -> (File, Whole) {
    let ram = allocate(16 * MIB).unwrap();
    pages.iter().for_each(|(page, value)| ram.write_obj(*value, GuestAddress(page << 12)).unwrap());
    let file = tempfile::tempfile().unwrap();
    let print = memory::write(&ram, &file).unwrap();
    (file, Whole { path: "base".into(), print })
}

fn clone_of(file: &File) -> Arc<Ram> {
    memory::map(file.try_clone().unwrap(), 16 * MIB).unwrap()
}

fn page(ram: &Ram, number: u64) -> u64 {
    ram.read_obj(GuestAddress(number << 12)).unwrap()
}

fn set(ram: &Ram, number: u64, value: u64) {
    ram.write_obj(value, GuestAddress(number << 12)).unwrap();
}

#[test]
fn what_differs_is_laid_over_what_does_not() {
    let (base_file, whole) = whole(&[(0, 1), (5, 5), (6, 6), (4095, 7)]);
    let ram = clone_of(&base_file);
    // One is zero now, one is new, one is what it was, and the last is another.
    for (number, value) in [(5, 0), (100, 8), (6, 9), (6, 6), (4095, 10)] {
        set(&ram, number, value);
    }
    let file = tempfile::tempfile().unwrap();
    let (base, print) = Base::write_difference(whole.clone(), &ram, &file).unwrap();
    let different: u64 = base.extents.iter().map(|extent| extent.pages << 12).sum();
    assert_eq!((different, print.size, print.data), (3 << 12, 16 * MIB, 2 << 12));
    base.check(16 * MIB).unwrap();
    let clone = clone_of(&base_file);
    base.lay_over(&clone, &file).unwrap();
    let expected = [(0, 1), (5, 0), (6, 6), (100, 8), (4095, 10), (101, 0)];
    assert_eq!(expected.map(|(number, _)| (number, page(&clone, number))), expected);
    // Of a clone of that the difference is told from the same base.
    set(&clone, 7, 11);
    let next_file = tempfile::tempfile().unwrap();
    let (next, _) = Base::write_difference(whole, &clone, &next_file).unwrap();
    let last = clone_of(&base_file);
    next.lay_over(&last, &next_file).unwrap();
    assert_eq!([5, 7, 100, 4095].map(|number| page(&last, number)), [0, 11, 8, 10]);
    // Neither has written to a file.
    memory::check(&base_file, &base.whole.print).unwrap();
    memory::check(&file, &print).unwrap();
}

#[test]
fn many_pieces_are_joined() {
    let (file, _) = whole(&[]);
    let ram = clone_of(&file);
    (0..2048).for_each(|number| set(&ram, 2 * number, 1));
    assert_eq!(differences(&ram, MAX_EXTENTS).unwrap().len(), 2048);
    assert_eq!(differences(&ram, 2047).unwrap(), [Extent { first: 0, pages: 4095 }]);
    (0..100).for_each(|number| set(&ram, 2 * number, 0));
    set(&ram, 10, 1);
    assert_eq!(
        differences(&ram, 2).unwrap(),
        [Extent { first: 10, pages: 1 }, Extent { first: 200, pages: 4095 - 200 }]
    );
}

#[test]
fn what_a_forged_state_says_is_refused() {
    let size = (3 << 30) + 16 * MIB;
    let mut print = whole(&[]).1.print;
    print.size = size;
    let base = |extents: &[(u64, u64)]| Base {
        whole: Whole { path: "base".into(), print: print.clone() },
        extents: extents.iter().map(|(first, pages)| Extent { first: *first, pages: *pages }).collect(),
    };
    let hole = (3 << 30) >> 12;
    for good in [&[][..], &[(0, 1), (1, 1)], &[(hole - 1, 1), (hole, 4096)]] {
        base(good).check(size).unwrap();
    }
    for bad in [
        &[(0, 0)][..],
        &[(1, 1), (0, 1)],
        &[(0, 2), (1, 2)],
        &[(hole - 1, 2)],
        &[(hole + 4095, 2)],
        &[(u64::MAX, 1)],
        &[(1 << 52, 1)],
        &[(1, u64::MAX)],
    ] {
        assert!(matches!(base(bad).check(size), Err(SnapshotError::Nonsense(_))), "{bad:?}");
    }
    let many: Vec<_> = (0..=4096).map(|number| (2 * number, 1)).collect();
    assert!(base(&many[1..]).check(size).is_ok() && base(&many).check(size).is_err());
    assert!(base(&[]).check(16 * MIB).is_err());
}

#[test]
fn another_base_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("memory");
    let ram = allocate(16 * MIB).unwrap();
    let print = memory::write(&ram, &File::create_new(&path).unwrap()).unwrap();
    let base = Base { whole: Whole { path: path.clone(), print }, extents: Vec::new() };
    base.open(&path).unwrap();
    std::fs::write(&path, vec![1; 16 << 20]).unwrap();
    let error = base.open(&path).unwrap_err().to_string();
    assert!(error.contains("holds only what differs from") && error.contains("changed since"), "{error}");
    std::fs::remove_file(&path).unwrap();
    let error = base.open(&path).unwrap_err().to_string();
    assert!(error.contains("No such file"), "{error}");
    // Nobody writes to it: to open it would take for ever.
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0).unwrap();
    let error = base.open(&path).unwrap_err().to_string();
    assert!(error.contains("no file"), "{error}");
}
