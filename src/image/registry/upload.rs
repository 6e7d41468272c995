// SPDX-License-Identifier: Apache-2.0
//! Sending blobs and manifests (OCI distribution specification, "Push").

use std::fs::File;
use std::path::Path;

use ureq::http::{Response, StatusCode, Uri, header};
use ureq::{Body, RequestBuilder};

use super::{Problem, Registry, retry};
use crate::image::Digest;

impl Registry {
    /// Whether the repository has a blob.
    ///
    /// # Errors
    /// The registry does not say.
    pub fn has_blob(&self, digest: &Digest) -> Result<bool, Problem> {
        retry(|| {
            let url = format!("{}/v2/{}/blobs/{digest}", self.base, self.name.repository());
            let response = self.authorized(|login| with_login(self.agent.head(&url), login).call())?;
            match response.status() {
                StatusCode::OK => Ok(true),
                StatusCode::NOT_FOUND => Ok(false),
                _ => Err(self.unexpected(response, "repository")),
            }
        })
    }

    /// Sends a blob from a file, in one piece.
    ///
    /// # Errors
    /// The registry does not take it, or the file cannot be read.
    pub fn send_blob(&self, digest: &Digest, path: &Path) -> Result<(), Problem> {
        let url = format!("{}/v2/{}/blobs/uploads/", self.base, self.name.repository());
        let response = self.authorized(|login| with_login(self.agent.post(&url), login).send_empty())?;
        if response.status() != StatusCode::ACCEPTED {
            return Err(self.unexpected(response, "repository"));
        }
        let target = self.upload_target(&response, digest)?;
        let response = self.authorized(|login| {
            let request = with_login(self.agent.put(&target), login);
            request.content_type("application/octet-stream").send(File::open(path)?)
        })?;
        match response.status() {
            StatusCode::CREATED => Ok(()),
            _ => Err(self.unexpected(response, "upload")),
        }
    }

    /// Sends a manifest under a tag.
    ///
    /// # Errors
    /// The registry does not take it.
    pub fn send_manifest(&self, tag: &str, media_type: &str, manifest: &[u8]) -> Result<(), Problem> {
        let url = format!("{}/v2/{}/manifests/{tag}", self.base, self.name.repository());
        retry(|| {
            let send =
                |login: Option<&str>| with_login(self.agent.put(&url), login).content_type(media_type).send(manifest);
            let response = self.authorized(send)?;
            match response.status() {
                StatusCode::CREATED => Ok(()),
                _ => Err(self.unexpected(response, "repository")),
            }
        })
    }

    /// Where the registry wants the blob, which is at the registry itself: nobody else gets the login.
    fn upload_target(&self, response: &Response<Body>, digest: &Digest) -> Result<String, Problem> {
        let location =
            response.headers().get(header::LOCATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let nonsense = || Problem::Protocol(format!("it wants the blob at `{location}`"));
        let uri: Uri = location.parse().map_err(|_| nonsense())?;
        let base: Uri = self.base.parse().map_err(|_| nonsense())?;
        if uri.authority().is_some_and(|authority| Some(authority) != base.authority()) || !uri.path().starts_with('/')
        {
            return Err(nonsense());
        }
        let query = uri.query().map(|query| format!("{query}&")).unwrap_or_default();
        Ok(format!("{}{}?{query}digest={digest}", self.base, uri.path()))
    }
}

fn with_login<B>(request: RequestBuilder<B>, login: Option<&str>) -> RequestBuilder<B> {
    match login {
        Some(login) => request.header(header::AUTHORIZATION, login),
        None => request,
    }
}
