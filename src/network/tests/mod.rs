// SPDX-License-Identifier: Apache-2.0
//! Whole networks, in a network namespace that stands for the host, with others that stand for guests and the world.

mod bridge;
mod crash;
mod names;
mod passt;
mod ports;

use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, FromRawFd};
use std::process::Command;
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};

use super::attach::attach_in;
use super::{Attachment, New, Publish, Request, Store};
use crate::vmm::devices::virtio::net::{NetBackend, Tap};

/// How long anything may take that works.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long is waited for what must not happen.
const MOMENT: Duration = Duration::from_millis(700);

/// A thread in a network namespace of its own, which does what it is told.
struct Namespace {
    tasks: Sender<Box<dyn FnOnce() + Send>>,
    /// The namespace as a path, for `ip link set … netns`.
    path: String,
}

impl Namespace {
    fn new() -> Self {
        let (tasks, inbox) = channel::<Box<dyn FnOnce() + Send>>();
        thread::spawn(move || {
            // SAFETY: affects this thread only, which shares no file-system or user state by this flag.
            let result = unsafe { libc::unshare(libc::CLONE_NEWNET) };
            assert_eq!(result, 0, "no new network namespace: {}", std::io::Error::last_os_error());
            inbox.into_iter().for_each(|task| task());
        });
        let mut namespace = Self { tasks, path: String::new() };
        namespace.path = namespace.run(|| {
            ip("link set lo up");
            // SAFETY: the call has no preconditions.
            format!("/proc/{}/task/{}/ns/net", std::process::id(), unsafe { libc::gettid() })
        });
        namespace
    }

    /// Runs `task` there, and waits for it.
    fn run<T: Send + 'static>(&self, task: impl FnOnce() -> T + Send + 'static) -> T {
        let (result, outcome) = channel();
        let task = move || _ = result.send(std::panic::catch_unwind(std::panic::AssertUnwindSafe(task)));
        self.tasks.send(Box::new(task)).expect("a thread that listens");
        outcome.recv().expect("a result").unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

/// Runs the test `name` in a new network namespace, as root; else runs it again as root of a new user namespace.
fn on_a_host(name: &str, body: impl FnOnce(&Store) + Send + 'static) {
    // SAFETY: the call has no preconditions.
    if unsafe { libc::geteuid() } != 0 {
        let this = std::env::current_exe().unwrap();
        let name = format!("network::tests::{name}");
        let mut command = Command::new("unshare");
        let command = command.args(["--user", "--map-root-user", "--net"]).arg(this).args(["--exact", &name]);
        let run = command.output().expect("`unshare` of util-linux, to test networks without root");
        let output = String::from_utf8_lossy(&run.stdout);
        let done = run.status.success() && output.contains("1 passed");
        assert!(done, "networks can be tested only as root, or with unprivileged user namespaces:\n{output}");
        return;
    }
    Namespace::new().run(|| {
        let folder = tempfile::tempdir().unwrap();
        let before = left_behind();
        body(&Store::open_at(folder.path()).unwrap());
        assert_eq!(left_behind(), before, "something is left on the host");
    });
}

/// Interfaces, rules and listening sockets of this namespace.
fn left_behind() -> String {
    let links = output("ip", &["-o", "link"]);
    let links = links.lines().filter_map(|line| line.split(": ").nth(1)).collect::<Vec<_>>().join(" ");
    format!("{links}\n{}\n{}", output("nft", &["list", "ruleset"]), output("ss", &["-Hlntu"]))
}

fn output(program: &str, arguments: &[&str]) -> String {
    let run = Command::new(program).args(arguments).output().expect(program);
    assert!(run.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&run.stderr));
    String::from_utf8_lossy(&run.stdout).into_owned()
}

fn ip(arguments: &str) {
    output("ip", &arguments.split(' ').collect::<Vec<_>>());
}

fn request(network: &str, name: &str, ports: &[&str]) -> Request {
    Request {
        spare: false,
        network: network.to_owned(),
        container: format!("{name}-id"),
        names: vec![name.to_owned()],
        address: None,
        mac: None,
        ports: ports.iter().flat_map(|word| Publish::parse(word).unwrap()).collect(),
        namespace: None,
    }
}

fn new(name: &str) -> New {
    New { name: name.to_owned(), ..New::default() }
}

/// A container without a VM: the network stack of another namespace behind the TAP.
struct Guest {
    namespace: Namespace,
    attachment: Attachment,
    _pump: Pump,
}

impl Guest {
    fn start(store: &Store, request: &Request) -> Self {
        let attachment = attach_in(store, request).unwrap();
        let NetBackend::Tap(name) = &attachment.backend else { panic!("no TAP") };
        let host = Tap::open(name).unwrap();
        let namespace = Namespace::new();
        let (mac, addresses, gateways) = (attachment.mac, attachment.addresses.clone(), attachment.gateways.clone());
        let guest = namespace.run(move || {
            Tap::create("eth0").unwrap();
            let tap = Tap::open("eth0").unwrap();
            ip(&format!("link set eth0 address {mac} up"));
            for address in addresses {
                let nodad = if address.addr().is_ipv6() { " nodad" } else { "" };
                ip(&format!("addr add {address} dev eth0{nodad}"));
            }
            for gateway in gateways {
                let family = if gateway.is_ipv4() { "-4" } else { "-6" };
                ip(&format!("{family} route add default via {gateway}"));
            }
            tap
        });
        let guest = Self { namespace, attachment, _pump: Pump::start(host, guest) };
        guest.wait_for_host();
        guest
    }

