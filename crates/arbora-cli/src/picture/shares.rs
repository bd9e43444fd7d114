//! How things spread over a few places, as a table of coloured shares: rows are the things.

use std::path::Path;

use anyhow::{Result, bail, ensure};

use super::between;
use super::svg::{Anchor, Colour, INK, PAPER, Scene};

/// Rows of shares.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SharesPicture {
    /// Stands above the table.
    pub title: String,
    /// The names of the places.
    pub columns: Vec<String>,
    /// What spreads.
    pub rows: Vec<SharesRow>,
}

/// One row.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SharesRow {
    /// Its name.
    pub name: String,
    /// The share at each place, from 0 to 1. Empty for a heading.
    pub shares: Vec<f64>,
}

const MARGIN: i32 = 14;
const TITLE: i32 = 34;
const NAMES: i32 = 260;
const ROW: i32 = 20;
/// Width of a column: what a percentage needs, and less where there are many.
const COLUMN: i32 = 52;
const NARROW: i32 = 16;
/// From this many columns on there is no room for numbers.
const CROWDED: usize = 24;
/// The colours of a share of 0, nearly white, and of 1.
const SHARES: [Colour; 2] = [[243; 3], [0, 90, 156]];

/// Draws the rows, as `NAME.svg` and `NAME.png`.
///
/// # Errors
/// If there are no columns, a row has another number of shares or one outside of 0 to 1, or a file cannot be
/// written.
pub fn draw(picture: &SharesPicture, name: &Path) -> Result<()> {
    lay_out(picture)?.save(name)
}

fn lay_out(picture: &SharesPicture) -> Result<Scene> {
    let count = picture.columns.len();
    ensure!(count > 0, "a table of shares needs at least one column");
    for row in picture.rows.iter().filter(|row| !row.shares.is_empty()) {
        ensure!(
            row.shares.len() == count,
            "row {:?}: expected {count} shares, got {}",
            row.name,
            row.shares.len()
        );
        let is_share = |share: &f64| (0.0..=1.0 + 1e-9).contains(share);
        if let Some(odd) = row.shares.iter().find(|share| !is_share(share)) {
            bail!("row {:?}: share: expected 0 to 1, got {odd}", row.name);
        }
    }
    let numbers = count < CROWDED;
    let column = if numbers { COLUMN } else { NARROW };
    let across = MARGIN + NAMES + column * count.max(4) as i32 + MARGIN;
    let top = MARGIN + TITLE + ROW;
    let mut scene = Scene::new([across, top + ROW * picture.rows.len() as i32 + MARGIN]);
    let left = |at: usize| MARGIN + NAMES + column * at as i32;
    let place = [MARGIN, MARGIN + TITLE / 2 - 4];
    scene.fitted_text(
        &picture.title,
        15,
        Anchor::Start,
        place,
        across - 2 * MARGIN,
    );
    for (at, name) in picture.columns.iter().enumerate().filter(|_| numbers) {
        let place = [left(at) + column / 2, top - ROW / 2];
        scene.fitted_text(name, 11, Anchor::Middle, place, column - 4);
    }
    for (at, row) in picture.rows.iter().enumerate() {
        let y = top + ROW * at as i32;
        let size = if row.shares.is_empty() { 12 } else { 11 };
        let place = [MARGIN, y + ROW / 2];
        scene.fitted_text(&row.name, size, Anchor::Start, place, NAMES - 10);
        for (at, &share) in row.shares.iter().enumerate() {
            let [x, end] = [left(at), left(at + 1)];
            scene.rectangle(
                [x + 1, y + 1],
                [end - 1, y + ROW - 1],
                between(&SHARES, share),
            );
            if numbers && share > 0.0 {
                let colour = if share > 0.55 { PAPER } else { INK };
                let middle = [(x + end) / 2, y + ROW / 2];
                scene.coloured_text(&percent(share), 10, Anchor::Middle, middle, colour);
            }
        }
    }
    Ok(scene)
}

fn percent(share: f64) -> String {
    match 100.0 * share {
        percent if percent < 0.5 => "<1".into(),
        percent => format!("{percent:.0}"),
    }
}
