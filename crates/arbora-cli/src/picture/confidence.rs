//! How sure the policy is at each decision on the way down.
//!
//! A policy that has learnt to search gives the child it takes a probability near 1 and has an entropy
//! near 0. Where on the way it is unsure, and whether it is so when the answer is wrong, is what these
//! plots show.

use std::path::Path;

use anyhow::{Result, bail, ensure};

use super::curves::{self, Panel, Series, Spread};

/// The decisions of many queries.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ConfidencePicture {
    /// Stands above the plots.
    pub title: String,
    /// The children that every decision chooses from, if that number is fixed. The plots then show
    /// what a policy that chooses uniformly would give: a probability of 1 / b, an entropy of ln b.
    pub branching: Option<usize>,
    /// The queries.
    pub queries: Vec<QueryDecisions>,
}

/// The decisions of one query, the one at the root first. Values that are not finite are left out:
/// use NaN for a decision between fewer than two children.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct QueryDecisions {
    /// The probability that the policy gave to the child it took.
    pub probability: Vec<f32>,
    /// The entropy of the policy in nats; empty if unknown.
    pub entropy: Vec<f32>,
    /// Whether the model's answer was right, if there is a right one.
    pub is_right: Option<bool>,
}

/// Draws, over the depth of the decision, the mean probability of the chosen child with the quartiles
/// over queries, and the mean entropy, as `NAME.svg` and `NAME.png`.
///
/// Queries whose answers are known to be right or wrong get lines of their own. Without queries the
/// plots say that there is no data.
///
/// # Errors
/// If a probability is outside [0, 1], an entropy negative, a branching factor below 2, or a file
/// cannot be written.
pub fn draw(picture: &ConfidencePicture, name: &Path) -> Result<()> {
    curves::draw(&panels(picture)?, name)
}

fn panels(picture: &ConfidencePicture) -> Result<[Panel; 2]> {
    for (at, query) in picture.queries.iter().enumerate() {
        let check = |what: &str, values: &[f32], [least, most]: [f32; 2], expected: &str| {
            let fits = |value: f32| (least..=most).contains(&value) || value.is_nan();
            match values.iter().find(|value| !fits(**value)) {
                Some(odd) => bail!("query {at}: {what}: expected {expected}, got {odd}"),
                None => Ok(()),
            }
        };
        check(
            "probability",
            &query.probability,
            [0.0, 1.0 + 1e-4],
            "0 to 1",
        )?;
        check(
            "entropy",
            &query.entropy,
            [-1e-4, f32::INFINITY],
            "at least 0",
        )?;
    }
    if let Some(branching) = picture.branching {
        ensure!(
            branching >= 2,
            "branching factor: expected at least 2, got {branching}"
        );
    }
    let is_split = picture.queries.iter().any(|query| query.is_right.is_some());
    // Queries of unknown answer beside others are not all there are.
    let unknown = if is_split { "answer unknown" } else { "all" };
    let groups = [
        ("answer right", Some(true)),
        ("answer wrong", Some(false)),
        (unknown, None),
    ];
    let groups = groups.map(|(name, is_right)| {
        let is_member = |query: &&QueryDecisions| query.is_right == is_right;
        let queries: Vec<_> = picture.queries.iter().filter(is_member).collect();
        let name = match (name, queries.len()) {
            ("all", count) => format!("mean of {count} queries"),
            (name, count) => format!("{name} ({count} queries)"),
        };
        (name, queries)
    });
    let panel =
        |what: &str, y_label: &str, values: fn(&QueryDecisions) -> &[f32], uniform: Option<f64>| {
            let lines = groups.iter().filter(|(_, queries)| !queries.is_empty());
            let mut series: Vec<_> = lines
                .map(|(name, queries)| Series {
                    name: name.clone(),
                    ..summary(&by_depth(queries.iter().map(|query| values(query))))
                })
                .collect();
            let depths = series.iter().map(|series| series.points.len()).max();
            if let Some((uniform, depths)) = uniform.zip(depths.filter(|depths| *depths > 0)) {
                series.push(Series {
                    name: "uniform policy".into(),
                    points: (0..depths).map(|depth| (depth as f64, uniform)).collect(),
                    ..Series::default()
                });
            }
            Panel {
                title: match picture.title.as_str() {
                    "" => what.into(),
                    title => format!("{title}: {what}"),
                },
                x_label: "decision (0: at the root)".into(),
                y_label: y_label.into(),
                series,
                ..Panel::default()
            }
        };
    let branching = picture.branching.map(|branching| branching as f64);
    Ok([
        panel(
            "probability of the chosen child",
            "probability (band: quartiles)",
            |query| &query.probability,
            branching.map(f64::recip),
        ),
        panel(
            "entropy of the policy",
            "nats (band: quartiles)",
            |query| &query.entropy,
            branching.map(f64::ln),
        ),
    ])
}

/// The finite values of each depth, in ascending order.
fn by_depth<'a>(queries: impl Iterator<Item = &'a [f32]>) -> Vec<Vec<f64>> {
    let mut depths: Vec<Vec<f64>> = Vec::new();
    for query in queries {
        depths.resize(depths.len().max(query.len()), Vec::new());
        for (values, &value) in depths.iter_mut().zip(query) {
            if value.is_finite() {
                values.push(value.into());
            }
        }
    }
    for values in &mut depths {
        values.sort_by(f64::total_cmp);
    }
    depths
}

/// Means and quartiles over depth. A depth without values interrupts the line.
fn summary(depths: &[Vec<f64>]) -> Series {
    let mean = |values: &Vec<f64>| values.iter().sum::<f64>() / values.len() as f64;
    let quartiles = |values: &Vec<f64>| (quantile(values, 0.25), quantile(values, 0.75));
    Series {
        points: (0..).map(f64::from).zip(depths.iter().map(mean)).collect(),
        spread: Spread::Band(depths.iter().map(quartiles).collect()),
        ..Series::default()
    }
}

/// A quantile of ascending values, linear between neighbours; NaN if there are none.
fn quantile(values: &[f64], share: f64) -> f64 {
    let Some(last) = values.len().checked_sub(1) else {
        return f64::NAN;
    };
    let at = share * last as f64;
    let below = values[at.floor() as usize];
    let above = values[at.ceil() as usize];
    below + (above - below) * at.fract()
}

#[cfg(test)]
mod tests {
    use super::*;

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
            branching: Some(2),
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
        let quartiles = Spread::Band(vec![(0.25, 0.75), (1.0, 1.0)]);
        assert_eq!(probability.series[0].spread, quartiles);
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
        let folder = tempfile::tempdir().unwrap();
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
            draw(&picture(queries), &folder.path().join(name)).unwrap();
            let svg = std::fs::read_to_string(folder.path().join(name).with_extension("svg"));
            let has_line = svg.unwrap().contains("<polyline points=");
            assert!(
                has_line
                    && folder
                        .path()
                        .join(format!("{name}.png"))
                        .try_exists()
                        .unwrap(),
                "{name}"
            );
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
        lone.branching = Some(1);
        let expected = "branching factor: expected at least 2, got 1";
        assert_eq!(message(&lone), expected);
    }
}
