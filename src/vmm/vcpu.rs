// SPDX-License-Identifier: Apache-2.0
//! vCPU threads: one each, that blocks in `KVM_RUN` and is told what to do by a kick.

use std::cell::Cell;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use kvm_bindings::{MsrList, kvm_run};
use kvm_ioctls::{VcpuExit, VcpuFd};
use serde::{Deserialize, Serialize};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use super::arch::state::{StateError, VcpuState};
use super::bus::Bus;
use super::memory::Ram;
use crate::failure::Failure;

/// Stack of a vCPU thread: device emulation is shallow, and only touched pages cost anything.
const STACK: usize = 256 << 10;
/// How long a vCPU may take to answer a kick before the VM is called stuck.
const ANSWER: Duration = Duration::from_secs(10);

/// Frames of a guest's stack that a sample holds at most.
const MAX_FRAMES: usize = 32;

/// Why a vCPU ended by itself.
#[derive(Debug)]
pub enum VcpuEnd {
    /// The guest faulted while it handled a double fault (Intel SDM vol. 3 §6.15).
    TripleFault,
    /// KVM or this host cannot run the guest on.
    Failed(Box<Failed>),
}

/// What is known of a vCPU that cannot go on.
#[derive(Debug)]
pub struct Failed {
    /// Guest instruction pointer, where it can be read.
    pub rip: Option<u64>,
    /// What a person is told; the machine adds the symbol at [`Failed::rip`].
    pub failure: Failure,
}

/// What vCPU threads share.
pub struct Shared {
    /// I/O ports.
    pub ports: Arc<Bus>,
    /// Memory-mapped I/O.
    pub mmio: Arc<Bus>,
    /// Guest memory, for the stacks of samples.
    pub memory: Arc<Ram>,
    /// Called on the vCPU's thread, at most once a vCPU.
    pub on_end: Box<dyn Fn(VcpuEnd) + Send + Sync>,
    /// Called on the first vCPU's thread, right before its first `KVM_RUN`.
    pub on_first_run: Box<dyn Fn() + Send + Sync>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Command {
    Hold,
    Run,
    Stop,
}

#[derive(Debug)]
struct Control {
    command: Command,
    /// vCPUs that wait, and so do not run the guest.
    holding: usize,
    /// vCPUs that will never run again.
    ended: usize,
    /// What a vCPU that holds is to tell its state with, and what those have told that did.
    wanted: Option<Arc<MsrList>>,
    states: Vec<Option<Result<VcpuState, StateError>>>,
    /// vCPUs whose threads are to record where the guest is.
    sample: Vec<bool>,
    samples: Vec<Sample>,
}

/// Where a vCPU was when it was kicked.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Sample {
    /// Number of the vCPU.
    pub vcpu: usize,
    /// Instruction pointer.
    pub rip: u64,
    /// Privilege level: 0 for a kernel, 3 for its programs.
    pub cpl: u8,
    /// Return addresses, innermost first, as far as frame pointers lead; noise in a kernel built without them.
    pub stack: Vec<u64>,
}

struct Signal {
    control: Mutex<Control>,
    changed: Condvar,
}

