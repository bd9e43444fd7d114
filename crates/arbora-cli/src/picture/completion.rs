//! A grid of completed images.

use std::path::Path;

use anyhow::{Result, anyhow, ensure};
use image::{Rgb, RgbImage};
use plotters::{
    drawing::IntoDrawingArea,
    style::{
        RGBColor, TextStyle,
        colors::colormaps::{ColorMap, ViridisRGB},
        text_anchor::{HPos, Pos, VPos},
    },
};

use super::{NON_FINITE, canvas::Canvas, pixel_colour};

/// The longer side of an enlarged image, in pixels of the picture, unless the image is larger.
const CELL: usize = 112;
const GAP: usize = 8;
/// Room for the number of context pixels, left of each row.
const MARGIN: usize = 84;
/// Room for two lines of headings.
const HEADER: usize = 52;
/// Room for the scale of the heat maps.
const FOOTER: usize = 44;
const BAR_WIDTH: usize = 200;
const BAR_HEIGHT: usize = 12;

const PAPER: Rgb<u8> = Rgb([255, 255, 255]);
/// Unseen pixels of the context: a colour that no grey image has.
const UNSEEN: Rgb<u8> = Rgb([92, 112, 160]);

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

/// Draws one row per image as PNG: the context, then the mean and the standard deviation of each
/// model, then the truth.
///
/// `models` are the models' names. All standard deviations share one scale, which the picture states
/// at its foot, so rows and models can be compared. Images are enlarged by nearest neighbour. Values
/// that are not finite are drawn in red.
///
/// # Errors
/// If there are no rows, if sizes and lengths do not fit together, or if the file cannot be written.
pub fn draw(rows: &[CompletionRow], models: &[&str], path: &Path) -> Result<()> {
    ensure!(
        !rows.is_empty(),
        "a picture of completions needs at least one image"
    );
    rows.iter()
        .enumerate()
        .try_for_each(|(at, row)| check(at, row, models.len()))?;
    super::load_font()?;

    let cell_height = rows
        .iter()
        .map(|row| row.height * row.scale())
        .max()
        .unwrap_or(0);
    let cell_width = rows
        .iter()
        .map(|row| row.width * row.scale())
        .max()
        .unwrap_or(0);
    let columns = 2 + 2 * models.len();
    let left = |column: usize| MARGIN + column * (cell_width + GAP);
    let top = |row: usize| HEADER + row * (cell_height + GAP);
    let width = left(columns).max(MARGIN + BAR_WIDTH + 2 * MARGIN);
    let height = top(rows.len()) + FOOTER;
    let mut picture = RgbImage::from_pixel(width as u32, height as u32, PAPER);

    let scale = largest_std(rows);
    for (at, row) in rows.iter().enumerate() {
        let mut cell = |column: usize, colour: &dyn Fn(usize) -> Rgb<u8>| {
            paste(&mut picture, row, [left(column), top(at)], colour);
        };
        let seen = |pixel: usize| match row.observed[pixel] {
            true => row.colour(&row.truth, pixel),
            false => UNSEEN,
        };
        cell(0, &seen);
        for (model, prediction) in row.models.iter().enumerate() {
            cell(1 + 2 * model, &|pixel| row.colour(&prediction.mean, pixel));
            cell(2 + 2 * model, &|pixel| {
                heat(row.std(prediction, pixel), scale)
            });
        }
        cell(columns - 1, &|pixel| row.colour(&row.truth, pixel));
    }
    let bar_top = top(rows.len()) + GAP;
    for x in 0..BAR_WIDTH {
        let colour = heat(scale * x as f32 / (BAR_WIDTH - 1) as f32, scale);
        for y in 0..BAR_HEIGHT {
            picture.put_pixel((MARGIN + x) as u32, (bar_top + y) as u32, colour);
        }
    }

    let middle = |column: usize| left(column) + cell_width / 2;
    let mut texts = vec![
        Label::new("context", 15, HPos::Center, [middle(0), 38]),
        Label::new("truth", 15, HPos::Center, [middle(columns - 1), 38]),
    ];
    for (model, name) in models.iter().enumerate() {
        let first = 1 + 2 * model;
        let centre = (middle(first) + middle(first + 1)) / 2;
        texts.push(Label::new(*name, 16, HPos::Center, [centre, 16]));
        texts.push(Label::new("mean", 15, HPos::Center, [middle(first), 38]));
        texts.push(Label::new("std", 15, HPos::Center, [middle(first + 1), 38]));
    }
    for (at, row) in rows.iter().enumerate() {
        let seen = row.observed.iter().filter(|&&observed| observed).count();
        let middle = top(at) + row.height * row.scale() / 2;
        texts.push(Label::new(
            seen.to_string(),
            15,
            HPos::Right,
            [MARGIN - GAP, middle - 9],
        ));
        texts.push(Label::new(
            "pixels",
            13,
            HPos::Right,
            [MARGIN - GAP, middle + 9],
        ));
    }
    if !models.is_empty() {
        let beside = bar_top + BAR_HEIGHT / 2;
        texts.push(Label::new("std 0", 13, HPos::Right, [MARGIN - GAP, beside]));
        let end = MARGIN + BAR_WIDTH + GAP;
        texts.push(Label::new(
            format!("{scale:.3}"),
            13,
            HPos::Left,
            [end, beside],
        ));
    }
    write(&mut picture, &texts)?;
    super::save_png(&picture, path)
}

