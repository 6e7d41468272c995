// SPDX-License-Identifier: Apache-2.0
//! What a bad neighbour does to a good one, in another sandbox of the same kind, and to a program on the host: the same
//! small thing timed before and during. The control has both in one control group on the host, where it must hurt.

use std::time::{Duration, Instant};

use serde::Serialize;

use super::super::backend::Failed;
use super::super::interrupt::Interrupt;
use super::super::machine::Machine;
use super::attack::{ATTACKING, BYTES, FILES, OPEN, STOPPED};
use super::catalogue::Group;
use super::judge::Verdict;
use super::launch::{Ground, Kind, Session};
use super::limits::Limits;
use super::report::{Cell, Control, Row, Sandbox};
use super::victim::{Deed, Line};
use super::{Plan, boundary, image, inside};

/// A bad neighbour.
pub struct Attack {
    /// Its name on the command line and in reports.
    pub name: &'static str,
    /// What it does.
    pub tries: &'static str,
    /// What that means for the other where it is shared.
    means: &'static str,
    /// What the other does meanwhile.
    deed: Deed,
}

const fn attack(name: &'static str, tries: &'static str, means: &'static str, deed: Deed) -> Attack {
    Attack { name, tries, means, deed }
}

/// All of them.
pub static ATTACKS: &[Attack] = &[
    attack("cpu-burner", "computes in four processes", "others wait for a CPU", Deed::Wake),
    attack(
        "exit-storm",
        "asks for the CPU's name all the time, which a hypervisor has to answer",
        "others wait for a CPU",
        Deed::Wake,
    ),
    attack("fork-bomb", "starts processes that start processes", "others wait, or can start none", Deed::Thread),
    attack(
        "process-exhaustion",
        "starts as many processes as it can, which do nothing",
        "others can start none",
        Deed::Thread,
    ),
    attack(
        "memory-hog",
        "takes memory until it is killed, again and again",
        "others wait for memory, or are killed",
        Deed::Memory,
    ),
    attack("disk-filler", "writes 16 MiB", "others have less space to write to", Deed::FreeBytes),
    attack("inode-filler", "makes a thousand files", "others can make fewer", Deed::FreeFiles),
    attack("page-cache-thrash", "has files dropped from memory that all read", "others wait for the disk", Deed::Read),
    attack("log-flood", "writes to its output as fast as it can", "others wait while it is written down", Deed::Wake),
    attack("file-exhaustion", "opens four thousand files", "others can open fewer", Deed::OpenFiles),
    attack("connection-flood", "connects to itself all the time", "others wait to connect", Deed::Connect),
];

/// Times of a neighbour, in ns; of what is counted, counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Times {
    /// Number of samples.
    pub n: usize,
    /// Times that it failed.
    pub failures: u64,
    /// The middle one.
    pub p50: u64,
    /// So much or less took 99 of 100 (nearest rank).
    pub p99: u64,
}

/// What an attack did.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Effect {
    /// What the neighbours did.
    pub deed: Deed,
    /// The neighbour in the sandbox, before.
    pub before: Times,
    /// And during.
    pub during: Times,
    /// The neighbour on the host, before.
    pub host_before: Times,
    /// And during.
    pub host_during: Times,
}

/// How long each is looked at, with nothing else and with the attack.
const WINDOW: Duration = Duration::from_secs(1);
/// Where fewer samples than that have come, it is longer,
const ENOUGH: usize = 40;
/// but not longer than this.
const LONGEST: Duration = Duration::from_secs(12);
/// Times beyond this multiple of those before are of something shared; beyond a part of it, of something limited.
const SHARED: u64 = 10;
const LIMITED: u64 = 3;
/// Times below are as good as none: 1 ms.
const NOTHING: u64 = 1_000_000;

/// No deed.
const REST: &str = "rest";

/// Limits of a sandbox: half of the CPUs at most, so that two have room beside each other. The control has less, which
/// its two processes are to fight for even where others have the CPUs most of the time.
fn limits(kind: Option<Kind>) -> Limits {
    let cpus = u64::try_from(Machine::look().cpus).unwrap_or(1);
    let cpu = if kind.is_some() { 50 * cpus.min(2) } else { 25 };
    Limits { pids: 200, memory: 512 << 20, cpu }
}

