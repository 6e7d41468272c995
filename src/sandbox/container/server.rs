// SPDX-License-Identifier: Apache-2.0
//! What the agent is for a guest, for a namespace container: it speaks the same protocol, on a socket that looks like that
//! of a VMM, so that all who talk to a container need not know which kind it is.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use coracle_protocol::{
    AGENT_PORT, BootFacts, ErrorCode, Failure, Hello, Message, Ping, Ready, Signal, Start, Task, Text, VERSIONS,
    read_frame, write_frame,
};

use super::host::{Host, Refusal, Running};

/// Longest first line: `CONNECT 4294967295`.
const MAX_LINE: usize = 18;
/// What it calls itself.
const SOFTWARE: &str = concat!("coracle ", env!("CARGO_PKG_VERSION"), ", without a guest");

/// Serves all who come, until the listener is shut down.
pub fn accept(host: &Arc<Host>, listener: &UnixListener) {
    loop {
        match listener.accept() {
            Ok((socket, _)) => {
                let host = Arc::clone(host);
                thread::spawn(move || {
                    if let Err(error) = Connection::serve(&host, socket) {
                        log::info!("a connection to the container has failed: {error}");
                    }
                });
            }
            // It was shut down.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => break,
            // No descriptor is left: perhaps there is one later.
            Err(_) => thread::sleep(Duration::from_millis(100)),
        }
    }
}

/// A way to answer, from any thread.
#[derive(Clone)]
struct Answers(Arc<Mutex<UnixStream>>);

impl Answers {
    fn say(&self, id: u32, message: &Message) -> io::Result<()> {
        let frame = message.to_frame(id).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        write_frame(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner), &frame)
    }

    fn refuse(&self, id: u32, (code, text): &Refusal) -> io::Result<()> {
        self.say(id, &Message::Error(Failure { code: *code, message: Text::new(text) }))
    }
}

struct Connection {
    host: Arc<Host>,
    answers: Answers,
    /// Those that were started on it.
    started: HashMap<u32, Arc<Running>>,
}

impl Connection {
    fn serve(host: &Arc<Host>, mut socket: UnixStream) -> io::Result<()> {
        if read_line(&mut socket)? != format!("CONNECT {AGENT_PORT}") {
            // There is nobody at other ports, as in a guest.
            return Ok(());
        }
        socket.write_all(b"OK 1\n")?;
        let answers = Answers(Arc::new(Mutex::new(socket.try_clone()?)));
        answers.say(0, &Message::Hello(Hello { versions: VERSIONS, software: Text::new(SOFTWARE) }))?;
        let mut connection = Self { host: Arc::clone(host), answers, started: HashMap::new() };
        let broken = |error| io::Error::new(io::ErrorKind::InvalidData, format!("{error}"));
        while let Some(frame) = read_frame(&mut socket).map_err(broken)? {
            match Message::from_frame(&frame) {
                Ok(message) => connection.answer(frame.id, message)?,
                Err(error) => connection.answers.refuse(frame.id, &(error.code(), error.to_string()))?,
            }
        }
        Ok(())
    }

    fn answer(&mut self, id: u32, message: Message) -> io::Result<()> {
        let done = match message {
            Message::Hello(hello) => {
                let Some(version) = VERSIONS.common(hello.versions) else {
                    let refusal = (ErrorCode::UNSUPPORTED_VERSION, "no version in common".to_owned());
                    return self.answers.refuse(id, &refusal);
                };
                let facts = BootFacts { kernel: Text::new("the host's"), ..BootFacts::default() };
                return self.answers.say(id, &Message::Ready(Ready { version, facts }));
            }
            Message::Ping(Ping { token }) => return self.answers.say(id, &Message::Pong(Ping { token })),
            Message::Start(start) if start.task == Task::Program => return self.start(id, &start),
            Message::Start(start) => return self.start_task(id, &start),
            Message::Signal(Signal { signal, all: true, .. }) => self.host.signal_all(signal),
            Message::Signal(one) => self.on_process(one.process, |process| process.signal(one.signal)),
            Message::Resize(resize) => self.on_process(resize.process, |process| process.resize(resize.size)),
            Message::Pause => self.host.freeze(true),
            Message::Resume => self.host.freeze(false),
            Message::Reclaim => Err((ErrorCode::FAILED, "its files are cached by the host's own kernel".to_owned())),
            Message::Stats => match self.host.usage() {
                Ok(usage) => return self.answers.say(id, &Message::Usage(usage)),
                Err(refusal) => Err(refusal),
            },
            Message::Top => match self.host.processes() {
                Ok(processes) => return self.answers.say(id, &Message::Processes(processes)),
                Err(refusal) => Err(refusal),
            },
            Message::Shutdown(_) => {
                self.host.kill();
                Ok(())
            }
            // There is nothing to mount beforehand, and no clone that has to become another.
            Message::Prepare | Message::Renew(_) => Ok(()),
            // Neither asks for anything.
            Message::Pong(_) | Message::Error(_) => return Ok(()),
            _ => Err((ErrorCode::OUT_OF_PLACE, "only an agent sends this message".to_owned())),
        };
        match done {
            Ok(()) => self.answers.say(id, &Message::Ack),
            Err(refusal) => self.answers.refuse(id, &refusal),
        }
    }

    fn start(&mut self, id: u32, start: &Start) -> io::Result<()> {
        match self.host.start(start) {
            Err(refusal) => self.answers.refuse(id, &refusal),
            Ok((running, following)) => {
                self.started.insert(id, Arc::new(running));
                self.answers.say(id, &Message::Started)?;
                let (host, answers) = (Arc::clone(&self.host), self.answers.clone());
                thread::spawn(move || {
                    let ended = host.follow(following);
                    // Who started it may have gone.
                    let _ = answers.say(id, &Message::Ended(ended));
                });
                Ok(())
            }
        }
    }

    fn start_task(&self, id: u32, start: &Start) -> io::Result<()> {
        match self.host.prepare_task(start) {
            Err(refusal) => self.answers.refuse(id, &refusal),
            Ok(task) => {
                self.answers.say(id, &Message::Started)?;
                let answers = self.answers.clone();
                thread::spawn(move || {
                    let ended = Host::run_task(task);
                    // Who asked for it may have gone.
                    let _ = answers.say(id, &Message::Ended(ended));
                });
                Ok(())
            }
        }
    }

    fn on_process(&self, id: u32, act: impl FnOnce(&Running) -> Result<(), Refusal>) -> Result<(), Refusal> {
        let none = || (ErrorCode::NO_PROCESS, "there is no such process".to_owned());
        self.started.get(&id).ok_or_else(none).and_then(|process| act(process))
    }
}

/// Byte by byte: what follows the line is the first message.
fn read_line(socket: &mut UnixStream) -> io::Result<String> {
    let (mut line, mut byte) = (Vec::new(), [0]);
    while line.len() <= MAX_LINE {
        socket.read_exact(&mut byte)?;
        if byte == *b"\n" {
            break;
        }
        line.push(byte[0]);
    }
    Ok(String::from_utf8_lossy(&line).into_owned())
}
