//! Panels of lines over steps, sizes or depths.

use std::{ops::Range, path::Path};

use anyhow::{Result, ensure};

use super::svg::{Anchor, Colour, PAPER, Place, Scene};
use super::text::{self, fit};

/// Size of one panel in pixels: width, height.
const PANEL: Place = [560, 340];
/// From this many points on, a series is drawn as a faint line under its moving mean.
const CROWDED: usize = 120;
/// The moving mean covers this fraction of a crowded series.
const WINDOW: usize = 40;
/// Room for the numbers and the name of the vertical axis.
const LEFT: i32 = 68;
/// Room for the numbers and the name of the horizontal axis.
const BELOW: i32 = 40;
/// Room for the title.
const ABOVE: i32 = 24;
const SPACE: i32 = 12;
/// About so many numbers have room on an axis.
const MANY: usize = 6;
/// Larger numbers leave no room for axes in double precision and count as missing.
const LARGEST: f64 = 1e30;

const TITLE: u32 = 15;
const NAME: u32 = 12;
const SMALL: u32 = 11;

const GRID: Colour = [215; 3];
const AXIS: Colour = [120; 3];
const BORDER: Colour = [200; 3];

/// Colours that stay apart for the colour-blind (Okabe and Ito, 2008), darkest first.
const COLOURS: [Colour; 7] = [
    [0, 114, 178],
    [213, 94, 0],
    [0, 158, 115],
    [204, 121, 167],
    [86, 180, 233],
    [230, 159, 0],
    [90; 3],
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
    /// The band around the line: its lower and upper end at each point, or nothing. Ends that are not finite are left
    /// out.
    pub band: Vec<(f64, f64)>,
}

/// Draws panels in two columns, as `NAME.svg` and `NAME.png`.
///
/// A series of 120 points or more is drawn faintly, with its moving mean over a fortieth of its
/// points on top. A panel without finite values says so. Titles and labels that are too long are set
/// smaller, then cut.
///
/// # Errors
/// If there are no panels, a band has not one pair per point, or a file cannot be written.
pub fn draw(panels: &[Panel], name: &Path) -> Result<()> {
    lay_out(panels)?.save(name)
}

fn lay_out(panels: &[Panel]) -> Result<Scene> {
    ensure!(!panels.is_empty(), "a plot needs at least one panel");
    for series in panels.iter().flat_map(|panel| &panel.series) {
        let (points, pairs) = (series.points.len(), series.band.len());
        ensure!(
            pairs == 0 || pairs == points,
            "series {:?}: band: expected {points} pairs, got {pairs}",
            series.name
        );
    }
    let columns = panels.len().min(2);
    let cells = [columns, panels.len().div_ceil(columns)];
    let corner = |cell: [usize; 2]| [0, 1].map(|axis| PANEL[axis] * cell[axis] as i32);
    let mut scene = Scene::new(corner(cells));
    for (at, panel) in panels.iter().enumerate() {
        draw_panel(&mut scene, panel, corner([at % columns, at / columns]));
    }
    Ok(scene)
}

/// The values along an axis and the pixels where they lie.
struct Axis {
    values: Range<f64>,
    /// Where numbers stand.
    ticks: Vec<f64>,
    /// From where to where: downwards for the vertical axis, whose values grow upwards.
    pixels: [i32; 2],
}

impl Axis {
    /// An axis that holds values, with a margin of a fraction of what they span.
    fn new(values: &[f64], margin: f64, scale: Scale, pixels: [i32; 2]) -> Self {
        let range = range(values, margin);
        Self {
            ticks: ticks(&range, scale, values),
            values: range,
            pixels,
        }
    }

    fn pixel(&self, value: f64) -> f64 {
        let [start, end] = self.pixels.map(f64::from);
        start + (end - start) * self.share(value)
    }

    /// 0 at the start of the axis, 1 at its end.
    fn share(&self, value: f64) -> f64 {
        (value - self.values.start) / (self.values.end - self.values.start)
    }
}

