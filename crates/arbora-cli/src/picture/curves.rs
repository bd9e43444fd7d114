//! Panels of lines over steps, sizes or depths.

use std::{ops::Range, path::Path};

use anyhow::{Result, anyhow, ensure};
use image::{Rgb, RgbImage};
use plotters::{
    coord::{
        Shift,
        ranged1d::{DefaultFormatting, KeyPointHint, Ranged},
        types::RangedCoordf64,
    },
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};

use super::{Format, canvas::Canvas, fit};

/// Size of one panel in pixels: width, height.
const PANEL: (u32, u32) = (560, 340);
/// From this many points on, a series is drawn as a faint line under its moving mean.
const CROWDED: usize = 120;
/// The moving mean covers this fraction of a crowded series.
const WINDOW: usize = 40;
/// Room for the numbers and the name of the vertical axis.
const LEFT: u32 = 68;
/// Room for the numbers and the name of the horizontal axis.
const BELOW: u32 = 40;
const SPACE: u32 = 12;
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
    /// Quantity and unit of the horizontal axis; "step" if empty.
    pub x_label: String,
    /// Quantity and unit of the vertical axis.
    pub y_label: String,
    /// The horizontal axis.
    pub x_scale: Scale,
    /// The vertical axis.
    pub y_scale: Scale,
    /// The lines.
    pub series: Vec<Series>,
}

/// How values become positions on an axis.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Scale {
    /// In proportion.
    #[default]
    Linear,
    /// By logarithm, labelled with powers of two. Values that are not positive count as missing.
    Log2,
    /// By logarithm, labelled with decimal numbers. Values that are not positive count as missing.
    Log10,
}

/// One line.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Series {
    /// Its name in the legend; without names there is no legend.
    pub name: String,
    /// Step and value. A value that is not finite interrupts the line.
    pub points: Vec<(f64, f64)>,
    /// How far values spread around the points.
    pub spread: Spread,
}

/// From where to where values spread around each point of a line: one pair, of the units of the
/// vertical axis, per point. Ends that are not finite are left out.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Spread {
    /// Not drawn.
    #[default]
    None,
    /// A band around the line.
    Band(Vec<(f64, f64)>),
    /// A bar through each point.
    Bars(Vec<(f64, f64)>),
}

impl Spread {
    /// The pairs, if any.
    fn ends(&self) -> &[(f64, f64)] {
        match self {
            Self::None => &[],
            Self::Band(ends) | Self::Bars(ends) => ends,
        }
    }
}

impl Series {
    /// The means of repeated measurements, such as of several seeds, with bars of one standard
    /// deviation to either side.
    ///
    /// The standard deviation is that of a sample (divided by n - 1); a single measurement has no bar,
    /// and a step without measurements no point.
    ///
    /// - measurements: step and the values measured there
    pub fn with_deviations(name: &str, measurements: &[(f64, Vec<f64>)]) -> Self {
        let mut points = Vec::new();
        let mut bars = Vec::new();
        for (x, values) in measurements.iter().filter(|(_, values)| !values.is_empty()) {
            let count = values.len() as f64;
            let mean = values.iter().sum::<f64>() / count;
            let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
            let deviation = (squares / (count - 1.0)).sqrt();
            points.push((*x, mean));
            // 0 / 0 for a single value: not finite, so it is left out.
            bars.push((mean - deviation, mean + deviation));
        }
        Self {
            name: name.into(),
            points,
            spread: Spread::Bars(bars),
        }
    }
}

