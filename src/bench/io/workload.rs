// SPDX-License-Identifier: Apache-2.0
//! What is run: the command lines of fio, iperf3 and redis-benchmark, and what they say of their results.

use std::net::SocketAddr;

use serde::Serialize;
use serde_json::Value;

use super::super::statistics::number;
use super::report::Sample;

/// Where the files of fio are: on the root's writable layer.
const ON_LAYER: &str = "/coracle-bench-io";
/// And on the volume.
const ON_VOLUME: &str = "/coracle-bench-volume/file";
/// Where the volume is.
pub const VOLUME: &str = "/coracle-bench-volume";
/// Port of `iperf3 -s`, in a network namespace of its own.
pub const IPERF_PORT: u16 = 5201;
/// Port of redis, there as well.
pub const REDIS_PORT: u16 = 6379;
/// Clients of redis at once.
const CLIENTS: &str = "10";
/// Requests of the first run, from which it is seen how many make a run as long as it should be.
const FIRST_REQUESTS: u64 = 200;
/// Requests of any run, however quick.
const MOST_REQUESTS: u64 = 100_000_000;

/// What a rate counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Unit {
    /// Bytes.
    #[serde(rename = "bytes/s")]
    Bytes,
    /// Requests to a file or a server.
    #[serde(rename = "requests/s")]
    Requests,
}

impl Unit {
    /// Thousandths of it in a second, for people.
    #[allow(clippy::cast_precision_loss, reason = "three digits are shown")]
    pub fn text(self, thousandths: u64) -> String {
        let digits = |value: f64| if value == 0.0 { "0".to_owned() } else { number(value) };
        let value = thousandths as f64 / 1000.0;
        match self {
            Self::Bytes if value >= 1e9 => format!("{} GB/s", digits(value / 1e9)),
            Self::Bytes => format!("{} MB/s", digits(value / 1e6)),
            Self::Requests => format!("{}/s", digits(value)),
        }
    }
}

/// Where fio's file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// On the writable layer of the root.
    Layer,
    /// On a volume.
    Volume,
}

/// A program that measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tool {
    /// fio, in the sandbox: where, its word for what is done, and the size of a request.
    Fio(Place, &'static str, &'static str),
    /// iperf3, on the host; its server is in the sandbox.
    Iperf {
        /// Towards the host, or else away from it.
        to_host: bool,
    },
    /// redis-benchmark, on the host, with this command; its server is in the sandbox.
    Redis(&'static str),
}

/// One thing that is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Workload {
    /// Its name: that of its group, and what it does.
    pub name: &'static str,
    /// In words.
    pub what: &'static str,
    /// What its rate counts.
    pub unit: Unit,
    /// How.
    pub tool: Tool,
}

const fn workload(name: &'static str, what: &'static str, unit: Unit, tool: Tool) -> Workload {
    Workload { name, what, unit, tool }
}

/// All of them, in the order of reports.
pub const ALL: [Workload; 12] = {
    use Place::{Layer, Volume};
    use Tool::{Fio, Iperf, Redis};
    use Unit::{Bytes, Requests};
    [
        workload("layer-read", "the root's layer, read from end to end", Bytes, Fio(Layer, "read", "128k")),
        workload("layer-write", "the root's layer, written from end to end", Bytes, Fio(Layer, "write", "128k")),
        workload("layer-random-read", "the root's layer, 4 KiB anywhere", Requests, Fio(Layer, "randread", "4k")),
        workload("layer-random-write", "the same, written", Requests, Fio(Layer, "randwrite", "4k")),
        workload("volume-read", "a volume, read from end to end", Bytes, Fio(Volume, "read", "128k")),
        workload("volume-write", "a volume, written from end to end", Bytes, Fio(Volume, "write", "128k")),
        workload("volume-random-read", "a volume, 4 KiB anywhere", Requests, Fio(Volume, "randread", "4k")),
        workload("volume-random-write", "the same, written", Requests, Fio(Volume, "randwrite", "4k")),
        workload("net-to-host", "one TCP connection, to the host", Bytes, Iperf { to_host: true }),
        workload("net-from-host", "one TCP connection, from the host", Bytes, Iperf { to_host: false }),
        workload("redis-set", "SET through a published port, 10 clients", Requests, Redis("set")),
        workload("redis-get", "GET through a published port, 10 clients", Requests, Redis("get")),
    ]
};

/// How long and how large.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    /// Seconds of a run.
    pub seconds: u16,
    /// Bytes of a file.
    pub size: u64,
    /// Past the cache of the kernel that has the file system.
    pub direct: bool,
}

