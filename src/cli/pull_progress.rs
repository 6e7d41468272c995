// SPDX-License-Identifier: Apache-2.0
//! What a pull or push shows on stderr: bars on a terminal, lines elsewhere.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use clap::{Args, ValueEnum};
use coracle::image::{Digest, LayerState, Progress, Reference};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

/// How to show it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum ProgressKind {
    /// Bars on a terminal, else lines
    #[default]
    Auto,
    /// A line for each change
    Plain,
    /// Nothing
    None,
}

// Words of the commands whose work it is to pull or push.
#[derive(Debug, Args)]
pub struct ProgressArgs {
    /// Say nothing but the image's name
    #[arg(short, long)]
    quiet: bool,
    /// How to show what is going on
    #[arg(long, value_name = "KIND", value_enum, default_value_t)]
    progress: ProgressKind,
}

impl ProgressArgs {
    /// What shows it.
    pub fn start(&self) -> PullProgress {
        PullProgress::new(if self.quiet { ProgressKind::None } else { self.progress })
    }
}

/// Shows how a pull or push goes, in Docker's words.
pub struct PullProgress {
    kind: Shown,
    bars: MultiProgress,
    layers: Mutex<BTreeMap<Digest, Layer>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Shown {
    Bars,
    Lines,
    Nothing,
}

struct Layer {
    bar: ProgressBar,
    phase: &'static str,
}

impl PullProgress {
    /// Nothing shown yet.
    pub fn new(kind: ProgressKind) -> Self {
        let kind = match kind {
            ProgressKind::None => Shown::Nothing,
            ProgressKind::Auto if io::stderr().is_terminal() => Shown::Bars,
            ProgressKind::Auto | ProgressKind::Plain => Shown::Lines,
        };
        let target = match kind {
            Shown::Bars => ProgressDrawTarget::stderr_with_hz(10),
            _ => ProgressDrawTarget::hidden(),
        };
        Self { kind, bars: MultiProgress::with_draw_target(target), layers: Mutex::default() }
    }

    /// Leaves the bars as they are; lines may follow.
    pub fn finish(&self) {
        let layers = self.layers.lock().unwrap_or_else(PoisonError::into_inner);
        layers.values().filter(|layer| !layer.bar.is_finished()).for_each(|layer| layer.bar.abandon());
    }

    fn say(&self, line: &str) {
        match self.kind {
            Shown::Bars => self.bars.suspend(|| eprintln!("{line}")),
            Shown::Lines => eprintln!("{line}"),
            Shown::Nothing => {}
        }
    }
}

impl Progress for PullProgress {
    fn pulling(&self, reference: &Reference) {
        let tag = reference.tag().map_or_else(|| reference.to_string(), str::to_owned);
        self.say(&format!("{tag}: Pulling from {}", reference.repository()));
    }

    fn layer(&self, digest: &Digest, size: u64, state: LayerState) {
        if self.kind == Shown::Nothing {
            return;
        }
        let phase = match state {
            LayerState::Here => "Already exists",
            LayerState::Pending => "Pulling fs layer",
            LayerState::Waiting => "Waiting for another pull",
            LayerState::Received(_) => "Downloading",
            LayerState::Complete => "Pull complete",
            LayerState::Unsent => "Preparing",
            LayerState::Exists => "Layer already exists",
            LayerState::Sending => "Pushing",
            LayerState::Sent => "Pushed",
        };
        let mut layers = self.layers.lock().unwrap_or_else(PoisonError::into_inner);
        let name = digest.short();
        let layer = layers.entry(*digest).or_insert_with(|| {
            let bar = self.bars.add(ProgressBar::new(size)).with_style(waiting()).with_prefix(name.clone());
            Layer { bar, phase: "" }
        });
        if layer.phase == "Already exists" {
            return;
        }
        if layer.phase != phase {
            layer.phase = phase;
            layer.bar.set_style(if phase == "Downloading" { downloading() } else { waiting() });
            layer.bar.set_message(phase);
            if self.kind == Shown::Lines {
                eprintln!("{name}: {phase}");
            }
        }
        match state {
            LayerState::Received(received) => layer.bar.set_position(received),
            LayerState::Complete | LayerState::Here | LayerState::Exists | LayerState::Sent => layer.bar.finish(),
            LayerState::Pending | LayerState::Waiting | LayerState::Unsent | LayerState::Sending => layer.bar.tick(),
        }
        // These show no movement of their own.
        if matches!(state, LayerState::Waiting | LayerState::Sending) {
            layer.bar.enable_steady_tick(Duration::from_millis(500));
        }
    }

    fn pulled(&self, reference: &Reference, digest: &Digest, is_new: bool) {
        self.finish();
        self.say(&format!("Digest: {digest}"));
        let status = if is_new { "Downloaded newer image for" } else { "Image is up to date for" };
        self.say(&format!("Status: {status} {}", reference.familiar()));
    }
}

fn waiting() -> ProgressStyle {
    style("{prefix}: {msg}")
}

fn downloading() -> ProgressStyle {
    style("{prefix}: {msg} [{bar:40}] {decimal_bytes}/{decimal_total_bytes}")
}

fn style(template: &str) -> ProgressStyle {
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    style.progress_chars("=> ")
}
