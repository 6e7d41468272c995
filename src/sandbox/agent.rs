// SPDX-License-Identifier: Apache-2.0
//! The agent in a guest, as the host speaks to it: processes are started, and then heard of.

use std::hash::{BuildHasher, RandomState};
use std::io::{self, Read};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use coracle_protocol::{
    AGENT_PORT, Adopt, Assembly, CallError, Channel, Container, Ended, ErrorCode, Message, Process, ProcessFacts,
    Renew, Resize, Shutdown, ShutdownMode, Signal, Start, Streams, Task, Text, Usage, WindowSize, connect_hybrid_vsock,
    read_frame, write_frame,
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::failure::{EXIT_FAILURE, Failure};
use crate::vmm::clock::realtime_ns;
use crate::vmm::devices::virtio::net::MacAddress;
use crate::vmm::devices::virtio::rng::random;

/// How long a guest may say nothing, at its start or at any step later. An emulated one needs ten seconds for the longest,
/// and minutes where its host has much else to do; one that has ended is heard of at once.
pub(super) const PATIENCE: Duration = Duration::from_secs(600);
/// How long an agent may take to read what it is told meanwhile.
const TOLD: Duration = Duration::from_secs(5);
/// Messages beyond the answers to ours that an agent may send before the one that is waited for.
const MAX_PASSED_OVER: u32 = 64;
/// Ports below are for what is agreed upon, such as the agent's own.
const FIRST_PORT: u32 = 1 << 16;
/// Random bytes for a guest that is to be one of its own: the size of its generator's key.
const ENTROPY: usize = 32;
const NOT_RENEWED: &str = "cannot make the restored guest one of its own";
/// How many ports are tried before one is found that is free.
const PORTS_TRIED: u32 = 64;
/// Exit statuses of the shell, and Docker, for a program that cannot be executed and for one that is not there.
const NOT_EXECUTABLE: u8 = 126;
const NOT_FOUND: u8 = 127;

const LOOK: &str = "`coracle boot` with the same kernel and `guest/console.cpio`, to see what the guest says";

/// One connection to an agent.
#[derive(Debug)]
pub struct Agent {
    channel: Channel<UnixStream>,
    /// The VMM's socket.
    vsock: PathBuf,
}

/// What to start.
#[derive(Clone, Debug, Default)]
pub struct ProcessStart {
    /// The container to make for it; `None` for a process in the one that runs.
    pub container: Option<Container>,
    /// The process.
    pub process: Process,
    /// What it does.
    pub task: Task,
    /// Whether it has something to read.
    pub stdin: bool,
    /// Whether anyone wants to know what it writes.
    pub output: bool,
}

/// Why a process did not run, and the exit status that tells it.
#[derive(Debug)]
pub struct NotRun {
    /// For people.
    pub failure: Failure,
    /// 125, 126 or 127.
    pub status: u8,
}

impl From<Failure> for NotRun {
    fn from(failure: Failure) -> Self {
        Self { failure, status: EXIT_FAILURE }
    }
}

/// A process that runs.
#[derive(Debug)]
pub struct Running {
    /// What it reads; to close it, or to shut it down for writing, is the end of its input.
    pub stdin: Option<UnixStream>,
    /// What it writes, to the end. With a terminal that is all.
    pub stdout: Option<UnixStream>,
    /// What it writes of errors.
    pub stderr: Option<Errors>,
    /// For telling it things.
    pub handle: Handle,
    reader: UnixStream,
    /// Errors that come once it has ended come no more.
    awaited: Option<Awaited>,
}

/// What a process writes of errors, to the end. Its guest connects when there is something; reading waits for that, or for
/// [`Running`] to see the process end, or to be dropped.
#[derive(Debug)]
pub struct Errors {
    port: Port,
    stream: Option<UnixStream>,
}

/// Ends a wait for a connection.
#[derive(Debug)]
struct Awaited(UnixListener);

impl Drop for Awaited {
    fn drop(&mut self) {
        // What has connected by now is taken all the same.
        let _ = rustix::net::shutdown(&self.0, rustix::net::Shutdown::Read);
    }
}

impl Read for Errors {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let stream = match &mut self.stream {
            Some(stream) => stream,
            none => match self.port.listener.accept() {
                Ok((stream, _)) => none.insert(stream),
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => return Ok(0),
                Err(error) => return Err(error),
            },
        };
        stream.read(buffer)
    }
}

