// SPDX-License-Identifier: Apache-2.0
//! Host names to addresses.

use std::ffi::{c_char, c_int};
use std::sync::Once;

use ureq::http::Uri;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver as Resolve};
use ureq::unversioned::transport::NextTimeout;

unsafe extern "C" {
    /// `<nss.h>`: which services answer for a database, as a line of nsswitch.conf says it.
    fn __nss_configure_lookup(database: *const c_char, services: *const c_char) -> c_int;
}

/// The C library's resolver, kept to what is inside a static program: other services of nsswitch.conf are shared
/// libraries, which only a C library of the very same version can load.
#[derive(Debug, Default)]
pub struct Resolver(DefaultResolver);

impl Resolve for Resolver {
    fn resolve(
        &self,
        uri: &Uri,
        config: &ureq::config::Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        static CONFIGURED: Once = Once::new();
        CONFIGURED.call_once(|| {
            // SAFETY: both are C strings that live for ever, and the function copies what it keeps. A failure leaves the
            // system's own order, which is then what resolves.
            unsafe { __nss_configure_lookup(c"hosts".as_ptr(), c"files dns".as_ptr()) };
        });
        self.0.resolve(uri, config, timeout)
    }
}
