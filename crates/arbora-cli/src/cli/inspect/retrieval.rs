//! `arbora inspect` on retrieval: what one query read, and how sure the policy was.

use super::walk::{Decision, Walk, counts, floats};
use super::{Seen, begin, lines, load};
use crate::cli::InspectArgs;
use crate::families::Family as _;
use crate::families::retrieval::data::Problem;
use crate::families::retrieval::{RetrievalConfig, RetrievalTask, report};
use crate::picture::confidence::{self, ConfidencePicture, QueryDecisions};
use crate::picture::retrieval::{
    self as path, ImageInset, RetrievalPicture, SearchedTree, SequenceInset,
};
use crate::run::TrainedRun;
use anyhow::{Context as _, Result, bail, ensure};
use arbora::models::{Context, Prediction, ReTreever, Target};
use arbora::rl::seed::{Purpose, rng};
use burn::tensor::activation::softmax;
use burn::tensor::{Bool, Int, Tensor};
use serde_json::{Value, json};
use std::path::Path;

/// Test problems whose queries are in the picture of confidence.
const CONFIDENCE_ITEMS: usize = 16;

/// The curves of a run; and where its model has a tree, the path of a query down that and how sure it was.
pub fn inspect(args: &InspectArgs, out: &Path) -> Result<Seen> {
    let (config, mut pictures) = begin::<RetrievalConfig>(args, out)?;
    let name = config.model.name();
    if !config.model.has_tree() {
        if args.item.is_some() || args.query.is_some() {
            bail!("--item and --query: not supported for {name}, which has no tree");
        }
        return Ok(Seen {
            pictures,
            numbers: json!({ "model": config.model, "tree": false }),
            text: format!("{name} has no tree; its curves are"),
            is_bare: true,
        });
    }
    let run = load::<RetrievalConfig>(args, out)?;
    let (picture, numbers) = query(&run, args.item.unwrap_or(0), args.query)?;
    let confidence = confidence::panels(&confidence_of(&run)?)?;
    pictures.push(("path", Box::new(move |to| path::draw(&picture, to))));
    pictures.push(lines("confidence", confidence.into()));
    Ok(Seen {
        pictures,
        text: text(&numbers),
        is_bare: false,
        numbers,
    })
}

/// A query of a test problem of one example.
struct Look<'a> {
    run: &'a TrainedRun<RetrievalConfig>,
    item: usize,
    query: usize,
    problem: Problem,
    /// The pixels of an image, row by row, if it is one: its truth.
    image: Option<Vec<f32>>,
    walk: Walk,
}

/// One query of one test problem, looked at: the picture and the numbers.
fn query(
    run: &TrainedRun<RetrievalConfig>,
    item: usize,
    query: Option<usize>,
) -> Result<(RetrievalPicture, Value)> {
    let items = run.test_items();
    ensure!(
        item < items,
        "--item: expected below {items} ({}), got {item}",
        run.data.items
    );
    let (problem, image) = load_item(run, item)?;
    // Padding stands behind them.
    let asked = are_asked(&problem).into_iter();
    let queries = asked.filter(|asked| *asked).count();
    let query = query.unwrap_or_else(|| match &run.data.images {
        // The middle of the picture tells more than its corner.
        Some(images) => {
            let set = images.test();
            set.height / 2 * set.width + set.width / 2
        }
        None => 0,
    });
    ensure!(
        query < queries,
        "--query: expected below {queries}, the queries of item {item}, got {query}"
    );

    let mut rng = rng(run.config.trainer.seed, Purpose::Evaluation, item as u64);
    let look = Look {
        walk: Walk::new(&run.model, tree(run), &problem, &mut rng),
        run,
        item,
        query,
        problem,
        image,
    };
    let walk = &look.walk;
    let decisions = walk.decisions(query);
    let probabilities = decisions.iter().map(|one| one.probabilities.clone());
    let probabilities: Vec<Vec<f32>> = probabilities.collect();
    let tree = SearchedTree::new(walk.shape, walk.length(0), walk.path(query), &probabilities);
    let numbers = look.numbers(&tree, &decisions);
    let name = run.config.model.name();
    let place = match &run.data.images {
        Some(images) => {
            let width = images.test().width;
            format!("row {}, column {}", query / width, query % width)
        }
        None => format!("query {query}"),
    };
    let picture = RetrievalPicture {
        title: format!("{name} at step {}: item {item}, {place}", run.step),
        summary: vec![answer_line(&numbers), search_line(&numbers)],
        tree,
        image: look.image_inset(),
        sequence: look.sequence_inset(),
    };
    Ok((picture, numbers))
}

