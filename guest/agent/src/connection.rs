// SPDX-License-Identifier: Apache-2.0
//! One connection from the host.

use alloc::format;
use alloc::vec;
use alloc::vec::Vec;

use coracle_protocol::{
    Decoder, Ended, ErrorCode, Failure, Frame, Hello, Message, Ping, Ready, Shutdown, Signal, Start, Text, VERSIONS,
};
use rustix::event::PollFlags;
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use rustix::process::Pid;

use crate::guest::{Guest, Question};
use crate::workload::Refusal;
use crate::{facts, mounts, renewal, sys, terminal};

/// Bytes read at once between frames. Also bounds what waits to be sent: nothing is read while something does.
const CHUNK: usize = 2048;
/// Milliseconds after which a host that waits for something to start hears that it gets on.
const TELL_MS: u64 = 30_000;
/// Bytes read at once in the middle of a long frame.
const LONG_CHUNK: usize = 64 << 10;

/// What a host's requests ask of the agent as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing.
    Continue,
    /// To end this connection.
    Close,
    /// To end the machine.
    End(Shutdown),
}

/// One connection from the host.
#[derive(Debug)]
pub struct Connection {
    socket: OwnedFd,
    decoder: Decoder,
    unsent: Vec<u8>,
    /// The host has said something. The agent's greeting waits for that: together with the answer it is one packet.
    heard: bool,
    greeted: bool,
    closing: bool,
    /// Processes that this connection is told the end of.
    started: Vec<Started>,
}

#[derive(Debug)]
struct Started {
    /// Of the request.
    id: u32,
    pid: Pid,
    terminal: Option<OwnedFd>,
}

impl Connection {
    /// Will greet the host on `socket`, which does not block.
    pub fn new(socket: OwnedFd) -> Self {
        let mut connection = Self {
            socket,
            decoder: Decoder::new(),
            unsent: Vec::new(),
            heard: false,
            greeted: false,
            closing: false,
            started: Vec::new(),
        };
        let software = Text::new(concat!("coracle-agent ", env!("CARGO_PKG_VERSION")));
        connection.say(0, &Message::Hello(Hello { versions: VERSIONS, software }));
        connection
    }

    /// Refuses the host on `socket`.
    pub fn refuse(socket: OwnedFd) {
        let mut connection = Self::new(socket);
        connection.unsent.clear();
        connection.say_error(0, ErrorCode::TOO_MANY_CONNECTIONS, "too many connections: close one of the others");
        let _ = connection.flush();
    }

    /// The socket.
    pub fn socket(&self) -> &OwnedFd {
        &self.socket
    }

    /// What the connection waits for.
    pub fn interest(&self) -> PollFlags {
        if self.unsent.is_empty() || !self.heard { PollFlags::IN } else { PollFlags::OUT }
    }

    /// Goes on after the socket became ready.
    pub fn advance(&mut self, guest: &mut Guest) -> Outcome {
        if self.heard {
            if self.flush().is_err() {
                return Outcome::Close;
            }
            if !self.unsent.is_empty() {
                return Outcome::Continue;
            }
        }
        if self.closing {
            return Outcome::Close;
        }
        let mut chunk = vec![0; self.decoder.wanted().unwrap_or(0).clamp(CHUNK, LONG_CHUNK)];
        let count = match recv(&self.socket, &mut chunk[..], RecvFlags::empty()) {
            Ok((0, _)) => return Outcome::Close,
            Ok((count, _)) => count,
            Err(Errno::AGAIN | Errno::INTR) => return Outcome::Continue,
            Err(_) => return Outcome::Close,
        };
        self.heard = true;
        let outcome = self.take(chunk.get(..count).unwrap_or_default(), guest);
        match self.flush() {
            Ok(()) if self.closing && self.unsent.is_empty() => Outcome::Close,
            Ok(()) => outcome,
            // An end that was asked for is an end, whether or not anyone hears the answer.
            Err(_) if matches!(outcome, Outcome::End(_)) => outcome,
            Err(_) => Outcome::Close,
        }
    }