/// A way to tell a running process things, from any thread.
#[derive(Clone, Debug)]
pub struct Handle(Arc<Teller>);

#[derive(Debug)]
struct Teller {
    stream: Mutex<UnixStream>,
    /// Id of its `Start`.
    process: u32,
    /// Requests since.
    told: AtomicU32,
}

impl Agent {
    /// Connects through the socket of a VMM, on which any process may.
    ///
    /// # Errors
    /// Nobody listens, or the other side is no agent of this release.
    pub fn connect(vsock: &Path) -> Result<Self, Failure> {
        Self::connect_asking(vsock, &[])
    }

    fn connect_asking(vsock: &Path, requests: &[Message]) -> Result<Self, Failure> {
        let connected = connect_hybrid_vsock(vsock, AGENT_PORT, PATIENCE);
        let unreached = |error: io::Error| Failure::new("cannot reach the agent in the guest", error, LOOK);
        let stream = connected.map_err(|error| silent(&error).unwrap_or_else(|| unreached(error)))?;
        let channel = Channel::open_asking(stream, concat!("coracle ", env!("CARGO_PKG_VERSION")), requests);
        let unheard = |error: CallError| Failure::new("cannot talk to the agent in the guest", error, LOOK);
        let channel = channel.map_err(|error| error.io().and_then(silent).unwrap_or_else(|| unheard(error)))?;
        Ok(Self { channel, vsock: vsock.to_owned() })
    }

    /// Whether there is somebody at the other end. A VMM that is killed closes it before it can be waited for.
    pub(super) fn is_connected(&self) -> bool {
        let gone = PollFlags::HUP | PollFlags::ERR | PollFlags::RDHUP;
        let mut watched = [PollFd::new(self.channel.stream(), PollFlags::RDHUP)];
        poll(&mut watched, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok() && !watched[0].revents().intersects(gone)
    }

    /// The VMM's socket is elsewhere now.
    pub(super) fn moved(&mut self, vsock: &Path) {
        vsock.clone_into(&mut self.vsock);
    }

    /// Makes a guest that was restored one of its own, as [`Agent::renew`] does, and has it start a process, with as few
    /// turns of the guest as can be: all is said at once.
    ///
    /// # Errors
    /// Nobody listens, the other side is no agent of this release, or it cannot be renewed: then nothing is started.
    pub fn renew_and_start(vsock: &Path, cards: &[MacAddress], start: ProcessStart) -> Result<Starting, Failure> {
        let (ports, start) = Ports::bind(vsock, start)?;
        let program = program(&start);
        let mut agent = Self::connect_asking(vsock, &[renewal(None, cards)?, start])?;
        match agent.channel.next_answer() {
            Ok(Message::Ack) => Ok(Starting { agent, ports, program }),
            Ok(_) => Err(lost("it answered something else")),
            Err(error) => Err(not_done(NOT_RENEWED, error)),
        }
    }

    /// Starts a process, and gives its streams once its program runs.
    ///
    /// # Errors
    /// [`NotRun`].
    pub fn start(mut self, start: ProcessStart) -> Result<Running, NotRun> {
        let (ports, start) = Ports::bind(&self.vsock, start)?;
        let started = self.channel.call(&start);
        self.running(started, ports, &program(&start))
    }

    /// Has the container that was in the snapshot go on, and gives the streams of its first process: what it reads, where
    /// it had that then, and what it writes.
    ///
    /// # Errors
    /// [`NotRun`].
    pub fn adopt(mut self, adopt: Adopt, stdin: bool, terminal: bool) -> Result<Running, NotRun> {
        let ports = Ports::bind_some(&self.vsock, [stdin, true, !terminal])?;
        let request = Message::Adopt(Box::new(Adopt { streams: ports.numbers(), ..adopt }));
        let started = self.channel.call(&request);
        self.running(started, ports, b"the container of the snapshot")
    }

    /// What came of a start.
    fn running(self, started: Result<Message, CallError>, ports: Ports, program: &[u8]) -> Result<Running, NotRun> {
        match started {
            Ok(Message::Started) => {}
            Ok(_) => return Err(lost("it answered something else").into()),
            Err(CallError::Refused(refused)) => return Err(not_started(program, &refused)),
            Err(CallError::Write(error)) if error.kind() == io::ErrorKind::InvalidInput => {
                return Err(too_long(program));
            }
            Err(error) => return Err(error.io().and_then(silent).unwrap_or_else(|| lost(error)).into()),
        }
        let (stream, process) = self.channel.into_parts();
        let prepared = stream.set_read_timeout(None).and_then(|()| stream.set_write_timeout(Some(TOLD)));
        let teller = prepared.and_then(|()| stream.try_clone()).map_err(lost)?;
        let awaited = ports.stderr.as_ref().map(|port| port.listener.try_clone()).transpose().map_err(lost)?;
        Ok(Running {
            stdin: ports.stdin.map(Port::accept).transpose()?,
            stdout: ports.stdout.map(Port::accept).transpose()?,
            stderr: ports.stderr.map(|port| Errors { port, stream: None }),
            awaited: awaited.map(Awaited),
            handle: Handle(Arc::new(Teller { stream: Mutex::new(teller), process, told: AtomicU32::new(0) })),
            reader: stream,
        })
    }
}

impl Agent {
    /// Makes a guest that was restored from a snapshot one of its own: its random numbers, its clock, its name where one
    /// is given, and the addresses of its network cards, in order. To be done before anything is started in it.
    ///
    /// # Errors
    /// The agent cannot, or has gone; or this host has no randomness.
    pub fn renew(&mut self, hostname: Option<&str>, cards: &[MacAddress]) -> Result<(), Failure> {
        self.ask(NOT_RENEWED, &renewal(hostname, cards)?).map(drop)
    }

