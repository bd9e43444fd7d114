//! `arbora inspect` on retrieval: what one query read, and how sure the policy was.

use super::walk::{Decision, Walk, counts, floats};
use super::{Picture, Seen};
use crate::cli::InspectArgs;
use crate::families::Finished;
use crate::families::retrieval::data::Problem;
use crate::families::retrieval::{RetrievalConfig, RetrievalTask, report};
use crate::picture::confidence::{self, ConfidencePicture, QueryDecisions};
use crate::picture::retrieval::{ImageInset, RetrievalPicture, SearchedTree, SequenceInset};
use crate::run::{TrainedRun, config_of};
use crate::settings::refuse_within_data;
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
    let config = config_of::<RetrievalConfig>(&args.run)?;
    refuse_within_data(&config, out, "--out")?;
    let name = config.model.name();
    let panels = report::panels(&[Finished {
        name,
        folder: &args.run,
        config: &config,
        model: None,
    }])?;
    let mut pictures = vec![("curves", Picture::Curves(panels))];
    if !config.model.has_tree() {
        if args.item.is_some() || args.query.is_some() {
            bail!("--item and --query: {name} walks no tree; its curves need neither");
        }
        return Ok(Seen {
            pictures,
            numbers: json!({ "model": config.model, "tree": false }),
            text: format!("{name} walks no tree; its curves are"),
            is_bare: true,
        });
    }
    let run: TrainedRun<RetrievalConfig> =
        TrainedRun::load(&args.run, args.backend.as_deref(), &args.data.moved)?;
    refuse_within_data(&run.config, out, "--out")?;
    let (picture, numbers) = query(&run, args.item.unwrap_or(0), args.query)?;
    pictures.push(("path", Picture::Path(picture.into())));
    let confidence = confidence::panels(&confidence_of(&run)?)?;
    pictures.push(("confidence", Picture::Curves(confidence.into())));
    Ok(Seen {
        pictures,
        text: text(&numbers),
        is_bare: false,
        numbers,
    })
}

/// A test problem of one example, and what its pictures show beside the tree.
struct Case {
    problem: Problem,
    /// Where the pixels of an image are, row by row, if it is one: its truth.
    image: Option<Vec<f32>>,
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
    let case = load(run, item)?;
    let problem = &case.problem;
    let queries = asked(problem);
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

    let tree = tree(run);
    let mut rng = rng(run.config.trainer.seed, Purpose::Evaluation, item as u64);
    let walk = Walk::new(&run.model, tree, problem, &mut rng);
    let decisions = walk.decisions(query);
    let probabilities: Vec<Vec<f32>> = decisions
        .iter()
        .map(|decision| decision.probabilities.clone())
        .collect();
    let length = walk.length(0);
    let tree = SearchedTree::new(walk.shape, length, walk.path(query), &probabilities);
    let numbers = numbers(run, item, query, &case, &walk, &tree, &decisions);
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
        image: image_inset(run, &case, &walk, query),
        sequence: sequence_inset(run, problem, &walk, query),
    };
    Ok((picture, numbers))
}

/// The tree of a run that was found to have one.
fn tree(run: &TrainedRun<RetrievalConfig>) -> &ReTreever {
    let tree = run.model.retreever();
    tree.expect("the configuration names a model with a tree")
}