/// Tries all that are wanted in each sandbox; adds rows. Whether the user wanted no more.
pub fn run(
    plan: &Plan,
    ground: &Ground,
    interrupt: &mut Interrupt,
    sandboxes: &mut [Sandbox],
    rows: &mut Vec<Row>,
    tell: &mut dyn FnMut(&str),
) -> bool {
    let wanted = |attack: &&Attack| plan.only.is_empty() || plan.only.iter().any(|name| name == attack.name);
    let attacks: Vec<&Attack> = ATTACKS.iter().filter(wanted).collect();
    if attacks.is_empty() {
        return false;
    }
    let mut found: Vec<Row> = attacks.iter().map(|attack| row(attack)).collect();
    let mut interrupted = false;
    let kinds = plan.backends.iter().map(|kind| Some(*kind));
    for (at, kind) in std::iter::once(None).chain(kinds).enumerate() {
        // The control comes first, and is no sandbox.
        if let (Some(kind), Some(sandbox)) = (kind, at.checked_sub(1).and_then(|at| sandboxes.get_mut(at))) {
            match ground.version(kind) {
                Ok(version) => sandbox.version = version,
                Err(why) => sandbox.failed = why,
            }
            if !sandbox.failed.is_empty() {
                continue;
            }
        }
        let mut scene = Scene { ground, kind, interrupt: &mut *interrupt, victim: None, host: None, attacker: None };
        for (attack, row) in attacks.iter().zip(&mut found) {
            tell(&format!("{}: {}", kind.map_or("control", Kind::name), attack.name));
            match scene.play(attack) {
                Ok(effect) => add(row, kind, &effect),
                Err(Failed::Interrupted) => interrupted = true,
                Err(Failed::Because(why)) => fail(row, kind, &why),
            }
            if interrupted {
                break;
            }
        }
        if interrupted {
            break;
        }
    }
    rows.extend(found.into_iter().filter(|row| !row.cells.is_empty() || row.control.found));
    interrupted
}

fn row(attack: &Attack) -> Row {
    Row {
        name: attack.name.to_owned(),
        group: Group::Neighbour,
        tries: attack.tries.to_owned(),
        means: attack.means.to_owned(),
        control: Control { found: false, seen: "not tried".to_owned() },
        cells: Vec::new(),
    }
}

fn add(row: &mut Row, kind: Option<Kind>, effect: &Effect) {
    let (verdict, seen) = (judge(effect), text(effect));
    match kind {
        None => row.control = Control { found: verdict == Verdict::Shared, seen },
        Some(kind) => {
            let verdict = if row.control.found { verdict } else { Verdict::Unknown };
            row.cells.push(Cell { backend: kind.name(), verdict, seen, neighbour: Some(effect.clone()) });
        }
    }
}

/// An attack that takes its neighbour, or the tool, out of the world is no small one; but it is not known to be the cause.
fn fail(row: &mut Row, kind: Option<Kind>, why: &str) {
    let seen = format!("it broke off: {why}");
    match kind {
        None => row.control = Control { found: false, seen },
        Some(kind) => {
            row.cells.push(Cell { backend: kind.name(), verdict: Verdict::Unknown, seen, neighbour: None });
        }
    }
}

/// Neighbours of one kind: one that is looked at, one on the host, and the bad one.
struct Scene<'a> {
    ground: &'a Ground,
    kind: Option<Kind>,
    interrupt: &'a mut Interrupt,
    victim: Option<Session>,
    host: Option<Session>,
    attacker: Option<Session>,
}