    /// The kernel drops what is sent before it has taken note, up to a second later, that someone has attached a TAP.
    fn wait_for_host(&self) {
        let gateway = self.attachment.nameservers[0];
        eventually("the gateway answers", || {
            let answers = self.run(move || TcpStream::connect_timeout(&SocketAddr::new(gateway, 9), MOMENT));
            // Refused is an answer.
            answers.err().is_none_or(|error| error.kind() == std::io::ErrorKind::ConnectionRefused).then_some(())
        });
    }

    fn run<T: Send + 'static>(&self, task: impl FnOnce() -> T + Send + 'static) -> T {
        self.namespace.run(task)
    }

    fn address(&self) -> IpAddr {
        self.attachment.addresses[0].addr()
    }
}

/// Carries frames between two TAPs until it is dropped.
struct Pump {
    stop: Option<std::os::unix::net::UnixStream>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Pump {
    fn start(a: Tap, b: Tap) -> Self {
        let (stop, stopped) = std::os::unix::net::UnixStream::pair().unwrap();
        let file = |tap: &Tap| {
            // SAFETY: the descriptor is open, and the copy is owned by the file alone.
            unsafe { File::from_raw_fd(libc::dup(tap.as_raw_fd())) }
        };
        let thread = thread::spawn(move || {
            let (mut first, mut second, _taps) = (file(&a), file(&b), (a, b));
            let mut frame = vec![0; 1 << 17];
            loop {
                let mut fds = [
                    PollFd::from_borrowed_fd(first.as_fd(), PollFlags::IN),
                    PollFd::from_borrowed_fd(second.as_fd(), PollFlags::IN),
                    PollFd::from_borrowed_fd(stopped.as_fd(), PollFlags::IN),
                ];
                poll(&mut fds, None).unwrap();
                if !fds[2].revents().is_empty() {
                    return;
                }
                // Frames may be lost, as on any wire; and a TAP may be deleted.
                if let Ok(count) = first.read(&mut frame) {
                    let _ = second.write(&frame[..count]);
                }
                if let Ok(count) = second.read(&mut frame) {
                    let _ = first.write(&frame[..count]);
                }
            }
        });
        Self { stop: Some(stop), thread: Some(thread) }
    }
}

impl Drop for Pump {
    fn drop(&mut self) {
        self.stop = None;
        self.thread.take().unwrap().join().unwrap();
    }
}

/// The world outside, behind the host's uplink: it is 192.0.2.2 and 2001:db8::2, the host is 192.0.2.1 and 2001:db8::1.
fn outside() -> Namespace {
    let outside = Namespace::new();
    ip("link add up0 type veth peer name world0");
    ip(&format!("link set world0 netns {}", outside.path));
    ip("addr add 192.0.2.1/24 dev up0");
    ip("addr add 2001:db8::1/64 dev up0 nodad");
    ip("link set up0 up");
    outside.run(|| {
        ip("addr add 192.0.2.2/24 dev world0");
        ip("addr add 2001:db8::2/64 dev world0 nodad");
        ip("link set world0 up");
        // A hostile neighbour sends to the containers by way of the host.
        ip("route add default via 192.0.2.1");
    });
    outside
}

/// Undoes what [`outside`] did to the host.
fn no_outside() {
    ip("link del up0");
}

/// A server that says to each client who it is, until its host is at the end of the test.
fn whoami(address: &str) -> SocketAddr {
    let listener = TcpListener::bind(address).unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let peer = stream.peer_addr().unwrap().ip();
            let _ = (&stream).write_all(peer.to_string().as_bytes());
            if peer == address.ip() && FAREWELL.lock().unwrap().contains(&address.port()) {
                return;
            }
        }
    });
    address
}

/// Ports of servers on the host itself that end when they are asked once more from there.
static FAREWELL: std::sync::Mutex<Vec<u16>> = std::sync::Mutex::new(Vec::new());

/// Ends servers of the host.
fn end_servers(servers: &[SocketAddr]) {
    for server in servers {
        FAREWELL.lock().unwrap().push(server.port());
        ask_whoami(*server);
        eventually("the server ends", || TcpListener::bind(server).ok());
    }
}

/// Who the server at `address`, which can be reached, takes the caller for. On a busy host that takes some attempts.
fn seen_by(address: SocketAddr) -> String {
    eventually(&format!("{address} answers"), || ask_whoami(address))
}

/// Who the server at `address` takes the caller for; `None` where it cannot be reached.
fn ask_whoami(address: SocketAddr) -> Option<String> {
    let mut stream = TcpStream::connect_timeout(&address, MOMENT).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    Some(text)
}

/// Polls until `check` gives something.
fn eventually<T>(what: &str, mut check: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = check() {
            return value;
        }
        assert!(Instant::now() < deadline, "never: {what}");
        thread::sleep(Duration::from_millis(50));
    }
}

fn v4(address: IpAddr) -> Ipv4Addr {
    match address {
        IpAddr::V4(address) => address,
        IpAddr::V6(address) => panic!("{address} is not IPv4"),
    }
}
