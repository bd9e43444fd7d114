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
pub fn compare(run: &TrainedRun<RetrievalConfig>, args: &EvalArgs) -> Result<String> {
    let config = &run.config;
    let problems = config.evaluation(&run.data, config.test_items, &run.device)?;
    let queries: usize = problems
        .iter()
        .map(|problem| problem.queries.dims()[..2].iter().product::<usize>())
        .sum();
    let measure = |&strategy: &Strategy| {
        let search = Search {
            strategy,
            temperature: args.temperature,
        };
        let model = run.model.clone().with_search(search);
        let begun = Instant::now();
        let means = measure(&model, problems.iter().cloned(), config.trainer.seed);
        let microseconds = begun.elapsed().as_secs_f64() * 1e6 / queries.max(1) as f64;
        let mut means: BTreeMap<String, f64> = means.into_iter().collect();
        means.insert("microseconds_per_query".into(), microseconds);
        (name(&search), means)
    };
    let rows: Vec<_> = args.search.iter().map(measure).collect();
    let text = markdown(&rows);
    if let Some(path) = &args.markdown {
        crate::atomic_file::write(path, page(&text, config, args))?;
    }
    if !args.json {
        return Ok(text);
    }
    let searches = rows.iter();
    let searches = searches.map(|(name, means)| json!({"search": name, "metrics": means}));
    let searches: Vec<Value> = searches.collect();
    Ok(json!({"run": args.run.to_string_lossy(), "searches": searches}).to_string())
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
