// SPDX-License-Identifier: Apache-2.0
//! `coracle container`: Docker's longer names of the verbs on containers, and those that have no shorter one.

use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::{
    attach, create, exec, inspect, logs, pause, port, ps, reclaim, rename, rm, run, start, stats, stop, top, wait,
};

#[derive(Debug, Args)]
pub struct ContainerArgs {
    #[command(subcommand)]
    verb: ContainerVerb,
}

#[derive(Debug, Subcommand)]
enum ContainerVerb {
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
    #[command(alias = "ps", alias = "list")]
    Ls(ps::PsArgs),
    /// Run another program in a running container.
    Exec(exec::ExecArgs),
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
    /// Show all that is known of containers, as a JSON array.
    Inspect(inspect::InspectArgs),
    /// Remove all containers that do not run.
    Prune(rm::PruneArgs),
}

/// Does what the verb says.
///
/// # Errors
/// The verb's.
pub fn run(args: ContainerArgs) -> anyhow::Result<ExitCode> {
    match args.verb {
        ContainerVerb::Run(args) => run::run(&args),
        ContainerVerb::Create(args) => create::run(&args),
        ContainerVerb::Start(args) => start::run(&args),
        ContainerVerb::Stop(args) => stop::run(&args),
        ContainerVerb::Restart(args) => stop::run_restart(&args),
        ContainerVerb::Kill(args) => stop::run_kill(&args),
        ContainerVerb::Rm(args) => rm::run(&args),
        ContainerVerb::Ls(args) => ps::run(&args),
        ContainerVerb::Exec(args) => exec::run(&args),
        ContainerVerb::Logs(args) => logs::run(&args),
        ContainerVerb::Attach(args) => attach::run(&args),
        ContainerVerb::Wait(args) => wait::run(&args),
        ContainerVerb::Rename(args) => rename::run(&args),
        ContainerVerb::Pause(args) => pause::run(&args),
        ContainerVerb::Unpause(args) => pause::run_unpause(&args),
        ContainerVerb::Port(args) => port::run(&args),
        ContainerVerb::Top(args) => top::run(&args),
        ContainerVerb::Stats(args) => stats::run(&args),
        ContainerVerb::Reclaim(args) => reclaim::run(&args),
        ContainerVerb::Inspect(args) => inspect::run(&args),
        ContainerVerb::Prune(args) => rm::run_prune(&args),
    }
}
