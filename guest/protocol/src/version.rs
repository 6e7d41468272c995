// SPDX-License-Identifier: Apache-2.0
//! Which versions of the protocol a side speaks.

use serde::{Deserialize, Serialize};

/// The versions that this build speaks. Raised whenever a message changes its form; nobody has older agents to keep.
pub const VERSIONS: Versions = Versions { oldest: 3, newest: 3 };

/// An inclusive range of protocol versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versions {
    /// Oldest version spoken.
    pub oldest: u16,
    /// Newest version spoken.
    pub newest: u16,
}

impl Versions {
    /// The highest version in both ranges, or `None` if they do not meet.
    #[must_use]
    pub fn common(self, other: Self) -> Option<u16> {
        let newest = self.newest.min(other.newest);
        (newest >= self.oldest.max(other.oldest)).then_some(newest)
    }
}

#[cfg(test)]
mod tests {
    use super::Versions;

    fn versions(oldest: u16, newest: u16) -> Versions {
        Versions { oldest, newest }
    }

    #[test]
    fn the_highest_common_version_wins() {
        assert_eq!(versions(1, 3).common(versions(2, 5)), Some(3));
        assert_eq!(versions(2, 5).common(versions(1, 3)), Some(3));
        assert_eq!(versions(4, 4).common(versions(4, 4)), Some(4));
    }

    #[test]
    fn ranges_that_do_not_meet_have_none() {
        assert_eq!(versions(1, 2).common(versions(3, 4)), None);
        assert_eq!(versions(3, 4).common(versions(1, 2)), None);
    }

    #[test]
    fn a_reversed_range_has_none() {
        assert_eq!(versions(5, 1).common(versions(1, 9)), None);
    }
}
