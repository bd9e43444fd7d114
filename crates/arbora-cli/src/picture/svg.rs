//! A picture as SVG: shapes in the order in which they are painted, with text on top.

use super::text::fit;
use anyhow::{Context as _, Result};
use resvg::tiny_skia::{Pixmap, Transform};
use resvg::usvg::{Options, Tree, fontdb::Database};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::sync::{Arc, LazyLock};

/// Column and row in pixels, from the upper left.
pub(super) type Place = [i32; 2];
/// Red, green and blue.
pub(super) type Colour = [u8; 3];

pub(super) const INK: Colour = [40; 3];
pub(super) const PAPER: Colour = [255; 3];

const FAMILY: &str = "DejaVu Sans";
/// Half the height of capital letters as a fraction of the font size: text is centred by its capitals.
const HALF_CAPITAL: f64 = 0.365;

/// Fonts are read once per process.
static FONTS: LazyLock<Arc<Database>> = LazyLock::new(|| {
    let mut fonts = Database::new();
    fonts.load_font_data(dejavu::sans::regular().to_vec());
    Arc::new(fonts)
});

/// Which part of a text stands at its place.
#[derive(Clone, Copy)]
pub(super) enum Anchor {
    Start,
    Middle,
    End,
    /// The middle, of text that is read from below.
    Upwards,
}

pub(super) struct Scene {
    pub size: Place,
    shapes: String,
    texts: String,
}

impl Scene {
    pub(super) fn new(size: Place) -> Self {
        Self {
            size,
            shapes: String::new(),
            texts: String::new(),
        }
    }

    fn shape(&mut self, element: std::fmt::Arguments) {
        self.shapes += &format!("<{element}/>\n");
    }

    /// A filled rectangle; `to` is just outside.
    pub(super) fn rectangle(&mut self, from: Place, to: Place, colour: Colour) {
        let ([x, y], [width, height]) = (from, [to[0] - from[0], to[1] - from[1]]);
        self.shape(format_args!(
            r#"rect x="{x}" y="{y}" width="{width}" height="{height}" fill="{}""#,
            hex(colour)
        ));
    }

    pub(super) fn circle<T: Into<f64>>(&mut self, centre: [T; 2], radius: i32, colour: Colour) {
        let ([x, y], fill) = (centre.map(round), hex(colour));
        self.shape(format_args!(
            r#"circle cx="{x}" cy="{y}" r="{radius}" fill="{fill}""#
        ));
    }

    /// A straight line. One of an odd width runs along the middle of pixels, or it would be blurred over two.
    pub(super) fn line(&mut self, from: Place, to: Place, width: i32, colour: Colour) {
        let [from, to] =
            [from, to].map(|place| place.map(|at| f64::from(at) + f64::from(width % 2) / 2.0));
        self.polyline(&[from, to], width, colour, 1.0);
    }

    /// Straight lines from point to point; `opacity` is from 0 to 1.
    pub(super) fn polyline(
        &mut self,
        points: &[[f64; 2]],
        width: i32,
        colour: Colour,
        opacity: f64,
    ) {
        self.shape(format_args!(
            r#"polyline points="{}" fill="none" stroke="{}" stroke-opacity="{opacity}" stroke-width="{width}" stroke-linejoin="round""#,
            join(points),
            hex(colour)
        ));
    }

    /// A filled polygon; `opacity` is from 0 to 1.
    pub(super) fn polygon<T: Into<f64> + Copy>(
        &mut self,
        corners: &[[T; 2]],
        colour: Colour,
        opacity: f64,
    ) {
        self.shape(format_args!(
            r#"polygon points="{}" fill="{}" fill-opacity="{opacity}""#,
            join(corners),
            hex(colour)
        ));
    }

    /// An image of `width` pixels a row, each `scale` pixels of the picture wide and high.
    pub(super) fn pixels(
        &mut self,
        [left, top]: Place,
        width: usize,
        scale: usize,
        colours: &[Colour],
    ) {
        // Much shorter than an element for every pixel.
        let mut paths = BTreeMap::<Colour, String>::new();
        for (y, row) in colours.chunks(width).enumerate() {
            let mut x = 0;
            for run in row.chunk_by(|one, next| one == next) {
                let path = paths.entry(run[0]).or_default();
                let _ = write!(path, "M{x} {y}h{0}v1h-{0}z", run.len());
                x += run.len();
            }
        }
        for (colour, path) in paths {
            self.shape(format_args!(
                r#"path transform="translate({left} {top}) scale({scale})" shape-rendering="crispEdges" fill="{}" d="{path}""#,
                hex(colour)
            ));
        }
    }

    /// A line of text, vertically centred at its place.
    pub(super) fn text(&mut self, text: &str, size: u32, anchor: Anchor, at: Place) {
        self.coloured_text(text, size, anchor, at, INK);
    }

    /// A line of text that is set smaller, or cut, where it is wider than `room`.
    pub(super) fn fitted_text(
        &mut self,
        text: &str,
        size: u32,
        anchor: Anchor,
        at: Place,
        room: i32,
    ) {
        let (text, size) = fit(text, size, room);
        self.text(&text, size, anchor, at);
    }

