// SPDX-License-Identifier: Apache-2.0
//! Puts a microVM together. Everything that has a path is opened here, before the first vCPU runs; nothing is opened
//! by path afterwards.

use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use serde_json::{Map, Value, json};
use vmm_sys_util::eventfd::EventFd;

use super::arch;
use super::attach::{Attached, Handles, LAST_WORDS, SerialConsole};
use super::boot::{self, CommandLine, Initrd, KernelImage, MmioDevice};
use super::bus::Bus;
use super::config::MachineConfig;
use super::devices::exit::{ExitLine, GuestEnd};
use super::devices::virtio::mmio::{NOTHING_NEW, QUEUE_NOTIFY, Transport};
use super::devices::virtio::rng::random;
use super::devices::virtio::{Interrupt, VirtioDevice, Windows};
use super::event_loop::EventLoop;
use super::host::{self, Host};
use super::layout::{MMIO_BASE, MMIO_WINDOW, PMEM_ALIGN, VIRTIO_GSIS};
use super::memory::{self, Ram};
use super::snapshot::difference::Whole;
use super::stages::{Stage, Stages};
use super::stats::VcpuStats;
use super::vcpu::{Failed, Shared, VcpuEnd, Vcpus};
use super::vm::{Vm, VmError};
use crate::failure::Failure;

/// A microVM whose vCPUs wait to be let go.
pub struct Machine {
    config: MachineConfig,
    /// vCPU threads.
    pub vcpus: Vcpus,
    /// Virtio devices, in bus order.
    pub transports: Vec<Arc<Transport>>,
    /// The machine's own descriptors.
    pub events: Arc<EventLoop>,
    /// The devices' descriptors.
    pub device_events: Arc<EventLoop>,
    /// Where devices and vCPUs report the guest's end.
    pub exit: Arc<ExitLine>,
    /// Boot stages.
    pub stages: Arc<Stages>,
    /// Readable when there are new boot stages.
    pub news: Arc<EventFd>,
    /// How often vCPUs are asked where they are.
    pub sample_interval: Option<Duration>,
    failed: Arc<OnceLock<Box<Failed>>>,
    /// The serial console, where there is one.
    pub serial: Option<SerialConsole>,
    /// Ways into devices.
    pub handles: Handles,
    /// Of a VM that was booted: the names in it.
    kernel: Option<KernelImage>,
    command_line: String,
    host: Host,
    /// Of a VM that was restored: the memory file from which its RAM is mapped.
    pub origin: Option<Whole>,
    buses: [Arc<Bus>; 2],
    ram: Arc<Ram>,
    /// Closing its descriptor disconnects every interrupt line, though the vCPUs run on.
    vm: Vm,
}

/// Puts the VM of `config` together, up to where its vCPUs can run.
///
/// # Errors
/// What cannot be had, why, and what to try.
pub fn build(config: MachineConfig, stages: Arc<Stages>, news: Arc<EventFd>) -> Result<Machine, Failure> {
    config.check()?;
    let ram = memory::allocate(config.memory_mib << 20).map_err(|error| {
        let what = format!("cannot give the guest {} MiB of memory", config.memory_mib);
        Failure::new(what, error, "a smaller `--memory`, or free memory on this host")
    })?;
    let cpus = u8::try_from(config.cpus).unwrap_or(u8::MAX);

    // To read the kernel takes as long as all else together, in which KVM mostly waits for grace periods: that is another
    // thread's. For a kernel that is none it opens, makes and locks nothing.
    let opened = OnceLock::<Result<(), Failure>>::new();
    let make = || {
        let vm = create_vm(&stages);
        let host = Host::detect();
        opened.wait().clone()?;
        let mut attached = Attached::open(&config, &stages)?;
        let wired = wire(vm?, &host, &mut attached, &ram, cpus, &stages)?;
        for (id, vcpu) in wired.vcpus.iter().enumerate() {
            arch::prepare_vcpu(vcpu, id).map_err(|(what, source)| refused(VmError { what, source }))?;
        }
        Ok::<_, Failure>((host, attached, wired))
    };
    let (loaded, made) = thread::scope(|scope| {
        let making = thread::Builder::new().name("maker".into()).spawn_scoped(scope, make).map_err(no_thread)?;
        let images = open(&config);
        // Set once, here.
        let _ = opened.set(images.as_ref().map(drop).map_err(Failure::clone));
        let loaded = images.and_then(|images| load(&ram, images));
        let made = making.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        Ok::<_, Failure>((loaded, made))
    })?;
    let (mut kernel, loaded) = loaded?;
    let (host, attached, wired) = made?;
    let command_line = command_line(&config, &host, &wired.places)?;
    let topology = boot::Topology {
        cpus,
        virtio: &wired.places,
        generation_id: Some(generation_id()?),
        pvpanic: true,
        serial: attached.serial.is_some(),
    };
    let entry = boot::describe(&ram, &loaded, &command_line, &topology)?;
    kernel.release();
    stages.mark(Stage::KernelLoaded);

    if let Some(first) = wired.vcpus.first() {
        arch::registers::enter(first, &ram, &entry)
            .map_err(|error| Failure::new("cannot set the guest's entry", error, "a larger `--memory`"))?;
    }
    assemble(config, Some(kernel), command_line.to_string(), host, attached, wired, ram, stages, news)
}

