// SPDX-License-Identifier: Apache-2.0
//! Between the user and the VMM: console bytes both ways, events, signals, the escape key.

use std::io::{self, BufRead, BufReader, ErrorKind, IsTerminal, Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::terminal;
use coracle::failure::Failure;
use coracle::signals;
use coracle::vmm::control::{Event, Request};
use coracle::vmm::devices::exit::GuestEnd;
use coracle::vmm::process::Vmm;

/// Ctrl-]: what telnet and virsh use.
const ESCAPE: u8 = 0x1d;

/// Bytes that a guest has not read yet and that we keep for it; beyond, we stop reading the user's input.
const MAX_TYPED: usize = 64 << 10;

/// Time in which a second signal is the same request.
const PATIENCE: Duration = Duration::from_secs(1);

const INPUT: u64 = 0;
const CONSOLE: u64 = 1;
const CONTROL: u64 = 2;
const SIGNALS: u64 = 3;

/// What happened while the guest ran.
pub enum Ending {
    /// The guest ended.
    Guest(GuestEnd),
    /// Coracle could not start it, or could not go on.
    Failed(Failure),
    /// The VMM went without a word.
    Vanished,
}

/// What standard input is.
enum Input {
    /// Readable by waiting.
    Waits,
    /// A regular file, or `/dev/null`: always readable, unknown to epoll.
    Always,
    /// At its end, or not wanted.
    Closed,
}

struct Relay<'a> {
    vmm: &'a Vmm,
    epoll: Epoll,
    input: Input,
    is_terminal: bool,
    typed: Vec<u8>,
    /// When the user first asked for the end.
    asked: Option<Instant>,
    /// Nobody reads our output any more (`coracle boot ... | head`).
    unread: bool,
}

/// Relays until the VMM says how it ended; every event goes to `tell`.
///
/// # Errors
/// The kernel's, on our own descriptors.
pub fn relay(vmm: &Vmm, signals: &OwnedFd, takes_input: bool, mut tell: impl FnMut(&Event)) -> io::Result<Ending> {
    let is_terminal = io::stdin().is_terminal();
    let mut relay = Relay {
        vmm,
        epoll: Epoll::new()?,
        input: Input::Waits,
        is_terminal,
        typed: Vec::new(),
        asked: None,
        unread: false,
    };
    vmm.console.set_nonblocking(true)?;
    relay.watch(vmm.console.as_raw_fd(), CONSOLE)?;
    relay.watch(vmm.control.as_raw_fd(), CONTROL)?;
    relay.watch(signals.as_raw_fd(), SIGNALS)?;
    relay.input = match (takes_input, relay.watch(libc::STDIN_FILENO, INPUT)) {
        (false, watched) => {
            if watched.is_ok() {
                relay.unwatch(libc::STDIN_FILENO);
            }
            Input::Closed
        }
        (true, Ok(())) => Input::Waits,
        (true, Err(error)) if error.raw_os_error() == Some(libc::EPERM) => Input::Always,
        (true, Err(_)) => Input::Closed,
    };
    relay.send_size();
    relay.run(signals, &mut tell)
}

