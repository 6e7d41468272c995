// SPDX-License-Identifier: Apache-2.0
//! Images from directories and archives into the store.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::path::Path;

use flate2::bufread::MultiGzDecoder;
use oci_spec::image::{Descriptor, ImageIndex};
use rustix::fs::{Mode, OFlags};
use serde::Deserialize;
use serde_json::json;

use super::entries::{Entries, plain};
use super::{Kind, Source, bad, cannot_read};
use crate::image::document::{self, Manifest};
use crate::image::store::Blob;
use crate::image::{Digest, Hasher, Image, ImageError, Platform, Problem, Reference, Result, Store, limits};

/// The name that an index gives one of its images.
pub const NAME: &str = "org.opencontainers.image.ref.name";

/// The same in full, as containerd and Docker write it.
pub const FULL_NAME: &str = "io.containerd.image.name";

/// The most that an index of images may have, in bytes.
const INDEX_LIMIT: u64 = 16 << 20;

/// An image that is in the store now.
#[derive(Clone, Debug)]
pub struct Imported {
    /// The image.
    pub image: Image,
    /// The names that it brought and now has.
    pub names: Vec<Reference>,
}

impl Store {
    /// Brings the image that a source has, or the one of this name. It keeps the names that are references.
    ///
    /// # Errors
    /// There is none or more than one, or it is damaged, or for another platform.
    pub fn import(&self, source: &Source, platform: &Platform) -> Result<Imported> {
        self.import_one(source, platform).map_err(cannot_read(&source.path))
    }

    /// Brings all images of an archive of either kind.
    ///
    /// # Errors
    /// One is damaged, or for another platform; those before it are in the store.
    pub fn import_all(&self, archive: &Path, platform: &Platform) -> Result<Vec<Imported>> {
        self.import_archive(archive, platform).map_err(cannot_read(archive))
    }

    /// Brings all images of an archive that comes as a stream, packed with gzip or not.
    ///
    /// # Errors
    /// As [`import_all`](Self::import_all).
    pub fn import_stream(&self, stream: impl Read, platform: &Platform) -> Result<Vec<Imported>> {
        let import = || {
            let spooled = self.spool(stream)?;
            // Without a name, it is reached through its descriptor, and gone with it.
            self.import_archive(Path::new(&format!("/proc/self/fd/{}", spooled.as_raw_fd())), platform)
        };
        import().map_err(ImageError::new("cannot load images"))
    }

    /// A stream cannot be read twice, so it is put into a file.
    fn spool(&self, stream: impl Read) -> std::result::Result<File, Problem> {
        let directory = self.root().join("partial");
        let failed = |error| Problem::Store { path: directory.clone(), error };
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let spool =
            rustix::fs::open(&directory, flags, Mode::RUSR | Mode::WUSR).map_err(|error| failed(error.into()))?;
        let mut spool = File::from(spool);
        let mut stream = BufReader::with_capacity(1 << 16, stream);
        let is_packed = stream.fill_buf().map_err(|error| bad(error.to_string()))?.starts_with(&[0x1f, 0x8b]);
        let mut stream: Box<dyn Read> =
            if is_packed { Box::new(MultiGzDecoder::new(stream)) } else { Box::new(stream) };
        each_piece(&mut stream, |piece| spool.write_all(piece).map_err(failed))?;
        Ok(spool)
    }

    fn import_one(&self, source: &Source, platform: &Platform) -> std::result::Result<Imported, Problem> {
        let _content = self.hold_content()?;
        match source.kind {
            Kind::DockerArchive => {
                let entries = Entries::archive(&source.path)?;
                let found =
                    choose(docker_images(&entries)?, &source.name, |image, name| has_name(&image.names(), name))?;
                self.import_docker(&entries, &found, platform)
            }
            Kind::Layout | Kind::OciArchive => {
                let entries = match source.kind {
                    Kind::Layout => Entries::directory(&source.path),
                    _ => Entries::archive(&source.path)?,
                };
                let found = choose(layout_images(&entries)?, &source.name, |image, name| {
                    annotation(image, NAME).as_deref() == Some(name) || has_name(&names_of(image), name)
                })?;
                self.import_layout(&entries, &found, platform)
            }
        }
    }