/// The tree of a run that was found to have one.
fn tree(run: &TrainedRun<RetrievalConfig>) -> &ReTreever {
    let tree = run.model.retreever();
    tree.expect("the configuration names a model with a tree")
}

/// Test item `item` as a problem of its own, and its pixels.
fn load_item(
    run: &TrainedRun<RetrievalConfig>,
    item: usize,
) -> Result<(Problem, Option<Vec<f32>>)> {
    if let Some(images) = &run.data.images {
        let context = report::picture_context(&run.config);
        let whole = images.whole(item, context, &run.device)?;
        return Ok((whole.batch.into(), Some(whole.truth)));
    }
    let batch_size = run.config.eval_batch_size;
    let problems = run.config.evaluation(&run.data, item + 1, &run.device)?;
    // Problems of one kind come together, those of the kind trained on first.
    let problem = problems.into_iter().nth(item / batch_size);
    let problem = problem.context("the test has fewer items than it says")?;
    Ok((examples(problem, item % batch_size, 1), None))
}

/// Some examples of a problem, from `first` on.
fn examples(problem: Problem, first: usize, count: usize) -> Problem {
    let masks = |mask: Tensor<2, Bool>| mask.narrow(0, first, count);
    let Context {
        features,
        positions,
        mask,
    } = problem.context;
    Problem {
        context: Context {
            features: features.narrow(0, first, count),
            positions: positions.narrow(0, first, count),
            mask: mask.map(masks),
        },
        queries: problem.queries.narrow(0, first, count),
        target: match problem.target {
            Target::Values(values) => Target::Values(values.narrow(0, first, count)),
            Target::Classes(classes) => Target::Classes(classes.narrow(0, first, count)),
        },
        target_mask: problem.target_mask.map(masks),
        answers: problem
            .answers
            .map(|answers: Tensor<2, Int>| answers.narrow(0, first, count)),
        ..problem
    }
}

/// Whether each query is asked, `[batch · queries]`.
fn are_asked(problem: &Problem) -> Vec<bool> {
    let [examples, queries, _] = problem.queries.dims();
    let Some(mask) = &problem.target_mask else {
        return vec![true; examples * queries];
    };
    let masked = mask.clone().into_data();
    masked.iter::<bool>().map(|masked| !masked).collect()
}

/// The decisions of all queries of the first test problems.
fn confidence_of(run: &TrainedRun<RetrievalConfig>) -> Result<ConfidencePicture> {
    let mut left = CONFIDENCE_ITEMS.min(run.test_items());
    let problems = run
        .config
        .evaluation(&run.data, left, &run.device)?
        .into_iter();
    let mut queries = Vec::new();
    // Problems of other kinds than trained on would blur the picture.
    let problems = problems.filter(|problem| problem.kind.is_none());
    for (index, problem) in problems.enumerate() {
        let count = left.min(problem.queries.dims()[0]);
        if count == 0 {
            break;
        }
        left -= count;
        let problem = examples(problem, 0, count);
        let mut rng = rng(run.config.trainer.seed, Purpose::Evaluation, index as u64);
        let walk = Walk::new(&run.model, tree(run), &problem, &mut rng);
        let asked = are_asked(&problem).into_iter().enumerate();
        for (row, _) in asked.filter(|(_, asked)| *asked) {
            let decisions = walk.decisions(row);
            let unless_forced = |number: fn(&Decision) -> f32| {
                let number = |one: &Decision| if one.is_forced { f32::NAN } else { number(one) };
                decisions.iter().map(number).collect()
            };
            queries.push(QueryDecisions {
                probability: unless_forced(Decision::probability),
                entropy: unless_forced(Decision::entropy),
                is_right: walk.is_right.as_ref().map(|right| right[row]),
            });
        }
    }
    Ok(ConfidencePicture {
        title: run.config.model.name().into(),
        branching: run.config.architecture.branching,
        queries,
    })
}

