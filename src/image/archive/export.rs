// SPDX-License-Identifier: Apache-2.0
//! Images from the store into one archive that is both: an OCI image layout, and what `docker load` reads.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Write};

use serde_json::{Value, json};
use tar::{Builder, EntryType, Header};

use super::import::{FULL_NAME, NAME};
use crate::image::{Digest, Image, ImageError, Problem, Reference, Result, Store, document};

impl Store {
    /// Writes images with the names that each is to have, as a tar archive. The same images give the same bytes.
    ///
    /// # Errors
    /// An image is damaged, or `out` cannot be written.
    pub fn export(&self, images: &[(Image, Vec<Reference>)], out: impl Write) -> Result<()> {
        self.export_to(images, out).map_err(ImageError::new("cannot save images"))
    }

    fn export_to(&self, images: &[(Image, Vec<Reference>)], out: impl Write) -> std::result::Result<(), Problem> {
        let _content = self.hold_content()?;
        let blob = |digest: &Digest| format!("blobs/sha256/{}", digest.hex());
        let (mut blobs, mut manifests, mut docker) = (BTreeSet::new(), Vec::new(), Vec::new());
        for (image, names) in images {
            blobs.insert(image.manifest_digest);
            blobs.extend(image.content());
            let size = self.size_of(&image.manifest_digest)?;
            let media_type = self.media_type_of(image)?;
            let entry = json!({ "mediaType": media_type, "digest": image.manifest_digest, "size": size });
            let named = |name: &Reference| {
                let mut entry = entry.clone();
                entry["annotations"] = json!({ FULL_NAME: name.to_string(), NAME: name.tag().unwrap_or("latest") });
                entry
            };
            if names.is_empty() {
                manifests.push(entry.clone());
            }
            manifests.extend(names.iter().map(named));
            let content: Vec<String> = image.content().map(blob).collect();
            let (config, layers) =
                content.split_first().map_or((Value::Null, &[][..]), |(first, rest)| (json!(first), rest));
            let tags: Vec<String> = names.iter().map(Reference::familiar).collect();
            docker.push(json!({ "Config": config, "RepoTags": tags, "Layers": layers }));
        }
        let mut archive = Builder::new(out);
        let failed = |error: io::Error| Problem::Output { error };
        for digest in &blobs {
            let path = self.blob_path(digest);
            let opened = File::open(&path).map_err(|error| Problem::Store { path, error })?;
            add(&mut archive, &blob(digest), self.size_of(digest)?, opened).map_err(failed)?;
        }
        let index = json!({ "schemaVersion": 2, "mediaType": document::INDEXES[0], "manifests": manifests });
        for (name, content) in [
            ("index.json", index.to_string()),
            ("manifest.json", Value::Array(docker).to_string()),
            ("oci-layout", json!({ "imageLayoutVersion": "1.0.0" }).to_string()),
        ] {
            let size = u64::try_from(content.len()).unwrap_or(u64::MAX);
            add(&mut archive, name, size, content.as_bytes()).map_err(failed)?;
        }
        archive.into_inner().and_then(|mut out| out.flush()).map_err(failed)
    }

    fn size_of(&self, digest: &Digest) -> std::result::Result<u64, Problem> {
        let path = self.blob_path(digest);
        path.metadata().map(|metadata| metadata.len()).map_err(|error| Problem::Store { path, error })
    }

    pub(in crate::image) fn media_type_of(&self, image: &Image) -> std::result::Result<String, Problem> {
        document::media_type(&self.read(&image.manifest_digest, crate::image::limits::MANIFEST)?, None)
    }
}

fn add(archive: &mut Builder<impl Write>, name: &str, size: u64, content: impl io::Read) -> io::Result<()> {
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::Regular);
    header.set_mode(0o644);
    header.set_size(size);
    archive.append_data(&mut header, name, content)
}
