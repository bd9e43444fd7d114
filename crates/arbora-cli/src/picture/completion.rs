//! A grid of completed images.

use std::path::Path;

use anyhow::{Result, ensure};

use super::svg::{Anchor, Colour, Scene};
use super::{NON_FINITE, between, check_size, pixel_colour};

/// The longer side of an enlarged image, in pixels of the picture, unless the image is larger.
const CELL: usize = 112;
const GAP: i32 = 8;
/// Room for the number of context pixels, left of each row.
const MARGIN: i32 = 84;
/// Room for two lines of headings.
const HEADER: i32 = 52;
/// Room for the scale of the heat maps.
const FOOTER: i32 = 44;
const BAR: [i32; 2] = [200, 12];

const TEXT: u32 = 13;
const SMALL: u32 = 11;

/// Unseen pixels of the context: a colour that no grey image has.
const UNSEEN: Colour = [92, 112, 160];
/// Viridis of matplotlib, which the colour-blind can read too.
const HEAT: [Colour; 8] = [
    [68, 1, 84],
    [70, 50, 127],
    [54, 92, 141],
    [39, 127, 143],
    [31, 162, 136],
    [74, 194, 110],
    [160, 219, 57],
    [254, 232, 37],
];

/// One held-out image: what was seen, what each model made of it, and the truth.
///
/// Values are those of image completion, [-0.5, 0.5]; others are clamped.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CompletionRow {
    /// Rows of the image.
    pub height: usize,
    /// Columns of the image.
    pub width: usize,
    /// 1 (grey) or 3 (red, green, blue).
    pub channels: usize,
    /// The image: `[height * width * channels]`.
    pub truth: Vec<f32>,
    /// Which pixels the models saw: `[height * width]`.
    pub observed: Vec<bool>,
    /// The predictions, one per model, in the order of the models' names.
    pub models: Vec<Prediction>,
}

/// What a model predicts for every pixel of an image.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Prediction {
    /// The means: `[height * width * channels]`.
    pub mean: Vec<f32>,
    /// The standard deviations: `[height * width * channels]`, averaged over channels for the picture.
    pub std: Vec<f32>,
}

/// Draws one row per image, as `NAME.svg` and `NAME.png`: the context, then the mean and the standard
/// deviation of each model, then the truth.
///
/// `models` are the models' names. All standard deviations share one scale, which the picture states
/// at its foot, so rows and models can be compared. Images are enlarged by nearest neighbour. Values
/// that are not finite are drawn in red.
///
/// # Errors
/// If there are no rows, if sizes and lengths do not fit together, or if a file cannot be written.
pub fn draw(rows: &[CompletionRow], models: &[&str], name: &Path) -> Result<()> {
    lay_out(rows, models)?.save(name)
}

