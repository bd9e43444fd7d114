//! From the numbers of single runs to the text of a results page.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::Serialize;
use serde_json::Value;

use super::experiments::{Column, Experiment, Reading};
use crate::page::{Machine, thousands};

/// The numbers of one run on all test items.
#[derive(Clone, Debug, Serialize)]
pub struct Measured {
    /// The line of the table that it belongs to.
    pub line: String,
    pub seed: u64,
    pub steps: u64,
    pub backend: String,
    pub items: u64,
    /// What an item is, in the plural.
    pub of: String,
    pub parameters: u64,
    /// Wall clock of the training steps; `None` where the line is trained as another one.
    pub training_seconds: Option<f64>,
    pub metrics: BTreeMap<String, f64>,
    /// When the run was this good, for experiments that ask.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub reached: Vec<Reached>,
}

/// When the held-out accuracy of a training first was at least this high.
#[derive(Clone, Debug, Serialize)]
pub struct Reached {
    pub accuracy: f64,
    /// `None` where it never was.
    pub step: Option<u64>,
    /// Of the training steps alone.
    pub minutes: Option<f64>,
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

/// A line of the table: one row over all its seeds.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    pub line: String,
    pub title: &'static str,
    pub seeds: usize,
    pub parameters: u64,
    pub metrics: BTreeMap<String, Statistic>,
    /// `None` where the line is trained as another one.
    pub training_seconds: Option<Statistic>,
}

/// What the runs of some rows have in common.
#[derive(Clone, Debug, Serialize)]
pub struct Settings {
    pub rows: Vec<String>,
    pub config: Value,
}

/// Everything behind a results page.
#[derive(Clone, Debug, Serialize)]
pub struct Results {
    pub command: String,
    pub machine: Machine,
    pub date: String,
    /// Runs that are missing in a partial table.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_finished: Vec<String>,
    pub settings: Vec<Settings>,
    pub summary: Vec<Summary>,
    pub runs: Vec<Measured>,
}

/// Means and deviations over seeds, in the table's order. Lines without a run are left out.
pub fn summarise(experiment: &Experiment, runs: &[Measured]) -> Vec<Summary> {
    let summary = |(line, title): (String, &'static str)| {
        let runs: Vec<&Measured> = of(runs, &line).collect();
        let first = runs.first()?;
        let metrics = first.metrics.keys().map(|name| {
            let numbers = runs.iter().filter_map(|run| run.metrics.get(name).copied());
            (name.clone(), Statistic::of(&numbers.collect::<Vec<_>>()))
        });
        let seconds: Vec<f64> = runs.iter().filter_map(|run| run.training_seconds).collect();
        Some(Summary {
            title,
            seeds: runs.len(),
            parameters: first.parameters,
            metrics: metrics.collect(),
            training_seconds: (!seconds.is_empty()).then(|| Statistic::of(&seconds)),
            line,
        })
    };
    experiment.lines().into_iter().filter_map(summary).collect()
}

/// The generated part of the results page.
pub fn page(experiment: &Experiment, results: &Results) -> String {
    let Results {
        command,
        machine,
        date,
        not_finished,
        settings,
        summary,
        runs,
    } = results;
    let mut text = String::new();
    let mut line = |part: String| {
        text.push_str(&part);
        text.push('\n');
    };
    line(format!("```sh\n{command}\n```\n"));
    let (items, of, backend) = runs.first().map_or((0, "", ""), |run| {
        (run.items, run.of.as_str(), run.backend.as_str())
    });
    let steps = match common_steps(runs) {
        Some(steps) => format!("{} steps per run, measured", thousands(steps)),
        None => "Measured".to_string(),
    };
    line(format!(
        "{steps} on {} {of}, backend {backend}. Table made on {date} on {} with {} threads.\n",
        thousands(items),
        machine.cpu,
        machine.threads
    ));
    if !not_finished.is_empty() {
        line(format!(
            "**Not finished, and not in this table:** {}.\n",
            not_finished.join(", ")
        ));
    }
    line(summary_table(experiment, summary, runs));
    if experiment
        .columns
        .iter()
        .any(|column| matches!(column, Column::Reached(_)))
    {
        line(REACHED.to_string());
    }
    if let Some(reading) = &experiment.reading {
        line("## What is seen\n".to_string());
        line(words(reading, runs));
    }
    if summary.iter().any(|line| line.seeds > 1) {
        line("## Single runs\n".to_string());
        line(single_runs(experiment, summary, runs));
    }
    if !experiment.published.is_empty() {
        line("## Published numbers\n".to_string());
        line(experiment.published.to_string());
    }
    for Settings { rows, config } in settings {
        line(match settings.len() {
            1 => "## Settings of all runs\n".to_string(),
            _ => format!("## Settings of {}\n", rows.join(", ")),
        });
        line(format!("```json\n{config:#}\n```\n"));
    }
    text
}

