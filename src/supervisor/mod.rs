// SPDX-License-Identifier: Apache-2.0
//! Containers over time: made, started, looked after while they run, and removed.
//!
//! Each running container has a monitor, a process of its own that owns its VM, keeps its output and knows how it ends;
//! there is no daemon. Everything else is read from the disk.

pub mod backing;
pub mod client;
pub mod containers;
pub mod describe;
pub mod footprint;
pub mod log;
pub mod monitor;
pub mod mounts;
pub mod names;
pub mod record;
pub mod snapshots;
pub mod spare;
pub mod visit;
pub mod volumes;
pub mod warm;
pub mod wire;

pub use client::Connection;
pub use containers::{Container, Containers, Held};
pub use mounts::{MountSource, MountUse};
pub use record::{Config, HostAddress, ImageUse, LogDriver, NetworkUse, Origin, State, Status, Surroundings};
pub use snapshots::{Snapshot, Snapshots};
pub use volumes::{Description, Volume, Volumes};
