// SPDX-License-Identifier: Apache-2.0
//! Images, from a real registry to the disk of a VM, as users fetch them. None of this needs KVM.

mod common;
#[path = "image/registry.rs"]
mod registry;

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use common::{CORACLE, host, run, sha256};
use registry::{ENDLESS, LOGIN, Line, Registry};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A user with nothing on this host yet.
struct User {
    home: TempDir,
}

impl User {
    fn new() -> Self {
        Self { home: TempDir::new().unwrap() }
    }

    fn data(&self) -> PathBuf {
        self.home.path().join("data")
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(CORACLE);
        command.args(words).env("HOME", self.home.path()).env("CORACLE_DATA", self.data());
        command.env_remove("DOCKER_CONFIG").env_remove("REGISTRY_AUTH_FILE").env_remove("XDG_RUNTIME_DIR");
        command
    }

    /// Runs a command that must succeed; gives its stdout.
    fn coracle(&self, words: &[&str]) -> String {
        let (status, stdout, stderr) = run(&mut self.command(words));
        assert_eq!(status, Some(0), "{words:?}: {stderr}");
        stdout
    }

    /// Runs a command that must fail as Coracle does, in three lines; gives them.
    fn fails(&self, words: &[&str]) -> String {
        let (status, stdout, stderr) = run(&mut self.command(words));
        assert_eq!(status, Some(125), "{words:?}: {stdout}{stderr}");
        let lines: Vec<&str> = stderr.lines().collect();
        let last = &lines[lines.len().saturating_sub(3)..];
        let starts = ["coracle: cannot ", "  why: ", "  try: "];
        assert!(last.len() == 3 && last.iter().zip(starts).all(|(line, start)| line.starts_with(start)), "{stderr}");
        last.join("\n")
    }

    fn files(&self, directory: &str) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.data().join(directory)).unwrap();
        let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        paths
    }

    /// Everything that has a digest for its name has it, and every disk is sound.
    fn assert_consistent(&self) {
        for blob in self.files("blobs/sha256") {
            assert_eq!(sha256(&blob), blob.file_name().unwrap().to_str().unwrap());
        }
        for disk in self.files("disks") {
            if disk.extension().is_none() {
                host("fsck.erofs", &[disk.to_str().unwrap()]);
            }
        }
    }
}

fn busybox() -> PathBuf {
    let path = coracle::cache::directory().join("images/busybox");
    assert!(path.exists(), "{} is missing: run scripts/test-images", path.display());
    path
}

/// An OCI layout with one layer of `mebibytes` that cannot be compressed.
fn large_image(directory: &Path, mebibytes: usize) -> PathBuf {
    let layout = directory.join("large");
    fs::create_dir_all(layout.join("blobs/sha256")).unwrap();
    let (noise, tar) = (directory.join("noise"), directory.join("layer.tar"));
    // SplitMix64: noise that is the same each time.
    let mut state = 1_u64;
    let mut bytes = Vec::new();
    for _ in 0..mebibytes << 17 {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        bytes.extend((mixed ^ (mixed >> 27)).to_le_bytes());
    }
    fs::write(&noise, bytes).unwrap();
    host("tar", &["-C", directory.to_str().unwrap(), "-cf", tar.to_str().unwrap(), "noise"]);
    let add = |media_type: &str, content: Vec<u8>| -> Value {
        let path = directory.join("new");
        fs::write(&path, &content).unwrap();
        let digest = sha256(&path);
        fs::rename(&path, layout.join("blobs/sha256").join(&digest)).unwrap();
        json!({ "mediaType": media_type, "digest": format!("sha256:{digest}"), "size": content.len() })
    };
    let layer = add("application/vnd.oci.image.layer.v1.tar", fs::read(&tar).unwrap());
    let rootfs = json!({ "type": "layers", "diff_ids": [layer["digest"]] });
    let configuration = json!({ "architecture": "amd64", "os": "linux", "rootfs": rootfs }).to_string().into_bytes();
    let config = add("application/vnd.oci.image.config.v1+json", configuration);
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({ "schemaVersion": 2, "mediaType": media_type, "config": config, "layers": [layer] });
    let mut entry = add(media_type, manifest.to_string().into_bytes());
    entry["annotations"] = json!({ "org.opencontainers.image.ref.name": "latest" });
    fs::write(layout.join("index.json"), json!({ "schemaVersion": 2, "manifests": [entry] }).to_string()).unwrap();
    fs::write(layout.join("oci-layout"), "{\"imageLayoutVersion\":\"1.0.0\"}").unwrap();
    layout
}