    /// Has it mount what containers need, for a snapshot to be taken next.
    ///
    /// # Errors
    /// It cannot, or has gone.
    pub fn prepare(&mut self) -> Result<(), Failure> {
        self.ask("cannot prepare the guest", &Message::Prepare).map(drop)
    }

    /// Has it make a container ahead, for a snapshot to be taken next.
    ///
    /// # Errors
    /// It cannot, or has gone.
    pub fn assemble(&mut self, assembly: &Assembly) -> Result<(), Failure> {
        self.ask("cannot make a container ahead", &Message::Assemble(Box::new(assembly.clone()))).map(drop)
    }

    /// Stops all processes of the container where they are, or lets them go on.
    ///
    /// # Errors
    /// No container runs, or the agent has gone.
    pub fn pause(&mut self, paused: bool) -> Result<(), Failure> {
        let (what, message) = match paused {
            true => ("cannot pause the container", Message::Pause),
            false => ("cannot resume the container", Message::Resume),
        };
        self.ask(what, &message).map(drop)
    }

    /// Sends a signal to every process of the container.
    ///
    /// # Errors
    /// No container runs, or the agent has gone.
    pub fn signal_all(&mut self, signal: u8) -> Result<(), Failure> {
        self.ask("cannot send a signal", &Message::Signal(Signal { process: 0, signal, all: true })).map(drop)
    }

    /// Has the guest give up what it only keeps in case it is read again, for its free page reporting to give to the host.
    ///
    /// # Errors
    /// No container runs, or the agent has gone.
    pub fn reclaim(&mut self) -> Result<(), Failure> {
        self.ask("cannot have the guest give up its caches", &Message::Reclaim).map(drop)
    }

    /// What the container uses, as its guest says.
    ///
    /// # Errors
    /// No container runs, or the agent has gone.
    pub fn usage(&mut self) -> Result<Usage, Failure> {
        match self.ask("cannot tell what the container uses", &Message::Stats)? {
            Message::Usage(usage) => Ok(usage),
            _ => Err(lost("it answered something else")),
        }
    }

    /// Which processes the container has, as its guest says.
    ///
    /// # Errors
    /// No container runs, or the agent has gone.
    pub fn processes(&mut self) -> Result<Vec<ProcessFacts>, Failure> {
        match self.ask("cannot tell which processes the container has", &Message::Top)? {
            Message::Processes(processes) => Ok(processes.list),
            _ => Err(lost("it answered something else")),
        }
    }

    /// Ends the guest: its processes, within this time, then for certain, and what it has on disks is written there.
    ///
    /// # Errors
    /// The agent has gone.
    pub fn shut_down(&mut self, grace: Duration) -> Result<(), Failure> {
        let grace_ms = u32::try_from(grace.as_millis()).unwrap_or(u32::MAX);
        let shutdown = Shutdown { mode: ShutdownMode::PowerOff, grace_ms };
        self.ask("cannot shut the guest down", &Message::Shutdown(shutdown)).map(drop)
    }