fn draw_panel(scene: &mut Scene, panel: &Panel, [x, y]: Place) {
    let lines: Vec<Vec<Point>> = panel
        .series
        .iter()
        .map(|series| place(series, panel.x_scale, panel.y_scale))
        .collect();
    let points = || lines.iter().flatten().filter(|point| point.is_finite());
    let xs: Vec<f64> = points().map(|point| point.x).collect();
    let ys: Vec<f64> = points().flat_map(Point::heights).collect();
    let [left, right] = [x + SPACE + LEFT, x + PANEL[0] - SPACE];
    let [top, bottom] = [y + SPACE + ABOVE, y + PANEL[1] - SPACE - BELOW];
    let axes = [
        Axis::new(&xs, 0.0, panel.x_scale, [left, right]),
        Axis::new(&ys, 0.05, panel.y_scale, [bottom, top]),
    ];
    draw_axes(scene, panel, &axes);
    let middle = [x + PANEL[0] / 2, y + SPACE + 10];
    let room = PANEL[0] - 2 * SPACE;
    scene.fitted_text(&panel.title, TITLE, Anchor::Middle, middle, room);
    if xs.is_empty() {
        let middle = [(left + right) / 2, (top + bottom) / 2];
        return scene.text("no data", 13, Anchor::Middle, middle);
    }

    let at = |x: f64, y: f64| [axes[0].pixel(x), axes[1].pixel(y)];
    let coloured = || panel.series.iter().zip(&lines).zip(COLOURS.iter().cycle());
    // Bands lie under all lines.
    for ((series, line), colour) in coloured() {
        let has_band = |run: &&[Point]| !series.band.is_empty() && run.len() > 1;
        for run in runs(line).filter(has_band) {
            let low = run.iter().map(|point| at(point.x, point.ends[0]));
            let high = run.iter().rev().map(|point| at(point.x, point.ends[1]));
            scene.polygon(&low.chain(high).collect::<Vec<_>>(), *colour, 0.18);
        }
    }
    for ((_, line), colour) in coloured() {
        let finite = line.iter().filter(|point| point.is_finite()).count();
        let is_crowded = finite >= CROWDED;
        let (width, opacity) = if is_crowded { (1, 0.25) } else { (2, 1.0) };
        for run in runs(line) {
            let centres: Vec<_> = run.iter().map(|point| at(point.x, point.y)).collect();
            scene.polyline(&centres, width, *colour, opacity);
            if is_crowded && run.len() > 1 {
                scene.polyline(&moving_mean(&centres, finite / WINDOW), 2, *colour, 1.0);
            }
            // A line through one point has no length.
            if let [centre] = centres[..] {
                scene.circle(centre, 3, *colour);
            }
        }
    }
    draw_legend(scene, panel, &axes, emptiest_corner(points(), &axes));
}

/// The grid, the axes with their numbers and their names.
fn draw_axes(scene: &mut Scene, panel: &Panel, axes: &[Axis; 2]) {
    let ([left, right], [bottom, top]) = (axes[0].pixels, axes[1].pixels);
    for &tick in &axes[0].ticks {
        let x = axes[0].pixel(tick).round() as i32;
        scene.line([x, top], [x, bottom], 1, GRID);
        scene.line([x, bottom], [x, bottom + 5], 1, AXIS);
        let name = panel.x_scale.name(tick);
        // A long number at the end of the axis would stand in the next panel.
        let most = right + SPACE - text::width(&name, SMALL) as i32 / 2;
        scene.text(&name, SMALL, Anchor::Middle, [x.min(most), bottom + 14]);
    }
    for &tick in &axes[1].ticks {
        let y = axes[1].pixel(tick).round() as i32;
        scene.line([left, y], [right, y], 1, GRID);
        scene.line([left - 5, y], [left, y], 1, AXIS);
        scene.text(&panel.y_scale.name(tick), SMALL, Anchor::End, [left - 9, y]);
    }
    scene.line([left, top], [left, bottom], 1, AXIS);
    scene.line([left, bottom], [right, bottom], 1, AXIS);
    let x_label = match panel.x_label.as_str() {
        "" => "step",
        label => label,
    };
    let (across, down) = (right - left, bottom - top);
    // One size for both axes.
    let (_, size) = fit(x_label, NAME, across);
    let (y_label, size) = fit(&panel.y_label, size, down);
    let (x_label, _) = fit(x_label, size, across);
    let middle = [(left + right) / 2, bottom + BELOW - 6];
    scene.text(&x_label, size, Anchor::Middle, middle);
    let middle = [left - LEFT + 6, (top + bottom) / 2];
    scene.text(&y_label, size, Anchor::Upwards, middle);
}

