//! Panels of lines over steps.

use std::{ops::Range, path::Path};

use anyhow::{Result, anyhow, bail, ensure};
use image::{Rgb, RgbImage};
use plotters::{
    coord::Shift,
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};

use super::canvas::Canvas;

/// Size of one panel in pixels: width, height.
const PANEL: (u32, u32) = (560, 340);
/// From this many points on, a series is drawn as a faint line under its moving mean.
const CROWDED: usize = 120;
/// The moving mean covers this fraction of a crowded series.
const WINDOW: usize = 40;
/// Larger numbers leave no room for axes in double precision and count as missing.
const LARGEST: f64 = 1e30;

/// Colours that stay apart for the colour-blind (Okabe and Ito, 2008), darkest first.
const COLOURS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(230, 159, 0),
    RGBColor(90, 90, 90),
];

/// One plot: lines that share their axes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Panel {
    /// Stands above the plot.
    pub title: String,
    /// Quantity and unit of the vertical axis. The horizontal axis counts steps.
    pub y_label: String,
    /// The lines.
    pub series: Vec<Series>,
}

/// One line.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Series {
    /// Its name in the legend; without names there is no legend.
    pub name: String,
    /// Step and value. A value that is not finite interrupts the line.
    pub points: Vec<(f64, f64)>,
}

/// Draws panels in two columns, as PNG or SVG by the ending of `path`.
///
/// A series of 120 points or more is drawn faintly, with its moving mean over a fortieth of its
/// points on top. A panel without finite values says so.
///
/// # Errors
/// If there are no panels, the ending is neither `png` nor `svg`, or the file cannot be written.
pub fn draw(panels: &[Panel], path: &Path) -> Result<()> {
    ensure!(!panels.is_empty(), "a plot needs at least one panel");
    super::load_font()?;
    let columns = panels.len().min(2);
    let rows = panels.len().div_ceil(columns);
    let size = (PANEL.0 * columns as u32, PANEL.1 * rows as u32);
    let extension = path.extension().unwrap_or_default().to_ascii_lowercase();
    if extension == "png" {
        let mut picture = RgbImage::from_pixel(size.0, size.1, Rgb([255; 3]));
        let canvas = Canvas::new(&mut picture)?;
        render(canvas.into_drawing_area(), panels, [rows, columns])?;
        super::save_png(&picture, path)
    } else if extension == "svg" {
        let mut text = String::new();
        let backend = SVGBackend::with_string(&mut text, size);
        render(backend.into_drawing_area(), panels, [rows, columns])?;
        super::save(text.as_bytes(), path)
    } else {
        bail!("{}: expected a name ending in .png or .svg", path.display())
    }
}

fn render<B: DrawingBackend>(
    area: DrawingArea<B, Shift>,
    panels: &[Panel],
    [rows, columns]: [usize; 2],
) -> Result<()> {
    let failed = |error: DrawingAreaErrorKind<B::ErrorType>| anyhow!("cannot draw: {error}");
    area.fill(&WHITE).map_err(failed)?;
    for (cell, panel) in area.split_evenly((rows, columns)).iter().zip(panels) {
        draw_panel(cell, panel).map_err(failed)?;
    }
    area.present().map_err(failed)
}

