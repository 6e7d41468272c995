// SPDX-License-Identifier: Apache-2.0
//! The device against a fake guest and real unix sockets.

mod connections;
mod endings;
mod hostile;
mod load;

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use super::super::testing::{FakeDriver, is_readable};
use super::packet::{HEADER_LEN, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};
use super::*;

const BUFFER: u32 = 4096;
const RX_BUFFERS: u64 = 0x10_0000;
const TX_BUFFERS: u64 = 0x40_0000;
const TX_STRIDE: u64 = 0x1_1000;
const MAX_DATA: usize = 64 << 10;
const GUEST_BUFFER: u32 = 256 << 10;

/// How the guest lays out its receive buffers: Linux before 6.3 has the header in a descriptor of its own.
#[derive(Clone, Copy, PartialEq)]
enum Layout {
    Split,
    Linear,
}

struct Guest {
    device: Vsock,
    session: Session,
    rx: FakeDriver,
    tx: FakeDriver,
    event: FakeDriver,
    layout: Layout,
    rx_posted: VecDeque<(u16, u64)>,
    rx_free: Vec<u64>,
    tx_next: u64,
    tx_outstanding: u64,
    /// Whether receive buffers are given back as soon as they are read.
    refill: bool,
    inbox: VecDeque<(Header, Vec<u8>)>,
    path: PathBuf,
    _directory: tempfile::TempDir,
}

impl Guest {
    fn new() -> Self {
        Self::with_layout(Layout::Split)
    }

