// SPDX-License-Identifier: Apache-2.0
//! `--profile`: where the guest spends itself.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use coracle::failure::Failure;
use coracle::vmm::boot::{KernelImage, ProtocolChoice, Symbols};
use coracle::vmm::vcpu::Sample;

/// Lines of the printed profile.
const TOP: usize = 30;

/// Counts samples by place.
pub struct Profile {
    symbols: Option<Symbols>,
    /// Folded stacks: outermost first, joined by `;`.
    stacks: HashMap<String, usize>,
    leaves: HashMap<String, usize>,
    total: usize,
}

impl Profile {
    /// A profile with the names of `kernel`, or with addresses where it has none.
    pub fn new(kernel: &Path) -> Self {
        // A kernel that cannot be opened ends the boot with its own message.
        let image = KernelImage::open_path(kernel, ProtocolChoice::Auto).ok();
        let symbols = image.and_then(|image| image.symbols().ok().flatten());
        Self { symbols, stacks: HashMap::new(), leaves: HashMap::new(), total: 0 }
    }

    /// Counts one sample.
    pub fn add(&mut self, sample: &Sample) {
        self.total += 1;
        let (leaf, stack) = if sample.cpl == 0 {
            let mut frames: Vec<_> = sample.stack.iter().map_while(|address| self.caller(*address)).collect();
            frames.reverse();
            let leaf = self.name(sample.rip);
            frames.push(leaf.clone());
            (leaf, format!("kernel;{}", frames.join(";")))
        } else {
            ("(user space)".to_owned(), "user space".to_owned())
        };
        *self.leaves.entry(leaf).or_default() += 1;
        *self.stacks.entry(stack).or_default() += 1;
    }

    fn name(&self, address: u64) -> String {
        self.caller(address).unwrap_or_else(|| format!("{address:#x}"))
    }

    /// A frame above the leaf counts only where it is a known function: without frame pointers the rest is noise.
    fn caller(&self, address: u64) -> Option<String> {
        Some(self.symbols.as_ref()?.find(address)?.0.to_owned())
    }

    /// The busiest places, one a line.
    pub fn table(&self) -> String {
        let mut leaves: Vec<_> = self.leaves.iter().collect();
        leaves.sort_by(|(name, count), (other, others)| others.cmp(count).then(name.cmp(other)));
        let mut text = format!("{:>7}{:>9}  where ({} samples)\n", "share", "samples", self.total);
        for (name, count) in leaves.into_iter().take(TOP) {
            let permille = count * 1000 / self.total.max(1);
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{:>4}.{} %{count:>9}  {name}", permille / 10, permille % 10);
        }
        text
    }

    /// Writes folded stacks, or a flame graph where `path` ends in `.svg`.
    ///
    /// # Errors
    /// The file cannot be written, or there is nothing to draw.
    pub fn write(&self, path: &Path) -> Result<(), Failure> {
        let what = || format!("cannot write profile {}", path.display());
        let mut lines: Vec<_> = self.stacks.iter().map(|(stack, count)| format!("{stack} {count}")).collect();
        lines.sort();
        if path.extension().is_none_or(|extension| extension != "svg") {
            return fs::write(path, lines.join("\n") + "\n")
                .map_err(|error| Failure::new(what(), error, "another path"));
        }
        let mut svg = Vec::new();
        let mut options = inferno::flamegraph::Options::default();
        "Where the guest spends itself".clone_into(&mut options.title);
        inferno::flamegraph::from_lines(&mut options, lines.iter().map(String::as_str), &mut svg).map_err(|error| {
            Failure::new(what(), error, "a guest that runs longer, or a shorter --profile-interval")
        })?;
        fs::write(path, svg).map_err(|error| Failure::new(what(), error, "another path"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(rip: u64, cpl: u8) -> Sample {
        Sample { vcpu: 0, rip, cpl, stack: Vec::new() }
    }

    #[test]
    fn places_are_counted_and_drawn() {
        let mut profile = Profile::new(Path::new("/nonexistent"));
        for rip in [0xffff_ffff_8100_0000, 0xffff_ffff_8100_0000, 0x40_0000] {
            profile.add(&sample(rip, if rip > 1 << 40 { 0 } else { 3 }));
        }
        assert!(profile.table().contains(" 66.6 %        2  0xffffffff81000000\n"), "{}", profile.table());
        let folder = tempfile::tempdir().unwrap();
        let (folded, svg) = (folder.path().join("a.folded"), folder.path().join("a.svg"));
        profile.write(&folded).unwrap();
        profile.write(&svg).unwrap();
        assert_eq!(fs::read_to_string(folded).unwrap(), "kernel;0xffffffff81000000 2\nuser space 1\n");
        assert!(fs::read_to_string(svg).unwrap().contains("<svg"));
    }
}
