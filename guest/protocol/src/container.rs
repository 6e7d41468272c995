// SPDX-License-Identifier: Apache-2.0
//! What a container is made of, as the host has put it together.

use serde::{Deserialize, Serialize};

use crate::Text;

/// A container to make. A guest has one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Container {
    /// The block device with the image's EROFS file system. It is mounted once; its files are the lower layer of the
    /// root.
    pub root: Text,
    /// Name of the machine as its processes see it.
    pub hostname: Text,
}