    fn with_layout(layout: Layout) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("v.sock");
        let mut device = Vsock::open(&VsockConfig { path: path.clone(), cid: 3 }).unwrap();
        let (session, drivers) = FakeDriver::attach(&mut device, 0).unwrap();
        let Ok([rx, tx, event]) = <[FakeDriver; 3]>::try_from(drivers) else { panic!("three queues") };
        let mut guest = Self {
            device,
            session,
            rx,
            tx,
            event,
            layout,
            rx_posted: VecDeque::new(),
            rx_free: (0..if layout == Layout::Split { 64 } else { 128 }).map(|n| RX_BUFFERS + n * 0x2000).collect(),
            tx_next: 0,
            tx_outstanding: 0,
            refill: true,
            inbox: VecDeque::new(),
            path,
            _directory: directory,
        };
        guest.post_buffers();
        guest
    }

    fn post_buffers(&mut self) {
        let header = u32::try_from(HEADER_LEN).unwrap();
        for address in self.rx_free.drain(..) {
            let head = match self.layout {
                Layout::Split => self.rx.add(&[(address, header, true), (address + 0x1000, BUFFER, true)]),
                Layout::Linear => self.rx.add(&[(address, header + BUFFER, true)]),
            };
            self.rx_posted.push_back((head, address));
        }
    }

    /// Takes what the device has put into receive buffers; whether there are new buffers for it.
    fn collect(&mut self) -> bool {
        while let Some((head, written)) = self.rx.used() {
            let (posted, address) = self.rx_posted.pop_front().expect("a posted buffer");
            assert_eq!(u32::from(posted), head, "the device uses buffers in order");
            let header = Header::from_bytes(&self.rx.read(address, HEADER_LEN).try_into().unwrap());
            let length = usize::try_from(header.length).unwrap();
            assert_eq!(usize::try_from(written).unwrap(), HEADER_LEN + length);
            let data = if self.layout == Layout::Split { address + 0x1000 } else { address + 44 };
            self.inbox.push_back((header, self.rx.read(data, length)));
            self.rx_free.push(address);
        }
        while self.tx.used().is_some() {
            self.tx_outstanding -= 1;
        }
        let refill = self.refill && !self.rx_free.is_empty();
        if refill {
            self.post_buffers();
        }
        refill
    }

    /// Whether the event loop would see the device's descriptor as readable within this time.
    fn host_is_ready(&self, patience: Duration) -> bool {
        let [source] = self.device.sources()[..] else { panic!("one source") };
        is_readable(source.fd, patience)
    }

    /// Runs the device as the event loop would, until nothing happens any more.
    fn pump(&mut self) {
        loop {
            let mut ready = self.host_is_ready(Duration::ZERO);
            if ready {
                self.device.source_event(0, EventSet::IN, &mut self.session).unwrap();
            }
            for (number, driver) in [(RX, &self.rx), (TX, &self.tx)] {
                if driver.kick().read().is_ok() {
                    ready = true;
                    self.device.queue_event(number, &mut self.session).unwrap();
                }
            }
            if self.collect() {
                // As if the driver had notified of the new buffers.
                self.device.queue_event(RX, &mut self.session).unwrap();
            } else if !ready {
                return;
            }
        }
    }

    /// Puts a packet into the tx queue, without notification.
    fn post(&mut self, header: &Header, data: &[u8]) {
        assert!(self.tx_outstanding < 60 && data.len() <= MAX_DATA);
        let address = TX_BUFFERS + self.tx_next % 64 * TX_STRIDE;
        self.tx_next += 1;
        self.tx_outstanding += 1;
        self.tx.write(address, &header.to_bytes());
        self.tx.write(address + 0x1000, data);
        let (header, length) = (u32::try_from(HEADER_LEN).unwrap(), u32::try_from(data.len()).unwrap());
        if length == 0 {
            self.tx.add(&[(address, header, false)]);
        } else {
            self.tx.add(&[(address, header, false), (address + 0x1000, length, false)]);
        }
    }

    fn send(&mut self, header: &Header, data: &[u8]) {
        self.post(header, data);
        self.device.queue_event(TX, &mut self.session).unwrap();
        self.collect();
    }

    fn receive(&mut self) -> (Header, Vec<u8>) {
        self.gather(1);
        self.inbox.pop_front().expect("a packet to the guest")
    }

    /// Runs the device until this many packets are in the inbox.
    ///
    /// A socket that a test has dropped may stay open for a moment: in the child that another test of this
    /// program has forked and that has not reached its `exec` yet.
    fn gather(&mut self, count: usize) {
        let patience = Duration::from_secs(10);
        self.pump();
        while self.inbox.len() < count && self.host_is_ready(patience) {
            self.pump();
        }
        assert!(self.inbox.len() >= count, "{} of {count} packets to the guest", self.inbox.len());
    }

    /// The next packet to the guest is this one, without data; gives its flags.
    fn expect(&mut self, ports: Ports, op: Op) -> u32 {
        let (header, data) = self.receive();
        assert_eq!((header.src_cid, header.dst_cid, header.kind), (HOST_CID, 3, TYPE_STREAM));
        assert_eq!((header.op, header.src_port, header.dst_port), (op.number(), ports.host, ports.guest), "{op:?}");
        assert!(data.is_empty());
        header.flags
    }

    fn expect_silence(&mut self) {
        self.pump();
        assert_eq!(self.inbox.front(), None);
    }

    fn metric(&self, name: &str) -> u64 {
        self.device.metrics().into_iter().find(|(metric, _)| *metric == name).expect(name).1
    }

    fn client(&self) -> UnixStream {
        let client = UnixStream::connect(&self.path).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        client
    }

    fn listener(&self, port: u32) -> UnixListener {
        UnixListener::bind(format!("{}_{port}", self.path.display())).unwrap()
    }

    /// A host client that is connected to a guest port.
    fn connect_from_host(&mut self, port: u32) -> (UnixStream, Peer) {
        let mut client = self.client();
        client.write_all(format!("CONNECT {port}\n").as_bytes()).unwrap();
        let (header, _) = self.receive();
        assert_eq!((header.op, header.dst_port), (Op::Request.number(), port));
        let mut peer = Peer::new(Ports { host: header.src_port, guest: port });
        self.send(&peer.header(Op::Response), &[]);
        let line = format!("OK {}\n", header.src_port);
        assert_eq!(read_exact(&mut client, line.len()), line.as_bytes());
        peer.learn(&header);
        (client, peer)
    }

    /// A connection that the guest has opened to a listener on the host.
    fn connect_from_guest(&mut self, listener: &UnixListener, ports: Ports) -> (UnixStream, Peer) {
        let mut peer = Peer::new(ports);
        self.send(&peer.header(Op::Request), &[]);
        let (header, _) = self.receive();
        assert_eq!(header.op, Op::Response.number());
        peer.learn(&header);
        let client = listener.accept().unwrap().0;
        client.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        (client, peer)
    }

    /// Whether the device holds data for the host reader of this connection.
    fn has_backlog(&mut self, ports: Ports) -> bool {
        let streams = &mut self.device.streams;
        streams.find(ports).and_then(|id| streams.get_mut(id)).is_some_and(|stream| stream.has_backlog())
    }

    /// Lets every deadline pass now.
    fn let_time_pass(&mut self) {
        for id in self.device.streams.ids() {
            if let Some(deadline) = self.device.streams.get_mut(id).and_then(|stream| stream.deadline.as_mut()) {
                *deadline = std::time::Instant::now();
            }
        }
        std::thread::sleep(TICK + Duration::from_millis(50));
        self.pump();
    }
}

