//! How a run fills its report: one row per shape, route and backend.

use crate::dense;
use crate::numbers::{Peak, Report, Row};

impl Report {
    pub fn new(quick: bool, threads: usize, peaks: Vec<Peak>) -> Self {
        Self {
            quick,
            threads,
            peaks,
            ..Self::default()
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
