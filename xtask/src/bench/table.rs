//! From what the benchmark measured to tables.

use std::fmt::Write;

use serde::Deserialize;

/// What the benchmark writes, as far as tables show it.
#[derive(Clone, Debug, Deserialize)]
pub struct Report {
    pub quick: bool,
    pub threads: usize,
    pub seconds: f64,
    pub peaks: Vec<Peak>,
    pub targets: Vec<Target>,
    pub rows: Vec<Row>,
    pub break_even: Vec<BreakEven>,
    pub left_out: Vec<String>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Peak {
    pub threads: usize,
    pub flops_per_second: f64,
    pub bytes_per_second: f64,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Target {
    pub number: u8,
    pub wanted: String,
    pub backend: String,
    pub measured: String,
    pub reached: bool,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Row {
    pub section: String,
    pub what: String,
    pub shape: String,
    pub routes: String,
    pub backend: String,
    pub threads: usize,
    pub ours: Measured,
    pub others: Vec<Measured>,
    pub best: Option<String>,
    pub ratio: Option<f64>,
    pub microseconds_per_query: Option<f64>,
    pub floor_seconds: Option<f64>,
    pub over_floor: Option<f64>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Measured {
    pub name: String,
    pub seconds: f64,
    pub peak_bytes: Option<u64>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct BreakEven {
    pub backend: String,
    pub tokens: usize,
    pub build_seconds: f64,
    pub tree_seconds_per_query: f64,
    pub dense_context_seconds: f64,
    pub dense_seconds_per_query: f64,
    pub queries: Option<f64>,
}

/// The benchmark's sections, with what their tables are about.
const SECTIONS: [(&str, &str); 6] = [
    (
        "search",
        "Tree search, index given, beside the core of dense attention",
    ),
    (
        "layer",
        "With tree build and projections, beside dense attention with its projections",
    ),
    ("scaling", "One thread, growing context"),
    (
        "gradient",
        "Forward and backward, beside libtorch's autograd of its fused attention",
    ),
    ("training", "Training step"),
    (
        "gpu",
        "Kernels of CubeCL beside the reference compositions on the same device",
    ),
];

/// A table of text: the first row is its head.
struct Table {
    rows: Vec<Vec<String>>,
    /// Columns from here on are numbers.
    numbers_from: usize,
}

impl Table {
    fn new(head: &[&str], numbers_from: usize) -> Self {
        Self {
            rows: vec![head.iter().map(ToString::to_string).collect()],
            numbers_from,
        }
    }

    fn markdown(&self) -> String {
        let mut text = String::new();
        for (at, row) in self.rows.iter().enumerate() {
            let _ = writeln!(text, "| {} |", row.join(" | "));
            if at == 0 {
                let line = |column| {
                    if column < self.numbers_from {
                        "---|"
                    } else {
                        "---:|"
                    }
                };
                let lines: String = (0..row.len()).map(line).collect();
                let _ = writeln!(text, "|{lines}");
            }
        }
        text
    }

    fn terminal(&self) -> String {
        let columns = self.rows.first().map_or(0, Vec::len);
        let width = |column: usize| {
            let cells = self.rows.iter().map(|row| row[column].chars().count());
            cells.max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (column, cell) in row.iter().enumerate() {
                let width = widths[column];
                let _ = match column < self.numbers_from {
                    true => write!(line, "{cell:<width$}  "),
                    false => write!(line, "{cell:>width$}  "),
                };
            }
            let _ = writeln!(text, "{}", line.trim_end());
        }
        text
    }
}

/// Everything in one table, for the terminal.
pub fn terminal(report: &Report) -> String {
    let mut text = measurements(report.rows.iter(), true).terminal();
    if !report.break_even.is_empty() {
        let _ = write!(text, "\n{}", break_even(report).terminal());
    }
    if !report.targets.is_empty() {
        let _ = write!(text, "\n{}", targets(report).terminal());
    }
    let _ = write!(text, "\n{}", notes(report));
    text
}

/// The generated part of the page, after the lines about machine and command.
pub fn page(report: &Report) -> String {
    let mut text = notes(report);
    let _ = write!(text, "\n## Targets\n\n{}", targets(report).markdown());
    for (section, title) in SECTIONS {
        let mut rows = report
            .rows
            .iter()
            .filter(|row| row.section == section)
            .peekable();
        if rows.peek().is_some() {
            let table = measurements(rows, false).markdown();
            let _ = write!(text, "\n## {title}\n\n{table}");
        }
    }
    if !report.break_even.is_empty() {
        let table = break_even(report).markdown();
        let _ = write!(text, "\n## From how many queries on a tree pays\n\n{table}");
    }
    text
}

fn measurements<'a>(rows: impl Iterator<Item = &'a Row>, named: bool) -> Table {
    let head = [
        "what",
        "shape",
        "routes",
        "backend",
        "threads",
        "time",
        "per query",
        "compared with",
        "ratio",
        "floor",
        "time / floor",
        "peak memory",
        "theirs",
    ];
    let mut table = Table::new(&head, 4);
    for row in rows {
        let best = row
            .others
            .iter()
            .find(|other| Some(&other.name) == row.best.as_ref());
        let others: Vec<String> = row
            .others
            .iter()
            .map(|other| format!("{} {}", other.name, time(other.seconds)))
            .collect();
        table.rows.push(vec![
            match named {
                true => format!("{}: {}", row.section, row.what),
                false => row.what.clone(),
            },
            row.shape.clone(),
            row.routes.clone(),
            row.backend.clone(),
            row.threads.to_string(),
            time(row.ours.seconds),
            or_dash(row.microseconds_per_query, |time| format!("{time:.2} µs")),
            match others.is_empty() {
                true => "–".into(),
                false => others.join(", "),
            },
            or_dash(row.ratio, ratio),
            or_dash(row.floor_seconds, time),
            or_dash(row.over_floor, |over| format!("{over:.1}")),
            or_dash(row.ours.peak_bytes, memory),
            or_dash(best.and_then(|best| best.peak_bytes), memory),
        ]);
    }
    table
}

fn break_even(report: &Report) -> Table {
    let head = [
        "context",
        "backend",
        "tree and index",
        "tree, per query",
        "dense keys and values",
        "dense, per query",
        "queries per context",
    ];
    let mut table = Table::new(&head, 2);
    for row in &report.break_even {
        table.rows.push(vec![
            thousands(row.tokens as u64),
            row.backend.clone(),
            time(row.build_seconds),
            time(row.tree_seconds_per_query),
            time(row.dense_context_seconds),
            time(row.dense_seconds_per_query),
            row.queries
                .map_or("never".into(), |queries| thousands(queries.ceil() as u64)),
        ]);
    }
    table
}

fn targets(report: &Report) -> Table {
    let head = ["target", "wanted", "backend", "measured", "reached"];
    let mut table = Table::new(&head, head.len());
    for target in &report.targets {
        table.rows.push(vec![
            target.number.to_string(),
            target.wanted.clone(),
            target.backend.clone(),
            target.measured.clone(),
            if target.reached { "yes" } else { "**no**" }.into(),
        ]);
    }
    table
}

/// What the machine can do at best, and what is not in the tables.
fn notes(report: &Report) -> String {
    let mut text = format!("{} threads where a row says nothing else.", report.threads);
    for peak in &report.peaks {
        let _ = write!(
            text,
            " Best seen with {} thread{}: {:.0} GFLOP/s in a matrix product, {:.1} GB/s in a triad.",
            peak.threads,
            if peak.threads == 1 { "" } else { "s" },
            peak.flops_per_second / 1e9,
            peak.bytes_per_second / 1e9
        );
    }
    if report.quick {
        text.push_str(" Small shapes and few samples: the numbers are not to be kept.");
    }
    text.push('\n');
    for reason in &report.left_out {
        let _ = writeln!(text, "\nLeft out: {reason}.");
    }
    text
}

fn or_dash<T>(value: Option<T>, text: impl Fn(T) -> String) -> String {
    value.map_or("–".into(), text)
}

/// Three digits that count.
fn time(seconds: f64) -> String {
    let (value, unit) = match seconds {
        seconds if seconds >= 1.0 => (seconds, "s"),
        seconds if seconds >= 1e-3 => (seconds * 1e3, "ms"),
        seconds => (seconds * 1e6, "µs"),
    };
    let digits = match value {
        value if value >= 100.0 => 0,
        value if value >= 10.0 => 1,
        _ => 2,
    };
    format!("{value:.digits$} {unit}")
}

/// Of times. Below 1 the second digit counts too.
fn ratio(ratio: f64) -> String {
    match ratio < 1.0 {
        true => format!("{ratio:.2} ×"),
        false => format!("{ratio:.1} ×"),
    }
}

/// With a comma between groups of three digits.
fn thousands(number: u64) -> String {
    let digits = number.to_string().into_bytes();
    let groups: Vec<_> = digits
        .rchunks(3)
        .rev()
        .map(String::from_utf8_lossy)
        .collect();
    groups.join(",")
}

fn memory(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use serde_json::json;

    pub fn report() -> Report {
        let measured = |name: &str, seconds: f64| json!({"name": name, "seconds": seconds, "fastest": seconds, "samples": 7, "peak_bytes": 2_000_000});
        let row = |section: &str, backend: &str, best: Option<&str>| {
            json!({
                "section": section, "what": "tree search", "shape": "1 tree", "tokens": 1024,
                "routes": "learned", "backend": backend, "threads": 2,
                "ours": measured(backend, 0.0125),
                "others": best.map(|name| measured(name, 0.25)).into_iter().collect::<Vec<_>>(),
                "best": best, "ratio": best.map(|_| 20.0), "microseconds_per_query": 1.5,
                "cost": {"flops": 1.0, "bytes": 1.0}, "floor_seconds": 0.0025, "over_floor": 5.0,
            })
        };
        serde_json::from_value(json!({
            "quick": false, "threads": 2, "seconds": 600.0,
            "peaks": [{"threads": 2, "flops_per_second": 2e11, "bytes_per_second": 3e10}],
            "targets": [{"number": 1, "wanted": "fast", "backend": "flex", "measured": "20.0 ×", "reached": true}],
            "rows": [row("search", "flex", Some("libtorch")), row("training", "tch", None)],
            "break_even": [
                {"backend": "flex", "tokens": 2048, "build_seconds": 1e-3, "tree_seconds_per_query": 1e-6, "dense_context_seconds": 1e-4, "dense_seconds_per_query": 2e-6, "queries": 1234.5},
                {"backend": "flex", "tokens": 128, "build_seconds": 1e-3, "tree_seconds_per_query": 1e-6, "dense_context_seconds": 1e-4, "dense_seconds_per_query": 1e-6, "queries": null},
            ],
            "left_out": ["no GPU"],
        }))
        .unwrap()
    }

    #[test]
    fn digits_come_in_threes() {
        assert_eq!(thousands(12), "12");
        assert_eq!(thousands(1_234_567), "1,234,567");
    }

    #[test]
    fn a_ratio_below_one_keeps_its_digits() {
        assert_eq!([20.04, 0.04].map(ratio), ["20.0 ×", "0.04 ×"]);
    }

    #[test]
    fn times_have_three_digits() {
        let texts = [2.0, 0.1234, 0.01234, 0.001234, 1.5e-6].map(time);
        assert_eq!(texts, ["2.00 s", "123 ms", "12.3 ms", "1.23 ms", "1.50 µs"]);
    }

    #[test]
    fn tables_have_as_many_cells_in_every_row() {
        let text = page(&report());
        let mut expected = None;
        for line in text.lines() {
            let cells = line.matches('|').count();
            match (line.starts_with('|'), expected) {
                (false, _) => expected = None,
                (true, None) => expected = Some(cells),
                (true, Some(expected)) => assert_eq!(cells, expected, "{line}"),
            }
        }
        assert!(text.contains("| libtorch 250 ms | 20.0 × |"), "{text}");
        assert!(text.contains("| 1,235 |") && text.contains("| never |"));
        assert!(text.contains("Left out: no GPU."));
    }

    #[test]
    fn the_terminal_gets_every_row_in_one_table() {
        let text = terminal(&report());
        let (table, _) = text.split_once("\n\n").unwrap();
        assert_eq!(table.lines().count(), 3);
        assert!(table.contains("search: tree search") && table.contains("training: tree search"));
    }
}
