// SPDX-License-Identifier: Apache-2.0
//! The user's terminal, or pipes, and a container's program: as long as both are there.

use std::io::{self, ErrorKind, IsTerminal, Read, Write};
use std::os::fd::OwnedFd;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use coracle::failure::Failure;
use coracle::signals;
use coracle::supervisor::client::gone;
use coracle::supervisor::wire::{Exit, Frame, Reply, Request, Stream};
use coracle::supervisor::{Connection, Container};

use coracle_protocol::WindowSize;

use super::boot::terminal::{self, RawTerminal};
use super::error;

/// Those that a program in the foreground gets in our place.
const FORWARDED: [i32; 6] = [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM, libc::SIGUSR1, libc::SIGUSR2];
/// After so many requests to end, it is ended.
const INSISTENCE: u32 = 3;
/// How long one signal waits until the one before has been passed on.
const IN_ORDER: Duration = Duration::from_secs(1);
/// Exit status of a program that writes where nobody reads.
const BROKEN_PIPE: u8 = 128 + 13;

/// Ctrl-P, Ctrl-Q: leaves the program running, as with Docker.
const LEAVE: [u8; 2] = [0x10, 0x11];

/// What of ours the program gets.
#[derive(Clone, Copy, Debug)]
pub struct Wiring {
    /// Our input.
    pub input: bool,
    /// Our output gets what it writes.
    pub stdout: bool,
    /// Our standard error gets its.
    pub stderr: bool,
    /// The program has a terminal, which ours becomes.
    pub terminal: bool,
    /// The signals that we get.
    pub signals: bool,
}

/// How a session ended.
#[derive(Debug)]
pub enum Ending {
    /// With the program.
    Ended(Exit),
    /// The program did not start.
    Failed(Failure, u8),
    /// The user left it running.
    Left,
}

/// The signals of a session. Made before anything else, so that none is missed.
pub struct Signals(pub OwnedFd);

impl Signals {
    /// Takes them over.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn take() -> io::Result<Self> {
        signals::readable(&[&FORWARDED[..], &[libc::SIGWINCH]].concat()).map(Self)
    }
}

/// Looks after a session to its end; `begin` is called once the program runs.
///
/// # Errors
/// The monitor has gone, or our own output fails.
pub fn run(
    container: &Container,
    connection: &Connection,
    wiring: Wiring,
    signals: Option<Signals>,
    begin: impl FnOnce(),
    what: &str,
) -> anyhow::Result<Ending> {
    if let Some(Signals(signals)) = signals {
        let (container, connection) = (container.clone(), connection.try_clone()?);
        thread::spawn(move || forward_signals(&signals, &container, &connection, wiring));
    }
    let (mut raw, mut begin) = (None, Some(begin));
    loop {
        let frame = connection.next_frame().map_err(|error| gone(what, error))?;
        match frame {
            Some(Frame::Output(Stream::Stdout, _)) if !wiring.stdout => {}
            Some(Frame::Output(Stream::Stderr, _)) if !wiring.stderr => {}
            Some(Frame::Output(Stream::Stdout, bytes)) => {
                if write(io::stdout(), &bytes)?.is_none() {
                    // As with any program in a pipeline that has lost its reader.
                    let stop = Request::Stop { signal: 13, grace_ms: Some(0) };
                    // It may have ended by itself.
                    let _ = connection.send(&Frame::Request(stop)).map(|()| connection.end(what));
                    return Ok(Ending::Ended(Exit { status: BROKEN_PIPE, out_of_memory: false }));
                }
            }
            Some(Frame::Output(Stream::Stderr, bytes)) => _ = write(io::stderr(), &bytes)?,
            // It may be said twice to who comes as it starts.
            Some(Frame::Reply(Reply::Started)) if begin.is_some() => {
                if let Some(begin) = begin.take() {
                    begin();
                }
                if wiring.terminal {
                    raw = RawTerminal::enter()?;
                    // The program may have been started for somebody else.
                    if let Some(size) = size() {
                        connection.ask(Request::Resize(size), what)?;
                    }
                }
                if wiring.input {
                    let (connection, leaves) = (connection.try_clone()?, raw.is_some());
                    thread::spawn(move || forward_input(&connection, leaves));
                }
            }
            Some(Frame::Reply(Reply::Ended(exit))) => return Ok(Ending::Ended(exit)),
            Some(Frame::Reply(Reply::Failed { failure, status })) => return Ok(Ending::Failed(failure, status)),
            Some(Frame::Input(_) | Frame::Request(_) | Frame::Reply(Reply::Done | Reply::Started)) => {}
            // Our own doing, or the monitor's end.
            None if raw.is_some() => return Ok(Ending::Left),
            None => return Err(gone(what, "it closed the connection").into()),
        }
    }
}