impl Look<'_> {
    /// What a person or a program may want to know of the query.
    fn numbers(&self, tree: &SearchedTree, decisions: &[Decision]) -> Value {
        let (walk, query) = (&self.walk, self.query);
        let made: Vec<&Decision> = decisions.iter().filter(|step| !step.is_forced).collect();
        let entropy = made.iter().map(|step| step.entropy()).sum::<f32>();
        let depths = decisions.iter().zip(walk.path(query));
        let depths = depths.map(|(step, node)| {
            json!({
                "node": node, "child": step.child, "probabilities": step.probabilities,
                "probability": step.probability(), "entropy": step.entropy(),
                "forced": step.is_forced,
            })
        });
        let order = walk.order(0);
        let nodes = tree.selected().into_iter().map(|(height, leaves)| {
            json!({ "height": height, "first_leaf": leaves.start, "tokens": &order[leaves] })
        });
        let (prediction, truth) = self.answer();
        json!({
            "model": self.run.config.model, "task": self.run.config.task, "step": self.run.step,
            "backend": self.run.backend, "tree": true, "item": self.item, "query": query,
            "tokens": walk.length(0), "selected": walk.selected[query], "read": walk.read[query],
            "log_probability": walk.log_prob[query], "entropy": entropy / made.len().max(1) as f32,
            "decisions": depths.collect::<Vec<_>>(), "nodes": nodes.collect::<Vec<_>>(),
            "prediction": prediction, "truth": truth, "log_likelihood": walk.log_likelihood[query],
            "right": walk.is_right.as_ref().map(|right| right[query]),
        })
    }

    /// What the model answers, and the truth.
    fn answer(&self) -> (Value, Value) {
        let of_query = |tensor: &Tensor<3>| tensor.clone().narrow(1, self.query, 1);
        match (&self.walk.prediction, &self.problem.target) {
            (Prediction::Gaussian { mean, std }, Target::Values(values)) => {
                let [mean, std, values] = [mean, std, values].map(|one| floats(of_query(one)));
                (json!({ "mean": mean, "std": std }), json!(values))
            }
            (Prediction::Classes { logits }, Target::Classes(classes)) => {
                let shares = floats(softmax(of_query(logits), 2));
                let answer = |class: usize| {
                    let name = class_name(self.run.config.task, class);
                    json!({ "class": class, "name": name, "probability": shares[class] })
                };
                let truth = counts(classes.clone().narrow(1, self.query, 1))[0];
                (answer(largest(&shares)), answer(truth))
            }
            _ => unreachable!("a model predicts what its task asks for"),
        }
    }

    fn image_inset(&self) -> Option<ImageInset> {
        let set = self.run.data.images.as_ref()?.test();
        // Coordinates run from -1 at the first row or column to 1 at the last.
        let place = |coordinate: f32, size: usize| {
            let place = (coordinate + 1.0) / 2.0 * (size - 1) as f32;
            (place.round() as usize).min(size - 1)
        };
        let positions = floats(self.problem.context.positions.clone());
        let leaves = self.walk.order(0).iter().map(|token| {
            let [row, column] = [positions[2 * token], positions[2 * token + 1]];
            (place(row, set.height), place(column, set.width))
        });
        Some(ImageInset {
            height: set.height,
            width: set.width,
            channels: set.channels,
            pixels: self.image.clone()?,
            leaves: leaves.collect(),
            query: (self.query / set.width, self.query % set.width),
        })
    }

    /// The sequence of the copy task, and where its answer stands.
    fn sequence_inset(&self) -> Option<SequenceInset> {
        if self.run.config.task != RetrievalTask::Copy {
            return None;
        }
        let (problem, query) = (&self.problem, self.query);
        let [_, tokens, classes] = problem.context.features.dims();
        let features = floats(problem.context.features.clone());
        let class: Vec<usize> = features.chunks(classes).map(largest).collect();
        let order = self.walk.order(0);
        let Target::Classes(truth) = &problem.target else {
            return None;
        };
        let truth = counts(truth.clone().narrow(1, query, 1))[0];
        // The last query asks for the end sign, which is no token.
        let answers = counts(problem.answers.clone()?);
        let answer = Some(answers[query]).filter(|token| class[*token] == truth);
        let labels = order.iter();
        let labels = labels.map(|token| class_name(RetrievalTask::Copy, class[*token]));
        Some(SequenceInset {
            labels: labels.collect(),
            query: format!("what stands at place {}?", tokens + query),
            answer: answer.and_then(|token| order.iter().position(|own| *own == token)),
        })
    }
}