impl Relay<'_> {
    fn watch(&self, fd: RawFd, token: u64) -> io::Result<()> {
        self.epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, token))
    }

    fn unwatch(&self, fd: RawFd) {
        // One that is not watched needs no removing.
        let _ = self.epoll.ctl(ControlOperation::Delete, fd, EpollEvent::default());
    }

    fn run(&mut self, signals: &OwnedFd, tell: &mut impl FnMut(&Event)) -> io::Result<Ending> {
        let mut events = BufReader::new(&self.vmm.control);
        loop {
            let mut ready = [EpollEvent::default(); 8];
            let always = matches!(self.input, Input::Always) && self.typed.is_empty();
            let count = match self.epoll.wait(if always { 0 } else { -1 }, &mut ready) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                other => other?,
            };
            if always {
                self.read_input()?;
            }
            for event in ready.iter().take(count) {
                match event.data() {
                    INPUT => self.read_input()?,
                    CONSOLE => self.console(event.event_set())?,
                    SIGNALS => self.signal(signals),
                    _ => {
                        if let Some(ending) = self.events(&mut events, tell)? {
                            self.drain_console()?;
                            return Ok(ending);
                        }
                    }
                }
            }
        }
    }

    fn read_input(&mut self) -> io::Result<()> {
        let mut buffer = [0; 4096];
        // SAFETY: standard input stays open for the life of the process.
        let input = unsafe { BorrowedFd::borrow_raw(libc::STDIN_FILENO) };
        let count = match rustix::io::read(input, &mut buffer) {
            Ok(count) => count,
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return Ok(()),
            // A terminal that has hung up reads as an error.
            Err(_) => 0,
        };
        if count == 0 {
            if matches!(self.input, Input::Waits) {
                self.unwatch(libc::STDIN_FILENO);
            }
            self.input = Input::Closed;
            return Ok(());
        }
        let keys = buffer.get(..count).unwrap_or_default();
        if self.is_terminal && keys.contains(&ESCAPE) {
            self.stop();
            return Ok(());
        }
        self.typed.extend(keys);
        self.write_typed()
    }

    /// Sends what was typed as far as the VMM takes it, and reads on only once it is little enough.
    fn write_typed(&mut self) -> io::Result<()> {
        while !self.typed.is_empty() {
            match (&self.vmm.console).write(&self.typed) {
                Ok(count) => drop(self.typed.drain(..count)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // The VMM has gone; how, its last event tells.
                Err(_) => self.typed.clear(),
            }
        }
        let write = if self.typed.is_empty() { EventSet::empty() } else { EventSet::OUT };
        let event = EpollEvent::new(EventSet::IN | write, CONSOLE);
        self.epoll.ctl(ControlOperation::Modify, self.vmm.console.as_raw_fd(), event)?;
        if matches!(self.input, Input::Waits) {
            let read = if self.typed.len() < MAX_TYPED { EventSet::IN } else { EventSet::empty() };
            self.epoll.ctl(ControlOperation::Modify, libc::STDIN_FILENO, EpollEvent::new(read, INPUT))?;
        }
        Ok(())
    }

    fn console(&mut self, set: EventSet) -> io::Result<()> {
        if set.contains(EventSet::OUT) {
            self.write_typed()?;
        }
        if !set.intersects(EventSet::IN | EventSet::HANG_UP | EventSet::ERROR) {
            return Ok(());
        }
        let mut buffer = [0; 16384];
        match (&self.vmm.console).read(&mut buffer) {
            Ok(0) => self.unwatch(self.vmm.console.as_raw_fd()),
            Ok(count) => self.print(buffer.get(..count).unwrap_or_default())?,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(_) => self.unwatch(self.vmm.console.as_raw_fd()),
        }
        Ok(())
    }

    /// Prints what the guest had written before it ended.
    fn drain_console(&mut self) -> io::Result<()> {
        let mut buffer = [0; 16384];
        while let Ok(count @ 1..) = (&self.vmm.console).read(&mut buffer) {
            self.print(buffer.get(..count).unwrap_or_default())?;
        }
        Ok(())
    }

    /// A console that nobody reads asks for the guest's end, as a signal does.
    fn print(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.unread {
            return Ok(());
        }
        let mut output = io::stdout().lock();
        match output.write_all(bytes).and_then(|()| output.flush()) {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {
                self.unread = true;
                self.stop();
                Ok(())
            }
            result => result,
        }
    }

    fn stop(&mut self) {
        self.asked.get_or_insert_with(Instant::now);
        self.request(&Request::Stop);
    }

    fn signal(&mut self, signals: &OwnedFd) {
        let Some(number) = signals::take(signals) else { return };
        if number == libc::SIGWINCH.unsigned_abs() {
            self.send_size();
            return;
        }
        match self.asked {
            None => self.stop(),
            // `timeout` and terminals signal a process and its group, which is one asking and not two.
            Some(when) if when.elapsed() < PATIENCE => {}
            // Asked again: the VMM does not answer, so it goes without being asked.
            Some(_) => drop(rustix::process::kill_process(self.pid(), rustix::process::Signal::KILL)),
        }
    }

    fn pid(&self) -> rustix::process::Pid {
        i32::try_from(self.vmm.pid())
            .ok()
            .and_then(rustix::process::Pid::from_raw)
            .unwrap_or_else(rustix::process::getpid)
    }

    fn send_size(&self) {
        if let Some((columns, rows)) = terminal::size() {
            self.request(&Request::Resize { columns, rows });
        }
    }

    fn request(&self, request: &Request) {
        // A VMM that has gone tells by its last event.
        let _ = request.send(&self.vmm.control);
    }

    /// Takes the events that have come; the last one is the ending.
    fn events(&self, reader: &mut BufReader<&UnixStream>, tell: &mut impl FnMut(&Event)) -> io::Result<Option<Ending>> {
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).unwrap_or(0) == 0 {
                return Ok(Some(Ending::Vanished));
            }
            // Replies to our own requests are not events.
            if let Ok(event) = serde_json::from_str::<Event>(&line) {
                tell(&event);
                match event {
                    Event::End { how } => return Ok(Some(Ending::Guest(how))),
                    Event::Failed(failure) => return Ok(Some(Ending::Failed(failure))),
                    Event::Stage(_) | Event::Samples { .. } => {}
                }
            }
            if reader.buffer().is_empty() {
                return Ok(None);
            }
        }
    }
}