/// The guest's end of one connection, with its credit.
#[derive(Debug)]
struct Peer {
    ports: Ports,
    buf_alloc: u32,
    sent: u32,
    received: u32,
    host_alloc: u32,
    host_forwarded: u32,
}

impl Peer {
    fn new(ports: Ports) -> Self {
        Self { ports, buf_alloc: GUEST_BUFFER, sent: 0, received: 0, host_alloc: 0, host_forwarded: 0 }
    }

    fn header(&self, op: Op) -> Header {
        Header {
            src_cid: 3,
            dst_cid: HOST_CID,
            src_port: self.ports.guest,
            dst_port: self.ports.host,
            kind: TYPE_STREAM,
            op: op.number(),
            buf_alloc: self.buf_alloc,
            fwd_cnt: self.received,
            ..Header::default()
        }
    }

    fn shutdown(&self, flags: u32) -> Header {
        Header { flags, ..self.header(Op::Shutdown) }
    }

    fn data(&mut self, data: &[u8]) -> Header {
        let length = u32::try_from(data.len()).unwrap();
        self.sent = self.sent.wrapping_add(length);
        Header { length, ..self.header(Op::Data) }
    }

    fn learn(&mut self, header: &Header) {
        (self.host_alloc, self.host_forwarded) = (header.buf_alloc, header.fwd_cnt);
    }

    fn credit(&self) -> usize {
        usize::try_from(self.host_alloc - self.sent.wrapping_sub(self.host_forwarded)).unwrap()
    }
}

fn read_exact(client: &mut UnixStream, length: usize) -> Vec<u8> {
    let mut data = vec![0; length];
    client.read_exact(&mut data).unwrap();
    data
}

fn read_to_end(client: &mut UnixStream) -> Vec<u8> {
    let mut data = Vec::new();
    client.read_to_end(&mut data).unwrap();
    data
}

/// Bytes that differ from place to place.
fn pattern(seed: usize, length: usize) -> Vec<u8> {
    (0..length).map(|at| ((at + seed).wrapping_mul(2_654_435_761) >> 11).to_le_bytes()[0]).collect()
}

/// Runs a test in a process of its own, for what concerns the whole process: limits, number of descriptors.
fn alone(name: &str, body: impl FnOnce()) {
    if std::env::var("CORACLE_TEST_ALONE").is_ok_and(|alone| alone == name) {
        return body();
    }
    let module = module_path!().split_once("::").expect("a crate's module").1;
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--nocapture", &format!("{module}::{name}")])
        .env("CORACLE_TEST_ALONE", name)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}{}", String::from_utf8_lossy(&output.stderr));
}

/// Sets the soft limit on descriptors; `None` for all that are allowed.
fn limit_descriptors(soft: Option<u64>) {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a live structure of the kind that both calls want.
    unsafe {
        assert_eq!(libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit), 0);
        limit.rlim_cur = soft.unwrap_or(limit.rlim_max);
        assert_eq!(libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit), 0);
    }
}

fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}