    fn ask(&mut self, what: &str, question: &Message) -> Result<Message, Failure> {
        self.channel.call(question).map_err(|error| not_done(what, error))
    }
}

/// A process that an agent has been asked to start.
pub struct Starting {
    agent: Agent,
    ports: Ports,
    program: Vec<u8>,
}

impl Starting {
    /// Waits until its program runs.
    ///
    /// # Errors
    /// [`NotRun`].
    pub fn finish(mut self) -> Result<Running, NotRun> {
        let started = self.agent.channel.next_answer();
        self.agent.running(started, self.ports, &self.program)
    }
}

/// What is said to a guest that was restored.
fn renewal(hostname: Option<&str>, cards: &[MacAddress]) -> Result<Message, Failure> {
    let mut entropy = vec![0; ENTROPY];
    random(&mut entropy).map_err(|error| Failure::new(NOT_RENEWED, error, "a newer host kernel"))?;
    let macs = cards.iter().map(|mac| mac.bytes()).collect();
    Ok(Message::Renew(Renew { entropy, realtime_ns: realtime_ns(), hostname: hostname.map(Text::new), macs }))
}

impl Running {
    /// Waits for its end. What it has written is complete once its streams have been read to their end, which then is
    /// near even where it has left others running that have them too.
    ///
    /// # Errors
    /// The agent, or the whole guest, has gone.
    pub fn wait(&mut self) -> Result<Ended, Failure> {
        let ended = self.hear_of_end();
        self.awaited = None;
        ended
    }

    fn hear_of_end(&mut self) -> Result<Ended, Failure> {
        let mut passed_over = 0;
        loop {
            let frame = read_frame(&mut self.reader).map_err(lost)?.ok_or_else(|| lost("it closed the connection"))?;
            let message = Message::from_frame(&frame).map_err(lost)?;
            match message {
                Message::Ended(ended) if frame.id == self.handle.0.process => return Ok(ended),
                Message::Ping(ping) => self.handle.0.send(frame.id, &Message::Pong(ping)).map_err(lost)?,
                _ => {}
            }
            passed_over += 1;
            if passed_over > MAX_PASSED_OVER + self.handle.0.told.load(Ordering::Relaxed) {
                return Err(lost("it says much and means nothing: it cannot be trusted"));
            }
        }
    }
}

impl Handle {
    /// Sends the signal with this number. One to a process that has just ended is no error.
    ///
    /// # Errors
    /// The agent has gone, or does not listen.
    pub fn signal(&self, signal: u8) -> Result<(), Failure> {
        self.tell(&Message::Signal(Signal { process: self.0.process, signal, all: false }))
    }

    /// Says how large its terminal is now, in characters.
    ///
    /// # Errors
    /// The agent has gone, or does not listen.
    pub fn resize(&self, rows: u16, columns: u16) -> Result<(), Failure> {
        self.tell(&Message::Resize(Resize { process: self.0.process, size: WindowSize { rows, columns } }))
    }

    /// Asks for something; its answer is passed over by [`Running::wait`].
    fn tell(&self, message: &Message) -> Result<(), Failure> {
        let told = self.0.told.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        // Any number but 0 and that of the process, whose end is what is waited for.
        let id = Some(self.0.process.wrapping_add(told)).filter(|id| *id != 0).unwrap_or(u32::MAX);
        self.0.send(id, message).map_err(lost)
    }
}

impl Teller {
    fn send(&self, id: u32, message: &Message) -> io::Result<()> {
        let frame = message.to_frame(id).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        write_frame(&mut *self.stream.lock().unwrap_or_else(PoisonError::into_inner), &frame)
    }
}

fn not_done(what: &str, error: CallError) -> Failure {
    match error {
        CallError::Refused(refused) => Failure::new(what, refused.message.as_str(), "`coracle ps`, to see what runs"),
        error => error.io().and_then(silent).unwrap_or_else(|| lost(error)),
    }
}

/// A guest from which nothing is heard, if that is what the error of its socket says. The system's words for it are
/// "Resource temporarily unavailable".
pub(super) fn silent(error: &io::Error) -> Option<Failure> {
    let passed = matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut);
    passed.then(silence)
}

/// Nothing has been heard from a guest for as long as can be waited for.
pub(super) fn silence() -> Failure {
    let why =
        format!("nothing was heard from it for {} s: it hangs, or this host has too much to do", PATIENCE.as_secs());
    let advice =
        "again when `uptime` tells of less load, with fewer VMs at once; else `coracle boot` to see its console";
    Failure::new("the container's microVM does not answer", why, advice)
}

