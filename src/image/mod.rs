// SPDX-License-Identifier: Apache-2.0
//! Container images: named, fetched from registries, kept, and read layer by layer.
//!
//! Everything that comes from a registry is untrusted until its digest has been checked: nothing is published in the
//! [`Store`] before, and no layer is ever unpacked into the host's file tree.

mod archive;
mod digest;
mod document;
mod error;
mod layer;
mod limits;
mod obtain;
mod parallel;
mod platform;
mod pull;
mod push;
mod reference;
pub mod registry;
mod rootfs;
mod store;

pub use archive::{Imported, Kind, Source};
pub use digest::{Digest, Hasher, InvalidDigest};
pub use document::Image;
pub use error::{ImageError, Problem, Result};
pub use layer::LayerReader;
pub use obtain::{InvalidPullPolicy, PullPolicy};
pub use platform::{InvalidPlatform, Platform};
pub use pull::{LayerState, Progress, PullOptions};
pub use reference::{Name, Reference, ReferenceError, default_registry};
pub use store::{DIRECTORY_VARIABLE, Found, ImageRecord, Index, Lock, Part, Pruned, Store, Usage, default_root};
