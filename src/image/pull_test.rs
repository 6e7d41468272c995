// SPDX-License-Identifier: Apache-2.0
use std::fs;
use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use serde_json::json;
use tempfile::TempDir;

use super::super::registry::Credentials;
use super::super::registry::testing::{FakeRegistry, Reply, Request};
use super::*;

fn store() -> (TempDir, Store) {
    let directory = TempDir::new().unwrap();
    let store = Store::open_at(directory.path()).unwrap();
    (directory, store)
}

fn pull(registry: &FakeRegistry, store: &Store, name: &str) -> std::result::Result<Image, Problem> {
    let options = PullOptions { platform: "linux/amd64".parse().unwrap(), ..PullOptions::default() };
    store.pull(&registry.reference(name), &options, &()).map_err(|error| error.problem)
}

fn is_blob(request: &Request, content: &[u8]) -> bool {
    request.line.contains(&format!("blobs/{}", Digest::of(content)))
}

/// Nothing of an image is listed; its layer is not in the store.
fn assert_nothing_published(store: &Store, layer: &[u8]) {
    assert_eq!(store.index().unwrap().images.len(), 0);
    assert!(!store.has(&Digest::of(layer)));
}

const LAYER: &[u8] = b"a layer that is somewhat longer than nothing";

#[test]
fn an_image_comes_with_its_layers() {
    let (registry, (_directory, store)) = (FakeRegistry::start(), store());
    registry.image("latest", "amd64", &[b"lower", LAYER]);
    let image = pull(&registry, &store, "app").unwrap();
    let read = |mut layer: super::super::LayerReader| {
        let mut bytes = Vec::new();
        layer.read_to_end(&mut bytes).unwrap();
        bytes
    };
    let layers: Vec<_> = image.layer_readers(&store).unwrap().into_iter().map(read).collect();
    assert_eq!(layers, [b"lower".to_vec(), LAYER.to_vec()]);
    assert_eq!(store.resolve(&registry.reference("app")).unwrap().unwrap().id, image.id);
    let by_digest = format!("app@{}", image.manifest_digest);
    assert_eq!(store.resolve(&registry.reference(&by_digest)).unwrap().unwrap().id, image.id);
}

#[test]
fn of_an_index_the_image_for_this_host_comes() {
    let (registry, (_directory, store)) = (FakeRegistry::start(), store());
    let mut manifests = Vec::new();
    for architecture in ["arm64", "amd64"] {
        let mut manifest = registry.image(architecture, architecture, &[architecture.as_bytes()]);
        manifest["platform"] = json!({ "os": "linux", "architecture": architecture });
        manifests.push(manifest);
    }
    let media_type = document::INDEXES[0];
    let index = json!({ "schemaVersion": 2, "mediaType": media_type, "manifests": manifests });
    let digest = registry.manifest("latest", &index)["digest"].as_str().unwrap().to_owned();
    let image = pull(&registry, &store, "app").unwrap();
    assert!(store.has(&Digest::of(b"amd64")) && !store.has(&Digest::of(b"arm64")));
    assert_eq!(pull(&registry, &store, &format!("app@{digest}")).unwrap().id, image.id);
    let options = PullOptions { platform: "linux/s390x".parse().unwrap(), ..PullOptions::default() };
    let error = store.pull(&registry.reference("app"), &options, &()).unwrap_err();
    assert!(error.to_string().contains("linux/arm64, linux/amd64"), "{error}");
}

#[test]
fn an_image_for_another_machine_is_refused() {
    let (registry, (_directory, store)) = (FakeRegistry::start(), store());
    registry.image("latest", "arm64", &[LAYER]);
    assert!(matches!(pull(&registry, &store, "app"), Err(Problem::Platform { .. })));
    assert_eq!(store.index().unwrap().images.len(), 0);
}

#[test]
fn what_is_here_is_not_fetched_again() {
    let (registry, (_directory, store)) = (FakeRegistry::start(), store());
    registry.image("v1", "amd64", &[LAYER, LAYER]);
    registry.image("v2", "amd64", &[LAYER, b"more"]);
    for tag in ["app:v1", "app:v2", "app:v1"] {
        pull(&registry, &store, tag).unwrap();
    }
    assert_eq!(registry.blob_requests(LAYER).len(), 1);
    assert_eq!(registry.blob_requests(b"more").len(), 1);
}

