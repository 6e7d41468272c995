// SPDX-License-Identifier: Apache-2.0
//! Manifests, indexes and configurations, in the OCI's format and in Docker's schema 2, which differ in names only.

use oci_spec::image::{Descriptor, ImageConfiguration, ImageIndex, ImageManifest};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::layer::{Compression, LayerReader};
use super::store::Store;
use super::{Digest, Platform, Problem, Reference, limits, platform};

/// Types of manifests, in the order of preference.
pub const MANIFESTS: [&str; 2] =
    ["application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json"];

/// Types of indexes.
pub const INDEXES: [&str; 2] =
    ["application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json"];

/// Types of configurations.
pub const CONFIGURATIONS: [&str; 2] =
    ["application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"];

/// An image in the store.
#[derive(Clone, Debug)]
pub struct Image {
    /// The digest of its manifest.
    pub manifest_digest: Digest,
    /// The digest of its configuration, by which people know it.
    pub id: Digest,
    /// What to run, and how.
    pub config: ImageConfiguration,
    /// Its layers as they were transferred, lowest first.
    pub layers: Vec<Descriptor>,
    layer_digests: Vec<Digest>,
    diff_ids: Vec<Digest>,
}

impl Image {
    /// Reads what a manifest and its configuration say.
    ///
    /// # Errors
    /// They contradict each other, or ask for what is not supported.
    pub fn read(manifest_digest: Digest, manifest: &Manifest, configuration: &[u8]) -> Result<Self, Problem> {
        let config: ImageConfiguration = parse("configuration", configuration)?;
        let bad = |reason: String| Problem::Malformed { what: "configuration", reason };
        let diff_ids: Vec<Digest> = config
            .rootfs()
            .diff_ids()
            .iter()
            .map(|text| text.parse())
            .collect::<Result<_, _>>()
            .map_err(|error: super::InvalidDigest| bad(format!("rootfs.diff_ids: {error}")))?;
        if diff_ids.len() != manifest.layers.len() {
            let (there, here) = (manifest.layers.len(), diff_ids.len());
            return Err(bad(format!("it lists {here} layers, and the manifest {there}")));
        }
        Ok(Self {
            manifest_digest,
            id: manifest.config_digest,
            config,
            layers: manifest.layers.clone(),
            layer_digests: manifest.layer_digests.clone(),
            diff_ids,
        })
    }

    /// The layers' content as tar streams, lowest first. Each verifies itself: its last read fails unless what was read
    /// has the digest that the configuration gives.
    ///
    /// # Errors
    /// A layer is of an unknown kind, or not in the store.
    pub fn layer_readers(&self, store: &Store) -> Result<Vec<LayerReader>, Problem> {
        let layers = self.layers.iter().zip(&self.layer_digests).zip(&self.diff_ids);
        layers
            .map(|((layer, digest), diff_id)| {
                let path = store.blob_path(digest);
                if !path.is_file() {
                    return Err(Problem::Store { path, error: std::io::ErrorKind::NotFound.into() });
                }
                let compression = Compression::of(layer.media_type().as_ref()).ok_or_else(|| unsupported(layer))?;
                Ok(LayerReader::new(path, compression, *diff_id, limits::unpacked(layer.size())))
            })
            .collect()
    }

    /// The digest of all layers' content together: the ChainID of the topmost one (OCI image specification,
    /// "Layer ChainID"). Images with the same have the same files.
    pub fn chain(&self) -> Digest {
        let chained =
            self.diff_ids.iter().copied().reduce(|below, layer| Digest::of(format!("{below} {layer}").as_bytes()));
        chained.unwrap_or_else(|| Digest::of(b""))
    }

    /// Digests of the blobs that it consists of, the manifest aside.
    pub fn content(&self) -> impl Iterator<Item = &Digest> {
        std::iter::once(&self.id).chain(&self.layer_digests)
    }

    /// The digests of its layers' content, lowest first.
    pub fn diff_ids(&self) -> &[Digest] {
        &self.diff_ids
    }

    /// Bytes of its layers as they were transferred.
    pub fn size(&self) -> u64 {
        self.layers.iter().map(Descriptor::size).fold(0, u64::saturating_add)
    }
}

impl Store {
    /// The image with this manifest.
    ///
    /// # Errors
    /// It is not here, or damaged.
    pub fn image(&self, manifest_digest: &Digest) -> Result<Image, Problem> {
        let manifest = Manifest::read(&self.read(manifest_digest, limits::MANIFEST)?)?;
        Image::read(*manifest_digest, &manifest, &self.read(&manifest.config_digest, limits::CONFIGURATION)?)
    }

    /// An image's configuration with all that others have written into it.
    ///
    /// # Errors
    /// It is not here, or damaged.
    pub fn configuration(&self, image: &Image) -> Result<serde_json::Value, Problem> {
        parse("configuration", &self.read(&image.id, limits::CONFIGURATION)?)
    }

    /// The image that goes by this reference, if it is here.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn resolve(&self, reference: &Reference) -> Result<Option<Image>, Problem> {
        self.index()?.find(reference).map(|manifest| self.image(&manifest)).transpose()
    }
}

