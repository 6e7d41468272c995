// SPDX-License-Identifier: Apache-2.0
//! From a kernel image to guest memory that a vCPU can start in.
//!
//! Files are opened and checked first ([`KernelImage`], [`Initrd`]), before there is a VM; then [`place`] puts all that a
//! guest finds at its start into fresh guest memory and says how the first vCPU enters it. Drop the images afterwards:
//! an unpacked kernel takes tens of megabytes.

mod acpi;
mod boot_params;
mod bzimage;
mod cmdline;
mod decompress;
mod elf;
mod initrd;
mod kernel;
mod kernel_error;
mod memory_map;
mod mptable;
mod pvh;
mod source;
mod symbols;
#[cfg(test)]
mod testing;

use vm_memory::{Bytes, GuestAddress};

pub use acpi::{AcpiError, build_acpi};
pub use boot_params::write_boot_params;
pub use cmdline::{CommandLine, CommandLineError, DEFAULT_WORDS};
pub use decompress::{Compression, UNPACKED_MAX};
pub use initrd::{Initrd, InitrdError, InitrdProblem, InitrdSpan};
pub use kernel::{CMDLINE_MAX, KernelImage, LoadedKernel, Protocol, ProtocolChoice};
pub use kernel_error::{KernelError, KernelProblem};
pub use memory_map::{MemoryKind, MemoryRange, memory_map};
pub use mptable::write_mp_table;
pub use pvh::write_start_info;
pub use symbols::Symbols;

use super::layout::{COMMAND_LINE, COMMAND_LINE_MAX, VMGENID};
use super::memory::Ram;
use crate::failure::Failure;

/// A virtio-mmio device as the guest is told of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MmioDevice {
    /// Guest physical address of its registers.
    pub address: u64,
    /// Size of its registers in bytes.
    pub size: u64,
    /// Its interrupt: an I/O APIC pin.
    pub gsi: u32,
}

/// What firmware tables tell the guest of its machine.
#[derive(Debug, Clone, Copy)]
pub struct Topology<'a> {
    /// Number of vCPUs; their APIC IDs are 0 upward.
    pub cpus: u8,
    /// virtio-mmio devices.
    pub virtio: &'a [MmioDevice],
    /// The VM generation ID, if the guest gets one. It lies at [`VMGENID`].
    pub generation_id: Option<u128>,
    /// Whether there is a pvpanic port.
    pub pvpanic: bool,
    /// Whether there is a first serial port.
    pub serial: bool,
}

/// Where and how the first vCPU starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EntryPoint {
    /// Instruction pointer.
    pub address: GuestAddress,
    /// Processor mode, and the register for `params`.
    pub protocol: Protocol,
    /// `boot_params` for RSI, or `hvm_start_info` for EBX.
    pub params: GuestAddress,
}

/// A guest cannot be prepared to boot.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BootError {
    /// The kernel.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The initrd.
    #[error(transparent)]
    Initrd(#[from] InitrdError),
    /// The command line.
    #[error(transparent)]
    CommandLine(#[from] CommandLineError),
    /// The ACPI tables.
    #[error(transparent)]
    Acpi(#[from] AcpiError),
    /// More CPUs than the tables can name, or none.
    #[error("cannot describe {cpus} CPUs to the guest: 1 to {limit} are possible")]
    Cpus {
        /// Asked number.
        cpus: u8,
        /// Highest possible number.
        limit: u8,
    },
    /// A boot structure does not fit into guest memory.
    #[error("guest memory has no room for the {0}: it must start at address 0 and reach beyond 1 MiB")]
    Write(&'static str),
}

impl BootError {
    /// The next thing to try.
    pub fn advice(&self) -> String {
        match self {
            Self::Kernel(error) => error.advice(),
            Self::Initrd(error) => error.advice(),
            Self::CommandLine(error) => error.advice(),
            Self::Cpus { limit, .. } => format!("ask for 1 to {limit} CPUs (`--cpus`)"),
            Self::Acpi(AcpiError::TooLarge { .. }) => "give the guest fewer devices".into(),
            Self::Acpi(_) | Self::Write(_) => "give the guest more memory (`--memory`)".into(),
        }
    }
}

impl From<BootError> for Failure {
    fn from(error: BootError) -> Self {
        match error {
            BootError::Kernel(error) => error.into(),
            BootError::Initrd(error) => error.into(),
            BootError::CommandLine(error) => error.into(),
            error => Self::new("cannot prepare the guest's start", &error, error.advice()),
        }
    }
}

/// A kernel and its initrd in guest memory.
#[derive(Debug)]
pub struct Loaded {
    kernel: LoadedKernel,
    initrd: Option<InitrdSpan>,
}

/// Copies kernel and initrd into fresh guest memory.
///
/// # Errors
/// Says what does not fit or cannot be read.
pub fn load(ram: &Ram, kernel: &KernelImage, initrd: Option<&Initrd>) -> Result<Loaded, BootError> {
    let kernel = kernel.load(ram)?;
    let initrd = initrd.map(|initrd| initrd.load(ram, &kernel)).transpose()?;
    Ok(Loaded { kernel, initrd })
}

/// Tells a loaded kernel what it finds: command line, tables, parameters.
///
/// # Errors
/// Says what does not fit.
pub fn describe(
    ram: &Ram,
    loaded: &Loaded,
    command_line: &CommandLine,
    topology: &Topology<'_>,
) -> Result<EntryPoint, BootError> {
    let (kernel, initrd) = (&loaded.kernel, loaded.initrd);
    write_command_line(ram, command_line, kernel)?;
    write_mp_table(ram, topology.cpus)?;
    let rsdp = Some(build_acpi(ram, topology)?);
    if let Some(id) = topology.generation_id {
        ram.write_obj(id.to_le_bytes(), GuestAddress(VMGENID)).map_err(|_| BootError::Write("VM generation ID"))?;
    }
    let params = match kernel.protocol {
        Protocol::Linux64 => write_boot_params(ram, kernel, initrd, rsdp)?,
        Protocol::Pvh => write_start_info(ram, initrd, rsdp)?,
    };
    Ok(EntryPoint { address: kernel.entry, protocol: kernel.protocol, params })
}

/// Writes the command line with its NUL to [`COMMAND_LINE`].
fn write_command_line(ram: &Ram, line: &CommandLine, kernel: &LoadedKernel) -> Result<(), BootError> {
    let mut bytes = line.finish(kernel.cmdline_max.min(COMMAND_LINE_MAX - 1))?.into_bytes();
    bytes.push(0);
    ram.write_slice(&bytes, GuestAddress(COMMAND_LINE)).map_err(|_| BootError::Write("command line"))
}

#[cfg(test)]
#[path = "boot_test.rs"]
mod tests;
