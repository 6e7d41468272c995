// SPDX-License-Identifier: Apache-2.0
//! Layers to image and back.

mod bad_layers;
mod layering;
mod property;
mod storage;

use std::collections::BTreeMap;

use super::tar::testing::{Member, archive};
use super::testing::{File, read_image};
use super::{Error, Limits, Summary, write_image};

/// The image of these archives, and what was said of it.
fn image_of(layers: &[Vec<u8>], limits: &Limits) -> Result<(Summary, Vec<u8>), Error> {
    let mut output = tempfile::tempfile().expect("temporary file");
    let summary = write_image(layers.iter().map(|layer| &layer[..]), &mut output, limits)?;
    let mut bytes = Vec::new();
    std::io::Seek::rewind(&mut output).expect("rewind");
    std::io::Read::read_to_end(&mut output, &mut bytes).expect("read back");
    assert_eq!(summary.bytes, bytes.len() as u64);
    Ok((summary, bytes))
}

/// The files of an image of layers of these entries.
fn build(layers: &[&[Member]]) -> Result<BTreeMap<Vec<u8>, File>, Error> {
    let layers: Vec<_> = layers.iter().map(|members| archive(members)).collect();
    image_of(&layers, &Limits::default()).map(|(_, bytes)| read_image(&bytes))
}

/// The names of an image, without the root.
fn names(layers: &[&[Member]]) -> Vec<String> {
    let files = build(layers).expect("valid layers");
    files.keys().filter(|path| !path.is_empty()).map(|path| String::from_utf8_lossy(path).into_owned()).collect()
}
