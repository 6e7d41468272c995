// SPDX-License-Identifier: Apache-2.0
//! Plots as SVG. They are as wide as a phone and grow with the page; colours are classes of the page's style.

use std::fmt::Write;

use super::statistics::Summary;

/// Width of a plot in its own units, which are pixels on a phone.
const WIDTH: f64 = 340.0;
/// Height of the text below an axis: the times, and what kind of axis it is where it is not the usual one.
const AXIS: f64 = 32.0;
/// Beyond this ratio of the longest to the shortest time, an axis is logarithmic.
const WIDE: f64 = 20.0;

/// Text that is nothing but text, also within an attribute.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            // XML has no way to write other control characters.
            c if c.is_control() => escaped.push('\u{fffd}'),
            c => escaped.push(c),
        }
    }
    escaped
}

/// Nanoseconds as people write them.
#[allow(clippy::cast_precision_loss, reason = "three digits are shown")]
pub fn time(ns: u64) -> String {
    let ms = ns as f64 / 1e6;
    match ms {
        0.0 => "0".to_owned(),
        ..0.995 => format!("{:.0} µs", ms * 1000.0),
        ..9.995 => format!("{ms:.2} ms"),
        ..99.95 => format!("{ms:.1} ms"),
        ..9999.5 => format!("{ms:.0} ms"),
        _ => format!("{:.1} s", ms / 1000.0),
    }
}

/// From times, or other figures, to places.
struct Scale {
    text: fn(u64) -> String,
    low: f64,
    high: f64,
    logarithmic: bool,
}

impl Scale {
    /// One for times of this range. `from_zero` where lengths are compared and the range is not too wide for that.
    #[allow(clippy::cast_precision_loss, reason = "places on a screen")]
    fn new(shortest: u64, longest: u64, from_zero: bool) -> Self {
        let (shortest, longest) = (shortest.max(1) as f64, longest.max(2) as f64);
        let logarithmic = longest / shortest > WIDE;
        let low = match (logarithmic, from_zero) {
            (true, true) => shortest / 2.0,
            (true, false) => shortest * 0.9,
            (false, true) => 0.0,
            (false, false) => shortest * 0.95,
        };
        Self { text: time, low, high: longest * 1.05, logarithmic }
    }

    #[allow(clippy::cast_precision_loss, reason = "places on a screen")]
    fn place(&self, ns: u64) -> f64 {
        let ns = (ns as f64).clamp(self.low, self.high);
        let part = match self.logarithmic {
            true => (ns / self.low).ln() / (self.high / self.low).ln(),
            false => (ns - self.low) / (self.high - self.low),
        };
        part * WIDTH
    }

    /// Round times for the axis: at most five.
    fn ticks(&self) -> Vec<u64> {
        let mut ticks = Vec::new();
        let mut unit = 1u64;
        // 1, 2 and 5 times each power of ten, as steps or as ticks themselves.
        let rounds = std::iter::from_fn(|| {
            let rounds = [unit, 2 * unit, 5 * unit];
            unit = unit.checked_mul(10).filter(|unit| *unit < 1 << 60)?;
            Some(rounds)
        });
        let rounds: Vec<u64> = rounds.flatten().collect();
        let inside = |ns: &u64| (self.low..=self.high).contains(&to_f64(*ns));
        if self.logarithmic {
            ticks.extend(rounds.iter().copied().filter(inside));
            while ticks.len() > 5 {
                // Every other one goes.
                let mut at = 0;
                ticks.retain(|_| {
                    at += 1;
                    at % 2 == 1
                });
            }
        } else if let Some(step) = rounds.iter().copied().find(|step| (self.high - self.low) / to_f64(*step) <= 5.0) {
            ticks.extend((0..).map(|n| n * step).take_while(|ns| to_f64(*ns) <= self.high).filter(inside));
        }
        ticks
    }