/// Test item `item` as a problem of its own.
fn load(run: &TrainedRun<RetrievalConfig>, item: usize) -> Result<Case> {
    if let Some(images) = &run.data.images {
        let context = report::picture_context(&run.config);
        let whole = images.whole(item, context, &run.device)?;
        return Ok(Case {
            problem: whole.batch.into(),
            image: Some(whole.truth),
        });
    }
    let batch_size = run.config.eval_batch_size;
    let problems = (run.data.evaluation)(item + 1, batch_size, &run.device)?;
    // Problems of one kind come together, those of the kind trained on first.
    let problem = problems.into_iter().nth(item / batch_size);
    let problem = problem.context("the test has fewer items than it says")?;
    Ok(Case {
        problem: examples(problem, item % batch_size, 1),
        image: None,
    })
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

/// Which queries take part, `[batch · queries]`.
fn taking_part(problem: &Problem) -> Vec<bool> {
    match &problem.target_mask {
        None => {
            let [examples, queries, _] = problem.queries.dims();
            vec![true; examples * queries]
        }
        Some(mask) => {
            let masked = counts(mask.clone().int());
            masked.into_iter().map(|masked| masked == 0).collect()
        }
    }
}

/// The queries of a problem of one example; padding stands behind them.
fn asked(problem: &Problem) -> usize {
    taking_part(problem)
        .into_iter()
        .filter(|part| *part)
        .count()
}

/// The decisions of all queries of the first test problems.
fn confidence_of(run: &TrainedRun<RetrievalConfig>) -> Result<ConfidencePicture> {
    let mut left = CONFIDENCE_ITEMS.min(run.test_items());
    let batch_size = run.config.eval_batch_size;
    let problems = (run.data.evaluation)(left, batch_size, &run.device)?;
    let mut queries = Vec::new();
    // Problems of other kinds than trained on would blur the picture.
    let problems = problems
        .into_iter()
        .filter(|problem| problem.kind.is_none());
    for (index, problem) in problems.enumerate() {
        let count = left.min(problem.queries.dims()[0]);
        if count == 0 {
            break;
        }
        left -= count;
        let problem = examples(problem, 0, count);
        let mut rng = rng(run.config.trainer.seed, Purpose::Evaluation, index as u64);
        let walk = Walk::new(&run.model, tree(run), &problem, &mut rng);
        for (row, part) in taking_part(&problem).into_iter().enumerate() {
            if !part {
                continue;
            }
            let decisions = walk.decisions(row);
            let unless_forced = |number: fn(&Decision) -> f32| {
                let number = |decision: &Decision| {
                    if decision.is_forced {
                        f32::NAN
                    } else {
                        number(decision)
                    }
                };
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

/// What a person or a program may want to know of the query.
fn numbers(
    run: &TrainedRun<RetrievalConfig>,
    item: usize,
    query: usize,
    case: &Case,
    walk: &Walk,
    tree: &SearchedTree,
    decisions: &[Decision],
) -> Value {
    let made: Vec<&Decision> = decisions.iter().filter(|step| !step.is_forced).collect();
    let entropy = made.iter().map(|step| step.entropy()).sum::<f32>() / made.len().max(1) as f32;
    let depths: Vec<Value> = decisions
        .iter()
        .zip(walk.path(query))
        .map(|(step, node)| {
            json!({
                "node": node, "child": step.child, "probabilities": step.probabilities,
                "probability": step.probability(), "entropy": step.entropy(),
                "forced": step.is_forced,
            })
        })
        .collect();
    let order = walk.order(0);
    let nodes: Vec<Value> = tree
        .selected()
        .into_iter()
        .map(|(height, leaves)| {
            json!({ "height": height, "first_leaf": leaves.start, "tokens": &order[leaves.clone()] })
        })
        .collect();
    let (prediction, truth) = answer(run, case, walk, query);
    json!({
        "model": run.config.model, "task": run.config.task, "step": run.step,
        "backend": run.backend, "tree": true, "item": item, "query": query,
        "tokens": walk.length(0), "selected": walk.selected[query], "read": walk.read[query],
        "log_probability": walk.log_prob[query], "entropy": entropy, "decisions": depths,
        "nodes": nodes, "prediction": prediction, "truth": truth,
        "log_likelihood": walk.log_likelihood[query],
        "right": walk.is_right.as_ref().map(|right| right[query]),
    })
}

/// What the model answers, and the truth.
fn answer(
    run: &TrainedRun<RetrievalConfig>,
    case: &Case,
    walk: &Walk,
    query: usize,
) -> (Value, Value) {
    match (&walk.prediction, &case.problem.target) {
        (Prediction::Gaussian { mean, std }, Target::Values(values)) => {
            let row = |tensor: &Tensor<3>| floats(tensor.clone().narrow(1, query, 1));
            (
                json!({ "mean": row(mean), "std": row(std) }),
                json!(row(values)),
            )
        }
        (Prediction::Classes { logits }, Target::Classes(classes)) => {
            let shares = floats(softmax(logits.clone().narrow(1, query, 1), 2));
            let best = largest(&shares);
            let truth = counts(classes.clone().narrow(1, query, 1))[0];
            let name = |class| class_name(run.config.task, class);
            (
                json!({ "class": best, "name": name(best), "probability": shares[best] }),
                json!({ "class": truth, "name": name(truth), "probability": shares[truth] }),
            )
        }
        _ => unreachable!("a model predicts what its task asks for"),
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

fn image_inset(
    run: &TrainedRun<RetrievalConfig>,
    case: &Case,
    walk: &Walk,
    query: usize,
) -> Option<ImageInset> {
    let set = run.data.images.as_ref()?.test();
    let pixels = case.image.clone()?;
    // Coordinates run from -1 at the first row or column to 1 at the last.
    let place = |coordinate: f32, size: usize| {
        let place = (coordinate + 1.0) / 2.0 * (size - 1) as f32;
        (place.round() as usize).min(size - 1)
    };
    let positions = floats(case.problem.context.positions.clone());
    let leaves = walk.order(0).iter().map(|token| {
        let [row, column] = [positions[2 * token], positions[2 * token + 1]];
        (place(row, set.height), place(column, set.width))
    });
    Some(ImageInset {
        height: set.height,
        width: set.width,
        channels: set.channels,
        pixels,
        leaves: leaves.collect(),
        query: (query / set.width, query % set.width),
    })
}

/// The sequence of the copy task, and where its answer stands.
fn sequence_inset(
    run: &TrainedRun<RetrievalConfig>,
    problem: &Problem,
    walk: &Walk,
    query: usize,
) -> Option<SequenceInset> {
    if run.config.task != RetrievalTask::Copy {
        return None;
    }
    let [_, tokens, classes] = problem.context.features.dims();
    let features = floats(problem.context.features.clone());
    let class: Vec<usize> = features.chunks(classes).map(largest).collect();
    let order = walk.order(0);
    let Target::Classes(truth) = &problem.target else {
        return None;
    };
    let truth = counts(truth.clone().narrow(1, query, 1))[0];
    // The last query asks for the end sign, which is no token.
    let answers = counts(problem.answers.clone()?);
    let answer = Some(answers[query]).filter(|token| class[*token] == truth);
    Some(SequenceInset {
        labels: order
            .iter()
            .map(|token| class_name(RetrievalTask::Copy, class[*token]))
            .collect(),
        query: format!("what stands at place {}?", tokens + query),
        answer: answer.and_then(|token| order.iter().position(|own| *own == token)),
    })
}