/// The first of the largest numbers.
fn largest(numbers: &[f32]) -> usize {
    let better = |best: usize, at: usize| {
        if numbers[at] > numbers[best] {
            at
        } else {
            best
        }
    };
    (0..numbers.len()).fold(0, better)
}

/// A class in a word.
fn class_name(task: RetrievalTask, class: usize) -> String {
    match (task, class) {
        (RetrievalTask::Copy, 0) => "start".into(),
        (RetrievalTask::Copy, 1) => "end".into(),
        (RetrievalTask::Copy, character) => (character - 2).to_string(),
        _ => class.to_string(),
    }
}

/// Prediction and truth in words.
fn answer_line(numbers: &Value) -> String {
    let (prediction, truth) = (&numbers["prediction"], &numbers["truth"]);
    let number = |value: &Value| value.as_f64().unwrap_or(f64::NAN);
    let listed = |values: &Value| {
        let values = values.as_array().map(Vec::as_slice).unwrap_or_default();
        let values = values.iter().map(|value| format!("{:.3}", number(value)));
        values.collect::<Vec<_>>().join(", ")
    };
    match numbers["right"].as_bool() {
        Some(right) => format!(
            "answers {} with probability {:.3}, truth {}: {}",
            prediction["name"].as_str().unwrap_or_default(),
            number(&prediction["probability"]),
            truth["name"].as_str().unwrap_or_default(),
            if right { "right" } else { "wrong" }
        ),
        None => format!(
            "predicts {} with standard deviation {}, truth {}; log-likelihood {:.3} nats",
            listed(&prediction["mean"]),
            listed(&prediction["std"]),
            listed(truth),
            number(&numbers["log_likelihood"])
        ),
    }
}

/// What the search cost and how sure it was, in words.
fn search_line(numbers: &Value) -> String {
    let number = |name: &str| numbers[name].as_f64().unwrap_or(f64::NAN);
    format!(
        "selected {} nodes for {} tokens, read {}; log-probability of the path {:.3}, entropy {:.3} \
         nats per decision",
        numbers["selected"],
        numbers["tokens"],
        numbers["read"],
        number("log_probability"),
        number("entropy")
    )
}

/// The numbers for a person.
fn text(numbers: &Value) -> String {
    let word = |name: &str| numbers[name].as_str().unwrap_or_default();
    let mut text = format!(
        "{} at step {}: {}, item {}, query {}\n{}\n{}",
        word("model"),
        numbers["step"],
        word("task"),
        numbers["item"],
        numbers["query"],
        answer_line(numbers),
        search_line(numbers)
    );
    let decisions = numbers["decisions"].as_array();
    let decisions = decisions.map(Vec::as_slice).unwrap_or_default();
    if !decisions.is_empty() {
        text += "\ndepth  child  probability  entropy";
    }
    for (depth, step) in decisions.iter().enumerate() {
        let number = |name: &str| step[name].as_f64().unwrap_or(f64::NAN);
        text += &format!("\n{depth:>5}  {:>5}", step["child"]);
        text += &if step["forced"] == true {
            "  no choice".into()
        } else {
            format!(
                "  {:>11.3}  {:>7.3}",
                number("probability"),
                number("entropy")
            )
        };
    }
    text
}
