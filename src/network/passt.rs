// SPDX-License-Identifier: Apache-2.0
//! Networks without root: passt, a network stack in user space, for each container.
//!
//! passt makes the guest's connections its own, so that they leave the host as those of any program of this user. The
//! guest reaches what the user reaches, except the host's loopback, where services trust whoever asks.
//!
//! Published ports go by way of [`Proxy`](super::ports::Proxy), as with a bridge, to a door that passt has on the loopback
//! for each port of the container: passt alone knows one address per port, and no IPv6 ones, and loses answers to
//! datagrams that came from the loopback, to which it may not let the guest send.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs;
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

use ipnet::Ipv4Net;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::ports::{self, Protocol, Published};
use super::worker::{Poller, STOP, Worker};
use crate::failure::Failure;

const PROGRAM: &str = "passt";
/// How long it may take to come up.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes of its last words that are kept.
const LAST_WORDS: usize = 4096;

const ENDED: u64 = 0;
const WORDS: u64 = 1;

/// Starts that are tried.
const ATTEMPTS: u32 = 3;

/// Where passt takes connections for a port of the container.
pub(super) type Doors = BTreeMap<(Protocol, u16), SocketAddr>;

/// A passt at work, which ends when this is dropped, or the process ends.
#[derive(Debug)]
pub(super) struct Passt {
    // Ends the process before the socket's name goes.
    _worker: Worker,
    socket: PathBuf,
}

/// What passt is to do.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    /// The socket that the VMM is to connect to.
    pub socket: PathBuf,
    /// The guest's address.
    pub address: Ipv4Addr,
    /// The subnet that it is in.
    pub subnet: Ipv4Net,
    /// The router.
    pub gateway: Ipv4Addr,
}

impl Passt {
    /// Starts passt; gives it, and where it takes connections for each of the container's ports that are published.
    ///
    /// # Errors
    /// It is not installed, or does not come up.
    pub fn start(plan: &Plan, ports: &[Published]) -> Result<(Self, Doors), Failure> {
        let what = "cannot start the container's network";
        for attempt in 1.. {
            let failed = match Self::try_start(plan, ports) {
                Ok(started) => return Ok(started),
                Err(error) => error,
            };
            if failed.kind() == io::ErrorKind::NotFound {
                let why = "without root it needs the program `passt`, which is not installed";
                return Err(Failure::new(what, why, "`apt-get install passt`, or --network none"));
            }
            // Someone may have taken a port just before passt could.
            if attempt == ATTEMPTS || ports.is_empty() {
                return Err(Failure::new(what, format!("passt: {failed}"), "`ip route`; or --network none"));
            }
        }
        Err(Failure::new(what, "passt was not tried", "the same again"))
    }

    fn try_start(plan: &Plan, ports: &[Published]) -> io::Result<(Self, Doors)> {
        remove(&plan.socket);
        let doors = doors(ports)?;
        let mut command = Command::new(PROGRAM);
        command.args(arguments(plan, &doors));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).process_group(0);
        // SAFETY: prctl is async-signal-safe.
        unsafe {
            command.pre_exec(|| {
                // Killed with the thread that starts it, which lives as long as this does.
                if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) < 0 {
                    return Err(io::Error::last_os_error());
                }
                Ok(())
            });
        }
        let (started, outcome) = channel();
        let socket = plan.socket.clone();
        let worker = Worker::start("passt", move |mut poller| attend(command, &socket, &mut poller, &started))?;
        let passt = Self { _worker: worker, socket: plan.socket.clone() };
        outcome.recv().map_err(|_| io::Error::other("its thread ended"))??;
        Ok((passt, doors))
    }
}

impl Drop for Passt {
    fn drop(&mut self) {
        remove(&self.socket);
    }
}

/// A name that is there no more needs no removing, and one that stays is removed by the next to come.
fn remove(socket: &Path) {
    let _ = fs::remove_file(socket);
}

/// Free ports of the loopback, one for each of the container's.
fn doors(ports: &[Published]) -> io::Result<Doors> {
    let (mut doors, mut held) = (Doors::new(), Vec::new());
    for port in ports {
        if let Entry::Vacant(door) = doors.entry((port.protocol, port.container)) {
            let listener = ports::reserve(port.protocol)?;
            door.insert(listener.published.host);
            // Until there are all, so that they are different ones.
            held.push(listener);
        }
    }
    Ok(doors)
}