impl CompletionRow {
    /// By how much the image is enlarged.
    fn scale(&self) -> usize {
        (CELL / self.height.max(self.width)).max(1)
    }

    /// The colour of one pixel of `values`, which are `[height * width * channels]`.
    fn colour(&self, values: &[f32], pixel: usize) -> Rgb<u8> {
        pixel_colour(&values[pixel * self.channels..(pixel + 1) * self.channels])
    }

    fn std(&self, prediction: &Prediction, pixel: usize) -> f32 {
        let std = &prediction.std[pixel * self.channels..(pixel + 1) * self.channels];
        std.iter().sum::<f32>() / self.channels as f32
    }
}

fn check(at: usize, row: &CompletionRow, models: usize) -> Result<()> {
    ensure!(
        row.height > 0 && row.width > 0,
        "image {at}: expected at least one pixel, got {}x{}",
        row.height,
        row.width
    );
    let channels = row.channels;
    ensure!(
        [1, 3].contains(&channels),
        "image {at}: expected 1 or 3 channels, got {channels}"
    );
    let pixels = row.height * row.width;
    let length = |what: &str, expected: usize, got: usize| {
        ensure!(
            got == expected,
            "image {at}: {what}: expected {expected} values, got {got}"
        );
        Ok(())
    };
    length("truth", pixels * channels, row.truth.len())?;
    length("observed", pixels, row.observed.len())?;
    length("models", models, row.models.len())?;
    row.models.iter().try_for_each(|prediction| {
        length("mean", pixels * channels, prediction.mean.len())?;
        length("std", pixels * channels, prediction.std.len())
    })
}

/// The end of the common scale. It is above 0, so that dividing by it is safe.
fn largest_std(rows: &[CompletionRow]) -> f32 {
    let each = rows.iter().flat_map(|row| {
        let pixels = 0..row.height * row.width;
        row.models
            .iter()
            .flat_map(move |prediction| pixels.clone().map(move |pixel| row.std(prediction, pixel)))
    });
    each.filter(|std| std.is_finite()).fold(1e-6, f32::max)
}

fn heat(std: f32, scale: f32) -> Rgb<u8> {
    if !std.is_finite() {
        return NON_FINITE;
    }
    let RGBColor(red, green, blue) =
        ViridisRGB.get_color_normalized(std.clamp(0.0, scale), 0.0, scale);
    Rgb([red, green, blue])
}

/// Enlarges an image into the picture.
fn paste(
    picture: &mut RgbImage,
    row: &CompletionRow,
    [left, top]: [usize; 2],
    colour: &dyn Fn(usize) -> Rgb<u8>,
) {
    let scale = row.scale();
    for pixel in 0..row.height * row.width {
        let colour = colour(pixel);
        let (x, y) = (
            left + pixel % row.width * scale,
            top + pixel / row.width * scale,
        );
        for dy in 0..scale {
            for dx in 0..scale {
                picture.put_pixel((x + dx) as u32, (y + dy) as u32, colour);
            }
        }
    }
}

/// Text, vertically centred at a position.
struct Label {
    text: String,
    size: u32,
    align: HPos,
    at: [usize; 2],
}

impl Label {
    fn new(text: impl Into<String>, size: u32, align: HPos, at: [usize; 2]) -> Self {
        Self {
            text: text.into(),
            size,
            align,
            at,
        }
    }

    fn style(&self) -> TextStyle<'static> {
        super::text(self.size).pos(Pos::new(self.align, VPos::Center))
    }
}

