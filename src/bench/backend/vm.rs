// SPDX-License-Identifier: Apache-2.0
//! `coracle run`, with and without a VM.

use std::net::Ipv4Addr;

use super::super::measure::Until;
use super::{Backend, Kind, Run, Workload};
use crate::failure::Failure;
use crate::network::{self, DEFAULT};

/// The one way to run it.
pub fn candidates(kind: Kind, workload: &Workload) -> Result<Vec<Backend>, String> {
    let cold = kind == Kind::VmCold;
    if cold && !workload.templates {
        return Err("this release has no templates: `vm` is cold already".to_owned());
    }
    let mut command = vec![workload.coracle.display().to_string()];
    command.extend(["run", "--rm"].map(str::to_owned));
    let mut until = Until::Exit;
    match workload.http {
        None => command.extend(["--network", "none"].map(str::to_owned)),
        Some(port) => {
            let address = address().map_err(|failure| failure.why)?;
            command.extend(["--ip".to_owned(), address.to_string()]);
            until = Until::Http((address, port).into());
        }
    }
    command.extend(cold.then(|| "--no-template".to_owned()));
    if kind == Kind::Container {
        command.extend(["--isolation", "container"].map(str::to_owned));
    }
    command.extend(workload.entrypoint.iter().flat_map(|program| ["--entrypoint".to_owned(), program.clone()]));
    command.push(workload.image.id.hex().to_owned());
    command.extend(workload.words.iter().cloned());
    Ok(vec![Backend {
        kind,
        command,
        version: concat!("coracle ", env!("CARGO_PKG_VERSION")).to_owned(),
        notes: Vec::new(),
        beside: Vec::new(),
        run: Run::Program { root: None, until },
    }])
}

/// An address of the default network that is not given to others before all below it are.
fn address() -> Result<Ipv4Addr, Failure> {
    let networks = network::list(&network::Store::open()?)?;
    let subnet = network::find(&networks, DEFAULT, "cannot find an address")?.ipv4.subnet;
    Ok(Ipv4Addr::from(u32::from(subnet.broadcast()) - 1))
}
