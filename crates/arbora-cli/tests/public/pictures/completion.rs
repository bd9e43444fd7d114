//! Grids of completed images.

use super::{Colour, Drawn, refused};
use arbora_cli::picture::completion::{CompletionRow, Prediction, draw};

const NON_FINITE: Colour = [220, 30, 30];
const UNSEEN: Colour = [92, 112, 160];
/// The colours of no deviation and of the greatest.
const HEAT: [Colour; 2] = [[68, 1, 84], [254, 232, 37]];
/// Pixels of the picture left of and above its images, between them, and below.
const MARGIN: i32 = 84;
const HEADER: i32 = 52;
const GAP: i32 = 8;
const FOOTER: i32 = 44;

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

fn drawn(rows: &[CompletionRow], models: &[&str]) -> Drawn {
    Drawn::by(|name| draw(rows, models, name))
}

/// The colour in the middle of each enlarged pixel, of a picture of images of 28 by 28 pixels: column and row of the
/// image, row and column in it.
fn colours(drawn: &Drawn) -> impl Fn(i32, i32, i32, i32) -> Colour + use<> {
    let (pixels, [width, _]) = (drawn.pixels(), drawn.size());
    move |column, row, y, x| {
        let left = MARGIN + column * (112 + GAP) + x * 4 + 2;
        let top = HEADER + row * (112 + GAP) + y * 4 + 2;
        pixels[(top * width + left) as usize]
    }
}

#[test]
fn cells_show_context_predictions_and_truth() {
    let drawn = drawn(&[row(1), row(3)], &["ReTreever", "CrossAttentionModel"]);
    drawn.check("completion");
    let expected = [MARGIN + 6 * (112 + GAP), HEADER + 2 * (112 + GAP) + FOOTER];
    assert_eq!(drawn.size(), expected);
    let at = colours(&drawn);
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
    assert_eq!(at(4, 1, 27, 27), HEAT[1]);
    assert!(drawn.says("ReTreever"));
}

#[test]
fn values_that_are_not_finite_are_red() {
    let mut bad = row(1);
    bad.models[0].mean[0] = f32::NAN;
    bad.models[0].std[1] = f32::INFINITY;
    let at = colours(&drawn(&[bad], &["a", "b"]));
    assert_eq!(at(1, 0, 0, 0), NON_FINITE);
    assert_eq!(at(2, 0, 0, 1), NON_FINITE);
    assert_eq!(at(2, 0, 27, 27), HEAT[1]);
}

#[test]
fn a_picture_without_models_shows_context_and_truth() {
    let bare = CompletionRow {
        models: Vec::new(),
        ..row(1)
    };
    let at = colours(&drawn(&[bare], &[]));
    assert_eq!(at(1, 0, 14, 14), [230; 3]);
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
    let expected = [MARGIN + 2 * (300 + GAP), HEADER + 3 + GAP + FOOTER];
    assert_eq!(drawn(&[image], &[]).size(), expected);
}

#[test]
fn rows_that_do_not_fit_together_are_refused() {
    let message = |rows: &[CompletionRow]| refused(|name| draw(rows, &["a", "b"], name));
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
