//! What the tests of the TreeCoder share: small models, and the model composed by hand, without groups or masks.

use arbora_attention::SelfAttentionInput;
use arbora_models::tree_coder::{
    Node, RouteOn, SelectorBalance, SelectorConfig, SelectorGradient, SelectorKind,
};
use arbora_models::{TreeCoder, TreeCoderConfig, TreeCoderOptions, TreeCoderOutput};
use arbora_testing::{allowed, values};
use burn::tensor::activation::softmax;
use burn::tensor::{DType, Device, Int, Tensor, TensorData};

/// Seven tokens, a binary tree of height 2, routed on the first two tokens.
pub fn small() -> TreeCoderConfig {
    TreeCoderConfig::new(7, 8)
        .with_d_model(8)
        .with_d_ff(vec![8])
        .with_route_on(RouteOn::FirstN { tokens: 2 })
}

/// The small model with other selectors.
pub fn learning(gradient: SelectorGradient, balance: SelectorBalance) -> TreeCoderConfig {
    let selector = SelectorConfig::new()
        .with_gradient(gradient)
        .with_balance(balance);
    small().with_selector(selector)
}

/// The small model with a control.
pub fn control(kind: SelectorKind) -> TreeCoderConfig {
    small().with_selector(SelectorConfig::new().with_kind(kind))
}

pub fn tokens<const N: usize>(rows: &[[i64; N]], device: &Device) -> Tensor<2, Int> {
    Tensor::from_data(TensorData::new(rows.concat(), [rows.len(), N]), device)
}

/// Rows of numbers below 7 that have little in common.
pub fn rows<const N: usize>(count: usize) -> Vec<[i64; N]> {
    (0..count as i64)
        .map(|row| {
            std::array::from_fn(|at| (row * 3 + row * row * (at as i64 + 1) + at as i64 * 5) % 7)
        })
        .collect()
}

pub fn run<const N: usize>(model: &TreeCoder, rows: &[[i64; N]]) -> TreeCoderOutput {
    run_on(model, rows, &arbora_testing::device())
}

pub fn run_on<const N: usize>(
    model: &TreeCoder,
    rows: &[[i64; N]],
    device: &Device,
) -> TreeCoderOutput {
    model.forward(tokens(rows, device), None, &TreeCoderOptions::default())
}

/// The same model with selectors so sure that the probability of a child is 1.
pub fn certain(mut model: TreeCoder) -> TreeCoder {
    for node in &mut model.nodes {
        if let Some(selector) = &mut node.selector {
            selector.output.weight = selector
                .output
                .weight
                .clone()
                .map(|weight| (weight * 1e4).detach());
        }
    }
    model
}

#[track_caller]
pub fn assert_near(got: &[f32], expected: &[f32]) {
    assert_eq!(got.len(), expected.len());
    for (got, expected) in got.iter().zip(expected) {
        assert!(
            (got - expected).abs() < allowed(1e-4),
            "{got} for {expected}"
        );
    }
}

/// The blocks of a node, on whole sequences.
pub fn node(node: &Node, tokens: Tensor<3>, causal: bool) -> Tensor<3> {
    node.blocks.iter().fold(tokens, |tokens, block| {
        let mut asked = SelfAttentionInput::new(tokens);
        asked.masks.causal = causal;
        block.forward(asked).0
    })
}

fn argmax(numbers: &[f32]) -> usize {
    (0..numbers.len())
        .max_by(|&one, &other| numbers[one].total_cmp(&numbers[other]))
        .expect("there are children")
}