fn lay_out(rows: &[CompletionRow], models: &[&str]) -> Result<Scene> {
    ensure!(
        !rows.is_empty(),
        "a picture of completions needs at least one image"
    );
    for (at, row) in rows.iter().enumerate() {
        check(at, row, models.len())?;
    }
    let largest = |side: fn(&CompletionRow) -> usize| {
        let sides = rows.iter().map(|row| side(row) * row.scale());
        sides.max().unwrap_or(0) as i32
    };
    let (cell_width, cell_height) = (largest(|row| row.width), largest(|row| row.height));
    let columns = 2 + 2 * models.len();
    let left = |column: usize| MARGIN + column as i32 * (cell_width + GAP);
    let top = |row: usize| HEADER + row as i32 * (cell_height + GAP);
    let width = left(columns).max(BAR[0] + 3 * MARGIN);
    let mut scene = Scene::new([width, top(rows.len()) + FOOTER]);

    // The end of the common scale. It is above 0, so that dividing by it is safe.
    let stds = rows
        .iter()
        .flat_map(|row| row.models.iter().flat_map(move |one| row.stds(one)));
    let scale = stds.filter(|std| std.is_finite()).fold(1e-6, f32::max);
    for (at, row) in rows.iter().enumerate() {
        let truth = row.colours(&row.truth);
        let seen = truth.iter().zip(&row.observed);
        let seen = seen.map(|(colour, observed)| if *observed { *colour } else { UNSEEN });
        let mut cells: Vec<Vec<Colour>> = vec![seen.collect()];
        for prediction in &row.models {
            cells.push(row.colours(&prediction.mean));
            let stds = row.stds(prediction);
            cells.push(stds.map(|std| heat(std, scale)).collect());
        }
        cells.push(truth);
        for (column, colours) in cells.iter().enumerate() {
            scene.pixels([left(column), top(at)], row.width, row.scale(), colours);
        }
        let seen = row.observed.iter().filter(|&&observed| observed).count();
        let middle = top(at) + (row.height * row.scale() / 2) as i32;
        let beside = |down: i32| [MARGIN - GAP, middle + down];
        scene.text(&seen.to_string(), TEXT, Anchor::End, beside(-9));
        scene.text("pixels", SMALL, Anchor::End, beside(9));
    }

    let middle = |column: usize| left(column) + cell_width / 2;
    let mut heading = |name: &str, x: i32| scene.text(name, TEXT, Anchor::Middle, [x, 38]);
    heading("context", middle(0));
    heading("truth", middle(columns - 1));
    for model in 0..models.len() {
        heading("mean", middle(1 + 2 * model));
        heading("std", middle(2 + 2 * model));
    }
    for (model, name) in models.iter().enumerate() {
        let x = (middle(1 + 2 * model) + middle(2 + 2 * model)) / 2;
        scene.text(name, 14, Anchor::Middle, [x, 16]);
    }
    if !models.is_empty() {
        let y = top(rows.len()) + GAP;
        let share = |x| f64::from(x) / f64::from(BAR[0] - 1);
        let colours: Vec<_> = (0..BAR[0]).map(|x| between(&HEAT, share(x))).collect();
        let bar = colours.repeat(BAR[1] as usize);
        scene.pixels([MARGIN, y], colours.len(), 1, &bar);
        let y = y + BAR[1] / 2;
        scene.text("std 0", SMALL, Anchor::End, [MARGIN - GAP, y]);
        let end = [MARGIN + BAR[0] + GAP, y];
        scene.text(&format!("{scale:.3}"), SMALL, Anchor::Start, end);
    }
    Ok(scene)
}

impl CompletionRow {
    /// By how much the image is enlarged.
    fn scale(&self) -> usize {
        (CELL / self.height.max(self.width)).max(1)
    }

    fn colours(&self, values: &[f32]) -> Vec<Colour> {
        values.chunks(self.channels).map(pixel_colour).collect()
    }

    /// The standard deviation of each pixel: the mean over its channels.
    fn stds<'a>(&self, prediction: &'a Prediction) -> impl Iterator<Item = f32> + use<'a> {
        let pixels = prediction.std.chunks(self.channels);
        pixels.map(|values| values.iter().sum::<f32>() / values.len() as f32)
    }
}

fn check(at: usize, row: &CompletionRow, models: usize) -> Result<()> {
    check_size(
        &format!("image {at}"),
        [row.height, row.width, row.channels],
    )?;
    let pixels = row.height * row.width;
    let values = pixels * row.channels;
    let mut lengths = vec![
        ("truth", values, row.truth.len()),
        ("observed", pixels, row.observed.len()),
        ("models", models, row.models.len()),
    ];
    for prediction in &row.models {
        lengths.push(("mean", values, prediction.mean.len()));
        lengths.push(("std", values, prediction.std.len()));
    }
    for (what, expected, got) in lengths {
        ensure!(
            got == expected,
            "image {at}: {what}: expected {expected} values, got {got}"
        );
    }
    Ok(())
}

fn heat(std: f32, scale: f32) -> Colour {
    if std.is_finite() {
        between(&HEAT, f64::from(std / scale))
    } else {
        NON_FINITE
    }
}