/// A manifest that has been checked.
#[derive(Clone, Debug)]
pub struct Manifest {
    /// The configuration.
    pub config: Descriptor,
    /// Its digest.
    pub config_digest: Digest,
    /// The layers, lowest first.
    pub layers: Vec<Descriptor>,
    /// Their digests.
    pub layer_digests: Vec<Digest>,
}

impl Manifest {
    /// What has to be fetched: the configuration first.
    pub fn blobs(&self) -> impl Iterator<Item = (&Descriptor, &Digest)> {
        std::iter::once((&self.config, &self.config_digest)).chain(self.layers.iter().zip(&self.layer_digests))
    }

    /// Reads and checks a manifest.
    ///
    /// # Errors
    /// What cannot be used about it.
    pub fn read(bytes: &[u8]) -> Result<Self, Problem> {
        let manifest: ImageManifest = parse("manifest", bytes)?;
        let bad = |reason: String| Problem::Malformed { what: "manifest", reason };
        if manifest.schema_version() != 2 {
            return Err(bad(format!("it has schema version {}", manifest.schema_version())));
        }
        let (config, layers) = (manifest.config().clone(), manifest.layers().clone());
        let config_type = config.media_type().as_ref();
        if !CONFIGURATIONS.contains(&config_type) {
            return Err(Problem::MediaType { what: "configuration", media_type: config_type.to_owned() });
        }
        if layers.len() > limits::LAYERS {
            return Err(bad(format!("it has {} layers, and {} are allowed", layers.len(), limits::LAYERS)));
        }
        too_large("configuration", config.size(), limits::CONFIGURATION)?;
        let digest = |of: &Descriptor| Digest::try_from(of.digest()).map_err(|error| bad(error.to_string()));
        let layer_digests = layers.iter().map(digest).collect::<Result<Vec<_>, _>>()?;
        for (layer, digest) in layers.iter().zip(&layer_digests) {
            too_large("layer", layer.size(), limits::LAYER)?;
            let media_type = layer.media_type().as_ref();
            if media_type.contains(".foreign.") || media_type.contains(".nondistributable.") {
                return Err(Problem::Foreign(*digest));
            }
            if Compression::of(media_type).is_none() {
                return Err(unsupported(layer));
            }
        }
        Ok(Self { config_digest: digest(&config)?, config, layers, layer_digests })
    }
}

/// Reads an index.
///
/// # Errors
/// What cannot be used about it.
pub fn read_index(bytes: &[u8]) -> Result<ImageIndex, Problem> {
    parse("index", bytes)
}

/// The manifest that an index has for this platform.
///
/// # Errors
/// It has none.
pub fn choose<'a>(index: &'a ImageIndex, wanted: &Platform) -> Result<&'a Descriptor, Problem> {
    wanted.choose(index.manifests()).ok_or_else(|| {
        let offered = index.manifests().iter().filter_map(platform::described).map(|platform| platform.to_string());
        // What only attests to the others is for no platform.
        let offered = offered.filter(|name| !name.starts_with("unknown")).collect();
        Problem::Platform { wanted: wanted.clone(), offered }
    })
}

/// The type of a manifest or index: what it says of itself, which has to agree with what the registry says of it.
///
/// # Errors
/// They differ: the same bytes could be read as two things.
pub fn media_type(bytes: &[u8], header: Option<&str>) -> Result<String, Problem> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Typed {
        media_type: Option<String>,
        #[serde(default)]
        manifests: Option<serde::de::IgnoredAny>,
    }
    let document: Typed = parse("manifest", bytes)?;
    let header = header.map(|text| text.split(';').next().unwrap_or(text).trim().to_owned());
    match (document.media_type, header) {
        (Some(own), Some(header)) if own != header => {
            let reason = format!("it says that it is {own}, and the registry that it is {header}");
            Err(Problem::Malformed { what: "manifest", reason })
        }
        (Some(own), _) => Ok(own),
        (None, Some(header)) => Ok(header),
        // The OCI lets both be missing; an index is known by its list.
        (None, None) if document.manifests.is_some() => Ok(INDEXES[0].to_owned()),
        (None, None) => Ok(MANIFESTS[0].to_owned()),
    }
}

/// Refuses what is larger than allowed.
///
/// # Errors
/// It is.
pub fn too_large(what: &'static str, size: u64, limit: u64) -> Result<(), Problem> {
    if size > limit { Err(Problem::TooLarge { what, size, limit }) } else { Ok(()) }
}

fn unsupported(layer: &Descriptor) -> Problem {
    Problem::MediaType { what: "layer", media_type: layer.media_type().to_string() }
}

fn parse<T: DeserializeOwned>(what: &'static str, bytes: &[u8]) -> Result<T, Problem> {
    serde_json::from_slice(bytes).map_err(|error| Problem::Malformed { what, reason: error.to_string() })
}

#[cfg(test)]
#[path = "document_test.rs"]
mod tests;
