//! Panels of lines.

use super::{Colour, Drawn, PAPER, refused};
use arbora_cli::picture::curves::{Panel, Scale, Series, draw};

/// The colours of the first three series.
const COLOURS: [Colour; 3] = [[0, 114, 178], [213, 94, 0], [0, 158, 115]];

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

fn drawn(panels: &[Panel]) -> Drawn {
    Drawn::by(|name| draw(panels, name))
}

#[test]
fn each_series_has_a_line_of_its_colour() {
    let line = |slope: f64| (0..50).map(move |x| (f64::from(x), slope * f64::from(x)));
    let lines = vec![series("a", line(1.0)), series("b", line(-1.0))];
    let picture = drawn(&[panel("loss", lines)]);
    for colour in &COLOURS[..2] {
        let count = picture.inked(*colour);
        assert!(count > 200, "{count}");
    }
    assert_eq!(picture.inked(COLOURS[2]), 0);
}

#[test]
fn spreads_are_drawn_and_their_ends_are_inside_the_axes() {
    let tinted = |band| {
        let line = series("", [(1.0, 1.0), (2.0, 2.0), (4.0, 3.0)]);
        let picture = drawn(&[Panel {
            x_scale: Scale::Log2,
            y_scale: Scale::Log10,
            ..panel("", vec![Series { band, ..line }])
        }]);
        picture.check("band");
        let pixels = picture.pixels().into_iter();
        pixels
            .filter(|pixel| pixel[0] < 225 && pixel[2] > 230)
            .count()
    };
    let ends = vec![(0.5, 1.5), (-1.0, 2.5), (2.5, f64::NAN)];
    assert!(tinted(ends) > tinted(Vec::new()) + 5000);
}

#[test]
fn a_spread_that_does_not_fit_its_points_is_refused() {
    let line = series("seeds", [(1.0, 1.0), (2.0, 2.0)]);
    let band = vec![(0.0, 1.0)];
    let panel = panel("", vec![Series { band, ..line }]);
    assert_eq!(
        refused(|name| draw(&[panel], name)),
        "series \"seeds\": band: expected 2 pairs, got 1"
    );
}

#[test]
fn long_titles_and_labels_stay_inside_their_panel() {
    let long = "words ".repeat(60);
    let line = series(&long, [(0.0, 1.0), (1.0, 2.0)]);
    let panel = Panel {
        x_label: long.clone(),
        y_label: long.clone(),
        ..panel(&long, vec![line])
    };
    drawn(&[panel]).check("long");
}

#[test]
fn panels_fill_two_columns() {
    let one = || panel("loss", vec![series("", [(0.0, 1.0), (1.0, 2.0)])]);
    let picture = drawn(&[one(), one(), one()]);
    assert_eq!(picture.size(), [2 * 560, 2 * 340]);
    picture.check("three panels");
}

#[test]
fn missing_values_and_empty_series_leave_a_readable_plot() {
    let hostile: [(&str, &[(f64, f64)]); 11] = [
        ("empty", &[]),
        ("nan", &[(0.0, f64::NAN), (1.0, f64::INFINITY)]),
        ("bad step", &[(f64::NAN, 1.0)]),
        ("one", &[(3.0, 7.0)]),
        ("flat", &[(0.0, 5.0), (10.0, 5.0)]),
        ("zero", &[(0.0, 0.0)]),
        ("vertical", &[(1.0, 0.0), (1.0, 9.0)]),
        ("huge", &[(0.0, f64::MAX), (1.0, f64::MIN), (2.0, 1.0)]),
        ("large", &[(0.0, 1e30), (1.0, -1e30)]),
        ("tiny", &[(0.0, 1e-300), (1.0, 2e-300)]),
        ("near", &[(0.0, 1.0), (1.0, 1.0 + f64::EPSILON)]),
    ];
    let lines = hostile.map(|(name, points)| vec![series(name, points.iter().copied())]);
    for lines in lines.into_iter().chain([vec![]]) {
        let name = lines
            .first()
            .map_or(String::new(), |line| line.name.clone());
        let picture = drawn(&[panel(&name, lines)]);
        picture.check(&name);
        let ink = picture.pixels().len() - picture.inked(PAPER);
        assert!(ink > 500, "{name}: {ink} pixels drawn");
    }
}

#[test]
fn a_gap_interrupts_the_line() {
    let inked = |middle: f64| {
        let line = series("", [(0.0, 1.0), (1.0, middle), (2.0, 1.0)]);
        drawn(&[panel("", vec![line])]).inked(COLOURS[0])
    };
    let (whole, broken) = (inked(1.0), inked(f64::NAN));
    assert!(broken > 0 && broken < whole / 4, "{broken} of {whole}");
}

