// SPDX-License-Identifier: Apache-2.0
//! Logging in: HTTP basic authentication, and tokens (Docker's token authentication, with OAuth2 for identity tokens).

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use ureq::Body;
use ureq::http::{Response, StatusCode, Uri, header};

use super::{Credentials, Problem, Registry, credentials, is_loopback};

/// The most that a token's answer may have, in bytes.
const TOKEN_LIMIT: u64 = 1 << 20;

/// The value of the `Authorization` header.
#[derive(Clone)]
pub struct Authorization(String);

impl fmt::Debug for Authorization {
    /// Without the secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ...", self.0.split(' ').next().unwrap_or_default())
    }
}

/// What a registry asks for (RFC 7235).
#[derive(Debug, PartialEq, Eq)]
struct Challenge {
    scheme: String,
    parameters: Vec<(String, String)>,
}

impl Registry {
    /// What to send with the next request.
    pub(super) fn authorization(&self) -> Result<Option<String>, Problem> {
        let lock = self.authorization.lock().map_err(|_| Problem::Cancelled)?;
        Ok(lock.as_ref().map(|authorization| authorization.0.clone()))
    }

    /// Logs in as a response with status 401 asks for it.
    pub(super) fn authorize(&self, response: &Response<Body>) -> Result<(), Problem> {
        let values = response.headers().get_all(header::WWW_AUTHENTICATE);
        let challenges: Vec<_> =
            values.iter().filter_map(|value| value.to_str().ok()).filter_map(Challenge::parse).collect();
        let of = |scheme: &str| challenges.iter().find(|challenge| challenge.scheme.eq_ignore_ascii_case(scheme));
        let credentials = match &self.access.credentials {
            Some(credentials) => Some(credentials.clone()),
            None => credentials::stored(self.name.registry())?,
        };
        let authorization = match (of("bearer"), of("basic"), credentials) {
            (Some(challenge), _, credentials) => self.token(challenge, credentials.as_ref())?,
            (None, Some(_), Some(Credentials::Password { user, password })) => basic(&user, &password),
            (None, Some(_), _) => return Err(self.unauthorized()),
            (None, None, _) => {
                return Err(Problem::Protocol("it wants a login, and does not say of which kind".into()));
            }
        };
        *self.authorization.lock().map_err(|_| Problem::Cancelled)? = Some(authorization);
        Ok(())
    }

    pub(super) fn unauthorized(&self) -> Problem {
        let registry = self.name.registry().to_owned();
        let given = self.access.credentials.is_some() || matches!(credentials::stored(&registry), Ok(Some(_)));
        Problem::Unauthorized { registry, given }
    }

    fn token(&self, challenge: &Challenge, credentials: Option<&Credentials>) -> Result<Authorization, Problem> {
        let realm = challenge.get("realm").unwrap_or_default();
        let uri: Uri =
            realm.parse().map_err(|_| Problem::Protocol(format!("its token service `{realm}` is no URL")))?;
        // What proves who one is does not go over a network in the clear because an answer says so.
        let is_safe = uri.scheme_str() == Some("https") || !self.access.tls_verify;
        if !is_safe && !uri.host().is_some_and(is_loopback) {
            return Err(Problem::Protocol(format!("its token service `{realm}` has no TLS")));
        }
        let service = challenge.get("service").unwrap_or_default();
        // The greeting's challenge has no scope, and others know best which they want.
        let scope = challenge.get("scope").unwrap_or(&self.scope);
        let response = match credentials {
            Some(Credentials::IdentityToken(token)) => {
                let client = "coracle";
                self.agent.post(realm).send_form([
                    ("grant_type", "refresh_token"),
                    ("service", service),
                    ("scope", scope),
                    ("client_id", client),
                    ("refresh_token", token),
                ])
            }
            credentials => {
                let mut request = self.agent.get(realm).query("service", service);
                if !scope.is_empty() {
                    request = request.query("scope", scope);
                }
                if let Some(Credentials::Password { user, password }) = credentials {
                    request = request.header(header::AUTHORIZATION, basic(user, password).0);
                }
                request.call()
            }
        };
        let mut response = response.map_err(|error| self.problem(error))?;
        match response.status() {
            StatusCode::OK => {}
            StatusCode::BAD_REQUEST if credentials.is_some() => return Err(self.unauthorized()),
            _ => return Err(self.unexpected(response, "token service")),
        }
        #[derive(Deserialize)]
        struct Token {
            token: Option<String>,
            access_token: Option<String>,
        }
        let bytes = response.body_mut().with_config().limit(TOKEN_LIMIT).read_to_vec();
        let bytes = bytes.map_err(|error| self.problem(error))?;
        let nonsense = || Problem::Protocol("its token service gives no token".into());
        let token: Token = serde_json::from_slice(&bytes).map_err(|_| nonsense())?;
        let token = token.token.or(token.access_token).filter(|token| !token.is_empty()).ok_or_else(nonsense)?;
        Ok(Authorization(format!("Bearer {token}")))
    }
}