    fn import_archive(&self, archive: &Path, platform: &Platform) -> std::result::Result<Vec<Imported>, Problem> {
        let _content = self.hold_content()?;
        let entries = Entries::archive(archive)?;
        // Where both are, the OCI's has digests of all that is there.
        if entries.has("index.json") {
            layout_images(&entries)?.iter().map(|image| self.import_layout(&entries, image, platform)).collect()
        } else if entries.has("manifest.json") {
            docker_images(&entries)?.iter().map(|image| self.import_docker(&entries, image, platform)).collect()
        } else {
            Err(bad("it has neither manifest.json nor index.json"))
        }
    }

    fn import_layout(
        &self,
        entries: &Entries,
        found: &Descriptor,
        platform: &Platform,
    ) -> std::result::Result<Imported, Problem> {
        let mut descriptor = found.clone();
        let read = |descriptor: &Descriptor| {
            let digest = Digest::try_from(descriptor.digest()).map_err(|error| bad(error.to_string()))?;
            let bytes = entries.read(&blob_name(&digest), limits::MANIFEST)?;
            let found = Digest::of(&bytes);
            if found == digest { Ok(bytes) } else { Err(Problem::DigestMismatch { expected: digest, found }) }
        };
        let mut bytes = read(&descriptor)?;
        let mut media_type = document::media_type(&bytes, Some(descriptor.media_type().as_ref()))?;
        if document::INDEXES.contains(&media_type.as_str()) {
            let index = document::read_index(&bytes)?;
            descriptor = document::choose(&index, platform)?.clone();
            bytes = read(&descriptor)?;
            media_type = document::media_type(&bytes, Some(descriptor.media_type().as_ref()))?;
        }
        if !document::MANIFESTS.contains(&media_type.as_str()) {
            return Err(Problem::MediaType { what: "manifest", media_type });
        }
        let manifest = Manifest::read(&bytes)?;
        for (blob, digest) in manifest.blobs() {
            let open = || entries.open(&blob_name(digest));
            self.copy(digest, blob.size(), open)?;
        }
        self.add_image(&bytes, names_of(found), platform)
    }

    fn import_docker(
        &self,
        entries: &Entries,
        found: &DockerImage,
        platform: &Platform,
    ) -> std::result::Result<Imported, Problem> {
        let configuration = entries.read(&found.entry(&found.config)?, limits::CONFIGURATION)?;
        let id = self.add(&configuration)?;
        let mut layers = Vec::new();
        for layer in &found.layers {
            let name = found.entry(layer)?;
            let (digest, size, media_type) = identify(entries.open(&name)?.0, &name)?;
            self.copy(&digest, size, || entries.open(&name))?;
            layers.push(json!({ "mediaType": media_type, "digest": digest, "size": size }));
        }
        let config = json!({ "mediaType": document::CONFIGURATIONS[0], "digest": id, "size": configuration.len() });
        let media_type = document::MANIFESTS[0];
        let manifest = json!({ "schemaVersion": 2, "mediaType": media_type, "config": config, "layers": layers });
        let manifest = manifest.to_string();
        // Nothing but the configuration says what the layers should be.
        let image =
            Image::read(Digest::of(manifest.as_bytes()), &Manifest::read(manifest.as_bytes())?, &configuration)?;
        for (mut layer, name) in image.layer_readers(self)?.into_iter().zip(&found.layers) {
            let wrong = |error| bad(format!("its {name} is damaged: {error}"));
            io::copy(&mut layer, &mut io::sink()).map_err(wrong)?;
        }
        self.add_image(manifest.as_bytes(), found.names(), platform)
    }

    /// Copies a blob into the store, as far as it is not there.
    fn copy(
        &self,
        digest: &Digest,
        size: u64,
        open: impl FnOnce() -> std::result::Result<(Box<dyn Read>, u64), Problem>,
    ) -> std::result::Result<(), Problem> {
        let Blob::Wanted(mut partial) = self.bring(digest, size, || {})? else { return Ok(()) };
        // What a broken pull has left of it is not worth finding the place for.
        partial.restart()?;
        let (mut reader, found) = open()?;
        if found != size {
            return Err(Problem::Size { what: "a blob", expected: size, found });
        }
        each_piece(&mut reader, |piece| partial.write(piece))?;
        match partial.verify() {
            Ok(()) => partial.publish(),
            Err(problem) => {
                partial.discard()?;
                Err(problem)
            }
        }
    }

