// SPDX-License-Identifier: Apache-2.0
//! PID 1 of a Coracle guest.
fn main() {}
