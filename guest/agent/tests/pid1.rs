// SPDX-License-Identifier: Apache-2.0
//! The agent as PID 1 of a PID namespace on this machine, with a unix socket for vsock and a file for `/dev/port`.
//!
//! This program is both the tests and, when called with `init DIRECTORY`, that PID 1.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use coracle_agent::{Agent, IoPorts, end};
use coracle_protocol::{
    CallError, Channel, ErrorCode, Frame, Hello, Message, PVPANIC_PORT, PVPANIC_SHUTDOWN, Ping, Resize, Shutdown,
    ShutdownMode, Signal, Text, Usage, VERSIONS, Versions, WindowSize, read_frame, write_frame,
};
use libtest_mimic::{Arguments, Failed, Trial};

const PATIENCE: Duration = Duration::from_secs(20);
const SIGHUP: i32 = 1;
const SIGINT: i32 = 2;

fn main() {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_some_and(|first| first == "init") {
        init(Path::new(&arguments.next().expect("a directory")));
    }
    let tests: [(&str, fn()); 11] = [
        ("a_session_ends_with_power_off", a_session_ends_with_power_off),
        ("reboot_is_not_power_off", reboot_is_not_power_off),
        ("poweroff_and_reboot_turn_to_pid_1", poweroff_and_reboot_turn_to_pid_1),
        ("what_is_unknown_or_malformed_is_answered", what_is_unknown_or_malformed_is_answered),
        ("what_has_no_process_is_refused", what_has_no_process_is_refused),
        ("nothing_but_hello_comes_first", nothing_but_hello_comes_first),
        ("no_common_version_closes_the_connection", no_common_version_closes_the_connection),
        ("garbage_ends_its_own_connection_only", garbage_ends_its_own_connection_only),
        ("connections_are_limited", connections_are_limited),
        ("a_host_that_does_not_read_holds_up_nobody", a_host_that_does_not_read_holds_up_nobody),
        ("orphans_are_reaped_and_then_killed", orphans_are_reaped_and_then_killed),
    ];
    let trials = tests.map(|(name, test)| {
        Trial::test(name, move || {
            test();
            Ok::<(), Failed>(())
        })
    });
    libtest_mimic::run(&Arguments::from_args(), trials.into()).exit();
}

/// PID 1. It has three kinds of processes to look after: some that end at once and leave orphans, one that ends when
/// asked to, and one that does not.
fn init(directory: &Path) -> ! {
    let listener = UnixListener::bind(directory.join("starting")).expect("a socket");
    listener.set_nonblocking(true).expect("a socket that does not block");
    let mut agent = Agent::new(Some(listener.into()));
    agent.watch_signals().expect("signalfd");
    let script = "
        for i in 1 2 3 4 5 6 7 8 9 10; do (sleep 0.2 & sleep 0.1 &) ; done
        (trap 'echo asked > polite; exit' TERM; touch polite-is-there; while :; do sleep 0.05; done) &
        (trap '' TERM; touch stubborn-is-there; while :; do sleep 0.05; done) &";
    #[allow(clippy::zombie_processes, reason = "the agent reaps it: that is what is tested")]
    Command::new("sh").args(["-c", script]).current_dir(directory).spawn().expect("sh");
    let port = std::ffi::CString::new(directory.join("port").as_os_str().as_bytes()).expect("a path");
    let ports = IoPorts::open(&port);
    // Whoever sees this name can connect.
    fs::rename(directory.join("starting"), directory.join("socket")).expect("rename");
    end(agent.run(), &ports)
}

struct Guest {
    unshare: Child,
    directory: tempfile::TempDir,
}

impl Guest {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        File::create(directory.path().join("port")).unwrap();
        let mut unshare = Command::new("unshare");
        if !rustix::process::geteuid().is_root() {
            unshare.args(["--user", "--map-root-user"]);
        }
        unshare.args(["--pid", "--fork", "--kill-child", "--"]);
        unshare.arg(std::env::current_exe().unwrap()).arg("init").arg(directory.path());
        let unshare = unshare.spawn().expect("unshare, of util-linux");
        let guest = Self { unshare, directory };
        wait_for(|| guest.path("socket").exists());
        guest
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(self.path("socket")).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    fn open(&self) -> Channel<UnixStream> {
        Channel::open(self.connect(), "pid1 test").unwrap()
    }

