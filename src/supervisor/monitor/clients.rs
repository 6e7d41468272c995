// SPDX-License-Identifier: Apache-2.0
//! Who is connected to a monitor.

use std::io;
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use coracle_protocol::WindowSize;

use super::Monitor;
use super::pressure::{Awaited, Watch};
use crate::failure::{EXIT_FAILURE, Failure};
use crate::supervisor::wire::{Frame, Reply, Request, Stream, write_output};

/// Connections served at once; more are closed.
const MOST: usize = 256;

/// Those that are connected.
#[derive(Default)]
pub struct Clients {
    attached: Mutex<Vec<Attached>>,
    connected: AtomicUsize,
    /// Requests that have not been answered.
    pending: AtomicUsize,
}

#[derive(Clone)]
struct Attached {
    client: Arc<Client>,
    output: bool,
}

/// One connection.
struct Client {
    /// Frames go out one after the other.
    sending: Mutex<UnixStream>,
    /// The same, for who cannot wait for that.
    socket: UnixStream,
}

impl Client {
    fn send(&self, frame: &Frame) -> io::Result<()> {
        frame.write(&*self.sending())
    }

    fn sending(&self) -> MutexGuard<'_, UnixStream> {
        self.sending.lock().expect("no thread panics while it holds this")
    }
}

impl Clients {
    fn list(&self) -> MutexGuard<'_, Vec<Attached>> {
        self.attached.lock().expect("no thread panics while it holds this")
    }

    /// Passes output on. A client that does not read holds the program up; one that has gone is forgotten.
    pub fn output(&self, stream: Stream, bytes: &[u8]) {
        self.each(|one| !one.output || write_output(&*one.client.sending(), stream, bytes).is_ok());
    }

    /// Tells everybody, and gives nobody more than this time to hear it.
    pub fn tell(&self, reply: &Reply, limit: Option<Duration>) {
        self.each(|one| {
            // A socket that has failed says so when it is written to.
            let _ = one.client.socket.set_write_timeout(limit);
            one.client.send(&Frame::Reply(reply.clone())).is_ok()
        });
    }

    fn each(&self, stays: impl Fn(&Attached) -> bool) {
        // A client may come while another holds us up.
        let all = self.list().clone();
        for gone in all.iter().filter(|one| !stays(one)) {
            self.list().retain(|other| !Arc::ptr_eq(&other.client, &gone.client));
        }
    }

    /// Ends the wait for those that do not read.
    pub fn abandon(&self) {
        for one in self.list().drain(..) {
            // One that has gone by itself needs no closing.
            let _ = one.client.socket.shutdown(Shutdown::Both);
        }
    }

    /// Waits until all requests are answered, for as long at most.
    pub fn settle(&self, limit: Duration) {
        let deadline = Instant::now() + limit;
        while self.pending.load(Ordering::SeqCst) > 0 && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(2));
        }
    }
}

/// Tells the one who asked for a container why there will be none.
pub fn refuse(socket: &UnixStream, failure: &Failure) {
    let reply = Reply::Failed { failure: failure.clone(), status: EXIT_FAILURE };
    // One that has gone will look at the log.
    let _ = Frame::Reply(reply).write(socket);
}

/// Serves all who come.
pub fn accept(monitor: &Arc<Monitor>, listener: UnixListener) {
    let monitor = Arc::clone(monitor);
    thread::spawn(move || {
        let mut watch = Watch::of(&monitor.container.config);
        loop {
            if watch.wait(&listener) == Awaited::Pressure {
                monitor.relieve_later();
                continue;
            }
            match listener.accept() {
                Ok((socket, _)) => serve(&monitor, socket),
                // No descriptor is left: perhaps there is one later.
                Err(_) => thread::sleep(Duration::from_millis(100)),
            }
        }
    });
}

/// Serves the one who asked for the container. What it asked first is heard before anything can happen.
pub fn serve_first(monitor: &Arc<Monitor>, socket: UnixStream) -> io::Result<()> {
    let mut conversation = Conversation::new(socket)?;
    if conversation.step(monitor)? {
        conversation.go_on(monitor);
    }
    Ok(())
}

/// Serves one, in a thread of its own.
fn serve(monitor: &Arc<Monitor>, socket: UnixStream) {
    if monitor.clients.connected.load(Ordering::SeqCst) >= MOST {
        log::warn!("there are {MOST} clients: one more is turned away");
        return;
    }
    // Without a descriptor for it there is nothing to say to it.
    if let Ok(conversation) = Conversation::new(socket) {
        conversation.go_on(monitor);
    }
}

struct Conversation {
    client: Arc<Client>,
    gives_input: bool,
}

impl Conversation {
    fn new(socket: UnixStream) -> io::Result<Self> {
        let client = Arc::new(Client { sending: Mutex::new(socket.try_clone()?), socket });
        Ok(Self { client, gives_input: false })
    }

    fn go_on(mut self, monitor: &Arc<Monitor>) {
        let monitor = Arc::clone(monitor);
        monitor.clients.connected.fetch_add(1, Ordering::SeqCst);
        thread::spawn(move || {
            while self.step(&monitor).unwrap_or_else(|error| {
                log::info!("a client has failed: {error}");
                false
            }) {}
            // Whoever gave the input has gone; a terminal has no end.
            if self.gives_input && !monitor.container.config.terminal {
                monitor.take_input(&[]);
            }
            monitor.clients.list().retain(|other| !Arc::ptr_eq(&other.client, &self.client));
            monitor.clients.connected.fetch_sub(1, Ordering::SeqCst);
        });
    }

    /// Takes one frame; `false` after the last.
    fn step(&mut self, monitor: &Monitor) -> io::Result<bool> {
        match Frame::read(&self.client.socket)? {
            Some(Frame::Input(bytes)) if self.gives_input => monitor.take_input(&bytes),
            Some(Frame::Request(request)) => {
                self.gives_input |= matches!(request, Request::Attach { input: true, .. });
                monitor.clients.pending.fetch_add(1, Ordering::SeqCst);
                let answered = answer(monitor, &self.client, request);
                monitor.clients.pending.fetch_sub(1, Ordering::SeqCst);
                answered?;
            }
            Some(Frame::Input(_) | Frame::Output(..) | Frame::Reply(_)) | None => return Ok(false),
        }
        Ok(true)
    }
}

fn answer(monitor: &Monitor, client: &Arc<Client>, request: Request) -> io::Result<()> {
    let reply = match request {
        Request::Attach { output, size, .. } => {
            monitor.set_first_size(size);
            // From here on it hears of what changes; what has changed already it is told now.
            monitor.attach(|| monitor.clients.list().push(Attached { client: Arc::clone(client), output }))
        }
        Request::Signal(number) => Some(monitor.signal(number)),
        Request::Resize(WindowSize { rows, columns }) => {
            Some(monitor.with_process(|process| process.resize(rows, columns)))
        }
        Request::Stop { signal, grace_ms } => Some(monitor.stop(signal, grace_ms.map(Duration::from_millis))),
        Request::Pause => Some(monitor.pause(true)),
        Request::Resume => Some(monitor.pause(false)),
        Request::Snapshot { name, memory } => Some(monitor.snapshot(&name, memory)),
    };
    reply.map_or(Ok(()), |reply| client.send(&Frame::Reply(reply)))
}
