//! Searches compared on one trained model: `arbora eval --search`.

use super::EvalArgs;
use crate::families::Family as _;
use crate::families::retrieval::RetrievalConfig;
use crate::families::retrieval::{Search, Strategy};
use crate::run::TrainedRun;
use crate::table::table;
use anyhow::Result;
use arbora::rl::train::measure;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Instant;

/// So many paths of each query are more than a memory holds.
const MOST_PATHS: usize = 1 << 16;

/// Reads `greedy`, `samples=K` or `beam=W`.
///
/// # Errors
/// With what was expected.
pub fn strategy(text: &str) -> Result<Strategy, String> {
    let number = |text: &str| {
        let number = text.parse().ok();
        let number = number.filter(|number| (1..=MOST_PATHS).contains(number));
        number.ok_or_else(|| format!("expected 1 to {MOST_PATHS} paths, got {text}"))
    };
    match text.split_once('=') {
        None if text == "greedy" => Ok(Strategy::Greedy),
        Some(("samples", count)) => number(count).map(Strategy::Samples),
        Some(("beam", width)) => number(width).map(Strategy::Beam),
        _ => Err("expected greedy, samples=K or beam=W".into()),
    }
}

/// Reads a temperature.
///
/// # Errors
/// With what was expected.
pub fn temperature(text: &str) -> Result<f64, String> {
    let temperature = text.parse().ok();
    let temperature = temperature.filter(|it: &f64| it.is_finite() && *it > 0.0);
    temperature.ok_or_else(|| "expected a finite number above 0".into())
}

/// A strategy as [`strategy`] reads it.
fn written(strategy: &Strategy) -> String {
    match strategy {
        Strategy::Greedy => "greedy".into(),
        Strategy::Samples(count) => format!("samples={count}"),
        Strategy::Beam(width) => format!("beam={width}"),
    }
}

fn name(search: &Search) -> String {
    let strategy = written(&search.strategy);
    match (search.strategy, search.temperature) {
        (Strategy::Greedy, _) | (_, 1.0) => strategy,
        (_, temperature) => format!("{strategy}, temperature {temperature}"),
    }
}

/// Measures a model with each search, and says what it costs and brings.
///
/// # Errors
/// If the data cannot be measured on, or the Markdown file cannot be written.
pub fn compare(run: &TrainedRun<RetrievalConfig>, args: &EvalArgs) -> Result<String> {
    let config = &run.config;
    let problems = config.evaluation(&run.data, config.test_items, &run.device)?;
    let queries: usize = problems
        .iter()
        .map(|problem| problem.queries.dims()[..2].iter().product::<usize>())
        .sum();
    let mut rows: Vec<(String, BTreeMap<String, f64>)> = Vec::new();
    for &strategy in &args.search {
        let search = Search {
            strategy,
            temperature: args.temperature,
        };
        let model = run.model.clone().with_search(search);
        let begun = Instant::now();
        let means = measure(&model, problems.iter().cloned(), config.trainer.seed);
        let mut means: BTreeMap<String, f64> = means.into_iter().collect();
        let seconds = begun.elapsed().as_secs_f64();
        means.insert(
            "microseconds_per_query".into(),
            seconds * 1e6 / queries.max(1) as f64,
        );
        rows.push((name(&search), means));
    }
    let text = markdown(&rows);
    if let Some(path) = &args.markdown {
        let text = page(&text, config, args);
        crate::atomic_file::write(path, text)?;
    }
    if args.json {
        let searches: Vec<Value> = rows
            .iter()
            .map(|(name, means)| json!({"search": name, "metrics": means}))
            .collect();
        return Ok(json!({"run": args.run.to_string_lossy(), "searches": searches}).to_string());
    }
    Ok(text)
}

fn markdown(rows: &[(String, BTreeMap<String, f64>)]) -> String {
    let columns = [
        ("accuracy", "accuracy", 4),
        ("log_likelihood", "log-likelihood, nats", 4),
        ("tokens_percent", "% tokens", 1),
        ("nodes_selected", "nodes selected", 1),
        ("nodes_read", "nodes read", 1),
        ("microseconds_per_query", "microseconds per query", 1),
    ];
    let has = |key: &str| rows.iter().any(|(_, means)| means.contains_key(key));
    let columns: Vec<_> = columns.into_iter().filter(|(key, ..)| has(key)).collect();
    let titles = columns.iter().map(|(_, title, _)| (*title).to_owned());
    let mut cells: Vec<Vec<String>> =
        vec![std::iter::once("search".into()).chain(titles).collect()];
    for (name, means) in rows {
        let numbers = columns.iter().map(|(key, _, digits)| {
            let mean = means.get(*key).copied().unwrap_or(f64::NAN);
            format!("{mean:.digits$}")
        });
        cells.push(std::iter::once(name.clone()).chain(numbers).collect());
    }
    table(&cells, 1).trim_end().to_owned()
}

fn page(table: &str, config: &RetrievalConfig, args: &EvalArgs) -> String {
    let specs: Vec<String> = args.search.iter().map(written).collect();
    let temperature = match args.temperature {
        1.0 => String::new(),
        temperature => format!(" --temperature {temperature}"),
    };
    format!(
        "# Searches compared: {} on {}\n\nOne trained model, several searches. With several paths a query \
         attends once to the union of what they select. The whole page is made by\n\n```sh\narbora eval {} \
         --search {}{temperature} --markdown FILE\n```\n\n{table}\n\nMicroseconds are those of the whole model on \
         all test items (context encoded, trees built, queries answered), on a machine that may have had other \
         work: compare rows, not pages.\n",
        config.model.name(),
        config.task.name(),
        args.run.display(),
        specs.join(","),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn searches_are_read_by_name_and_number_of_paths() {
        assert_eq!(strategy("greedy"), Ok(Strategy::Greedy));
        assert_eq!(strategy("samples=4"), Ok(Strategy::Samples(4)));
        assert_eq!(strategy("beam=2"), Ok(Strategy::Beam(2)));
        for wrong in [
            "beam",
            "beam=",
            "beam=0",
            "beam=-1",
            "samples=65537",
            "widest=3",
            "greedy=2",
        ] {
            assert!(
                strategy(wrong).unwrap_err().starts_with("expected"),
                "{wrong}"
            );
        }
    }

    #[test]
    fn temperatures_that_are_not_positive_are_refused() {
        assert_eq!(temperature("0.5"), Ok(0.5));
        for wrong in ["0", "-1", "NaN", "inf", "warm"] {
            assert!(temperature(wrong).is_err(), "{wrong}");
        }
    }
}