    fn add_image(
        &self,
        manifest: &[u8],
        names: Vec<Reference>,
        platform: &Platform,
    ) -> std::result::Result<Imported, Problem> {
        let digest = self.add(manifest)?;
        let image = self.image(&digest)?;
        let found = Platform::of(&image.config);
        if !platform.accepts(&found) {
            return Err(Problem::Platform { wanted: platform.clone(), offered: vec![found.to_string()] });
        }
        self.change(|index| {
            index.add(digest, image.id, &names);
            Ok(())
        })?;
        Ok(Imported { image, names })
    }
}

/// One image of Docker's `manifest.json`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

impl DockerImage {
    fn names(&self) -> Vec<Reference> {
        self.repo_tags.iter().flatten().filter_map(|name| name.parse().ok()).collect()
    }

    fn entry(&self, name: &str) -> std::result::Result<String, Problem> {
        plain(Path::new(name)).ok_or_else(|| bad(format!("its manifest.json names `{name}`, which leads out of it")))
    }
}

fn docker_images(entries: &Entries) -> std::result::Result<Vec<DockerImage>, Problem> {
    let bytes = entries.read("manifest.json", INDEX_LIMIT)?;
    serde_json::from_slice(&bytes).map_err(|error| bad(format!("its manifest.json is unusable: {error}")))
}

fn layout_images(entries: &Entries) -> std::result::Result<Vec<Descriptor>, Problem> {
    let bytes = entries.read("index.json", INDEX_LIMIT)?;
    let index: ImageIndex =
        serde_json::from_slice(&bytes).map_err(|error| bad(format!("its index.json is unusable: {error}")))?;
    Ok(index.manifests().clone())
}

/// The image with this name, or the only one.
fn choose<T>(
    mut images: Vec<T>,
    name: &Option<String>,
    is: impl Fn(&T, &str) -> bool,
) -> std::result::Result<T, Problem> {
    if let Some(name) = name {
        images.retain(|image| is(image, name));
    }
    match (images.len(), name) {
        (0, Some(name)) => Err(bad(format!("it has no image `{name}`"))),
        (0, None) => Err(bad("it has no image")),
        (1, _) | (_, Some(_)) => Ok(images.swap_remove(0)),
        (count, None) => Err(bad(format!("it has {count} images, and none was named"))),
    }
}

fn has_name(names: &[Reference], wanted: &str) -> bool {
    let wanted: Option<Reference> = wanted.parse().ok();
    wanted.is_some_and(|wanted| names.contains(&wanted))
}

fn annotation(descriptor: &Descriptor, name: &str) -> Option<String> {
    descriptor.annotations().as_ref()?.get(name).cloned()
}

/// References among the names that an index gives an image; a bare tag is none.
fn names_of(descriptor: &Descriptor) -> Vec<Reference> {
    let full = annotation(descriptor, FULL_NAME);
    let name = full.or_else(|| annotation(descriptor, NAME).filter(|name| name.contains([':', '/'])));
    name.and_then(|name| name.parse().ok()).into_iter().collect()
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// Digest, size and media type of a layer. Docker's archives do not say how it is packed; its first bytes do.
fn identify(mut reader: impl Read, name: &str) -> std::result::Result<(Digest, u64, &'static str), Problem> {
    let (mut hasher, mut size, mut first) = (Hasher::new(), 0_u64, Vec::new());
    each_piece(&mut reader, |piece| {
        if first.len() < 4 {
            first.extend(piece.iter().take(4 - first.len()));
        }
        hasher.update(piece);
        size = size.saturating_add(u64::try_from(piece.len()).unwrap_or(u64::MAX));
        document::too_large("layer", size, limits::LAYER)
    })
    .map_err(|problem| match problem {
        Problem::Archive { reason } => bad(format!("its {name} cannot be read: {reason}")),
        problem => problem,
    })?;
    let media_type = match first[..] {
        [0x1f, 0x8b, ..] => "application/vnd.oci.image.layer.v1.tar+gzip",
        [0x28, 0xb5, 0x2f, 0xfd] => "application/vnd.oci.image.layer.v1.tar+zstd",
        _ => "application/vnd.oci.image.layer.v1.tar",
    };
    Ok((hasher.finish(), size, media_type))
}

fn each_piece(
    reader: &mut impl Read,
    mut take: impl FnMut(&[u8]) -> std::result::Result<(), Problem>,
) -> std::result::Result<(), Problem> {
    let mut buffer = vec![0; 1 << 17];
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => take(buffer.get(..count).unwrap_or_default())?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(bad(error.to_string())),
        }
    }
}