impl Signal {
    fn lock(&self) -> MutexGuard<'_, Control> {
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The vCPUs of one VM.
pub struct Vcpus {
    signal: Arc<Signal>,
    threads: Vec<JoinHandle<()>>,
}

thread_local! {
    /// The `kvm_run` page of this thread's vCPU, for the signal handler.
    static RUN_PAGE: Cell<*mut kvm_run> = const { Cell::new(std::ptr::null_mut()) };
}

/// Makes the next `KVM_RUN` return at once, also where the signal arrived just before the call.
extern "C" fn kick_handler(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    let page = RUN_PAGE.get();
    if !page.is_null() {
        // SAFETY: the page is mapped as long as the vCPU, whose thread clears RUN_PAGE before dropping it; this handler
        // runs on that same thread. The byte is volatile because KVM and the thread itself change it as well.
        unsafe { (&raw mut (*page).immediate_exit).write_volatile(1) };
    }
}

impl Vcpus {
    /// Starts one thread for each vCPU; they hold until [`Vcpus::resume`].
    ///
    /// # Errors
    /// The kernel's, where it gives no thread or refuses the signal handler.
    pub fn start(fds: Vec<VcpuFd>, shared: Arc<Shared>) -> io::Result<Self> {
        register_signal_handler(SIGRTMIN(), kick_handler).map_err(io::Error::from)?;
        let count = fds.len();
        let control = Control {
            command: Command::Hold,
            holding: 0,
            ended: 0,
            wanted: None,
            states: Vec::new(),
            sample: vec![false; count],
            samples: Vec::new(),
        };
        let signal = Arc::new(Signal { control: Mutex::new(control), changed: Condvar::new() });
        let mut vcpus = Self { signal, threads: Vec::with_capacity(count) };
        for (number, fd) in fds.into_iter().enumerate() {
            let vcpu = Vcpu { number, fd, shared: Arc::clone(&shared), signal: Arc::clone(&vcpus.signal) };
            let builder = thread::Builder::new().name(format!("vcpu{number}")).stack_size(STACK);
            vcpus.threads.push(builder.spawn(move || vcpu.run())?);
        }
        Ok(vcpus)
    }

    /// Lets the guest run.
    pub fn resume(&self) {
        self.signal.lock().command = Command::Run;
        self.signal.changed.notify_all();
    }

    /// Stops the guest between two instructions and waits until every vCPU holds.
    ///
    /// # Errors
    /// `TimedOut` where a vCPU does not answer; the guest may then still run.
    pub fn pause(&self) -> io::Result<()> {
        let mut control = self.signal.lock();
        control.command = Command::Hold;
        self.kick();
        let running = |control: &mut Control| control.holding < self.threads.len();
        let (_control, waited) =
            self.signal.changed.wait_timeout_while(control, ANSWER, running).unwrap_or_else(PoisonError::into_inner);
        if waited.timed_out() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(()) }
    }

    /// Takes the state of all vCPUs, which hold; each tells its own, since KVM would have to move it between threads.
    ///
    /// # Errors
    /// The guest has ended or a vCPU does not answer, in words; KVM's.
    pub fn states(&self, list: MsrList) -> Result<Vec<VcpuState>, StateError> {
        let mut control = self.signal.lock();
        control.states = std::iter::repeat_with(|| None).take(self.threads.len()).collect();
        control.wanted = Some(Arc::new(list));
        self.signal.changed.notify_all();
        let missing = |control: &mut Control| control.ended == 0 && control.states.iter().any(Option::is_none);
        let (mut control, _) =
            self.signal.changed.wait_timeout_while(control, ANSWER, missing).unwrap_or_else(PoisonError::into_inner);
        control.wanted = None;
        let states = std::mem::take(&mut control.states);
        states.into_iter().map(|state| state.unwrap_or(Err(StateError::Silent))).collect()
    }

    /// Asks every running vCPU where it is; what they tell comes with [`Vcpus::take_samples`].
    pub fn request_samples(&self) {
        self.signal.lock().sample.fill(true);
        self.kick();
    }

    /// What has been sampled since the last call.
    pub fn take_samples(&self) -> Vec<Sample> {
        std::mem::take(&mut self.signal.lock().samples)
    }

    fn kick(&self) {
        for thread in &self.threads {
            // A thread that has ended needs no kick.
            let _ = thread.kill(SIGRTMIN());
        }
    }
}

impl Vcpus {
    /// Ends the threads; the guest runs no more.
    pub fn stop(&mut self) {
        self.signal.lock().command = Command::Stop;
        self.signal.changed.notify_all();
        self.kick();
        for thread in self.threads.drain(..) {
            // A vCPU thread that panicked has already said so.
            let _ = thread.join();
        }
    }
}

