// SPDX-License-Identifier: Apache-2.0
//! Which machine an image is for.

use std::fmt;
use std::str::FromStr;

use oci_spec::image::{Arch, Descriptor, ImageConfiguration, Os};

/// `os/architecture[/variant]` in the words of the OCI specification, which are Go's: `linux/amd64`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Platform {
    /// Operating system.
    pub os: Os,
    /// Processor.
    pub architecture: Arch,
    /// Revision of the architecture (`v8` of `arm64`), where one was asked for.
    pub variant: Option<String>,
}

/// A text that is no platform.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a platform is OS/ARCHITECTURE[/VARIANT], such as linux/amd64")]
pub struct InvalidPlatform;

impl Platform {
    /// What guests of this host run.
    pub fn native() -> Self {
        Self { os: Os::Linux, architecture: Arch::default(), variant: None }
    }

    /// What a configuration says it is for.
    pub fn of(config: &ImageConfiguration) -> Self {
        Self {
            os: config.os().clone(),
            architecture: config.architecture().clone(),
            variant: config.variant().clone().filter(|variant| !variant.is_empty()),
        }
    }

    /// Whether something for `other` serves who wants this. A variant counts only where both name one.
    pub fn accepts(&self, other: &Self) -> bool {
        let variants = self.variant.as_ref().zip(other.variant.as_ref());
        self.os == other.os && self.architecture == other.architecture && variants.is_none_or(|(a, b)| a == b)
    }

    /// The best of an index's manifests: the first that fits, and one that needs no variant before one that does.
    pub fn choose<'a>(&self, manifests: &'a [Descriptor]) -> Option<&'a Descriptor> {
        let fits = |manifest: &&Descriptor| described(manifest).is_some_and(|platform| self.accepts(&platform));
        let mut fitting: Vec<&Descriptor> = manifests.iter().filter(fits).collect();
        fitting.sort_by_key(|manifest| described(manifest).map(|platform| platform.variant != self.variant));
        fitting.first().copied()
    }
}

/// The platform that an index gives for one of its manifests.
pub fn described(manifest: &Descriptor) -> Option<Platform> {
    let platform = manifest.platform().as_ref()?;
    Some(Platform {
        os: platform.os().clone(),
        architecture: platform.architecture().clone(),
        variant: platform.variant().clone().filter(|variant| !variant.is_empty()),
    })
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.as_ref().map_or(Ok(()), |variant| write!(f, "/{variant}"))
    }
}

impl FromStr for Platform {
    type Err = InvalidPlatform;

    fn from_str(text: &str) -> Result<Self, InvalidPlatform> {
        let parts: Vec<&str> = text.split('/').collect();
        let is_word =
            |part: &&str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
        if !parts.iter().all(is_word) {
            return Err(InvalidPlatform);
        }
        // The names that `uname -m` has are what people type.
        let architecture = |name: &str| match name {
            "x86_64" | "x86-64" => Arch::Amd64,
            "aarch64" => Arch::ARM64,
            name => Arch::from(name),
        };
        match parts[..] {
            [os, arch] => Ok(Self { os: Os::from(os), architecture: architecture(arch), variant: None }),
            [os, arch, variant] => {
                Ok(Self { os: Os::from(os), architecture: architecture(arch), variant: Some(variant.to_owned()) })
            }
            _ => Err(InvalidPlatform),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index(platforms: &[&str]) -> Vec<Descriptor> {
        let manifest = |text: &&str| {
            let mut parts = text.split('/');
            let (os, architecture) = (parts.next().unwrap(), parts.next().unwrap());
            let mut platform = serde_json::json!({ "os": os, "architecture": architecture });
            if let Some(variant) = parts.next() {
                platform["variant"] = variant.into();
            }
            let digest = crate::image::Digest::of(text.as_bytes()).to_string();
            let manifest = serde_json::json!({ "mediaType": "m", "size": 1, "digest": digest, "platform": platform });
            serde_json::from_value(manifest).unwrap()
        };
        platforms.iter().map(manifest).collect()
    }

    fn chosen(wanted: &str, platforms: &[&str]) -> Option<String> {
        let wanted: Platform = wanted.parse().unwrap();
        wanted.choose(&index(platforms)).and_then(described).map(|platform| platform.to_string())
    }

    #[test]
    fn the_fitting_one_is_chosen() {
        let all = ["unknown/unknown", "linux/arm64/v8", "linux/amd64/v3", "linux/amd64", "windows/amd64"];
        assert_eq!(chosen("linux/amd64", &all).as_deref(), Some("linux/amd64"));
        assert_eq!(chosen("linux/amd64/v3", &all).as_deref(), Some("linux/amd64/v3"));
        assert_eq!(chosen("linux/arm64", &all).as_deref(), Some("linux/arm64/v8"));
        assert_eq!(chosen("linux/s390x", &all), None);
        assert_eq!(chosen("linux/arm64/v9", &all), None);
    }

    #[test]
    fn texts_are_read() {
        assert_eq!("linux/x86_64".parse::<Platform>().unwrap().to_string(), "linux/amd64");
        assert_eq!("linux/arm/v7".parse::<Platform>().unwrap().to_string(), "linux/arm/v7");
        for text in ["", "linux", "linux/", "/amd64", "linux/amd64/v1/x", "linux/am d64"] {
            assert!(text.parse::<Platform>().is_err(), "{text}");
        }
    }
}