    /// Sends as much as the socket takes.
    pub fn flush(&mut self) -> Result<(), Errno> {
        while !self.unsent.is_empty() {
            match send(&self.socket, &self.unsent, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
                Ok(count) => drop(self.unsent.drain(..count)),
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn take(&mut self, mut bytes: &[u8], guest: &mut Guest) -> Outcome {
        while !self.closing {
            match self.decoder.feed(&mut bytes) {
                Ok(Some(frame)) => {
                    let outcome = self.handle(&frame, guest);
                    if outcome != Outcome::Continue {
                        return outcome;
                    }
                }
                Ok(None) => break,
                Err(error) => self.close_with(0, ErrorCode::MALFORMED, &format!("{error}")),
            }
        }
        Outcome::Continue
    }

    fn handle(&mut self, frame: &Frame, guest: &mut Guest) -> Outcome {
        let id = frame.id;
        match Message::from_frame(frame) {
            Err(error) => self.say_error(id, error.code(), &format!("{error}")),
            Ok(Message::Hello(hello)) => self.greet(id, &hello),
            // Neither asks for anything.
            Ok(Message::Pong(_) | Message::Error(_)) => {}
            Ok(_) if !self.greeted => {
                self.say_error(id, ErrorCode::OUT_OF_PLACE, "the first message must be Hello");
            }
            Ok(Message::Ping(Ping { token })) => self.say(id, &Message::Pong(Ping { token })),
            Ok(Message::Prepare) => match mounts::prepare() {
                Ok(()) => self.say(id, &Message::Ack),
                Err(failed) => {
                    let text = format!("mounting {} failed: {}", failed.at.to_string_lossy(), failed.error);
                    self.say_error(id, ErrorCode::FAILED, &text);
                }
            },
            Ok(Message::Shutdown(shutdown)) => {
                self.say(id, &Message::Ack);
                return Outcome::End(shutdown);
            }
            Ok(Message::Renew(renew)) => match renewal::renew(&renew) {
                Ok(()) => self.say(id, &Message::Ack),
                // What the host has sent behind it counts on its success.
                Err(error) => self.close_with(id, ErrorCode::FAILED, &format!("renewing the guest failed: {error}")),
            },
            Ok(Message::Start(start)) => self.start(&start, frame, guest),
            Ok(Message::Assemble(assembly)) => match guest.assemble(&assembly) {
                Ok(()) => self.say(id, &Message::Ack),
                Err((code, text)) => self.say_error(id, code, &text),
            },
            Ok(Message::Adopt(adopt)) => self.started(id, guest.adopt(&adopt)),
            Ok(Message::Signal(Signal { signal, all: true, .. })) => self.ask(id, Question::SignalAll(signal), guest),
            Ok(Message::Signal(signal)) => self.on_process(id, signal.process, |process| {
                sys::kill(process.pid, signal.signal);
                Ok(())
            }),
            Ok(Message::Resize(resize)) => self.on_process(id, resize.process, |process| match &process.terminal {
                Some(terminal) => terminal::resize(terminal, resize.size),
                None => Err(Errno::NOTTY),
            }),
            Ok(Message::Pause) => self.ask(id, Question::Freeze(true), guest),
            Ok(Message::Resume) => self.ask(id, Question::Freeze(false), guest),
            Ok(Message::Reclaim) => self.ask(id, Question::Reclaim, guest),
            Ok(Message::Stats) => self.ask(id, Question::Stats, guest),
            Ok(Message::Top) => self.ask(id, Question::Top, guest),
            Ok(
                Message::Ready(_)
                | Message::Ack
                | Message::Started
                | Message::Ended(_)
                | Message::Usage(_)
                | Message::Processes(_),
            ) => {
                self.say_error(id, ErrorCode::OUT_OF_PLACE, "only an agent sends this message");
            }
        }
        Outcome::Continue
    }

    fn on_process(&mut self, id: u32, wanted: u32, action: impl FnOnce(&Started) -> Result<(), Errno>) {
        match self.started.iter().find(|process| process.id == wanted).map(action) {
            Some(Ok(())) => self.say(id, &Message::Ack),
            Some(Err(error)) => self.say_error(id, ErrorCode::FAILED, &format!("{error}")),
            None => self.say_error(id, ErrorCode::NO_PROCESS, "no such process was started here, or it has ended"),
        }
    }

    fn ask(&mut self, id: u32, question: Question, guest: &mut Guest) {
        match guest.answer(question) {
            Ok(answer) => self.say(id, &answer),
            Err((code, text)) => self.say_error(id, code, &text),
        }
    }

    fn start(&mut self, start: &Start, frame: &Frame, guest: &mut Guest) {
        let id = frame.id;
        let mut told = sys::uptime_ms();
        let outcome = guest.start(start, frame, &mut || {
            let now = sys::uptime_ms();
            if now.saturating_sub(told) >= TELL_MS {
                told = now;
                // The host waits for an answer only for so long, unless it hears something.
                self.say(0, &Message::Ping(Ping { token: 0 }));
                let _ = self.flush();
            }
        });
        self.started(id, outcome.map(|workload| (workload.pid, workload.terminal)));
    }

    fn started(&mut self, id: u32, outcome: Result<(Pid, Option<OwnedFd>), Refusal>) {
        match outcome {
            Ok((pid, terminal)) => {
                self.started.push(Started { id, pid, terminal });
                self.say(id, &Message::Started);
            }
            Err((code, text)) => self.say_error(id, code, &text),
        }
    }

    /// Tells the end of a process, if it was started from here.
    pub fn ended(&mut self, pid: Pid, ended: Ended) {
        let Some(at) = self.started.iter().position(|process| process.pid == pid) else { return };
        let Started { id, .. } = self.started.swap_remove(at);
        self.say(id, &Message::Ended(ended));
        // What cannot be sent now goes when the socket is ready; a socket that has failed says so then.
        let _ = self.flush();
    }

    fn greet(&mut self, id: u32, hello: &Hello) {
        match VERSIONS.common(hello.versions) {
            Some(version) => {
                self.greeted = true;
                self.say(id, &Message::Ready(Ready { version, facts: facts::collect() }));
            }
            None => {
                let text = format!(
                    "{} speaks protocol versions {} to {}, this agent {} to {}",
                    hello.software, hello.versions.oldest, hello.versions.newest, VERSIONS.oldest, VERSIONS.newest
                );
                self.close_with(id, ErrorCode::UNSUPPORTED_VERSION, &text);
            }
        }
    }

    fn close_with(&mut self, id: u32, code: ErrorCode, text: &str) {
        self.say_error(id, code, text);
        self.closing = true;
    }

    fn say_error(&mut self, id: u32, code: ErrorCode, text: &str) {
        self.say(id, &Message::Error(Failure { code, message: Text::new(text) }));
    }

    fn say(&mut self, id: u32, message: &Message) {
        if message.encode(id, &mut self.unsent).is_err() {
            // Unreachable with today's messages, all far below the limit; a lost answer must not hang the host.
            self.closing = true;
        }
    }
}
