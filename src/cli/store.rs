// SPDX-License-Identifier: Apache-2.0
//! What the commands on images have in common.

use coracle::failure::Failure;
use coracle::image::{Digest, ImageError, ImageRecord, Problem, Reference, Store};

/// The store of this user.
pub fn open(what: &str) -> Result<Store, Failure> {
    Store::open().map_err(explain(what))
}

/// For `map_err`: makes a problem a failure of `what`.
pub fn explain<P: Into<Problem>>(what: &str) -> impl FnOnce(P) -> Failure {
    let what = what.to_owned();
    move |problem| ImageError::new(what)(problem).into()
}

/// Names of an image as Docker lists them, with what is understood left out.
pub fn familiar<'a>(names: impl IntoIterator<Item = &'a String>) -> Vec<String> {
    names.into_iter().map(|name| read(name).map_or_else(|| name.clone(), |reference| reference.familiar())).collect()
}

/// A name as the store has it.
pub fn read(name: &str) -> Option<Reference> {
    Reference::parse(name, "localhost").ok()
}

/// Under which digest the registry has what is in this repository.
pub fn digest_in(record: &ImageRecord, of: &Reference) -> Option<Digest> {
    let mut sources = record.sources.iter().filter_map(|source| read(source));
    sources.find(|source| source.name() == of.name()).and_then(|source| source.digest().copied())
}
