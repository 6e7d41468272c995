// SPDX-License-Identifier: Apache-2.0
//! ACPI tables for a machine without legacy hardware (ACPI 6.5, chapter 4.1 "Hardware-Reduced ACPI").

use acpi_tables::aml::{
    Device, EISAName, IO, Interrupt, Memory32Fixed, Method, Name, Notify, Package, Path, ResourceTemplate, Scope,
};
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, aml};
use vm_memory::{Bytes, GuestAddress};

use super::{MmioDevice, Topology};
use crate::vmm::devices::legacy::{RESET_VALUE, S5_SLEEP_TYPE};
use crate::vmm::layout::{
    ACPI_RESET_PORT, ACPI_SLEEP_CONTROL_PORT, ACPI_SLEEP_STATUS_PORT, ACPI_START, EVENT_GSI, IOAPIC, LAPIC,
    PVPANIC_PORT, SERIAL_GSI, SERIAL_PORT, VMGENID,
};
use crate::vmm::memory::Ram;

const OEM_ID: [u8; 6] = *b"CORACL";
const OEM_TABLE_ID: [u8; 8] = *b"MICROVM ";
const OEM_REVISION: u32 = 1;

/// `IAPC_BOOT_ARCH`: there is no VGA; no keyboard controller worth probing either, but a CMOS clock (ACPI 6.5 table 5.11).
const BOOT_ARCH: u16 = 1 << 2;
/// Tables start on this alignment; the RSDP must (§5.2.5.1).
const ALIGN: usize = 16;

/// The ACPI tables cannot be made.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum AcpiError {
    /// There is a place for them, and they are larger.
    #[error("the ACPI tables take {size} bytes, and there is room for {room}")]
    TooLarge {
        /// Their size in bytes.
        size: usize,
        /// The room in bytes.
        room: usize,
    },
    /// A device's registers lie where its description cannot reach.
    #[error("the virtio device at {0:#x} cannot be described: its registers must lie below 4 GiB")]
    DeviceAddress(u64),
    /// Guest memory does not reach to where they belong.
    #[error("guest memory has no room for the ACPI tables at {ACPI_START:#x}")]
    Write,
}

/// Writes the tables from [`ACPI_START`] on and returns the RSDP's address, where kernels also look for it by themselves.
///
/// # Errors
/// They do not fit, or a device cannot be described.
pub fn build_acpi(ram: &Ram, topology: &Topology<'_>) -> Result<GuestAddress, AcpiError> {
    let bytes = tables(topology)?;
    ram.write_slice(&bytes, GuestAddress(ACPI_START)).map_err(|_| AcpiError::Write)?;
    Ok(GuestAddress(ACPI_START))
}

/// All tables as they lie from [`ACPI_START`] on: the RSDP, then what it leads to.
fn tables(topology: &Topology<'_>) -> Result<Vec<u8>, AcpiError> {
    let mut area = Area { bytes: vec![0; Rsdp::len()] };
    let dsdt = area.add(&dsdt(topology)?);
    let fadt = area.add(&fadt(dsdt));
    let madt = area.add(&madt(topology.cpus));
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = area.add(&bytes_of(&xsdt));
    let rsdp = bytes_of(&Rsdp::new(OEM_ID, xsdt));
    if let Some(start) = area.bytes.get_mut(..rsdp.len()) {
        start.copy_from_slice(&rsdp);
    }
    let room = usize::try_from(VMGENID - ACPI_START).unwrap_or(usize::MAX);
    if area.bytes.len() > room {
        return Err(AcpiError::TooLarge { size: area.bytes.len(), room });
    }
    Ok(area.bytes)
}

/// Tables one behind the other.
struct Area {
    bytes: Vec<u8>,
}

impl Area {
    /// Appends a table and returns its guest address.
    fn add(&mut self, table: &[u8]) -> u64 {
        self.bytes.resize(self.bytes.len().next_multiple_of(ALIGN), 0);
        let address = ACPI_START + self.bytes.len() as u64;
        self.bytes.extend_from_slice(table);
        address
    }
}

fn bytes_of(object: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    object.to_aml_bytes(&mut bytes);
    bytes
}

fn fadt(dsdt: u64) -> Vec<u8> {
    let port = |port: u16| GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, u64::from(port));
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        // Set means: no such button with fixed hardware.
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton);
    fadt.iapc_boot_arch = BOOT_ARCH.into();
    fadt.reset_reg = port(ACPI_RESET_PORT);
    fadt.reset_value = RESET_VALUE;
    fadt.sleep_control_reg = port(ACPI_SLEEP_CONTROL_PORT);
    fadt.sleep_status_reg = port(ACPI_SLEEP_STATUS_PORT);
    bytes_of(&fadt.finalize())
}

fn madt(cpus: u8) -> Vec<u8> {
    let address = |address: u64| u32::try_from(address).unwrap_or(0);
    let lapic = LocalInterruptController::Address(address(LAPIC));
    let mut madt = MADT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION, lapic);
    for id in 0..cpus {
        madt.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(cpus, address(IOAPIC), 0));
    bytes_of(&madt)
}