impl Drop for Vcpus {
    fn drop(&mut self) {
        self.stop();
    }
}

struct Vcpu {
    number: usize,
    fd: VcpuFd,
    shared: Arc<Shared>,
    signal: Arc<Signal>,
}

/// Whether a vCPU goes on after an exit.
enum Next {
    Run,
    Interrupted,
    End(VcpuEnd),
}

impl Vcpu {
    fn run(mut self) {
        RUN_PAGE.set(self.fd.get_kvm_run());
        if self.obey() {
            if self.number == 0 {
                (self.shared.on_first_run)();
            }
            loop {
                match self.step() {
                    Next::Run => {}
                    Next::Interrupted => {
                        self.fd.set_kvm_immediate_exit(0);
                        if !self.obey() {
                            break;
                        }
                    }
                    Next::End(end) => {
                        (self.shared.on_end)(end);
                        self.hold_to_the_end();
                        break;
                    }
                }
            }
        }
        RUN_PAGE.set(std::ptr::null_mut());
    }

    /// Follows the command that stands; `false` ends the thread.
    fn obey(&mut self) -> bool {
        self.sample();
        let mut control = self.signal.lock();
        loop {
            match control.command {
                Command::Run => return true,
                Command::Stop => return false,
                Command::Hold => {
                    control.holding += 1;
                    self.signal.changed.notify_all();
                    let held = |control: &mut Control| control.command == Command::Hold && !self.is_asked(control);
                    control = self.signal.changed.wait_while(control, held).unwrap_or_else(PoisonError::into_inner);
                    control.holding -= 1;
                    self.tell_state(&mut control);
                }
            }
        }
    }

    /// Whether this vCPU's state is wanted and has not been told.
    fn is_asked(&self, control: &Control) -> bool {
        control.wanted.is_some() && control.states.get(self.number).is_some_and(Option::is_none)
    }

    fn tell_state(&self, control: &mut Control) {
        if self.is_asked(control)
            && let Some(list) = control.wanted.clone()
            && let Some(place) = control.states.get_mut(self.number)
        {
            *place = Some(VcpuState::take(&self.fd, &list));
        }
    }

    /// Waits to be stopped; a pause in the meantime counts this vCPU as holding.
    fn hold_to_the_end(&self) {
        let mut control = self.signal.lock();
        control.holding += 1;
        control.ended += 1;
        self.signal.changed.notify_all();
        let held = |control: &mut Control| control.command != Command::Stop;
        drop(self.signal.changed.wait_while(control, held).unwrap_or_else(PoisonError::into_inner));
    }

    fn sample(&mut self) {
        let wanted = self.signal.lock().sample.get_mut(self.number).is_some_and(std::mem::take);
        if wanted && let (Ok(regs), Ok(sregs)) = (self.fd.get_regs(), self.fd.get_sregs()) {
            let cpl = sregs.cs.dpl;
            let stack = if cpl == 0 { self.unwind(regs.rbp) } else { Vec::new() };
            self.signal.lock().samples.push(Sample { vcpu: self.number, rip: regs.rip, cpl, stack });
        }
    }

    /// Follows frame pointers from `frame`: each points at the caller's, with the return address above it.
    fn unwind(&self, mut frame: u64) -> Vec<u64> {
        let mut stack = Vec::new();
        while stack.len() < MAX_FRAMES
            && let Some((caller, address)) =
                self.read(frame).zip(frame.checked_add(8).and_then(|above| self.read(above)))
        {
            stack.push(address);
            // Stacks grow down: a caller's frame lies above, or this is no frame.
            if caller <= frame {
                break;
            }
            frame = caller;
        }
        stack
    }

    /// Eight bytes at a guest virtual address, where it is mapped.
    fn read(&self, address: u64) -> Option<u64> {
        let place = self.fd.translate_gva(address).ok().filter(|place| place.valid != 0)?;
        self.shared.memory.read_obj(GuestAddress(place.physical_address)).ok()
    }

