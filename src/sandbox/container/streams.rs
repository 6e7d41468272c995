// SPDX-License-Identifier: Apache-2.0
//! What a process in a container reads and writes: pipes or a terminal on its side, sockets of those who started it on the
//! other, as the agent in a guest has it.

use std::fs::File;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread;

use coracle_protocol::{Streams, WindowSize};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Uid, fchown};
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::termios::{Winsize, tcsetwinsize};

use super::runtime::Standard;

/// Bytes that are moved at once.
const CHUNK: usize = 64 << 10;

/// Connections to who started a process.
#[derive(Debug)]
pub struct Sockets {
    /// What it reads.
    pub stdin: Option<UnixStream>,
    /// What it writes.
    pub stdout: Option<UnixStream>,
    /// What it writes of errors.
    pub stderr: Option<UnixStream>,
}

impl Sockets {
    /// Connects to the ports of the host that a request names, which are sockets beside the VMM's, or what stands for it.
    ///
    /// # Errors
    /// Nobody listens.
    pub fn connect(vsock: &Path, ports: &Streams) -> io::Result<Self> {
        let connect = |port: Option<u32>| {
            let of = |port: u32| {
                let mut name = vsock.as_os_str().to_owned();
                name.push(format!("_{port}"));
                UnixStream::connect(PathBuf::from(name))
            };
            port.map(of).transpose()
        };
        Ok(Self { stdin: connect(ports.stdin)?, stdout: connect(ports.stdout)?, stderr: connect(ports.stderr)? })
    }
}

/// Our ends of a process's pipes.
#[derive(Debug)]
pub struct Pipes {
    input: PipeWriter,
    output: PipeReader,
    errors: PipeReader,
}

/// Pipes, and the process's ends of them, which its user may open again by name, as /dev/stdout.
///
/// # Errors
/// No descriptor is left.
pub fn pipes(user: u32) -> io::Result<(Pipes, Standard)> {
    let ((its_input, input), (output, its_output), (errors, its_errors)) = (io::pipe()?, io::pipe()?, io::pipe()?);
    let its: Standard = [its_input.into(), its_output.into(), its_errors.into()];
    if user != 0 {
        // One that cannot be given away stays root's.
        let _ = its.iter().try_for_each(|end| fchown(end, Some(Uid::from_raw(user)), None));
    }
    Ok((Pipes { input, output, errors }, its))
}

/// What moves bytes between a process and its sockets, until the process has ended.
#[derive(Debug)]
pub struct Moving {
    /// Closed when it has.
    _alive: PipeWriter,
    input: Option<UnixStream>,
}

impl Drop for Moving {
    fn drop(&mut self) {
        if let Some(input) = &self.input {
            // Whoever gives it may have gone.
            let _ = input.shutdown(Shutdown::Both);
        }
    }
}

impl Moving {
    /// Between pipes and sockets. Without a socket of its own, errors go where the output goes.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn pipes(pipes: Pipes, sockets: Sockets) -> io::Result<Self> {
        let (ended, alive) = io::pipe()?;
        let input = sockets.stdin.as_ref().map(UnixStream::try_clone).transpose()?;
        let errors = match (sockets.stderr, &sockets.stdout) {
            (Some(own), _) => Some(own),
            (None, Some(output)) => Some(output.try_clone()?),
            (None, None) => None,
        };
        let also_ended = ended.try_clone()?;
        take_output(File::from(OwnedFd::from(pipes.output)), sockets.stdout, ended);
        take_output(File::from(OwnedFd::from(pipes.errors)), errors, also_ended);
        if let Some(from) = sockets.stdin {
            give_input(from, File::from(OwnedFd::from(pipes.input)));
        }
        Ok(Self { _alive: alive, input })
    }

    /// Between a terminal and sockets.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn terminal(terminal: &OwnedFd, sockets: Sockets) -> io::Result<Self> {
        let (ended, alive) = io::pipe()?;
        let input = sockets.stdin.as_ref().map(UnixStream::try_clone).transpose()?;
        take_output(File::from(terminal.try_clone()?), sockets.stdout, ended);
        if let Some(from) = sockets.stdin {
            give_input(from, File::from(terminal.try_clone()?));
        }
        Ok(Self { _alive: alive, input })
    }
}

/// To the end of the input, which the process then sees too.
fn give_input(mut from: UnixStream, mut to: File) {
    thread::spawn(move || {
        // Not by io::copy, which has the kernel move what it has when there is more of it, or an end.
        let mut buffer = vec![0; CHUNK];
        loop {
            match from.read(&mut buffer) {
                // The process may end, or close its input, before the end of what there is.
                Ok(count @ 1..) if to.write_all(&buffer[..count]).is_ok() => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                _ => break,
            }
        }
    });
}

