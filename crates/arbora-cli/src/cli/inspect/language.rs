//! `arbora inspect` on language: where text went, and how the leaves were used over training.

use super::{Seen, begin, lines, load};
use crate::cli::InspectArgs;
use crate::families::language::report::{leaf_name, routes};
use crate::families::language::{LanguageBatch, LanguageConfig, LanguageData, LanguageModel};
use crate::picture::shares::{self, SharesPicture, SharesRow};
use crate::run::TrainedRun;
use anyhow::{Result, bail};
use arbora::rl::seed::{Purpose, rng};
use arbora::tasks::text::{Corpus, Text};
use arbora::tree::shape::CompleteTree;
use serde_json::{Value, json};
use std::path::Path;

/// Sequences of each part that are looked at, at most.
const SEQUENCES: usize = 2048;
/// Sequences that are looked at together.
const BATCH: usize = 8;
/// Documents of a part that are in the picture, the first ones.
const ROWS: usize = 60;

/// The curves of a run; and where its model has a tree, how its leaves were used.
pub fn inspect(args: &InspectArgs, out: &Path) -> Result<Seen> {
    if args.item.is_some() || args.query.is_some() {
        bail!("--item and --query: a run of task lm has documents, and shows all of them");
    }
    let (config, mut pictures) = begin::<LanguageConfig>(args, out)?;
    let name = config.model.name();
    let mut numbers = json!({ "model": config.model, "tree": config.model.has_tree() });
    if !config.model.has_tree() {
        let text = format!("{name} has no tree; its curves are drawn");
        return Ok(Seen {
            pictures,
            numbers,
            text,
            is_bare: false,
        });
    }
    let run = load::<LanguageConfig>(args, out)?;
    let tree = run.model.network().tree();
    let parts = parts(&run)?;
    let leaves = routes(&args.run, &tree)?;
    if !leaves.is_empty() {
        pictures.push(lines("leaves", leaves));
    }
    let documents = picture(name, run.step, &tree, &parts);
    let draw = move |path: &Path| shares::draw(&documents, path);
    pictures.push(("documents", Box::new(draw)));
    numbers["step"] = json!(run.step);
    numbers["leaves"] = json!(leaf_names(&tree));
    numbers["parts"] = parts.iter().map(Part::json).collect();
    Ok(Seen {
        pictures,
        numbers,
        text: text(name, run.step, &tree, &parts),
        is_bare: false,
    })
}

/// A part of the corpus, and where it went.
struct Part {
    name: &'static str,
    /// In order; those that no looked-at sequence is of have no items.
    documents: Vec<DocumentRoutes>,
    /// Items of all documents at each leaf.
    leaves: Vec<usize>,
    sequences: usize,
    /// All sequences of the part.
    of: usize,
    /// The mean entropy of the selectors at each depth, in nats; empty where routes are not learned.
    entropies: Vec<f64>,
}

/// Where the items of a document went: sequences or chunks of them.
struct DocumentRoutes {
    name: String,
    /// Items at each leaf.
    leaves: Vec<usize>,
}

impl DocumentRoutes {
    fn items(&self) -> usize {
        self.leaves.iter().sum()
    }
}

impl Part {
    /// The share of all items at each leaf.
    fn shares(&self) -> Vec<f64> {
        shares_of(&self.leaves)
    }

    /// The documents that a looked-at sequence is of.
    fn seen(&self) -> impl Iterator<Item = &DocumentRoutes> {
        self.documents.iter().filter(|one| one.items() > 0)
    }

    fn json(&self) -> Value {
        let documents = self.seen();
        let documents = documents.map(|one| json!({ "name": one.name, "items": one.leaves }));
        json!({
            "part": self.name, "sequences": self.sequences, "of": self.of, "shares": self.shares(),
            "entropies": self.entropies, "documents": documents.collect::<Vec<_>>(),
        })
    }
}

fn shares_of(counts: &[usize]) -> Vec<f64> {
    let sum = counts.iter().sum::<usize>().max(1) as f64;
    counts.iter().map(|count| *count as f64 / sum).collect()
}