impl Workload {
    /// Whether it is of a name that the user has given: its own, or of its group.
    pub fn is_of(&self, name: &str) -> bool {
        self.name == name || self.name.strip_prefix(name).is_some_and(|rest| rest.starts_with('-'))
    }

    /// The program that the host needs, and its package.
    pub fn on_host(&self) -> Option<(&'static str, &'static str)> {
        match self.tool {
            Tool::Fio(..) => None,
            Tool::Iperf { .. } => Some(("iperf3", "iperf3")),
            Tool::Redis(_) => Some(("redis-benchmark", "redis-tools")),
        }
    }
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}

/// fio in the sandbox. A thread, since to fork takes long where a guest's kernel is interpreted; what is written has gone
/// to the file system's disk when the time is over.
pub fn fio(place: Place, does: &str, block: &str, extent: Extent) -> Vec<String> {
    let file = if place == Place::Layer { ON_LAYER } else { ON_VOLUME };
    let mut all = words(&["fio", "--name=bench", "--ioengine=psync", "--thread", "--time_based", "--end_fsync=1"]);
    all.extend([
        format!("--filename={file}"),
        format!("--rw={does}"),
        format!("--bs={block}"),
        format!("--size={}", extent.size),
        format!("--runtime={}", extent.seconds),
        format!("--direct={}", u8::from(extent.direct)),
        "--output-format=json".to_owned(),
    ]);
    all
}

/// iperf3 on the host.
pub fn iperf(server: SocketAddr, to_host: bool, seconds: u16) -> Vec<String> {
    let (host, port, seconds) = (server.ip().to_string(), server.port().to_string(), seconds.to_string());
    let mut all = words(&["iperf3", "--json", "--client", &host, "--port", &port, "--time", &seconds]);
    all.extend(to_host.then(|| "--reverse".to_owned()));
    all
}

/// redis-benchmark on the host, with as many requests as take about the time that a run has, if it goes as `before`.
pub fn redis(server: SocketAddr, command: &str, seconds: u16, before: Option<&Sample>) -> Vec<String> {
    let requests = before.map_or(FIRST_REQUESTS, |before| {
        let wanted = before.thousandths.saturating_mul(seconds.into()) / 1000;
        wanted.clamp(FIRST_REQUESTS, MOST_REQUESTS)
    });
    let (host, port, requests) = (server.ip().to_string(), server.port().to_string(), requests.to_string());
    words(&["redis-benchmark", "-h", &host, "-p", &port, "-c", CLIENTS, "-n", &requests, "-t", command, "--csv"])
}

/// `iperf3 -s` in the sandbox.
pub fn iperf_server() -> Vec<String> {
    words(&["iperf3", "--server", "--port", &IPERF_PORT.to_string()])
}

/// `redis-server` in the sandbox: it writes nothing to disks, and wakes up once a second when nobody asks.
pub fn redis_server() -> Vec<String> {
    let port = REDIS_PORT.to_string();
    let listens = ["redis-server", "--port", &port, "--bind", "0.0.0.0", "--protected-mode", "no"];
    words(&[&listens[..], &["--save", "", "--hz", "1", "--dir", "/tmp"]].concat())
}