/// Opens and checks kernel and initrd.
fn open(config: &MachineConfig) -> Result<(KernelImage, Option<Initrd>), Failure> {
    let mut kernel = KernelImage::open_path(&config.kernel, config.protocol)?;
    if !config.fs.is_empty() {
        // virtiofsd has the memory file, and not what is mapped over it.
        kernel.do_not_map();
    }
    let initrd = config.initrd.as_deref().map(Initrd::open_path).transpose()?;
    Ok((kernel, initrd))
}

/// Puts them into memory.
fn load(ram: &Ram, (kernel, initrd): (KernelImage, Option<Initrd>)) -> Result<(KernelImage, boot::Loaded), Failure> {
    let loaded = boot::load(ram, &kernel, initrd.as_ref())?;
    Ok((kernel, loaded))
}

/// Locks this process up, starts the threads of a VM that is ready to run, and holds them.
///
/// # Errors
/// There is no jail or no thread to be had.
#[allow(clippy::too_many_arguments, reason = "each is a part of the machine, moved into it")]
pub(super) fn assemble(
    config: MachineConfig,
    kernel: Option<KernelImage>,
    command_line: String,
    host: Host,
    attached: Attached,
    wired: Wired,
    ram: Arc<Ram>,
    stages: Arc<Stages>,
    news: Arc<EventFd>,
) -> Result<Machine, Failure> {
    let Wired { vm, vcpus, mmio, transports, places: _, events, device_events } = wired;
    if let Some(Ok(counters)) = vcpus.first().map(VcpuStats::open) {
        stages.count_with(counters);
    }
    config.jail.enter(attached.handles.vsock.as_deref())?;
    let buses = [Arc::new(attached.ports), Arc::new(mmio)];
    let failed = Arc::<OnceLock<Box<Failed>>>::default();
    let exit = attached.exit;
    let vcpus = start_vcpus(vcpus, &ram, &buses, &exit, &failed, &stages)?;
    Ok(Machine {
        vcpus,
        transports,
        events,
        device_events,
        exit,
        stages,
        news,
        sample_interval: config.sample_interval_us.map(Duration::from_micros),
        failed,
        serial: attached.serial.map(|(console, _)| console),
        handles: attached.handles,
        kernel,
        command_line,
        host,
        origin: None,
        buses,
        ram,
        vm,
        config,
    })
}

/// A VM with its memory and devices, but nothing in either yet.
pub(super) struct Wired {
    pub(super) vm: Vm,
    pub(super) vcpus: Vec<VcpuFd>,
    mmio: Bus,
    pub(super) transports: Vec<Arc<Transport>>,
    places: Vec<MmioDevice>,
    events: Arc<EventLoop>,
    device_events: Arc<EventLoop>,
}

/// Makes an empty VM.
///
/// # Errors
/// Why this host has none.
pub(super) fn create_vm(stages: &Stages) -> Result<(Kvm, VmFd), Failure> {
    let kvm = host::open()?;
    let fd = host::create_vm(&kvm)?;
    stages.mark(Stage::KvmCreated);
    Ok((kvm, fd))
}

