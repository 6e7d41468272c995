// SPDX-License-Identifier: Apache-2.0
//! `coracle run`, with and without a VM.

use std::net::Ipv4Addr;

use ipnet::IpNet;

use super::super::measure::Until;
use super::{Backend, Kind, Run, Workload};
use crate::failure::Failure;
use crate::network::{self, DEFAULT};

/// The one way to run it.
pub fn candidates(kind: Kind, workload: &Workload) -> Result<Vec<Backend>, String> {
    let cold = kind == Kind::VmCold;
    let mut command = vec![workload.coracle.display().to_string()];
    // One that has waited has done beforehand, and outside of what is counted, what is to be measured.
    command.extend(["run", "--rm", "--no-spare"].map(str::to_owned));
    let mut until = Until::Exit;
    if !workload.networked {
        command.extend(["--network", "none"].map(str::to_owned));
    }
    if let Some(port) = workload.http {
        let address = address().map_err(|failure| failure.why)?;
        command.extend(["--ip".to_owned(), address.to_string()]);
        until = Until::Http((address, port).into());
    }
    command.extend(cold.then(|| "--no-template".to_owned()));
    if kind == Kind::Container {
        command.extend(["--isolation", "container"].map(str::to_owned));
    }
    command.extend(workload.entrypoint.iter().flat_map(|program| ["--entrypoint".to_owned(), program.clone()]));
    command.push(workload.image.id.hex().to_owned());
    command.extend(workload.words.iter().cloned());
    Ok(vec![Backend {
        choice: kind.into(),
        command,
        version: concat!("coracle ", env!("CARGO_PKG_VERSION")).to_owned(),
        notes: Vec::new(),
        beside: Vec::new(),
        way: 0,
        run: Run::Program { root: None, until },
    }])
}

/// An address of the default network that is not given to others before all below it are. The network is up for a moment,
/// by which it has its subnet, where this has to be another than the last time.
fn address() -> Result<Ipv4Addr, Failure> {
    let container = format!("bench-{}", std::process::id());
    let request = network::Request {
        network: DEFAULT.to_owned(),
        container: container.clone(),
        names: Vec::new(),
        address: None,
        mac: None,
        ports: Vec::new(),
        namespace: None,
        spare: false,
    };
    let attachment = network::attach(&request)?;
    let found = attachment.addresses.iter().find_map(|address| match address {
        IpNet::V4(address) => Some(Ipv4Addr::from(u32::from(address.broadcast()) - 1)),
        IpNet::V6(_) => None,
    });
    drop(attachment);
    network::forget(&container)?;
    found.ok_or_else(|| Failure::new("cannot find an address", "the default network has none", "`coracle network ls`"))
}