/// What the program of a workload has said; `None` where that is not what it says.
pub fn parse(tool: Tool, text: &str) -> Option<Sample> {
    match tool {
        Tool::Fio(_, does, _) => parse_fio(does, text),
        Tool::Iperf { .. } => parse_iperf(text),
        Tool::Redis(command) => parse_redis(command, text),
    }
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked to be in range")]
fn thousandths(per_second: f64) -> Option<u64> {
    // The largest is a PB/s.
    (per_second > 0.0 && per_second < 1e15).then_some((per_second * 1000.0).round() as u64)
}

fn parse_fio(does: &str, text: &str) -> Option<Sample> {
    // Before the result there may be remarks.
    let result: Value = serde_json::from_str(text.get(text.find('{')?..)?).ok()?;
    let side = result.pointer("/jobs/0")?.get(if does.ends_with("read") { "read" } else { "write" })?;
    let rate = if does.starts_with("rand") { side.get("iops")? } else { side.get("bw_bytes")? };
    let p99 = side.pointer("/clat_ns/percentile").and_then(|all| all.get("99.000000")?.as_u64());
    Some(Sample { thousandths: thousandths(rate.as_f64()?)?, p99_ns: p99 })
}

/// What iperf3 says of a failure, which its status does not always tell.
pub fn error(text: &str) -> Option<String> {
    let result: Value = serde_json::from_str(text).ok()?;
    Some(result.get("error")?.as_str()?.chars().take(300).collect())
}

fn parse_iperf(text: &str) -> Option<Sample> {
    let result: Value = serde_json::from_str(text).ok()?;
    let bits = result.pointer("/end/sum_received/bits_per_second")?.as_f64()?;
    Some(Sample { thousandths: thousandths(bits / 8.0)?, p99_ns: None })
}

fn parse_redis(command: &str, text: &str) -> Option<Sample> {
    let cells = |line: &str| -> Vec<String> { line.split(',').map(|cell| cell.trim_matches('"').to_owned()).collect() };
    let lines: Vec<Vec<String>> = text.lines().map(cells).collect();
    let head = lines.iter().find(|line| line.first().is_some_and(|cell| cell == "test"))?;
    let line = lines.iter().find(|line| line.first().is_some_and(|cell| cell.eq_ignore_ascii_case(command)))?;
    let of = |name: &str| line.get(head.iter().position(|cell| cell == name)?)?.parse::<f64>().ok();
    // From milliseconds.
    let p99 = of("p99_latency_ms").and_then(|ms| thousandths(ms * 1000.0));
    Some(Sample { thousandths: thousandths(of("rps")?)?, p99_ns: p99 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_read() {
        let fio = r#"fio: a remark
            {"jobs":[{"read":{"bw_bytes":1048576,"iops":256.5,"clat_ns":{"percentile":{"99.000000":9920}}},
            "write":{"bw_bytes":7,"iops":3.0,"clat_ns":{}}}]}"#;
        let of = |does| parse(Tool::Fio(Place::Layer, does, "4k"), fio);
        assert_eq!(of("read"), Some(Sample { thousandths: 1_048_576_000, p99_ns: Some(9920) }));
        assert_eq!(of("randread"), Some(Sample { thousandths: 256_500, p99_ns: Some(9920) }));
        assert_eq!(of("randwrite"), Some(Sample { thousandths: 3000, p99_ns: None }));
        let iperf = r#"{"end":{"sum_sent":{"bits_per_second":9e9},"sum_received":{"bits_per_second":8e9}}}"#;
        assert_eq!(error(r#"{"end":{},"error":"it is busy"}"#).as_deref(), Some("it is busy"));
        assert_eq!(error(iperf), None);
        let sample = parse(Tool::Iperf { to_host: true }, iperf);
        assert_eq!(sample, Some(Sample { thousandths: 1_000_000_000_000, p99_ns: None }));
        let redis =
            "\"test\",\"rps\",\"avg_latency_ms\",\"p99_latency_ms\"\n\"GET\",\"18181.82\",\"0.456\",\"4.967\"\n";
        let of = |command| parse(Tool::Redis(command), redis);
        assert_eq!(of("get"), Some(Sample { thousandths: 18_181_820, p99_ns: Some(4_967_000) }));
        assert_eq!(of("set"), None);
    }

    #[test]
    fn what_is_no_result_is_none() {
        for text in ["", "{", "{}", "[]", "{\"jobs\":[]}", "error", "\"test\",\"rps\"\n\"GET\",\"nan\"\n", "\u{0}"] {
            assert!(ALL.iter().all(|one| parse(one.tool, text).is_none()), "{text}");
        }
        for rate in ["-1", "0", "1e300", "\"x\"", "null"] {
            let text = format!("{{\"end\":{{\"sum_received\":{{\"bits_per_second\":{rate}}}}}}}");
            assert_eq!(parse(Tool::Iperf { to_host: true }, &text), None, "{rate}");
        }
    }

    #[test]
    fn names_are_of_one_or_of_a_group() {
        let named = |name: &str| ALL.iter().filter(|one| one.is_of(name)).count();
        let counts = ["layer", "volume", "net", "redis", "redis-get", "layer-random", "red", ""].map(named);
        assert_eq!(counts, [4, 4, 2, 2, 1, 2, 0, 0]);
    }

    #[test]
    fn so_many_requests_that_they_take_the_time() {
        let requests = |before: Option<u64>| {
            let before = before.map(|thousandths| Sample { thousandths, p99_ns: None });
            let words = redis(([127, 0, 0, 1], 1).into(), "get", 3, before.as_ref());
            words.iter().skip_while(|word| *word != "-n").nth(1).cloned().unwrap()
        };
        assert_eq!([None, Some(1), Some(50_000_500)].map(requests), ["200", "200", "150001"]);
    }

    #[test]
    fn rates_have_three_digits_or_more() {
        assert_eq!(["1.05 MB/s", "3.00 GB/s"], [1_048_576_000, 3_000_000_000_000].map(|rate| Unit::Bytes.text(rate)));
        assert_eq!(["12.3/s", "12346/s"], [12_345, 12_345_678].map(|rate| Unit::Requests.text(rate)));
    }
}
