//! Pictures of a run: curves, completed images, and what the policy reads.
//!
//! Every picture is made once, as SVG, and its PNG is rasterised from that. The font, DejaVu Sans, is part of the
//! binary, so no system library or installed font is needed; a viewer of an SVG without it takes another one. Files
//! are written beside their place and renamed: each is whole or absent.
//!
//! - [`curves`]: panels of lines over steps or sizes
//! - [`confidence`]: how sure the policy is at each decision
//! - [`retrieval`]: the tree that one query searched and what it selected
//! - [`shares`]: how things spread over a few places
//! - [`completion`]: a grid of completed images

pub mod completion;
pub mod confidence;
pub mod curves;
pub mod retrieval;
pub mod shares;
mod svg;
mod text;

use anyhow::{Result, ensure};
use svg::Colour;

/// NaN and infinities in images, which should not be there.
const NON_FINITE: Colour = [220, 30, 30];

/// Refuses an image without pixels, or of a number of channels that has no colour.
///
/// - what: what the image is called
fn check_size(what: &str, [height, width, channels]: [usize; 3]) -> Result<()> {
    ensure!(
        height > 0 && width > 0,
        "{what}: expected at least one pixel, got {height}x{width}"
    );
    ensure!(
        [1, 3].contains(&channels),
        "{what}: expected 1 or 3 channels, got {channels}"
    );
    Ok(())
}

/// The colour of a pixel of one (grey) or three values (red, green, blue) in [-0.5, 0.5]; others are
/// clamped.
fn pixel_colour(values: &[f32]) -> Colour {
    if values.iter().any(|value| !value.is_finite()) {
        return NON_FINITE;
    }
    let byte = |value: f32| ((value + 0.5).clamp(0.0, 1.0) * 255.0).round() as u8;
    match *values {
        [red, green, blue] => [red, green, blue].map(byte),
        _ => [byte(values[0]); 3],
    }
}

/// The colour at a share, 0 to 1, of the way along colours that are equally far apart.
fn between(colours: &[Colour], share: f64) -> Colour {
    let last = colours.len() - 1;
    let at = share.clamp(0.0, 1.0) * last as f64;
    let (below, above) = (colours[at as usize], colours[last.min(at as usize + 1)]);
    std::array::from_fn(|part| {
        let [below, above] = [below, above].map(|colour| f64::from(colour[part]));
        (below + (above - below) * at.fract()).round() as u8
    })
}