#[test]
fn pulls_of_one_image_at_once_fetch_it_once() {
    let (registry, (_directory, store)) = (FakeRegistry::start(), store());
    registry.image("latest", "amd64", &[LAYER, b"more"]);
    thread::scope(|scope| (0..4).for_each(|_| _ = scope.spawn(|| pull(&registry, &store, "app").unwrap())));
    assert_eq!(registry.blob_requests(LAYER).len(), 1);
    assert_eq!(store.index().unwrap().images.len(), 1);
}

#[test]
fn a_dropped_connection_is_gone_on_with() {
    let registry = FakeRegistry::with_fault(|request, reply| Reply {
        cut: if is_blob(request, LAYER) { 15 } else { 9999 },
        ..reply
    });
    let (_directory, store) = store();
    registry.image("latest", "amd64", &[LAYER]);
    pull(&registry, &store, "app").unwrap();
    let ranges = registry.blob_requests(LAYER);
    assert_eq!(ranges, [None, Some("bytes=15-".into()), Some("bytes=30-".into())]);
}

#[test]
fn a_registry_without_ranges_begins_anew() {
    let count = AtomicUsize::new(0);
    let registry = FakeRegistry::with_fault(move |request, reply| match is_blob(request, LAYER) {
        true if count.fetch_add(1, Ordering::Relaxed) == 0 => Reply { cut: 20, ..reply },
        true => Reply { status: 200, body: LAYER.to_vec(), ..reply },
        false => reply,
    });
    let (_directory, store) = store();
    registry.image("latest", "amd64", &[LAYER]);
    pull(&registry, &store, "app").unwrap();
    assert_eq!(registry.blob_requests(LAYER).len(), 2);
}

#[test]
fn a_part_from_elsewhere_is_refused() {
    let registry = FakeRegistry::with_fault(|request, reply| match request.header("range") {
        Some(_) => Reply { headers: vec![("content-range".into(), "bytes 3-9/44".into())], ..reply },
        None => Reply { cut: if is_blob(request, LAYER) { 20 } else { 9999 }, ..reply },
    });
    let (_directory, store) = store();
    registry.image("latest", "amd64", &[LAYER]);
    assert!(matches!(pull(&registry, &store, "app"), Err(Problem::Protocol(_))));
    assert_nothing_published(&store, LAYER);
}

#[test]
fn a_broken_pull_goes_on_the_next_time() {
    let broken = Arc::new(AtomicBool::new(true));
    let is_broken = Arc::clone(&broken);
    let registry = FakeRegistry::with_fault(move |request, reply| match is_blob(request, LAYER) {
        true if is_broken.load(Ordering::Relaxed) && request.header("range").is_some() => Reply { cut: 0, ..reply },
        true if is_broken.load(Ordering::Relaxed) => Reply { cut: 20, ..reply },
        _ => reply,
    });
    let (_directory, store) = store();
    registry.image("latest", "amd64", &[LAYER]);
    let problem = pull(&registry, &store, "app").unwrap_err();
    assert!(matches!(problem, Problem::Interrupted { received: 20, size: 44, .. }), "{problem}");
    assert_nothing_published(&store, LAYER);
    broken.store(false, Ordering::Relaxed);
    pull(&registry, &store, "app").unwrap();
    assert_eq!(registry.blob_requests(LAYER).last().unwrap().as_deref(), Some("bytes=20-"));
}

#[test]
fn a_damaged_part_is_fetched_again() {
    let (registry, (_directory, store)) = (FakeRegistry::start(), store());
    registry.image("latest", "amd64", &[LAYER]);
    for part in [&b"not the beginning"[..], &[0; 44]] {
        let path = store.root().join("partial").join(Digest::of(LAYER).hex());
        fs::write(path, part).unwrap();
        pull(&registry, &store, "app").unwrap();
        assert!(store.has(&Digest::of(LAYER)));
        fs::remove_file(store.blob_path(&Digest::of(LAYER))).unwrap();
    }
}

#[test]
fn content_that_differs_is_never_published() {
    let flip = |request: &Request, mut reply: Reply| {
        if is_blob(request, LAYER) {
            reply.body[7] ^= 1;
        }
        reply
    };
    let registry = FakeRegistry::with_fault(flip);
    let (_directory, store) = store();
    registry.image("latest", "amd64", &[LAYER]);
    let expected = Digest::of(LAYER);
    assert!(
        matches!(pull(&registry, &store, "app"), Err(Problem::DigestMismatch { expected: e, .. }) if e == expected)
    );
    assert_nothing_published(&store, LAYER);
    assert!(!store.root().join("partial").join(expected.hex()).exists());
}