/// Draws panels in two columns, as PNG or SVG by the ending of `path`.
///
/// A series of 120 points or more is drawn faintly, with its moving mean over a fortieth of its
/// points on top. A panel without finite values says so. Titles and labels that are too long are set
/// smaller, then cut.
///
/// # Errors
/// If there are no panels, a spread has not one pair per point, the ending is neither `png` nor `svg`,
/// or the file cannot be written.
pub fn draw(panels: &[Panel], path: &Path) -> Result<()> {
    ensure!(!panels.is_empty(), "a plot needs at least one panel");
    for series in panels.iter().flat_map(|panel| &panel.series) {
        let (points, pairs) = (series.points.len(), series.spread.ends().len());
        ensure!(
            series.spread == Spread::None || pairs == points,
            "series {:?}: spread: expected {points} pairs, got {pairs}",
            series.name
        );
    }
    let format = Format::of(path)?;
    super::load_font()?;
    let columns = panels.len().min(2);
    let rows = panels.len().div_ceil(columns);
    let size = (PANEL.0 * columns as u32, PANEL.1 * rows as u32);
    match format {
        Format::Png => {
            let mut picture = RgbImage::from_pixel(size.0, size.1, Rgb([255; 3]));
            let canvas = Canvas::new(&mut picture)?;
            render(canvas.into_drawing_area(), panels, [rows, columns])?;
            super::save_png(&picture, path)
        }
        Format::Svg => {
            let mut text = String::new();
            let backend = SVGBackend::with_string(&mut text, size);
            render(backend.into_drawing_area(), panels, [rows, columns])?;
            crate::whole::write(path, text)
        }
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
    let lines: Vec<Vec<Point>> = panel
        .series
        .iter()
        .map(|series| place(series, panel.x_scale, panel.y_scale))
        .collect();
    let points = || lines.iter().flatten().filter(|point| point.is_finite());
    let has_bars = panel
        .series
        .iter()
        .any(|series| matches!(series.spread, Spread::Bars(_)));
    let x = range(
        points().map(|point| point.x),
        if has_bars { 0.04 } else { 0.0 },
    );
    let y = range(
        points().flat_map(|point| {
            let (low, high) = point.ends();
            [point.y, low, high]
        }),
        0.05,
    );
    let (title, title_size) = fit(&panel.title, 17, (PANEL.0 - 2 * SPACE) as i32);
    let x_label = match panel.x_label.as_str() {
        "" => "step",
        label => label,
    };
    let across = PANEL.0 - LEFT - 2 * SPACE;
    let down = PANEL.1 - BELOW - 2 * SPACE - 2 * 17;
    // One size for both axes.
    let size = fit(x_label, 14, across as i32)
        .1
        .min(fit(&panel.y_label, 14, down as i32).1);
    let (x_label, _) = fit(x_label, size, across as i32);
    let (y_label, _) = fit(&panel.y_label, size, down as i32);
    let x_ticks = ticks(&x, panel.x_scale, points().map(|point| point.x));
    let y_ticks = ticks(&y, panel.y_scale, points().map(|point| point.y));
    let mut chart = ChartBuilder::on(area)
        .caption(title, super::text(title_size))
        .margin(SPACE)
        .x_label_area_size(BELOW)
        .y_label_area_size(LEFT)
        .build_cartesian_2d(Axis::new(&x, x_ticks), Axis::new(&y, y_ticks))?;
    chart
        .configure_mesh()
        .x_label_formatter(&|x| panel.x_scale.name(*x))
        .y_label_formatter(&|y| panel.y_scale.name(*y))
        .x_desc(x_label)
        .y_desc(y_label)
        .label_style(super::text(13))
        .axis_desc_style(super::text(size))
        .bold_line_style(RGBColor(215, 215, 215))
        .light_line_style(TRANSPARENT)
        .axis_style(RGBColor(120, 120, 120))
        .draw()?;
    if points().next().is_none() {
        let style = super::text(15).pos(Pos::new(HPos::Center, VPos::Center));
        let middle = ((x.start + x.end) / 2.0, (y.start + y.end) / 2.0);
        return chart
            .draw_series([Text::new("no data", middle, style)])
            .map(|_| ());
    }

    let colours = || COLOURS.iter().cycle().map(|colour| colour.to_rgba());
    // Bands lie under all lines.
    for ((series, line), colour) in panel.series.iter().zip(&lines).zip(colours()) {
        if !matches!(series.spread, Spread::Band(_)) {
            continue;
        }
        for run in runs(line).filter(|run| run.len() > 1) {
            let low = run.iter().map(|point| (point.x, point.ends().0));
            let high = run.iter().rev().map(|point| (point.x, point.ends().1));
            let border: Vec<_> = low.chain(high).collect();
            chart.draw_series([Polygon::new(border, colour.mix(0.18).filled())])?;
        }
    }
    for ((series, line), colour) in panel.series.iter().zip(&lines).zip(colours()) {
        let finite = line.iter().filter(|point| point.is_finite()).count();
        let crowded = finite >= CROWDED;
        let raw = if crowded {
            colour.mix(0.25).stroke_width(1)
        } else {
            colour.stroke_width(2)
        };
        for run in runs(line) {
            let places: Vec<_> = run.iter().map(|point| (point.x, point.y)).collect();
            match places[..] {
                // A line through one point has no length.
                [point] => chart.draw_series([Circle::new(point, 3, colour.filled())])?,
                _ => chart.draw_series(LineSeries::new(places.iter().copied(), raw))?,
            };
            if crowded && places.len() > 1 {
                let mean = moving_mean(&places, finite / WINDOW);
                chart.draw_series(LineSeries::new(mean, colour.stroke_width(2)))?;
            }
            if matches!(series.spread, Spread::Bars(_)) {
                let ends = |point: &Point| <[f64; 2]>::from(point.ends()).map(|end| (point.x, end));
                let bars = run
                    .iter()
                    .map(|point| PathElement::new(ends(point), colour));
                chart.draw_series(bars)?;
                let caps = run
                    .iter()
                    .flat_map(ends)
                    .map(|end| EmptyElement::at(end) + PathElement::new([(-4, 0), (5, 0)], colour));
                chart.draw_series(caps)?;
                let centres = places.iter();
                chart.draw_series(centres.map(|at| Circle::new(*at, 3, colour.filled())))?;
            }
        }
        // An empty series of its own, so that the name comes once however often a line is broken.
        if !series.name.is_empty() {
            let (name, _) = fit(&series.name, 13, across as i32 * 2 / 3);
            chart
                .draw_series(LineSeries::new(std::iter::empty(), colour.stroke_width(2)))?
                .label(name)
                .legend(move |(x, y)| {
                    PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2))
                });
        }
    }
    if panel.series.iter().any(|series| !series.name.is_empty()) {
        let inked = points().flat_map(|point| {
            let (low, high) = point.ends();
            [low, point.y, high].map(|y| (point.x, y))
        });
        chart
            .configure_series_labels()
            .position(emptiest_corner(inked, &x, &y))
            .margin(8)
            .legend_area_size(24)
            .background_style(WHITE.mix(0.85))
            .border_style(RGBColor(200, 200, 200))
            .label_font(super::text(13))
            .draw()?;
    }
    Ok(())
}

