//! How things spread over a few places, as a table of coloured shares: rows are the things.

use std::path::Path;

use anyhow::{Result, ensure};
use plotters::style::{RGBColor, text_anchor::HPos};

use super::fit;
use super::scene::{Label, Scene, Shape};

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
/// The colour of a share of 1.
const FULL: [f64; 3] = [0.0, 90.0, 156.0];

/// Draws the rows, as PNG or SVG by the ending of `path`.
///
/// # Errors
/// If there are no columns, a row has another number of shares or one outside of 0 to 1, the ending is neither
/// `png` nor `svg`, or the file cannot be written.
pub fn draw(picture: &SharesPicture, path: &Path) -> Result<()> {
    scene(picture)?.save(path)
}

fn scene(picture: &SharesPicture) -> Result<Scene> {
    let count = picture.columns.len();
    ensure!(count > 0, "a table of shares needs at least one column");
    for row in picture.rows.iter().filter(|row| !row.shares.is_empty()) {
        ensure!(
            row.shares.len() == count,
            "row {:?}: expected {count} shares, got {}",
            row.name,
            row.shares.len()
        );
        let odd = row
            .shares
            .iter()
            .find(|share| !(0.0..=1.0 + 1e-9).contains(*share));
        ensure!(
            odd.is_none(),
            "row {:?}: share: expected 0 to 1, got {}",
            row.name,
            odd.unwrap_or(&0.0)
        );
    }
    let numbers = count < CROWDED;
    let column = if numbers { COLUMN } else { NARROW };
    let across = MARGIN + NAMES + column * count as i32 + MARGIN;
    let top = MARGIN + TITLE + ROW;
    let mut scene = Scene {
        size: [
            across.max(MARGIN + NAMES + 200),
            top + ROW * picture.rows.len() as i32 + MARGIN,
        ],
        shapes: Vec::new(),
        labels: Vec::new(),
    };
    let left = |at: usize| MARGIN + NAMES + column * at as i32;
    let (title, size) = fit(&picture.title, 17, scene.size[0] - 2 * MARGIN);
    let place = [MARGIN, MARGIN + TITLE / 2 - 4];
    scene
        .labels
        .push(Label::new(title, size, HPos::Left, place));
    for (at, name) in picture.columns.iter().enumerate().filter(|_| numbers) {
        let (name, size) = fit(name, 13, column - 4);
        let place = [left(at) + column / 2, top - ROW / 2];
        scene
            .labels
            .push(Label::new(name, size, HPos::Center, place));
    }
    for (at, row) in picture.rows.iter().enumerate() {
        let y = top + ROW * at as i32;
        let heading = row.shares.is_empty();
        let (name, size) = fit(&row.name, if heading { 14 } else { 13 }, NAMES - 10);
        let place = [MARGIN, y + ROW / 2];
        scene.labels.push(Label::new(name, size, HPos::Left, place));
        for (at, share) in row.shares.iter().enumerate() {
            let from = [left(at) + 1, y + 1];
            scene.shapes.push(Shape::Rectangle {
                from,
                to: [from[0] + column - 2, from[1] + ROW - 2],
                colour: colour(*share),
            });
            if numbers && *share > 0.0 {
                let place = [left(at) + column / 2, y + ROW / 2];
                let label = Label::new(percent(*share), 12, HPos::Center, place);
                scene.labels.push(match *share > 0.55 {
                    true => label.coloured(RGBColor(255, 255, 255)),
                    false => label,
                });
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

/// From nearly white to full.
fn colour(share: f64) -> RGBColor {
    let mix = |full: f64| (243.0 + (full - 243.0) * share.clamp(0.0, 1.0)).round() as u8;
    let [red, green, blue] = FULL.map(mix);
    RGBColor(red, green, blue)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str, shares: &[f64]) -> SharesRow {
        SharesRow {
            name: name.into(),
            shares: shares.to_vec(),
        }
    }

    fn picture(rows: Vec<SharesRow>) -> SharesPicture {
        SharesPicture {
            title: "documents".into(),
            columns: vec!["0".into(), "1".into()],
            rows,
        }
    }

    #[test]
    fn every_share_has_a_cell_and_headings_have_none() {
        let rows = vec![
            row("held out", &[]),
            row("one", &[0.25, 0.75]),
            row("two", &[1.0, 0.0]),
        ];
        let scene = scene(&picture(rows)).unwrap();
        assert_eq!(scene.shapes.len(), 4);
        let texts: Vec<&str> = scene.labels.iter().map(|one| one.text.as_str()).collect();
        for text in ["documents", "held out", "one", "25", "75", "100"] {
            assert!(texts.contains(&text), "{text} in {texts:?}");
        }
        let [width, height] = scene.size;
        for label in &scene.labels {
            let [from, to] = label.columns();
            assert!(
                from >= 0 && to <= width && label.at[1] < height,
                "{}",
                label.text
            );
        }
    }

    #[test]
    fn larger_shares_are_darker() {
        let brightness = |share| {
            let RGBColor(red, green, blue) = colour(share);
            u32::from(red) + u32::from(green) + u32::from(blue)
        };
        assert!(brightness(0.0) > brightness(0.1));
        assert!(brightness(0.1) > brightness(1.0));
    }

    #[test]
    fn rows_that_do_not_fit_are_refused_by_name() {
        for (shares, words) in [
            (vec![0.5], "row \"one\": expected 2 shares, got 1"),
            (
                vec![0.5, 1.5],
                "row \"one\": share: expected 0 to 1, got 1.5",
            ),
            (vec![f64::NAN, 1.0], "got NaN"),
        ] {
            let error = scene(&picture(vec![row("one", &shares)])).err().unwrap();
            assert!(error.to_string().contains(words), "{error}");
        }
        assert!(scene(&SharesPicture::default()).is_err());
    }
}
