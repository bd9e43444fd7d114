//! Pictures of a run: curves and completed images.
//!
//! Text is drawn with DejaVu Sans, which is part of the binary, so no system library or installed
//! font is needed. Files are written beside their place and renamed: a picture is whole or absent.
//!
//! - [`curves`]: panels of lines over steps, as PNG or SVG
//! - [`completion`]: a grid of completed images, as PNG

mod canvas;
pub mod completion;
pub mod curves;

use std::{ffi::OsString, fs, io::Cursor, path::Path, sync::OnceLock};

use anyhow::{Context, Result, anyhow};
use image::{ImageFormat, RgbImage};
use plotters::style::{FontStyle, RGBColor, TextStyle, register_font};

/// The family under which the bundled font is registered. A viewer of an SVG, which gets the name and
/// not the font, understands it too.
const FAMILY: &str = "sans-serif";

const INK: RGBColor = RGBColor(40, 40, 40);

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

fn save_png(image: &RgbImage, path: &Path) -> Result<()> {
    let mut bytes = Cursor::new(Vec::new());
    image
        .write_to(&mut bytes, ImageFormat::Png)
        .with_context(|| format!("{}: cannot encode the picture", path.display()))?;
    save(bytes.get_ref(), path)
}

/// Writes a file beside `path` and renames it.
fn save(bytes: &[u8], path: &Path) -> Result<()> {
    let mut partial = OsString::from(path);
    partial.push(".partial");
    let failed = || format!("{}: cannot write the picture", path.display());
    fs::write(&partial, bytes).with_context(failed)?;
    let renamed = fs::rename(&partial, path);
    if renamed.is_err() {
        // Best effort: the error that matters is the one of the renaming.
        let _ = fs::remove_file(&partial);
    }
    renamed.with_context(failed)
}
