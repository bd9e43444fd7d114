//! How sure a policy is.

use super::Drawn;
use arbora_cli::picture::confidence::{ConfidencePicture, QueryDecisions, panels};
use arbora_cli::picture::curves;

fn query(probability: &[f32], is_right: Option<bool>) -> QueryDecisions {
    QueryDecisions {
        probability: probability.to_vec(),
        entropy: probability.iter().map(|p| 1.0 - p).collect(),
        is_right,
    }
}

fn picture(queries: Vec<QueryDecisions>) -> ConfidencePicture {
    ConfidencePicture {
        title: "Copy".into(),
        branching: 2,
        queries,
    }
}

#[test]
fn means_and_quartiles_are_taken_at_each_depth() {
    let queries = [0.0, 0.25, 0.5, 0.75, 1.0].map(|p| query(&[p, 1.0], None));
    let [probability, entropy] = panels(&picture(queries.to_vec())).unwrap();
    assert_eq!(probability.title, "Copy: probability of the chosen child");
    assert_eq!(probability.series[0].name, "mean of 5 queries");
    assert_eq!(probability.series[0].points, [(0.0, 0.5), (1.0, 1.0)]);
    assert_eq!(probability.series[0].band, [(0.25, 0.75), (1.0, 1.0)]);
    assert_eq!(probability.series[1].points, [(0.0, 0.5), (1.0, 0.5)]);
    assert_eq!(entropy.series[0].points, [(0.0, 0.5), (1.0, 0.0)]);
    assert_eq!(entropy.series[1].points[0].1, 2f64.ln());
}

#[test]
fn right_and_wrong_answers_have_lines_of_their_own() {
    let queries = vec![
        query(&[1.0], Some(true)),
        query(&[0.5], Some(false)),
        query(&[0.75], Some(false)),
    ];
    let [probability, _] = panels(&picture(queries)).unwrap();
    let lines: Vec<_> = probability
        .series
        .iter()
        .map(|series| (series.name.as_str(), series.points[0].1))
        .collect();
    assert_eq!(
        lines,
        [
            ("answer right (1 queries)", 1.0),
            ("answer wrong (2 queries)", 0.625),
            ("uniform policy", 0.5)
        ]
    );
}

#[test]
fn decisions_that_were_forced_are_left_out() {
    let queries = vec![
        query(&[f32::NAN, 0.5], None),
        query(&[0.75, f32::NAN, 0.25], None),
    ];
    let [probability, _] = panels(&picture(queries)).unwrap();
    assert_eq!(
        probability.series[0].points,
        [(0.0, 0.75), (1.0, 0.5), (2.0, 0.25)]
    );
    let forced = panels(&picture(vec![query(&[f32::NAN], None)])).unwrap();
    assert!(forced[0].series[0].points[0].1.is_nan());
}

#[test]
fn pictures_are_drawn_with_and_without_queries() {
    for (name, queries) in [
        ("none", vec![]),
        ("no decisions", vec![query(&[], Some(true))]),
        ("one", vec![query(&[0.5], None)]),
        ("forced", vec![query(&[f32::NAN], None)]),
        (
            "many",
            vec![query(&[0.5, 0.9], Some(true)), query(&[0.7, 0.6], None)],
        ),
    ] {
        let panels = panels(&picture(queries)).unwrap();
        let drawn = Drawn::by(|name| curves::draw(&panels, name));
        assert!(drawn.svg.contains("<polyline points="), "{name}");
    }
}

#[test]
fn numbers_that_cannot_be_are_refused() {
    let message = |picture: &ConfidencePicture| panels(picture).unwrap_err().to_string();
    let above = vec![query(&[0.5], None), query(&[0.5, 1.5], None)];
    let expected = "query 1: probability: expected 0 to 1, got 1.5";
    assert_eq!(message(&picture(above)), expected);
    let mut negative = query(&[], None);
    negative.entropy = vec![-1.0];
    let expected = "query 0: entropy: expected at least 0, got -1";
    assert_eq!(message(&picture(vec![negative])), expected);
    let mut lone = picture(Vec::new());
    lone.branching = 1;
    let expected = "branching factor: expected at least 2, got 1";
    assert_eq!(message(&lone), expected);
}
