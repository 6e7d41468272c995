// SPDX-License-Identifier: Apache-2.0
//! What the boundary of a VM buys against that of a container, observed: one static program looks, from inside of each
//! kind of sandbox, for what of the host it can find or reach; the same program on the host itself shows, as a control,
//! that there was something to be found.

mod attack;
mod boundary;
pub mod catalogue;
mod image;
pub mod inside;
pub mod judge;
pub mod launch;
mod limits;
pub mod neighbour;
pub mod page;
mod page_cache;
mod reach;
pub mod report;
mod shared;
mod sys;
mod tenant;
mod victim;

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use tempfile::TempDir;

use self::catalogue::{Group as Part, KERNEL, Probe, Seen};
use self::judge::{Measure, Verdict, judge};
use self::launch::{Ground, Kind, Session, ShortPath};
use self::limits::{Hierarchies, Limits};
use self::report::{Cell, Control, Report, Row, SCHEMA, Sandbox, VERSION};
use self::tenant::Tenant;
use super::backend::{Failed, Workspace, mounted};
use super::interrupt::Interrupt;
use super::machine::{self, Machine};
use crate::failure::Failure;
use crate::image::{PullOptions, PullPolicy, Store};

/// How long one step may take, on the slowest of hosts.
const PATIENCE: Duration = Duration::from_secs(180);
/// Seconds that one probe may take.
const PROBE_SECONDS: u32 = 60;
/// What sandboxes may use while they are looked at: enough for each of them.
const LIMITS: Limits = Limits { pids: 600, memory: 2 << 30, cpu: 400 };

/// Name, place and attempt of each probe.
pub fn names() -> impl Iterator<Item = (&'static str, Part, &'static str)> {
    let neighbours = neighbour::ATTACKS.iter().map(|attack| (attack.name, Part::Neighbour, attack.tries));
    catalogue::all().map(|probe| (probe.name, probe.group, probe.tries)).chain(neighbours)
}

/// What is to be found out.
#[derive(Clone, Debug)]
pub struct Plan {
    /// In which sandboxes.
    pub backends: Vec<Kind>,
    /// Names of probes; empty for all.
    pub only: Vec<String>,
    /// Our own program.
    pub coracle: PathBuf,
    /// The probe's.
    pub probe: PathBuf,
}

/// What one run of the probe's program gave.
#[derive(Clone, Debug, Default)]
struct Look {
    seen: BTreeMap<String, Seen>,
    words: Vec<String>,
}

