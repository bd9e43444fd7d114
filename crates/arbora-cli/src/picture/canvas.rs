//! A bitmap for plotters that sets text properly.
//!
//! plotters' own ab_glyph path drops the side bearing of each glyph and rounds every position to whole
//! pixels, which tears words apart. Everything but text goes to plotters' bitmap backend.

use std::sync::OnceLock;

use ab_glyph::{Font, FontRef, Glyph, PxScale, ScaleFont, point};
use anyhow::{Result, anyhow};
use image::RgbImage;
use plotters::backend::BitMapBackend;
use plotters_backend::{
    BackendColor, BackendCoord, BackendStyle, BackendTextStyle, DrawingBackend, DrawingErrorKind,
    text_anchor::{HPos, VPos},
};

/// The height of a text box as a fraction of the font size, as plotters lays it out.
const BOX: f32 = 1.0 / 1.24;
/// The height of capital letters of DejaVu Sans as a fraction of the font size (1493 of 2384 units).
const CAPITALS: f32 = 0.626;

/// A picture to draw on.
pub(super) struct Canvas<'a> {
    bitmap: BitMapBackend<'a>,
    font: &'static FontRef<'static>,
}

/// The bundled font, read once.
fn font() -> Option<&'static FontRef<'static>> {
    static FONT: OnceLock<Option<FontRef<'static>>> = OnceLock::new();
    FONT.get_or_init(|| FontRef::try_from_slice(dejavu::sans::regular()).ok())
        .as_ref()
}

/// Width in pixels of a line of text as [`Canvas`] sets it. A viewer of an SVG sets it alike where it
/// has the font, and nearly so where it has another.
pub(super) fn text_width(text: &str, size: u32) -> f32 {
    font().map_or(0.0, |font| lay_out(font, text, size as f32).1)
}

/// Glyphs of a line of text, `y` at 0 on the base line, and the width of the line.
fn lay_out(font: &FontRef<'static>, text: &str, size: f32) -> (Vec<Glyph>, f32) {
    let font = font.as_scaled(PxScale::from(size));
    let (mut glyphs, mut x, mut last) = (Vec::new(), 0.0, None);
    for character in text.chars() {
        let mut glyph = font.scaled_glyph(character);
        let id = glyph.id;
        x += last.map_or(0.0, |last| font.kern(last, id));
        glyph.position = point(x, 0.0);
        glyphs.push(glyph);
        x += font.h_advance(id);
        last = Some(id);
    }
    (glyphs, x)
}

type Error = <BitMapBackend<'static> as DrawingBackend>::ErrorType;

impl<'a> Canvas<'a> {
    pub(super) fn new(picture: &'a mut RgbImage) -> Result<Self> {
        let size = picture.dimensions();
        Ok(Self {
            bitmap: BitMapBackend::with_buffer(picture, size),
            font: font().ok_or_else(|| anyhow!("the bundled font cannot be read"))?,
        })
    }
}

