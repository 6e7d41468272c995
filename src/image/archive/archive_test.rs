// SPDX-License-Identifier: Apache-2.0
use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::entries::{Entries, plain};
use super::*;
use crate::image::{Digest, Platform, Store};

fn store() -> (TempDir, Store) {
    let directory = TempDir::new().unwrap();
    let store = Store::open_at(&directory.path().join("data")).unwrap();
    (directory, store)
}

fn platform() -> Platform {
    "linux/amd64".parse().unwrap()
}

fn configuration(layers: &[&[u8]]) -> Vec<u8> {
    let diff_ids: Vec<_> = layers.iter().map(|layer| Digest::of(layer)).collect();
    let rootfs = json!({ "type": "layers", "diff_ids": diff_ids });
    json!({ "architecture": "amd64", "os": "linux", "rootfs": rootfs }).to_string().into_bytes()
}

/// A tar archive with these files; a name with `->` is a symbolic link.
fn archive(directory: &Path, files: &[(&str, &[u8])]) -> PathBuf {
    let path = directory.join("archive.tar");
    let mut builder = tar::Builder::new(fs::File::create(&path).unwrap());
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        match name.split_once("->") {
            Some((name, target)) => {
                header.set_entry_type(tar::EntryType::Symlink);
                header.set_size(0);
                builder.append_link(&mut header, name, target).unwrap();
            }
            None => {
                header.set_size(content.len().try_into().unwrap());
                builder.append_data(&mut header, name, *content).unwrap();
            }
        }
    }
    builder.finish().unwrap();
    path
}

fn docker(config: &str, tags: &[&str], layers: &[&str]) -> Vec<u8> {
    json!([{ "Config": config, "RepoTags": tags, "Layers": layers }]).to_string().into_bytes()
}

fn failure<T>(result: crate::image::Result<T>) -> String {
    result.err().expect("a failure").problem.to_string()
}

#[test]
fn sources_are_read() {
    let source = |text| Source::parse(text).map(|source| (source.kind, source.path, source.name));
    assert_eq!(source("oci:dir"), Some((Kind::Layout, "dir".into(), None)));
    assert_eq!(source("oci:/a/b:v1"), Some((Kind::Layout, "/a/b".into(), Some("v1".into()))));
    assert_eq!(
        source("docker-archive:x.tar:app:v1"),
        Some((Kind::DockerArchive, "x.tar".into(), Some("app:v1".into())))
    );
    for text in ["oci", "oci:", "app:v1", "docker:app", "localhost:5000/oci:v1"] {
        assert_eq!(Source::parse(text), None, "{text}");
    }
    assert_eq!(Source::parse("oci-archive:x.tar:v1").unwrap().to_string(), "oci-archive:x.tar:v1");
}

#[test]
fn dockers_links_between_layers_are_followed() {
    let (directory, store) = store();
    let configuration = configuration(&[b"one", b"one"]);
    let manifest = docker("c.json", &["app:v1", "not a name"], &["a/layer.tar", "b/layer.tar"]);
    let files: [(&str, &[u8]); 4] = [
        ("c.json", &configuration),
        ("a/layer.tar->../b/layer.tar", b""),
        ("b/layer.tar", b"one"),
        ("manifest.json", &manifest),
    ];
    let imported = store.import_all(&archive(directory.path(), &files), &platform()).unwrap();
    assert_eq!(imported[0].names, ["app:v1".parse().unwrap()]);
    assert_eq!(imported[0].image.id, Digest::of(&configuration));
    assert!(store.has(&Digest::of(b"one")));
}

#[test]
fn nothing_outside_is_reached() {
    let (directory, store) = store();
    fs::write(directory.path().join("secret"), b"secret").unwrap();
    let configuration = configuration(&[b"secret"]);
    for layer in ["../secret", "/etc/passwd", "link", "loop"] {
        let manifest = docker("c.json", &[], &[layer]);
        let files: [(&str, &[u8]); 4] =
            [("c.json", &configuration), ("manifest.json", &manifest), ("link->../secret", b""), ("loop->loop", b"")];
        let path = archive(directory.path(), &files);
        let text = failure(store.import_all(&path, &platform()));
        assert!(text.contains("leads out") || text.contains("has no"), "{layer}: {text}");
    }
    assert!(store.index().unwrap().images.is_empty());
}

#[test]
fn content_in_a_layout_is_verified() {
    let (directory, store) = store();
    let layout = directory.path().join("layout");
    fs::create_dir_all(layout.join("blobs/sha256")).unwrap();
    let add = |media_type: &str, content: &[u8]| -> Value {
        let digest = Digest::of(content);
        fs::write(layout.join("blobs/sha256").join(digest.hex()), content).unwrap();
        json!({ "mediaType": media_type, "digest": digest, "size": content.len() })
    };
    let config = add("application/vnd.oci.image.config.v1+json", &configuration(&[b"one"]));
    let layer = add("application/vnd.oci.image.layer.v1.tar", b"one");
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({ "schemaVersion": 2, "config": config, "layers": [layer] }).to_string();
    let mut entry = add(media_type, manifest.as_bytes());
    entry["annotations"] = json!({ import::NAME: "v1" });
    fs::write(layout.join("index.json"), json!({ "schemaVersion": 2, "manifests": [entry] }).to_string()).unwrap();
    let source = |name: &str| Source::parse(&format!("oci:{}{name}", layout.display())).unwrap();
    let blob = layout.join("blobs/sha256").join(Digest::of(b"one").hex());
    fs::write(&blob, b"two").unwrap();
    assert!(failure(store.import(&source(""), &platform())).contains("digest"));
    fs::write(&blob, b"three").unwrap();
    assert!(failure(store.import(&source(""), &platform())).contains("has 5 bytes"));
    fs::remove_file(&blob).unwrap();
    assert!(failure(store.import(&source(""), &platform())).contains("it has no blobs/"));
    fs::write(&blob, b"one").unwrap();
    assert!(failure(store.import(&source(":v2"), &platform())).contains("no image `v2`"));
    let other = "linux/arm64".parse().unwrap();
    assert!(matches!(store.import(&source(""), &other).unwrap_err().problem, Problem::Platform { .. }));
    assert!(store.index().unwrap().images.is_empty());
    let imported = store.import(&source(":v1"), &platform()).unwrap();
    assert_eq!(imported.names, []);
    assert_eq!(store.index().unwrap().images.len(), 1);
}

#[test]
fn paths_stay_inside() {
    for (path, expected) in [
        ("a/b", Some("a/b")),
        ("./a", Some("a")),
        ("a/../b", Some("b")),
        ("..", None),
        ("a/../../b", None),
        ("/a", None),
        ("", None),
        ("a/..", None),
    ] {
        assert_eq!(plain(Path::new(path)).as_deref(), expected, "{path}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_damaged_archive_is_survived(at: prop::sample::Index, byte: u8, cut: bool) {
        let directory = TempDir::new().unwrap();
        let path = archive(directory.path(), &[("a", b"content"), ("b->a", b""), ("d/c", &[7; 600])]);
        let mut bytes = fs::read(&path).unwrap();
        let at = at.index(bytes.len());
        if cut {
            bytes.truncate(at);
        } else {
            bytes[at] = byte;
        }
        fs::write(&path, bytes).unwrap();
        if let Ok(entries) = Entries::archive(&path) {
            for name in ["a", "b", "d/c"] {
                let _ = entries.read(name, 1000);
            }
        }
    }
}
