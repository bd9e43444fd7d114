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

#[cfg(test)]
mod tests {
    use super::*;

    fn row(channels: usize) -> CompletionRow {
        let (height, width) = (28, 28);
        let size = height * width;
        let value = |at: usize| {
            let (y, x) = (at / channels / width, at / channels % width);
            if (y as f32 - 13.5).hypot(x as f32 - 13.5) < 9.0 {
                0.4 - 0.25 * (at % channels) as f32
            } else {
                -0.5
            }
        };
        let truth: Vec<f32> = (0..size * channels).map(value).collect();
        let soft = truth.iter().map(|value| value * 0.8).collect();
        let std = (0..size * channels)
            .map(|at| (at / channels) as f32 / size as f32)
            .collect();
        let prediction = Prediction { mean: soft, std };
        CompletionRow {
            height,
            width,
            channels,
            observed: (0..size).map(|pixel| pixel % 7 == 0).collect(),
            models: vec![prediction.clone(), prediction],
            truth,
        }
    }

    /// The colour in the middle of an enlarged pixel, of a picture of images of 28 by 28 pixels.
    fn at(scene: &Scene, drawn: &[Colour], cell: [i32; 2], y: i32, x: i32) -> Colour {
        let left = MARGIN + cell[0] * (112 + GAP) + x * 4 + 2;
        let top = HEADER + cell[1] * (112 + GAP) + y * 4 + 2;
        drawn[(top * scene.size[0] + left) as usize]
    }

    #[test]
    fn cells_show_context_predictions_and_truth() {
        let rows = [row(1), row(3)];
        let scene = lay_out(&rows, &["ReTreever", "CrossAttentionModel"]).unwrap();
        scene.check("completion");
        let expected = [MARGIN + 6 * (112 + GAP), HEADER + 2 * (112 + GAP) + FOOTER];
        assert_eq!(scene.size, expected);
        let drawn = scene.drawn();
        let at = |column, row, y, x| at(&scene, &drawn, [column, row], y, x);
        // Pixel (0, 0) was observed and black, pixel (0, 1) was not observed.
        assert_eq!(at(0, 0, 0, 0), [0; 3]);
        assert_eq!(at(0, 0, 0, 1), UNSEEN);
        // The middle is 0.4 in truth and 0.32 in the mean.
        assert_eq!(at(5, 0, 14, 14), [230; 3]);
        assert_eq!(at(1, 0, 14, 14), [209; 3]);
        assert_eq!(at(3, 0, 14, 14), [209; 3]);
        assert_eq!(at(5, 1, 14, 14), [230, 166, 102]);
        // The heat map runs from 0 at the first pixel to the end of the scale at the last.
        assert_eq!(at(2, 0, 0, 0), HEAT[0]);
        assert_eq!(at(4, 1, 27, 27), HEAT[7]);
        assert!(scene.svg().contains(">ReTreever</text>"));
    }

    #[test]
    fn values_that_are_not_finite_are_red() {
        let mut bad = row(1);
        bad.models[0].mean[0] = f32::NAN;
        bad.models[0].std[1] = f32::INFINITY;
        let scene = lay_out(&[bad], &["a", "b"]).unwrap();
        let drawn = scene.drawn();
        assert_eq!(at(&scene, &drawn, [1, 0], 0, 0), NON_FINITE);
        assert_eq!(at(&scene, &drawn, [2, 0], 0, 1), NON_FINITE);
        assert_eq!(at(&scene, &drawn, [2, 0], 27, 27), HEAT[7]);
    }

    #[test]
    fn a_picture_without_models_shows_context_and_truth() {
        let bare = CompletionRow {
            models: Vec::new(),
            ..row(1)
        };
        let scene = lay_out(&[bare], &[]).unwrap();
        assert_eq!(at(&scene, &scene.drawn(), [1, 0], 14, 14), [230; 3]);
    }

    #[test]
    fn large_and_oblong_images_keep_their_pixels() {
        let [height, width] = [3, 300];
        let image = CompletionRow {
            height,
            width,
            channels: 1,
            truth: vec![0.5; 900],
            observed: vec![true; 900],
            models: Vec::new(),
        };
        let scene = lay_out(&[image], &[]).unwrap();
        let expected = [MARGIN + 2 * (300 + GAP), HEADER + 3 + GAP + FOOTER];
        assert_eq!(scene.size, expected);
    }

    #[test]
    fn rows_that_do_not_fit_together_are_refused() {
        let message =
            |rows: &[CompletionRow]| lay_out(rows, &["a", "b"]).err().unwrap().to_string();
        let none = "a picture of completions needs at least one image";
        assert_eq!(message(&[]), none);
        let odd = |change: fn(&mut CompletionRow)| {
            let mut odd = row(1);
            change(&mut odd);
            message(&[row(1), odd])
        };
        for (message, expected) in [
            (
                odd(|row| row.models[1].std.truncate(783)),
                "std: expected 784 values, got 783",
            ),
            (
                odd(|row| row.models.clear()),
                "models: expected 2 values, got 0",
            ),
            (
                odd(|row| row.height = 0),
                "expected at least one pixel, got 0x28",
            ),
        ] {
            assert_eq!(message, format!("image 1: {expected}"));
        }
    }
}