/// The exit status that tells how a session ended; what went wrong is reported.
///
/// # Errors
/// Our own output fails.
pub fn finish(ending: Ending) -> anyhow::Result<ExitCode> {
    match ending {
        Ending::Ended(exit) => Ok(ExitCode::from(exit.status)),
        Ending::Left => {
            writeln!(io::stderr(), "\r\nread escape sequence")?;
            Ok(ExitCode::SUCCESS)
        }
        Ending::Failed(failure, status) => {
            error::report(&failure.into());
            Ok(ExitCode::from(status))
        }
    }
}

/// Waits until the program runs.
///
/// # Errors
/// It does not; with the exit status for it.
pub fn started(connection: &Connection, what: &str) -> anyhow::Result<Option<ExitCode>> {
    match connection.reply(what)? {
        // One that has ended at once has been started.
        Reply::Started | Reply::Ended(_) | Reply::Done => Ok(None),
        Reply::Failed { failure, status } => {
            error::report(&failure.into());
            Ok(Some(ExitCode::from(status)))
        }
    }
}

/// `None` if nobody reads it any more.
fn write(mut to: impl Write, bytes: &[u8]) -> io::Result<Option<()>> {
    match to.write_all(bytes).and_then(|()| to.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(None),
        result => result.map(Some),
    }
}

fn forward_input(connection: &Connection, leaves: bool) {
    let (mut input, mut buffer) = (io::stdin().lock(), vec![0; 32 << 10]);
    let mut keys: Vec<u8> = Vec::new();
    loop {
        let bytes = match input.read(&mut buffer) {
            Ok(count @ 1..) => buffer.get(..count).unwrap_or_default(),
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            _ => break,
        };
        if leaves {
            keys.extend(bytes);
            if keys.windows(LEAVE.len()).any(|pair| pair == LEAVE) {
                return connection.close();
            }
            // The second key may come later.
            keys.drain(..keys.len().saturating_sub(LEAVE.len() - 1));
        }
        if connection.send(&Frame::Input(bytes.to_vec())).is_err() {
            return;
        }
    }
    // The program may have ended before its input.
    let _ = connection.send(&Frame::Input(Vec::new()));
}

fn forward_signals(signals: &OwnedFd, container: &Container, connection: &Connection, wiring: Wiring) {
    let mut asked = 0;
    signals::each(signals, |signal| {
        let ends = [libc::SIGINT, libc::SIGTERM].contains(&i32::from(signal));
        asked += u32::from(ends);
        let request = match i32::from(signal) {
            libc::SIGWINCH => match size().filter(|_| wiring.terminal) {
                Some(size) => Request::Resize(size),
                None => return true,
            },
            _ if wiring.signals && ends && asked >= INSISTENCE => Request::Stop { signal, grace_ms: Some(0) },
            _ if wiring.signals => Request::Signal(signal),
            _ => {
                // Not the program's affair: it is left running.
                connection.close();
                return false;
            }
        };
        pass_on(&request, container, connection).is_ok()
    });
}

/// Signals have connections of their own: in the session's they would wait behind input that the program does not read.
fn pass_on(request: &Request, container: &Container, session: &Connection) -> io::Result<()> {
    let own = container.state().and_then(|state| Connection::open(container, &state, "cannot pass a signal on"));
    let Ok(own) = own else {
        // The monitor does not listen yet; nor has any input been sent.
        return session.send(&Frame::Request(request.clone()));
    };
    own.send(&Frame::Request(request.clone()))?;
    own.limit_wait(IN_ORDER)?;
    // What cannot be done for the program will show by itself.
    let _ = own.next_frame();
    Ok(())
}

/// The size of our terminal, where there is one.
pub fn size() -> Option<WindowSize> {
    terminal::size().map(|(columns, rows)| WindowSize { rows, columns })
}

/// Whether a terminal can be had for the program; `-t` without one is refused, as by Docker.
pub fn check_terminal(wanted: bool, input: bool, what: &str) -> Result<(), Failure> {
    if wanted && input && !io::stdin().is_terminal() {
        return Err(Failure::new(what, "the input device is not a TTY", "the same without -t"));
    }
    Ok(())
}
