// SPDX-License-Identifier: Apache-2.0
//! Diagnostics: always on stderr, since stdout belongs to the workload or to the command's data.

use std::io::Write;

/// The environment variable that sets the level: `CORACLE_LOG=debug`, or `CORACLE_LOG=coracle::vmm=trace`.
pub const VARIABLE: &str = "CORACLE_LOG";

/// Starts logging of this process; warnings and errors unless [`VARIABLE`] says otherwise.
pub fn start() {
    env_logger::Builder::from_env(env_logger::Env::new().filter_or(VARIABLE, "warn"))
        .format(|out, record| {
            let level = record.level().as_str().to_ascii_lowercase();
            writeln!(out, "coracle: {level}: {}", record.args())
        })
        .init();
}