/// The README's table.
pub fn readme(experiment: &Experiment, results: &Results) -> String {
    let (items, of) = results
        .runs
        .first()
        .map_or((0, ""), |run| (run.items, run.of.as_str()));
    let seeds = results.summary.first().map_or(0, |summary| summary.seeds);
    let steps = common_steps(&results.runs).map_or(String::new(), |steps| {
        format!("{} training steps, ", thousands(steps))
    });
    let page = format!("docs/results/{}.md", experiment.name);
    let mut text = summary_table(experiment, &results.summary, &results.runs);
    let _ = write!(
        text,
        "\n{steps}{seeds} {}, {} {of} of the bundled sample, on {} with {} threads. Made by `{}`; single \
         runs and settings: [{page}]({page}).\n",
        if seeds == 1 {
            "seed"
        } else {
            "seeds (mean ± standard deviation)"
        },
        thousands(items),
        results.machine.cpu,
        results.machine.threads,
        results.command
    );
    text
}

/// What the columns of steps and minutes are.
const REACHED: &str = "\
A step and minutes say when a run first had the accuracy in one of its evaluations (every `trainer.eval_every`
steps on `eval_items` items, in each run's settings). Minutes are those of the training steps alone; other work on
the machine is in them.
";

/// The steps of a run, where all have as many.
fn common_steps(runs: &[Measured]) -> Option<u64> {
    let steps = runs.first()?.steps;
    runs.iter().all(|run| run.steps == steps).then_some(steps)
}

impl Column {
    fn title(&self) -> String {
        match self {
            Self::Metric { title, .. } => (*title).to_string(),
            Self::Parameters => "parameters".into(),
            Self::Steps => "steps".into(),
            Self::Reached(accuracy) => {
                // A tenth of a percent is exact in one digit, and the error of the product is not.
                let percent = (accuracy * 1000.0).round() / 10.0;
                format!("{percent} % accuracy at")
            }
        }
    }

    fn cell(&self, line: &Summary, runs: &[&Measured]) -> String {
        match self {
            Self::Metric {
                name,
                scale,
                digits,
                ..
            } => line.metrics.get(*name).map_or(String::new(), |number| {
                let scaled = Statistic {
                    mean: scale * number.mean,
                    sd: number.sd.map(|sd| scale * sd),
                };
                scaled.text(*digits)
            }),
            Self::Parameters => thousands(line.parameters),
            Self::Steps => {
                let mut steps: Vec<u64> = runs.iter().map(|run| run.steps).collect();
                steps.dedup();
                let steps: Vec<String> = steps.into_iter().map(thousands).collect();
                steps.join("; ")
            }
            Self::Reached(accuracy) => {
                let cells = runs.iter().filter_map(|run| run.reached_text(*accuracy));
                cells.collect::<Vec<_>>().join("; ")
            }
        }
    }
}

impl Measured {
    fn reached_text(&self, accuracy: f64) -> Option<String> {
        let found = self
            .reached
            .iter()
            .find(|reached| reached.accuracy == accuracy)?;
        Some(match (found.step, found.minutes) {
            (Some(step), Some(minutes)) => format!("step {}, {minutes:.1} min", thousands(step)),
            _ => format!("not within {} steps", thousands(self.steps)),
        })
    }
}

fn summary_table(experiment: &Experiment, summary: &[Summary], runs: &[Measured]) -> String {
    let titles: Vec<String> = experiment.columns.iter().map(Column::title).collect();
    let mut text = format!(
        "| model | {} |\n|---|{}\n",
        titles.join(" | "),
        "---:|".repeat(titles.len())
    );
    if experiment.rows.iter().any(|row| row.model != row.name) {
        // Rows of one model: their titles say what is varied.
        text = text.replacen("| model |", "| |", 1);
    }
    for line in summary {
        let runs: Vec<&Measured> = of(runs, &line.line).collect();
        let cells = experiment
            .columns
            .iter()
            .map(|column| column.cell(line, &runs));
        let cells: Vec<String> = cells.collect();
        let _ = writeln!(text, "| {} | {} |", line.title, cells.join(" | "));
    }
    text
}