/// A model routed on its first tokens: every node runs on all sequences, and one-hot rows select. Where `leaves` is
/// `None` the greedy ones are taken.
///
/// - share: of what a node at a depth adds, per sequence, given the probabilities of the children taken
/// - returns logits `[batch, tokens, classes]` and leaves
pub fn select_one_hot(
    model: &TreeCoder,
    tokens: Tensor<2, Int>,
    leaves: Option<&[usize]>,
    share: impl Fn(usize, Tensor<1>) -> Tensor<1>,
) -> (Tensor<3>, Vec<usize>) {
    let [batch, _] = tokens.dims();
    let device = tokens.device();
    let config = model.config();
    let (tree, k) = (model.tree(), config.branching);
    let single = (&device, DType::F32);
    let one_hot = |numbers: &[usize], number: usize| {
        let hits: Vec<f32> = numbers
            .iter()
            .map(|other| f32::from(u8::from(*other == number)))
            .collect();
        Tensor::<1>::from_data(hits.as_slice(), single)
    };
    let mut hidden = model.embed(tokens, 0);
    let mut nodes = vec![0; batch];
    let mut part = Tensor::<1>::ones([batch], single);
    for depth in 0..=tree.height() {
        let mut left = hidden.zeros_like();
        for index in 0..tree.width(depth) {
            let all = node(model.node(depth, index), hidden.clone(), config.causal);
            let here = one_hot(&nodes, index).cast(all.dtype());
            left = left + all * here.reshape([batch, 1, 1]);
        }
        hidden = hidden.clone()
            + (left - hidden.clone()) * part.cast(hidden.dtype()).reshape([batch, 1, 1]);
        if depth == tree.height() {
            break;
        }
        let pooled = hidden
            .clone()
            .narrow(1, 0, config.route_on.prompt())
            .mean_dim(1)
            .squeeze_dim::<2>(1);
        let mut scores = Tensor::<2>::zeros([batch, k], single);
        for index in 0..tree.width(depth) {
            let selector = model.node(depth, index).selector.as_ref().unwrap();
            let of_node = selector.forward(pooled.clone()).cast(DType::F32);
            scores = scores + of_node * one_hot(&nodes, index).reshape([batch, 1]);
        }
        let children: Vec<usize> = match leaves {
            Some(leaves) => leaves.iter().map(|leaf| tree.path(*leaf)[depth]).collect(),
            None => values(scores.clone()).chunks(k).map(argmax).collect(),
        };
        let probabilities = softmax(scores, 1);
        let mut taken = Tensor::<1>::zeros([batch], single);
        for child in 0..k {
            let of_child = probabilities
                .clone()
                .narrow(1, child, 1)
                .squeeze_dim::<1>(1);
            taken = taken + of_child * one_hot(&children, child);
        }
        part = share(depth, taken).cast(DType::F32);
        for (node, child) in nodes.iter_mut().zip(children) {
            *node = *node * k + child;
        }
    }
    let logits = match &model.head {
        Some(head) => head.forward(hidden),
        None => {
            let mut sum = None;
            for leaf in 0..tree.leaves() {
                let head = model.node(tree.height(), leaf).head.as_ref().unwrap();
                let all = head.forward(hidden.clone());
                let here = one_hot(&nodes, leaf).cast(all.dtype());
                let all = all * here.reshape([batch, 1, 1]);
                sum = Some(match sum {
                    Some(sum) => sum + all,
                    None => all,
                });
            }
            sum.unwrap()
        }
    };
    (logits, nodes)
}

/// A model routed on the chunk before, for one sequence: the chunks at a node are joined, run and cut apart
/// again, with nothing masked.
///
/// - returns logits `[1, tokens, classes]` and the leaf of each chunk
pub fn join_chunks(
    model: &TreeCoder,
    tokens: Tensor<2, Int>,
    chunk: usize,
) -> (Tensor<3>, Vec<usize>) {
    let [_, count] = tokens.dims();
    let config = model.config();
    let (tree, k) = (model.tree(), config.branching);
    let hidden = model.embed(tokens, 0);
    let mut chunks: Vec<Tensor<3>> = (0..count)
        .step_by(chunk)
        .map(|start| hidden.clone().narrow(1, start, chunk.min(count - start)))
        .collect();
    let mut nodes = vec![0; chunks.len()];
    let mut parts = vec![1.0; chunks.len()];
    for depth in 0..=tree.height() {
        for index in 0..tree.width(depth) {
            let here: Vec<usize> = (0..chunks.len()).filter(|at| nodes[*at] == index).collect();
            if here.is_empty() {
                continue;
            }
            let entered = here.iter().map(|at| chunks[*at].clone()).collect();
            let left = node(
                model.node(depth, index),
                Tensor::cat(entered, 1),
                config.causal,
            );
            let mut start = 0;
            for at in here {
                let width = chunks[at].dims()[1];
                let added = left.clone().narrow(1, start, width) - chunks[at].clone();
                chunks[at] = chunks[at].clone() + added * parts[at];
                start += width;
            }
        }
        if depth == tree.height() {
            break;
        }
        for at in 0..chunks.len() {
            let pooled = match at {
                0 => Tensor::zeros([1, config.d_model], &hidden.device()),
                _ => chunks[at - 1].clone().mean_dim(1).squeeze_dim::<2>(1),
            };
            let selector = model.node(depth, nodes[at]).selector.as_ref().unwrap();
            let probabilities = values(softmax(selector.forward(pooled), 1));
            let child = if probabilities.iter().all(|other| *other == probabilities[0]) {
                // The first chunk reads nothing, and biases are equal at first.
                0
            } else {
                argmax(&probabilities)
            };
            parts[at] = probabilities[child];
            nodes[at] = nodes[at] * k + child;
        }
    }
    let head = model.head.as_ref().unwrap();
    (head.forward(Tensor::cat(chunks, 1)), nodes)
}
