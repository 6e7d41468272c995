// SPDX-License-Identifier: Apache-2.0
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

fn descriptor(media_type: &str, content: &[u8]) -> Value {
    json!({ "mediaType": media_type, "digest": Digest::of(content).to_string(), "size": content.len() })
}

fn manifest(configuration: &[u8], layers: &[Value]) -> Value {
    json!({ "schemaVersion": 2, "config": descriptor(CONFIGURATIONS[0], configuration), "layers": layers })
}

fn configuration(diff_ids: &[&str]) -> Vec<u8> {
    let rootfs = json!({ "type": "layers", "diff_ids": diff_ids });
    json!({ "architecture": "amd64", "os": "linux", "rootfs": rootfs }).to_string().into_bytes()
}

fn read(manifest: &Value) -> Result<Manifest, Problem> {
    Manifest::read(manifest.to_string().as_bytes())
}

#[test]
fn both_formats_are_read() {
    let diff_id = Digest::of(b"tar").to_string();
    let configuration = configuration(&[&diff_id]);
    let docker = "application/vnd.docker.image.rootfs.diff.tar.gzip";
    for (config_type, layer_type) in [(CONFIGURATIONS[0], LAYER), (CONFIGURATIONS[1], docker)] {
        let mut document = manifest(&configuration, &[descriptor(layer_type, b"packed")]);
        document["config"]["mediaType"] = config_type.into();
        let manifest = read(&document).unwrap();
        let image = Image::read(Digest::of(b"m"), &manifest, &configuration).unwrap();
        assert_eq!(image.id, Digest::of(&configuration));
        assert_eq!(image.chain().to_string(), diff_id);
        assert_eq!(image.size(), 6);
        assert_eq!(image.content().copied().collect::<Vec<_>>(), [image.id, Digest::of(b"packed")]);
    }
}

#[test]
fn the_chain_is_as_the_specification_says() {
    let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
    let configuration = configuration(&[&a.to_string(), &b.to_string()]);
    let manifest = read(&manifest(&configuration, &[descriptor(LAYER, b"1"), descriptor(LAYER, b"2")])).unwrap();
    let image = Image::read(a, &manifest, &configuration).unwrap();
    assert_eq!(image.chain(), Digest::of(format!("{a} {b}").as_bytes()));
}

#[test]
fn what_docker_writes_as_null_is_read() {
    let config = json!({ "Env": null, "Cmd": null, "Volumes": null, "ExposedPorts": null, "Labels": null, "OnBuild": null,
        "Entrypoint": null, "User": "", "Healthcheck": { "Test": ["NONE"] } });
    let rootfs = json!({ "type": "layers", "diff_ids": [] });
    let document =
        json!({ "architecture": "amd64", "os": "linux", "rootfs": rootfs, "config": config, "history": null });
    let configuration = document.to_string().into_bytes();
    let manifest = read(&manifest(&configuration, &[])).unwrap();
    Image::read(Digest::of(b""), &manifest, &configuration).unwrap();
}

#[test]
fn what_is_not_an_image_is_named() {
    let configuration = configuration(&[]);
    let with = |change: &dyn Fn(&mut Value)| {
        let mut document = manifest(&configuration, &[descriptor(LAYER, b"packed")]);
        change(&mut document);
        read(&document)
    };
    let foreign = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";
    assert!(matches!(with(&|m| m["layers"][0]["mediaType"] = foreign.into()), Err(Problem::Foreign(_))));
    let foreign = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip";
    assert!(matches!(with(&|m| m["layers"][0]["mediaType"] = foreign.into()), Err(Problem::Foreign(_))));
    let is_type = |result, part: &str| matches!(result, Err(Problem::MediaType { what, .. }) if what == part);
    assert!(is_type(with(&|m| m["layers"][0]["mediaType"] = "text/plain".into()), "layer"));
    assert!(is_type(with(&|m| m["config"]["mediaType"] = "text/plain".into()), "configuration"));
    assert!(matches!(with(&|m| m["schemaVersion"] = 1.into()), Err(Problem::Malformed { .. })));
    assert!(matches!(with(&|m| m["layers"][0]["size"] = (limits::LAYER + 1).into()), Err(Problem::TooLarge { .. })));
    assert!(matches!(with(&|m| m["config"]["size"] = u64::MAX.into()), Err(Problem::TooLarge { .. })));
    assert!(matches!(with(&|m| m["layers"][0]["size"] = (-1).into()), Err(Problem::Malformed { .. })));
    assert!(matches!(with(&|m| m["layers"][0]["digest"] = "sha256:..".into()), Err(Problem::Malformed { .. })));
    let sha512 = format!("sha512:{}", "0".repeat(128));
    assert!(matches!(with(&|m| m["layers"][0]["digest"] = sha512.clone().into()), Err(Problem::Malformed { .. })));
    let layer = descriptor(LAYER, b"packed");
    assert!(read(&manifest(&configuration, &vec![layer.clone(); limits::LAYERS])).is_ok());
    assert!(read(&manifest(&configuration, &vec![layer; limits::LAYERS + 1])).is_err());
}

#[test]
fn layers_that_do_not_match_are_refused() {
    let manifest = read(&manifest(b"", &[descriptor(LAYER, b"packed")])).unwrap();
    let text = Digest::of(b"x").to_string();
    let digest = text.as_str();
    for diff_ids in [&[][..], &[digest, digest], &["sha256:0"]] {
        let result = Image::read(Digest::of(b""), &manifest, &configuration(diff_ids));
        assert!(matches!(result, Err(Problem::Malformed { what: "configuration", .. })), "{diff_ids:?}");
    }
}

#[test]
fn a_type_has_to_be_the_same_wherever_it_is_said() {
    let own = json!({ "mediaType": MANIFESTS[0] }).to_string();
    assert_eq!(media_type(own.as_bytes(), None).unwrap(), MANIFESTS[0]);
    assert_eq!(media_type(own.as_bytes(), Some(&format!("{}; charset=utf-8", MANIFESTS[0]))).unwrap(), MANIFESTS[0]);
    assert!(media_type(own.as_bytes(), Some(INDEXES[0])).is_err());
    assert_eq!(media_type(b"{}", Some(INDEXES[1])).unwrap(), INDEXES[1]);
    assert_eq!(media_type(br#"{"manifests":[]}"#, None).unwrap(), INDEXES[0]);
    assert_eq!(media_type(b"{}", None).unwrap(), MANIFESTS[0]);
    assert!(media_type(b"<html>", None).is_err());
}

proptest! {
    #[test]
    fn any_bytes_are_survived(bytes: Vec<u8>) {
        let _ = Manifest::read(&bytes);
        let _ = read_index(&bytes);
        let _ = media_type(&bytes, None);
    }
}