    fn step(&mut self) -> Next {
        match self.fd.run() {
            Ok(VcpuExit::IoOut(port, data)) => self.shared.ports.write(port.into(), data),
            Ok(VcpuExit::IoIn(port, data)) => self.shared.ports.read(port.into(), data),
            Ok(VcpuExit::MmioWrite(address, data)) => self.shared.mmio.write(address, data),
            Ok(VcpuExit::MmioRead(address, data)) => self.shared.mmio.read(address, data),
            Ok(VcpuExit::Intr) => return Next::Interrupted,
            // With an in-kernel interrupt controller KVM waits itself; a HLT that reaches us is one to run over.
            Ok(VcpuExit::Hlt | VcpuExit::IrqWindowOpen) => {}
            Ok(VcpuExit::Shutdown) => return Next::End(VcpuEnd::TripleFault),
            Ok(VcpuExit::FailEntry(reason, cpu)) => return self.entry_failed(reason, cpu),
            Ok(VcpuExit::InternalError) => return self.internal_error(),
            Ok(other) => {
                let exit = format!("{other:?}");
                return self.failed("KVM stopped the guest for a reason that Coracle does not know", exit);
            }
            Err(error) => match error.errno() {
                libc::EINTR => return Next::Interrupted,
                libc::EAGAIN => {}
                errno => return self.failed("KVM cannot run the guest", io::Error::from_raw_os_error(errno)),
            },
        }
        Next::Run
    }

    fn failed(&self, what: &str, why: impl std::fmt::Display) -> Next {
        let rip = self.fd.get_regs().ok().map(|regs| regs.rip);
        let advice = "look at the host's kernel log (`dmesg`); run `coracle doctor` to see what this host's KVM can do";
        Next::End(VcpuEnd::Failed(Box::new(Failed { rip, failure: Failure::new(what, why, advice) })))
    }

    fn entry_failed(&self, reason: u64, cpu: u32) -> Next {
        let why = format!("the processor refused to enter the guest on CPU {cpu}: hardware reason {reason:#x}");
        self.failed("the guest cannot be entered", why)
    }

    /// `KVM_EXIT_INTERNAL_ERROR` (Linux `Documentation/virt/kvm/api.rst`): suberror 1 is an instruction that KVM's
    /// emulator does not know, with its bytes where the host tells them.
    fn internal_error(&mut self) -> Next {
        // SAFETY: the exit reason was KVM_EXIT_INTERNAL_ERROR, so this member of the union is the one KVM filled; both
        // views of it are plain integers.
        let (suberror, internal) = unsafe {
            let exit = &self.fd.get_kvm_run().__bindgen_anon_1;
            (exit.internal.suberror, exit.internal)
        };
        let data: Vec<u8> = internal.data.iter().flat_map(|word| word.to_le_bytes()).collect();
        let told = usize::try_from(internal.ndata).unwrap_or(0);
        // data[0] holds flags; its bit 0 says that data[1] starts with a length and the instruction's bytes.
        let bytes = match (suberror, told, data.get(8..24)) {
            (1, 2.., Some([length, bytes @ ..])) if data.first().is_some_and(|flags| flags & 1 != 0) => {
                bytes.get(..usize::from(*length).min(15)).unwrap_or_default().to_vec()
            }
            _ => Vec::new(),
        };
        let hex: Vec<_> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let why = match (suberror, bytes.is_empty()) {
            (1, false) => format!("KVM has no emulation for the instruction bytes {}", hex.join(" ")),
            (1, true) => "KVM has no emulation for an instruction".to_owned(),
            (3, _) => "an event could not be delivered to the guest".to_owned(),
            (other, _) => format!("KVM internal error {other}"),
        };
        self.failed("the guest was stopped by KVM", why)
    }
}