/// The names of series with their colours, in a corner; nothing without names.
fn draw_legend(scene: &mut Scene, panel: &Panel, axes: &[Axis; 2], corner: [bool; 2]) {
    const ROW: i32 = 17;
    const LINE: i32 = 18;
    let ([left, right], [bottom, top]) = (axes[0].pixels, axes[1].pixels);
    let room = (right - left) * 2 / 3;
    let named = panel.series.iter().zip(COLOURS.iter().cycle());
    let names: Vec<_> = named
        .filter(|(series, _)| !series.name.is_empty())
        .map(|(series, colour)| (fit(&series.name, SMALL, room), *colour))
        .collect();
    let width = |((name, size), _): &((String, u32), _)| text::width(name, *size).ceil() as i32;
    let Some(widest) = names.iter().map(width).max() else {
        return;
    };
    let (width, height) = (widest + LINE + 3 * 8, ROW * names.len() as i32 + 8);
    let x = [left + 4, right - width - 4][usize::from(corner[0])];
    let y = [top + 4, bottom - height - 4][usize::from(corner[1])];
    // What lies under it shows through.
    let [far, low] = [x + width, y + height];
    let corners = [[x, y], [far, y], [far, low], [x, low], [x, y]];
    scene.polygon(&corners, PAPER, 0.85);
    for side in corners.windows(2) {
        scene.line(side[0], side[1], 1, BORDER);
    }
    for (row, ((name, size), colour)) in names.iter().enumerate() {
        let middle = y + 4 + ROW / 2 + ROW * row as i32;
        scene.line([x + 8, middle], [x + 8 + LINE, middle], 2, *colour);
        scene.text(name, *size, Anchor::Start, [x + 16 + LINE, middle]);
    }
}

/// A point where it is drawn.
#[derive(Clone, Copy)]
struct Point {
    x: f64,
    y: f64,
    /// The ends of the band; the point itself where there are none.
    ends: [f64; 2],
}

impl Point {
    fn is_finite(&self) -> bool {
        is_drawable(self.x) && is_drawable(self.y)
    }

    fn heights(&self) -> [f64; 3] {
        [self.y, self.ends[0], self.ends[1]]
    }
}

fn is_drawable(value: f64) -> bool {
    // NaN fails the comparison.
    value.abs() <= LARGEST
}

