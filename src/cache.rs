// SPDX-License-Identifier: Apache-2.0
//! Where what was built or fetched is kept: `$CORACLE_CACHE`, or `coracle` under the user's cache directory.

use std::env;
use std::path::PathBuf;

/// The cache directory. It need not exist yet.
pub fn directory() -> PathBuf {
    let set = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("CORACLE_CACHE")
        .or_else(|| set("XDG_CACHE_HOME").map(|cache| cache.join("coracle")))
        .or_else(|| set("HOME").map(|home| home.join(".cache/coracle")))
        .unwrap_or_else(|| PathBuf::from("/var/cache/coracle"))
}

/// The bundled guest kernel, an ELF image with symbols.
pub fn guest_kernel() -> PathBuf {
    directory().join("kernel/vmlinux")
}

/// The initramfs with the agent as `/init`.
pub fn guest_initramfs() -> PathBuf {
    directory().join("guest/initramfs.cpio")
}
