// SPDX-License-Identifier: Apache-2.0
//! Words that all commands have which talk to a registry.

use std::path::PathBuf;

use clap::Args;
use coracle::image::registry::{Access, Credentials};

// How to reach the registry.
#[derive(Clone, Debug, Args)]
pub struct AccessArgs {
    /// Refuse registries without TLS or with a certificate that is not trusted (on by default, `=false` for off)
    #[arg(long, value_name = "BOOL", default_value_t = true, hide_default_value = true, num_args = 0..=1,
          require_equals = true, default_missing_value = "true", action = clap::ArgAction::Set, help_heading = "Registry")]
    tls_verify: bool,
    /// Certificates to trust (*.crt) and to show (*.cert, *.key) instead of those in /etc/docker/certs.d/HOST and the like
    #[arg(long, value_name = "DIR", help_heading = "Registry")]
    cert_dir: Option<PathBuf>,
    /// Log in as USER:PASSWORD instead of as `coracle login` and `docker login` have stored
    #[arg(long, value_name = "USER:PASSWORD", value_parser = credentials, help_heading = "Registry")]
    creds: Option<Credentials>,
}

impl AccessArgs {
    /// What these words mean.
    pub fn access(&self) -> Access {
        Access { tls_verify: self.tls_verify, cert_dir: self.cert_dir.clone(), credentials: self.creds.clone() }
    }
}

fn credentials(text: &str) -> Result<Credentials, String> {
    let (user, password) = text.split_once(':').ok_or("it is USER:PASSWORD")?;
    Ok(Credentials::Password { user: user.to_owned(), password: password.to_owned() })
}