/// The digest of what the registry has under this name.
fn pushed_digest(registry: &Registry, name: &str) -> String {
    let target = format!("docker://{}/{name}", registry.address);
    let raw = host("skopeo", &["inspect", "--raw", "--tls-verify=false", &target]);
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().write_all(raw.as_bytes()).unwrap();
    format!("sha256:{}", sha256(file.path()))
}

#[test]
fn what_was_pushed_is_pulled() {
    let (user, directory) = (User::new(), TempDir::new().unwrap());
    let registry = Registry::plain(directory.path());
    let formats: [(&str, &[&str]); 3] = [
        ("oci", &[]),
        ("docker", &["--format", "v2s2"]),
        ("zstd", &["--dest-compress", "--dest-compress-format", "zstd", "--dest-force-compress-format"]),
    ];
    for (tag, words) in &formats[..2] {
        registry.push(&busybox(), &format!("busybox:{tag}"), words);
    }
    // This skopeo packs anew only what is not packed.
    let unpacked = large_image(directory.path(), 1);
    registry.push(&unpacked, "busybox:zstd", &formats[2].1[..3]);
    for (tag, _) in formats {
        let name = format!("{}/busybox:{tag}", registry.address);
        assert_eq!(user.coracle(&["pull", &name]), format!("{name}\n"));
        let inspected: Value = serde_json::from_str(&user.coracle(&["inspect", &name])).unwrap();
        assert_eq!(inspected[0]["ManifestDigest"], pushed_digest(&registry, &format!("busybox:{tag}")), "{tag}");
    }
    let manifests =
        user.files("blobs/sha256").into_iter().filter_map(|path| fs::read_to_string(path).ok()).collect::<String>();
    for media_type in ["layer.v1.tar+gzip", "layer.v1.tar+zstd", "docker.image.rootfs.diff.tar.gzip"] {
        assert!(manifests.contains(media_type), "no layer was {media_type}");
    }
    // Both ways to say it are the same files, and so the same disk.
    assert_eq!(user.files("disks").len(), 2);
    user.assert_consistent();
    let listed = user.coracle(&["images"]);
    assert!(listed.starts_with("REPOSITORY "), "{listed}");
    assert_eq!(listed.lines().count(), 4, "{listed}");
}

#[test]
fn names_and_images_are_removed() {
    let (user, directory) = (User::new(), TempDir::new().unwrap());
    let registry = Registry::plain(directory.path());
    registry.push(&busybox(), "busybox:v1", &[]);
    let name = format!("{}/busybox:v1", registry.address);
    user.coracle(&["pull", &name]);
    user.coracle(&["tag", &name, "box"]);
    let id = user.coracle(&["images", "-q"]).trim().to_owned();
    assert!(user.fails(&["rmi", &id]).contains("several repositories"));
    assert_eq!(user.coracle(&["rmi", "box"]), "Untagged: box:latest\n");
    assert!(user.fails(&["inspect", "--type", "image", "box"]).contains("no such image"));
    assert!(user.coracle(&["history", &id]).contains("umoci"));
    let listed = user.coracle(&["images", "--format", "{{.Repository}}:{{.Tag}}", &name]);
    assert_eq!(listed, format!("{name}\n"));
    assert_eq!(user.coracle(&["inspect", "-f", "{{.Config.Cmd}} {{.Os}}", &name]), "[sh] linux\n");
    let removed = user.coracle(&["rmi", &id]);
    assert!(removed.contains(&format!("Untagged: {name}\n")) && removed.contains("Deleted: sha256:"), "{removed}");
    for directory in ["blobs/sha256", "disks", "partial"] {
        assert_eq!(user.files(directory), [] as [PathBuf; 0]);
    }
    assert!(user.fails(&["rmi", &name]).contains("no such image"));
    assert_eq!(user.coracle(&["rmi", "--force", &name]), "");
}

