//! A picture as a list of shapes, in the order in which they are painted, with text on top.
//!
//! Layout is plain data this way, and tests see what lies where.

use std::path::Path;

use anyhow::{Result, anyhow};
use image::{Rgb, RgbImage};
use plotters::{
    prelude::SVGBackend,
    style::{
        RGBColor, ShapeStyle,
        text_anchor::{HPos, Pos, VPos},
    },
};
use plotters_backend::DrawingBackend;

use super::{
    Format, INK,
    canvas::{Canvas, text_width},
};

/// Shapes are drawn this many times enlarged and averaged, which smooths their edges. Text is smooth
/// already.
const SMOOTHING: i32 = 2;

/// Column and row in pixels, from the upper left.
pub(super) type Place = [i32; 2];

pub(super) struct Scene {
    pub size: Place,
    pub shapes: Vec<Shape>,
    pub labels: Vec<Label>,
}

pub(super) enum Shape {
    /// `to` is just outside.
    Rectangle {
        from: Place,
        to: Place,
        colour: RGBColor,
    },
    Line {
        from: Place,
        to: Place,
        width: u32,
        colour: RGBColor,
    },
    Polygon {
        corners: Vec<Place>,
        colour: RGBColor,
    },
    Circle {
        centre: Place,
        radius: i32,
        colour: RGBColor,
    },
}

/// A line of text, vertically centred at its place.
pub(super) struct Label {
    pub text: String,
    pub size: u32,
    pub align: HPos,
    pub at: Place,
    pub colour: RGBColor,
}

impl Label {
    pub(super) fn new(text: impl Into<String>, size: u32, align: HPos, at: Place) -> Self {
        Self {
            text: text.into(),
            size,
            align,
            at,
            colour: INK,
        }
    }

    pub(super) fn coloured(self, colour: RGBColor) -> Self {
        Self { colour, ..self }
    }

    /// First and last column.
    pub(super) fn columns(&self) -> Place {
        let width = text_width(&self.text, self.size).ceil() as i32;
        let left = match self.align {
            HPos::Left => 0,
            HPos::Center => -width / 2,
            HPos::Right => -width,
        };
        [self.at[0] + left, self.at[0] + left + width]
    }
}

impl Scene {
    /// Writes the scene as PNG or SVG, by the ending of the path.
    ///
    /// # Errors
    /// If the ending is neither, or the file cannot be written.
    pub(super) fn save(&self, path: &Path) -> Result<()> {
        let format = Format::of(path)?;
        super::load_font()?;
        let [width, height] = self.size.map(|side| side as u32);
        match format {
            Format::Png => {
                let enlarged = SMOOTHING as u32;
                let mut picture =
                    RgbImage::from_pixel(width * enlarged, height * enlarged, Rgb([255; 3]));
                self.paint(&mut Canvas::new(&mut picture)?, SMOOTHING)?;
                let mut picture = smooth(&picture, enlarged);
                self.write(&mut Canvas::new(&mut picture)?)?;
                super::save_png(&picture, path)
            }
            Format::Svg => {
                let mut text = String::new();
                let mut backend = SVGBackend::with_string(&mut text, (width, height));
                self.paint(&mut backend, 1)?;
                self.write(&mut backend)?;
                // Closes the document.
                drop(backend);
                crate::whole::write(path, text)
            }
        }
    }

    /// Paints the shapes on white paper, enlarged.
    fn paint<B: DrawingBackend>(&self, backend: &mut B, scale: i32) -> Result<()> {
        let at = |[x, y]: Place| (x * scale, y * scale);
        let paper = Shape::Rectangle {
            from: [0, 0],
            to: self.size,
            colour: RGBColor(255, 255, 255),
        };
        for shape in [&paper].into_iter().chain(&self.shapes) {
            match shape {
                Shape::Rectangle { from, to, colour } => {
                    backend.draw_rect(at(*from), at(*to), colour, true)
                }
                Shape::Line {
                    from,
                    to,
                    width,
                    colour,
                } => {
                    let style = ShapeStyle::from(*colour).stroke_width(width * scale as u32);
                    backend.draw_line(at(*from), at(*to), &style)
                }
                Shape::Polygon { corners, colour } => {
                    let corners = corners.iter().map(|corner| at(*corner));
                    backend.fill_polygon(corners, colour)
                }
                Shape::Circle {
                    centre,
                    radius,
                    colour,
                } => backend.draw_circle(at(*centre), (radius * scale) as u32, colour, true),
            }
            .map_err(|error| anyhow!("cannot draw: {error}"))?;
        }
        Ok(())
    }

    fn write<B: DrawingBackend>(&self, backend: &mut B) -> Result<()> {
        for label in &self.labels {
            let style = super::text(label.size)
                .color(&label.colour)
                .pos(Pos::new(label.align, VPos::Center));
            backend
                .draw_text(&label.text, &style, label.at.into())
                .map_err(|error| anyhow!("cannot draw the text {:?}: {error}", label.text))?;
        }
        Ok(())
    }
}

/// The mean of each block of `scale * scale` pixels.
fn smooth(picture: &RgbImage, scale: u32) -> RgbImage {
    let (width, height) = picture.dimensions();
    RgbImage::from_fn(width / scale, height / scale, |x, y| {
        let mut sums = [0u32; 3];
        for dy in 0..scale {
            for dx in 0..scale {
                let pixel = picture.get_pixel(x * scale + dx, y * scale + dy);
                for (sum, value) in sums.iter_mut().zip(pixel.0) {
                    *sum += u32::from(value);
                }
            }
        }
        Rgb(sums.map(|sum| (sum / (scale * scale)) as u8))
    })
}
