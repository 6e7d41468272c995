// SPDX-License-Identifier: Apache-2.0
//! A client of registries (OCI distribution specification 1.1; Docker Registry HTTP API V2).

mod auth;
mod blob;
mod certificates;
mod credentials;
pub mod login;
mod resolver;
#[cfg(test)]
pub mod testing;
mod transport;
mod upload;

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Duration;

use ureq::http::{Response, StatusCode, header};
use ureq::{Agent, Body};

use self::auth::Authorization;
use super::reference::DOCKER;
use super::{Digest, Name, Problem, document, limits};

pub use blob::{Content, RETRIES};
pub use credentials::Credentials;

/// How to reach a registry.
#[derive(Clone, Debug)]
pub struct Access {
    /// Refuse registries without TLS or with a certificate that is not trusted.
    pub tls_verify: bool,
    /// A directory with `*.crt` (CAs), `*.cert` and `*.key` (this client), instead of the usual ones.
    pub cert_dir: Option<PathBuf>,
    /// Whom to log in as, instead of who is stored.
    pub credentials: Option<Credentials>,
}

impl Default for Access {
    fn default() -> Self {
        Self { tls_verify: true, cert_dir: None, credentials: None }
    }
}

/// What one wants to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Read.
    Pull,
    /// Read and write.
    Push,
    /// Nothing but to be known.
    Login,
}

/// A repository in a registry that has answered.
#[derive(Debug)]
pub struct Registry {
    name: Name,
    access: Access,
    agent: Agent,
    /// Scheme and authority.
    base: String,
    scope: String,
    authorization: Mutex<Option<Authorization>>,
}

/// A manifest or index as the registry has it.
#[derive(Debug)]
pub struct Document {
    /// Of its bytes.
    pub digest: Digest,
    /// What it is.
    pub media_type: String,
    /// As they came.
    pub bytes: Vec<u8>,
}

impl Registry {
    /// Finds out how the registry speaks, and that it does.
    ///
    /// Loopback registries may do without TLS, as may all when `access` does not want it verified; TLS is tried first.
    ///
    /// # Errors
    /// It does not answer, or not as a registry does.
    pub fn connect(name: &Name, purpose: Purpose, access: &Access) -> Result<Self, Problem> {
        let scope = match purpose {
            Purpose::Pull => format!("repository:{}:pull", name.repository()),
            Purpose::Push => format!("repository:{}:pull,push", name.repository()),
            Purpose::Login => String::new(),
        };
        let host = if name.registry() == DOCKER.name { DOCKER.host } else { name.registry() };
        let plain_allowed = !access.tls_verify || is_loopback(host);
        let connect = |scheme: &str| -> Result<Self, Problem> {
            let agent = transport::agent(name.registry(), access, plain_allowed)?;
            let (name, access) = (name.clone(), access.clone());
            let (base, scope) = (format!("{scheme}://{host}"), scope.clone());
            let registry = Self { name, access, agent, base, scope, authorization: Mutex::default() };
            registry.greet()?;
            Ok(registry)
        };
        match retry(|| connect("https")) {
            Err(Problem::PlainHttp { .. }) if plain_allowed => retry(|| connect("http")),
            result => result,
        }
    }

    /// Whether it speaks TLS.
    pub fn is_encrypted(&self) -> bool {
        self.base.starts_with("https:")
    }

    /// `GET /v2/`: every registry has it, and says there how it wants to be logged in to.
    fn greet(&self) -> Result<(), Problem> {
        let response = self.agent.get(format!("{}/v2/", self.base)).call().map_err(|error| self.problem(error))?;
        match response.status() {
            StatusCode::UNAUTHORIZED => self.authorize(&response),
            status if status.is_success() => Ok(()),
            _ => Err(self.unexpected(response, "registry API")),
        }
    }

    /// Asks again, now logged in.
    fn confirm(&self) -> Result<(), Problem> {
        let url = format!("{}/v2/", self.base);
        let response = self.authorized(|authorization| {
            let mut request = self.agent.get(&url);
            if let Some(authorization) = authorization {
                request = request.header(header::AUTHORIZATION, authorization);
            }
            request.call()
        })?;
        match response.status() {
            status if status.is_success() => Ok(()),
            _ => Err(self.unexpected(response, "registry API")),
        }
    }

    /// Fetches the manifest or index that a tag or digest names.
    ///
    /// # Errors
    /// There is none, it may not be read, or it is not what its digest says.
    pub fn manifest(&self, reference: &str) -> Result<Document, Problem> {
        retry(|| self.manifest_once(reference))
    }

    fn manifest_once(&self, reference: &str) -> Result<Document, Problem> {
        let accepted = [document::MANIFESTS, document::INDEXES].concat().join(", ");
        let mut response = self.get(&format!("manifests/{reference}"), &[("accept", &accepted)])?;
        if response.status() != StatusCode::OK {
            return Err(self.unexpected(response, "image"));
        }
        let text = |name| response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let (declared, promised) = (text(header::CONTENT_TYPE.as_str()), text("docker-content-digest"));
        let size = response.body().content_length().unwrap_or(0);
        document::too_large("manifest", size, limits::MANIFEST)?;
        let limited = response.body_mut().with_config().limit(limits::MANIFEST);
        let bytes = limited.read_to_vec().map_err(|error| match error {
            ureq::Error::BodyExceedsLimit(limit) => Problem::TooLarge { what: "manifest", size: limit + 1, limit },
            error => self.problem(error),
        })?;
        let digest = Digest::of(&bytes);
        // A digest that was asked for has to be met; one that the registry offers is checked too, since it is what others
        // will be told to pull.
        for expected in [reference.parse().ok(), promised.and_then(|text| text.parse().ok())].into_iter().flatten() {
            if expected != digest {
                return Err(Problem::DigestMismatch { expected, found: digest });
            }
        }
        let media_type = document::media_type(&bytes, declared.as_deref())?;
        Ok(Document { digest, media_type, bytes })
    }

