// SPDX-License-Identifier: Apache-2.0
//! The command line: one file per verb, flags and printing only.

mod attach;
mod bench;
mod boot;
mod completion;
mod container;
mod containers;
mod cp;
mod create;
mod doctor;
mod error;
mod exec;
mod history;
mod images;
mod inspect;
mod labels;
mod load;
mod login;
mod logs;
mod monitor;
mod network;
mod pause;
mod port;
mod ps;
mod pull;
mod pull_progress;
mod push;
mod reclaim;
mod registry_access;
mod rename;
mod rm;
mod rmi;
mod run;
mod save;
mod session;
mod snapshot;
mod spare;
mod start;
mod stats;
mod stop;
mod store;
mod system;
mod tag;
mod template;
mod templates;
mod top;
mod units;
mod version;
mod volume;
mod wait;

use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};
use coracle::failure::EXIT_FAILURE;
use coracle::supervisor::client::MONITOR_VERB;
use coracle::supervisor::spare::VERB as SPARE_VERB;

/// Every container in its own small virtual machine.
#[derive(Debug, Parser)]
#[command(name = "coracle", version, arg_required_else_help = true, after_help = EXIT_STATUS)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

const EXIT_STATUS: &str = "Exit status: that of what was run; 125 if Coracle itself failed; 2 for wrong usage, but 125\n\
                           where the status is otherwise a program's.\n\
                           CORACLE_LOG=debug (or info, trace) shows what it does.";

// Each verb's flags are described when it is the verb: describing all takes longer than most verbs do. What a verb is
// for is said here alone, since a comment of its flags, or of flags within them, would then stand instead.
#[derive(Debug, Subcommand)]
#[command(defer = true)]
enum Verb {
    /// Boot a guest from a kernel image, or go on from a snapshot.
    Boot(Box<boot::BootArgs>),
    /// Take snapshots of containers and microVMs, and look at them.
    ///
    /// `coracle run --from` goes on from one of a container, `coracle boot --restore` from one of a microVM.
    Snapshot(snapshot::SnapshotArgs),
    /// List, remove and make the templates of which containers' microVMs are clones.
    ///
    /// They are made when they are first needed.
    Template(templates::TemplateArgs),
    /// Run a program from an image in a microVM of its own.
    Run(Box<run::RunArgs>),
    /// Make a container, to be started later.
    Create(Box<create::CreateArgs>),
    /// Start containers that are not running.
    Start(start::StartArgs),
    /// Ask running containers to end, and end those that do not.
    Stop(stop::StopArgs),
    /// Stop containers, and start them again.
    Restart(stop::StopArgs),
    /// Send running containers a signal.
    Kill(stop::KillArgs),
    /// Remove containers.
    Rm(rm::RmArgs),
    /// List containers.
    Ps(ps::PsArgs),
    /// Run another program in a running container.
    Exec(exec::ExecArgs),
    /// Copy files between the host and a container.
    Cp(cp::CpArgs),
    /// Show what a container wrote.
    Logs(logs::LogsArgs),
    /// Connect to the input, output and signals of a running container.
    Attach(attach::AttachArgs),
    /// Wait until containers end, and print their exit status.
    Wait(wait::WaitArgs),
    /// Give a container another name.
    Rename(rename::RenameArgs),
    /// Stop all processes of containers where they are.
    Pause(pause::PauseArgs),
    /// Let the processes of paused containers go on.
    Unpause(pause::PauseArgs),
    /// Show where on the host the ports of a container are.
    Port(port::PortArgs),
    /// Show the processes of a container.
    Top(top::TopArgs),
    /// Show what containers use.
    Stats(stats::StatsArgs),
    /// Have the guests of containers give the host what they only cache.
    Reclaim(reclaim::ReclaimArgs),
    /// Do the same and more to containers: `container ls`, `container prune`.
    Container(container::ContainerArgs),
    /// Look after a running container.
    #[command(name = MONITOR_VERB, hide = true)]
    Monitor(monitor::MonitorArgs),
    /// Wait for a container to look after.
    #[command(name = SPARE_VERB, hide = true)]
    Spare(spare::SpareArgs),
    /// Fetch an image from a registry.
    Pull(Box<pull::PullArgs>),
    /// Bring an image to the registry that its name says.
    Push(Box<push::PushArgs>),
    /// Log in to a registry.
    ///
    /// Docker's and Podman's logins are used as they are; this one is theirs as well.
    Login(login::LoginArgs),
    /// Forget who one is to a registry.
    Logout(login::LogoutArgs),
    /// List images.
    Images(images::ImagesArgs),
    /// Write images into an archive.
    Save(save::SaveArgs),
    /// Read images from an archive.
    ///
    /// What `docker save` or `coracle save` has written, or an OCI image layout in a tar archive; packed with gzip or not.
    Load(load::LoadArgs),
    /// Remove images.
    Rmi(rmi::RmiArgs),
    /// Show and free what is kept on this host.
    System(system::SystemArgs),
    /// Create, list and remove networks of containers.
    Network(network::NetworkArgs),
    /// Create, list and remove volumes.
    Volume(volume::VolumeArgs),
    /// Give an image another name.
    Tag(tag::TagArgs),
    /// Show all that is known of containers and images, as a JSON array.
    Inspect(inspect::InspectArgs),
    /// Show the steps that made an image.
    History(history::HistoryArgs),
    /// Measure what a microVM costs against a container.
    Bench(bench::BenchArgs),
    /// Tell whether this host can run microVMs, and what is missing.
    Doctor(doctor::DoctorArgs),
    /// Show the version, and the kind of host.
    Version(version::VersionArgs),
    /// Print a completion script for a shell.
    Completion(completion::CompletionArgs),
}

