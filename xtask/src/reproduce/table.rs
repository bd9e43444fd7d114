//! From the numbers of single runs to the text of a results page.

use std::fmt::Write;

use serde::Serialize;
use serde_json::Value;

use crate::page::{Machine, thousands};

/// What a row of the table is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Variant {
    Dense,
    Learned,
    WalkingAtRandom,
    TrainedAtRandom,
}

impl Variant {
    /// In the order of the table.
    pub const ALL: [Self; 4] = [
        Self::Dense,
        Self::Learned,
        Self::WalkingAtRandom,
        Self::TrainedAtRandom,
    ];

    pub fn title(self) -> &'static str {
        match self {
            Self::Dense => "CrossAttentionModel (all tokens)",
            Self::Learned => "ReTreever (learned route)",
            Self::WalkingAtRandom => "the same ReTreever, walking at random",
            Self::TrainedAtRandom => "ReTreever trained with random routes",
        }
    }
}

/// The numbers of one run on all test images.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub variant: Variant,
    pub seed: u64,
    pub steps: u64,
    pub backend: String,
    pub images: u64,
    pub parameters: u64,
    /// Wall clock of the training steps, for the JSON alone: runs may share the machine with others.
    pub training_seconds: f64,
    /// Nats per pixel.
    pub log_likelihood: f64,
    pub tokens_percent: f64,
    pub nodes_selected: f64,
    pub nodes_read: f64,
    pub context_tokens: f64,
}

/// A mean over seeds with the sample standard deviation, which one seed alone does not have.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Statistic {
    pub mean: f64,
    pub sd: Option<f64>,
}

impl Statistic {
    /// Of at least one number.
    fn of(numbers: &[f64]) -> Self {
        let count = numbers.len() as f64;
        let mean = numbers.iter().sum::<f64>() / count;
        let squares: f64 = numbers.iter().map(|number| (number - mean).powi(2)).sum();
        Self {
            mean,
            sd: (numbers.len() > 1).then(|| (squares / (count - 1.0)).sqrt()),
        }
    }

    fn text(&self, digits: usize) -> String {
        match self.sd {
            Some(sd) => format!("{:.digits$} ± {sd:.digits$}", self.mean),
            None => format!("{:.digits$}", self.mean),
        }
    }
}

/// A row of the table: one variant over all seeds.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    pub variant: Variant,
    pub seeds: usize,
    pub parameters: u64,
    pub log_likelihood: Statistic,
    pub tokens_percent: Statistic,
    pub nodes_selected: Statistic,
    pub nodes_read: Statistic,
    /// `None` where the variant is trained as another one.
    pub training_seconds: Option<Statistic>,
}

/// Everything behind a results page.
#[derive(Clone, Debug, Serialize)]
pub struct Results {
    pub command: String,
    pub machine: Machine,
    pub date: String,
    /// What all runs share.
    pub settings: Value,
    pub summary: Vec<Summary>,
    pub rows: Vec<Row>,
}

/// Means and deviations over seeds, in the table's order.
pub fn summarise(rows: &[Row]) -> Vec<Summary> {
    let summary = |variant: Variant| {
        let rows: Vec<&Row> = rows.iter().filter(|row| row.variant == variant).collect();
        let first = rows.first()?;
        let over = |number: fn(&Row) -> f64| {
            Statistic::of(&rows.iter().map(|row| number(row)).collect::<Vec<_>>())
        };
        Some(Summary {
            variant,
            seeds: rows.len(),
            parameters: first.parameters,
            log_likelihood: over(|row| row.log_likelihood),
            tokens_percent: over(|row| row.tokens_percent),
            nodes_selected: over(|row| row.nodes_selected),
            nodes_read: over(|row| row.nodes_read),
            training_seconds: (variant != Variant::WalkingAtRandom)
                .then(|| over(|row| row.training_seconds)),
        })
    };
    Variant::ALL.into_iter().filter_map(summary).collect()
}

/// The generated part of the results page.
pub fn page(results: &Results) -> String {
    let Results {
        command,
        machine,
        date,
        settings,
        summary,
        rows,
    } = results;
    let mut text = String::new();
    let (steps, images, backend) = rows.first().map_or((0, 0, ""), |row| {
        (row.steps, row.images, row.backend.as_str())
    });
    let mut line = |part: String| {
        text.push_str(&part);
        text.push('\n');
    };
    line(format!("```sh\n{command}\n```\n"));
    line(format!(
        "{} steps per run, {} held-out images, backend {backend}. Table made on {date} on {} with {} \
         threads.\n",
        thousands(steps),
        thousands(images),
        machine.cpu,
        machine.threads
    ));
    line(summary_table(summary));
    line("## What is seen\n".to_string());
    line(reading(rows));
    line("## Single runs\n".to_string());
    line(
        "| model | seed | log-likelihood | % tokens | nodes selected | nodes read |\n\
         |---|---:|---:|---:|---:|---:|"
            .to_string(),
    );
    for variant in Variant::ALL {
        for row in rows.iter().filter(|row| row.variant == variant) {
            line(format!(
                "| {} | {} | {:.4} | {:.2} | {:.2} | {:.2} |",
                variant.title(),
                row.seed,
                row.log_likelihood,
                row.tokens_percent,
                row.nodes_selected,
                row.nodes_read
            ));
        }
    }
    line(PUBLISHED.to_string());
    line("## Settings of all runs\n".to_string());
    line(format!("```json\n{settings:#}\n```"));
    text
}

