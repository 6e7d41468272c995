// SPDX-License-Identifier: Apache-2.0
//! The image that a user wants to run, wherever it is.

use std::str::FromStr;

use super::{Image, ImageError, Platform, Problem, Progress, PullOptions, Reference, Result, Source, Store};

/// When to ask the registry, in Docker's words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PullPolicy {
    /// If the image is not here.
    #[default]
    Missing,
    /// Each time: the tag may have another image by now.
    Always,
    /// Not at all.
    Never,
}

/// A text that is no policy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it is `missing`, `always` or `never`")]
pub struct InvalidPullPolicy;

impl FromStr for PullPolicy {
    type Err = InvalidPullPolicy;

    fn from_str(text: &str) -> std::result::Result<Self, InvalidPullPolicy> {
        match text {
            "missing" => Ok(Self::Missing),
            "always" => Ok(Self::Always),
            "never" => Ok(Self::Never),
            _ => Err(InvalidPullPolicy),
        }
    }
}

impl Store {
    /// The image that a user means by a name, an ID or its beginning, or a source such as `oci:DIR`; brought here if it is
    /// not, or if `policy` wants it.
    ///
    /// Whoever goes on to use its content holds [`hold_content`](Self::hold_content) from before this call until the
    /// content is open, so that nobody removes it meanwhile.
    ///
    /// # Errors
    /// It is nowhere, or cannot be brought.
    pub fn obtain(
        &self,
        text: &str,
        policy: PullPolicy,
        options: &PullOptions,
        progress: &dyn Progress,
    ) -> Result<Image> {
        if let Some(source) = Source::parse(text) {
            return Ok(self.import(&source, &options.platform)?.image);
        }
        let what = || format!("cannot find image {text}");
        if policy != PullPolicy::Always {
            match self.find(text) {
                // The same name may have been pulled for another machine.
                Ok(found) if options.platform.accepts(&Platform::of(&found.image.config)) => return Ok(found.image),
                Ok(_) | Err(Problem::NotHere) if policy == PullPolicy::Missing => {}
                Ok(found) => {
                    let offered = vec![Platform::of(&found.image.config).to_string()];
                    let wanted = options.platform.clone();
                    return Err(ImageError::new(what())(Problem::Platform { wanted, offered }));
                }
                Err(problem) => return Err(ImageError::new(what())(problem)),
            }
        }
        let reference: Reference = text.parse().map_err(ImageError::new(what()))?;
        self.pull(&reference, options, progress)
    }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::super::registry::testing::FakeRegistry;
    use super::*;

    #[test]
    fn the_registry_is_asked_when_the_policy_says_so() {
        let (registry, directory) = (FakeRegistry::start(), TempDir::new().unwrap());
        let store = Store::open_at(directory.path()).unwrap();
        registry.image("v1", "amd64", &[b"layer"]);
        let name = format!("{}/app:v1", registry.host());
        let options = |platform: &str| PullOptions { platform: platform.parse().unwrap(), ..PullOptions::default() };
        let obtain = |text: &str, policy| store.obtain(text, policy, &options("linux/amd64"), &());
        let error = obtain(&name, PullPolicy::Never).unwrap_err();
        assert!(matches!(error.problem, Problem::NotHere));
        assert_eq!(registry.requests().len(), 0);
        let image = obtain(&name, PullPolicy::Missing).unwrap();
        let asked = registry.requests().len();
        for text in [&name, &image.id.to_string(), &image.id.short()] {
            assert_eq!(obtain(text, PullPolicy::Missing).unwrap().id, image.id);
            assert_eq!(obtain(text, PullPolicy::Never).unwrap().id, image.id);
        }
        assert_eq!(registry.requests().len(), asked);
        // The tag has another image now.
        registry.image("v1", "amd64", &[b"another"]);
        assert_eq!(obtain(&name, PullPolicy::Missing).unwrap().id, image.id);
        assert_ne!(obtain(&name, PullPolicy::Always).unwrap().id, image.id);
        let other = options("linux/arm64");
        let error = store.obtain(&name, PullPolicy::Never, &other, &()).unwrap_err();
        assert!(matches!(error.problem, Problem::Platform { .. }));
        registry.image("v1", "arm64", &[b"another"]);
        assert!(store.obtain(&name, PullPolicy::Missing, &other, &()).is_ok());
    }

    #[test]
    fn what_is_nowhere_is_named() {
        let directory = TempDir::new().unwrap();
        let store = Store::open_at(directory.path()).unwrap();
        let obtain = |text| store.obtain(text, PullPolicy::Missing, &PullOptions::default(), &()).unwrap_err().problem;
        assert!(matches!(obtain("127.0.0.1:1/app"), Problem::Unreachable { .. }));
        assert!(matches!(obtain("Bad/Name/"), Problem::Reference(_)));
        assert!(matches!(obtain("oci:/nowhere"), Problem::Archive { .. }));
    }

    #[test]
    fn policies_are_read() {
        assert_eq!("always".parse(), Ok(PullPolicy::Always));
        assert_eq!("".parse::<PullPolicy>(), Err(InvalidPullPolicy));
    }
}
