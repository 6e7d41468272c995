// SPDX-License-Identifier: Apache-2.0
//! The `coracle` command.
fn main() {}
