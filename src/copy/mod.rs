// SPDX-License-Identifier: Apache-2.0
//! Files between the host and a container, as tar archives that the agent writes and reads.
//!
//! What comes from a container is hostile: it never leads out of the place that it is for, whatever links are in it or are
//! made meanwhile; it is no device, and has no set-user-ID bits unless the user asks for all.

mod extract;
mod pack;

pub use extract::{Extraction, Left, extract};
pub use pack::pack;

/// The one name that everything in an archive of ours begins with.
pub const NAME: &str = "x";