fn draw_panel<B: DrawingBackend>(
    area: &DrawingArea<B, Shift>,
    panel: &Panel,
) -> Result<(), DrawingAreaErrorKind<B::ErrorType>> {
    let points = || {
        panel
            .series
            .iter()
            .flat_map(|series| &series.points)
            .copied()
    };
    let drawn = || points().filter(is_finite);
    let x = range(drawn().map(|(x, _)| x), 0.0);
    let y = range(drawn().map(|(_, y)| y), 0.05);
    let mut chart = ChartBuilder::on(area)
        .caption(&panel.title, super::text(17))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(68)
        .build_cartesian_2d(x.clone(), y.clone())?;
    chart
        .configure_mesh()
        .x_labels(6)
        .y_labels(6)
        .x_label_formatter(&|x| number(*x))
        .y_label_formatter(&|y| number(*y))
        .x_desc("step")
        .y_desc(&panel.y_label)
        .label_style(super::text(13))
        .axis_desc_style(super::text(14))
        .bold_line_style(RGBColor(215, 215, 215))
        .light_line_style(TRANSPARENT)
        .axis_style(RGBColor(120, 120, 120))
        .draw()?;
    if drawn().next().is_none() {
        let style = super::text(15).pos(Pos::new(HPos::Center, VPos::Center));
        let middle = ((x.start + x.end) / 2.0, (y.start + y.end) / 2.0);
        return chart
            .draw_series([Text::new("no data", middle, style)])
            .map(|_| ());
    }

    for (series, colour) in panel.series.iter().zip(COLOURS.iter().cycle()) {
        let finite = series
            .points
            .iter()
            .filter(|point| is_finite(point))
            .count();
        let crowded = finite >= CROWDED;
        let colour = colour.to_rgba();
        let raw = if crowded {
            colour.mix(0.25).stroke_width(1)
        } else {
            colour.stroke_width(2)
        };
        for run in runs(&series.points) {
            match run {
                // A line through one point has no length.
                [point] => chart.draw_series([Circle::new(*point, 3, colour.filled())])?,
                _ => chart.draw_series(LineSeries::new(run.iter().copied(), raw))?,
            };
            if crowded && run.len() > 1 {
                let mean = moving_mean(run, finite / WINDOW);
                chart.draw_series(LineSeries::new(mean, colour.stroke_width(2)))?;
            }
        }
        // An empty series of its own, so that the name comes once however often a line is broken.
        if !series.name.is_empty() {
            chart
                .draw_series(LineSeries::new(std::iter::empty(), colour.stroke_width(2)))?
                .label(&series.name)
                .legend(move |(x, y)| {
                    PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2))
                });
        }
    }
    if panel.series.iter().any(|series| !series.name.is_empty()) {
        chart
            .configure_series_labels()
            .position(emptiest_corner(drawn(), &x, &y))
            .margin(8)
            .legend_area_size(24)
            .background_style(WHITE.mix(0.85))
            .border_style(RGBColor(200, 200, 200))
            .label_font(super::text(13))
            .draw()?;
    }
    Ok(())
}

fn is_finite((x, y): &(f64, f64)) -> bool {
    // NaN fails both comparisons.
    x.abs() <= LARGEST && y.abs() <= LARGEST
}

/// The stretches of a line between values that are not finite.
fn runs(points: &[(f64, f64)]) -> impl Iterator<Item = &[(f64, f64)]> {
    points
        .split(|point| !is_finite(point))
        .filter(|run| !run.is_empty())
}

/// From the least to the largest value, with a margin of a fraction of that. Never empty.
fn range(values: impl Iterator<Item = f64>, margin: f64) -> Range<f64> {
    let (least, largest) = values.fold(
        (f64::INFINITY, f64::NEG_INFINITY),
        |(least, largest), value| (least.min(value), largest.max(value)),
    );
    if least > largest {
        return 0.0..1.0;
    }
    let width = largest - least;
    // A width that rounding could swallow gives axes whose labels all look alike.
    if width <= 1e-9 * largest.abs().max(least.abs()) {
        let around = if least == 0.0 { 1.0 } else { 0.1 * least.abs() };
        return least - around..largest + around;
    }
    least - margin * width..largest + margin * width
}

/// Each value replaced by the mean over `window` values around it, fewer at the ends.
fn moving_mean(points: &[(f64, f64)], window: usize) -> Vec<(f64, f64)> {
    let reach = window / 2;
    let mut sums = vec![0.0];
    for (at, (_, y)) in points.iter().enumerate() {
        sums.push(sums[at] + y);
    }
    let mean = |at: usize| {
        let (from, to) = (at.saturating_sub(reach), points.len().min(at + reach + 1));
        (sums[to] - sums[from]) / (to - from) as f64
    };
    points
        .iter()
        .enumerate()
        .map(|(at, (x, _))| (*x, mean(at)))
        .collect()
}

