// SPDX-License-Identifier: Apache-2.0
//! The image that all sandboxes have: the probe's program, two files for the page cache, and the places that container
//! engines mount over. An OCI image layout with one layer.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

use serde_json::{Value, json};

use super::page_cache;
use crate::image::Digest;

/// Where the program is in it.
pub const PROGRAM: &str = "/coracle-probe";
/// Where the two files are.
pub const FILES: &str = "/files";

/// Where programs in it may write, by what their sandbox allows.
pub const WRITABLE: [&str; 3] = ["/var/tmp", "/tmp", "/dev/shm"];

/// Directories and files that container engines mount over, where they cannot make them.
const DIRECTORIES: [&str; 10] =
    ["dev/", "etc/", "files/", "proc/", "run/", "run/secrets/", "sys/", "tmp/", "var/", "var/tmp/"];
const EMPTY: [&str; 4] = ["etc/hostname", "etc/hosts", "etc/resolv.conf", "run/.containerenv"];

/// Writes the layout into a new directory.
///
/// # Errors
/// The program cannot be read, or the directory not be written.
pub fn write(probe: &Path, directory: &Path) -> io::Result<()> {
    fs::create_dir_all(directory.join("blobs/sha256"))?;
    fs::write(directory.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
    let mut layer = tar::Builder::new(Vec::new());
    for name in DIRECTORIES {
        let mode = if name.ends_with("tmp/") { 0o1777 } else { 0o755 };
        entry(&mut layer, tar::EntryType::Directory, name, mode, &[])?;
    }
    for name in EMPTY {
        entry(&mut layer, tar::EntryType::Regular, name, 0o644, &[])?;
    }
    let mut random = File::open("/dev/urandom")?;
    for name in [page_cache::KEPT, page_cache::DROPPED] {
        let mut content = vec![0; page_cache::SIZE];
        random.read_exact(&mut content)?;
        entry(&mut layer, tar::EntryType::Regular, &format!("files/{name}"), 0o644, &content)?;
    }
    entry(&mut layer, tar::EntryType::Regular, &PROGRAM[1..], 0o755, &fs::read(probe)?)?;
    let layer = layer.into_inner()?;
    let layer_digest = Digest::of(&layer).to_string();
    let config = json!({
        "architecture": "amd64",
        "os": "linux",
        "config": { "Entrypoint": [PROGRAM] },
        "rootfs": { "type": "layers", "diff_ids": [layer_digest] },
    });
    let layer = blob(directory, "application/vnd.oci.image.layer.v1.tar", &layer)?;
    let config = blob(directory, "application/vnd.oci.image.config.v1+json", config.to_string().as_bytes())?;
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({ "schemaVersion": 2, "mediaType": kind, "config": config, "layers": [layer] });
    let manifest = blob(directory, kind, manifest.to_string().as_bytes())?;
    fs::write(directory.join("index.json"), json!({ "schemaVersion": 2, "manifests": [manifest] }).to_string())
}

fn entry(
    layer: &mut tar::Builder<Vec<u8>>,
    kind: tar::EntryType,
    name: &str,
    mode: u32,
    content: &[u8],
) -> io::Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(content.len().try_into().map_err(io::Error::other)?);
    layer.append_data(&mut header, name, content)
}

/// Writes a blob, and gives its descriptor.
fn blob(directory: &Path, kind: &str, content: &[u8]) -> io::Result<Value> {
    let digest = Digest::of(content);
    fs::write(directory.join("blobs/sha256").join(digest.hex()), content)?;
    Ok(json!({ "mediaType": kind, "digest": digest.to_string(), "size": content.len() }))
}
