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

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Args, Command, Parser, Subcommand, ValueEnum};
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

#[derive(Debug, Subcommand)]
enum Verb {
    /// Boot a guest from a kernel image.
    Boot(Box<boot::BootArgs>),
    /// Take snapshots of microVMs, and look at them.
    Snapshot(snapshot::SnapshotArgs),
    /// List, remove and make the templates of which containers' microVMs are clones.
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
    /// Create, list and remove volumes.
    Volume(volume::VolumeArgs),
    /// Give an image another name.
    Tag(tag::TagArgs),
    /// Show all that is known of images, as a JSON array.
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

/// The verbs of a container's start, read without the flags of all others, which take longer to describe than to read.
/// `None` for other verbs, and for what is to be refused or explained: that is for the whole command line.
fn common_verb(words: &[OsString]) -> Option<Verb> {
    match words.get(1)?.to_str()? {
        MONITOR_VERB => read_alone(MONITOR_VERB, words).map(Verb::Monitor),
        "run" => read_alone("run", words).map(|args| Verb::Run(Box::new(args))),
        "exec" => read_alone("exec", words).map(Verb::Exec),
        _ => None,
    }
}

fn read_alone<A: Args>(name: &'static str, words: &[OsString]) -> Option<A> {
    let command = Command::new("coracle").subcommand(A::augment_args(Command::new(name)));
    let matches = command.try_get_matches_from(words).ok()?;
    A::from_arg_matches(matches.subcommand()?.1).ok()
}

/// Parses the command line, runs the verb, and reports its failure.
pub fn main() -> ExitCode {
    let words: Vec<_> = std::env::args_os().collect();
    let verb = common_verb(&words);
    let result = match verb.unwrap_or_else(|| Cli::try_parse_from(words).unwrap_or_else(|error| refuse(&error)).verb) {
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
    fn a_common_verb_read_alone_is_as_read_among_all() {
        let lines = [
            "run --rm -it -e A=1 busybox sh -c true",
            "run -d --name web -p 80:80 --memory 64M oci:layout",
            "exec -it web sh",
            "monitor /tmp/container 3",
        ];
        for line in lines {
            let words: Vec<OsString> = format!("coracle {line}").split(' ').map(OsString::from).collect();
            let alone = common_verb(&words).expect(line);
            assert_eq!(format!("{alone:?}"), format!("{:?}", Cli::try_parse_from(words).unwrap().verb));
        }
    }

    #[test]
    fn what_is_to_be_explained_or_refused_is_left_to_the_whole_command_line() {
        for line in
            ["run", "run --help", "run --no-such-flag busybox", "monitor", "exec web", "ps", "--version", "help run"]
        {
            let words: Vec<OsString> = format!("coracle {line}").split(' ').map(OsString::from).collect();
            assert!(common_verb(&words).is_none(), "{line}");
        }
    }
}