/// A table with a line per run, with the metrics of the experiment's columns.
fn single_runs(experiment: &Experiment, summary: &[Summary], runs: &[Measured]) -> String {
    let metrics = experiment.columns.iter().filter_map(|column| match column {
        Column::Metric {
            name,
            title,
            scale,
            digits,
        } => Some((*name, *title, *scale, digits + 1)),
        _ => None,
    });
    let metrics: Vec<_> = metrics.collect();
    let titles: Vec<&str> = metrics.iter().map(|(_, title, ..)| *title).collect();
    let mut text = format!(
        "| | seed | {} |\n|---|---:|{}\n",
        titles.join(" | "),
        "---:|".repeat(titles.len())
    );
    for line in summary {
        for run in of(runs, &line.line) {
            let cell = |(name, _, scale, digits): &(&str, &str, f64, usize)| {
                let number = run.metrics.get(*name);
                number.map_or(String::new(), |number| {
                    format!("{:.digits$}", scale * number, digits = *digits)
                })
            };
            let cells: Vec<String> = metrics.iter().map(cell).collect();
            let _ = writeln!(
                text,
                "| {} | {} | {} |",
                line.title,
                run.seed,
                cells.join(" | ")
            );
        }
    }
    text
}

/// What the numbers say, in words that follow from them alone.
fn words(reading: &Reading, runs: &[Measured]) -> String {
    let mut text = String::new();
    let learned: Vec<&Measured> = of(runs, reading.learned).collect();
    let mean = |name: &str| {
        let numbers = learned.iter().filter_map(|run| run.metrics.get(name));
        Statistic::of(&numbers.copied().collect::<Vec<_>>()).mean
    };
    if let Some(dense) = of(runs, reading.dense).next()
        && !learned.is_empty()
        && let Some(tokens) = dense.metrics.get("context_tokens")
    {
        let _ = write!(
            text,
            "A context has {tokens:.1} {} in the mean. Dense attention reads all of them; ReTreever reads \
             {:.1} nodes per query and attends to {:.1} of them ({:.1} % of the tokens). ",
            reading.tokens,
            mean("nodes_read"),
            mean("nodes_selected"),
            mean("tokens_percent")
        );
    }
    for (line, name) in reading.others {
        let differences: Vec<f64> = learned
            .iter()
            .filter_map(|run| {
                let other = of(runs, line).find(|other| other.seed == run.seed)?;
                let number = |run: &Measured| run.metrics.get(reading.metric).copied();
                Some(reading.scale * (number(run)? - number(other)?))
            })
            .collect();
        if !differences.is_empty() {
            text.push_str(&comparison(reading, &differences, name));
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

fn of<'a>(runs: &'a [Measured], line: &str) -> impl Iterator<Item = &'a Measured> {
    runs.iter().filter(move |run| run.line == line)
}

/// One sentence on ReTreever's number less that of another, seed by seed.
fn comparison(reading: &Reading, differences: &[f64], other: &str) -> String {
    let Reading {
        digits, name, unit, ..
    } = *reading;
    let mean = Statistic::of(differences).mean;
    let lowest = differences.iter().copied().fold(f64::INFINITY, f64::min);
    let highest = differences
        .iter()
        .copied()
        .fold(f64::NEG_INFINITY, f64::max);
    let direction = if mean >= 0.0 { "above" } else { "below" };
    if lowest == 0.0 && highest == 0.0 {
        return format!("Its {name} is that of {other}. ");
    }
    let range = format!("(differences {lowest:+.digits$} to {highest:+.digits$})");
    let consistency = if differences.len() == 1 {
        "on the one seed".to_string()
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
    use super::*;
    use crate::reproduce::experiments::Name;

    fn run(line: &str, seed: u64, log_likelihood: f64) -> Measured {
        let metrics = [
            ("log_likelihood", log_likelihood),
            ("accuracy", 0.995),
            ("tokens_percent", 10.0),
            ("nodes_selected", 8.0),
            ("nodes_read", 13.0),
            ("context_tokens", 80.0),
        ];
        let at_random = line.ends_with("random");
        Measured {
            line: line.into(),
            seed,
            steps: 10,
            backend: "flex".into(),
            items: 100,
            of: "test images".into(),
            parameters: 1_234_567,
            training_seconds: (!at_random).then_some(60.0 + seed as f64),
            metrics: metrics.map(|(name, number)| (name.into(), number)).into(),
            reached: Vec::new(),
        }
    }

    const AT_RANDOM: &str = "retreever-walking-at-random";

    fn runs() -> Vec<Measured> {
        vec![
            run("retreever", 0, 0.5),
            run("cross-attention", 0, 0.75),
            run(AT_RANDOM, 0, 0.25),
            run("retreever", 1, 1.0),
            run("cross-attention", 1, 1.5),
            run(AT_RANDOM, 1, 1.25),
        ]
    }

    fn results(experiment: &Experiment, runs: Vec<Measured>) -> Results {
        Results {
            command: experiment.generator(),
            machine: Machine {
                cpu: "some CPU".into(),
                threads: 2,
            },
            date: "2026-01-01".into(),
            not_finished: Vec::new(),
            settings: vec![Settings {
                rows: vec!["retreever".into()],
                config: serde_json::json!({"trainer": {"steps": 10}}),
            }],
            summary: summarise(experiment, &runs),
            runs,
        }
    }

    /// All rows of every table have as many cells.
    fn assert_even(text: &str) {
        let mut expected = None;
        for line in text.lines() {
            let cells = line.matches('|').count();
            match (line.starts_with('|'), expected) {
                (false, _) => expected = None,
                (true, None) => expected = Some(cells),
                (true, Some(expected)) => assert_eq!(cells, expected, "{line}"),
            }
        }
    }

    #[test]
    fn deviation_is_that_of_a_sample_and_needs_two_seeds() {
        let two = Statistic::of(&[1.0, 3.0]);
        assert_eq!((two.mean, two.sd), (2.0, Some(2f64.sqrt())));
        assert_eq!(two.text(2), "2.00 ± 1.41");
        assert_eq!(Statistic::of(&[1.5]).text(1), "1.5");
    }

    #[test]
    fn summaries_group_by_line_in_the_order_of_the_table() {
        let summary = summarise(Name::Images.experiment(), &runs());
        let lines: Vec<&str> = summary.iter().map(|line| line.line.as_str()).collect();
        assert_eq!(lines, ["cross-attention", "retreever", AT_RANDOM]);
        assert_eq!(summary[0].metrics["log_likelihood"].mean, 1.125);
        assert_eq!(summary[1].metrics["log_likelihood"].mean, 0.75);
        assert_eq!(summary[1].seeds, 2);
        assert_eq!(summary[1].training_seconds.unwrap().mean, 60.5);
        // Nothing was trained to walk trained weights at random.
        assert!(summary[2].training_seconds.is_none());
    }

    #[test]
    fn the_reading_pairs_models_by_seed_and_says_when_seeds_disagree() {
        let reading = Name::Images.experiment().reading.as_ref().unwrap();
        let text = words(reading, &runs());
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
        let same = [run("retreever", 0, 0.5), run("perceiver", 0, 0.5)];
        let text = words(reading, &same);
        assert!(text.contains("is that of Perceiver IO"), "{text}");
    }

    #[test]
    fn tables_have_as_many_cells_in_every_row() {
        let experiment = Name::Images.experiment();
        let results = results(experiment, runs());
        for text in [page(experiment, &results), readme(experiment, &results)] {
            assert_even(&text);
            assert!(text.contains("1,234,567"));
        }
        assert!(readme(experiment, &results).contains("2 seeds (mean ± standard deviation)"));
    }

    #[test]
    fn runs_of_classes_say_when_they_were_how_good() {
        let experiment = Name::Copy.experiment();
        let reached = |accuracy, step: Option<u64>| Reached {
            accuracy,
            step,
            minutes: step.map(|step| step as f64 / 4.0),
        };
        let mut quick = run("ours-64", 0, -0.01);
        quick.reached = vec![reached(0.99, Some(5)), reached(0.999, None)];
        let mut slow = run("published-64", 0, -0.02);
        slow.steps = 1000;
        slow.reached = vec![reached(0.99, None), reached(0.999, None)];
        let mut results = results(experiment, vec![quick, slow]);
        results.not_finished = vec!["ours-128-seed0".into()];
        let text = page(experiment, &results);
        assert_even(&text);
        assert!(
            text.contains("| | steps | held-out accuracy, % |"),
            "{text}"
        );
        assert!(
            text.contains("99 % accuracy at | 99.9 % accuracy at |"),
            "{text}"
        );
        assert!(text.contains("| 99.50 |"), "{text}");
        assert!(
            text.contains("| step 5, 1.2 min | not within 10 steps |"),
            "{text}"
        );
        assert!(text.contains("| not within 1,000 steps | not within 1,000 steps |"));
        assert!(
            text.contains("not in this table:** ours-128-seed0."),
            "{text}"
        );
        assert!(
            !text.contains("steps per run"),
            "the rows have different steps"
        );
        assert!(
            !text.contains("## Single runs"),
            "the table has them already"
        );
    }
}