/// An axis with given places for its numbers.
struct Axis {
    range: RangedCoordf64,
    ticks: Vec<f64>,
}

impl Axis {
    fn new(range: &Range<f64>, ticks: Vec<f64>) -> Self {
        let range = range.clone().into();
        Self { range, ticks }
    }
}

impl Ranged for Axis {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        self.range.map(value, limit)
    }

    fn key_points<Hint: KeyPointHint>(&self, _: Hint) -> Vec<f64> {
        self.ticks.clone()
    }

    fn range(&self) -> Range<f64> {
        self.range.range()
    }
}

/// A point where it is drawn.
#[derive(Clone, Copy)]
struct Point {
    x: f64,
    y: f64,
    /// The ends of the spread; not finite where there is none.
    low: f64,
    high: f64,
}

impl Point {
    fn is_finite(&self) -> bool {
        is_drawable(self.x) && is_drawable(self.y)
    }

    /// The ends of the spread, the point itself where there is none.
    fn ends(&self) -> (f64, f64) {
        let end = |end: f64| if is_drawable(end) { end } else { self.y };
        (end(self.low), end(self.high))
    }
}

fn is_drawable(value: f64) -> bool {
    // NaN fails the comparison.
    value.abs() <= LARGEST
}

/// The points of a series on axes of the given scales.
fn place(series: &Series, x_scale: Scale, y_scale: Scale) -> Vec<Point> {
    let ends = series.spread.ends().iter().copied();
    let ends = ends.chain(std::iter::repeat((f64::NAN, f64::NAN)));
    let point = |(&(x, y), (low, high)): (&(f64, f64), (f64, f64))| Point {
        x: x_scale.place(x),
        y: y_scale.place(y),
        low: y_scale.place(low),
        high: y_scale.place(high),
    };
    series.points.iter().zip(ends).map(point).collect()
}

impl Scale {
    /// Where on the axis a value lies; not finite if nowhere.
    fn place(self, value: f64) -> f64 {
        match self {
            Self::Linear => value,
            Self::Log2 if value > 0.0 => value.log2(),
            Self::Log10 if value > 0.0 => value.log10(),
            _ => f64::NAN,
        }
    }

    /// The value at a place on the axis.
    fn value(self, place: f64) -> f64 {
        match self {
            Self::Linear => place,
            Self::Log2 => place.exp2(),
            Self::Log10 => 10f64.powf(place),
        }
    }

