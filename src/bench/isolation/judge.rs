// SPDX-License-Identifier: Apache-2.0
//! From what a probe saw to what that is worth.

use std::collections::BTreeSet;

use serde::Serialize;

use super::catalogue::{Method, Seen};

/// What a cell of the table says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Verdict {
    /// Nothing of the host or of other tenants.
    Isolated,
    /// The host's, with a check or a limit between.
    Limited,
    /// The host's.
    Shared,
    /// Nothing can be said.
    Unknown,
}

impl Verdict {
    /// A sign that is told from the others without colour.
    pub fn sign(self) -> &'static str {
        match self {
            Self::Isolated => "✓",
            Self::Limited => "~",
            Self::Shared => "✗",
            Self::Unknown => "?",
        }
    }

    /// In a word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Isolated => "isolated",
            Self::Limited => "limited",
            Self::Shared => "shared",
            Self::Unknown => "unknown",
        }
    }
}

/// What the same probe saw on the host, before and after.
#[derive(Clone, Copy, Debug)]
pub struct Measure<'a> {
    /// Before.
    pub before: &'a Seen,
    /// After.
    pub after: &'a Seen,
    /// The name that the host has left.
    pub marker: &'a str,
    /// Whether the host's kernel answers.
    pub same_kernel: bool,
}

/// Judges what a probe saw.
pub fn judge(method: Method, seen: &Seen, measure: &Measure<'_>) -> Verdict {
    // What the host's kernel refuses stands behind a check of that kernel's; what another refuses is no matter.
    let refused = if measure.same_kernel { Verdict::Limited } else { Verdict::Isolated };
    match (method, seen) {
        (Method::Equal, seen @ Seen::Value(_)) if seen == measure.before || seen == measure.after => Verdict::Shared,
        (Method::Equal, Seen::Value(_)) => Verdict::Isolated,
        (Method::Alike, Seen::Value(list)) => match (measure.before, measure.after) {
            (Seen::Value(before), Seen::Value(after)) if alike(list, before) || alike(list, after) => Verdict::Shared,
            (Seen::Value(_), Seen::Value(_)) => Verdict::Isolated,
            _ => Verdict::Unknown,
        },
        (Method::Window, Seen::Count(count)) => match (measure.before, measure.after) {
            (Seen::Count(before), Seen::Count(after)) if (before..=after).contains(&count) => Verdict::Shared,
            (Seen::Count(_), Seen::Count(_)) => Verdict::Isolated,
            _ => Verdict::Unknown,
        },
        (Method::Marker, Seen::Value(text)) if text.contains(measure.marker) => Verdict::Shared,
        (Method::Marker, Seen::Value(_)) | (Method::Find, Seen::Missing(_)) => Verdict::Isolated,
        (Method::Find, Seen::Done(_)) => Verdict::Shared,
        (Method::Reach, _) if !measure.same_kernel => Verdict::Isolated,
        (Method::Reach, Seen::Done(_)) => Verdict::Shared,
        (Method::Level, Seen::Count(count)) => level(*count, measure),
        (_, Seen::Refused(_) | Seen::Missing(_)) => refused,
        _ => Verdict::Unknown,
    }
}

/// Whether nine tenths of what is in either of two lists are in both.
fn alike(one: &str, other: &str) -> bool {
    let [one, other] = [one, other].map(|list| list.split_whitespace().collect::<BTreeSet<_>>());
    one.intersection(&other).count() * 10 >= one.union(&other).count() * 9
}

/// A tenth less than the host's own is as good as all of it.
fn level(count: u64, measure: &Measure<'_>) -> Verdict {
    match measure.before {
        _ if !measure.same_kernel || count == 0 => Verdict::Isolated,
        Seen::Count(host) if count.saturating_mul(10) >= host.saturating_mul(9) => Verdict::Shared,
        Seen::Count(_) => Verdict::Limited,
        _ => Verdict::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Seen {
        Seen::Value(text.to_owned())
    }

    fn verdict(method: Method, seen: &Seen, before: &Seen, after: &Seen, same_kernel: bool) -> Verdict {
        judge(method, seen, &Measure { before, after, marker: "mark", same_kernel })
    }

    #[test]
    fn each_method_finds_what_is_shared_and_what_is_not() {
        use Method::{Alike, Equal, Find, Level, Marker, Reach, Window};
        use Verdict::{Isolated, Limited, Shared, Unknown};
        let (done, missing) = (Seen::Done("x".into()), Seen::Missing("ENOENT".into()));
        let refused = Seen::Refused("EPERM".into());
        let (a, b) = (text("a"), text("b"));
        for (method, seen, before, after, same, expected) in [
            (Equal, &a, &a, &a, true, Shared),
            (Equal, &a, &b, &a, true, Shared),
            (Equal, &a, &b, &b, true, Isolated),
            (Equal, &refused, &b, &b, true, Limited),
            (Equal, &refused, &b, &b, false, Isolated),
            (Alike, &text("a b c d e f g h i j k"), &text("a b c d e f g h i j"), &a, true, Shared),
            (Alike, &text("a b c"), &text("a b d"), &a, true, Isolated),
            (Window, &Seen::Count(5), &Seen::Count(5), &Seen::Count(9), false, Shared),
            (Window, &Seen::Count(4), &Seen::Count(5), &Seen::Count(9), true, Isolated),
            (Window, &Seen::Count(5), &missing, &missing, true, Unknown),
            (Marker, &text("a mark"), &a, &a, false, Shared),
            (Marker, &a, &a, &a, true, Isolated),
            (Find, &done, &done, &done, false, Shared),
            (Find, &missing, &done, &done, true, Isolated),
            (Find, &refused, &done, &done, true, Limited),
            (Reach, &done, &done, &done, true, Shared),
            (Reach, &done, &done, &done, false, Isolated),
            (Reach, &missing, &done, &done, true, Limited),
            (Level, &Seen::Count(95), &Seen::Count(100), &a, true, Shared),
            (Level, &Seen::Count(50), &Seen::Count(100), &a, true, Limited),
            (Level, &Seen::Count(0), &Seen::Count(100), &a, true, Isolated),
            (Level, &Seen::Count(95), &Seen::Count(100), &a, false, Isolated),
        ] {
            assert_eq!(verdict(method, seen, before, after, same), expected, "{method:?} {seen:?}");
        }
    }

    #[test]
    fn signs_differ() {
        let all = [Verdict::Isolated, Verdict::Limited, Verdict::Shared, Verdict::Unknown];
        let signs: std::collections::BTreeSet<_> = all.iter().map(|verdict| verdict.sign()).collect();
        assert_eq!(signs.len(), all.len());
    }
}
