// SPDX-License-Identifier: Apache-2.0
//! Why something could not be done with an image, and what to try.

use std::io;
use std::path::PathBuf;

use super::{Digest, Platform};
use crate::failure::Failure;

/// Result of an operation on images.
pub type Result<T> = std::result::Result<T, ImageError>;

/// What could not be done, to which image, and why.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {problem}")]
pub struct ImageError {
    /// What failed, with the object as the user spelled it.
    pub what: String,
    /// Why.
    pub problem: Problem,
}

impl ImageError {
    /// For `map_err`: gives the reason its object.
    pub fn new<P: Into<Problem>>(what: impl Into<String>) -> impl FnOnce(P) -> Self {
        let what = what.into();
        move |problem| Self { what, problem: problem.into() }
    }
}

impl From<ImageError> for Failure {
    fn from(error: ImageError) -> Self {
        Self::new(error.what, &error.problem, error.problem.advice())
    }
}

/// Why something could not be done with an image. Sizes are in bytes.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// The reference cannot be read.
    #[error(transparent)]
    Reference(#[from] super::ReferenceError),
    /// No connection to the registry.
    #[error("no connection to {registry}: {cause}")]
    Unreachable {
        /// `host[:port]`.
        registry: String,
        /// What the system or the TLS library said.
        cause: String,
    },
    /// The registry's certificate is not trusted.
    #[error("the certificate of {registry} is not trusted: {cause}")]
    Untrusted {
        /// `host[:port]`.
        registry: String,
        /// What is wrong with it.
        cause: String,
    },
    /// The registry has no TLS, and plain HTTP was not allowed.
    #[error("{registry} answers without TLS, and plain HTTP was not allowed")]
    PlainHttp {
        /// `host[:port]`.
        registry: String,
    },
    /// Files in a directory of certificates are unusable.
    #[error("the certificate file {} is unusable: {cause}", path.display())]
    CertificateFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        cause: String,
    },
    /// Credentials are missing or wrong.
    #[error("{}", if *.given { "the registry refused these credentials" } else { "the registry wants a login, or there is no such repository" })]
    Unauthorized {
        /// `host[:port]`.
        registry: String,
        /// Whether there were credentials.
        given: bool,
    },
    /// Stored credentials could not be had.
    #[error("the stored credentials of {registry} cannot be used: {cause}")]
    Credentials {
        /// `host[:port]`.
        registry: String,
        /// What is wrong.
        cause: String,
    },
    /// The registry does not have it.
    #[error("the registry has no such {0}")]
    NotFound(&'static str),
    /// The store does not have it.
    #[error("there is no such image on this host")]
    NotHere,
    /// An ID that begins more than one image's.
    #[error("more than one image's ID begins with it")]
    Ambiguous,
    /// The image has several names, or something uses it.
    #[error("{0}")]
    InUse(String),
    /// Some other answer than expected.
    #[error("the registry answered {status}{}", if message.is_empty() { String::new() } else { format!(": {message}") })]
    Status {
        /// HTTP status.
        status: u16,
        /// The registry's words.
        message: String,
    },
    /// An answer that breaks the protocol.
    #[error("the registry's answer makes no sense: {0}")]
    Protocol(String),
    /// The connection broke, and did so again when tried again.
    #[error("the connection broke after {received} of {size} bytes, also when tried again: {cause}")]
    Interrupted {
        /// Bytes that are here.
        received: u64,
        /// Bytes that there are.
        size: u64,
        /// What broke it.
        cause: String,
    },
    /// The content is not what its name says.
    #[error("the content does not have the digest it should: expected {expected}, found {found}")]
    DigestMismatch {
        /// From the manifest, or asked for.
        expected: Digest,
        /// Of what came.
        found: Digest,
    },
    /// The content does not have the size that the manifest gives.
    #[error("{what} has {found} bytes, and should have {expected}")]
    Size {
        /// Which content.
        what: &'static str,
        /// From the manifest.
        expected: u64,
        /// Of what came.
        found: u64,
    },
    /// More than is allowed.
    #[error("its {what} of {size} bytes is more than the {limit} that are allowed")]
    TooLarge {
        /// Which content.
        what: &'static str,
        /// Its size.
        size: u64,
        /// The most that is allowed.
        limit: u64,
    },
    /// A manifest, index or configuration that cannot be used.
    #[error("its {what} is unusable: {reason}")]
    Malformed {
        /// Which document.
        what: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// Not an image, or one of a format that is not known.
    #[error("its {what} has a type that is not supported: {media_type}")]
    MediaType {
        /// Which part.
        what: &'static str,
        /// The type.
        media_type: String,
    },
    /// A layer that has to be fetched from elsewhere.
    #[error("layer {0} is foreign: its content is not in the registry and may not be distributed")]
    Foreign(Digest),
    /// The image is for other machines.
    #[error("it is for {}, not for {wanted}", if offered.is_empty() { "no named platform".to_owned() } else { offered.join(", ") })]
    Platform {
        /// What was asked for.
        wanted: Platform,
        /// What there is.
        offered: Vec<String>,
    },
    /// The content store could not be read or written.
    #[error("{}: {error}", path.display())]
    Store {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// Too little room.
    #[error("it needs {needed} bytes more, and {} has {free} free", path.display())]
    NoSpace {
        /// Bytes that are to come.
        needed: u64,
        /// Bytes that are free.
        free: u64,
        /// Where.
        path: PathBuf,
    },
    /// The store's list of images cannot be read.
    #[error("the list of images {} is damaged: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A file or directory that a user named cannot be read.
    #[error("{}: {error}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// A file or directory is not what images are kept in.
    #[error("{reason}")]
    Archive {
        /// What is wrong with it.
        reason: String,
    },
    /// What was to be written could not be.
    #[error("the output cannot be written: {error}")]
    Output {
        /// What the system said.
        error: io::Error,
    },
    /// The disk could not be made from the layers.
    #[error("its layers cannot be made into a disk: {0}")]
    Disk(Box<dyn std::error::Error + Send + Sync>),
    /// Another transfer of the same image failed, or this one was asked to end.
    #[error("it was cancelled")]
    Cancelled,
}

impl Problem {
    /// The next thing to try.
    pub fn advice(&self) -> String {
        match self {
            Self::Reference(_) => "a name as `registry:5000/team/app:tag`, `app` or `app@sha256:...`".into(),
            Self::Unreachable { registry, .. } => {
                format!("check the name, and that {registry} can be reached from here")
            }
            Self::Untrusted { registry, .. } => {
                format!("put its CA's certificate into /etc/docker/certs.d/{registry}/ca.crt, or `--tls-verify=false`")
            }
            Self::PlainHttp { .. } => "`--tls-verify=false`, where the network between is trusted".into(),
            Self::CertificateFile { .. } => "a file with certificates or a key in PEM".into(),
            Self::Unauthorized { registry, given: false } => {
                format!("check the name's spelling, or log in: `coracle login {registry}`")
            }
            Self::Unauthorized { registry, given: true } | Self::Credentials { registry, .. } => {
                format!("log in again: `coracle login {registry}`")
            }
            Self::NotFound(_) => "check the spelling of name and tag".into(),
            Self::NotHere => "`coracle images` lists what is here, `coracle pull` fetches".into(),
            Self::Ambiguous => "more digits of the ID, or the name".into(),
            Self::InUse(_) => "`--force`".into(),
            Self::Status { status: 429, .. } => "the same in some minutes, or after `coracle login`".into(),
            Self::Status { .. } | Self::Protocol(_) => "the same again later, or ask whoever runs the registry".into(),
            Self::Interrupted { .. } => "the same again: what has come is kept".into(),
            Self::DigestMismatch { .. } | Self::Size { .. } => {
                "the same again; if it stays so, the image in the registry is damaged or was tampered with".into()
            }
            Self::TooLarge { .. } => "an image that is smaller, if this one is meant to be what it is".into(),
            Self::Malformed { .. } => "push the image again with current tools".into(),
            Self::MediaType { .. } => "an image in Docker's format (schema 2) or the OCI format".into(),
            Self::Foreign(_) => "an image without foreign layers; Windows images have them".into(),
            Self::Platform { .. } => "`--platform` with one that there is, or another image".into(),
            Self::Store { error, .. } if error.kind() == io::ErrorKind::PermissionDenied => {
                "another directory in CORACLE_DATA, or the user who owns this one".into()
            }
            Self::Store { error, .. } if error.kind() == io::ErrorKind::StorageFull => no_space(),
            Self::Store { .. } => "check that file system, or another directory in CORACLE_DATA".into(),
            Self::NoSpace { .. } => no_space(),
            Self::Damaged { .. } => "move that file away; images can then be pulled again".into(),
            Self::File { .. } => "check the path, and that this user may read it".into(),
            Self::Archive { .. } => "what `coracle save`, `docker save`, `podman save` or skopeo has written".into(),
            Self::Output { .. } => "another place with more room".into(),
            Self::Disk(error) if is_full(error.as_ref()) => no_space(),
            Self::Disk(_) => "push the image again with current tools".into(),
            Self::Cancelled => "the same again".into(),
        }
    }

    /// Whether the same may succeed a moment later.
    pub(super) fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Interrupted { .. } => true,
            Self::Status { status, .. } => matches!(status, 408 | 429 | 500 | 502 | 503 | 504),
            _ => false,
        }
    }
}

/// Whether there was no room, at the bottom of it.
fn is_full(error: &(dyn std::error::Error + 'static)) -> bool {
    let causes = std::iter::successors(Some(error), |error| error.source());
    let mut systems = causes.filter_map(|error| error.downcast_ref::<io::Error>());
    systems.any(|error| error.kind() == io::ErrorKind::StorageFull)
}

fn no_space() -> String {
    "free some: `coracle system prune` removes what no image uses".into()
}
