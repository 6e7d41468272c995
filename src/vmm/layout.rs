// SPDX-License-Identifier: Apache-2.0
//! Where things lie in the guest's physical address space (x86-64). All values are byte addresses.

/// Start of the 32-bit hole that is kept for devices; RAM goes on at [`RAM_HOLE_END`].
pub const RAM_HOLE_START: u64 = 0xC000_0000;
/// End of the 32-bit hole: 4 GiB.
pub const RAM_HOLE_END: u64 = 0x1_0000_0000;

/// Boot GDT, read by the first vCPU only.
pub const BOOT_GDT: u64 = 0x500;
/// `hvm_start_info` of the PVH boot protocol.
pub const PVH_START_INFO: u64 = 0x6000;
/// `boot_params` ("zero page") of the Linux boot protocol.
pub const ZERO_PAGE: u64 = 0x7000;
/// Stack pointer at entry; the kernel sets its own at once.
pub const BOOT_STACK: u64 = 0x8ff0;
/// Boot page tables: PML4, PDPT and four page directories, one page each.
pub const BOOT_PML4: u64 = 0x9000;
/// The seed for the guest's random generator, a `setup_data` node.
pub const RNG_SEED: u64 = 0x1_0000;
/// Kernel command line.
pub const COMMAND_LINE: u64 = 0x2_0000;
/// Room for the command line, with its terminating NUL.
pub const COMMAND_LINE_MAX: usize = 0x1_0000;
/// End of conventional memory; the MP table lies in the KiB from here, as MP 1.4 §4 allows.
pub const EBDA_START: u64 = 0x9_fc00;
/// BIOS read-only area, where an operating system looks for the ACPI RSDP.
pub const ACPI_START: u64 = 0xe_0000;
/// Page of the VM generation ID, which shares it with nothing.
pub const VMGENID: u64 = 0xf_f000;
/// First byte above the BIOS area; kernels load from here.
pub const HIGH_RAM_START: u64 = 0x10_0000;

/// First virtio-mmio window.
pub const MMIO_BASE: u64 = 0xD000_0000;
/// Size of a virtio-mmio window.
pub const MMIO_WINDOW: u64 = 0x1000;
/// The in-kernel I/O APIC.
pub const IOAPIC: u64 = 0xfec0_0000;
/// The in-kernel local APICs.
pub const LAPIC: u64 = 0xfee0_0000;
/// Three pages that KVM needs on VMX hosts without unrestricted guests (`KVM_SET_TSS_ADDR`).
pub const KVM_TSS: u64 = 0xfffb_d000;
/// Page table that KVM needs on the same hosts (`KVM_SET_IDENTITY_MAP_ADDR`).
pub const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;

/// Persistent-memory regions start on this alignment above RAM, the size of a Linux memory section, so that their page
/// structures never share a section with RAM.
pub const PMEM_ALIGN: u64 = 128 << 20;

/// Interrupt of the first serial port.
pub const SERIAL_GSI: u32 = 4;
/// Interrupt that tells a kernel with ACPI of events, by its generic event device.
pub const EVENT_GSI: u32 = 9;
/// Interrupts for virtio-mmio windows, in order: I/O APIC pins that no legacy device claims.
pub const VIRTIO_GSIS: [u32; 17] = [5, 6, 7, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23];

/// The first serial port (16550), eight I/O ports.
pub const SERIAL_PORT: u16 = 0x3f8;
/// i8042 command port; writing 0xFE pulses the reset line.
pub const I8042_COMMAND_PORT: u16 = 0x64;
/// pvpanic event port (QEMU `docs/specs/pvpanic`).
pub const PVPANIC_PORT: u16 = 0x505;
/// Boot timer: one byte written marks a stage.
pub const BOOT_TIMER_PORT: u16 = 0x520;
/// The host's time of day: eight bytes (`devices/legacy/host_clock.rs`).
pub const HOST_CLOCK_PORT: u16 = 0x528;
/// ACPI sleep control register (ACPI 6.5 §4.8.3.7).
pub const ACPI_SLEEP_CONTROL_PORT: u16 = 0x600;
/// ACPI sleep status register.
pub const ACPI_SLEEP_STATUS_PORT: u16 = 0x601;
/// ACPI reset register (ACPI 6.5 §4.8.3.6); writing 1 resets.
pub const ACPI_RESET_PORT: u16 = 0x602;
