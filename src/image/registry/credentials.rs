// SPDX-License-Identifier: Apache-2.0
//! Who one is to a registry, from where `docker login` and `podman login` keep it.

use std::fmt;

use docker_credential::{CredentialRetrievalError as Failed, DockerCredential};

use super::Problem;
use crate::image::reference::DOCKER;

/// Who one is.
#[derive(Clone, PartialEq, Eq)]
pub enum Credentials {
    /// A user.
    Password {
        /// Name.
        user: String,
        /// Password, or an access token that stands for one.
        password: String,
    },
    /// An OAuth2 refresh token.
    IdentityToken(String),
}

impl fmt::Debug for Credentials {
    /// Without the secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Password { user, .. } => write!(f, "the password of {user}"),
            Self::IdentityToken(_) => write!(f, "an identity token"),
        }
    }
}

/// Looks into Docker's configuration (`$DOCKER_CONFIG/config.json` or `~/.docker/config.json`, with its credential
/// helpers), then into Podman's.
pub fn stored(registry: &str) -> Result<Option<Credentials>, Problem> {
    let server = if registry == DOCKER.name { DOCKER.credentials } else { registry };
    let docker = docker_credential::get_credential(server);
    let podman = || docker_credential::get_podman_credential(registry);
    let found = match docker {
        Ok(found) => Ok(found),
        Err(Failed::NoCredentialConfigured | Failed::ConfigNotFound | Failed::ConfigReadError) => podman(),
        // Helpers say so of a server that they do not know, and with nothing but words.
        Err(Failed::HelperFailure { ref stdout, ref stderr, .. })
            if [stdout, stderr].iter().any(|text| text.contains("credentials not found")) =>
        {
            podman()
        }
        Err(error) => Err(error),
    };
    match found {
        Ok(DockerCredential::UsernamePassword(user, _)) if user.is_empty() => Ok(None),
        // What helpers answer for identity tokens (Docker's credential helper protocol).
        Ok(DockerCredential::UsernamePassword(user, token)) if user == "<token>" => {
            Ok(Some(Credentials::IdentityToken(token)))
        }
        Ok(DockerCredential::UsernamePassword(user, password)) => Ok(Some(Credentials::Password { user, password })),
        Ok(DockerCredential::IdentityToken(token)) => Ok(Some(Credentials::IdentityToken(token))),
        Err(Failed::NoCredentialConfigured | Failed::ConfigNotFound | Failed::ConfigReadError) => Ok(None),
        Err(error) => Err(Problem::Credentials { registry: registry.to_owned(), cause: cause(error) }),
    }
}

/// In one line, and without what a helper may have printed of secrets.
fn cause(error: Failed) -> String {
    match error {
        Failed::HelperFailure { helper, stderr, .. } => {
            let line = stderr.lines().find(|line| !line.trim().is_empty()).unwrap_or("it said no reason");
            format!("the credential helper {helper} failed: {line}")
        }
        error => error.to_string(),
    }
}