#[test]
fn what_cannot_be_pulled_is_explained() {
    let (user, directory) = (User::new(), TempDir::new().unwrap());
    let registry = Registry::plain(directory.path());
    registry.push(&busybox(), "busybox:v1", &[]);
    let at = |name: &str| format!("{}/{name}", registry.address);
    let absent = format!("busybox@sha256:{}", "0".repeat(64));
    for (name, why) in [
        (at("busybox:v2"), "no such image"),
        (at("nothing"), "no such image"),
        (at(&absent), "no such image"),
        (at("Busybox"), "upper-case"),
        (at("busybox:"), "not a tag"),
        ("127.0.0.1:1/busybox".to_owned(), "Connection refused"),
        ("registry.invalid/busybox".to_owned(), "no connection to registry.invalid"),
    ] {
        let lines = user.fails(&["pull", &name]);
        assert!(lines.contains(why) && lines.contains(&name), "{lines}");
    }
    let lines = user.fails(&["pull", "--platform", "linux/arm64", &at("busybox:v1")]);
    assert!(lines.contains("linux/amd64, not for linux/arm64"), "{lines}");
    assert_eq!(user.coracle(&["images", "-q"]), "");
}

#[test]
fn a_secured_registry_wants_trust_and_a_login() {
    let (user, directory) = (User::new(), TempDir::new().unwrap());
    let registry = Registry::secured(directory.path());
    registry.push(&busybox(), "busybox", &[]);
    let name = format!("{}/busybox", registry.address);
    let ca = directory.path().join("ca");
    let trusting = ["pull", "--cert-dir", ca.to_str().unwrap(), &name];
    let lines = user.fails(&["pull", "--creds", LOGIN, &name]);
    assert!(lines.contains("is not trusted") && lines.contains("certs.d"), "{lines}");
    let lines = user.fails(&trusting);
    assert!(lines.contains("wants a login") && lines.contains("coracle login"), "{lines}");
    let lines = user.fails(&[&trusting[..], &["--creds", "captain:wrong"]].concat());
    assert!(lines.contains("refused these credentials"), "{lines}");
    assert_eq!(user.coracle(&["images", "-q"]), "");
    user.coracle(&[&trusting[..], &["--creds", LOGIN]].concat());
    user.coracle(&["rmi", &name]);
    user.coracle(&["pull", "--tls-verify=false", "--creds", LOGIN, &name]);
    user.coracle(&["rmi", &name]);
    // What others have stored: trust in the user's directory, and Docker's login.
    let trusted = user.home.path().join(".config/containers/certs.d").join(registry.address.to_string());
    fs::create_dir_all(&trusted).unwrap();
    fs::copy(ca.join("ca.crt"), trusted.join("ca.crt")).unwrap();
    fs::create_dir(user.home.path().join(".docker")).unwrap();
    // captain:s3cret
    let auths = json!({ "auths": { registry.address.to_string(): { "auth": "Y2FwdGFpbjpzM2NyZXQ=" } } });
    fs::write(user.home.path().join(".docker/config.json"), auths.to_string()).unwrap();
    user.coracle(&["pull", &name]);
    user.assert_consistent();
}

#[test]
fn a_registry_that_dies_in_mid_layer_is_gone_on_with() {
    let (user, directory) = (User::new(), TempDir::new().unwrap());
    let mut registry = Registry::plain(directory.path());
    registry.push(&large_image(directory.path(), 8), "large", &["--dest-compress=false"]);
    let line = Line::to(registry.address, 5 << 20, Duration::ZERO);
    let name = format!("{}/large", line.address);
    let pull = thread::scope(|scope| {
        let pull = scope.spawn(|| user.fails(&["pull", &name]));
        common::eventually("a line that is cut", || line.is_cut().then_some(()));
        registry.kill();
        pull.join().unwrap()
    });
    assert!(pull.contains("the connection broke after") && pull.contains("what has come is kept"), "{pull}");
    assert_eq!(user.coracle(&["images", "-q"]), "");
    let parts = user.files("partial");
    assert!(parts.iter().any(|part| part.metadata().unwrap().len() > 4 << 20), "{parts:?}");
    registry.restart();
    line.mend();
    let lines_before = registry.blob_lines().len();
    user.coracle(&["pull", &name]);
    let lines = &registry.blob_lines()[lines_before..];
    assert!(lines.iter().any(|line| line.contains(" 206 ")), "nothing was gone on with: {lines:?}");
    user.assert_consistent();
}

#[test]
fn pulls_of_one_image_at_once_fetch_it_once() {
    let (user, directory) = (User::new(), TempDir::new().unwrap());
    let registry = Registry::plain(directory.path());
    registry.push(&large_image(directory.path(), 4), "large", &[]);
    let line = Line::to(registry.address, ENDLESS, Duration::from_millis(2));
    let name = format!("{}/large", line.address);
    thread::scope(|scope| (0..4).for_each(|_| _ = scope.spawn(|| user.coracle(&["pull", &name]))));
    // The configuration and one layer.
    assert_eq!(registry.blob_lines().len(), 2, "{:?}", registry.blob_lines());
    assert_eq!(user.files("disks").len(), 1);
    user.assert_consistent();
}