    fn end(mut self, mode: ShutdownMode, grace_ms: u32) -> (ExitStatus, Duration, tempfile::TempDir) {
        let mut channel = self.open();
        let started = Instant::now();
        assert_eq!(channel.call(&Message::Shutdown(Shutdown { mode, grace_ms })).unwrap(), Message::Ack);
        drop(channel);
        let status = self.unshare.wait().unwrap();
        (status, started.elapsed(), std::mem::replace(&mut self.directory, tempfile::tempdir().unwrap()))
    }

    /// Of PID 1, as this side of the namespace sees it.
    fn host_pid(&self) -> u32 {
        let parent = self.unshare.id();
        processes().into_iter().find(|process| process.parent == parent).expect("PID 1").id
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // Already gone where the test has ended it; --kill-child takes the rest along.
        let _ = self.unshare.kill();
        let _ = self.unshare.wait();
    }
}

struct Process {
    id: u32,
    parent: u32,
    state: String,
    ticks: u64,
}

/// From `/proc/*/stat` (proc(5)), whose second field may contain anything, but no `)` after its end.
fn processes() -> Vec<Process> {
    let read = |entry: std::io::Result<fs::DirEntry>| {
        let entry = entry.ok()?;
        let id = entry.file_name().to_str()?.parse().ok()?;
        let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
        let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
        let ticks = fields[11].parse::<u64>().ok()? + fields[12].parse::<u64>().ok()?;
        Some(Process { id, parent: fields[1].parse().ok()?, state: fields[0].into(), ticks })
    };
    fs::read_dir("/proc").unwrap().filter_map(read).collect()
}

fn wait_for(mut condition: impl FnMut() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < PATIENCE, "waited too long");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn ping(channel: &mut Channel<UnixStream>) {
    let ping = Ping { token: 0x1234_5678_9abc_def0 };
    assert_eq!(channel.call(&Message::Ping(ping)).unwrap(), Message::Pong(ping));
}

fn read(stream: &mut UnixStream) -> (u32, Message) {
    let frame = read_frame(stream).unwrap().expect("a frame");
    (frame.id, Message::from_frame(&frame).unwrap())
}

fn write(stream: &mut UnixStream, id: u32, message: &Message) {
    write_frame(stream, &message.to_frame(id).unwrap()).unwrap();
}

fn expect_error(stream: &mut UnixStream, id: u32, code: ErrorCode) {
    match read(stream) {
        (from, Message::Error(failure)) => {
            assert_eq!((from, failure.code), (id, code), "{}", failure.message)
        }
        other => panic!("{other:?}"),
    }
}

/// A connection on which `Hello` and `Ready` have been said.
fn greeted(guest: &Guest) -> UnixStream {
    let mut stream = guest.connect();
    write(&mut stream, 1, &Message::Hello(Hello { versions: VERSIONS, software: Text::new("test") }));
    assert!(matches!(read(&mut stream), (0, Message::Hello(hello)) if hello.versions == VERSIONS));
    assert!(matches!(read(&mut stream), (1, Message::Ready(_))));
    stream
}

fn a_session_ends_with_power_off() {
    let guest = Guest::start();
    let mut channel = guest.open();
    let ready = channel.ready().clone();
    assert_eq!(ready.version, VERSIONS.newest);
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    assert_eq!(ready.facts.kernel.as_str(), release.trim());
    let cpus = std::thread::available_parallelism().unwrap().get();
    assert!(ready.facts.cpus as usize >= cpus);
    assert!(ready.facts.memory_kib > 1024 && ready.facts.uptime_ms > 0);
    ping(&mut channel);
    ping(&mut channel);
    let (status, _, directory) = guest.end(ShutdownMode::PowerOff, 1000);
    // What reboot(2) does in a PID namespace: see its manual.
    assert_eq!(status.signal(), Some(SIGINT));
    let ports = fs::read(directory.path().join("port")).unwrap();
    assert_eq!(ports.len(), usize::from(PVPANIC_PORT) + 1);
    assert_eq!(ports.last(), Some(&PVPANIC_SHUTDOWN));
}