/// Where the legend hides the fewest points.
fn emptiest_corner(
    points: impl Iterator<Item = (f64, f64)>,
    x: &Range<f64>,
    y: &Range<f64>,
) -> SeriesLabelPosition {
    let mut counts = [0usize; 4];
    for (px, py) in points {
        let right = (px - x.start) / (x.end - x.start);
        let up = (py - y.start) / (y.end - y.start);
        // The middle is under no corner.
        let column = if right > 0.6 {
            1
        } else if right < 0.4 {
            0
        } else {
            continue;
        };
        let row = if up > 0.65 {
            0
        } else if up < 0.35 {
            2
        } else {
            continue;
        };
        counts[row + column] += 1;
    }
    // The first of equals wins: upper right is where readers look.
    let corners = [
        (counts[1], SeriesLabelPosition::UpperRight),
        (counts[3], SeriesLabelPosition::LowerRight),
        (counts[0], SeriesLabelPosition::UpperLeft),
        (counts[2], SeriesLabelPosition::LowerLeft),
    ];
    let [first, others @ ..] = corners;
    let fewer = |best: (usize, _), next: (usize, _)| if next.0 < best.0 { next } else { best };
    others.into_iter().fold(first, fewer).1
}

/// A short number for an axis.
fn number(value: f64) -> String {
    let size = value.abs();
    // Rounding leaves -0 and 1e-17 where the grid passes through zero.
    if size < 1e-12 {
        return "0".into();
    }
    if !(1e-3..1e7).contains(&size) {
        return format!("{value:.1e}");
    }
    if size >= 1e4 {
        return format!("{}k", trim(format!("{:.2}", value / 1e3)));
    }
    trim(format!("{value:.4}"))
}