#[test]
fn a_pull_may_be_killed_at_any_moment() {
    let (user, directory) = (User::new(), TempDir::new().unwrap());
    let registry = Registry::plain(directory.path());
    registry.push(&large_image(directory.path(), 4), "large", &[]);
    let line = Line::to(registry.address, ENDLESS, Duration::from_millis(1));
    let name = format!("{}/large", line.address);
    let mut killed = 0;
    for milliseconds in (0..200).step_by(10) {
        let mut pull =
            user.command(&["pull", "--quiet", &name]).stdout(File::create("/dev/null").unwrap()).spawn().unwrap();
        thread::sleep(Duration::from_millis(milliseconds));
        if pull.try_wait().unwrap().is_none() {
            killed += 1;
        }
        let _ = pull.kill();
        pull.wait().unwrap();
        if user.data().join("disks").exists() {
            user.assert_consistent();
            user.coracle(&["images"]);
        }
    }
    assert!(killed >= 5, "only {killed} pulls were there to be killed");
    user.coracle(&["pull", &name]);
    user.assert_consistent();
    assert_eq!(user.coracle(&["images", "-q"]).lines().count(), 1);
}

#[test]
fn a_full_disk_is_told() {
    let (user, directory) = (User::new(), TempDir::new().unwrap());
    let registry = Registry::plain(directory.path());
    registry.push(&large_image(directory.path(), 8), "large", &[]);
    let name = format!("{}/large", registry.address);
    let small = user.home.path().join("small");
    fs::create_dir(&small).unwrap();
    // Too little for the layer; and enough for it, but not for a disk made of it.
    for (size, why) in [("4m", "bytes more"), ("12m", "No space left")] {
        let script = "mount -t tmpfs -o size=$2 small $1 && CORACLE_DATA=$1 $3 pull $4";
        let words = ["--user", "--map-root-user", "--mount", "sh", "-c", script, "sh"];
        let mut command = Command::new("unshare");
        command.args(words).arg(&small).args([size, CORACLE, &name]).env("HOME", user.home.path());
        let (status, _, stderr) = run(&mut command);
        assert_eq!(status, Some(125), "{stderr}");
        assert!(stderr.contains(why) && stderr.contains("system prune"), "{stderr}");
    }
}

#[test]
fn images_go_into_archives_and_come_back() {
    let (user, directory) = (User::new(), TempDir::new().unwrap());
    let at = |name: &str| directory.path().join(name).display().to_string();
    let id = user.coracle(&["pull", &format!("oci:{}:latest", busybox().display())]).trim().to_owned();
    user.coracle(&["tag", &id, "box:v1"]);
    user.coracle(&["save", "-o", &at("saved.tar"), "box:v1"]);
    user.coracle(&["save", "-o", &at("again.tar"), "box:v1"]);
    assert_eq!(sha256(at("saved.tar").as_ref()), sha256(at("again.tar").as_ref()), "not the same bytes each time");
    // Others read it as either kind, and what they write is read as well.
    let skopeo = |from: String, to: String| host("skopeo", &["copy", "-q", "--insecure-policy", &from, &to]);
    skopeo(format!("docker-archive:{}", at("saved.tar")), format!("docker-archive:{}:box:docker", at("docker.tar")));
    skopeo(format!("oci-archive:{}", at("saved.tar")), format!("oci-archive:{}:latest", at("oci.tar")));
    host("gzip", &["-k", &at("docker.tar")]);
    let disk = user.files("disks");
    for (words, said) in [
        (["load", "-i", &at("saved.tar")], "Loaded image: box:v1\n"),
        (["load", "-i", &at("docker.tar")], "Loaded image: box:docker\n"),
        (["load", "-i", &at("docker.tar.gz")], "Loaded image: box:docker\n"),
        (["load", "-i", &at("oci.tar")], &format!("Loaded image ID: {id}\n")),
        (["pull", "--quiet", &format!("oci-archive:{}:latest", at("oci.tar"))], &format!("{id}\n")),
        (["pull", "--quiet", &format!("docker-archive:{}:box:docker", at("docker.tar"))], &format!("{id}\n")),
    ] {
        user.coracle(&["rmi", "--force", &id]);
        assert_eq!(user.files("disks"), [] as [PathBuf; 0]);
        assert_eq!(user.coracle(&words), said, "{words:?}");
        assert_eq!(user.files("disks"), disk, "{words:?}");
        user.assert_consistent();
    }
    let mut load = user.command(&["load"]);
    load.stdin(File::open(at("docker.tar.gz")).unwrap());
    assert_eq!(String::from_utf8(load.output().unwrap().stdout).unwrap(), "Loaded image: box:docker\n");
}