impl DrawingBackend for Canvas<'_> {
    type ErrorType = Error;

    fn get_size(&self) -> (u32, u32) {
        self.bitmap.get_size()
    }

    fn ensure_prepared(&mut self) -> Result<(), DrawingErrorKind<Error>> {
        self.bitmap.ensure_prepared()
    }

    fn present(&mut self) -> Result<(), DrawingErrorKind<Error>> {
        self.bitmap.present()
    }

    fn draw_pixel(
        &mut self,
        at: BackendCoord,
        color: BackendColor,
    ) -> Result<(), DrawingErrorKind<Error>> {
        self.bitmap.draw_pixel(at, color)
    }

    fn draw_line<S: BackendStyle>(
        &mut self,
        from: BackendCoord,
        to: BackendCoord,
        style: &S,
    ) -> Result<(), DrawingErrorKind<Error>> {
        self.bitmap.draw_line(from, to, style)
    }

    fn draw_rect<S: BackendStyle>(
        &mut self,
        upper_left: BackendCoord,
        bottom_right: BackendCoord,
        style: &S,
        fill: bool,
    ) -> Result<(), DrawingErrorKind<Error>> {
        self.bitmap.draw_rect(upper_left, bottom_right, style, fill)
    }

    fn draw_text<S: BackendTextStyle>(
        &mut self,
        text: &str,
        style: &S,
        at: BackendCoord,
    ) -> Result<(), DrawingErrorKind<Error>> {
        let size = style.size() as f32;
        let (glyphs, width) = lay_out(self.font, text, size);
        let (anchor, height) = (style.anchor(), size * BOX);
        let left = match anchor.h_pos {
            HPos::Left => 0.0,
            HPos::Center => -width / 2.0,
            HPos::Right => -width,
        };
        let top = match anchor.v_pos {
            VPos::Top => 0.0,
            VPos::Center => -height / 2.0,
            VPos::Bottom => -height,
        };
        // Capitals stand in the middle of the box.
        let base = top + (height + size * CAPITALS) / 2.0;
        let (left, base) = (left.round() as i32, base.round() as i32);
        let (transform, color) = (style.transform(), style.color());
        let (columns, rows) = self.get_size();
        let mut pixels = Vec::new();
        let outlines = glyphs.into_iter();
        for glyph in outlines.filter_map(|glyph| self.font.outline_glyph(glyph)) {
            let bounds = glyph.px_bounds();
            let corner = (left + bounds.min.x as i32, base + bounds.min.y as i32);
            glyph.draw(|x, y, coverage| {
                let (x, y) = transform.transform(corner.0 + x as i32, corner.1 + y as i32);
                pixels.push((at.0 + x, at.1 + y, f64::from(coverage)));
            });
        }
        for (x, y, coverage) in pixels {
            let inside = (0..columns as i32).contains(&x) && (0..rows as i32).contains(&y);
            if inside && coverage > 0.0 {
                let alpha = color.alpha * coverage.min(1.0);
                self.bitmap
                    .draw_pixel((x, y), BackendColor { alpha, ..color })?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use image::Rgb;
    use plotters::{drawing::IntoDrawingArea, style::text_anchor::Pos};

    use super::*;

    /// Columns and rows from first to last that text inked.
    fn inked(text: &str, anchor: Pos, at: (i32, i32)) -> [u32; 4] {
        super::super::load_font().unwrap();
        let mut picture = RgbImage::from_pixel(200, 60, Rgb([255; 3]));
        let area = Canvas::new(&mut picture).unwrap().into_drawing_area();
        area.draw_text(text, &super::super::text(20).pos(anchor), at)
            .unwrap();
        drop(area);
        let ink = || {
            picture
                .enumerate_pixels()
                .filter(|(_, _, pixel)| pixel.0[0] < 200)
        };
        [
            ink().map(|(x, ..)| x).min().unwrap(),
            ink().map(|(x, ..)| x).max().unwrap(),
            ink().map(|(_, y, _)| y).min().unwrap(),
            ink().map(|(_, y, _)| y).max().unwrap(),
        ]
    }

    #[test]
    fn text_stands_where_its_anchor_says() {
        let [left, right, top, bottom] =
            inked("HHHHHH", Pos::new(HPos::Center, VPos::Center), (100, 30));
        assert!((left + right).abs_diff(200) <= 3, "{left} to {right}");
        assert!((top + bottom).abs_diff(60) <= 3, "{top} to {bottom}");
        let [_, right, ..] = inked("HHHHHH", Pos::new(HPos::Right, VPos::Top), (100, 30));
        assert!((92..=100).contains(&right), "{right}");
    }

    #[test]
    fn text_that_leaves_the_picture_is_cut() {
        let [left, _, _, bottom] = inked("HHHHHH", Pos::new(HPos::Left, VPos::Center), (-8, 60));
        assert_eq!((left, bottom), (0, 59));
    }
}
