// SPDX-License-Identifier: Apache-2.0
//! A report as one page that needs nothing else: no script, no network, plots as SVG.

use super::report::Report;

/// The page.
pub fn page(_report: &Report) -> String {
    String::new()
}
