// SPDX-License-Identifier: Apache-2.0
//! Labels on the command line: `NAME=VALUE`, or `NAME` alone; and filters that ask for them.

use std::collections::BTreeMap;

/// For clap: a label.
///
/// # Errors
/// It has no name.
pub fn parse(text: &str) -> Result<(String, String), String> {
    match text.split_once('=').unwrap_or((text, "")) {
        ("", _) => Err(format!("`{text}` has no name: NAME=VALUE")),
        (name, value) => Ok((name.to_owned(), value.to_owned())),
    }
}

/// A condition on labels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabelFilter {
    name: String,
    /// `None` for any.
    value: Option<String>,
}

impl LabelFilter {
    /// What comes after `label=`.
    ///
    /// # Errors
    /// It has no name.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (name, value) = parse(text)?;
        Ok(Self { name, value: text.contains('=').then_some(value) })
    }

    /// Whether there is such a label.
    pub fn fits(&self, labels: &BTreeMap<String, String>) -> bool {
        labels.get(&self.name).is_some_and(|found| self.value.as_ref().is_none_or(|value| value == found))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_have_a_name_and_filters_may_ask_for_a_value() {
        let labels = BTreeMap::from([parse("a=b=c").unwrap(), parse("x").unwrap(), parse("y=").unwrap()]);
        for (text, fits) in
            [("a", true), ("a=b=c", true), ("a=b", false), ("x=", true), ("x=1", false), ("y", true), ("z", false)]
        {
            assert_eq!(LabelFilter::parse(text).unwrap().fits(&labels), fits, "{text}");
        }
        assert!(parse("=x").is_err() && parse("").is_err() && LabelFilter::parse("=x").is_err());
    }
}
