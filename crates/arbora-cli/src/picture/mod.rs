//! Pictures of a run: curves, completed images, and what the policy reads.
//!
//! Text is drawn with DejaVu Sans, which is part of the binary, so no system library or installed
//! font is needed. Files are written beside their place and renamed: a picture is whole or absent.
//!
//! - [`curves`]: panels of lines over steps or sizes, as PNG or SVG
//! - [`confidence`]: how sure the policy is at each decision, as PNG or SVG
//! - [`retrieval`]: the tree that one query searched and what it selected, as PNG or SVG
//! - [`shares`]: how things spread over a few places, as PNG or SVG
//! - [`completion`]: a grid of completed images, as PNG

mod canvas;
pub mod completion;
pub mod confidence;
pub mod curves;
pub mod retrieval;
mod scene;
pub mod shares;

use std::{io::Cursor, path::Path, sync::OnceLock};

use anyhow::{Context, Result, anyhow, bail};
use image::{ImageFormat, Rgb, RgbImage};
use plotters::style::{FontStyle, RGBColor, TextStyle, register_font};

/// The family under which the bundled font is registered. A viewer of an SVG, which gets the name and
/// not the font, understands it too.
const FAMILY: &str = "sans-serif";

const INK: RGBColor = RGBColor(40, 40, 40);
/// NaN and infinities in images, which should not be there.
const NON_FINITE: Rgb<u8> = Rgb([220, 30, 30]);

/// What a picture is written as.
enum Format {
    Png,
    Svg,
}

impl Format {
    /// The format that the ending of a path asks for.
    fn of(path: &Path) -> Result<Self> {
        let extension = path.extension().unwrap_or_default().to_ascii_lowercase();
        if extension == "png" {
            Ok(Self::Png)
        } else if extension == "svg" {
            Ok(Self::Svg)
        } else {
            bail!("{}: expected a name ending in .png or .svg", path.display())
        }
    }
}

/// Makes the bundled font known to plotters, once per process.
fn load_font() -> Result<()> {
    static LOADED: OnceLock<bool> = OnceLock::new();
    let load = || register_font(FAMILY, FontStyle::Normal, dejavu::sans::regular()).is_ok();
    let loaded = *LOADED.get_or_init(load);
    loaded
        .then_some(())
        .ok_or_else(|| anyhow!("the bundled font cannot be read"))
}

/// Text of `size` pixels. [`load_font`] comes first.
fn text(size: u32) -> TextStyle<'static> {
    TextStyle::from((FAMILY, size)).color(&INK)
}

/// Breaks text into lines at most `width` pixels wide: between words, or inside a word that fills more
/// than a line alone.
fn wrap(text: &str, size: u32, width: i32) -> Vec<String> {
    let fits = |line: &str| canvas::text_width(line, size) <= width as f32;
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let line = lines.last_mut().expect("there is always a line");
        let joined = match line.is_empty() {
            true => word.to_owned(),
            false => format!("{line} {word}"),
        };
        if fits(&joined) {
            *line = joined;
            continue;
        }
        if !line.is_empty() {
            lines.push(String::new());
        }
        for character in word.chars() {
            let line = lines.last_mut().expect("there is always a line");
            let mut longer = line.clone();
            longer.push(character);
            if line.is_empty() || fits(&longer) {
                *line = longer;
            } else {
                lines.push(character.into());
            }
        }
    }
    lines.retain(|line| !line.is_empty());
    lines
}

/// One line at most `width` pixels wide: set smaller, down to 11 pixels, and then cut with an ellipsis.
fn fit(text: &str, size: u32, width: i32) -> (String, u32) {
    let fits = |text: &str, size: u32| canvas::text_width(text, size) <= width as f32;
    let smallest = size.min(11);
    if let Some(size) = (smallest..=size).rev().find(|size| fits(text, *size)) {
        return (text.into(), size);
    }
    let mut cut: Vec<char> = text.chars().collect();
    loop {
        cut.pop();
        let line: String = cut.iter().chain(&['…']).collect();
        if cut.is_empty() || fits(&line, smallest) {
            return (line, smallest);
        }
    }
}

/// The colour of a pixel of one (grey) or three values (red, green, blue) in [-0.5, 0.5]; others are
/// clamped.
fn pixel_colour(values: &[f32]) -> Rgb<u8> {
    if values.iter().any(|value| !value.is_finite()) {
        return NON_FINITE;
    }
    let byte = |value: f32| ((value + 0.5).clamp(0.0, 1.0) * 255.0).round() as u8;
    match *values {
        [red, green, blue] => Rgb([byte(red), byte(green), byte(blue)]),
        _ => Rgb([byte(values[0]); 3]),
    }
}

fn save_png(image: &RgbImage, path: &Path) -> Result<()> {
    let mut bytes = Cursor::new(Vec::new());
    image
        .write_to(&mut bytes, ImageFormat::Png)
        .with_context(|| format!("{}: cannot encode the picture", path.display()))?;
    crate::whole::write(path, bytes.get_ref())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrapped_text_keeps_every_word_and_fits() {
        let text =
            "What the policy reads for one query of a very long title with Unbrokenwords".repeat(3);
        let lines = wrap(&text, 20, 300);
        assert!(lines.len() > 3);
        assert!(
            lines
                .iter()
                .all(|line| canvas::text_width(line, 20) <= 300.0),
            "{lines:?}"
        );
        assert_eq!(lines.join(" "), text);
        let one_word = "m".repeat(200);
        let lines = wrap(&one_word, 20, 300);
        assert!(
            lines
                .iter()
                .all(|line| canvas::text_width(line, 20) <= 300.0)
        );
        assert_eq!(lines.concat(), one_word);
        assert!(wrap("  ", 20, 300).is_empty());
    }

    #[test]
    fn fitted_text_shrinks_before_it_is_cut() {
        assert_eq!(fit("loss", 17, 300), ("loss".into(), 17));
        let (text, size) = fit("Log-likelihood of held-out images", 17, 220);
        assert_eq!(text, "Log-likelihood of held-out images");
        assert!(size < 17);
        let (text, size) = fit(&"long ".repeat(100), 17, 220);
        assert!(text.ends_with('…') && size == 11 && canvas::text_width(&text, size) <= 220.0);
    }
}
