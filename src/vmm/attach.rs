// SPDX-License-Identifier: Apache-2.0
//! From a configuration to devices: opens what they stand on, before there is a VM.

use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use vmm_sys_util::eventfd::EventFd;

use super::bus::Bus;
use super::config::{ConsoleKind, MachineConfig};
use super::devices::console_output::ConsoleOutput;
use super::devices::exit::ExitLine;
use super::devices::host_clock::HostClock;
use super::devices::legacy::{AcpiPower, Cmos, FixedPort, I8042, PvPanic, Serial, SerialState};
use super::devices::virtio::VirtioDevice;
use super::devices::virtio::balloon::{Balloon, BalloonHandle};
use super::devices::virtio::block::Block;
use super::devices::virtio::console::{Console, ConsoleHandle};
use super::devices::virtio::fs::Fs;
use super::devices::virtio::net::{Net, NetBackend};
use super::devices::virtio::pmem::Pmem;
use super::devices::virtio::rng::Rng;
use super::devices::virtio::vsock::{Endpoint, Vsock};
use super::layout::{ACPI_SLEEP_CONTROL_PORT, BOOT_TIMER_PORT, HOST_CLOCK_PORT, PVPANIC_PORT, SERIAL_GSI, SERIAL_PORT};
use super::stages::{Stage, Stages};
use crate::failure::Failure;

/// How long the end of a VM waits for a slow reader of its console.
pub const LAST_WORDS: Duration = Duration::from_secs(2);

const NO_FILES: &str = "raise the limit of open files (`ulimit -n`)";

/// Devices that have been opened but not yet put on a bus.
pub struct Attached {
    /// Devices for virtio-mmio windows, in order; pmem follows once it has its place.
    pub virtio: Vec<Box<dyn VirtioDevice>>,
    /// Persistent memory that has no place in the guest yet.
    pub pmem: Vec<Pmem>,
    /// What the control socket reaches of the devices.
    pub handles: Handles,
    /// Devices behind I/O ports.
    pub ports: Bus,
    /// The serial port, and the line that it interrupts on.
    pub serial: Option<(SerialConsole, EventFd)>,
    /// Where devices report the guest's end.
    pub exit: Arc<ExitLine>,
}

/// Ways into devices that run.
#[derive(Default)]
pub struct Handles {
    /// The balloon, where there is one.
    pub balloon: Option<BalloonHandle>,
    /// The virtio console, where there is one.
    pub console: Option<ConsoleHandle>,
    /// The host's end of the vsock, where there is one.
    pub vsock: Option<Arc<Endpoint>>,
}

impl Attached {
    /// Opens all devices of `config`.
    ///
    /// # Errors
    /// What cannot be opened, why, and what to try.
    pub fn open(config: &MachineConfig, stages: &Arc<Stages>) -> Result<Self, Failure> {
        let no_fd = |error| Failure::new("cannot make the devices", error, NO_FILES);
        let exit = Arc::new(ExitLine::new().map_err(no_fd)?);
        let mut ports = legacy_ports(&exit, stages);
        let mut virtio: Vec<Box<dyn VirtioDevice>> = Vec::new();
        for disk in &config.disks {
            let what = || format!("cannot attach disk {}", disk.path.display());
            let device = Block::open(disk).map_err(|error| Failure::new(what(), error, "another file for --disk"))?;
            virtio.push(Box::new(device));
        }
        for net in &config.nets {
            let what = || match &net.backend {
                NetBackend::Tap(name) => format!("cannot attach a network card to TAP {name}"),
                NetBackend::Passt(path) => format!("cannot attach a network card to passt at {}", path.display()),
            };
            let device = Net::open(net).map_err(|error| Failure::new(what(), &error, error.try_next()))?;
            virtio.push(Box::new(device));
        }
        let mut handles = Handles::default();
        if let Some(vsock) = &config.vsock {
            let what = || format!("cannot make the vsock at {}", vsock.path.display());
            let device = Vsock::open(vsock).map_err(|error| Failure::new(what(), error, "another path for --vsock"))?;
            handles.vsock = Some(device.endpoint());
            virtio.push(Box::new(device));
        }
        if config.rng {
            virtio.push(Box::new(Rng::new()));
        }
        if config.balloon {
            let (device, handle) = Balloon::new(config.memory_mib << 20).map_err(no_fd)?;
            virtio.push(Box::new(device));
            handles.balloon = Some(handle);
        }
        for fs in &config.fs {
            let device = Fs::open(fs).map_err(|error| {
                let what = format!("cannot share a directory with the guest as `{}`", fs.tag);
                let advice = format!("see whether virtiofsd runs, and listens at {}", fs.socket.display());
                Failure::new(what, error, advice)
            })?;
            virtio.push(Box::new(device));
        }
        let pmem = config.pmem.iter().map(|pmem| {
            let what = || format!("cannot map {} as persistent memory", pmem.path.display());
            Pmem::open(pmem).map_err(|error| Failure::new(what(), &error.problem, error.advice()))
        });
        let pmem = pmem.collect::<Result<Vec<_>, _>>()?;
        let mut serial = None;
        match config.console {
            ConsoleKind::Serial => {
                let line = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(no_fd)?;
                let console = SerialConsole::open(&line, config, stages)?;
                ports.insert(SERIAL_PORT.into(), Serial::LENGTH, Arc::clone(&console.port) as _);
                serial = Some((console, line));
            }
            ConsoleKind::Virtio => {
                let input = std::io::stdin().as_fd().try_clone_to_owned().map_err(no_fd)?;
                let output = console_output(config, stages)?;
                let (device, handle) = Console::new(Some(input.into()), output).map_err(no_fd)?;
                virtio.push(Box::new(device));
                handles.console = Some(handle);
            }
            ConsoleKind::None => {}
        }
        Ok(Self { virtio, pmem, handles, ports, serial, exit })
    }

