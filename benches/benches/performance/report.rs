//! What a run writes: one row per shape, route and backend.

use crate::dense;
use crate::floor::Cost;
use crate::machine::Peak;
use crate::measure::Measured;
use serde::Serialize;

/// Everything that was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub quick: bool,
    pub threads: usize,
    /// Wall clock of the whole run.
    pub seconds: f64,
    /// What floors are computed from.
    pub peaks: Vec<Peak>,
    pub targets: Vec<Target>,
    pub rows: Vec<Row>,
    pub break_even: Vec<BreakEven>,
    /// What was left out, and why.
    pub left_out: Vec<String>,
}

/// One measurement beside its alternatives.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// Rows of one section belong to one table.
    pub section: &'static str,
    /// What is done, in words.
    pub what: String,
    pub shape: String,
    pub tokens: usize,
    pub routes: &'static str,
    pub backend: String,
    pub threads: usize,
    pub ours: Measured,
    /// What it is compared with, measured in turns with it.
    pub others: Vec<Measured>,
    /// The fastest of the others.
    pub best: Option<String>,
    /// Time of the fastest other by ours: above 1 where we are faster.
    pub ratio: Option<f64>,
    pub microseconds_per_query: Option<f64>,
    pub cost: Option<Cost>,
    pub floor_seconds: Option<f64>,
    /// Our time by the floor.
    pub over_floor: Option<f64>,
}

/// From how many queries per tree on the tree pays.
#[derive(Clone, Debug, Serialize)]
pub struct BreakEven {
    pub backend: String,
    pub tokens: usize,
    /// Building the tree and projecting its nodes, per tree.
    pub build_seconds: f64,
    pub tree_seconds_per_query: f64,
    /// The fastest dense alternative: projecting keys and values, per context.
    pub dense_context_seconds: f64,
    pub dense_seconds_per_query: f64,
    /// `None` where dense attention costs no more per query.
    pub queries: Option<f64>,
}

/// A number that the library is to reach.
#[derive(Clone, Debug, Serialize)]
pub struct Target {
    pub number: u8,
    pub wanted: String,
    pub backend: String,
    pub measured: String,
    pub reached: bool,
}

impl Report {
    pub fn new(quick: bool, threads: usize, peaks: Vec<Peak>) -> Self {
        Self {
            quick,
            threads,
            seconds: 0.0,
            peaks,
            targets: Vec::new(),
            rows: Vec::new(),
            break_even: Vec::new(),
            left_out: Vec::new(),
        }
    }

    /// Adds a row, works out what follows from it, and shows it.
    pub fn add(&mut self, mut row: Row) {
        if let Some(best) = dense::best(&row.others) {
            row.ratio = Some(best.seconds / row.ours.seconds);
            row.best = Some(best.name.clone());
        }
        let peak = self.peaks.iter().find(|peak| peak.threads == row.threads);
        if let (Some(cost), Some(peak)) = (&row.cost, peak) {
            let floor = cost.seconds(peak);
            row.floor_seconds = Some(floor);
            row.over_floor = Some(row.ours.seconds / floor);
        }
        let mut line = format!(
            "   {:<8} {} · {} · {}: {:.2} ms",
            row.backend,
            row.what,
            row.shape,
            row.routes,
            row.ours.seconds * 1e3
        );
        for other in &row.others {
            line += &format!(", {} {:.2} ms", other.name, other.seconds * 1e3);
        }
        if let Some(over) = row.over_floor {
            line += &format!(", {over:.1} × floor");
        }
        eprintln!("{line}");
        self.rows.push(row);
    }

    /// Says that something was not measured.
    pub fn leave_out(&mut self, reason: String) {
        eprintln!("   left out: {reason}");
        self.left_out.push(reason);
    }

    /// The rows of a section on a backend.
    pub fn of<'a>(&'a self, section: &'a str, backend: &'a str) -> impl Iterator<Item = &'a Row> {
        self.rows
            .iter()
            .filter(move |row| row.section == section && row.backend == backend)
    }
}