/// How a verb prints its data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people.
    #[default]
    Table,
    /// For programs.
    Json,
}

/// Parses the command line, runs the verb, and reports its failure.
pub fn main() -> ExitCode {
    let result = match Cli::try_parse().unwrap_or_else(|error| refuse(&error)).verb {
        Verb::Boot(args) => boot::run(&args),
        Verb::Template(args) => templates::run(&args),
        Verb::Snapshot(args) => snapshot::run(&args),
        Verb::Run(args) => run::run(&args),
        Verb::Create(args) => create::run(&args),
        Verb::Start(args) => start::run(&args),
        Verb::Stop(args) => stop::run(&args),
        Verb::Restart(args) => stop::run_restart(&args),
        Verb::Kill(args) => stop::run_kill(&args),
        Verb::Rm(args) => rm::run(&args),
        Verb::Ps(args) => ps::run(&args),
        Verb::Exec(args) => exec::run(&args),
        Verb::Cp(args) => cp::run(&args),
        Verb::Logs(args) => logs::run(&args),
        Verb::Attach(args) => attach::run(&args),
        Verb::Wait(args) => wait::run(&args),
        Verb::Rename(args) => rename::run(&args),
        Verb::Pause(args) => pause::run(&args),
        Verb::Unpause(args) => pause::run_unpause(&args),
        Verb::Port(args) => port::run(&args),
        Verb::Top(args) => top::run(&args),
        Verb::Stats(args) => stats::run(&args),
        Verb::Reclaim(args) => reclaim::run(&args),
        Verb::Container(args) => container::run(args),
        Verb::Monitor(args) => monitor::run(&args),
        Verb::Spare(args) => spare::run(&args),
        Verb::Pull(args) => pull::run(&args),
        Verb::Push(args) => push::run(&args),
        Verb::Login(args) => login::run(&args),
        Verb::Logout(args) => login::run_logout(&args),
        Verb::System(args) => system::run(&args),
        Verb::Images(args) => images::run(&args),
        Verb::Save(args) => save::run(&args),
        Verb::Load(args) => load::run(&args),
        Verb::Rmi(args) => rmi::run(&args),
        Verb::Network(args) => network::run(&args),
        Verb::Volume(args) => volume::run(&args),
        Verb::Tag(args) => tag::run(&args),
        Verb::Inspect(args) => inspect::run(&args),
        Verb::History(args) => history::run(&args),
        Verb::Bench(args) => bench::run(&args),
        Verb::Doctor(args) => doctor::run(args),
        Verb::Version(args) => version::run(args),
        Verb::Completion(args) => completion::run(args),
    };
    result.unwrap_or_else(|error| error::report(&error))
}

/// Ends with help, or with what is wrong with the command line. A program in a container may end with 2 itself: where
/// its status is passed on, wrong usage is 125, as with Docker.
fn refuse(error: &clap::Error) -> ! {
    let verb = std::env::args().skip(1).find(|word| word != "container");
    let passes_on = verb.is_some_and(|verb| ["run", "create", "start", "exec", "attach"].contains(&verb.as_str()));
    if error.use_stderr() && passes_on {
        // With stderr closed there is no one left to tell; the exit status still says it.
        let _ = error.print();
        std::process::exit(EXIT_FAILURE.into());
    }
    error.exit()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn each_verb_s_help_says_what_it_is_for() {
        let mut built = Cli::command();
        built.build();
        for verb in Cli::command().get_subcommands() {
            let of_its_own = built.find_subcommand(verb.get_name()).and_then(clap::Command::get_about);
            assert_eq!(of_its_own.map(ToString::to_string), verb.get_about().map(ToString::to_string));
        }
    }
}