/// Finds it out. `tell` hears what is being done.
///
/// # Errors
/// Nothing can be found out at all. What only some sandboxes lack is in the report.
pub fn run(plan: &Plan, tell: &mut dyn FnMut(&str)) -> Result<Report, Failure> {
    let what = "cannot look at isolation";
    let failed = |error: io::Error| Failure::new(what, error, "free memory, and space in $TMPDIR; `coracle doctor`");
    if !rustix::process::geteuid().is_root() {
        let why = "the host's side of it needs root's rights: to make control groups, and to see what the host has";
        return Err(Failure::new(what, why, "the same with sudo"));
    }
    let mut interrupt = Interrupt::new().map_err(failed)?;
    let mut host = Machine::look();
    let hierarchies = Hierarchies::open().map_err(failed)?;
    let namespaces = boundary::of_host();
    // On a disk, if the host keeps temporary files there: what is in memory anyway says nothing of page caches.
    let home = TempDir::with_prefix("coracle-isolation-").map_err(failed)?;
    let workspace = Workspace::new().map_err(failed)?;
    let name = workspace.path().file_name().unwrap_or_default().to_string_lossy().into_owned();
    let marker = name.trim_start_matches("coracle-").to_owned();
    let layout = home.path().join("image");
    image::write(&plan.probe, &layout).map_err(failed)?;
    let store = Store::open_at(&home.path().join("data")).map_err(crate::image::ImageError::new(what.to_owned()))?;
    let source = format!("oci:{}", layout.display());
    let image = store.obtain(&source, PullPolicy::Missing, &PullOptions::default(), &())?;
    let disk = store.rootfs(&image)?;
    let unmounted = |why: String| Failure::new(what, why, "`modprobe -a loop erofs`, and a kernel that has them");
    let files = mounted(&disk, &workspace).map_err(unmounted)?;
    let ground = Ground {
        coracle: plan.coracle.clone(),
        probe: plan.probe.clone(),
        image: image.id.hex(),
        files: files.clone(),
        engine: workspace.make("podman").and_then(|place| ShortPath::to(&place)).map_err(failed)?,
        data: home.path().to_owned(),
        hierarchies,
        namespaces,
        marker: marker.clone(),
        patience: PATIENCE,
    };
    let shared = files.join(image::FILES.trim_start_matches('/'));
    let tenant = Tenant::start(&plan.probe, workspace.path(), &shared, &marker, PROBE_SECONDS).map_err(failed)?;
    let mut all = Looks { plan, ground: &ground, tenant: &tenant, disk: &disk, interrupt: &mut interrupt };
    let mut sandboxes: Vec<Sandbox> = plan.backends.iter().map(|kind| Sandbox::of(*kind)).collect();
    let probes: Vec<&Probe> = catalogue::all()
        .filter(|probe| plan.only.is_empty() || plan.only.iter().any(|name| name == probe.name))
        .collect();
    let (looks, host_looks, mut interrupted) = match probes.is_empty() {
        true => (Vec::new(), Vec::new(), false),
        false => all.look_at_each(&probes, &mut sandboxes, tell)?,
    };
    let mut rows: Vec<Row> = probes.iter().map(|probe| row(probe, &sandboxes, &looks, &host_looks, &marker)).collect();
    drop(tenant);
    if !interrupted {
        interrupted = neighbour::run(plan, &ground, &mut interrupt, &mut sandboxes, &mut rows, tell);
    }
    host.look_again();
    if rows.iter().all(|row| row.cells.is_empty()) {
        return Err(nothing(what, &sandboxes, interrupted));
    }
    let mut report = Report {
        schema: SCHEMA,
        version: VERSION,
        started: machine::now(),
        coracle: env!("CARGO_PKG_VERSION"),
        complete: false,
        interrupted,
        host,
        backends: sandboxes,
        probes: rows,
        notes: Vec::new(),
    };
    report.evaluate();
    Ok(report)
}

fn nothing(what: &str, sandboxes: &[Sandbox], interrupted: bool) -> Failure {
    if interrupted {
        return Failure::new(what, "it was interrupted before anything was found", "let it run longer, or --only NAME");
    }
    let reasons: Vec<String> = sandboxes.iter().map(|one| format!("{}: {}", one.name, one.failed)).collect();
    Failure::new(what, format!("no sandbox works: {}", reasons.join("; ")), "`coracle doctor`; `scripts/setup compare`")
}

struct Looks<'a> {
    plan: &'a Plan,
    ground: &'a Ground,
    tenant: &'a Tenant,
    disk: &'a std::path::Path,
    interrupt: &'a mut Interrupt,
}

/// What sandboxes saw, each with its place in the list of looks on the host before it; and those looks.
type Seens = (Vec<(usize, usize, Look)>, Vec<Look>, bool);

