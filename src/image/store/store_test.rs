// SPDX-License-Identifier: Apache-2.0
use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use serde_json::json;
use tempfile::TempDir;

use super::*;
use crate::image::{Image, Reference};

fn store() -> (TempDir, Store) {
    let directory = TempDir::new().unwrap();
    let store = Store::open_at(&directory.path().join("data")).unwrap();
    (directory, store)
}

fn partial(store: &Store, content: &[u8]) -> Partial {
    match store.bring(&Digest::of(content), content.len().try_into().unwrap(), || {}).unwrap() {
        Blob::Wanted(partial) => *partial,
        Blob::Here => panic!("it is here"),
    }
}

fn reference(text: &str) -> Reference {
    Reference::parse(text, "example.org").unwrap()
}

/// An image with one layer, which is no tar, since nobody looks into it here.
fn add_image(store: &Store, layer: &[u8], names: &[&str]) -> Image {
    let digest = store.add(layer).unwrap();
    let rootfs = json!({ "type": "layers", "diff_ids": [digest.to_string()] });
    let configuration = json!({ "architecture": "amd64", "os": "linux", "rootfs": rootfs }).to_string();
    let id = store.add(configuration.as_bytes()).unwrap();
    let blob = |media_type, digest: Digest, size| json!({ "mediaType": media_type, "digest": digest, "size": size });
    let config = blob("application/vnd.oci.image.config.v1+json", id, configuration.len());
    let layers = [blob("application/vnd.oci.image.layer.v1.tar", digest, layer.len())];
    let manifest = json!({ "schemaVersion": 2, "config": config, "layers": layers }).to_string();
    let manifest = store.add(manifest.as_bytes()).unwrap();
    let names: Vec<Reference> = names.iter().map(|name| reference(name)).collect();
    store
        .change(|index| {
            index.add(manifest, id, &names);
            Ok(())
        })
        .unwrap();
    store.image(&manifest).unwrap()
}

fn copy(file: &mut File, layers: Vec<crate::image::LayerReader>) -> io::Result<()> {
    layers.into_iter().try_for_each(|mut layer| io::copy(&mut layer, file).map(|_| ()))
}

#[test]
fn content_comes_in_pieces_and_runs() {
    let (_directory, store) = store();
    let mut first = partial(&store, b"content");
    first.write(b"con").unwrap();
    drop(first);
    let mut second = partial(&store, b"content");
    assert_eq!((second.received(), second.found()), (3, 3));
    second.write(b"tent").unwrap();
    assert!(!store.has(&Digest::of(b"content")));
    second.publish().unwrap();
    assert_eq!(store.read(&Digest::of(b"content"), 100).unwrap(), b"content");
    assert!(matches!(store.bring(&Digest::of(b"content"), 7, || {}).unwrap(), Blob::Here));
    assert_eq!(fs::read_dir(store.root().join("partial")).unwrap().count(), 0);
}

#[test]
fn wrong_content_is_never_published() {
    let (_directory, store) = store();
    let mut wrong = partial(&store, b"content");
    wrong.write(b"CONTENT").unwrap();
    assert!(matches!(wrong.publish(), Err(Problem::DigestMismatch { .. })));
    let mut long = partial(&store, b"content");
    long.restart().unwrap();
    assert!(matches!(long.write(b"contents"), Err(Problem::Size { expected: 7, found: 8, .. })));
    drop(long);
    let mut short = partial(&store, b"content");
    short.restart().unwrap();
    assert!(matches!(short.publish(), Err(Problem::Size { expected: 7, found: 0, .. })));
    assert!(!store.has(&Digest::of(b"content")));
}

#[test]
fn a_part_that_is_too_long_is_forgotten() {
    let (_directory, store) = store();
    let digest = Digest::of(b"content");
    fs::write(store.root().join("partial").join(digest.hex()), b"much more than it has").unwrap();
    assert_eq!(partial(&store, b"content").received(), 0);
}

#[test]
fn damage_on_the_disk_is_seen() {
    let (_directory, store) = store();
    let digest = store.add(b"content").unwrap();
    let path = store.blob_path(&digest);
    remove(&path).unwrap();
    fs::write(&path, b"c0ntent").unwrap();
    assert!(matches!(store.read(&digest, 100), Err(Problem::DigestMismatch { .. })));
    assert!(store.read(&digest, 3).is_err());
}

#[test]
fn of_many_only_one_brings_it() {
    let (_directory, store) = store();
    let brought = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                if let Blob::Wanted(mut partial) = store.bring(&Digest::of(b"content"), 7, || {}).unwrap() {
                    brought.fetch_add(1, Ordering::Relaxed);
                    thread::sleep(std::time::Duration::from_millis(20));
                    partial.write(b"content").unwrap();
                    partial.publish().unwrap();
                }
            });
        }
    });
    assert_eq!(brought.into_inner(), 1);
    assert!(store.has(&Digest::of(b"content")));
}

#[test]
fn names_belong_to_one_image() {
    let (_directory, store) = store();
    let first = add_image(&store, b"1", &["app:v1", "app:latest"]);
    let second = add_image(&store, b"2", &["app:latest"]);
    let found = |name| store.resolve(&reference(name)).unwrap().map(|image| image.id);
    assert_eq!(found("app"), Some(second.id));
    assert_eq!(found("app:v1"), Some(first.id));
    assert_eq!(found("app:v2"), None);
    let index = store.index().unwrap();
    assert_eq!(index.find_id(&first.id.short()).unwrap(), Some(first.manifest_digest));
    assert_eq!(index.find_id("sha256:").unwrap(), None);
    assert_eq!(index.find_id("xyz").unwrap(), None);
}

