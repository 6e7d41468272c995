// SPDX-License-Identifier: Apache-2.0
//! The command line: one file per verb, flags and printing only.

mod boot;
mod completion;
mod doctor;
mod error;
mod history;
mod images;
mod inspect;
mod load;
mod login;
mod network;
mod pull;
mod pull_progress;
mod push;
mod registry_access;
mod rmi;
mod run;
mod save;
mod store;
mod system;
mod tag;
mod template;
mod units;
mod version;

use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};

/// Every container in its own small virtual machine.
#[derive(Debug, Parser)]
#[command(name = "coracle", version, arg_required_else_help = true, after_help = EXIT_STATUS)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

const EXIT_STATUS: &str = "Exit status: that of what was run; 125 if Coracle itself failed; 2 for wrong usage.\n\
                           CORACLE_LOG=debug (or info, trace) shows what it does.";

#[derive(Debug, Subcommand)]
enum Verb {
    /// Boot a guest from a kernel image.
    Boot(Box<boot::BootArgs>),
    /// Run a program from an image in a microVM of its own.
    Run(Box<run::RunArgs>),
    /// Fetch an image from a registry.
    Pull(Box<pull::PullArgs>),
    /// Bring an image to the registry that its name says.
    Push(Box<push::PushArgs>),
    /// Log in to a registry.
    Login(login::LoginArgs),
    /// Forget who one is to a registry.
    Logout(login::LogoutArgs),
    /// List images.
    Images(images::ImagesArgs),
    /// Write images into an archive.
    Save(save::SaveArgs),
    /// Read images from an archive.
    Load(load::LoadArgs),
    /// Remove images.
    Rmi(rmi::RmiArgs),
    /// Show and free what is kept on this host.
    System(system::SystemArgs),
    /// Create, list and remove networks of containers.
    Network(network::NetworkArgs),
    /// Give an image another name.
    Tag(tag::TagArgs),
    /// Show all that is known of images, as a JSON array.
    Inspect(inspect::InspectArgs),
    /// Show the steps that made an image.
    History(history::HistoryArgs),
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
    let result = match Cli::parse().verb {
        Verb::Boot(args) => boot::run(&args),
        Verb::Run(args) => run::run(&args),
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
        Verb::Tag(args) => tag::run(&args),
        Verb::Inspect(args) => inspect::run(&args),
        Verb::History(args) => history::run(&args),
        Verb::Doctor(args) => doctor::run(args),
        Verb::Version(args) => version::run(args),
        Verb::Completion(args) => completion::run(args),
    };
    result.unwrap_or_else(|error| error::report(&error))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }
}