fn dsdt(topology: &Topology<'_>) -> Result<Vec<u8>, AcpiError> {
    let mut devices = Vec::new();
    for id in 0..topology.cpus {
        device(&mut devices, &format!("C{id:03X}"), &[&hid(&"ACPI0007"), &uid(u32::from(id))]);
    }
    if topology.serial {
        serial(&mut devices);
    }
    for (id, virtio) in (0..).zip(topology.virtio) {
        virtio_mmio(&mut devices, id, virtio)?;
    }
    if topology.generation_id.is_some() {
        vm_generation_id(&mut devices, VMGENID);
        events(&mut devices);
    }
    if topology.pvpanic {
        pvpanic(&mut devices);
    }
    let mut body = Vec::new();
    Scope::new(Path::new("_SB_"), vec![&Raw(&devices)]).to_aml_bytes(&mut body);
    let zero = aml::ZERO;
    let sleep = Package::new(vec![&S5_SLEEP_TYPE, &S5_SLEEP_TYPE, &zero, &zero]);
    Name::new(Path::new("_S5_"), &sleep).to_aml_bytes(&mut body);
    // Revision 2: integers have 64 bits.
    let mut table = Sdt::new(*b"DSDT", 36, 2, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    table.append_slice(&body);
    Ok(table.as_slice().to_vec())
}

/// AML that has been made already.
struct Raw<'a>(&'a [u8]);

impl Aml for Raw<'_> {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        sink.vec(self.0);
    }
}

fn device(aml: &mut Vec<u8>, name: &str, children: &[&dyn Aml]) {
    Device::new(Path::new(name), children.to_vec()).to_aml_bytes(aml);
}

fn hid(id: &dyn Aml) -> Name {
    Name::new(Path::new("_HID"), id)
}

fn uid(id: u32) -> Name {
    Name::new(Path::new("_UID"), &id)
}

fn resources(list: Vec<&dyn Aml>) -> Name {
    Name::new(Path::new("_CRS"), &ResourceTemplate::new(list))
}

/// An edge-triggered, active-high interrupt of one device only, as an irqfd makes it.
fn interrupt(gsi: u32) -> Interrupt {
    Interrupt::new(true, true, false, false, gsi)
}

fn serial(aml: &mut Vec<u8>) {
    let registers = resources(vec![&IO::new(SERIAL_PORT, SERIAL_PORT, 1, 8), &interrupt(SERIAL_GSI)]);
    let label = Name::new(Path::new("_DDN"), &"COM1");
    device(aml, "COM1", &[&hid(&EISAName::new("PNP0501")), &uid(0), &label, &registers]);
}

/// A virtio-mmio device, by the ID that Linux and FreeBSD know it by.
fn virtio_mmio(aml: &mut Vec<u8>, id: u32, virtio: &MmioDevice) -> Result<(), AcpiError> {
    let bad = |_| AcpiError::DeviceAddress(virtio.address);
    let address = u32::try_from(virtio.address).map_err(bad)?;
    let size = u32::try_from(virtio.size).map_err(bad)?;
    if address.checked_add(size).is_none() {
        return Err(AcpiError::DeviceAddress(virtio.address));
    }
    let registers = resources(vec![&Memory32Fixed::new(true, address, size), &interrupt(virtio.gsi)]);
    device(aml, &format!("V{id:03X}"), &[&hid(&"LNRO0005"), &uid(id), &registers]);
    Ok(())
}

/// The VM generation ID (Microsoft, "Virtual Machine Generation ID"): 16 bytes at `address`.
fn vm_generation_id(aml: &mut Vec<u8>, address: u64) {
    let name = "VM_Gen_Counter";
    let (low, high) = (address & 0xffff_ffff, address >> 32);
    let location = Name::new(Path::new("ADDR"), &Package::new(vec![&low, &high]));
    let (compatible, label) = (Name::new(Path::new("_CID"), &name), Name::new(Path::new("_DDN"), &name));
    device(aml, "VGEN", &[&hid(&"VMGENCTR"), &compatible, &label, &location]);
}

/// The generic event device (ACPI 6.5 §5.6.9): its one interrupt says that the generation ID has changed.
fn events(aml: &mut Vec<u8>) {
    let interrupts = resources(vec![&interrupt(EVENT_GSI)]);
    let (generation, changed) = (Path::new("VGEN"), 0x80u8);
    let notify = Notify::new(&generation, &changed);
    let event = Method::new(Path::new("_EVT"), 1, true, vec![&notify]);
    device(aml, "GEVT", &[&hid(&"ACPI0013"), &uid(0), &interrupts, &event]);
}

/// The port by which the guest reports a panic (QEMU `docs/specs/pvpanic.rst`).
fn pvpanic(aml: &mut Vec<u8>) {
    let registers = resources(vec![&IO::new(PVPANIC_PORT, PVPANIC_PORT, 1, 1)]);
    device(aml, "PEVT", &[&hid(&"QEMU0001"), &uid(0), &registers]);
}

#[cfg(test)]
#[path = "acpi_test.rs"]
mod tests;
