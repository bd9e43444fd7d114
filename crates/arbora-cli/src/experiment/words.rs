//! What the numbers say, in words that follow from them alone.

use super::Reading;
use super::store::Entry;
use crate::statistic::Statistic;
use std::fmt::Write as _;

/// Sentences on the lines of a table.
///
/// - of: the entries of a line, in the order of their seeds
pub fn words<'a>(reading: &Reading, of: impl Fn(&str) -> Vec<&'a Entry>) -> String {
    let learned = of(&reading.learned);
    let mean =
        |name: &str| Some(Statistic::of(learned.iter().filter_map(|run| run.metric(name)))?.mean);
    let mut text = String::new();
    let dense = of(&reading.dense).first().copied();
    if let Some(tokens) = dense.and_then(|dense| dense.metric("context_tokens"))
        && let Some(read) = mean("nodes_read")
        && let Some(selected) = mean("nodes_selected")
        && let Some(percent) = mean("tokens_percent")
    {
        let _ = write!(
            text,
            "A context has {tokens:.1} {} in the mean. Dense attention reads all of them; ReTreever reads {read:.1} nodes \
             per query and attends to {selected:.1} of them ({percent:.1} % of the tokens). ",
            reading.tokens
        );
    }
    for (line, name) in &reading.others {
        let others = of(line);
        let differences = learned.iter().filter_map(|run| {
            let other = others.iter().find(|other| other.seed == run.seed)?;
            let [ours, theirs] = [run, other].map(|run| run.metric(&reading.metric));
            Some(reading.scale * (ours? - theirs?))
        });
        let differences: Vec<f64> = differences.collect();
        if !differences.is_empty() {
            text += &comparison(reading, &differences, name);
        }
    }
    text += match learned.len() {
        0 => "",
        1 => "One seed says nothing about the spread.",
        2..5 => "With so few seeds the deviations are rough: read small differences with care.",
        _ => "",
    };
    text.trim_end().to_owned()
}

/// One sentence on a number less that of another, seed by seed.
fn comparison(reading: &Reading, differences: &[f64], other: &str) -> String {
    let Reading { name, unit, .. } = reading;
    let digits = reading.digits;
    let mean = differences.iter().sum::<f64>() / differences.len() as f64;
    let lowest = differences.iter().copied().fold(f64::INFINITY, f64::min);
    let highest = differences
        .iter()
        .copied()
        .fold(f64::NEG_INFINITY, f64::max);
    if lowest == 0.0 && highest == 0.0 {
        return format!("Its {name} is that of {other}. ");
    }
    let direction = if mean >= 0.0 { "above" } else { "below" };
    let range = format!("(differences {lowest:+.digits$} to {highest:+.digits$})");
    let consistency = if differences.len() == 1 {
        "on the one seed".to_owned()
    } else if lowest > 0.0 || highest < 0.0 {
        format!("on every seed {range}")
    } else {
        format!("in the mean but not on every seed {range}")
    };
    format!(
        "Its {name} is {:.digits$} {unit} {direction} that of {other}, {consistency}. ",
        mean.abs()
    )
}

#[cfg(test)]
mod tests {
    use super::super::Experiment;
    use super::super::results::tests::{run, runs};
    use super::*;

    #[test]
    fn the_reading_pairs_models_by_seed_and_says_when_seeds_disagree() {
        let images = Experiment::bundled("images").unwrap().unwrap();
        let reading = images.reading.as_ref().unwrap();
        let said = |runs: &[Entry]| {
            words(reading, |line| {
                runs.iter().filter(|run| run.line == line).collect()
            })
        };
        let text = said(&runs());
        for part in [
            "0.375 nats per pixel below that of dense attention",
            "on every seed (differences -0.500 to -0.250)",
            "0.000 nats per pixel above",
            "not on every seed (differences -0.250 to +0.250)",
            "attends to 8.0 of them (10.0 % of the tokens)",
            "With so few seeds",
        ] {
            assert!(text.contains(part), "{part} is not in: {text}");
        }
        assert!(!text.contains("trained with random routes"));
        let same = [run("retreever", 0, 0.5), run("perceiver", 0, 0.5)];
        let text = said(&same);
        assert!(text.contains("is that of Perceiver IO"), "{text}");
    }
}