/// Gives a new VM its memory and its vCPUs, and connects what is attached to it.
///
/// # Errors
/// What KVM or the system refuses.
pub(super) fn wire(
    (kvm, fd): (Kvm, VmFd),
    host: &Host,
    attached: &mut Attached,
    ram: &Arc<Ram>,
    cpus: u8,
    stages: &Stages,
) -> Result<Wired, Failure> {
    let windows = Windows::new(attached.virtio.len() + attached.pmem.len());
    let windows = windows.map_err(|error| Failure::new("cannot make registers for devices", error, "free memory"))?;
    let mut vm = Vm::new(kvm, fd, ram, &windows).map_err(refused)?;
    place_pmem(&mut vm, attached, ram)?;
    stages.mark(Stage::MemoryReady);

    let (events, device_events) = (new_event_set()?, new_event_set()?);
    // An indirect table is an allocation for each request, which costs more than entries of a ring where the guest's kernel
    // is emulated.
    let indirect = host.runs_stock_kernels();
    let board = Board { vm: &vm, windows: &windows, ram, events: &device_events, indirect };
    let mut mmio = Bus::default();
    let mut transports = Vec::with_capacity(attached.virtio.len());
    let mut places = Vec::with_capacity(attached.virtio.len());
    for ((device, number), gsi) in attached.virtio.drain(..).zip(0u16..).zip(VIRTIO_GSIS) {
        let address = window_address(number);
        let transport = board.connect(device, number, gsi)?;
        mmio.insert(address, MMIO_WINDOW, Arc::clone(&transport) as _);
        transports.push(transport);
        places.push(MmioDevice { address, size: MMIO_WINDOW, gsi });
    }
    if let Some((line, gsi)) = attached.serial_interrupt() {
        vm.connect_interrupt(line, gsi).map_err(refused)?;
    }
    let vcpus = vm.create_vcpus(cpus).map_err(refused)?;
    Ok(Wired { vm, vcpus, mmio, transports, places, events, device_events })
}

fn no_thread(error: std::io::Error) -> Failure {
    Failure::new("cannot start a thread", error, "raise the limit of processes (`ulimit -u`)")
}

/// A VM generation ID that no other VM has.
///
/// # Errors
/// The system has no randomness.
pub(super) fn generation_id() -> Result<u128, Failure> {
    let mut id = [0; 16];
    random(&mut id).map_err(|error| Failure::new("cannot identify the microVM", error, "a newer host kernel"))?;
    Ok(u128::from_le_bytes(id))
}

fn refused(error: VmError) -> Failure {
    let advice = "run `coracle doctor` to see what this host's KVM can do";
    Failure::new(format!("cannot make the microVM: {}", error.what), error.source, advice)
}

fn new_event_set() -> Result<Arc<EventLoop>, Failure> {
    let advice = "raise the limit of open files (`ulimit -n`)";
    EventLoop::new().map(Arc::new).map_err(|error| Failure::new("cannot make the event loop", error, advice))
}

/// Where the window of device `number` is.
fn window_address(number: u16) -> u64 {
    MMIO_BASE + u64::from(number) * MMIO_WINDOW
}

/// What virtio devices are connected to.
struct Board<'a> {
    vm: &'a Vm,
    windows: &'a Arc<Windows>,
    ram: &'a Arc<Ram>,
    events: &'a Arc<EventLoop>,
    indirect: bool,
}

impl Board<'_> {
    fn connect(&self, device: Box<dyn VirtioDevice>, number: u16, gsi: u32) -> Result<Arc<Transport>, Failure> {
        let no_fd =
            |error| Failure::new("cannot attach a device", error, "raise the limit of open files (`ulimit -n`)");
        let line = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(no_fd)?;
        self.vm.connect_interrupt(&line, gsi).map_err(refused)?;
        let (memory, events) = (Arc::clone(self.ram), Arc::clone(self.events));
        let (interrupt, window) = (Interrupt::new(line), self.windows.window(number));
        let transport = Transport::new(device, number, memory, events, interrupt, window, self.indirect);
        let transport = transport.map_err(no_fd)?;
        let address = window_address(number);
        self.vm.connect_notifications(address + QUEUE_NOTIFY, &transport.kicks()).map_err(refused)?;
        let (offset, value) = NOTHING_NEW;
        self.vm.absorb(address + offset, value).map_err(refused)?;
        Ok(Arc::new(transport))
    }
}

/// Maps each pmem device's file behind RAM, one after the other.
fn place_pmem(vm: &mut Vm, attached: &mut Attached, ram: &Ram) -> Result<(), Failure> {
    let mut next = memory::end_of_ram(ram).next_multiple_of(PMEM_ALIGN);
    for mut pmem in attached.pmem.drain(..) {
        let mapping = pmem.mapping();
        let length = mapping.length() as u64;
        pmem.place(next);
        vm.add_read_only(next, mapping).map_err(refused)?;
        attached.virtio.push(Box::new(pmem));
        next = (next + length).next_multiple_of(PMEM_ALIGN);
    }
    Ok(())
}