    /// What stands at a place on the axis.
    fn name(self, place: f64) -> String {
        if self == Self::Log2 && place.fract() == 0.0 {
            let raised = |character: char| match character {
                '-' => '⁻',
                '1' => '¹',
                '2' => '²',
                '3' => '³',
                // The others follow each other from zero on.
                digit => char::from_u32(0x2070 + digit.to_digit(10).unwrap_or(0)).unwrap_or(digit),
            };
            let power = (place as i64).to_string();
            return format!("2{}", power.chars().map(raised).collect::<String>());
        }
        number(self.value(place))
    }
}

/// Where numbers stand on an axis from one place to another.
fn ticks(axis: &Range<f64>, scale: Scale, drawn: impl Iterator<Item = f64>) -> Vec<f64> {
    /// About so many numbers have room.
    const MANY: usize = 6;
    /// Fewer do not show a scale.
    const FEW: usize = 3;
    let inside = |places: Vec<f64>| -> Vec<f64> {
        let slack = 1e-9 * (axis.end - axis.start);
        let range = axis.start - slack..=axis.end + slack;
        places
            .into_iter()
            .filter(|place| range.contains(place))
            .collect()
    };
    let even = |values: Range<f64>| RangedCoordf64::from(values).key_points(MANY);
    if scale == Scale::Linear {
        let all = even(axis.clone());
        // Between whole numbers, such as depths, there is nothing to name.
        let whole: Vec<_> = all
            .iter()
            .copied()
            .filter(|tick| tick.fract() == 0.0)
            .collect();
        let are_whole = drawn.map(f64::fract).all(|rest| rest == 0.0);
        return if are_whole && !whole.is_empty() {
            whole
        } else {
            all
        };
    }
    let (first, last) = (axis.start.ceil() as i64, axis.end.floor() as i64);
    let whole: Vec<_> = (first..=last).collect();
    if whole.len() >= FEW {
        let step = whole.len().div_ceil(2 * MANY);
        return whole
            .into_iter()
            .step_by(step)
            .map(|place| place as f64)
            .collect();
    }
    if scale == Scale::Log10 {
        let parts = (first - 1..=last)
            .flat_map(|power| [1.0f64, 2.0, 5.0].map(|part| power as f64 + part.log10()));
        let parts = inside(parts.collect());
        if parts.len() >= FEW {
            return parts;
        }
    }
    let values = even(scale.value(axis.start)..scale.value(axis.end));
    inside(values.into_iter().map(|value| scale.place(value)).collect())
}

