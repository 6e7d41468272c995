// SPDX-License-Identifier: Apache-2.0
//! One microVM: from nothing to running. Usable alone; it knows nothing of containers.

pub mod arch;
pub mod attach;
pub mod boot;
pub mod bus;
pub mod clock;
pub mod config;
pub mod control;
pub mod devices;
pub mod event_loop;
pub mod file_identity;
pub mod guest_log;
pub mod host;
pub mod jail;
pub mod layout;
pub mod machine;
pub mod memory;
pub mod process;
pub mod run;
pub mod snapshot;
pub mod stages;
pub mod stats;
pub mod vcpu;
pub mod virtiofsd;
pub mod vm;
pub mod wakeups;
