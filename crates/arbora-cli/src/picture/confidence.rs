//! How sure the policy is at each decision on the way down.
//!
//! A policy that has learnt to search gives the child it takes a probability near 1 and has an entropy
//! near 0. Where on the way it is unsure, and whether it is so when the answer is wrong, is what these
//! plots show.

use anyhow::{Result, bail, ensure};

use super::curves::{Panel, Series};

/// The decisions of many queries.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ConfidencePicture {
    /// Stands above the plots.
    pub title: String,
    /// The children that every decision chooses from. The plots show what a policy that chooses uniformly would give: a
    /// probability of 1 / b, an entropy of ln b.
    pub branching: usize,
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

/// Over the depth of the decision: the mean probability of the chosen child with the quartiles over queries, and the mean
/// entropy likewise.
///
/// Queries whose answers are known to be right or wrong get lines of their own.
///
/// # Errors
/// If a probability is outside [0, 1], an entropy negative, or a branching factor below 2.
pub fn panels(picture: &ConfidencePicture) -> Result<[Panel; 2]> {
    for (at, query) in picture.queries.iter().enumerate() {
        // NaN is on neither side of a bound.
        let odd = |values: &[f32], least: f32, most: f32| {
            let mut values = values.iter().copied();
            values.find(|value| *value < least || *value > most)
        };
        if let Some(odd) = odd(&query.probability, 0.0, 1.0 + 1e-4) {
            bail!("query {at}: probability: expected 0 to 1, got {odd}");
        }
        if let Some(odd) = odd(&query.entropy, -1e-4, f32::INFINITY) {
            bail!("query {at}: entropy: expected at least 0, got {odd}");
        }
    }
    let branching = picture.branching;
    ensure!(
        branching >= 2,
        "branching factor: expected at least 2, got {branching}"
    );
    let is_split = picture.queries.iter().any(|query| query.is_right.is_some());
    // Queries of unknown answer beside others are not all there are.
    let unknown = if is_split { "answer unknown" } else { "all" };
    let groups = [
        ("answer right", Some(true)),
        ("answer wrong", Some(false)),
        (unknown, None),
    ];
    let panel = |what: &str, y_label: &str, values: fn(&QueryDecisions) -> &[f32], uniform: f64| {
        let mut series = Vec::new();
        for (name, is_right) in groups {
            let queries = picture.queries.iter();
            let queries: Vec<&[f32]> = queries
                .filter(|query| query.is_right == is_right)
                .map(values)
                .collect();
            if !queries.is_empty() {
                let count = queries.len();
                let name = match name {
                    "all" => format!("mean of {count} queries"),
                    name => format!("{name} ({count} queries)"),
                };
                series.push(summary(name, &by_depth(&queries)));
            }
        }
        let depths = series.iter().map(|series| series.points.len()).max();
        let depths = depths.unwrap_or(0);
        if depths > 0 {
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
    let branching = branching as f64;
    Ok([
        panel(
            "probability of the chosen child",
            "probability (band: quartiles)",
            |query| &query.probability,
            branching.recip(),
        ),
        panel(
            "entropy of the policy",
            "nats (band: quartiles)",
            |query| &query.entropy,
            branching.ln(),
        ),
    ])
}

/// The finite values of each depth, in ascending order.
fn by_depth(queries: &[&[f32]]) -> Vec<Vec<f64>> {
    let mut depths: Vec<Vec<f64>> = Vec::new();
    for query in queries {
        depths.resize(depths.len().max(query.len()), Vec::new());
        for (values, &value) in depths.iter_mut().zip(*query) {
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
fn summary(name: String, depths: &[Vec<f64>]) -> Series {
    let mean = |values: &Vec<f64>| values.iter().sum::<f64>() / values.len() as f64;
    let quartiles = |values: &Vec<f64>| (quantile(values, 0.25), quantile(values, 0.75));
    Series {
        name,
        points: (0..).map(f64::from).zip(depths.iter().map(mean)).collect(),
        band: depths.iter().map(quartiles).collect(),
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