#[test]
fn a_source_is_found_by_its_digest() {
    let (_directory, store) = store();
    let index_digest = Digest::of(b"an index");
    let image = add_image(&store, b"1", &["app:v1", &format!("app@{index_digest}")]);
    let found = |name: &str| store.resolve(&reference(name)).unwrap().map(|image| image.id);
    assert_eq!(found(&format!("app@{index_digest}")), Some(image.id));
    assert_eq!(found(&format!("app:other@{index_digest}")), Some(image.id));
    assert_eq!(found(&format!("other@{index_digest}")), None);
}

#[test]
fn changes_of_many_are_all_kept() {
    let (_directory, store) = store();
    thread::scope(|scope| {
        for number in 0..8 {
            let store = &store;
            scope.spawn(move || add_image(store, &[number], &[&format!("app:v{number}")]));
        }
    });
    assert_eq!(store.index().unwrap().images.len(), 8);
}

#[test]
fn a_change_that_fails_changes_nothing() {
    let (_directory, store) = store();
    add_image(&store, b"1", &["app"]);
    let before = store.index().unwrap();
    let failed: std::result::Result<(), _> = store.change(|index| {
        index.images.clear();
        Err(Problem::NotHere)
    });
    assert!(failed.is_err());
    assert_eq!(store.index().unwrap(), before);
}

#[test]
fn what_a_killed_process_leaves_does_no_harm() {
    let (_directory, store) = store();
    let image = add_image(&store, b"1", &["app"]);
    fs::write(store.root().join("images.json.new"), b"{ half a li").unwrap();
    fs::write(store.root().join("disks").join(format!("{}-raw.new", image.chain().hex())), b"half a disk").unwrap();
    add_image(&store, b"2", &["app:v2"]);
    assert_eq!(store.index().unwrap().images.len(), 2);
    let disk = store.disk(&image, "raw", copy).unwrap();
    assert_eq!(fs::read(disk).unwrap(), b"1");
}

#[test]
fn a_damaged_list_is_named() {
    let (_directory, store) = store();
    fs::write(store.root().join("images.json"), b"{}").unwrap();
    assert!(matches!(store.index(), Err(Problem::Damaged { .. })));
    fs::write(store.root().join("images.json"), br#"{"version":2,"images":{}}"#).unwrap();
    assert!(matches!(store.index(), Err(Problem::Damaged { .. })));
}

#[test]
fn a_disk_is_made_once() {
    let (_directory, store) = store();
    let image = add_image(&store, b"layer", &["app"]);
    let made = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let disk = store.disk(&image, "raw", |file, layers| {
                    made.fetch_add(1, Ordering::Relaxed);
                    copy(file, layers)
                });
                assert_eq!(fs::read(disk.unwrap()).unwrap(), b"layer");
            });
        }
    });
    assert_eq!(made.into_inner(), 1);
}

#[test]
fn a_disk_of_unverified_layers_is_not_published() {
    let (_directory, store) = store();
    let image = add_image(&store, b"layer", &["app"]);
    let disks = || fs::read_dir(store.root().join("disks")).unwrap().count();
    let failed = store.disk(&image, "raw", |file: &mut File, _| file.write_all(b"something"));
    assert!(failed.unwrap_err().to_string().contains("not verified"));
    assert_eq!(disks(), 0);
    let failed = store.disk(&image, "raw", |_, _| Err(io::Error::other("no room")));
    assert!(failed.unwrap_err().to_string().contains("no room"));
    assert_eq!(disks(), 0);
    // The layer was damaged after it came.
    let path = store.blob_path(&image.content().copied().nth(1).unwrap());
    remove(&path).unwrap();
    fs::write(&path, b"1ayer").unwrap();
    assert!(store.disk(&image, "raw", copy).is_err());
    assert_eq!(disks(), 0);
}

#[test]
fn only_what_nobody_needs_is_pruned() {
    let (_directory, store) = store();
    let kept = add_image(&store, b"kept", &["app:kept"]);
    let gone = add_image(&store, b"gone", &["app:gone"]);
    for image in [&kept, &gone] {
        store.disk(image, "raw", copy).unwrap();
    }
    partial(&store, b"half").write(b"ha").unwrap();
    store.forget(&gone.manifest_digest, None).unwrap();
    let bringing = store.hold_content().unwrap();
    assert_eq!(store.prune().unwrap(), None);
    drop(bringing);
    let pruned = store.prune().unwrap().unwrap();
    // Manifest, configuration, layer, part and disk.
    assert_eq!(pruned.files.len(), 5);
    assert!(pruned.bytes > 0);
    assert!(!store.has(&gone.id));
    assert!(store.image(&kept.manifest_digest).is_ok());
    assert_eq!(fs::read(store.disk_path(&kept.chain(), "raw")).unwrap(), b"kept");
    assert_eq!(store.prune().unwrap().unwrap(), Pruned::default());
}

#[test]
fn a_name_can_be_forgotten_alone() {
    let (_directory, store) = store();
    let image = add_image(&store, b"1", &["app:v1", "app:v2"]);
    store.forget(&image.manifest_digest, Some("example.org/app:v1")).unwrap();
    assert!(store.resolve(&reference("app:v1")).unwrap().is_none());
    assert!(store.resolve(&reference("app:v2")).unwrap().is_some());
    assert!(matches!(store.forget(&image.manifest_digest, Some("example.org/app:v1")), Err(Problem::NotHere)));
}

#[test]
fn the_store_is_its_owners_alone() {
    use std::os::unix::fs::MetadataExt;
    let (_directory, store) = store();
    assert_eq!(store.root().metadata().unwrap().mode() & 0o777, 0o700);
}