/// The README's table.
pub fn readme(results: &Results) -> String {
    let (steps, images) = results
        .rows
        .first()
        .map_or((0, 0), |row| (row.steps, row.images));
    let seeds = results.summary.first().map_or(0, |summary| summary.seeds);
    let mut text = summary_table(&results.summary);
    let _ = write!(
        text,
        "\n{} training steps, {seeds} {}, {} held-out images of the bundled sample, on {} with {} \
         threads. Made by `{}`; single runs and settings: \
         [docs/results/images.md](docs/results/images.md).\n",
        thousands(steps),
        if seeds == 1 {
            "seed"
        } else {
            "seeds (mean ± standard deviation)"
        },
        thousands(images),
        results.machine.cpu,
        results.machine.threads,
        results.command
    );
    text
}

fn summary_table(summary: &[Summary]) -> String {
    let mut text =
        "| model | held-out log-likelihood, nats per pixel | % tokens | nodes selected | \
                    nodes read | parameters |\n|---|---:|---:|---:|---:|---:|\n"
            .to_string();
    for row in summary {
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} | {} |",
            row.variant.title(),
            row.log_likelihood.text(3),
            row.tokens_percent.text(1),
            row.nodes_selected.text(1),
            row.nodes_read.text(1),
            thousands(row.parameters)
        );
    }
    text
}

/// What the numbers say, in words that follow from them alone.
fn reading(rows: &[Row]) -> String {
    let mut text = String::new();
    let learned: Vec<&Row> = of(rows, Variant::Learned).collect();
    if let Some(dense) = of(rows, Variant::Dense).next() {
        let percent: Vec<f64> = learned.iter().map(|row| row.tokens_percent).collect();
        let read: Vec<f64> = learned.iter().map(|row| row.nodes_read).collect();
        let selected: Vec<f64> = learned.iter().map(|row| row.nodes_selected).collect();
        if !learned.is_empty() {
            let _ = write!(
                text,
                "A context has {:.1} pixels in the mean. Dense attention reads all of them; ReTreever \
                 reads {:.1} nodes per query and attends to {:.1} of them ({:.1} % of the tokens). ",
                dense.context_tokens,
                Statistic::of(&read).mean,
                Statistic::of(&selected).mean,
                Statistic::of(&percent).mean
            );
        }
    }
    let comparisons = [
        (Variant::Dense, "dense attention with the same encoder"),
        (
            Variant::WalkingAtRandom,
            "the same trained weights walking at random",
        ),
        (
            Variant::TrainedAtRandom,
            "ReTreever trained with random routes",
        ),
    ];
    for (variant, name) in comparisons {
        let differences: Vec<f64> = learned
            .iter()
            .filter_map(|row| {
                let other = of(rows, variant).find(|other| other.seed == row.seed)?;
                Some(row.log_likelihood - other.log_likelihood)
            })
            .collect();
        if !differences.is_empty() {
            text.push_str(&comparison(&differences, name));
        }
    }
    text.push_str(match learned.len() {
        0 => "",
        1 => "One seed says nothing about the spread.",
        2..5 => "With so few seeds the deviations are rough: read small differences with care.",
        _ => "",
    });
    text.trim_end().to_string() + "\n"
}

fn of(rows: &[Row], variant: Variant) -> impl Iterator<Item = &Row> {
    rows.iter().filter(move |row| row.variant == variant)
}

/// One sentence on ReTreever's log-likelihood less that of another, seed by seed.
fn comparison(differences: &[f64], other: &str) -> String {
    let mean = Statistic::of(differences).mean;
    let lowest = differences.iter().copied().fold(f64::INFINITY, f64::min);
    let highest = differences
        .iter()
        .copied()
        .fold(f64::NEG_INFINITY, f64::max);
    let direction = if mean >= 0.0 { "above" } else { "below" };
    let consistency = if differences.len() == 1 {
        "on the one seed".to_string()
    } else if lowest > 0.0 || highest < 0.0 {
        format!("on every seed (differences {lowest:+.3} to {highest:+.3})")
    } else {
        format!("in the mean but not on every seed (differences {lowest:+.3} to {highest:+.3})")
    };
    format!(
        "Its log-likelihood is {:.3} nats per pixel {direction} that of {other}, {consistency}. ",
        mean.abs()
    )
}

