// SPDX-License-Identifier: Apache-2.0
//! References to images in Docker's words: `[registry[:port]/]name[:tag][@digest]`.

use std::env;
use std::fmt;
use std::str::FromStr;

use super::Digest;

/// The environment variable that names the registry of references without one, as `host[:port]`.
pub const DEFAULT_REGISTRY_VARIABLE: &str = "CORACLE_DEFAULT_REGISTRY";

/// A registry whose short name is not where it answers.
pub struct WellKnown {
    /// As references spell it.
    pub name: &'static str,
    /// The same, as older references spell it.
    pub old_name: &'static str,
    /// Where it answers.
    pub host: &'static str,
    /// Under which name `docker login` keeps its credentials.
    pub credentials: &'static str,
    /// Where names without a slash belong.
    pub namespace: &'static str,
}

/// The registry of references that name none, unless [`DEFAULT_REGISTRY_VARIABLE`] does.
pub const DOCKER: WellKnown = WellKnown {
    name: "docker.io",
    old_name: "index.docker.io",
    host: "registry-1.docker.io",
    credentials: "https://index.docker.io/v1/",
    namespace: "library/",
};

/// The most characters that registry and repository may have together.
const NAME_LIMIT: usize = 255;

/// A repository in a registry.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name {
    registry: String,
    repository: String,
}

/// An image's full name: a repository, and a tag, a digest or both.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Reference {
    name: Name,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Why a text is no reference.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReferenceError {
    /// Nothing, or nothing before the tag.
    #[error("the name is empty")]
    Empty,
    /// Upper case where only lower case may be.
    #[error("the repository's name has upper-case letters")]
    UpperCase,
    /// Some other character, or a separator in a wrong place.
    #[error(
        "`{0}` is not a repository's name: lower-case letters and digits, with `.`, `_` or `-` between and `/` above"
    )]
    Repository(String),
    /// A host that cannot be.
    #[error("`{0}` is not a registry: a host name or address, and a port if there is one")]
    Registry(String),
    /// A tag that cannot be.
    #[error("`{0}` is not a tag: 1 to 128 letters, digits, `_`, `.` and `-`, and no `.` or `-` first")]
    Tag(String),
    /// A digest that cannot be.
    #[error(transparent)]
    Digest(#[from] super::InvalidDigest),
    /// The name is too long.
    #[error("the name has more than {NAME_LIMIT} characters")]
    TooLong,
    /// A name that would be taken for an image's number.
    #[error("64 hexadecimal digits are an image's ID, not a name")]
    LooksLikeId,
}

impl Name {
    /// The registry, as `host[:port]`.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The repository within the registry.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// No repository, and a registry that one logs in to.
    ///
    /// # Errors
    /// It is no host name or address, with a port if there is one.
    pub fn of_registry(registry: &str) -> Result<Self, ReferenceError> {
        match is_host(registry) {
            true => Ok(Self { registry: registry.to_owned(), repository: String::new() }),
            false => Err(ReferenceError::Registry(registry.to_owned())),
        }
    }

    /// As short as it can be said: without the default registry.
    pub fn familiar(&self) -> String {
        self.familiar_to(&default_registry())
    }

    fn familiar_to(&self, default: &str) -> String {
        if self.registry != default {
            return self.to_string();
        }
        let namespace = if self.registry == DOCKER.name { DOCKER.namespace } else { "" };
        let short = self.repository.strip_prefix(namespace).filter(|rest| !rest.contains('/'));
        short.unwrap_or(&self.repository).to_owned()
    }

    fn parse(text: &str, default: &str) -> Result<Self, ReferenceError> {
        let is_registry = |first: &str| {
            first.contains(['.', ':', '[']) || first == "localhost" || first.bytes().any(|b| b.is_ascii_uppercase())
        };
        let (registry, repository) = match text.split_once('/') {
            Some((first, rest)) if is_registry(first) => (first, rest),
            _ => (default, text),
        };
        if !is_host(registry) {
            return Err(ReferenceError::Registry(registry.to_owned()));
        }
        check_repository(repository)?;
        let registry = if registry == DOCKER.old_name { DOCKER.name } else { registry };
        let namespace = if registry == DOCKER.name && !repository.contains('/') { DOCKER.namespace } else { "" };
        if registry.len() + 1 + namespace.len() + repository.len() > NAME_LIMIT {
            return Err(ReferenceError::TooLong);
        }
        Ok(Self { registry: registry.to_owned(), repository: format!("{namespace}{repository}") })
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)
    }
}

