// SPDX-License-Identifier: Apache-2.0
//! The life of a running microVM: one thread that waits for devices, clients, signals, and the guest's end.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};
use vmm_sys_util::epoll::EventSet;

use super::control::{Connection, Event, Reply, Request};
use super::devices::exit::GuestEnd;
use super::event_loop::Token;
use super::jail::Jail;
use super::machine::Machine;
use super::snapshot::{self, Scope};
use super::wakeups::Wakeups;
use crate::failure::Failure;

/// Numbers of the machine's own descriptors in its event set; clients follow from [`CLIENTS`] on.
const EXIT: u32 = 0;
const NEWS: u32 = 1;
const SIGNALS: u32 = 2;
const LISTENER: u32 = 3;
const CONSOLE_INPUT: u32 = 4;
const CONSOLE_TIMER: u32 = 5;
const OWNER: u32 = 6;
const CLIENTS: u32 = 7;
/// The machine's event set inside the devices' one.
const NESTED: u32 = u32::MAX;

/// Clients of the control socket at a time, besides the owner.
const MAX_CLIENTS: usize = 16;

/// What comes with a VM into its loop.
pub struct Company {
    /// The process that started this one.
    pub owner: Option<Connection>,
    /// Where others connect, and the path to remove at the end.
    pub listener: Option<(UnixListener, PathBuf)>,
    /// Gives a signal that asks this process to end.
    pub signals: OwnedFd,
}

struct Runner {
    machine: Machine,
    owner: Option<Connection>,
    clients: Vec<Option<Connection>>,
    listener: Option<UnixListener>,
    signals: OwnedFd,
    paused: bool,
    next_sample: Option<Instant>,
    end: Option<Result<GuestEnd, Failure>>,
}

/// Runs the VM to its end and tells the owner how it was.
///
/// # Errors
/// The guest could not go on; or the event loop itself failed.
pub fn run(machine: Machine, company: Company) -> Result<GuestEnd, Failure> {
    let Company { owner, listener, signals } = company;
    let (listener, socket) = listener.map_or((None, None), |(listener, path)| (Some(listener), Some(path)));
    let mut runner =
        Runner { machine, owner, clients: Vec::new(), listener, signals, paused: false, next_sample: None, end: None };
    let no_files = |error| Failure::new("cannot run the guest", error, "raise the limit of open files (`ulimit -n`)");
    let config = runner.machine.config();
    let (jail, vsock) = (config.jail, config.vsock.is_some());
    let result = runner.watch().map_err(no_files).and_then(|()| jail.close(vsock)).and_then(|()| runner.serve());
    runner.machine.stop();
    runner.tell_news();
    if let Some(owner) = &mut runner.owner {
        let last = match &result {
            Ok(how) => Event::End { how: *how },
            Err(failure) => Event::Failed(failure.clone()),
        };
        // An owner that has gone learns it from the exit status, if at all.
        let _ = owner.send(&last);
    }
    // The owner of one in a full jail removes it.
    if let Some(path) = socket.filter(|_| jail != Jail::Full) {
        // Somebody else may have removed it already.
        let _ = std::fs::remove_file(path);
    }
    result
}

impl Runner {
    fn watch(&self) -> std::io::Result<()> {
        let (own, devices) = (&self.machine.events, &self.machine.device_events);
        let add = |fd, what| own.add(fd, EventSet::IN, Token::Machine(what));
        add(self.machine.exit.as_raw_fd(), EXIT)?;
        add(self.machine.news.as_raw_fd(), NEWS)?;
        add(self.signals.as_raw_fd(), SIGNALS)?;
        if let Some(listener) = &self.listener {
            add(listener.as_raw_fd(), LISTENER)?;
        }
        if let Some(owner) = &self.owner {
            add(owner.as_raw_fd(), OWNER)?;
        }
        if let Some(serial) = &self.machine.serial {
            devices.add(serial.timer(), EventSet::IN, Token::Machine(CONSOLE_TIMER))?;
            match devices.add(serial.input(), EventSet::IN | EventSet::EDGE_TRIGGERED, Token::Machine(CONSOLE_INPUT)) {
                // A regular file is no thing to wait for: what it holds is there now.
                Err(error) if error.raw_os_error() == Some(libc::EPERM) => drop(serial.feed()),
                other => other?,
            }
        }
        devices.add(own.as_raw_fd(), EventSet::IN, Token::Machine(NESTED))
    }

    fn serve(&mut self) -> Result<GuestEnd, Failure> {
        self.machine.vcpus.resume();
        self.next_sample = self.machine.sample_interval.map(|interval| Instant::now() + interval);
        let broken = |error| Failure::new("the event loop failed", error, "look at the host's kernel log (`dmesg`)");
        let mut wakeups = Wakeups::of_this_thread();
        loop {
            if let Some(end) = self.end.take() {
                return end;
            }
            let timeout = self.sample();
            let mut ready = Vec::new();
            // A paused VM's devices are left alone: their set is not waited on.
            let events = if self.paused { &self.machine.events } else { &self.machine.device_events };
            events.wait(timeout, |token, set| ready.push((token, set))).map_err(broken)?;
            for (token, set) in ready {
                self.dispatch(token, set).map_err(broken)?;
            }
            wakeups.look();
        }
    }

