// SPDX-License-Identifier: Apache-2.0
//! Running a container's processes in the guest.

use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::Container;

/// A process to start, as the host has put it together from image and flags.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// The container to make, whose first process this is; `None` for another process in the one that runs.
    pub container: Option<Container>,
    /// What to run.
    pub process: Process,
    /// Where the agent connects to for each stream.
    pub streams: Streams,
    /// What the process does.
    pub task: Task,
}

/// What a process does.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Task {
    /// It becomes its program.
    #[default]
    Program,
    /// It writes files of the container to its output, as a tar archive; its status is 0 if that has gone well, and what
    /// has not is on its error stream.
    Pack(Pack),
    /// It makes files out of the tar archive that is its input; as above.
    Unpack(Unpack),
}

/// Which files to write.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pack {
    /// A file, or a directory and all that is in it.
    pub path: Vec<u8>,
    /// What it is called in the archive.
    pub name: Vec<u8>,
    /// Whether a symbolic link at the path is followed.
    pub follow: bool,
}

/// Where files go.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unpack {
    /// A directory that is there, in which they are made; or a path that the one thing of the archive is to have.
    pub path: Vec<u8>,
    /// Name of that one thing in a directory; `None` for all of the archive under its own names. Everything in the archive
    /// begins with one name, which counts for nothing.
    pub name: Option<Vec<u8>>,
    /// Whether that one thing is a directory.
    pub directory: bool,
    /// Whether what is in it is meant, rather than itself.
    pub content: bool,
    /// Whether files belong to whom the archive says, and not to root.
    pub keep_owner: bool,
}

/// What to run, as whom, with which rights.
///
/// Names and words are bytes: neither Linux nor the OCI's configuration promises UTF-8 for what comes from a user.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// The program and its arguments; the program is looked for in the environment's `PATH`.
    pub arguments: Vec<Vec<u8>>,
    /// `NAME=value`. `HOME` is added from the image's `/etc/passwd` where it is missing.
    pub environment: Vec<Vec<u8>>,
    /// Directory to start in, made if it is missing.
    pub directory: Vec<u8>,
    /// `user[:group]`, names or numbers, looked up in the image; empty for root.
    pub user: Vec<u8>,
    /// More groups of the user's, names or numbers, looked up in the image.
    pub groups: Vec<Vec<u8>>,
    /// The capabilities that this process, and what it starts, can ever have: bit *n* is number *n* of
    /// `linux/capability.h`. Root has all of them from the start, another user none.
    pub capabilities: u64,
    /// Whether programs with set-user-ID bits, or capabilities of their own, start without these (`prctl(2)`).
    pub no_new_privileges: bool,
    /// Limits that are not those of the agent.
    pub limits: Vec<ResourceLimit>,
    /// The size of the terminal that the process has for its streams; `None` where these are pipes.
    pub terminal: Option<WindowSize>,
}

impl Process {
    /// Where its program is looked for.
    #[must_use]
    pub fn path(&self) -> &[u8] {
        self.environment.iter().find_map(|entry| entry.strip_prefix(b"PATH=")).unwrap_or(b"/usr/bin:/bin")
    }
}

/// One resource limit (`getrlimit(2)`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResourceLimit {
    /// `RLIMIT_…` of `asm-generic/resource.h`.
    pub resource: u8,
    /// The limit in force; the highest number is none at all.
    pub soft: u64,
    /// Up to where the process may raise it.
    pub hard: u64,
}

/// Size of a terminal, in characters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowSize {
    /// Lines.
    pub rows: u16,
    /// Characters in a line.
    pub columns: u16,
}

/// vsock ports on the host; the agent connects to each before it answers with `Started`. One connection a stream: the
/// flow control is that of vsock, and no stream waits for another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Streams {
    /// What the process reads; `None` for nothing at all.
    pub stdin: Option<u32>,
    /// What it writes; `None` if nobody wants to know.
    pub stdout: Option<u32>,
    /// What it writes of errors; `None` for the same as `stdout`, as it always is with a terminal.
    pub stderr: Option<u32>,
}

/// A signal for a process that was started on the same connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signal {
    /// Id of its `Start`.
    pub process: u32,
    /// Number of the signal. The first process of a container hears only those that it handles, SIGKILL and SIGSTOP.
    pub signal: u8,
    /// Whether it is for every process of the container.
    pub all: bool,
}

/// A new size for the terminal of a process that was started on the same connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resize {
    /// Id of its `Start`.
    pub process: u32,
    /// The size.
    pub size: WindowSize,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// What ended it.
    pub by: EndedBy,
    /// Whether the kernel has killed a process of the container for want of memory, since the container started.
    pub oom: bool,
}

/// What ended a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EndedBy {
    /// Itself, with this status.
    Exit(u8),
    /// This signal.
    Signal(u8),
}

impl Ended {
    /// The exit status that a shell, or Docker, gives for it.
    #[must_use]
    pub fn status(self) -> u8 {
        match self.by {
            EndedBy::Exit(status) => status,
            EndedBy::Signal(signal) => signal.saturating_add(128),
        }
    }
}
