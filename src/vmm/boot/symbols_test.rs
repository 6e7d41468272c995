// SPDX-License-Identifier: Apache-2.0
use super::*;
use crate::vmm::boot::source::Source;
use crate::vmm::boot::testing::small_elf;
use proptest::prelude::*;

const TEXT: u64 = 0xffff_ffff_8100_0000;

/// Appends section headers with a symbol table: name, type, section (1 is code, 2 data), value, size.
fn with_symbols(symbols: &[(&str, u8, u16, u64, u64)]) -> Vec<u8> {
    let mut file = small_elf();
    let (mut names, mut table) = (vec![0], vec![0; 24]);
    for (name, kind, section, value, size) in symbols {
        table.extend(u32::try_from(names.len()).unwrap().to_le_bytes());
        table.extend([*kind, 0]);
        table.extend(section.to_le_bytes());
        table.extend(value.to_le_bytes());
        table.extend(size.to_le_bytes());
        names.extend(name.as_bytes());
        names.push(0);
    }
    let table_at = file.len() as u64;
    file.extend(&table);
    let names_at = file.len() as u64;
    file.extend(&names);
    let sections_at = file.len() as u64;
    let mut section = |kind: u32, flags: u64, offset: u64, size: u64, link: u32| {
        file.extend(0u32.to_le_bytes());
        file.extend(kind.to_le_bytes());
        file.extend(flags.to_le_bytes());
        file.extend(0u64.to_le_bytes());
        file.extend(offset.to_le_bytes());
        file.extend(size.to_le_bytes());
        file.extend(link.to_le_bytes());
        file.extend([0; 20]);
    };
    section(0, 0, 0, 0, 0);
    section(1, 6, 0, 0, 0);
    section(1, 3, 0, 0, 0);
    section(2, 0, table_at, table.len() as u64, 4);
    section(3, 0, names_at, names.len() as u64, 0);
    file[40..48].copy_from_slice(&sections_at.to_le_bytes());
    file[58..62].copy_from_slice(&[64, 0, 5, 0]);
    file
}

fn symbols(bytes: Vec<u8>) -> Result<Option<Symbols>, KernelProblem> {
    let head = bytes[..4096.min(bytes.len())].to_vec();
    Symbols::from_elf(&ElfKernel::parse(Source::Memory(bytes), &head)?)
}

fn kernel() -> Vec<u8> {
    with_symbols(&[
        ("later", 2, 1, TEXT + 0x200, 0x10),
        ("start_kernel", 0x12, 1, TEXT + 0x100, 0x80),
        ("alias", 0x12, 1, TEXT + 0x100, 0x80),
        ("some_data", 1, 2, TEXT + 0x150, 8),
        ("label_in_data", 0, 2, TEXT + 0x160, 0),
        ("asm_label", 0, 1, TEXT + 0x180, 0),
    ])
}

#[test]
fn functions_are_found_by_linked_and_by_physical_address() {
    let symbols = symbols(kernel()).unwrap().unwrap();
    assert_eq!(symbols.len(), 4);
    for base in [TEXT, 0x100_0000] {
        assert_eq!(symbols.find(base + 0xff), None);
        assert_eq!(symbols.find(base + 0x100), Some(("start_kernel", 0)));
        assert_eq!(symbols.find(base + 0x17f), Some(("start_kernel", 0x7f)));
        assert_eq!(symbols.find(base + 0x183), Some(("asm_label", 3)));
        assert_eq!(symbols.find(base + 0x20f), Some(("later", 0xf)));
        assert_eq!(symbols.find(base + 0x210), None);
    }
    assert_eq!(symbols.find(0), None);
    assert_eq!(symbols.find(u64::MAX), None);
}

#[test]
fn a_stripped_kernel_has_none() {
    assert!(symbols(small_elf()).unwrap().is_none());
    assert!(symbols(with_symbols(&[("data", 1, 2, TEXT, 8)])).unwrap().is_none());
}

#[test]
fn a_damaged_table_is_an_error() {
    let mut file = kernel();
    file[60] = 200;
    assert!(matches!(symbols(file), Err(KernelProblem::Truncated { what: "section header table", .. })));
    let mut file = kernel();
    file[58] = 63;
    assert!(matches!(symbols(file), Err(KernelProblem::ElfHeader(_))));
}

#[test]
fn a_system_map_is_read() {
    let text =
        b"ffffffff81000000 T _text\nffffffff81000100 t do_it\nffffffff81000180 D data\nffffffff81000200 T _etext\n";
    let symbols = Symbols::from_system_map(text).unwrap();
    assert_eq!(symbols.find(TEXT + 0x1a0), Some(("do_it", 0xa0)));
    assert_eq!(symbols.find(TEXT + 0x300), None);
    let error = Symbols::from_system_map(b"ffffffff81000000 T _text\nnonsense\n").unwrap_err();
    assert!(error.to_string().contains("line 2"), "{error}");
}

proptest! {
    #[test]
    fn damage_never_panics(damage in prop::collection::vec((40usize..2000, any::<u8>()), 1..8), address: u64) {
        let mut file = kernel();
        for (at, value) in damage {
            let at = at % file.len();
            file[at] = value;
        }
        if let Ok(Some(symbols)) = symbols(file) {
            prop_assert!(symbols.find(address).is_none_or(|(_, offset)| offset <= address));
        }
    }

    #[test]
    fn any_system_map_is_read_or_refused(text in "([0-9a-f]{1,17} [tTwWdD] [a-z]{1,8}\n){0,9}", address: u64) {
        if let Ok(symbols) = Symbols::from_system_map(text.as_bytes()) {
            prop_assert!(symbols.find(address).is_none_or(|(name, _)| text.contains(name)));
        }
    }
}
