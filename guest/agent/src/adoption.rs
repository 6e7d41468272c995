// SPDX-License-Identifier: Apache-2.0
//! A container that was in a snapshot goes on as another: with streams, a name, files and a network of its own. Its
//! processes stand still meanwhile, so that none sees half of it.

use coracle_protocol::Adopt;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{OFlags, fcntl_setfl};
use rustix::io::Result;
use rustix::process::{Pid, PidfdFlags, getpid, pidfd_open};
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};

use crate::streams::{Kind, Stream};
use crate::workload::{Refusal, failed};
use crate::{inserts, network, vsock};

/// Does all of it, for the container whose first process is `pid` and has these streams.
///
/// # Errors
/// [`Refusal`]: the first that failed.
pub fn adopt<'a>(
    adopt: &Adopt,
    pid: Pid,
    streams: impl Iterator<Item = &'a mut Stream>,
) -> core::result::Result<(), Refusal> {
    set_hostname(pid, adopt.hostname.as_str().as_bytes()).map_err(failed("cannot rename the container's machine"))?;
    inserts::rewrite(&adopt.files).map_err(failed("cannot replace the container's files"))?;
    network::reconnect(&adopt.network).map_err(failed("cannot connect the container to its network"))?;
    reconnect(adopt, streams).map_err(failed("cannot connect the container's streams"))
}

/// All are connected, since the host waits for all; one whose stream has ended before tells so by its own end.
fn reconnect<'a>(adopt: &Adopt, streams: impl Iterator<Item = &'a mut Stream>) -> Result<()> {
    let connect = |port: Option<u32>| -> Result<Option<OwnedFd>> {
        let socket = port.map(vsock::connect).transpose()?;
        socket.iter().try_for_each(|socket| fcntl_setfl(socket, OFlags::NONBLOCK))?;
        Ok(socket)
    };
    let ports = adopt.streams;
    let [mut stdin, mut stdout, mut stderr] = [connect(ports.stdin)?, connect(ports.stdout)?, connect(ports.stderr)?];
    for stream in streams {
        let socket = match stream.kind() {
            Kind::Input => stdin.take(),
            Kind::Output => stdout.take(),
            Kind::Errors => stderr.take(),
        };
        socket.into_iter().for_each(|socket| stream.reconnect(socket));
    }
    Ok(())
}

/// In its own UTS namespace, and back.
fn set_hostname(pid: Pid, name: &[u8]) -> Result<()> {
    let its = pidfd_open(pid, PidfdFlags::empty())?;
    let own = pidfd_open(getpid(), PidfdFlags::empty())?;
    let uts = ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME;
    move_into_thread_name_spaces(its.as_fd(), uts)?;
    let set = rustix::system::sethostname(name);
    move_into_thread_name_spaces(own.as_fd(), uts)?;
    set
}