    /// `GET` below the repository, logged in where that is asked for.
    fn get(&self, path: &str, headers: &[(&str, &str)]) -> Result<Response<Body>, Problem> {
        let url = format!("{}/v2/{}/{path}", self.base, self.name.repository());
        self.authorized(|authorization| {
            let mut request = self.agent.get(&url);
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            if let Some(authorization) = authorization {
                request = request.header(header::AUTHORIZATION, authorization);
            }
            request.call()
        })
    }

    /// Sends a request, and again once after logging in anew: a token may have run out meanwhile.
    fn authorized(
        &self,
        send: impl Fn(Option<&str>) -> Result<Response<Body>, ureq::Error>,
    ) -> Result<Response<Body>, Problem> {
        let authorization = self.authorization()?;
        let response = send(authorization.as_deref()).map_err(|error| self.problem(error))?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return Ok(response);
        }
        self.authorize(&response)?;
        let authorization = self.authorization()?;
        let response = send(authorization.as_deref()).map_err(|error| self.problem(error))?;
        match response.status() {
            StatusCode::UNAUTHORIZED => Err(self.unauthorized()),
            _ => Ok(response),
        }
    }

    /// Why a response is not what was asked for.
    fn unexpected(&self, mut response: Response<Body>, what: &'static str) -> Problem {
        let status = response.status();
        let body = response.body_mut().with_config().limit(1 << 16).lossy_utf8(true).read_to_string();
        let message = body.ok().map(|body| registry_message(&body)).unwrap_or_default();
        match status {
            StatusCode::NOT_FOUND => Problem::NotFound(what),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => self.unauthorized(),
            _ => Problem::Status { status: status.as_u16(), message },
        }
    }

    fn problem(&self, error: ureq::Error) -> Problem {
        transport::problem(self.name.registry(), error)
    }
}

/// The registry's own words (distribution specification, "Error Codes"), at most a line of them.
fn registry_message(body: &str) -> String {
    let errors: Option<serde_json::Value> = serde_json::from_str(body).ok();
    let first = errors.as_ref().and_then(|body| body.pointer("/errors/0"));
    let field = |name: &str| first.and_then(|error| error.get(name)).and_then(|value| value.as_str());
    let message = field("message").filter(|text| !text.is_empty()).or(field("code")).unwrap_or_default();
    message.chars().take(200).collect()
}

/// Whether this is a registry on this host itself, so that nothing goes over a network.
fn is_loopback(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if !port.ends_with(']') => name,
        _ => host,
    };
    let address = name.trim_start_matches('[').trim_end_matches(']');
    name == "localhost" || address.parse().is_ok_and(|address: IpAddr| address.is_loopback())
}

/// Tries again what may succeed a moment later, some times, and waits longer each time.
pub(super) fn retry<T>(mut attempt: impl FnMut() -> Result<T, Problem>) -> Result<T, Problem> {
    let mut waits = RETRIES.iter();
    loop {
        match attempt() {
            // Nobody listens there: that does not change within a second.
            Err(Problem::Unreachable { registry, cause }) => return Err(Problem::Unreachable { registry, cause }),
            Err(problem) if problem.is_transient() => match waits.next() {
                Some(wait) => {
                    log::info!("trying again in {wait} ms: {problem}");
                    std::thread::sleep(Duration::from_millis(*wait));
                }
                None => return Err(problem),
            },
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_host_is_loopback() {
        for host in ["localhost", "localhost:5000", "127.0.0.1:5000", "127.1.2.3", "[::1]", "[::1]:5000"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in ["example.org", "localhost.example.org", "127.0.0.1.example.org:80", "10.0.0.1:5000", "[::2]:1"] {
            assert!(!is_loopback(host), "{host}");
        }
    }

    #[test]
    fn what_a_registry_says_is_quoted_in_one_line() {
        let body = r#"{"errors":[{"code":"TOOMANYREQUESTS","message":"slow down"}]}"#;
        assert_eq!(registry_message(body), "slow down");
        assert_eq!(registry_message(r#"{"errors":[{"code":"DENIED"}]}"#), "DENIED");
        assert_eq!(registry_message("<html>"), "");
        assert_eq!(registry_message("{}"), "");
    }

    #[test]
    fn only_what_may_change_is_tried_again() {
        let mut count = 0;
        let result: Result<(), _> = retry(|| {
            count += 1;
            Err(Problem::Status { status: 404, message: String::new() })
        });
        assert!(result.is_err());
        assert_eq!(count, 1);
        let mut count = 0;
        let result = retry(|| {
            count += 1;
            if count < 3 { Err(Problem::Status { status: 503, message: String::new() }) } else { Ok(count) }
        });
        assert_eq!(result.unwrap(), 3);
    }
}