impl Looks<'_> {
    /// On the host, then in each sandbox, and on the host again after each: what is counted lies between.
    fn look_at_each(
        &mut self,
        probes: &[&Probe],
        sandboxes: &mut [Sandbox],
        tell: &mut dyn FnMut(&str),
    ) -> Result<Seens, Failure> {
        let (mut looks, mut host) = (Vec::new(), Vec::new());
        for control in ["before", "control", "after"] {
            tell(&format!("host: {control}"));
            match self.look(None, probes) {
                Ok(look) => host.push(look),
                Err(Failed::Interrupted) => return Ok((looks, host, true)),
                Err(Failed::Because(why)) => {
                    let next = "`--only` other probes; what is in the way of programs on this host";
                    return Err(Failure::new("cannot run probes on the host itself", why, next));
                }
            }
        }
        for (at, sandbox) in sandboxes.iter_mut().enumerate() {
            let kind = self.plan.backends[at];
            tell(&format!("{kind}: looking"));
            let found = self.ground.version(kind).map_err(Failed::Because).and_then(|version| {
                sandbox.version = version;
                let look = self.look(Some(kind), probes)?;
                Ok((look, self.look(None, probes)?))
            });
            match found {
                Ok((look, after)) => {
                    sandbox.command.clone_from(&look.words);
                    let before = host.len() - 1;
                    looks.push((at, before, look));
                    host.push(after);
                }
                Err(Failed::Interrupted) => {
                    "interrupted".clone_into(&mut sandbox.failed);
                    return Ok((looks, host, true));
                }
                Err(Failed::Because(why)) => {
                    tell(&format!("{kind}: skipped: {why}"));
                    sandbox.failed = why;
                }
            }
        }
        Ok((looks, host, false))
    }

    fn look(&mut self, kind: Option<Kind>, probes: &[&Probe]) -> Result<Look, Failed> {
        if probes.iter().any(|probe| probe.name == "page-cache") {
            page_cache::lay_out(&self.tenant.facts.shared, self.disk)?;
        }
        let mut facts = self.tenant.facts.clone();
        if kind.is_some() {
            facts.shared = image::FILES.into();
        }
        let mut names: Vec<&str> = probes.iter().filter(|probe| probe.look.is_some()).map(|probe| probe.name).collect();
        if !names.contains(&KERNEL) {
            names.push(KERNEL);
        }
        let words = ["look".to_owned(), serde_json::to_string(&facts).map_err(io::Error::from)?, names.join(",")];
        let name = kind.map_or("host", Kind::name);
        let mut session = self.ground.start(kind, name, LIMITS, &words)?;
        let mut look = Look { words: session.words.clone(), ..Look::default() };
        let mut ready = false;
        while !ready || look.seen.len() < names.len() {
            let Some((_, line)) = session.line(self.ground.patience, self.interrupt)? else {
                return Err(Failed::Because(format!("it said nothing for {} s", self.ground.patience.as_secs())));
            };
            if line.trim() == inside::READY {
                ready = true;
            } else if let Ok(line) = serde_json::from_str::<inside::Line>(&line)
                // It is said by a program in a sandbox: no more than was asked for.
                && names.contains(&line.probe.as_str())
            {
                look.seen.insert(line.probe, line.seen);
            }
        }
        self.look_from_outside(kind, &session, &mut look);
        session.finish(Duration::from_secs(30));
        Ok(look)
    }

    /// What the host sees of it, while it waits.
    fn look_from_outside(&self, kind: Option<Kind>, session: &Session, look: &mut Look) {
        let visible = boundary::find(&format!("{}s", self.ground.marker), |_| true);
        let at_boundary = match kind {
            Some(Kind::Vm) => {
                let pids = session.group.pids();
                boundary::find("coracle-vmm", |pid| pids.contains(&pid))
            }
            _ => visible,
        };
        let process = visible.map_or_else(
            || Seen::Missing("the host has no such process".to_owned()),
            |_| Seen::Done("the host sees it".to_owned()),
        );
        look.seen.insert("visible-process".to_owned(), process);
        for (name, seen) in
            at_boundary.and_then(|pid| boundary::look(pid, &self.ground.namespaces).ok()).unwrap_or_default()
        {
            look.seen.insert(name.to_owned(), seen);
        }
    }
}

/// A line of the table: its control, and what it is in each sandbox.
fn row(probe: &Probe, sandboxes: &[Sandbox], looks: &[(usize, usize, Look)], host: &[Look], marker: &str) -> Row {
    let nothing = Seen::Missing("not looked at".to_owned());
    let on_host = |at: usize| host.get(at).and_then(|look| look.seen.get(probe.name)).unwrap_or(&nothing);
    let measure = |at: usize, after: usize, same_kernel| Measure {
        before: on_host(at),
        after: on_host(after),
        marker,
        same_kernel,
    };
    let verdict = judge(probe.method, on_host(1), &measure(0, 2, true));
    let control = Control { found: verdict == Verdict::Shared, seen: on_host(1).text() };
    let kernel = |look: &Look| look.seen.get(KERNEL).cloned();
    let cells = looks.iter().map(|(sandbox, at, look)| {
        let seen = look.seen.get(probe.name).unwrap_or(&nothing);
        // Where it is not known which kernel answers, it is taken for the host's.
        let other = matches!((kernel(look), host.get(*at).and_then(kernel)), (Some(Seen::Value(own)), Some(Seen::Value(host))) if own != host);
        let same_kernel = !other || probe.group == Part::Escape;
        let verdict = match control.found {
            true => judge(probe.method, seen, &measure(*at, at + 1, same_kernel)),
            false => Verdict::Unknown,
        };
        Cell { backend: sandboxes[*sandbox].name, verdict, seen: seen.text(), neighbour: None }
    });
    Row {
        name: probe.name.to_owned(),
        group: probe.group,
        tries: probe.tries.to_owned(),
        means: probe.means.to_owned(),
        cells: cells.collect(),
        control,
    }
}