    /// A line of text in a colour.
    pub(super) fn coloured_text(
        &mut self,
        text: &str,
        size: u32,
        anchor: Anchor,
        [x, y]: Place,
        colour: Colour,
    ) {
        let (fill, text) = (hex(colour), escape(text));
        let base = f64::from(y) + (f64::from(size) * HALF_CAPITAL).round();
        let anchor = match anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
            Anchor::Upwards => &format!(r#"middle" transform="rotate(-90 {x} {y})"#),
        };
        self.texts += &format!(
            r#"<text x="{x}" y="{base}" font-size="{size}" fill="{fill}" text-anchor="{anchor}">{text}</text>"#
        );
        self.texts.push('\n');
    }

    /// The picture as an SVG document.
    pub(super) fn svg(&self) -> String {
        let [width, height] = self.size;
        let (paper, shapes, texts) = (hex(PAPER), &self.shapes, &self.texts);
        format!(
            r#"<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">
<path d="M0 0h{width}v{height}h-{width}z" fill="{paper}"/>
{shapes}<g font-family="{FAMILY}, sans-serif">
{texts}</g>
</svg>
"#
        )
    }

    /// Draws an SVG document with the bundled font.
    fn rasterise(&self, svg: &str) -> Result<Pixmap> {
        let [width, height] = self.size.map(|side| side as u32);
        let mut picture = Pixmap::new(width, height)
            .with_context(|| format!("a picture of {width}x{height} pixels is too large"))?;
        let options = Options {
            fontdb: FONTS.clone(),
            font_family: FAMILY.into(),
            ..Options::default()
        };
        let tree = Tree::from_str(svg, &options)?;
        resvg::render(&tree, Transform::identity(), &mut picture.as_mut());
        Ok(picture)
    }

    /// Writes the picture as `NAME.svg` and `NAME.png`.
    pub(super) fn save(&self, name: &Path) -> Result<()> {
        let svg = self.svg();
        let png = self.rasterise(&svg)?.encode_png()?;
        crate::atomic_file::write(&name.with_added_extension("svg"), svg)?;
        crate::atomic_file::write(&name.with_added_extension("png"), png)
    }
}

fn hex([red, green, blue]: Colour) -> String {
    format!("#{red:02X}{green:02X}{blue:02X}")
}

/// Finer than anyone sees, and short to write.
fn round(at: impl Into<f64>) -> f64 {
    (at.into() * 100.0).round() / 100.0
}

fn join<T: Into<f64> + Copy>(points: &[[T; 2]]) -> String {
    let points = points.iter().map(|point| point.map(round));
    let points: Vec<_> = points.map(|[x, y]| format!("{x},{y}")).collect();
    points.join(" ")
}

/// Text as XML writes it. Characters that XML cannot hold, as a token may have them, are replaced.
fn escape(text: &str) -> String {
    let is_forbidden =
        |character: char| character.is_control() || "\u{fffe}\u{ffff}".contains(character);
    let text = text
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;");
    text.replace(is_forbidden, "\u{fffd}")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Columns and rows from first to last that text inked.
    fn inked(text: &str, anchor: Anchor, at: Place) -> [usize; 4] {
        let mut scene = Scene::new([200, 60]);
        scene.text(text, 17, anchor, at);
        let drawn = scene.rasterise(&scene.svg()).unwrap();
        let inked = drawn.pixels().iter().enumerate();
        let inked = inked.filter(|(_, pixel)| pixel.red() < 200);
        let places: Vec<_> = inked.map(|(at, _)| (at % 200, at / 200)).collect();
        let columns = || places.iter().map(|place| place.0);
        [
            columns().min().unwrap(),
            columns().max().unwrap(),
            places[0].1,
            places[places.len() - 1].1,
        ]
    }

    #[test]
    fn text_stands_where_its_anchor_says() {
        let [left, right, top, bottom] = inked("HHHHHH", Anchor::Middle, [100, 30]);
        assert!((left + right).abs_diff(200) <= 3, "{left} to {right}");
        assert!((top + bottom).abs_diff(60) <= 3, "{top} to {bottom}");
        let [_, right, ..] = inked("HHHHHH", Anchor::End, [100, 30]);
        assert!((92..=100).contains(&right), "{right}");
    }

    #[test]
    fn text_that_leaves_the_picture_is_cut() {
        let [left, _, _, bottom] = inked("HHHHHH", Anchor::Start, [-8, 60]);
        assert_eq!((left, bottom), (0, 59));
    }

    #[test]
    fn both_files_are_written_whole() {
        let folder = tempfile::tempdir().unwrap();
        let mut scene = Scene::new([20, 10]);
        scene.pixels([2, 3], 2, 4, &[[9; 3], [90; 3]]);
        scene.save(&folder.path().join("run.1")).unwrap();
        let picture = Pixmap::load_png(folder.path().join("run.1.png")).unwrap();
        assert_eq!((picture.width(), picture.height()), (20, 10));
        assert_eq!(picture.pixel(6, 6).unwrap().red(), 90);
        let text = std::fs::read_to_string(folder.path().join("run.1.svg")).unwrap();
        assert_eq!(text, scene.svg());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
    }
}
