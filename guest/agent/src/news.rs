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

/// How long a child may take, or say nothing: it may have file systems of the container's to look into, which may not
/// answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// In place of an error's code: a terminal comes along.
const TERMINAL: u16 = 0;
/// In place of an error's code: what the child does takes its time, and gets on.
const PROGRESS: u16 = u16::MAX;
/// The same: it waits to be told what to run.
const WAITS: u16 = u16::MAX - 1;

/// What came of a child.
pub enum News {
    /// Its program runs, on this terminal if it has one.
    Runs(Option<OwnedFd>),
    /// It is ready, and has yet to be told what to run.
    Waits,
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

/// In the child: says that it gets on with what takes its time.
pub fn progress(news: impl AsFd) {
    // What there is no room for has been said often enough.
    let _ = send(news, &PROGRESS.to_le_bytes(), SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
}

/// In the child: says that it waits for what to run.
pub fn wait_for_orders(news: impl AsFd) -> Result<()> {
    send(news, &WAITS.to_le_bytes(), SendFlags::NOSIGNAL).map(drop)
}

/// In the child: hands over the agent's end of its terminal.
pub fn hand_over(news: impl AsFd, terminal: impl AsFd) -> Result<()> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors = [terminal.as_fd()];
    control.push(SendAncillaryMessage::ScmRights(&descriptors));
    sendmsg(news, &[IoSlice::new(&TERMINAL.to_le_bytes())], &mut control, SendFlags::NOSIGNAL).map(drop)
}

/// Waits for what becomes of the child; `progress` is called whenever it says that it gets on.
pub fn read(news: impl AsFd, mut progress: impl FnMut()) -> News {
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
                if code == PROGRESS {
                    progress();
                    continue;
                }
                if code == WAITS {
                    return News::Waits;
                }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_may_say_that_it_gets_on_before_it_says_what_becomes_of_it() {
        for refused in [false, true] {
            let (ours, its) = pair().unwrap();
            (0..3).for_each(|_| progress(&its));
            if refused {
                refuse(&its, (ErrorCode::NOT_FOUND, "no such thing".into()));
            }
            drop(its);
            let mut count = 0;
            match read(&ours, || count += 1) {
                News::Refused((code, text)) if refused => {
                    assert_eq!((code, &*text), (ErrorCode::NOT_FOUND, "no such thing"))
                }
                News::Runs(None) if !refused => {}
                _ => panic!("something else"),
            }
            assert_eq!(count, 3);
        }
    }
}