fn reboot_is_not_power_off() {
    let (status, _, directory) = Guest::start().end(ShutdownMode::Reboot, 1000);
    assert_eq!(status.signal(), Some(SIGHUP));
    assert!(fs::read(directory.path().join("port")).unwrap().is_empty());
}

/// With the signals that busybox sends; a signal of another kind is not heeded.
fn poweroff_and_reboot_turn_to_pid_1() {
    use rustix::process::{Pid, Signal, kill_process};
    for (signal, end) in [(Signal::USR2, SIGINT), (Signal::USR1, SIGINT), (Signal::TERM, SIGHUP), (Signal::INT, SIGHUP)]
    {
        let mut guest = Guest::start();
        let pid1 = Pid::from_raw(guest.host_pid().try_into().unwrap()).unwrap();
        kill_process(pid1, Signal::HUP).unwrap();
        ping(&mut guest.open());
        kill_process(pid1, signal).unwrap();
        assert_eq!(guest.unshare.wait().unwrap().signal(), Some(end), "{signal:?}");
    }
}

fn what_is_unknown_or_malformed_is_answered() {
    let guest = Guest::start();
    let mut stream = greeted(&guest);
    write_frame(&mut stream, &Frame { message_type: 0xee, flags: 0, id: 7, payload: vec![1; 60_000] }).unwrap();
    expect_error(&mut stream, 7, ErrorCode::UNKNOWN_MESSAGE);
    let critical = Frame { flags: 0x0100, ..Message::Ping(Ping { token: 1 }).to_frame(8).unwrap() };
    write_frame(&mut stream, &critical).unwrap();
    expect_error(&mut stream, 8, ErrorCode::UNKNOWN_MESSAGE);
    write_frame(&mut stream, &Frame { message_type: 0x03, flags: 0, id: 9, payload: vec![0xff; 20] }).unwrap();
    expect_error(&mut stream, 9, ErrorCode::MALFORMED);
    write(&mut stream, 10, &Message::Ack);
    expect_error(&mut stream, 10, ErrorCode::OUT_OF_PLACE);
    // An error is not answered: two agents of the kind would never stop.
    write(&mut stream, 11, &Message::Ping(Ping { token: 3 }));
    assert_eq!(read(&mut stream), (11, Message::Pong(Ping { token: 3 })));
}

fn what_has_no_process_is_refused() {
    let guest = Guest::start();
    let mut stream = greeted(&guest);
    let size = WindowSize { rows: 1, columns: 1 };
    let about_none = [
        Message::Start(Box::default()),
        Message::Adopt(Box::default()),
        Message::Signal(Signal { process: 1, signal: 9, all: false }),
        Message::Signal(Signal { process: 0, signal: 9, all: true }),
        Message::Resize(Resize { process: 7, size }),
        Message::Pause,
        Message::Resume,
        Message::Reclaim,
        Message::Stats,
        Message::Top,
    ];
    // All in one piece: none is lost behind another.
    let mut bytes = Vec::new();
    for (id, message) in (1..).zip(&about_none) {
        message.encode(id, &mut bytes).unwrap();
    }
    stream.write_all(&bytes).unwrap();
    for (id, _) in (1..).zip(&about_none) {
        expect_error(&mut stream, id, ErrorCode::NO_PROCESS);
    }
    write(&mut stream, 20, &Message::Top);
    expect_error(&mut stream, 20, ErrorCode::NO_PROCESS);
    write(&mut stream, 21, &Message::Usage(Usage::default()));
    expect_error(&mut stream, 21, ErrorCode::OUT_OF_PLACE);
    ping(&mut guest.open());
}