/// What is to be run, for messages.
fn program(start: &Message) -> Vec<u8> {
    match start {
        Message::Start(start) => start.process.arguments.first().cloned().unwrap_or_default(),
        _ => Vec::new(),
    }
}

/// Where the streams of a process that is about to start are awaited.
struct Ports {
    stdin: Option<Port>,
    stdout: Option<Port>,
    stderr: Option<Port>,
}

impl Ports {
    /// Those that it needs, and the start that names them.
    fn bind(vsock: &Path, start: ProcessStart) -> Result<(Self, Message), Failure> {
        let errors_apart = start.output && start.process.terminal.is_none();
        let ports = Self::bind_some(vsock, [start.stdin, start.output, errors_apart])?;
        let streams = ports.numbers();
        let request = Start { container: start.container, process: start.process, streams, task: start.task };
        Ok((ports, Message::Start(Box::new(request))))
    }

    /// One for each stream that is wanted: input, output, errors.
    fn bind_some(vsock: &Path, wanted: [bool; 3]) -> Result<Self, Failure> {
        let [stdin, stdout, stderr] = wanted.map(|wanted| wanted.then(|| Port::bind(vsock)).transpose());
        Ok(Self { stdin: stdin?, stdout: stdout?, stderr: stderr? })
    }

    fn numbers(&self) -> Streams {
        let number = |port: &Option<Port>| port.as_ref().map(|port| port.number);
        Streams { stdin: number(&self.stdin), stdout: number(&self.stdout), stderr: number(&self.stderr) }
    }
}

/// A port of the host's on which a guest's connection is awaited; its name is gone with it.
#[derive(Debug)]
struct Port {
    number: u32,
    listener: UnixListener,
    path: PathBuf,
}

impl Port {
    /// Takes one that is free: others may be starting processes in this guest too.
    fn bind(vsock: &Path) -> Result<Self, Failure> {
        let mut outcome = Ok(());
        for attempt in 0..PORTS_TRIED {
            // A random number, since a hasher's keys are.
            let [a, b, c, d, ..] = RandomState::new().hash_one(attempt).to_ne_bytes();
            let number = u32::from_ne_bytes([a, b, c, d]) | FIRST_PORT;
            let mut name = vsock.as_os_str().to_owned();
            name.push(format!("_{number}"));
            let path = PathBuf::from(name);
            match UnixListener::bind(&path) {
                Ok(listener) => return Ok(Self { number, listener, path }),
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => outcome = Err(error),
                Err(error) => return Err(no_port(error)),
            }
        }
        Err(no_port(outcome.err().unwrap_or_else(|| io::ErrorKind::AddrInUse.into())))
    }

    /// The agent has connected by the time it says `Started`.
    fn accept(self) -> Result<UnixStream, Failure> {
        // One that has not is not waited for.
        self.listener.set_nonblocking(true).map_err(lost)?;
        let (stream, _) = self.listener.accept().map_err(lost)?;
        Ok(stream)
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        // Nothing is to be done about a folder that is gone or no longer ours.
        let _ = std::fs::remove_file(&self.path);
    }
}

fn no_port(error: io::Error) -> Failure {
    Failure::new("cannot make a socket for the process's streams", error, "look at the folder of the VMM's sockets")
}

fn lost(seen: impl std::fmt::Display) -> Failure {
    Failure::new("the agent in the guest has failed", seen, LOOK)
}

fn too_long(program: &[u8]) -> NotRun {
    let what = format!("cannot run `{}` in the container", String::from_utf8_lossy(program));
    let why = "its arguments and environment are too long";
    NotRun { failure: Failure::new(what, why, "fewer of them, or a file with their content"), status: NOT_EXECUTABLE }
}

fn not_started(program: &[u8], refused: &coracle_protocol::Failure) -> NotRun {
    let what = format!("cannot run `{}` in the container", String::from_utf8_lossy(program));
    let (status, advice) = match refused.code {
        ErrorCode::NOT_FOUND => (NOT_FOUND, "another command, or the program's full path"),
        ErrorCode::NOT_EXECUTABLE => (NOT_EXECUTABLE, "a file with the execute bit, for this architecture"),
        _ => (EXIT_FAILURE, "other flags; `coracle inspect IMAGE` shows what the image asks for"),
    };
    NotRun { failure: Failure::new(what, refused.message.as_str(), advice), status }
}