#[test]
fn svg_holds_the_words_of_the_plot() {
    let lines = vec![series("ReTreever", [(0.0, 1.0), (5.0, 2.0)])];
    let text = drawn(&[panel("log-likelihood", lines)]).svg;
    assert!(text.starts_with("<svg") && text.trim_end().ends_with("</svg>"));
    for word in ["log-likelihood", "ReTreever", "nats", "step"] {
        assert!(text.contains(word), "{word} is missing");
    }
}

#[test]
fn text_may_hold_what_xml_cannot() {
    let texts = drawn(&[panel("a < b & \"c\"\0\u{1b}>", Vec::new())]).texts();
    let expected = "a < b & \"c\"\u{fffd}\u{fffd}>";
    assert!(texts.iter().any(|(text, _)| text == expected), "{texts:?}");
}

#[test]
fn bad_paths_and_empty_plots_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let one = [panel("loss", Vec::new())];
    assert_eq!(
        refused(|name| draw(&[], name)),
        "a plot needs at least one panel"
    );
    let assert_refused = |name: &str| {
        let error = draw(&one, &folder.path().join(name)).unwrap_err();
        let message = format!("{error:#}");
        assert!(
            message.starts_with("cannot write ") && message.contains(&format!("{name}.svg: ")),
            "{message}"
        );
    };
    assert_refused("none/a");
    std::fs::create_dir(folder.path().join("folder.svg")).unwrap();
    assert_refused("folder");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

/// The numbers on the horizontal axis of points at some places.
fn labels(places: &[f64], x_scale: Scale) -> Vec<String> {
    let line = series("", places.iter().map(|x| (*x, 0.5)));
    let panel = Panel {
        x_scale,
        ..panel("", vec![line])
    };
    // They stand in one row under the axis, above its name.
    let texts = drawn(&[panel]).texts().into_iter();
    let row =
        texts.filter(|(_, [_, top, _, bottom])| (294.0..310.0).contains(&((top + bottom) / 2.0)));
    row.map(|(text, _)| text).collect()
}

#[test]
fn logarithmic_axes_are_labelled_with_round_values() {
    let powers = labels(&[100.0, 200_000.0], Scale::Log2);
    assert_eq!(powers.join(" "), "2⁷ 2⁸ 2⁹ 2¹⁰ 2¹¹ 2¹² 2¹³ 2¹⁴ 2¹⁵ 2¹⁶ 2¹⁷");
    assert_eq!(labels(&[0.2, 1.1], Scale::Log2), ["2⁻²", "2⁻¹", "2⁰"]);
    for (places, expected) in [
        ([0.005, 200.0], "0.01 0.1 1 10 100"),
        ([0.9, 12.0], "1 2 5 10"),
        ([5.1, 5.9], "5.2 5.4 5.6 5.8"),
    ] {
        assert_eq!(labels(&places, Scale::Log10).join(" "), expected);
    }
    let many = labels(&[1e-30, 1e30], Scale::Log10);
    assert!((5..=12).contains(&many.len()), "{many:?}");
}

#[test]
fn whole_numbers_are_not_divided_on_a_linear_axis() {
    assert_eq!(labels(&[0.0, 1.0, 2.0], Scale::Linear), ["0", "1", "2"]);
    let parts = labels(&[0.0, 0.5, 2.0], Scale::Linear);
    assert!(parts.contains(&"0.5".to_owned()), "{parts:?}");
}

#[test]
fn a_power_law_is_straight_on_logarithmic_axes() {
    let drawn = |line| {
        drawn(&[Panel {
            x_scale: Scale::Log2,
            y_scale: Scale::Log10,
            ..panel("", vec![line])
        }])
    };
    let law = (0..10).map(|k| (2f64.powi(k), 3.0 * 2f64.powi(2 * k)));
    let svg = drawn(series("", law)).svg;
    let mut lines = svg.lines();
    let line = lines.find(|line| line.starts_with("<polyline") && line.contains("#0072B2"));
    let points = line.unwrap().split('"').nth(1).unwrap().split(' ');
    let points: Vec<Vec<f64>> = points
        .map(|point| point.split(',').map(|at| at.parse().unwrap()).collect())
        .collect();
    assert_eq!(points.len(), 10);
    for three in points.windows(3) {
        for axis in [0, 1] {
            let bend = three[0][axis] + three[2][axis] - 2.0 * three[1][axis];
            assert!(bend.abs() < 0.05, "{three:?}");
        }
    }
    let missing = drawn(series("", [(0.0, 1.0), (1.0, -1.0), (1.0, 1.0)]));
    assert_eq!(missing.count("circle", COLOURS[0]), 1);
    assert_eq!(missing.count("polyline", COLOURS[0]), 1);
}