#[test]
fn a_layer_that_is_longer_than_it_says_is_stopped() {
    let registry = FakeRegistry::with_fault(|request, mut reply| {
        if is_blob(request, LAYER) {
            reply.body.push(b'x');
        }
        reply
    });
    let (_directory, store) = store();
    registry.image("latest", "amd64", &[LAYER]);
    assert!(matches!(pull(&registry, &store, "app"), Err(Problem::Size { expected: 44, found: 45, .. })));
    assert_nothing_published(&store, LAYER);
}

#[test]
fn a_manifest_has_to_be_what_its_digest_says() {
    let registry = FakeRegistry::with_fault(|request, mut reply| {
        if request.line.contains("/manifests/") {
            reply.body.push(b' ');
        }
        reply
    });
    let (_directory, store) = store();
    let digest = registry.image("latest", "amd64", &[LAYER])["digest"].as_str().unwrap().to_owned();
    assert!(matches!(pull(&registry, &store, &format!("app@{digest}")), Err(Problem::DigestMismatch { .. })));
    let lying = FakeRegistry::with_fault(move |_, reply| reply.header("docker-content-digest", digest.clone()));
    lying.image("latest", "amd64", &[b"another layer"]);
    assert!(matches!(pull(&lying, &store, "app"), Err(Problem::DigestMismatch { .. })));
    assert_nothing_published(&store, LAYER);
}

#[test]
fn what_is_too_large_is_refused_before_it_comes() {
    let (registry, (_directory, store)) = (FakeRegistry::start(), store());
    registry.manifest("latest", &json!({ "mediaType": document::MANIFESTS[0], "x": "x".repeat(5 << 20) }));
    assert!(matches!(pull(&registry, &store, "app"), Err(Problem::TooLarge { what: "manifest", .. })));
    let mut manifest = json!({ "schemaVersion": 2, "mediaType": document::MANIFESTS[0] });
    manifest["config"] = registry.blob("application/vnd.oci.image.config.v1+json", b"{}");
    manifest["layers"] = json!([registry.blob("application/vnd.oci.image.layer.v1.tar", LAYER)]);
    manifest["layers"][0]["size"] = json!(100_u64 << 30);
    registry.manifest("latest", &manifest);
    assert!(matches!(
        pull(&registry, &store, "app"),
        Err(Problem::NoSpace { .. } | Problem::Size { .. } | Problem::Interrupted { .. })
    ));
    assert_nothing_published(&store, LAYER);
}

#[test]
fn a_busy_registry_is_asked_again() {
    let count = AtomicUsize::new(0);
    let busy = move |_: &Request, reply| match count.fetch_add(1, Ordering::Relaxed) % 3 {
        2 => reply,
        other => Reply::status([503, 429][other]),
    };
    let registry = FakeRegistry::with_fault(busy);
    let (_directory, store) = store();
    registry.image("latest", "amd64", &[LAYER]);
    pull(&registry, &store, "app").unwrap();
    let registry = FakeRegistry::with_fault(|_, _| Reply::status(503));
    assert!(matches!(pull(&registry, &store, "app"), Err(Problem::Status { status: 503, .. })));
    assert_eq!(registry.requests().len(), 5);
}

#[test]
fn what_is_missing_is_named() {
    let (registry, (_directory, store)) = (FakeRegistry::start(), store());
    registry.image("latest", "amd64", &[LAYER]);
    assert!(matches!(pull(&registry, &store, "app:v2"), Err(Problem::NotFound("image"))));
    let registry =
        FakeRegistry::with_fault(|request, reply| if is_blob(request, LAYER) { Reply::status(404) } else { reply });
    registry.image("latest", "amd64", &[LAYER]);
    assert!(matches!(pull(&registry, &store, "app"), Err(Problem::NotFound("blob"))));
    let nowhere = Reference::parse("127.0.0.1:1/app", "localhost").unwrap();
    let error = store.pull(&nowhere, &PullOptions::default(), &()).unwrap_err();
    assert!(matches!(error.problem, Problem::Unreachable { .. }));
}

fn pull_as(registry: &FakeRegistry, store: &Store, password: &str) -> std::result::Result<Image, Problem> {
    let credentials = Credentials::Password { user: "me".into(), password: password.into() };
    let access = Access { credentials: Some(credentials), ..Access::default() };
    let options = PullOptions { platform: "linux/amd64".parse().unwrap(), access };
    store.pull(&registry.reference("app"), &options, &()).map_err(|error| error.problem)
}

/// `me:secret`.
const BASIC: &str = "Basic bWU6c2VjcmV0";