    fn dispatch(&mut self, token: Token, set: EventSet) -> std::io::Result<()> {
        match token {
            Token::Queue { device, queue } => {
                if let Some(transport) = self.machine.transports.get(usize::from(device)) {
                    transport.queue_event(queue);
                }
            }
            Token::Device { device, source } => {
                if let Some(transport) = self.machine.transports.get(usize::from(device)) {
                    transport.source_event(source, set);
                }
            }
            Token::Machine(NESTED) => {
                let mut ready = Vec::new();
                self.machine.events.wait(0, |token, set| ready.push((token, set)))?;
                for (token, set) in ready {
                    self.dispatch(token, set)?;
                }
            }
            Token::Machine(EXIT) => self.guest_ended(),
            Token::Machine(NEWS) => self.tell_news(),
            Token::Machine(SIGNALS) => self.end = Some(Ok(GuestEnd::Stopped)),
            Token::Machine(LISTENER) => self.accept(),
            Token::Machine(CONSOLE_INPUT) => {
                if let Some(serial) = &self.machine.serial
                    && !serial.feed()
                {
                    self.machine.device_events.remove(serial.input());
                }
            }
            Token::Machine(CONSOLE_TIMER) => {
                if let Some(serial) = &self.machine.serial {
                    serial.flush();
                }
            }
            Token::Machine(OWNER) => self.owner_event(set),
            Token::Machine(client) => self.client_event(client, set),
        }
        Ok(())
    }

    fn guest_ended(&mut self) {
        let failure = self.machine.failure().map(Err);
        self.end = failure.or_else(|| self.machine.exit.reason().map(Ok));
    }

    /// Kicks the vCPUs when it is time; gives milliseconds until the next time, -1 for never.
    fn sample(&mut self) -> i32 {
        let (Some(interval), Some(next)) = (self.machine.sample_interval, self.next_sample) else {
            return -1;
        };
        let now = Instant::now();
        if now >= next && !self.paused {
            let samples = self.machine.vcpus.take_samples();
            if !samples.is_empty() {
                self.tell_owner(&Event::Samples { samples });
            }
            self.machine.vcpus.request_samples();
            self.next_sample = Some(now + interval);
        }
        let left = self.next_sample.map_or(Duration::ZERO, |next| next.saturating_duration_since(now));
        // Rounded up: a timeout of zero would spin until the time has come.
        i32::try_from(left.as_micros().div_ceil(1000)).unwrap_or(i32::MAX)
    }

    fn tell_news(&mut self) {
        // Another event may have emptied the counter; the marks are what counts.
        let _ = self.machine.news.read();
        for mark in self.machine.stages.untold() {
            self.tell_owner(&Event::Stage(mark));
        }
    }

    fn tell_owner(&mut self, event: &Event) {
        let Some(owner) = &mut self.owner else { return };
        match owner.send(event) {
            Ok(()) => self.rearm(OWNER),
            Err(_) => self.owner_gone(),
        }
    }

    fn owner_gone(&mut self) {
        self.owner = None;
        self.end.get_or_insert(Ok(GuestEnd::Stopped));
    }

    fn owner_event(&mut self, set: EventSet) {
        let Some(mut owner) = self.owner.take() else { return };
        if self.converse(&mut owner, set) {
            self.owner = Some(owner);
            self.rearm(OWNER);
        } else {
            self.owner_gone();
        }
    }

    fn client_event(&mut self, token: u32, set: EventSet) {
        let slot = usize::try_from(token - CLIENTS).unwrap_or(usize::MAX);
        let Some(mut client) = self.clients.get_mut(slot).and_then(Option::take) else { return };
        if self.converse(&mut client, set)
            && let Some(place) = self.clients.get_mut(slot)
        {
            *place = Some(client);
            self.rearm(token);
        }
    }

    /// Waits for room to write only where something is left to write.
    fn rearm(&self, token: u32) {
        let connection = match token {
            OWNER => self.owner.as_ref(),
            client => usize::try_from(client - CLIENTS).ok().and_then(|slot| self.clients.get(slot)?.as_ref()),
        };
        if let Some(connection) = connection {
            let write = if connection.is_behind() { EventSet::OUT } else { EventSet::empty() };
            // A connection that cannot be watched has been closed, which the next read tells.
            let _ = self.machine.events.change(connection.as_raw_fd(), EventSet::IN | write, Token::Machine(token));
        }
    }

    fn accept(&mut self) {
        let Some(Ok((stream, _))) = self.listener.as_ref().map(UnixListener::accept) else { return };
        let slot = self.clients.iter().position(Option::is_none).unwrap_or(self.clients.len());
        if slot >= MAX_CLIENTS {
            return;
        }
        if let (Ok(client), Ok(number)) = (Connection::new(stream), u32::try_from(slot)) {
            let token = Token::Machine(CLIENTS + number);
            if self.machine.events.add(client.as_raw_fd(), EventSet::IN, token).is_ok() {
                self.clients.resize_with(self.clients.len().max(slot + 1), || None);
                if let Some(place) = self.clients.get_mut(slot) {
                    *place = Some(client);
                }
            }
        }
    }