impl Scene<'_> {
    fn play(&mut self, attack: &Attack) -> Result<Effect, Failed> {
        let result = self.try_to_play(attack);
        if result.is_err() {
            // What is left of them is of no use to the next.
            (self.attacker, self.victim, self.host) = (None, None, None);
        }
        result
    }

    fn try_to_play(&mut self, attack: &Attack) -> Result<Effect, Failed> {
        let (mut victim, mut host, mut attacker) = self.cast()?;
        let deed = serde_json::to_string(&attack.deed).map_err(std::io::Error::from)?;
        let [before, host_before] = self.watch(attack.deed, &deed, &mut victim, &mut host, &mut attacker)?;
        attacker.say(attack.name)?;
        self.wait_for(&mut attacker, ATTACKING)?;
        let during = match self.watch(attack.deed, &deed, &mut victim, &mut host, &mut attacker) {
            // It has been ended: there is no worse.
            Err(Failed::Because(_)) if victim.has_ended() => Ok([Times::default(); 2]),
            during => during,
        };
        attacker.say("stop")?;
        self.wait_for(&mut attacker, STOPPED)?;
        let [during, host_during] = during?;
        self.victim = (!victim.has_ended()).then_some(victim);
        (self.host, self.attacker) = (Some(host), Some(attacker));
        Ok(Effect { deed: attack.deed, before, during, host_before, host_during })
    }

    /// Those of the attack before, or new ones.
    fn cast(&mut self) -> Result<(Session, Session, Session), Failed> {
        let files = match self.kind {
            None => self.ground.files.join(image::FILES.trim_start_matches('/')).display().to_string(),
            Some(_) => image::FILES.to_owned(),
        };
        let on_host = self.ground.files.join(image::FILES.trim_start_matches('/')).display().to_string();
        let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
        let name = self.kind.map_or("control", Kind::name);
        if self.victim.is_none() {
            let victim = self.ground.start(
                self.kind,
                &format!("{name}-good"),
                limits(self.kind),
                &words(&["victim", &files]),
            )?;
            self.victim = Some(self.ready(victim)?);
        }
        if self.host.is_none() {
            let host = self.ground.start(None, &format!("{name}-host"), limits(None), &words(&["victim", &on_host]))?;
            self.host = Some(self.ready(host)?);
        }
        if self.attacker.is_none() {
            let more = words(&["attack", &self.ground.marker, &files]);
            let attacker = match (self.kind, &self.victim) {
                // Two processes of one group.
                (None, Some(victim)) => self.ground.start_beside(victim, &more)?,
                _ => self.ground.start(self.kind, &format!("{name}-bad"), limits(self.kind), &more)?,
            };
            let attacker = self.ready(attacker)?;
            self.check(&attacker)?;
            self.attacker = Some(attacker);
        }
        match (self.victim.take(), self.host.take(), self.attacker.take()) {
            (Some(victim), Some(host), Some(attacker)) => Ok((victim, host, attacker)),
            _ => Err(Failed::Because("they could not be started".to_owned())),
        }
    }

    /// An attack begins only where what would bound it does.
    fn check(&self, attacker: &Session) -> Result<(), Failed> {
        let pids = attacker.group.pids();
        let bounded = match self.kind {
            Some(Kind::Vm) => boundary::find("coracle-vmm", |pid| pids.contains(&pid)),
            _ => boundary::find(&format!("{}a", self.ground.marker), |pid| pids.contains(&pid)),
        };
        let why = "it is not in the control group that was made for it, so that nothing would bound it";
        bounded.map(drop).ok_or_else(|| Failed::Because(why.to_owned()))
    }

    fn ready(&mut self, mut session: Session) -> Result<Session, Failed> {
        self.wait_for(&mut session, inside::READY)?;
        Ok(session)
    }

    fn wait_for(&mut self, session: &mut Session, word: &str) -> Result<(), Failed> {
        let deadline = Instant::now() + self.ground.patience;
        while let Some((_, line)) = session.line(deadline.saturating_duration_since(Instant::now()), self.interrupt)? {
            // A flood may have left half a line before it.
            if line.ends_with(word) {
                return Ok(());
            }
        }
        Err(Failed::Because(format!("it did not say `{word}` within {} s", self.ground.patience.as_secs())))
    }

    /// What the good ones tell from now on.
    fn watch(
        &mut self,
        deed: Deed,
        word: &str,
        victim: &mut Session,
        host: &mut Session,
        attacker: &mut Session,
    ) -> Result<[Times; 2], Failed> {
        victim.say(word)?;
        host.say(word)?;
        let start = Instant::now();
        let mut seen = [(Vec::new(), 0), (Vec::new(), 0)];
        let mut first = [true; 2];
        while start.elapsed() < WINDOW || (start.elapsed() < LONGEST && seen[0].0.len() < ENOUGH && seen[0].1 == 0) {
            for (at, session) in [&mut *victim, &mut *host].into_iter().enumerate() {
                let Some((when, line)) = session.line(Duration::from_millis(20), self.interrupt)? else { continue };
                let Ok(line) = serde_json::from_str::<Line>(&line) else { continue };
                if line.deed != deed || when < start {
                    continue;
                }
                // The first may have begun before.
                if std::mem::take(&mut first[at]) {
                    continue;
                }
                seen[at].0.extend(line.samples);
                seen[at].1 += line.failures;
            }
            // It says nothing but that it has ended, if it has.
            attacker.line(Duration::ZERO, self.interrupt)?;
        }
        // Until the next time they do nothing, so that all that is read then is of then.
        victim.say(REST)?;
        host.say(REST)?;
        Ok(seen.map(|(samples, failures)| times(samples, failures)))
    }
}

