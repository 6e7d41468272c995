// SPDX-License-Identifier: Apache-2.0
//! Makes an EROFS image of uncompressed layers: `erofs IMAGE LAYER.tar...`, the bottom layer first.

use std::fs::File;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::Context;
use coracle::erofs::{Limits, write_image};

fn main() -> anyhow::Result<()> {
    let mut paths = std::env::args_os().skip(1).map(PathBuf::from);
    let image = paths.next().context("usage: erofs IMAGE LAYER.tar...")?;
    let layers = paths.map(|path| File::open(&path).with_context(|| format!("cannot open {}", path.display())));
    let layers: Vec<File> = layers.collect::<anyhow::Result<_>>()?;
    let mut output = File::create(&image).with_context(|| format!("cannot create {}", image.display()))?;
    let start = Instant::now();
    let summary = write_image(layers, &mut output, &Limits::default())?;
    println!("{summary:?} in {} ms", start.elapsed().as_millis());
    // Peak of resident memory, which must not grow with the size of files.
    let status = std::fs::read_to_string("/proc/self/status")?;
    println!("{}", status.lines().find(|line| line.starts_with("VmHWM")).unwrap_or_default());
    Ok(())
}