    fn axis(&self, svg: &mut String, height: f64) {
        if self.logarithmic {
            // Writing to a String cannot fail.
            let _ = write!(svg, r#"<text class="tick" x="0" y="{:.1}">logarithmic axis</text>"#, height + 27.0);
        }
        for ns in self.ticks() {
            let x = self.place(ns);
            let _ = write!(svg, r#"<line class="grid" x1="{x:.1}" y1="0" x2="{x:.1}" y2="{height:.1}"/>"#);
            let anchor = if x < 20.0 {
                "start"
            } else if x > WIDTH - 24.0 {
                "end"
            } else {
                "middle"
            };
            let y = height + 14.0;
            let _ = write!(
                svg,
                r#"<text class="tick" x="{x:.1}" y="{y:.1}" text-anchor="{anchor}">{}</text>"#,
                (self.text)(ns)
            );
        }
    }
}

#[allow(clippy::cast_precision_loss, reason = "places on a screen")]
fn to_f64(ns: u64) -> f64 {
    ns as f64
}

fn open(title: &str, height: f64) -> String {
    let title = escape(title);
    format!(r#"<svg role="img" viewBox="0 0 {WIDTH} {:.0}"><title>{title}</title>"#, height + AXIS)
}

/// A bar for each name, up to the median, with its confidence interval. `class` colours it.
pub fn bars(title: &str, rows: &[(&str, usize, &Summary)]) -> String {
    bars_of(title, rows, time)
}

/// The same of other figures, which `text` writes.
pub fn bars_of(title: &str, rows: &[(&str, usize, &Summary)], text: fn(u64) -> String) -> String {
    const ROW: f64 = 36.0;
    let height = ROW * rows.iter().map(|_| 1.0).sum::<f64>();
    let mut svg = open(title, height);
    let shortest = rows.iter().map(|row| row.2.ci95_ns[0]).min().unwrap_or(1);
    let longest = rows.iter().map(|row| row.2.ci95_ns[1]).max().unwrap_or(2);
    let scale = Scale { text, ..Scale::new(shortest, longest, true) };
    scale.axis(&mut svg, height);
    let mut y = 0.0;
    for (name, class, summary) in rows {
        let [low, high] = summary.ci95_ns;
        let (line, bar, middle) = (y + 13.0, y + 18.0, y + 25.0);
        let (length, from, to) = (scale.place(summary.median_ns), scale.place(low), scale.place(high));
        let label = format!("{name}: {} ({} to {})", text(summary.median_ns), text(low), text(high));
        let label = escape(&label);
        let _ = write!(svg, r#"<text x="0" y="{line:.1}">{label}</text>"#);
        let _ = write!(svg, r#"<rect class="c{class}" x="0" y="{bar:.1}" width="{length:.1}" height="14" rx="2"/>"#);
        let ends = format!("M{from:.1} {bar:.1}v14M{to:.1} {bar:.1}v14");
        let _ = write!(svg, r#"<path class="whisker" d="M{from:.1} {middle:.1}H{to:.1}{ends}"/>"#);
        y += ROW;
    }
    svg + "</svg>"
}

/// Which part of the runs took no longer than a time: a line for each, with its name at its end in the legend.
pub fn ecdf(title: &str, rows: &[(&str, usize, Vec<u64>)]) -> String {
    const HEIGHT: f64 = 160.0;
    let mut svg = open(title, HEIGHT);
    let all = || rows.iter().flat_map(|row| row.2.iter().copied());
    let scale = Scale::new(all().min().unwrap_or(1), all().max().unwrap_or(2), false);
    scale.axis(&mut svg, HEIGHT);
    for (part, y) in [("100 %", 0.0), ("50 %", HEIGHT / 2.0), ("0", HEIGHT)] {
        let below = y + if y == 0.0 { 10.0 } else { -3.0 };
        let _ = write!(
            svg,
            r#"<line class="grid" x1="0" y1="{y}" x2="{WIDTH}" y2="{y}"/><text class="tick" x="0" y="{below}">{part}</text>"#
        );
    }
    for (name, class, times) in rows {
        let mut sorted = times.clone();
        sorted.sort_unstable();
        let step = sorted.iter().map(|_| 1.0).sum::<f64>();
        let (mut path, mut below) =
            (format!("M{:.1} {HEIGHT}", scale.place(sorted.first().copied().unwrap_or(1))), 0.0);
        for ns in sorted {
            below += 1.0;
            let _ = write!(path, "H{:.1}V{:.1}", scale.place(ns), HEIGHT * (1.0 - below / step));
        }
        let _ = write!(svg, r#"<path class="line l{class}" d="{path}H{WIDTH}"><title>{}</title></path>"#, escape(name));
    }
    svg + "</svg>"
}

/// A value for each step of a series, for each name: steps are as far apart as each other, values on an axis from 0, or on
/// a logarithmic one where they are very different.
pub fn series(title: &str, steps: &[String], rows: &[(&str, usize, Vec<Option<f64>>)], unit: &str) -> String {
    const HEIGHT: f64 = 180.0;
    const MARGIN: f64 = 14.0;
    let mut svg = open(title, HEIGHT);
    let all = || rows.iter().flat_map(|row| row.2.iter().flatten().copied()).filter(|value| *value > 0.0);
    let (low, high) = (all().fold(f64::MAX, f64::min), all().fold(0.0, f64::max));
    if high <= 0.0 {
        return svg + "</svg>";
    }
    let logarithmic = high / low > WIDE;
    let (low, high) = if logarithmic { (low / 1.3, high * 1.3) } else { (0.0, high * 1.1) };
    let place = |value: f64| {
        let part = if logarithmic { (value / low).ln() / (high / low).ln() } else { (value - low) / (high - low) };
        HEIGHT * (1.0 - part.clamp(0.0, 1.0))
    };
    let across = |at: f64| MARGIN + at * (WIDTH - 2.0 * MARGIN) / (to_f64(steps.len() as u64) - 1.0).max(1.0);
    let label = |value: f64| if value >= 9.95 { format!("{value:.0}") } else { format!("{value:.2}") };
    let middle = if logarithmic { (low * high).sqrt() } else { high / 2.0 };
    for value in [low, middle, high].into_iter().filter(|value| *value > 0.0) {
        let y = place(value);
        let text = format!("{} {unit}", label(value));
        let _ = write!(
            svg,
            r#"<line class="grid" x1="0" y1="{y:.1}" x2="{WIDTH}" y2="{y:.1}"/><text class="tick" x="0" y="{:.1}">{}</text>"#,
            if y < 10.0 { y + 10.0 } else { y - 3.0 },
            escape(&text)
        );
    }
    let mut at = 0.0;
    for step in steps {
        let (x, y) = (across(at), HEIGHT + 14.0);
        let _ = write!(svg, r#"<text class="tick" x="{x:.1}" y="{y:.1}" text-anchor="middle">{}</text>"#, escape(step));
        at += 1.0;
    }
    if logarithmic {
        let _ = write!(svg, r#"<text class="tick" x="0" y="{:.1}">logarithmic axis</text>"#, HEIGHT + 27.0);
    }
    for (name, class, values) in rows {
        let (mut path, mut dots, mut at) = (String::new(), String::new(), 0.0);
        for value in values {
            if let Some(value) = value.filter(|value| *value > 0.0) {
                let (x, y) = (across(at), place(value));
                let _ = write!(path, "{}{x:.1} {y:.1}", if path.is_empty() { "M" } else { "L" });
                let _ = write!(dots, r#"<circle class="c{class}" cx="{x:.1}" cy="{y:.1}" r="3"/>"#);
            }
            at += 1.0;
        }
        let name = escape(name);
        let _ = write!(svg, r#"<path class="line l{class}" d="{path}"><title>{name}</title></path>{dots}"#);
    }
    svg + "</svg>"
}

/// Stages one after the other: each from where the one before was reached.
pub fn waterfall(title: &str, steps: &[(&str, u64)]) -> String {
    const ROW: f64 = 32.0;
    let height = ROW * steps.iter().map(|_| 1.0).sum::<f64>();
    let mut svg = open(title, height);
    // Lengths add up on a linear axis only.
    let longest = steps.iter().map(|step| step.1).max().unwrap_or(2);
    let scale = Scale { text: time, low: 0.0, high: to_f64(longest.max(2)) * 1.02, logarithmic: false };
    scale.axis(&mut svg, height);
    let (mut y, mut before) = (0.0, 0);
    for (stage, at) in steps {
        let (from, to) = (scale.place(before), scale.place(*at));
        let (text, bar, width) = (y + 13.0, y + 17.0, (to - from).max(1.0));
        let label = escape(&format!("{stage}: +{}, at {}", time(at.saturating_sub(before)), time(*at)));
        let _ = write!(
            svg,
            r#"<text x="0" y="{text:.1}">{label}</text><rect class="c0" x="{from:.1}" y="{bar:.1}" width="{width:.1}" height="11" rx="1"/>"#
        );
        (y, before) = (y + ROW, *at);
    }
    svg + "</svg>"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_texts_are_written_for_people() {
        for (ns, text) in
            [(0, "0"), (400_000, "400 µs"), (1_234_567, "1.23 ms"), (45_600_000, "45.6 ms"), (12_000_000_000, "12.0 s")]
        {
            assert_eq!(time(ns), text);
        }
        assert_eq!(escape("<a b=\"c\">&'\u{1b}"), "&lt;a b=&quot;c&quot;&gt;&amp;&#39;\u{fffd}");
    }

    #[test]
    fn a_series_has_a_point_for_each_value_and_stays_inside() {
        let steps: Vec<String> = ["1", "2", "4"].map(str::to_owned).into();
        for values in [[Some(1.0), Some(2.0), Some(3.0)], [Some(0.5), Some(500.0), Some(10.0)]] {
            let svg = series("t", &steps, &[("a", 0, values.to_vec()), ("b", 1, vec![None, Some(1.0), None])], "/s");
            assert_eq!(svg.matches("<circle").count(), 4, "{svg}");
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        }
        let none = series("t", &steps, &[("a", 0, vec![None; 3])], "/s");
        assert!(none.ends_with("</svg>") && !none.contains("circle"));
    }

    #[test]
    fn places_keep_the_order_and_stay_inside() {
        for (low, high) in [(10, 12), (1_000_000, 900_000_000), (5, 5)] {
            for from_zero in [true, false] {
                let scale = Scale::new(low, high, from_zero);
                assert!(scale.place(low) <= scale.place(high));
                assert!([0, low, high, u64::MAX].iter().all(|ns| (0.0..=WIDTH).contains(&scale.place(*ns))));
            }
        }
        let scale = Scale::new(10, 100, true);
        assert!((scale.place(100) / scale.place(50) - 2.0).abs() < 1e-9, "lengths are as times");
    }

    #[test]
    fn an_axis_has_few_and_round_ticks() {
        assert_eq!(Scale::new(60_000_000, 100_000_000, true).ticks(), [0, 50_000_000, 100_000_000]);
        for (low, high) in [(1_000_000, 2_000_000_000), (7_000_000, 9_000_000), (1, 1 << 50)] {
            let ticks = Scale::new(low, high, false).ticks();
            assert!((1..=5).contains(&ticks.len()), "{low} to {high}: {ticks:?}");
        }
    }
}
