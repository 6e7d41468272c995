// SPDX-License-Identifier: Apache-2.0
//! `coracle boot`: a guest from a kernel image, its console on the terminal.

mod args;
mod profile;
mod relay;
pub mod terminal;
mod timings;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;

use anyhow::Context;
use coracle::failure::Failure;
use coracle::sandbox::Agent;
use coracle::signals;
use coracle::vmm::config::ConsoleKind;
use coracle::vmm::control::Event;
use coracle::vmm::devices::exit::GuestEnd;
use coracle::vmm::devices::virtio::net::{NetBackend, Tap};
use coracle::vmm::host::{Host, Vendor};
use coracle::vmm::process::Vmm;
use coracle::vmm::snapshot::{self, Launch};
use coracle::vmm::stages::{Mark, Stage};
use coracle::vmm::virtiofsd::Virtiofsd;

pub use args::BootArgs;
use args::{FsArg, TimingsFormat};
use profile::Profile;
use relay::Ending;
use tempfile::TempDir;
use terminal::RawTerminal;

/// Boots the guest and stays with it to its end.
///
/// # Errors
/// What could not be done, in three lines.
pub fn run(args: &BootArgs) -> anyhow::Result<ExitCode> {
    let (_folder, serving) = serve(args)?;
    let Launching { launch, kernel, console, renew } = launch(args, &serving)?;
    let takes_input = console != ConsoleKind::None;
    let ended_by = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGWINCH];
    let signals = signals::readable(&ended_by).context("cannot catch signals")?;
    let mut marks: Vec<Mark> = Vec::new();
    let mut profile = args.profile.as_ref().map(|_| Profile::new(&kernel));
    let mut vmm = Vmm::start(launch)?;
    for net in &args.nets {
        if let NetBackend::Tap(name) = &net.backend
            && Tap::is_down(name)
        {
            log::warn!("TAP {name} is down: the guest has no network until `ip link set {name} up`");
        }
    }
    let raw = if takes_input { RawTerminal::enter().context("cannot make the terminal raw")? } else { None };
    let ending = relay::relay(&vmm, &signals, takes_input, |event| match event {
        Event::Stage(mark) => {
            if let (Stage::FirstRun, Some(vsock)) = (mark.stage, renew.clone()) {
                thread::spawn(move || make_its_own(&vsock));
            }
            marks.push(mark.clone());
        }
        Event::Samples { samples } => {
            if let Some(profile) = &mut profile {
                samples.iter().for_each(|sample| profile.add(sample));
            }
        }
        Event::End { .. } | Event::Failed(_) => {}
    })
    // On an error the VMM is dropped, which ends it: nobody follows it any more.
    .context("cannot follow the guest")?;
    drop(raw);
    let status = vmm.wait().context("cannot wait for the VMM")?;
    if let Some(format) = args.timings {
        print_timings(&marks, format)?;
    }
    if let (Some(profile), Some(path)) = (&profile, &args.profile) {
        eprint!("{}", profile.table());
        if !path.as_os_str().is_empty() {
            profile.write(path)?;
        }
    }
    match ending {
        Ending::Guest(end) => {
            say(end);
            Ok(ExitCode::from(end.exit_code()))
        }
        Ending::Failed(failure) => Err(failure.into()),
        Ending::Vanished => {
            let (why, advice) = match status {
                FILTERED => (
                    "the VMM was killed for a system call that it is not to make: its guest may have broken into it"
                        .into(),
                    "look for its number in the host's kernel log (`dmesg`); `--no-jail` allows it, for a guest that you trust",
                ),
                _ => (
                    format!("the VMM ended with status {status} and told no reason"),
                    "look at what it printed above and at the host's kernel log (`dmesg`)",
                ),
            };
            Err(Failure::new("the microVM is gone", why, advice).into())
        }
    }
}

/// Status of a process that its system call filter killed: by `SIGSYS`.
const FILTERED: u8 = 128 + 31;

/// Starts what serves the guest's directories, with a place for its sockets.
fn serve(args: &BootArgs) -> anyhow::Result<(Option<TempDir>, Vec<Virtiofsd>)> {
    let shares: Vec<_> = args.fs.iter().filter_map(FsArg::share).collect();
    if shares.is_empty() {
        return Ok((None, Vec::new()));
    }
    let folder = tempfile::tempdir().context("cannot make a directory for sockets")?;
    let serving = shares.into_iter().map(|share| Virtiofsd::start(share, folder.path())).collect::<Result<_, _>>()?;
    Ok((Some(folder), serving))
}

/// What is to be started, and what is known of it before.
struct Launching {
    launch: Launch,
    kernel: PathBuf,
    console: ConsoleKind,
    /// The vsock of a guest that is to become one of its own.
    renew: Option<PathBuf>,
}

fn launch(args: &BootArgs, serving: &[Virtiofsd]) -> Result<Launching, Failure> {
    if let Some(config) = args.restore() {
        let then = snapshot::read(&config.restore).map_err(|error| error.about(&config.restore))?.config;
        let vsock = config.vsock.clone().or(then.vsock).map(|vsock| vsock.path).filter(|_| !args.no_renew);
        return Ok(Launching { launch: config.into(), kernel: then.kernel, console: then.console, renew: vsock });
    }
    let mut config = args.config();
    config.fs.extend(serving.iter().map(Virtiofsd::config));
    let (kernel, console) = (config.kernel.clone(), config.console);
    Ok(Launching { launch: config.into(), kernel, console, renew: None })
}

/// Gives a clone random numbers and a clock of its own, by its agent. A guest without one is left as it is.
fn make_its_own(vsock: &Path) {
    if let Err(failure) = Agent::connect(vsock).and_then(|mut agent| agent.renew(None, &[])) {
        eprintln!("coracle: the guest has the clock and the random numbers of its snapshot: {}", failure.why);
    }
}

/// An ending that the user did not see coming gets a word.
fn say(end: GuestEnd) {
    match end {
        GuestEnd::PowerOff | GuestEnd::Stopped => {}
        GuestEnd::Reboot => eprintln!("coracle: the guest asked for a reboot"),
        GuestEnd::Panic => eprintln!("coracle: the guest's kernel panicked"),
        GuestEnd::TripleFault => eprintln!("coracle: the guest ended in a triple fault"),
    }
}

fn print_timings(marks: &[Mark], format: TimingsFormat) -> anyhow::Result<()> {
    match format {
        TimingsFormat::Table => eprint!("{}", timings::table(marks, Host::detect().vendor == Vendor::Pvm)),
        TimingsFormat::Json => eprintln!("{}", serde_json::to_string(marks)?),
    }
    Ok(())
}
