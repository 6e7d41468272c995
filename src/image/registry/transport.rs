// SPDX-License-Identifier: Apache-2.0
//! HTTP and TLS: how connections are made, and what their failures mean.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use ureq::Agent;
use ureq::config::{Config, RedirectAuthHeaders};
use ureq::tls::{ClientCert, RootCerts, TlsConfig};
use ureq::unversioned::transport::DefaultConnector;

use super::{Access, Problem, certificates, is_loopback, resolver::Resolver};

/// A client for one registry.
pub fn agent(registry: &str, access: &Access, plain_allowed: bool) -> Result<Agent, Problem> {
    let found = certificates::find(registry, access.cert_dir.as_deref())?;
    let client = found.client.map(|(chain, key)| ClientCert::new_with_certs(&chain, key));
    let tls = TlsConfig::builder()
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .root_certs(RootCerts::Specific(Arc::new(found.authorities)))
        .client_cert(client)
        .disable_verification(!access.tls_verify)
        .build();
    let mut config = Config::builder()
        .tls_config(tls)
        // Statuses are looked at one by one.
        .http_status_as_error(false)
        // A redirect may lead to someone else's storage, which is not to see the password or token.
        .redirect_auth_headers(RedirectAuthHeaders::SameHost)
        .https_only(!plain_allowed)
        .user_agent(concat!("coracle/", env!("CARGO_PKG_VERSION")))
        .max_response_header_size(64 << 10)
        .timeout_connect(Some(Duration::from_secs(20)))
        .timeout_recv_response(Some(Duration::from_secs(60)))
        // No limit for a whole body, but one for silence.
        .timeout_per_read(Some(Duration::from_secs(60)))
        .timeout_per_write(Some(Duration::from_secs(60)));
    if is_loopback(registry) {
        config = config.proxy(None);
    }
    Ok(Agent::with_parts(config.build(), DefaultConnector::default(), Resolver::default()))
}

/// What a failed request means.
pub fn problem(registry: &str, error: ureq::Error) -> Problem {
    let registry = registry.to_owned();
    match error {
        ureq::Error::Rustls(error) => tls_problem(registry, &error),
        ureq::Error::Io(error) => match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(inner) => tls_problem(registry, inner),
            None if is_broken(&error) => Problem::Interrupted { received: 0, size: 0, cause: error.to_string() },
            None => Problem::Unreachable { registry, cause: error.to_string() },
        },
        ureq::Error::HostNotFound => Problem::Unreachable { registry, cause: "no such host".into() },
        ureq::Error::ConnectionFailed => Problem::Unreachable { registry, cause: "nobody answers".into() },
        ureq::Error::Timeout(what) => Problem::Unreachable { registry, cause: format!("no answer in time ({what})") },
        ureq::Error::RequireHttpsOnly(_) => Problem::PlainHttp { registry },
        error => Problem::Protocol(error.to_string()),
    }
}

/// Whether a connection was there and then was not.
pub fn is_broken(error: &io::Error) -> bool {
    use io::ErrorKind as Kind;
    matches!(error.kind(), Kind::UnexpectedEof | Kind::ConnectionReset | Kind::ConnectionAborted | Kind::BrokenPipe)
}

fn tls_problem(registry: String, error: &rustls::Error) -> Problem {
    match error {
        // The first bytes were no TLS record: `HTTP/1.0 400 Bad Request`.
        rustls::Error::InvalidMessage(_) => Problem::PlainHttp { registry },
        rustls::Error::InvalidCertificate(cause) => Problem::Untrusted { registry, cause: cause.to_string() },
        error => Problem::Unreachable { registry, cause: format!("TLS: {error}") },
    }
}