#[test]
fn a_damaged_archive_is_refused() {
    let (user, directory) = (User::new(), TempDir::new().unwrap());
    let id = user.coracle(&["pull", &format!("oci:{}", busybox().display())]).trim().to_owned();
    let saved = directory.path().join("saved.tar");
    user.coracle(&["save", "-o", saved.to_str().unwrap(), &id]);
    user.coracle(&["rmi", "--force", &id]);
    let mut bytes = fs::read(&saved).unwrap();
    // In the middle of the layer, which is most of it.
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&saved, &bytes).unwrap();
    let words = ["load", "-i", saved.to_str().unwrap()];
    assert!(user.fails(&words).contains("digest"));
    fs::write(&saved, &bytes[..middle]).unwrap();
    assert!(user.fails(&words).contains("neither manifest.json nor index.json"));
    // The same of Docker's kind, which has no digests of what is packed.
    let plain = directory.path().join("docker.tar");
    let (from, to) = (format!("oci:{}", busybox().display()), format!("docker-archive:{}:box:v1", plain.display()));
    host("skopeo", &["copy", "-q", "--insecure-policy", &from, &to]);
    let mut bytes = fs::read(&plain).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&plain, &bytes).unwrap();
    assert!(user.fails(&["load", "-i", plain.to_str().unwrap()]).contains("is damaged"));
    fs::write(&saved, b"no archive at all").unwrap();
    assert!(user.fails(&words).contains("no tar archive"));
    assert_eq!(user.coracle(&["images", "-q"]), "");
    assert_eq!(user.files("disks"), [] as [PathBuf; 0]);
}

#[test]
fn what_is_pushed_others_can_pull() {
    let (user, other, directory) = (User::new(), User::new(), TempDir::new().unwrap());
    let registry = Registry::plain(directory.path());
    let name = format!("{}/team/box:v1", registry.address);
    let id = user.coracle(&["pull", &format!("oci:{}", busybox().display())]).trim().to_owned();
    assert!(user.fails(&["push", &name]).contains("no such image"));
    user.coracle(&["tag", &id, &name]);
    let pushed = user.coracle(&["push", &name]);
    assert_eq!(pushed, format!("{}/team/box@{}\n", registry.address, pushed_digest(&registry, "team/box:v1")));
    let (status, _, stderr) = run(&mut user.command(&["push", &name]));
    assert!(status == Some(0) && stderr.contains("Layer already exists"), "{stderr}");
    other.coracle(&["pull", pushed.trim()]);
    other.coracle(&["pull", &name]);
    assert_eq!(other.coracle(&["images", "-q", "--no-trunc"]).trim(), id);
    other.assert_consistent();
    drop(registry);
    assert!(user.fails(&["push", &name]).contains("Connection refused"));
}

#[test]
fn a_login_is_kept_as_docker_keeps_it() {
    let (user, directory) = (User::new(), TempDir::new().unwrap());
    let registry = Registry::secured(directory.path());
    let address = registry.address.to_string();
    let name = format!("{address}/box:v1");
    let ca = directory.path().join("ca").display().to_string();
    let config = user.home.path().join(".docker/config.json");
    let (who, password) = LOGIN.split_once(':').unwrap();
    let login = ["login", "--cert-dir", &ca, "-u", who, &address];
    assert!(user.fails(&[&login[..], &["-p", "wrong"]].concat()).contains("refused these credentials"));
    assert!(user.fails(&login).contains("no terminal"));
    assert!(!config.exists());
    fs::create_dir(config.parent().unwrap()).unwrap();
    fs::write(&config, json!({ "psFormat": "kept" }).to_string()).unwrap();
    let mut with_stdin = user.command(&[&login[..], &["--password-stdin"]].concat());
    let mut child =
        with_stdin.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped()).spawn().unwrap();
    writeln!(child.stdin.take().unwrap(), "{password}").unwrap();
    assert_eq!(String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap(), "Login Succeeded\n");
    let kept: Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
    assert_eq!(kept["psFormat"], "kept");
    assert_eq!(std::os::unix::fs::MetadataExt::mode(&config.metadata().unwrap()) & 0o777, 0o600);
    // It serves this program to push and pull, and another one.
    user.coracle(&["pull", &format!("oci:{}", busybox().display())]);
    user.coracle(&["tag", user.coracle(&["images", "-q"]).trim(), &name]);
    user.coracle(&["push", "--cert-dir", &ca, &name]);
    user.coracle(&["pull", "--cert-dir", &ca, &name]);
    let authfile = config.display().to_string();
    let target = format!("docker://{name}");
    host("skopeo", &["inspect", "--authfile", &authfile, "--cert-dir", &ca, &target]);
    assert!(user.coracle(&["logout", &address]).starts_with("Removing login"));
    assert!(user.fails(&["push", "--cert-dir", &ca, &name]).contains("wants a login"));
    assert!(user.coracle(&["logout", &address]).starts_with("Not logged in"));
}