    /// Reads requests and answers them; `false` where the client has gone.
    fn converse(&mut self, client: &mut Connection, set: EventSet) -> bool {
        if set.contains(EventSet::OUT) && client.flush().is_err() {
            return false;
        }
        if !set.intersects(EventSet::IN | EventSet::HANG_UP | EventSet::ERROR) {
            return true;
        }
        let Ok(lines) = client.receive() else { return false };
        lines.iter().all(|line| {
            let reply = match serde_json::from_slice::<Request>(line) {
                Ok(Request::Snapshot { memory }) => self.snapshot(client.take_files(), memory),
                Ok(request) => self.answer(&request),
                Err(error) => Reply::Error(format!("not a request: {error}")),
            };
            client.send(&reply).is_ok()
        })
    }

    fn answer(&mut self, request: &Request) -> Reply {
        let done = Reply::Ok(Value::Null);
        match request {
            Request::Info => {
                let mut info = self.machine.info();
                info.insert("state".into(), if self.paused { "paused" } else { "running" }.into());
                Reply::Ok(Value::Object(info))
            }
            Request::Metrics => Reply::Ok(Value::Object(self.metrics())),
            Request::Pause => match self.machine.vcpus.pause() {
                Ok(()) => {
                    self.paused = true;
                    done
                }
                Err(error) => Reply::Error(does_not_stop(&error)),
            },
            Request::Snapshot { memory } => self.snapshot(None, *memory),
            Request::Resume => {
                self.paused = false;
                self.machine.vcpus.resume();
                done
            }
            Request::Stop => {
                self.end = Some(Ok(GuestEnd::Stopped));
                done
            }
            Request::Balloon { target_mib } => match &self.machine.handles.balloon {
                Some(balloon) => {
                    balloon.set_target_mib(*target_mib).map_or_else(|error| Reply::Error(error.to_string()), |()| done)
                }
                None => Reply::Error("this microVM has no balloon".to_owned()),
            },
            Request::Resize { columns, rows } => match &self.machine.handles.console {
                Some(console) => {
                    console.resize(*columns, *rows);
                    done
                }
                None => Reply::Error("this microVM has no virtio console".to_owned()),
            },
        }
    }

    /// Takes a snapshot into these files; a guest that ran goes on.
    fn snapshot(&mut self, files: Option<[File; 2]>, scope: Scope) -> Reply {
        let Some([state, memory]) = files else {
            return Reply::Error(
                "a snapshot needs two descriptors with the request: of its state and of its memory".into(),
            );
        };
        if let Err(error) = self.machine.vcpus.pause() {
            return Reply::Error(does_not_stop(&error));
        }
        let taken = snapshot::take(&self.machine, &state, &memory, scope);
        if !self.paused {
            self.machine.vcpus.resume();
        }
        match taken.map(|taken| serde_json::to_value(&taken)) {
            Ok(Ok(taken)) => Reply::Ok(taken),
            Ok(Err(error)) => Reply::Error(error.to_string()),
            Err(error) => Reply::Error(error.to_string()),
        }
    }

    fn metrics(&self) -> Map<String, Value> {
        let mut metrics = Map::new();
        let counters = self.machine.stages.counters();
        metrics.insert("vcpu0_exits".into(), json!(counters.and_then(|counters| counters.exits())));
        let emulated = counters.and_then(|counters| counters.emulated_instructions());
        metrics.insert("vcpu0_emulated_instructions".into(), json!(emulated));
        metrics.insert("unclaimed_accesses".into(), json!(self.machine.unclaimed_accesses()));
        for (number, transport) in self.machine.transports.iter().enumerate() {
            let (name, values) = transport.metrics();
            let values: Map<_, _> = values.into_iter().map(|(name, value)| (name.to_owned(), value.into())).collect();
            metrics.insert(format!("{number}-{name}"), Value::Object(values));
        }
        if let Some(balloon) = &self.machine.handles.balloon {
            // What the guest said last; the next request sees what it answers to this one.
            metrics.insert("guest_memory".into(), json!(balloon.statistics()));
            balloon.request_statistics();
        }
        metrics
    }
}

fn does_not_stop(error: &std::io::Error) -> String {
    format!("a vCPU does not stop: {error}")
}

/// Connects the owner's socket, which it handed over as descriptor number `fd`.
///
/// # Errors
/// Where it is no descriptor of this process.
pub fn adopt_owner(fd: i32) -> std::io::Result<UnixStream> {
    use std::os::fd::FromRawFd;
    // SAFETY: F_GETFD only asks whether `fd` is open.
    if fd < 3 || unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return Err(std::io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: `fd` is open, was handed to this process for this purpose, and nothing else here knows its number.
    Ok(unsafe { UnixStream::from_raw_fd(fd) })
}
