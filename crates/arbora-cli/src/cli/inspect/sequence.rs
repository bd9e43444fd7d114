//! `arbora inspect` on sequences: how queries and keys spread over the leaves of each layer.

use super::{Seen, begin, load};
use crate::cli::InspectArgs;
use crate::families::Family as _;
use crate::families::leaves::mean_of_share;
use crate::families::sequence::{SequenceBatch, SequenceConfig};
use crate::run::TrainedRun;
use anyhow::{Result, bail};
use arbora::attention::RoutingReport;
use burn::tensor::Tensor;
use serde_json::{Value, json};
use std::path::Path;

/// The curves of a run; and where its model has trees, what is in their leaves.
pub fn inspect(args: &InspectArgs, out: &Path) -> Result<Seen> {
    if args.item.is_some() || args.query.is_some() {
        bail!("--item and --query: a run of sequences shows the leaves of all its held-out items");
    }
    let (config, pictures) = begin::<SequenceConfig>(args, out)?;
    let run = load::<SequenceConfig>(args, out)?;
    let items = config.common().eval_items;
    let batches = run.config.evaluation(&run.data, items, &run.device)?;
    let layers = layers(&run, &batches);
    let name = config.common().model;
    let mut text = match layers.len() {
        0 => format!("{name} has no trees; its curves are drawn"),
        _ => format!("{name}, step {}, {items} held-out sequences", run.step),
    };
    for layer in &layers {
        text += &layer.text();
    }
    Ok(Seen {
        pictures,
        numbers: json!({
            "model": name,
            "step": run.step,
            "items": items,
            "layers": layers.iter().map(Layer::json).collect::<Vec<_>>(),
        }),
        text,
        is_bare: false,
    })
}

/// A layer with trees: means over batches, examples and trees.
struct Layer {
    number: usize,
    queries_without_key: f64,
    keys_without_query: f64,
    cost_ratio: f64,
    /// Queries of the mean example in each leaf, the mean over trees.
    queries: Vec<f64>,
    keys: Vec<f64>,
}

fn layers(run: &TrainedRun<SequenceConfig>, batches: &[SequenceBatch]) -> Vec<Layer> {
    let mut layers: Vec<Layer> = Vec::new();
    for batch in batches {
        let reports = run.model.routing(batch).into_iter().enumerate();
        let reports = reports.filter_map(|(number, report)| Some((number, report?)));
        for (at, (number, report)) in reports.enumerate() {
            let layer = Layer::of(number, &report);
            match layers.get_mut(at) {
                Some(sum) => sum.add(&layer),
                None => layers.push(layer),
            }
        }
    }
    for layer in &mut layers {
        layer.divide(batches.len() as f64);
    }
    layers
}

impl Layer {
    fn of(number: usize, report: &RoutingReport) -> Self {
        let by_leaf = |counts: &Tensor<3>| {
            let data = counts.clone().mean_dim(0).mean_dim(1).into_data();
            data.iter::<f32>().map(f64::from).collect()
        };
        Self {
            number,
            queries_without_key: mean_of_share(&report.queries_without_key),
            keys_without_query: mean_of_share(&report.keys_without_query),
            cost_ratio: mean_of_share(&report.cost_ratio),
            queries: by_leaf(&report.counts.queries),
            keys: by_leaf(&report.counts.keys),
        }
    }

    fn numbers(&mut self) -> impl Iterator<Item = &mut f64> {
        let shares = [
            &mut self.queries_without_key,
            &mut self.keys_without_query,
            &mut self.cost_ratio,
        ];
        let leaves = self.queries.iter_mut().chain(&mut self.keys);
        shares.into_iter().chain(leaves)
    }

    fn add(&mut self, other: &Self) {
        let others = [
            other.queries_without_key,
            other.keys_without_query,
            other.cost_ratio,
        ];
        let leaves = other.queries.iter().chain(&other.keys).copied();
        for (sum, number) in self.numbers().zip(others.into_iter().chain(leaves)) {
            *sum += number;
        }
    }

    fn divide(&mut self, count: f64) {
        self.numbers().for_each(|number| *number /= count);
    }

    fn text(&self) -> String {
        let leaves = self.queries.len();
        let most = |counts: &[f64]| counts.iter().copied().fold(0.0, f64::max);
        format!(
            "\nlayer {}: {:.1} % of queries have no key in their leaf, {:.1} % of keys no query; {:.1} % of all pairs meet \
             ({:.1} % if its {leaves} leaves were equally full), {:.0} queries and {:.0} keys in the fullest",
            self.number,
            100.0 * self.queries_without_key,
            100.0 * self.keys_without_query,
            100.0 * self.cost_ratio,
            100.0 / leaves as f64,
            most(&self.queries),
            most(&self.keys),
        )
    }

    fn json(&self) -> Value {
        json!({
            "layer": self.number,
            "queries_without_key_percent": 100.0 * self.queries_without_key,
            "keys_without_query_percent": 100.0 * self.keys_without_query,
            "cost_ratio": self.cost_ratio,
            "leaf_queries": self.queries,
            "leaf_keys": self.keys,
        })
    }
}
