// SPDX-License-Identifier: Apache-2.0
//! Networks of containers: addresses, bridge and TAP, packet filter, ports, names.
//!
//! What there is is said by files ([`store`]); the host's interfaces and rules are made to fit them ([`host`]), each time
//! anything changes. A bridge, and rules, are there only while a container is attached, or a VM waits for one (a spare).
//! There is no daemon: the monitor of each container holds a lock for as long as it is attached, and carries its ports
//! ([`ports`]) and answers for names ([`dns`]). A monitor that was killed has lost its lock, and the next command that has
//! to do with networks cleans up.
//!
//! Without root each container has a network of its own, in user space ([`passt`]).
//!
//! A container without a VM has one end of a pair of interfaces in a network namespace ([`namespace`]), whose other end is
//! where the TAP of a VM would be; all else is alike.

mod attach;
pub mod dns;
mod host;
mod ipam;
mod manage;
mod model;
mod namespace;
mod netlink;
mod nft;
mod passt;
pub mod ports;
mod store;
mod worker;

pub use attach::{Attachment, Request, attach, attach_in, detach, forget, reconcile, reconcile_in, rename, rename_in};
pub use host::may_change as may_create;
pub use manage::{New, Removed, create, find, list, prune, remove};
pub use model::{DEFAULT, Ipv4Pool, Ipv6Pool, Lease, Network};
pub use namespace::NetworkNamespace;
pub use ports::{PortError, Protocol, Publish, Published};
pub use store::Store;

#[cfg(test)]
mod tests;
