// SPDX-License-Identifier: Apache-2.0
//! What a child that is on its way to its program tells the agent: a pair of sockets, whose other end `exec` closes.

use alloc::string::String;
use alloc::vec::Vec;
use core::mem::MaybeUninit;
use core::time::Duration;

use coracle_protocol::{ErrorCode, MAX_TEXT};
use rustix::cmsg_space;
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::{Errno, IoSlice, IoSliceMut, Result};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType, recvmsg, send, sendmsg, socketpair,
};

use crate::workload::Refusal;

/// How long a child may take: it may have file systems of the container's to look into, which may not answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// In place of an error's code: a terminal comes along.
const TERMINAL: u16 = 0;

/// What came of a child.
pub enum News {
    /// Its program runs, on this terminal if it has one.
    Runs(Option<OwnedFd>),
    /// It gave up.
    Refused(Refusal),
    /// It has not said anything.
    Silence,
}

/// The agent's end, and the child's.
pub fn pair() -> Result<(OwnedFd, OwnedFd)> {
    let (ours, its) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    set_socket_timeout(&ours, Timeout::Recv, Some(PATIENCE))?;
    Ok((ours, its))
}

/// In the child: says why there is no program.
pub fn refuse(news: impl AsFd, (ErrorCode(code), text): Refusal) {
    let text = text.as_bytes().get(..MAX_TEXT).unwrap_or(text.as_bytes());
    // Without a reader nobody is left to hear it.
    let _ = send(news, &[&code.to_le_bytes(), text].concat(), SendFlags::NOSIGNAL);
}

/// In the child: hands over the agent's end of its terminal.
pub fn hand_over(news: impl AsFd, terminal: impl AsFd) -> Result<()> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors = [terminal.as_fd()];
    control.push(SendAncillaryMessage::ScmRights(&descriptors));
    sendmsg(news, &[IoSlice::new(&TERMINAL.to_le_bytes())], &mut control, SendFlags::NOSIGNAL).map(drop)
}

/// Waits for what becomes of the child.
pub fn read(news: impl AsFd) -> News {
    let mut terminal = None;
    let mut report = [0; 2 + MAX_TEXT];
    loop {
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        match recvmsg(&news, &mut [IoSliceMut::new(&mut report)], &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return News::Silence,
            Ok(message) if message.bytes >= 2 => {
                let [low, high, text @ ..] = &report;
                let code = u16::from_le_bytes([*low, *high]);
                if code != TERMINAL {
                    let text = text.get(..message.bytes - 2).unwrap_or_default();
                    return News::Refused((ErrorCode(code), String::from_utf8_lossy(text).into_owned()));
                }
                let descriptors = control.drain().filter_map(|message| match message {
                    RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors.collect::<Vec<_>>()),
                    _ => None,
                });
                terminal = descriptors.flatten().next();
            }
            Ok(_) | Err(_) => return News::Runs(terminal),
        }
    }
}