fn nothing_but_hello_comes_first() {
    let guest = Guest::start();
    let mut stream = guest.connect();
    let shutdown = Message::Shutdown(Shutdown { mode: ShutdownMode::PowerOff, grace_ms: 0 });
    write(&mut stream, 4, &shutdown);
    assert!(matches!(read(&mut stream), (0, Message::Hello(_))));
    expect_error(&mut stream, 4, ErrorCode::OUT_OF_PLACE);
    ping(&mut guest.open());
}

fn no_common_version_closes_the_connection() {
    let guest = Guest::start();
    let mut stream = guest.connect();
    let versions = Versions { oldest: VERSIONS.newest + 1, newest: u16::MAX };
    write(&mut stream, 2, &Message::Hello(Hello { versions, software: Text::new("a later host") }));
    assert!(matches!(read(&mut stream), (0, Message::Hello(_))));
    expect_error(&mut stream, 2, ErrorCode::UNSUPPORTED_VERSION);
    assert_eq!(read_frame(&mut stream).unwrap(), None);
}

fn garbage_ends_its_own_connection_only() {
    let guest = Guest::start();
    let mut channel = guest.open();
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xc1, 3, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0xff], &[0xff; 5000]] {
        let mut stream = guest.connect();
        stream.write_all(garbage).unwrap();
        assert!(matches!(read(&mut stream), (0, Message::Hello(_))));
        expect_error(&mut stream, 0, ErrorCode::MALFORMED);
        // The rest of the garbage is lost unread, which a unix socket reports as a reset.
        match stream.read(&mut [0]) {
            Ok(count) => assert_eq!(count, 0),
            Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
        }
    }
    ping(&mut channel);
}

fn connections_are_limited() {
    let guest = Guest::start();
    let mut channels: Vec<_> = (0..64).map(|_| guest.open()).collect();
    match Channel::open(guest.connect(), "one too many") {
        Err(CallError::Refused(failure)) => {
            assert_eq!(failure.code, ErrorCode::TOO_MANY_CONNECTIONS)
        }
        other => panic!("{other:?}"),
    }
    channels.iter_mut().for_each(ping);
    channels.pop();
    wait_for(|| Channel::open(guest.connect(), "in its place").is_ok());
}

fn a_host_that_does_not_read_holds_up_nobody() {
    let guest = Guest::start();
    let mut stream = greeted(&guest);
    let mut request = Vec::new();
    Message::Ping(Ping { token: 42 }).encode(5, &mut request).unwrap();
    let requests = request.repeat(100);
    stream.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    let mut sent = 0;
    // Until neither side's buffers take any more.
    let refused = loop {
        match stream.write(&requests[sent % request.len()..]) {
            Ok(count) => sent += count,
            Err(error) => break error,
        }
        assert!(sent < 64 << 20, "the agent takes in whatever comes");
    };
    assert_eq!(refused.kind(), ErrorKind::WouldBlock);
    ping(&mut guest.open());
    for _ in 0..sent / request.len() {
        assert_eq!(read(&mut stream), (5, Message::Pong(Ping { token: 42 })));
    }
}

fn orphans_are_reaped_and_then_killed() {
    let guest = Guest::start();
    wait_for(|| guest.path("polite-is-there").exists() && guest.path("stubborn-is-there").exists());
    let pid1 = guest.host_pid();
    // Left to PID 1: the two that go on. Everything else has ended, and none is a zombie.
    wait_for(|| processes().iter().filter(|process| process.parent == pid1).count() == 2);
    // And waiting costs nothing.
    let ticks = |id| processes().into_iter().find(|process| process.id == id).unwrap().ticks;
    let before = ticks(pid1);
    std::thread::sleep(Duration::from_millis(500));
    assert!(ticks(pid1) - before <= 1, "PID 1 is busy doing nothing");
    assert!(processes().iter().all(|process| process.parent != pid1 || process.state != "Z"));

    let (_, took, directory) = guest.end(ShutdownMode::PowerOff, 700);
    assert!(directory.path().join("polite").exists(), "SIGTERM was not sent first");
    assert!(took >= Duration::from_millis(700), "no time to end: {took:?}");
    assert!(took < Duration::from_millis(2500), "SIGKILL did not end it: {took:?}");
}
