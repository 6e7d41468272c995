// SPDX-License-Identifier: Apache-2.0
//! Keeping credentials where `docker login` keeps them, so that each tool knows those of the other.

use std::env;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use super::{Access, Credentials, Problem, Purpose, Registry};
use crate::image::Name;
use crate::image::reference::DOCKER;

/// Checks that a registry takes these credentials.
///
/// # Errors
/// It does not, or does not answer.
pub fn check(registry: &str, access: &Access) -> Result<(), Problem> {
    Registry::connect(&Name::of_registry(registry)?, Purpose::Login, access)?.confirm()
}

/// Keeps credentials for a registry: with the credential helper that Docker's configuration names, else in that file.
/// Gives where they are now.
///
/// # Errors
/// The file cannot be written, or the helper fails.
pub fn store(registry: &str, credentials: &Credentials) -> Result<String, Problem> {
    let (user, secret) = match credentials {
        Credentials::Password { user, password } => (user.as_str(), password),
        Credentials::IdentityToken(token) => ("<token>", token),
    };
    let server = server(registry);
    change(registry, |config| match helper(config, server) {
        Some(helper) => {
            let entry = json!({ "ServerURL": server, "Username": user, "Secret": secret }).to_string();
            run_helper(&helper, "store", &entry)?;
            // Docker lists servers of helpers with nothing in them.
            auths(config).insert(server.to_owned(), json!({}));
            Ok(format!("with the credential helper {helper}"))
        }
        None => {
            let auth = STANDARD.encode(format!("{user}:{secret}"));
            auths(config).insert(server.to_owned(), json!({ "auth": auth }));
            Ok(format!("unencrypted in {}", path().display()))
        }
    })
}

/// Forgets the credentials for a registry; gives whether there were any.
///
/// # Errors
/// The file cannot be written, or the helper fails.
pub fn forget(registry: &str) -> Result<bool, Problem> {
    let server = server(registry);
    change(registry, |config| {
        let helper = helper(config, server);
        let known = auths(config).remove(server).is_some();
        if let Some(helper) = helper.filter(|_| known) {
            run_helper(&helper, "erase", server)?;
        }
        Ok(known)
    })
}

/// Docker's name for a registry's credentials.
fn server(registry: &str) -> &str {
    if registry == DOCKER.name { DOCKER.credentials } else { registry }
}

fn path() -> PathBuf {
    let set = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let directory = set("DOCKER_CONFIG").or_else(|| set("HOME").map(|home| home.join(".docker")));
    directory.unwrap_or_else(|| "/root/.docker".into()).join("config.json")
}

/// Changes Docker's configuration, of which all that is not understood stays as it is.
fn change<T>(registry: &str, change: impl FnOnce(&mut Map<String, Value>) -> Result<T, String>) -> Result<T, Problem> {
    let path = path();
    let failed = |cause: String| Problem::Credentials { registry: registry.to_owned(), cause };
    let at = |error: io::Error| failed(format!("{}: {error}", path.display()));
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => b"{}".to_vec(),
        Err(error) => return Err(at(error)),
    };
    let mut config: Map<String, Value> = serde_json::from_slice(&text).map_err(|error| at(error.into()))?;
    let before = config.clone();
    let result = change(&mut config).map_err(failed)?;
    if config == before {
        return Ok(result);
    }
    let directory = path.parent().unwrap_or(&path);
    fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(at)?;
    // What it links to is replaced, not the link: it may lie in a directory that is kept under version control.
    let target = fs::canonicalize(&path).unwrap_or_else(|_| path.clone());
    let new = target.with_extension("json.new");
    let write = || -> io::Result<()> {
        let mut file: File = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.set_permissions(Permissions::from_mode(0o600))?;
        file.write_all(format!("{:#}\n", Value::Object(config)).as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, &target)
    };
    write().map_err(at)?;
    Ok(result)
}

fn auths(config: &mut Map<String, Value>) -> &mut Map<String, Value> {
    let auths = config.entry("auths").or_insert_with(|| json!({}));
    if !auths.is_object() {
        *auths = json!({});
    }
    // It is one now.
    match auths {
        Value::Object(auths) => auths,
        _ => unreachable!("an object was just put there"),
    }
}

fn helper(config: &Map<String, Value>, server: &str) -> Option<String> {
    let own = config.get("credHelpers").and_then(|helpers| helpers.get(server));
    own.or_else(|| config.get("credsStore")).and_then(Value::as_str).filter(|name| !name.is_empty()).map(str::to_owned)
}

/// Docker's credential helper protocol: what is meant is the word, and the data come on stdin.
fn run_helper(helper: &str, word: &str, input: &str) -> Result<(), String> {
    let program = format!("docker-credential-{helper}");
    let failed = |error: io::Error| format!("the credential helper {program} failed: {error}");
    let mut command = Command::new(&program);
    command.arg(word).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes()).map_err(failed)?;
    }
    let output = child.wait_with_output().map_err(failed)?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("the credential helper {program} failed with {}", output.status)),
    }
}