/// An address of this host that others know it by, where it has one.
pub(super) fn outward_address() -> Option<IpAddr> {
    // Connecting sends nothing; the address is one for documentation, which a default route leads to.
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect((Ipv4Addr::new(198, 51, 100, 1), 9)).ok()?;
    socket.local_addr().ok().map(|address| address.ip()).filter(|address| !address.is_loopback())
}

fn arguments(plan: &Plan, doors: &Doors) -> Vec<String> {
    let mut words: Vec<String> = ["--foreground", "--quiet", "--one-off", "--ipv4-only", "--no-map-gw"]
        .into_iter()
        // The guest is told its addresses by the agent.
        .chain(["--no-dhcp", "--no-dhcpv6", "--no-ndp", "--no-ra"])
        .map(str::to_owned)
        .collect();
    let mut option = |name: &str, value: String| words.extend([name.to_owned(), value]);
    option("--socket", plan.socket.display().to_string());
    option("--address", plan.address.to_string());
    option("--netmask", plan.subnet.prefix_len().to_string());
    option("--gateway", plan.gateway.to_string());
    for (protocol, name) in [(Protocol::Tcp, "--tcp-ports"), (Protocol::Udp, "--udp-ports")] {
        let of_protocol = doors.iter().filter(|((other, _), _)| *other == protocol);
        let mut specs: Vec<String> =
            of_protocol.map(|((_, container), door)| format!("{}/{}:{container}", door.ip(), door.port())).collect();
        if specs.is_empty() {
            // Without it, UDP ports follow those of TCP.
            specs.push("none".to_owned());
        }
        specs.into_iter().for_each(|spec| option(name, spec));
    }
    words
}

/// Starts passt, says when it is ready, and stays with it to its end.
fn attend(mut command: Command, socket: &Path, poller: &mut Poller, started: &Sender<io::Result<()>>) {
    let outcome = command.spawn().and_then(|mut child| match wait_ready(&mut child, socket, poller) {
        Ok(()) => Ok(child),
        Err(error) => {
            end(&mut child);
            Err(error)
        }
    });
    let mut child = match outcome {
        Ok(child) => child,
        Err(error) => {
            // Nobody listens only where nobody wants to know.
            let _ = started.send(Err(error));
            return;
        }
    };
    let _ = started.send(Ok(()));
    let mut words = Vec::new();
    loop {
        match poller.wait(None) {
            Ok(events) if events.contains(&STOP) => break,
            Ok(events) if events.contains(&ENDED) => {
                log::debug!("passt has ended: {}", last_line(&words));
                break;
            }
            Ok(events) if events.contains(&WORDS) => listen(&mut child, &mut words),
            Ok(_) => {}
            Err(error) => {
                log::error!("cannot wait for passt: {error}");
                break;
            }
        }
    }
    end(&mut child);
}

/// Waits until there is the socket, or passt has ended.
fn wait_ready(child: &mut Child, socket: &Path, poller: &mut Poller) -> io::Result<()> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidInput)?;
    poller.add_owned(pidfd_open(pid, PidfdFlags::empty())?, ENDED)?;
    if let Some(stderr) = &child.stderr {
        rustix::io::ioctl_fionbio(stderr, true)?;
        poller.add_changes(stderr.as_fd(), WORDS)?;
    }
    let (deadline, mut words) = (Instant::now() + PATIENCE, Vec::new());
    while !socket.exists() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::Error::other("it does not come up"));
        }
        let events = poller.wait(Some(left.min(Duration::from_millis(5))))?;
        listen(child, &mut words);
        if events.contains(&ENDED) {
            return Err(io::Error::other(last_line(&words)));
        }
        if events.contains(&STOP) {
            return Err(io::ErrorKind::Interrupted.into());
        }
    }
    Ok(())
}

/// Keeps the end of what it says.
fn listen(child: &mut Child, words: &mut Vec<u8>) {
    let mut chunk = [0; 1024];
    while let Some(Ok(count @ 1..)) = child.stderr.as_mut().map(|stderr| stderr.read(&mut chunk)) {
        words.extend_from_slice(chunk.get(..count).unwrap_or_default());
        words.drain(..words.len().saturating_sub(LAST_WORDS));
    }
}

fn last_line(words: &[u8]) -> String {
    let text = String::from_utf8_lossy(words);
    // Where there is no system log, it complains of that too.
    let said = |line: &&str| !line.trim().is_empty() && !line.contains("to syslog");
    text.lines().rev().find(said).unwrap_or("it gave no reason").trim().to_owned()
}

fn end(child: &mut Child) {
    // Both fail only where it has ended already, and then there is nothing to do.
    let _ = child.kill();
    let _ = child.wait();
}