fn trim(number: String) -> String {
    number.trim_end_matches('0').trim_end_matches('.').into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(name: &str, points: impl IntoIterator<Item = (f64, f64)>) -> Series {
        Series {
            name: name.into(),
            points: points.into_iter().collect(),
        }
    }

    fn panel(title: &str, series: Vec<Series>) -> Panel {
        Panel {
            title: title.into(),
            y_label: "nats".into(),
            series,
        }
    }

    fn drawn(panels: &[Panel]) -> RgbImage {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("curves.png");
        draw(panels, &path).unwrap();
        image::open(path).unwrap().to_rgb8()
    }

    fn count(picture: &RgbImage, colour: RGBColor) -> usize {
        let colour = Rgb([colour.0, colour.1, colour.2]);
        picture.pixels().filter(|pixel| **pixel == colour).count()
    }

    #[test]
    fn each_series_has_a_line_of_its_colour() {
        let line = |slope: f64| (0..50).map(move |x| (f64::from(x), slope * f64::from(x)));
        let picture = drawn(&[panel(
            "loss",
            vec![series("a", line(1.0)), series("b", line(-1.0))],
        )]);
        assert_eq!(picture.dimensions(), PANEL);
        for colour in &COLOURS[..2] {
            assert!(
                count(&picture, *colour) > 200,
                "{}",
                count(&picture, *colour)
            );
        }
        assert_eq!(count(&picture, COLOURS[2]), 0);
    }

    #[test]
    fn panels_fill_two_columns() {
        let one = || panel("loss", vec![series("", [(0.0, 1.0), (1.0, 2.0)])]);
        let picture = drawn(&[one(), one(), one()]);
        assert_eq!(picture.dimensions(), (PANEL.0 * 2, PANEL.1 * 2));
    }

    #[test]
    fn missing_values_and_empty_series_leave_a_readable_plot() {
        let hostile = [
            vec![],
            vec![series("empty", [])],
            vec![series("nan", [(0.0, f64::NAN), (1.0, f64::INFINITY)])],
            vec![series("bad step", [(f64::NAN, 1.0)])],
            vec![series("one", [(3.0, 7.0)])],
            vec![series("flat", [(0.0, 5.0), (10.0, 5.0)])],
            vec![series("zero", [(0.0, 0.0)])],
            vec![series("vertical", [(1.0, 0.0), (1.0, 9.0)])],
            vec![series(
                "huge",
                [(0.0, f64::MAX), (1.0, f64::MIN), (2.0, 1.0)],
            )],
            vec![series("large", [(0.0, 1e30), (1.0, -1e30)])],
            vec![series("tiny", [(0.0, 1e-300), (1.0, 2e-300)])],
            vec![series("near", [(0.0, 1.0), (1.0, 1.0 + f64::EPSILON)])],
        ];
        for lines in hostile {
            let name = lines
                .first()
                .map_or("none", |line| line.name.as_str())
                .to_owned();
            let picture = drawn(&[panel(&name, lines)]);
            let ink = picture
                .pixels()
                .filter(|pixel| **pixel != Rgb([255; 3]))
                .count();
            assert!(ink > 500, "{name}: {ink} pixels drawn");
        }
    }

    #[test]
    fn a_gap_interrupts_the_line() {
        let gap = |middle: f64| vec![series("", [(0.0, 1.0), (1.0, middle), (2.0, 1.0)])];
        let whole = count(&drawn(&[panel("", gap(1.0))]), COLOURS[0]);
        let broken = count(&drawn(&[panel("", gap(f64::NAN))]), COLOURS[0]);
        assert!(broken > 0 && broken < whole / 4, "{broken} of {whole}");
    }

    #[test]
    fn svg_holds_the_words_of_the_plot() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("curves.SVG");
        let lines = vec![series("ReTreever", [(0.0, 1.0), (5.0, 2.0)])];
        draw(&[panel("log-likelihood", lines)], &path).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("<svg") && text.trim_end().ends_with("</svg>"));
        for word in ["log-likelihood", "ReTreever", "nats", "step"] {
            assert!(text.contains(word), "{word} is missing");
        }
    }

    #[test]
    fn bad_paths_and_empty_plots_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let message = |panels: &[Panel], name: &str| {
            format!("{:#}", draw(panels, &folder.path().join(name)).unwrap_err())
        };
        let one = [panel("loss", Vec::new())];
        assert_eq!(message(&[], "a.png"), "a plot needs at least one panel");
        assert!(message(&one, "a.gif").ends_with("a.gif: expected a name ending in .png or .svg"));
        assert!(message(&one, "none/a.png").contains("none/a.png: cannot write the picture"));
        std::fs::create_dir(folder.path().join("folder.png")).unwrap();
        assert!(message(&one, "folder.png").contains("folder.png: cannot write the picture"));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn the_moving_mean_keeps_straight_lines_away_from_their_ends() {
        let line: Vec<_> = (0..50)
            .map(|x| (f64::from(x), 3.0 * f64::from(x)))
            .collect();
        let mean = moving_mean(&line, 9);
        for at in 4..46 {
            assert!(
                (mean[at].1 - line[at].1).abs() < 1e-9,
                "{:?} {:?}",
                mean[at],
                line[at]
            );
        }
        // At the ends the window is cut, not moved: the first mean is over points 0 to 4.
        assert_eq!((mean[0], mean[49].1), ((0.0, 6.0), 141.0));
        let noisy: Vec<_> = (0..50).map(|x| (f64::from(x), f64::from(x % 2))).collect();
        let mean = moving_mean(&noisy, 10)[25].1;
        assert!((mean - 0.5).abs() < 0.05, "{mean}");
    }

    #[test]
    fn axis_numbers_are_short() {
        let cases = [
            (0.0, "0"),
            (-1e-17, "0"),
            (0.25, "0.25"),
            (-3.0, "-3"),
            (1500.0, "1500"),
            (20_000.0, "20k"),
            (12_500.0, "12.5k"),
            (0.000_02, "2.0e-5"),
            (3e9, "3.0e9"),
        ];
        for (value, expected) in cases {
            assert_eq!(number(value), expected);
        }
    }
}
