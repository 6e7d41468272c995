// SPDX-License-Identifier: Apache-2.0
//! The rights and limits of a process.

use alloc::vec::Vec;

use coracle_protocol::ResourceLimit;
use rustix::io::{Errno, Result};
use rustix::thread::{CapabilitySet, CapabilitySets, Gid, Uid};

use crate::sys;
use crate::users::Identity;

/// Sets the limits, which is to be done while everything is allowed.
pub fn limit(limits: &[ResourceLimit]) -> Result<()> {
    limits.iter().try_for_each(|one| sys::limit_resource(one.resource, one.soft, one.hard))
}

/// Gives up what neither this process nor what it starts can ever have again; what it has now it keeps until it takes
/// on its credentials.
pub fn bound(capabilities: u64) -> Result<()> {
    let kept = CapabilitySet::from_bits_truncate(capabilities);
    for capability in CapabilitySet::all().iter().filter(|one| !kept.contains(*one)) {
        match rustix::thread::remove_capability_from_bounding_set(capability) {
            // A capability that this kernel does not have.
            Ok(()) | Err(Errno::INVAL) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Becomes `who`, with nothing but the capabilities whose bits are set, to which it is bound already.
pub fn take(who: &Identity, capabilities: u64, no_new_privileges: bool) -> Result<()> {
    let kept = CapabilitySet::from_bits_truncate(capabilities);
    let groups: Vec<Gid> = who.groups.iter().map(|id| Gid::from_raw(*id)).collect();
    rustix::thread::set_thread_groups(&groups)?;
    rustix::thread::set_thread_gid(Gid::from_raw(who.group))?;
    // From root to another user the kernel clears the permitted and effective sets by itself.
    rustix::thread::set_thread_uid(Uid::from_raw(who.user))?;
    if who.user == 0 {
        let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
        rustix::thread::set_capabilities(None, sets)?;
    }
    if no_new_privileges {
        rustix::thread::set_no_new_privs(true)?;
    }
    Ok(())
}
