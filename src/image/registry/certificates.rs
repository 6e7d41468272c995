// SPDX-License-Identifier: Apache-2.0
//! Whose certificates are trusted, and which this client shows.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use ureq::tls::{Certificate, PemItem, PrivateKey, parse_pem};

use super::Problem;

/// Certificates for one registry.
#[derive(Debug, Default)]
pub struct Certificates {
    /// Whom to trust: the system's and the registry's own.
    pub authorities: Vec<Certificate<'static>>,
    /// What to show when asked.
    pub client: Option<(Vec<Certificate<'static>>, PrivateKey<'static>)>,
}

/// Reads the system's certificates, and those that Docker's and Podman's directories have for this registry: `*.crt` are
/// authorities, `NAME.cert` and `NAME.key` are this client. A directory that is given stands for theirs.
pub fn find(registry: &str, given: Option<&Path>) -> Result<Certificates, Problem> {
    let mut found = Certificates::default();
    let system = rustls_native_certs::load_native_certs();
    for error in &system.errors {
        log::info!("the system's certificates: {error}");
    }
    found.authorities.extend(system.certs.iter().map(|der| Certificate::from_der(der).to_owned()));
    let usual = || {
        let home = env::var_os("HOME").map(|home| PathBuf::from(home).join(".config/containers"));
        let parents = home.into_iter().chain(["/etc/containers".into(), "/etc/docker".into()]);
        parents.map(|parent| parent.join("certs.d").join(registry)).collect()
    };
    for directory in given.map_or_else(usual, |directory| vec![directory.to_owned()]) {
        match fs::read_dir(&directory) {
            Ok(entries) => {
                let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
                paths.sort();
                paths.iter().try_for_each(|path| found.take(path))?;
            }
            Err(error) if given.is_some() => return Err(unusable(&directory, &error)),
            Err(_) => {}
        }
    }
    Ok(found)
}

impl Certificates {
    fn take(&mut self, path: &Path) -> Result<(), Problem> {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("crt") => self.authorities.extend(read(path)?),
            Some("cert") if self.client.is_none() => {
                let key_path = path.with_extension("key");
                let pem = fs::read(&key_path).map_err(|error| unusable(&key_path, &error))?;
                let key = PrivateKey::from_pem(&pem).map_err(|error| unusable(&key_path, &error))?;
                self.client = Some((read(path)?, key));
            }
            _ => {}
        }
        Ok(())
    }
}

fn read(path: &Path) -> Result<Vec<Certificate<'static>>, Problem> {
    let pem = fs::read(path).map_err(|error| unusable(path, &error))?;
    let mut certificates = Vec::new();
    for item in parse_pem(&pem) {
        if let PemItem::Certificate(certificate) = item.map_err(|error| unusable(path, &error))? {
            certificates.push(certificate);
        }
    }
    if certificates.is_empty() { Err(unusable(path, &"it has no certificate")) } else { Ok(certificates) }
}

fn unusable(path: &Path, cause: &dyn std::fmt::Display) -> Problem {
    Problem::CertificateFile { path: path.to_owned(), cause: cause.to_string() }
}