#[test]
fn a_password_is_shown_where_it_is_asked_for() {
    let registry = FakeRegistry::with_fault(|request, reply| match request.header("authorization") {
        Some(BASIC) => reply,
        _ => Reply::status(401).header("www-authenticate", "Basic realm=\"here\""),
    });
    let (_directory, store) = store();
    registry.image("latest", "amd64", &[LAYER]);
    assert!(matches!(pull_as(&registry, &store, "wrong"), Err(Problem::Unauthorized { given: true, .. })));
    assert_nothing_published(&store, LAYER);
    pull_as(&registry, &store, "secret").unwrap();
}

#[test]
fn a_token_is_fetched_and_renewed() {
    let issued = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&issued);
    // Each token is good for one request, and the token service wants the password.
    let registry = FakeRegistry::with_fault(move |request, reply| {
        let host = request.header("host").unwrap_or_default();
        if request.line.contains("/token?") {
            assert!(
                request.line.contains("service=here") && request.line.contains("scope=repository"),
                "{}",
                request.line
            );
            return match request.header("authorization") {
                Some(BASIC) => {
                    let token = format!("{{\"token\":\"t{}\"}}", count.fetch_add(1, Ordering::Relaxed) + 1);
                    Reply { body: token.into_bytes(), ..Reply::status(200) }
                }
                _ => Reply::status(401),
            };
        }
        let newest = format!("Bearer t{}", count.load(Ordering::Relaxed));
        let was_used = request.line.contains("/blobs/") && count.load(Ordering::Relaxed) < 2;
        match request.header("authorization") {
            Some(token) if token == newest && !was_used => reply,
            _ => {
                let challenge = format!("Bearer realm=\"http://{host}/token\",service=\"here\"");
                Reply::status(401).header("www-authenticate", challenge)
            }
        }
    });
    let (_directory, store) = store();
    registry.image("latest", "amd64", &[]);
    assert!(matches!(pull_as(&registry, &store, "wrong"), Err(Problem::Unauthorized { given: true, .. })));
    pull_as(&registry, &store, "secret").unwrap();
    assert_eq!(issued.load(Ordering::Relaxed), 2);
}

#[test]
fn a_password_does_not_go_where_a_challenge_points_without_tls() {
    let registry = FakeRegistry::with_fault(|_, _| {
        Reply::status(401).header("www-authenticate", "Bearer realm=\"http://192.0.2.1/token\",service=\"x\"")
    });
    let (_directory, store) = store();
    assert!(matches!(pull_as(&registry, &store, "secret"), Err(Problem::Protocol(_))));
}

#[test]
fn a_redirect_elsewhere_does_not_get_the_password() {
    let storage = FakeRegistry::start();
    storage.blob("", LAYER);
    // Another host by its name, if not by its address.
    let elsewhere = storage.host().replace("127.0.0.1", "localhost");
    let registry = FakeRegistry::with_fault(move |request, reply| match request.header("authorization") {
        Some(BASIC) if is_blob(request, LAYER) => {
            Reply::status(307).header("location", format!("http://{elsewhere}/v2/app/blobs/{}", Digest::of(LAYER)))
        }
        Some(BASIC) => reply,
        _ => Reply::status(401).header("www-authenticate", "Basic"),
    });
    let (_directory, store) = store();
    registry.image("latest", "amd64", &[LAYER]);
    pull_as(&registry, &store, "secret").unwrap();
    assert_eq!(storage.requests().len(), 1);
    assert_eq!(storage.requests()[0].header("authorization"), None);
}

#[test]
fn an_identity_token_is_exchanged() {
    let registry = FakeRegistry::with_fault(|request, reply| match request.header("authorization") {
        // The token is in the form that is posted, and in no header.
        None if request.line.starts_with("POST /token") => {
            assert_eq!(request.header("content-type"), Some("application/x-www-form-urlencoded"));
            Reply { body: b"{\"access_token\":\"good\"}".to_vec(), ..Reply::status(200) }
        }
        Some("Bearer good") => reply,
        _ => {
            let host = request.header("host").unwrap_or_default();
            let challenge = format!("Bearer realm=\"http://{host}/token\",service=\"here\"");
            Reply::status(401).header("www-authenticate", challenge)
        }
    });
    let (_directory, store) = store();
    registry.image("latest", "amd64", &[LAYER]);
    let access = Access { credentials: Some(Credentials::IdentityToken("refresh".into())), ..Access::default() };
    let options = PullOptions { platform: "linux/amd64".parse().unwrap(), access };
    store.pull(&registry.reference("app"), &options, &()).unwrap();
    let posts = registry.requests().iter().filter(|request| request.line.starts_with("POST /token")).count();
    assert_eq!(posts, 1);
}