/// To the end of the output, or to what had been written when the process ended: others may have it too, and go on.
fn take_output(mut from: File, mut to: Option<UnixStream>, ended: PipeReader) {
    thread::spawn(move || {
        let mut buffer = vec![0; CHUNK];
        loop {
            let mut watched =
                [PollFd::new(&from, PollFlags::IN), PollFd::from_borrowed_fd(ended.as_fd(), PollFlags::IN)];
            match poll(&mut watched, None) {
                Err(Errno::INTR) => continue,
                Err(_) => break,
                Ok(_) => {}
            }
            let [output, end] = watched.map(|one| one.revents());
            if output.is_empty() && !end.is_empty() {
                break;
            }
            if output.is_empty() {
                continue;
            }
            match from.read(&mut buffer) {
                // The end of a terminal is an error.
                Ok(0) | Err(_) => break,
                Ok(count) => {
                    let gone = to.as_mut().is_some_and(|to| to.write_all(&buffer[..count]).is_err());
                    // A process that writes where nobody reads hears of it.
                    if gone {
                        break;
                    }
                }
            }
        }
    });
}

/// A socket that an OCI runtime sends a terminal to.
#[derive(Debug)]
pub struct Console {
    listener: UnixListener,
    /// Where it is.
    pub path: PathBuf,
}

impl Console {
    /// Makes it.
    ///
    /// # Errors
    /// The kernel's.
    pub fn bind(path: PathBuf) -> io::Result<Self> {
        Ok(Self { listener: UnixListener::bind(&path)?, path })
    }

    /// The terminal, which the runtime has sent before it ended; made this large.
    ///
    /// # Errors
    /// It has sent none.
    pub fn receive(self, size: WindowSize) -> io::Result<OwnedFd> {
        self.listener.set_nonblocking(true)?;
        let (socket, _) = self.listener.accept()?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut name = [0; 256];
        recvmsg(&socket, &mut [io::IoSliceMut::new(&mut name)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
        let mut descriptors = control.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
            _ => None,
        });
        let terminal = descriptors.next().and_then(|mut one| one.next());
        let terminal = terminal.ok_or_else(|| io::Error::other("the OCI runtime has sent no terminal"))?;
        resize(&terminal, size)?;
        Ok(terminal)
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        // Nothing is to be done about a folder that is gone.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Makes a terminal this large, unless the size is not known.
///
/// # Errors
/// The kernel's.
pub fn resize(terminal: &OwnedFd, size: WindowSize) -> io::Result<()> {
    if size == WindowSize::default() {
        return Ok(());
    }
    let size = Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
    Ok(tcsetwinsize(terminal, size)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sockets() -> (Sockets, UnixStream, UnixStream) {
        let ((ours, its), (our_input, its_input)) = (UnixStream::pair().unwrap(), UnixStream::pair().unwrap());
        (Sockets { stdin: Some(its_input), stdout: Some(its), stderr: None }, ours, our_input)
    }

    #[test]
    fn what_was_written_comes_before_the_end_although_others_have_the_pipe() {
        let (pipes, [input, output, errors]) = pipes(0).unwrap();
        let (sockets, mut ours, our_input) = sockets();
        let moving = Moving::pipes(pipes, sockets).unwrap();
        (&our_input).write_all(b"question").unwrap();
        let mut buffer = [0; 8];
        File::from(input).read_exact(&mut buffer).unwrap();
        assert_eq!(&buffer, b"question");
        let mut output = File::from(output);
        output.write_all(b"answer").unwrap();
        // The process has ended; `output` and `errors` are still open, as with one that it has left running.
        drop(moving);
        let mut text = String::new();
        ours.read_to_string(&mut text).unwrap();
        assert_eq!(text, "answer");
        assert_eq!((&our_input).read(&mut buffer).unwrap(), 0);
        drop((output, errors));
    }

    #[test]
    fn who_writes_where_nobody_reads_hears_of_it() {
        let (pipes, [_input, output, _errors]) = pipes(0).unwrap();
        let (sockets, ours, _our_input) = sockets();
        let _moving = Moving::pipes(pipes, sockets).unwrap();
        drop(ours);
        let mut output = File::from(output);
        let error = loop {
            if let Err(error) = output.write_all(&[0; 4096]) {
                break error;
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }
}