fn times(mut samples: Vec<u64>, failures: u64) -> Times {
    samples.sort_unstable();
    let rank = |percent: usize| {
        let rank = (samples.len() * percent).div_ceil(100).max(1);
        samples.get(rank - 1).copied().unwrap_or(0)
    };
    Times { n: samples.len(), failures, p50: rank(50), p99: rank(99) }
}

/// How much of what is counted an attack would take if it were shared.
fn taken(deed: Deed) -> Option<u64> {
    match deed {
        Deed::FreeBytes => Some(BYTES),
        Deed::FreeFiles => Some(FILES),
        Deed::OpenFiles => Some(OPEN),
        _ => None,
    }
}

fn judge(effect: &Effect) -> Verdict {
    let (before, during) = (&effect.before, &effect.during);
    if before.n == 0 {
        return Verdict::Unknown;
    }
    if let Some(taken) = taken(effect.deed) {
        // Others of the host's processes take and give as well.
        return if before.p50.abs_diff(during.p50) >= taken / 2 { Verdict::Shared } else { Verdict::Isolated };
    }
    let times = [(before.p50, during.p50), (before.p99, during.p99)];
    let rose = |by: u64| times.iter().any(|(before, during)| *during >= by * (*before).max(NOTHING));
    match (before.failures, during.failures) {
        (0, 1..) => Verdict::Shared,
        _ if during.n == 0 || rose(SHARED) => Verdict::Shared,
        _ if rose(LIMITED) => Verdict::Limited,
        _ => Verdict::Isolated,
    }
}

fn text(effect: &Effect) -> String {
    let (before, during) = (&effect.before, &effect.during);
    if let Some(taken) = taken(effect.deed) {
        return format!("{} before, {} during; {taken} were taken", before.p50, during.p50);
    }
    let part = |times: &Times| {
        let failed = if times.failures > 0 { format!(", {} failed", times.failures) } else { String::new() };
        format!("{}/{} µs (n {}{failed})", times.p50 / 1000, times.p99 / 1000, times.n)
    };
    let (host_before, host_during) = (part(&effect.host_before), part(&effect.host_during));
    format!("p50/p99 {} before, {} during; on the host {host_before}, {host_during}", part(before), part(during))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn effect(deed: Deed, before: Times, during: Times) -> Effect {
        Effect { deed, before, during, host_before: before, host_during: before }
    }

    #[test]
    fn times_are_ranked() {
        let times = times((1..=200).rev().collect(), 3);
        assert_eq!(times, Times { n: 200, failures: 3, p50: 100, p99: 198 });
        assert_eq!(super::times(Vec::new(), 0), Times::default());
    }

    #[test]
    fn what_hurts_is_shared() {
        let of = |p99, failures| Times { n: 100, failures, p50: p99 / 2, p99 };
        let ms = 1_000_000;
        for (before, during, expected) in [
            (of(ms, 0), of(ms, 0), Verdict::Isolated),
            (of(ms / 100, 0), of(ms, 0), Verdict::Isolated),
            (of(ms, 0), of(4 * ms, 0), Verdict::Limited),
            (of(ms, 0), of(40 * ms, 0), Verdict::Shared),
            (of(ms, 0), of(ms, 1), Verdict::Shared),
            (of(ms, 0), Times::default(), Verdict::Shared),
            (Times::default(), of(ms, 0), Verdict::Unknown),
        ] {
            assert_eq!(judge(&effect(Deed::Wake, before, during)), expected, "{before:?} {during:?}");
        }
        let count = |count| Times { n: 9, failures: 0, p50: count, p99: count };
        assert_eq!(judge(&effect(Deed::FreeBytes, count(BYTES * 9), count(BYTES * 8))), Verdict::Shared);
        assert_eq!(judge(&effect(Deed::OpenFiles, count(100), count(120))), Verdict::Isolated);
    }
}