impl Reference {
    /// Reads a reference; `default` is the registry of one that names none.
    ///
    /// Where there is neither tag nor digest, the tag is `latest`.
    ///
    /// # Errors
    /// Which part is wrong, and how.
    pub fn parse(text: &str, default: &str) -> Result<Self, ReferenceError> {
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.parse()?)),
            None => (text, None),
        };
        // A colon before the last slash belongs to a port.
        let (name, tag) = match rest.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
            _ => (rest, None),
        };
        if let Some(tag) = tag.filter(|tag| !is_tag(tag)) {
            return Err(ReferenceError::Tag(tag.to_owned()));
        }
        if tag.is_none() && name.len() == 64 && name.bytes().all(|b| b.is_ascii_hexdigit() && !b.is_ascii_uppercase()) {
            return Err(ReferenceError::LooksLikeId);
        }
        let name = Name::parse(name, default)?;
        let tag = tag.or((digest.is_none()).then_some("latest")).map(str::to_owned);
        Ok(Self { name, tag, digest })
    }

    /// The content with this digest in this repository.
    pub fn with_digest(name: Name, digest: Digest) -> Self {
        Self { name, tag: None, digest: Some(digest) }
    }

    /// The repository.
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// The registry, as `host[:port]`.
    pub fn registry(&self) -> &str {
        &self.name.registry
    }

    /// The repository within the registry.
    pub fn repository(&self) -> &str {
        &self.name.repository
    }

    /// The tag, which only references with a digest lack.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest of the manifest or index.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// As short as it can be said: without the default registry.
    pub fn familiar(&self) -> String {
        format!("{}{}", self.name.familiar(), self.suffix())
    }

    fn suffix(&self) -> String {
        let tag = self.tag.as_ref().map(|tag| format!(":{tag}")).unwrap_or_default();
        let digest = self.digest.map(|digest| format!("@{digest}")).unwrap_or_default();
        tag + &digest
    }
}

impl fmt::Display for Reference {
    /// In full, with the registry.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.name, self.suffix())
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        Self::parse(text, &default_registry())
    }
}

/// The registry of references that name none.
pub fn default_registry() -> String {
    env::var(DEFAULT_REGISTRY_VARIABLE).ok().filter(|name| !name.is_empty()).unwrap_or_else(|| DOCKER.name.to_owned())
}

fn is_tag(text: &str) -> bool {
    let is_word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let mut bytes = text.bytes();
    text.len() <= 128 && bytes.next().is_some_and(is_word) && bytes.all(|b| is_word(b) || b == b'.' || b == b'-')
}

/// `host[:port]`, where the host may be an IPv6 address in brackets.
fn is_host(text: &str) -> bool {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (text, None),
    };
    if port.is_some_and(|port| port.is_empty() || port.parse::<u16>().is_err() || port.starts_with('+')) {
        return false;
    }
    if let Some(address) = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        return address.parse::<std::net::Ipv6Addr>().is_ok();
    }
    host.split('.').all(|label| {
        !label.is_empty()
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    })
}

fn check_repository(text: &str) -> Result<(), ReferenceError> {
    if text.is_empty() {
        return Err(ReferenceError::Empty);
    }
    if text.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err(ReferenceError::UpperCase);
    }
    if text.split('/').all(is_component) { Ok(()) } else { Err(ReferenceError::Repository(text.to_owned())) }
}

/// Words of lower-case letters and digits, separated by `.`, `_`, `__` or any number of `-`.
fn is_component(text: &str) -> bool {
    let is_word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let separators = text.split(|c: char| u8::try_from(c).is_ok_and(is_word));
    let inner_only = |b: Option<&u8>| b.copied().is_some_and(is_word);
    inner_only(text.as_bytes().first())
        && inner_only(text.as_bytes().last())
        && separators
            .filter(|run| !run.is_empty())
            .all(|run| matches!(run, "." | "_" | "__") || run.bytes().all(|b| b == b'-'))
}

#[cfg(test)]
#[path = "reference_test.rs"]
mod tests;