/// The points of a series on axes of the given scales.
fn place(series: &Series, x_scale: Scale, y_scale: Scale) -> Vec<Point> {
    let point = |(at, &(x, y)): (usize, &(f64, f64))| {
        let (x, y) = (x_scale.place(x), y_scale.place(y));
        let (low, high) = series.band.get(at).copied().unwrap_or((f64::NAN, f64::NAN));
        let ends = [low, high].map(|end| Some(y_scale.place(end)).filter(|end| is_drawable(*end)));
        let ends = ends.map(|end| end.unwrap_or(y));
        Point { x, y, ends }
    };
    series.points.iter().enumerate().map(point).collect()
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

/// Where numbers stand on an axis from one place to another; `drawn` are the places of the points.
fn ticks(axis: &Range<f64>, scale: Scale, drawn: &[f64]) -> Vec<f64> {
    /// Fewer do not show a scale.
    const FEW: usize = 3;
    let slack = 1e-9 * (axis.end - axis.start);
    let inside = |place: &f64| (axis.start - slack..=axis.end + slack).contains(place);
    if scale == Scale::Linear {
        // Between whole numbers, such as depths, there is nothing to name.
        let are_whole = drawn.iter().all(|value| value.fract() == 0.0);
        let mut ticks = even(axis);
        ticks.retain(|tick| !are_whole || tick.fract() == 0.0);
        return ticks;
    }
    let (first, last) = (axis.start.ceil() as i64, axis.end.floor() as i64);
    let whole: Vec<_> = (first..=last).map(|place| place as f64).collect();
    if whole.len() >= FEW {
        let step = whole.len().div_ceil(2 * MANY);
        return whole.into_iter().step_by(step).collect();
    }
    if scale == Scale::Log10 {
        let parts = (first - 1..=last)
            .flat_map(|power| [1.0f64, 2.0, 5.0].map(|part| power as f64 + part.log10()));
        let parts: Vec<_> = parts.filter(inside).collect();
        if parts.len() >= FEW {
            return parts;
        }
    }
    let values = even(&(scale.value(axis.start)..scale.value(axis.end)));
    let places = values.into_iter().map(|value| scale.place(value));
    places.filter(inside).collect()
}

/// Multiples of 1, 2 or 5 times a power of ten, the smallest of these steps that gives no more than are readable.
fn even(axis: &Range<f64>) -> Vec<f64> {
    let width = axis.end - axis.start;
    let power = (width / MANY as f64).log10().floor() as i32;
    let steps = [(1.0, power), (2.0, power), (5.0, power), (1.0, power + 1)];
    // Dividing by a whole number keeps what is whole exactly so.
    let value = |count: f64, (factor, power): (f64, i32)| match power {
        0.. => count * factor * 10f64.powi(power),
        _ => count * factor / 10f64.powi(-power),
    };
    let fits = |step: &&(f64, i32)| value(MANY as f64, **step) >= width;
    let step = *steps.iter().find(fits).unwrap_or(&steps[3]);
    let first = (axis.start / value(1.0, step)).ceil();
    let ticks = (0..=MANY).map(|at| value(first + at as f64, step));
    ticks
        .take_while(|tick| *tick <= axis.end + 1e-9 * width)
        .collect()
}

/// The stretches of a line between values that are not finite.
fn runs(points: &[Point]) -> impl Iterator<Item = &[Point]> {
    points
        .split(|point| !point.is_finite())
        .filter(|run| !run.is_empty())
}

/// From the least to the largest value, with a margin of a fraction of that. Never empty.
fn range(values: &[f64], margin: f64) -> Range<f64> {
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let largest = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
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

/// Each height replaced by the mean over `window` heights around it, fewer at the ends.
fn moving_mean(points: &[[f64; 2]], window: usize) -> Vec<[f64; 2]> {
    let reach = window / 2;
    let mut sums = vec![0.0];
    for (at, [_, y]) in points.iter().enumerate() {
        sums.push(sums[at] + y);
    }
    let mean = |(at, [x, _]): (usize, &[f64; 2])| {
        let (from, to) = (at.saturating_sub(reach), points.len().min(at + reach + 1));
        [*x, (sums[to] - sums[from]) / (to - from) as f64]
    };
    points.iter().enumerate().map(mean).collect()
}

/// Where the legend hides the fewest points: whether right, and whether down.
fn emptiest_corner<'a>(points: impl Iterator<Item = &'a Point>, axes: &[Axis; 2]) -> [bool; 2] {
    let mut counts = [[0; 2]; 2];
    for point in points {
        let right = axes[0].share(point.x);
        for y in point.heights() {
            let up = axes[1].share(y);
            // The middle is under no corner.
            if !(0.4..=0.6).contains(&right) && !(0.35..=0.65).contains(&up) {
                counts[usize::from(right > 0.6)][usize::from(up < 0.35)] += 1;
            }
        }
    }
    // The first of equals wins: upper right is where readers look.
    let corners = [[true, false], [true, true], [false, false], [false, true]];
    let hidden = |corner: &[bool; 2]| counts[usize::from(corner[0])][usize::from(corner[1])];
    corners.into_iter().min_by_key(hidden).unwrap_or_default()
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

    #[test]
    fn the_moving_mean_keeps_straight_lines_away_from_their_ends() {
        let points = |y: fn(u32) -> u32| (0..50).map(move |x| [x, y(x)].map(f64::from));
        let line: Vec<_> = points(|x| 3 * x).collect();
        let mean = moving_mean(&line, 9);
        for (one, other) in mean[4..46].iter().zip(&line[4..46]) {
            assert!((one[1] - other[1]).abs() < 1e-9, "{one:?} {other:?}");
        }
        // At the ends the window is cut, not moved: the first mean is over points 0 to 4.
        assert_eq!((mean[0], mean[49][1]), ([0.0, 6.0], 141.0));
        let noisy: Vec<_> = points(|x| x % 2).collect();
        let mean = moving_mean(&noisy, 10)[25][1];
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