/// What the authors report, for orientation.
const PUBLISHED: &str = "
## Published numbers

Other data, a larger encoder and far more training: the values cannot be compared with those above,
only the order of the models can.

| data | Transformer + Cross Attention | ReTreever | Perceiver IO | ReTreever, % tokens |
|---|---:|---:|---:|---:|
| CelebA, 32×32 | 3.88 ± 0.01 | 3.52 ± 0.01 | 3.20 ± 0.01 | 4.6 |
| EMNIST | 1.41 ± 0.00 | 1.30 ± 0.01 | 1.25 ± 0.01 | 4.6 |

Log-likelihood in nats per pixel. Source: the authors' blog post on Tree Cross Attention (the paper is
arXiv 2309.17388). The share of tokens is derived from the method, not quoted.
";

#[cfg(test)]
mod tests {
    use super::*;

    fn row(variant: Variant, seed: u64, log_likelihood: f64) -> Row {
        Row {
            variant,
            seed,
            steps: 10,
            backend: "flex".into(),
            images: 100,
            parameters: 1_234_567,
            training_seconds: 60.0 + seed as f64,
            log_likelihood,
            tokens_percent: 10.0,
            nodes_selected: 8.0,
            nodes_read: 13.0,
            context_tokens: 80.0,
        }
    }

    fn rows() -> Vec<Row> {
        vec![
            row(Variant::Learned, 0, 0.5),
            row(Variant::Dense, 0, 0.75),
            row(Variant::WalkingAtRandom, 0, 0.25),
            row(Variant::Learned, 1, 1.0),
            row(Variant::Dense, 1, 1.5),
            row(Variant::WalkingAtRandom, 1, 1.25),
        ]
    }

    #[test]
    fn deviation_is_that_of_a_sample_and_needs_two_seeds() {
        let two = Statistic::of(&[1.0, 3.0]);
        assert_eq!((two.mean, two.sd), (2.0, Some(2f64.sqrt())));
        assert_eq!(two.text(2), "2.00 ± 1.41");
        assert_eq!(Statistic::of(&[1.5]).text(1), "1.5");
    }

    #[test]
    fn summaries_group_by_variant_in_the_order_of_the_table() {
        let summary = summarise(&rows());
        let variants: Vec<Variant> = summary.iter().map(|row| row.variant).collect();
        assert_eq!(
            variants,
            [Variant::Dense, Variant::Learned, Variant::WalkingAtRandom]
        );
        assert_eq!(summary[0].log_likelihood.mean, 1.125);
        assert_eq!(summary[1].log_likelihood.mean, 0.75);
        assert_eq!(summary[1].seeds, 2);
        assert_eq!(summary[1].training_seconds.unwrap().mean, 60.5);
        // Nothing was trained to walk trained weights at random.
        assert!(summary[2].training_seconds.is_none());
    }

    #[test]
    fn the_reading_pairs_models_by_seed_and_says_when_seeds_disagree() {
        let text = reading(&rows());
        assert!(
            text.contains("0.375 nats per pixel below that of dense attention"),
            "{text}"
        );
        assert!(
            text.contains("on every seed (differences -0.500 to -0.250)"),
            "{text}"
        );
        assert!(text.contains("0.000 nats per pixel above"), "{text}");
        assert!(text.contains("not on every seed (differences -0.250 to +0.250)"));
        assert!(text.contains("attends to 8.0 of them (10.0 % of the tokens)"));
        assert!(!text.contains("trained with random routes"));
        assert!(text.contains("With so few seeds"));
    }

    #[test]
    fn tables_have_as_many_cells_in_every_row() {
        let results = Results {
            command: "cargo xtask reproduce images".into(),
            machine: Machine {
                cpu: "some CPU".into(),
                threads: 2,
            },
            date: "2026-01-01".into(),
            settings: serde_json::json!({"trainer": {"steps": 10}}),
            summary: summarise(&rows()),
            rows: rows(),
        };
        for text in [page(&results), readme(&results)] {
            let mut expected = None;
            for line in text.lines() {
                let cells = line.matches('|').count();
                match (line.starts_with('|'), expected) {
                    (false, _) => expected = None,
                    (true, None) => expected = Some(cells),
                    (true, Some(expected)) => assert_eq!(cells, expected, "{line}"),
                }
            }
            assert!(text.contains("1,234,567"));
        }
        assert!(readme(&results).contains("2 seeds (mean ± standard deviation)"));
    }
}