fn parts(run: &TrainedRun<LanguageConfig>) -> Result<Vec<Part>> {
    let LanguageData {
        text,
        training,
        validation,
    } = &run.data;
    // Evaluation walks through a part in order: with the parts exchanged, through the training part.
    let exchanged = Text::from_parts(
        validation,
        training,
        text.tokenizer().clone(),
        run.config.windows(),
    )?;
    [
        ("held out", text, validation),
        ("training", &exchanged, training),
    ]
    .into_iter()
    .map(|(name, text, corpus)| part(run, name, text, corpus))
    .collect()
}

/// Looks at a few sequences from everywhere in a part.
fn part(
    run: &TrainedRun<LanguageConfig>,
    name: &'static str,
    text: &Text,
    corpus: &Corpus,
) -> Result<Part> {
    let model: &LanguageModel = &run.model;
    let mut leaves = vec![0; model.network().tree().leaves()];
    let documents = corpus.documents().iter().map(|document| DocumentRoutes {
        name: document.name.clone(),
        leaves: leaves.clone(),
    });
    let mut documents: Vec<DocumentRoutes> = documents.collect();
    let of = text.validation_windows();
    let (mut sequences, mut items, mut entropies) = (0, 0, Vec::new());
    let batches = text.spread_eval_batches(SEQUENCES / BATCH, BATCH, &run.device)?;
    for (index, batch) in batches.enumerate() {
        let batch = LanguageBatch::new(batch, run.config.prompt());
        let mut rng = rng(run.config.trainer.seed, Purpose::Evaluation, index as u64);
        let routing = model.forward(&batch, &mut rng).routing;
        for (sequence, leaf) in model.routed(&batch, &routing) {
            documents[batch.text.documents[sequence]].leaves[leaf] += 1;
            leaves[leaf] += 1;
        }
        entropies.resize(routing.levels.len(), 0.0);
        for (sum, level) in entropies.iter_mut().zip(&routing.levels) {
            *sum += level.entropy * routing.real_items() as f64;
        }
        sequences += batch.text.counts.len();
        items += routing.real_items();
    }
    entropies.iter_mut().for_each(|sum| *sum /= items as f64);
    if !run.config.model.learns() {
        entropies.clear();
    }
    Ok(Part {
        name,
        documents,
        leaves,
        sequences,
        of,
        entropies,
    })
}

fn picture(name: &str, step: u64, tree: &CompleteTree, parts: &[Part]) -> SharesPicture {
    let mut rows = Vec::new();
    for part in parts {
        rows.push(SharesRow {
            name: format!("{}: all", part.name),
            shares: part.shares(),
        });
        rows.extend(part.seen().take(ROWS).map(|document| SharesRow {
            name: document.name.clone(),
            shares: shares_of(&document.leaves),
        }));
        rows.push(SharesRow::default());
    }
    rows.pop();
    SharesPicture {
        title: format!("{name} at step {step}: % of each document at each leaf"),
        columns: leaf_names(tree),
        rows,
    }
}

fn leaf_names(tree: &CompleteTree) -> Vec<String> {
    let leaves = 0..tree.leaves();
    leaves.map(|leaf| leaf_name(tree, leaf)).collect()
}

/// Leaves and depths, one a line.
fn text(name: &str, step: u64, tree: &CompleteTree, parts: &[Part]) -> String {
    let mut text = format!("{name} at step {step}");
    for part in parts {
        text += &format!(
            "\n\n{}: {} of {} sequences",
            part.name, part.sequences, part.of
        );
        for (leaf, share) in part.shares().into_iter().enumerate() {
            let is_most = |one: &&DocumentRoutes| 2 * one.leaves[leaf] > one.items();
            let mostly = part.seen().filter(is_most).count();
            text += &format!(
                "\nleaf {:<10} {:>6.1} %   most of {mostly} documents",
                leaf_name(tree, leaf),
                100.0 * share
            );
        }
        for (depth, entropy) in part.entropies.iter().enumerate() {
            text += &format!("\nselectors at depth {depth}: entropy {entropy:.3} nats");
        }
    }
    text
}