/// The stretches of a line between values that are not finite.
fn runs(points: &[Point]) -> impl Iterator<Item = &[Point]> {
    points
        .split(|point| !point.is_finite())
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
            ..Series::default()
        }
    }

    fn panel(title: &str, series: Vec<Series>) -> Panel {
        Panel {
            title: title.into(),
            y_label: "nats".into(),
            series,
            ..Panel::default()
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

    fn ticks_of(range: Range<f64>, scale: Scale) -> Vec<String> {
        let place = |value| scale.place(value);
        let axis = place(range.start)..place(range.end);
        let ticks = ticks(&axis, scale, [0.5].into_iter());
        ticks.into_iter().map(|tick| scale.name(tick)).collect()
    }

    #[test]
    fn logarithmic_axes_are_labelled_with_round_values() {
        assert_eq!(
            ticks_of(100.0..200_000.0, Scale::Log2),
            [
                "2⁷", "2⁸", "2⁹", "2¹⁰", "2¹¹", "2¹²", "2¹³", "2¹⁴", "2¹⁵", "2¹⁶", "2¹⁷"
            ]
        );
        assert_eq!(ticks_of(0.2..1.1, Scale::Log2), ["2⁻²", "2⁻¹", "2⁰"]);
        assert_eq!(
            ticks_of(0.005..200.0, Scale::Log10),
            ["0.01", "0.1", "1", "10", "100"]
        );
        assert_eq!(ticks_of(0.9..12.0, Scale::Log10), ["1", "2", "5", "10"]);
        assert_eq!(
            ticks_of(5.1..5.9, Scale::Log10),
            ["5.2", "5.4", "5.6", "5.8"]
        );
        let many = ticks_of(1e-30..1e30, Scale::Log10);
        assert!((5..=12).contains(&many.len()), "{many:?}");
    }

    #[test]
    fn whole_numbers_are_not_divided_on_a_linear_axis() {
        let whole = ticks(&(0.0..2.0), Scale::Linear, [0.0, 1.0, 2.0].into_iter());
        assert_eq!(whole, [0.0, 1.0, 2.0]);
        let parts = ticks(&(0.0..2.0), Scale::Linear, [0.0, 0.5].into_iter());
        assert!(parts.contains(&0.5), "{parts:?}");
    }

    #[test]
    fn a_power_law_is_straight_on_logarithmic_axes() {
        let law = series("", (0..10).map(|k| (2f64.powi(k), 3.0 * 2f64.powi(2 * k))));
        let places = place(&law, Scale::Log2, Scale::Log2);
        for pair in places.windows(2) {
            assert!((pair[1].y - pair[0].y - 2.0).abs() < 1e-12);
        }
        let missing = series("", [(0.0, 1.0), (1.0, -1.0), (1.0, 1.0)]);
        let missing = place(&missing, Scale::Log10, Scale::Log2);
        let drawn: Vec<_> = missing.iter().map(Point::is_finite).collect();
        assert_eq!(drawn, [false, false, true]);
    }

    #[test]
    fn repeated_measurements_have_a_mean_and_a_deviation() {
        let measured = [(1.0, vec![1.0, 3.0]), (2.0, vec![5.0]), (3.0, vec![])];
        let line = Series::with_deviations("seeds", &measured);
        assert_eq!(line.points, [(1.0, 2.0), (2.0, 5.0)]);
        let ends = line.spread.ends();
        assert!((ends[0].0 - (2.0 - 2f64.sqrt())).abs() < 1e-12);
        assert!((ends[0].1 - (2.0 + 2f64.sqrt())).abs() < 1e-12);
        assert_eq!(
            place(&line, Scale::Linear, Scale::Linear)[1].ends(),
            (5.0, 5.0)
        );
    }

    #[test]
    fn spreads_are_drawn_and_their_ends_are_inside_the_axes() {
        let with = |spread: Spread| {
            let line = series("", [(1.0, 1.0), (2.0, 2.0), (4.0, 3.0)]);
            let line = Series { spread, ..line };
            Panel {
                x_scale: Scale::Log2,
                y_scale: Scale::Log10,
                ..panel("", vec![line])
            }
        };
        let ends = || vec![(0.5, 1.5), (-1.0, 2.5), (2.5, f64::NAN)];
        let bare = drawn(&[with(Spread::None)]);
        let band = drawn(&[with(Spread::Band(ends()))]);
        let bars = drawn(&[with(Spread::Bars(ends()))]);
        let tinted = |picture: &RgbImage| {
            let tint = |pixel: &&Rgb<u8>| pixel.0[0] < 225 && pixel.0[2] > 230;
            picture.pixels().filter(tint).count()
        };
        assert!(tinted(&band) > tinted(&bare) + 5000);
        assert!(count(&bars, COLOURS[0]) > count(&bare, COLOURS[0]));
    }

    #[test]
    fn a_spread_that_does_not_fit_its_points_is_refused() {
        let line = series("seeds", [(1.0, 1.0), (2.0, 2.0)]);
        let spread = Spread::Band(vec![(0.0, 1.0)]);
        let line = Series { spread, ..line };
        let error = draw(&[panel("", vec![line])], Path::new("never-written.png")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "series \"seeds\": spread: expected 2 pairs, got 1"
        );
    }

    #[test]
    fn long_titles_and_labels_stay_inside_their_panel() {
        let long = "words ".repeat(60);
        let line = series(&long, [(0.0, 1.0), (1.0, 2.0)]);
        let picture = drawn(&[Panel {
            x_label: long.clone(),
            y_label: long.clone(),
            ..panel(&long, vec![line])
        }]);
        let is_blank = |x: u32, y: u32| picture.get_pixel(x, y).0 == [255; 3];
        let (right, bottom) = (PANEL.0 - 1, PANEL.1 - 1);
        assert!((0..=right).all(|x| is_blank(x, 0) && is_blank(x, bottom)));
        assert!((0..=bottom).all(|y| is_blank(0, y) && is_blank(right, y)));
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
        let refused = |name: &str| {
            let message = message(&one, name);
            message.starts_with("cannot write ") && message.contains(&format!("{name}: "))
        };
        assert!(refused("none/a.png"));
        std::fs::create_dir(folder.path().join("folder.png")).unwrap();
        assert!(refused("folder.png"));
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
