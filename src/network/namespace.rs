// SPDX-License-Identifier: Apache-2.0
//! The network of a container without a VM: a namespace, with one end of a pair of interfaces in it.

use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;

use ipnet::IpNet;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::netlink::{Change, Netlink};
use crate::failure::Failure;

/// The interface in it.
pub const CARD: &str = "eth0";
const WHAT: &str = "cannot set up the container's network";

/// A network namespace, which is there for as long as this, or anybody in it, is.
#[derive(Clone, Debug)]
pub struct NetworkNamespace(Arc<File>);

impl NetworkNamespace {
    /// Makes one, with its loopback up.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new() -> Result<Self, Failure> {
        let made = in_thread(|| {
            // SAFETY: this changes the network namespace of the calling thread alone, and no descriptor.
            if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
                return Err(io::Error::last_os_error());
            }
            let mut netlink = Netlink::open()?;
            for link in netlink.links()?.iter().filter(|link| link.name == "lo") {
                netlink.change(link.index, &Change::default())?;
            }
            File::open("/proc/thread-self/ns/net")
        });
        made.map(Arc::new).map(Self).map_err(failed("making a network namespace"))
    }

    /// Where others find it while this process has it.
    pub fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.descriptor()).into()
    }

    /// For the kernel.
    pub(super) fn descriptor(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    /// Sets up the interface in it, which is there by now.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn configure(&self, mtu: u16, addresses: &[IpNet], gateways: &[IpAddr]) -> Result<(), Failure> {
        let done = self.within(|| {
            let mut netlink = Netlink::open()?;
            let links = netlink.links()?;
            let card = links.iter().find(|link| link.name == CARD).ok_or(io::ErrorKind::NotFound)?.index;
            netlink.change(card, &Change { mtu: Some(mtu.into()), ..Change::default() })?;
            addresses.iter().try_for_each(|address| netlink.add_address(card, *address))?;
            gateways.iter().try_for_each(|gateway| netlink.add_default_route(card, *gateway))
        });
        done.map_err(failed("setting up the interface in the container"))
    }

    fn within<T: Send>(&self, act: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        in_thread(|| {
            move_into_link_name_space(self.0.as_fd(), Some(LinkNameSpaceType::Network))?;
            act()
        })
    }
}

/// In a thread of its own, whose namespaces are nobody else's.
fn in_thread<T: Send>(act: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let thread = scope.spawn(act);
        thread.join().unwrap_or_else(|_| Err(io::Error::other("a thread has failed")))
    })
}

fn failed(context: &'static str) -> impl FnOnce(io::Error) -> Failure {
    move |error| Failure::new(WHAT, format!("{context}: {error}"), "as root, or --network none")
}