    /// The interrupt of the serial port, where there is one: its line and number.
    pub fn serial_interrupt(&self) -> Option<(&EventFd, u32)> {
        self.serial.as_ref().map(|(_, line)| (line, SERIAL_GSI))
    }
}

/// Devices that every guest has and that need nothing from the host.
fn legacy_ports(exit: &Arc<ExitLine>, stages: &Arc<Stages>) -> Bus {
    let mut ports = Bus::default();
    ports.insert(FixedPort::PIT, 4, Arc::new(FixedPort(0)));
    ports.insert(I8042::BASE, I8042::LENGTH, Arc::new(I8042::new(Arc::clone(exit))));
    ports.insert(Cmos::BASE, Cmos::LENGTH, Arc::new(Cmos::default()));
    ports.insert(FixedPort::POST, 1, Arc::new(FixedPort(0)));
    ports.insert(PVPANIC_PORT.into(), 1, Arc::new(PvPanic::new(Arc::clone(exit))));
    ports.insert(BOOT_TIMER_PORT.into(), 1, Arc::clone(stages) as _);
    ports.insert(HOST_CLOCK_PORT.into(), HostClock::LENGTH, Arc::new(HostClock::default()));
    ports.insert(ACPI_SLEEP_CONTROL_PORT.into(), AcpiPower::LENGTH, Arc::new(AcpiPower::new(Arc::clone(exit))));
    ports
}

/// Where a console's output goes: standard output, and the log file where there is one.
fn console_output(config: &MachineConfig, stages: &Arc<Stages>) -> Result<ConsoleOutput, Failure> {
    let failed = |error: std::io::Error| Failure::new("cannot use standard output for the console", error, NO_FILES);
    let stdout = File::from(std::io::stdout().as_fd().try_clone_to_owned().map_err(failed)?);
    let mut output = ConsoleOutput::new().and_then(|output| output.to_terminal(stdout)).map_err(failed)?;
    if let Some(path) = &config.log_file {
        let failed = |error: std::io::Error| {
            let what = format!("cannot write console log {}", path.display());
            Failure::new(what, error, "a path in a folder that you may write to")
        };
        let log = OpenOptions::new().append(true).create(true).open(path).map_err(failed)?;
        output = output.to_log(log).map_err(failed)?;
    }
    let stages = Arc::clone(stages);
    Ok(output.on_first_byte(move || stages.mark(Stage::FirstOutput)))
}

/// The serial port as a console: its bytes go over standard input and output.
pub struct SerialConsole {
    port: Arc<Serial>,
}

impl SerialConsole {
    fn open(line: &EventFd, config: &MachineConfig, stages: &Arc<Stages>) -> Result<Self, Failure> {
        let failed = |error: std::io::Error| Failure::new("cannot make the serial port", error, NO_FILES);
        let output = console_output(config, stages)?;
        let port = Arc::new(Serial::new(line.try_clone().map_err(failed)?, output));
        // What an owner hands over is its end of a socket; a terminal of our own would be shared with the shell.
        set_nonblocking(libc::STDIN_FILENO);
        Ok(Self { port })
    }

    /// The port's registers.
    pub fn state(&self) -> SerialState {
        self.port.state()
    }

    /// Takes up where another port was.
    ///
    /// # Errors
    /// See [`Serial::restore`].
    pub fn restore(&self, saved: &SerialState) -> std::io::Result<()> {
        self.port.restore(saved)
    }

    /// Where input comes from.
    pub fn input(&self) -> RawFd {
        libc::STDIN_FILENO
    }

    /// Readable when output waits to be written.
    pub fn timer(&self) -> RawFd {
        self.port.timer()
    }

    /// Writes output that waits, and takes input that found no room before.
    pub fn flush(&self) {
        self.port.flush();
        self.feed();
    }

    /// Gives the guest what can be read and has room; `false` at the input's end.
    pub fn feed(&self) -> bool {
        let mut buffer = [0; 4096];
        loop {
            let room = self.port.input_room().min(buffer.len());
            if room == 0 {
                return true;
            }
            // SAFETY: `buffer` has room for `room` bytes.
            let count = unsafe { libc::read(libc::STDIN_FILENO, buffer.as_mut_ptr().cast(), room) };
            match usize::try_from(count) {
                Ok(0) => return false,
                Ok(count) => {
                    self.port.enqueue(buffer.get(..count).unwrap_or_default());
                }
                Err(_) => return std::io::Error::last_os_error().kind() == std::io::ErrorKind::WouldBlock,
            }
        }
    }

    /// Writes what is left.
    pub fn finish(&self) {
        self.port.finish(LAST_WORDS);
    }

    /// Counters.
    pub fn metrics(&self) -> Vec<(&'static str, u64)> {
        self.port.metrics()
    }
}

fn set_nonblocking(fd: RawFd) {
    // SAFETY: F_GETFL and F_SETFL take and give integers only; a closed descriptor is an error that the read repeats.
    unsafe {
        let flags = libc::fcntl(fd, libc::F_GETFL);
        libc::fcntl(fd, libc::F_SETFL, flags | libc::O_NONBLOCK);
    }
}