fn write(picture: &mut RgbImage, labels: &[Label]) -> Result<()> {
    let area = Canvas::new(picture)?.into_drawing_area();
    for label in labels {
        let at = label.at.map(|at| at as i32);
        area.draw_text(&label.text, &label.style(), at.into())
            .map_err(|error| anyhow!("cannot draw the text {:?}: {error}", label.text))?;
    }
    area.present()
        .map_err(|error| anyhow!("cannot draw the picture: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(channels: usize) -> CompletionRow {
        let (height, width) = (28, 28);
        let size = height * width;
        let value = |at: usize| {
            let (y, x) = (at / channels / width, at / channels % width);
            let inside = (y as f32 - 13.5).hypot(x as f32 - 13.5) < 9.0;
            if inside {
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

    fn drawn(rows: &[CompletionRow], models: &[&str]) -> RgbImage {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("completion.png");
        draw(rows, models, &path).unwrap();
        let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().collect();
        assert_eq!(left.len(), 1, "only the picture stays: {left:?}");
        image::open(&path).unwrap().to_rgb8()
    }

    /// The colour in the middle of an enlarged pixel.
    fn at(picture: &RgbImage, column: usize, row: usize, y: usize, x: usize) -> Rgb<u8> {
        let left = MARGIN + column * (112 + GAP) + x * 4 + 2;
        let top = HEADER + row * (112 + GAP) + y * 4 + 2;
        *picture.get_pixel(left as u32, top as u32)
    }

    #[test]
    fn cells_show_context_predictions_and_truth() {
        let rows = [row(1), row(3)];
        let picture = drawn(&rows, &["ReTreever", "CrossAttentionModel"]);
        let expected = (MARGIN + 6 * (112 + GAP), HEADER + 2 * (112 + GAP) + FOOTER);
        assert_eq!(picture.dimensions(), (expected.0 as u32, expected.1 as u32));
        // Pixel (0, 0) was observed and black, pixel (0, 1) was not observed.
        assert_eq!(at(&picture, 0, 0, 0, 0), Rgb([0; 3]));
        assert_eq!(at(&picture, 0, 0, 0, 1), UNSEEN);
        // The middle is 0.4 in truth and 0.32 in the mean.
        assert_eq!(at(&picture, 5, 0, 14, 14), Rgb([230; 3]));
        assert_eq!(at(&picture, 1, 0, 14, 14), Rgb([209; 3]));
        assert_eq!(at(&picture, 3, 0, 14, 14), Rgb([209; 3]));
        assert_eq!(at(&picture, 5, 1, 14, 14), Rgb([230, 166, 102]));
        // The heat map runs from 0 at the first pixel to the end of the scale at the last.
        assert_eq!(at(&picture, 2, 0, 0, 0), heat(0.0, 1.0));
        assert_eq!(at(&picture, 4, 1, 27, 27), heat(1.0, 1.0));
        // There is text above the cells.
        assert!((0..HEADER as u32).any(|y| picture.get_pixel(MARGIN as u32 + 56, y) != &PAPER));
    }

    #[test]
    fn values_that_are_not_finite_are_red() {
        let mut bad = row(1);
        bad.models[0].mean[0] = f32::NAN;
        bad.models[0].std[1] = f32::INFINITY;
        let picture = drawn(&[bad], &["a", "b"]);
        assert_eq!(at(&picture, 1, 0, 0, 0), NON_FINITE);
        assert_eq!(at(&picture, 2, 0, 0, 1), NON_FINITE);
        assert_eq!(at(&picture, 2, 0, 27, 27), heat(1.0, 1.0));
    }

    #[test]
    fn a_picture_without_models_shows_context_and_truth() {
        let bare = CompletionRow {
            models: Vec::new(),
            ..row(1)
        };
        let picture = drawn(&[bare], &[]);
        assert_eq!(at(&picture, 1, 0, 14, 14), Rgb([230; 3]));
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
        let picture = drawn(&[image], &[]);
        assert_eq!(picture.width() as usize, MARGIN + 2 * (300 + GAP));
        assert_eq!(picture.height() as usize, HEADER + 3 + GAP + FOOTER);
    }

    #[test]
    fn rows_that_do_not_fit_together_are_refused() {
        let path = Path::new("never-written.png");
        let message =
            |rows: &[CompletionRow]| draw(rows, &["a", "b"], path).unwrap_err().to_string();
        assert_eq!(
            message(&[]),
            "a picture of completions needs at least one image"
        );
        let mut short = row(1);
        short.models[1].std.pop();
        assert_eq!(
            message(&[row(1), short]),
            "image 1: std: expected 784 values, got 783"
        );
        let fewer = CompletionRow {
            models: Vec::new(),
            ..row(1)
        };
        assert_eq!(
            message(&[fewer]),
            "image 0: models: expected 2 values, got 0"
        );
        let flat = CompletionRow {
            height: 0,
            ..row(1)
        };
        assert_eq!(
            message(&[flat]),
            "image 0: expected at least one pixel, got 0x28"
        );
        assert!(!path.exists());
    }
}