/// The machine's words first, the user's last, so that the user's count.
fn command_line(config: &MachineConfig, host: &Host, devices: &[MmioDevice]) -> Result<CommandLine, Failure> {
    let mut line = CommandLine::new();
    if config.default_command_line {
        if let Some(console) = config.console.kernel_name() {
            line.add(&format!("console={console}"))?;
        }
        line.add(boot::DEFAULT_WORDS)?;
        line.add(host.guest_command_line())?;
        for device in devices {
            line.add_mmio_device(device);
        }
    }
    line.add_users(&config.command_line)?;
    Ok(line)
}

fn start_vcpus(
    fds: Vec<VcpuFd>,
    ram: &Arc<Ram>,
    [ports, mmio]: &[Arc<Bus>; 2],
    exit: &Arc<ExitLine>,
    end: &Arc<OnceLock<Box<Failed>>>,
    stages: &Arc<Stages>,
) -> Result<Vcpus, Failure> {
    let (exit, end, stages) = (Arc::clone(exit), Arc::clone(end), Arc::clone(stages));
    let shared = Shared {
        memory: Arc::clone(ram),
        ports: Arc::clone(ports),
        mmio: Arc::clone(mmio),
        on_end: Box::new(move |how| {
            if let VcpuEnd::Failed(failed) = how {
                // The first vCPU to fail decides; the others are stopped with it.
                let _ = end.set(failed);
                exit.wake();
            } else {
                exit.request(GuestEnd::TripleFault);
            }
        }),
        on_first_run: Box::new(move || stages.mark(Stage::FirstRun)),
    };
    Vcpus::start(fds, Arc::new(shared)).map_err(no_thread)
}

impl Machine {
    /// Ends the guest's running, and the host's work for it.
    pub fn stop(&mut self) {
        self.vcpus.stop();
        for transport in &self.transports {
            transport.shut_down();
        }
        if let Some(serial) = &self.serial {
            serial.finish();
        }
        if let Some(console) = &self.handles.console {
            console.finish(LAST_WORDS);
        }
    }

    /// What a person is told where a vCPU cannot go on: with the kernel's own name for the place.
    pub fn failure(&self) -> Option<Failure> {
        let failed = self.failed.get()?;
        let mut failure = failed.failure.clone();
        if let Some(rip) = failed.rip {
            let symbols = self.kernel.as_ref().and_then(|kernel| kernel.symbols().ok().flatten());
            let symbol =
                symbols.and_then(|symbols| symbols.find(rip).map(|(name, offset)| format!("{name}+{offset:#x}")));
            let place = symbol.map_or_else(|| format!("{rip:#x}"), |symbol| format!("{rip:#x} ({symbol})"));
            failure.why = format!("{}, at {place}", failure.why);
        }
        if !self.host.runs_stock_kernels() {
            failure.try_next = format!(
                "this host's KVM is {}, which emulates the guest's kernel: use the bundled guest kernel; else {}",
                self.host.vendor, failure.try_next
            );
        }
        Some(failure)
    }

    /// Accesses to ports and addresses where no device is.
    pub fn unclaimed_accesses(&self) -> u64 {
        self.buses.iter().map(|bus| bus.unclaimed()).sum()
    }

    /// KVM's side of it.
    pub fn vm(&self) -> &Vm {
        &self.vm
    }

    /// The guest's memory.
    pub fn ram(&self) -> &Ram {
        &self.ram
    }

    /// What it is made of.
    pub fn config(&self) -> &MachineConfig {
        &self.config
    }

    /// What its kernel was told, or the kernel of the VM that it is a clone of.
    pub fn command_line(&self) -> &str {
        &self.command_line
    }

    /// What it runs on.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Shape of the VM, for the control socket.
    pub fn info(&self) -> Map<String, Value> {
        let devices: Vec<_> = self.transports.iter().map(|transport| transport.metrics().0).collect();
        let info = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "pid": std::process::id(),
            "host": self.host.to_string(),
            "kernel": self.kernel.as_ref().map(KernelImage::description),
            "command_line": self.command_line,
            "cpus": self.config.cpus,
            "memory_mib": self.config.memory_mib,
            "origin": self.origin.as_ref().map(|origin| &origin.path),
            "devices": devices,
        });
        match info {
            Value::Object(map) => map,
            _ => Map::new(),
        }
    }
}