#[test]
fn a_credential_helper_keeps_the_password() {
    let (user, directory) = (User::new(), TempDir::new().unwrap());
    let registry = Registry::secured(directory.path());
    let address = registry.address.to_string();
    let ca = directory.path().join("ca").display().to_string();
    let helper = user.home.path().join("docker-credential-drawer");
    let drawer = user.home.path().join("drawer");
    let script = format!(
        "#!/bin/sh\nd={}\nin=$(cat)\ncase $1 in store) echo \"$in\" > $d;; erase) rm $d;; get) [ -e $d ] && cat $d || \
         {{ echo credentials not found in native keychain; exit 1; }};; esac\n",
        drawer.display()
    );
    fs::write(&helper, script).unwrap();
    host("chmod", &["+x", helper.to_str().unwrap()]);
    let config = user.home.path().join(".docker/config.json");
    fs::create_dir(config.parent().unwrap()).unwrap();
    fs::write(&config, json!({ "credsStore": "drawer" }).to_string()).unwrap();
    let path = format!("{}:{}", user.home.path().display(), std::env::var("PATH").unwrap());
    let coracle = |words: &[&str]| run(user.command(words).env("PATH", &path));
    let (who, password) = LOGIN.split_once(':').unwrap();
    let pull = format!("{address}/box");
    registry.push(&busybox(), "box", &[]);
    let (status, _, stderr) = coracle(&["pull", "--cert-dir", &ca, &pull]);
    assert!(status == Some(125) && stderr.contains("wants a login"), "{stderr}");
    let (status, _, stderr) = coracle(&["login", "--cert-dir", &ca, "-u", who, "-p", password, &address]);
    assert_eq!(status, Some(0), "{stderr}");
    assert!(fs::read_to_string(&drawer).unwrap().contains(password));
    assert!(!fs::read_to_string(&config).unwrap().contains("auth\""));
    let (status, _, stderr) = coracle(&["pull", "--cert-dir", &ca, &pull]);
    assert_eq!(status, Some(0), "{stderr}");
    assert_eq!(coracle(&["logout", &address]).0, Some(0));
    assert!(!drawer.exists());
}

#[test]
fn what_takes_how_much_is_told_and_given_back() {
    let user = User::new();
    let id = user.coracle(&["pull", &format!("oci:{}", busybox().display())]).trim().to_owned();
    let df = user.coracle(&["system", "df"]);
    assert!(df.lines().next().unwrap().starts_with("TYPE") && df.contains("Images") && df.contains("Disks"), "{df}");
    user.coracle(&["tag", &id, "kept"]);
    fs::write(user.data().join("partial").join("0".repeat(64)), [1; 9000]).unwrap();
    assert!(user.fails(&["system", "prune"]).contains("no terminal to ask"));
    let pruned = user.coracle(&["system", "prune", "--force"]);
    assert!(pruned.contains("Total reclaimed space: 12.3kB"), "{pruned}");
    assert_eq!(user.coracle(&["images", "-q", "--no-trunc"]).trim(), id);
    // Without a name, it goes.
    user.coracle(&["pull", &format!("oci:{}", busybox().display())]);
    user.coracle(&["rmi", "kept"]);
    user.coracle(&["pull", &format!("oci:{}", busybox().display())]);
    assert!(user.coracle(&["system", "prune", "--force"]).contains(&format!("deleted: {id}")));
    for directory in ["blobs/sha256", "disks", "partial"] {
        assert_eq!(user.files(directory), [] as [PathBuf; 0]);
    }
}
