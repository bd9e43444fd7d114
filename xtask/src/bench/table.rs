//! From what the benchmark measured to tables.

use std::fmt::Write;

use crate::columns::{Column, table};
use crate::table::thousands;

use super::numbers::{BreakEven, Report, Row, Target};

/// The benchmark's sections, with what their tables are about.
const SECTIONS: [(&str, &str); 7] = [
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
        "leaf",
        "Attention within leaves beside dense attention, each by its own kernels",
    ),
    (
        "gpu",
        "Kernels of CubeCL beside the reference compositions on the same device",
    ),
];

/// Everything in one table, for the terminal.
pub fn terminal(report: &Report) -> String {
    let what: Column<Row> = ("what", |row| format!("{}: {}", row.section, row.what));
    let mut parts = vec![measurements(&report.rows, what)];
    if !report.break_even.is_empty() {
        parts.push(break_even(report));
    }
    if !report.targets.is_empty() {
        parts.push(targets(report));
    }
    parts.push(notes(report));
    parts.join("\n")
}

/// The generated part of the page, after the lines about machine and command.
pub fn page(report: &Report) -> String {
    let mut text = format!("{}\n## Targets\n\n{}", notes(report), targets(report));
    for (section, title) in SECTIONS {
        let mut rows = report
            .rows
            .iter()
            .filter(|row| row.section == section)
            .peekable();
        if rows.peek().is_some() {
            let table = measurements(rows, ("what", |row| row.what.clone()));
            text += &format!("\n## {title}\n\n{table}");
        }
    }
    if !report.break_even.is_empty() {
        let table = break_even(report);
        text += &format!("\n## From how many queries on a tree pays\n\n{table}");
    }
    text
}

fn measurements<'a>(rows: impl IntoIterator<Item = &'a Row>, what: Column<Row>) -> String {
    let columns: [Column<Row>; 13] = [
        what,
        ("shape", |row| row.shape.clone()),
        ("routes", |row| row.routes.to_string()),
        ("backend", |row| row.backend.clone()),
        ("threads", |row| row.threads.to_string()),
        ("time", |row| time(row.ours.seconds)),
        ("per query", |row| {
            or_dash(row.microseconds_per_query, |time| format!("{time:.2} µs"))
        }),
        ("compared with", |row| {
            let others = row
                .others
                .iter()
                .map(|other| format!("{} {}", other.name, time(other.seconds)));
            or_dash(others.reduce(|all, other| all + ", " + &other), |all| all)
        }),
        ("ratio", |row| or_dash(row.ratio, ratio)),
        ("floor", |row| or_dash(row.floor_seconds, time)),
        ("time / floor", |row| {
            or_dash(row.over_floor, |over| format!("{over:.1}"))
        }),
        ("peak memory", |row| or_dash(row.ours.peak_bytes, memory)),
        ("theirs", |row| {
            let best = row
                .others
                .iter()
                .find(|other| Some(&other.name) == row.best.as_ref());
            or_dash(best.and_then(|best| best.peak_bytes), memory)
        }),
    ];
    table(rows, 4, &columns)
}

fn break_even(report: &Report) -> String {
    let columns: [Column<BreakEven>; 7] = [
        ("context", |row| thousands(row.tokens as u64)),
        ("backend", |row| row.backend.clone()),
        ("tree and index", |row| time(row.build_seconds)),
        ("tree, per query", |row| time(row.tree_seconds_per_query)),
        ("dense keys and values", |row| {
            time(row.dense_context_seconds)
        }),
        ("dense, per query", |row| time(row.dense_seconds_per_query)),
        ("queries per context", |row| {
            let queries = row.queries.map(|queries| thousands(queries.ceil() as u64));
            queries.unwrap_or("never".into())
        }),
    ];
    table(&report.break_even, 2, &columns)
}

fn targets(report: &Report) -> String {
    let columns: [Column<Target>; 5] = [
        ("target", |target| target.number.to_string()),
        ("wanted", |target| target.wanted.clone()),
        ("backend", |target| target.backend.clone()),
        ("measured", |target| target.measured.clone()),
        ("reached", |target| {
            if target.reached { "yes" } else { "**no**" }.into()
        }),
    ];
    table(&report.targets, columns.len(), &columns)
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
    if ratio < 1.0 {
        format!("{ratio:.2} ×")
    } else {
        format!("{ratio:.1} ×")
    }
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
        assert!(text.contains(" 1,235 |") && text.contains(" never |"));
        assert!(text.contains("Left out: no GPU."));
    }

    #[test]
    fn the_terminal_gets_every_row_in_one_table() {
        let text = terminal(&report());
        let (table, _) = text.split_once("\n\n").unwrap();
        assert_eq!(table.lines().count(), 4);
        assert!(table.contains("search: tree search") && table.contains("training: tree search"));
    }
}