fn basic(user: &str, password: &str) -> Authorization {
    Authorization(format!("Basic {}", STANDARD.encode(format!("{user}:{password}"))))
}

impl Challenge {
    /// Reads the value of a `WWW-Authenticate` header with one challenge.
    fn parse(text: &str) -> Option<Self> {
        let (scheme, mut rest) = text.trim().split_once(' ').unwrap_or((text.trim(), ""));
        let mut parameters = Vec::new();
        while let Some((name, value)) = rest.split_once('=') {
            let name = name.trim_matches([' ', ',', '\t']).to_ascii_lowercase();
            let value = value.trim_start();
            let (value, after) = match value.strip_prefix('"') {
                Some(quoted) => unquote(quoted)?,
                None => {
                    let (value, after) = value.split_once(',').unwrap_or((value, ""));
                    (value.trim().to_owned(), after)
                }
            };
            parameters.push((name, value));
            rest = after;
        }
        (!scheme.is_empty()).then(|| Self { scheme: scheme.to_owned(), parameters })
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// The text up to the closing quote, and what comes after it.
fn unquote(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut letters = text.char_indices();
    while let Some((at, letter)) = letters.next() {
        match letter {
            '"' => return Some((value, text.get(at + 1..)?)),
            '\\' => value.push(letters.next()?.1),
            letter => value.push(letter),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn challenges_are_read() {
        let text =
            r#"Bearer realm="https://auth.example.org/token",service="a \"b\", c",scope="repository:x:pull,push""#;
        let challenge = Challenge::parse(text).unwrap();
        assert_eq!(challenge.scheme, "Bearer");
        assert_eq!(challenge.get("realm"), Some("https://auth.example.org/token"));
        assert_eq!(challenge.get("service"), Some(r#"a "b", c"#));
        assert_eq!(challenge.get("scope"), Some("repository:x:pull,push"));
        let challenge = Challenge::parse("Basic Realm=here, charset=\"UTF-8\"").unwrap();
        assert_eq!((challenge.get("realm"), challenge.get("charset")), (Some("here"), Some("UTF-8")));
        assert_eq!(Challenge::parse("Basic").unwrap().parameters, []);
        assert_eq!(Challenge::parse(""), None);
        assert_eq!(Challenge::parse("Bearer realm=\"never closed"), None);
    }

    #[test]
    fn secrets_are_not_printed() {
        let credentials = Credentials::Password { user: "me".into(), password: "hidden".into() };
        assert!(!format!("{credentials:?}").contains("hidden"));
        assert_eq!(format!("{:?}", basic("me", "hidden")), "Basic ...");
        assert_eq!(basic("Aladdin", "open sesame").0, "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==");
    }

    proptest! {
        #[test]
        fn any_challenge_is_survived(text in "\\PC*") {
            let _ = Challenge::parse(&text);
        }
    }
}
